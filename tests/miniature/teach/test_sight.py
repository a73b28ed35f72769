from __future__ import annotations

import random

import numpy as np
import torch

from capfilt.miniature.teach.lessons import Lessons, _group
from capfilt.miniature.teach.sight import _labels, new_blip, teach_sight
from capfilt.miniature.world import BACKGROUNDS, COLOURS, KINDS, SIZES, Cell, Thing, scene_of
from capfilt_blip.tokenizer import Tokenizer


def test_labels_say_what_stands_in_each_cell() -> None:
    star = Thing(size="large", colour="red", kind="star", cell=Cell(row=1, column=2))
    cells, backgrounds = _labels([scene_of(background="pink", things=[star], seed=0)])
    words = [1 + COLOURS.index("red"), 1 + KINDS.index("star"), 1 + SIZES.index("large")]
    assert cells[0, 5].tolist() == words and int(cells[0].sum()) == sum(words)
    assert backgrounds.tolist() == [BACKGROUNDS.index("pink")]


def test_one_patch_is_one_cell_of_the_grid() -> None:
    model = new_blip(Tokenizer.train(["a red star"], vocab_size=120), seed=0)
    assert model.vision.config.num_tokens == 1 + 9


def test_sight_changes_vision_and_nothing_else() -> None:
    model = new_blip(Tokenizer.train(["a red star"], vocab_size=120), seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = [_group("test", number, 63) for number in range(32)]
    lessons = Lessons(
        scenes=[scene for scenes, _ in groups for scene in scenes],
        pixels=np.concatenate([pixels for _, pixels in groups]),
    )
    teach_sight(model.vision, lessons, num_steps=1, rng=random.Random(0))
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed and all(name.startswith("vision.") for name in changed)
