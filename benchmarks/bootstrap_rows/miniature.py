"""The miniature web as a world: its scenes and alt texts, drawn without the way over HTTP."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice

import torch
from PIL import Image
from torch import Tensor

from benchmarks.bootstrap_rows.worlds import Album, Exam, Judge, Pairs, World, pairs_of
from capfilt.miniature.alt_texts import alt_text
from capfilt.miniature.grammar import describe, full_description
from capfilt.miniature.pairs import human_pairs
from capfilt.miniature.render import render
from capfilt.miniature.teach.sight import SIDE_PX
from capfilt.miniature.truth import holds, is_true, parse
from capfilt.miniature.web import build_web
from capfilt.miniature.world import Scene, Thing, sample_scene
from capfilt_blip.transforms import to_uint8

_NUM_REFERENCES = 5  # captions of each picture, as in COCO
_MAX_DRAWS = 40  # of a caption, in search of one that tells


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSize:
    """How much there is to learn from."""

    num_web: int
    """Pictures with an alt text, true ones and the others in the shares of the miniature web."""
    num_human: int
    """Pictures with a caption that somebody wrote for them."""
    num_exam: int = 200
    """Held-out pictures."""
    max_things: int = 3
    """In a picture; pictures of fewer things are learnt in fewer steps."""


def miniature_world(seed: int, size: WorldSize) -> World:
    """Draw the world of a seed.

    Args:
        seed: of pictures and texts to learn from. The exam is the same one for all seeds, so that
            their marks differ by what was learnt, not by what was asked.
        size: see `WorldSize`.
    """
    scenes, texts = _web(seed, size)
    return World(
        human=_human(seed, size),
        web=Album(pixels=_drawn(scenes), texts=texts, is_true=web_truth(seed, size)),
        exam=_exam(size),
        true_on_web=_judge(scenes),
        true_in_exam=_judge(exam_scenes(size)),
    )


def web_truth(seed: int, size: WorldSize) -> list[bool]:
    """Say which of the web's texts are true, without drawing a picture."""
    scenes, texts = _web(seed, size)
    return [_is_true(text, scene) for text, scene in zip(texts, scenes, strict=True)]


def named_things(seed: int, num: int) -> Pairs:
    """Draw pictures of a single thing, half with all that can be said of it, for the start."""
    rng = random.Random(f"bootstrap start/{seed}")
    scenes = _scenes(rng, num, lambda scene: len(scene.things) == 1)
    ways = (full_description, describe)
    return _clean(scenes, [ways[place % 2](scene, rng) for place, scene in enumerate(scenes)])


def _clean(scenes: Sequence[Scene], texts: Sequence[str]) -> Pairs:
    """Pairs of scenes with texts that were written for them."""
    return pairs_of(Album(pixels=_drawn(scenes), texts=texts, is_true=[True] * len(texts)))


def _web(seed: int, size: WorldSize) -> tuple[list[Scene], list[str]]:
    """Draw scenes, each with an alt text of a kind that a page of the miniature web has."""
    kinds = [page.alt_kind for page in build_web(seed, num_pages=size.num_web).pages]
    rng = random.Random(f"bootstrap web/{seed}")
    scenes = _scenes(rng, len(kinds), _to_learn_from(size))
    texts = [alt_text(kind, scene, rng) for kind, scene in zip(kinds, scenes, strict=True)]
    return scenes, [text or "" for text in texts]


def web_scenes(seed: int, size: WorldSize) -> list[Scene]:
    """What the pictures of the web show, one scene for each."""
    return _web(seed, size)[0]


def exam_scenes(size: WorldSize) -> list[Scene]:
    """What the pictures of the exam show."""
    rng = random.Random("bootstrap exam/scenes")
    return _scenes(rng, size.num_exam, lambda scene: len(scene.things) <= size.max_things)


def shown(scene: Scene) -> tuple[str, tuple[Thing, ...]]:
    """All of a scene that a text can speak of."""
    return scene.background, scene.things


def _scenes(rng: random.Random, num: int, is_fit: Callable[[Scene], bool]) -> list[Scene]:
    drawn = (sample_scene(rng) for _ in count())
    return list(islice(filter(is_fit, drawn), num))


def _to_learn_from(size: WorldSize) -> Callable[[Scene], bool]:
    """Says of a scene whether anybody may train on it: not if the exam shows the same."""
    asked = {shown(scene) for scene in exam_scenes(size)}
    return lambda scene: len(scene.things) <= size.max_things and shown(scene) not in asked


def _human(seed: int, size: WorldSize) -> Pairs:
    drawn = human_pairs(f"bootstrap/{seed}", 20 * size.num_human)
    is_fit = _to_learn_from(size)
    pairs = list(islice((pair for pair in drawn if is_fit(pair.scene)), size.num_human))
    return _clean([pair.scene for pair in pairs], [pair.text for pair in pairs])


def _exam(size: WorldSize) -> Exam:
    """Write for each scene of the exam a caption that is true of no other.

    A scene of which nothing can be said that is not true of another too (there are few) is no
    query, but stays an answer that can be wrong.
    """
    rng, scenes = random.Random("bootstrap exam/texts"), exam_scenes(size)
    telling = [_telling(place, scenes, rng) for place in range(len(scenes))]
    return Exam(
        pixels=_drawn(scenes),
        texts=[text for text in telling if text],
        image_of_text=[place for place, text in enumerate(telling) if text],
        references=[[describe(s, rng) for _ in range(_NUM_REFERENCES)] for s in scenes],
    )


def _telling(place: int, scenes: Sequence[Scene], rng: random.Random) -> str | None:
    """A caption that is true of one of the scenes only, or None if none was found."""
    for _ in range(_MAX_DRAWS):
        text = describe(scenes[place], rng)
        statement = parse(text)
        assert statement is not None, f"the grammar wrote {text!r}, which its parser cannot read"
        if sum(holds(statement, scene) for scene in scenes) == 1:
            return text
    return None


def _drawn(scenes: Sequence[Scene]) -> Tensor:
    return _stacked([render(scene, side_px=2 * SIDE_PX) for scene in scenes])


def _stacked(images: Sequence[Image.Image]) -> Tensor:
    """(N, S, S, 3) uint8, squashed as the pipeline does it."""
    return torch.cat([to_uint8([image], side_px=SIDE_PX) for image in images])


def _judge(scenes: Sequence[Scene]) -> Judge:
    return lambda text, place: _is_true(text, scenes[place])


def _is_true(text: str, scene: Scene) -> bool:
    return is_true(text, scene) is True
