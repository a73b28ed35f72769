from __future__ import annotations

import random

import numpy as np
import torch

from capfilt.miniature.teach.lessons import Lessons, _group
from capfilt.miniature.teach.sight import new_blip
from capfilt.miniature.teach.vectors import _copies, _too_near, teach_vectors
from capfilt_blip.tokenizer import Tokenizer


def test_only_the_projections_learn() -> None:
    tokenizer = Tokenizer.train(["a red star"], vocab_size=120)
    matcher = new_blip(tokenizer, seed=0).matcher()
    before = {name: tensor.clone() for name, tensor in matcher.state_dict().items()}
    groups = [_group("test", number, 63) for number in range(4)]
    lessons = Lessons(
        scenes=[scene for scenes, _ in groups for scene in scenes],
        pixels=np.concatenate([pixels for _, pixels in groups]),
    )
    teach_vectors(matcher, lessons, tokenizer=tokenizer, num_steps=2, rng=random.Random(0))
    after = matcher.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"vision_proj", "text_proj"}


def test_a_mirror_image_of_the_same_scene_may_be_near() -> None:
    pictures = torch.eye(4)[None]  # siblings at right angles
    lopsided = torch.zeros(1, 4, dtype=torch.bool)
    assert _too_near(pictures, pictures, lopsided) == 0
    assert _too_near(pictures, pictures, ~lopsided) > 0


def test_a_copy_is_almost_its_picture() -> None:
    _, pixels = _group("test", 0, 63)
    images = torch.from_numpy(pixels)
    copies = _copies(images, random.Random(0))
    assert copies.shape == images.shape and not torch.equal(copies, images)
    assert (copies.float() - images.float()).abs().mean() < 10
