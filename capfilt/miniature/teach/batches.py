"""Batches of lessons: whole groups of siblings, with texts written anew each time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt.miniature.teach.lessons import GROUP_SIZE, Lessons, false_text, true_text
from capfilt.miniature.truth import holds, parse
from capfilt.miniature.world import MAX_THINGS, Scene
from capfilt_blip.train.batches import TextImageBatch

_GROUPS_PER_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """Which pictures are shown, and how their texts are written."""

    full_share: float
    """Share of the texts that mention everything; the others are any true alt text."""
    max_things: int = MAX_THINGS
    max_words: int = 1000


def true_batches(
    lessons: Lessons, *, num_batches: int, style: Style, rng: random.Random
) -> Iterator[TextImageBatch]:
    """Draw batches with a true text of each picture."""
    groups = lessons.groups(max_things=style.max_things)
    for _ in range(num_batches):
        numbers = _picture_numbers(rng.sample(groups, _GROUPS_PER_BATCH))
        texts = [_text(lessons.scenes[number], style=style, rng=rng) for number in numbers]
        yield TextImageBatch(images=torch.from_numpy(lessons.pixels[numbers]), texts=texts)


def filter_batches(
    lessons: Lessons, *, num_batches: int, style: Style, rng: random.Random
) -> Iterator[TextImageBatch]:
    """Draw batches with a true and a false text of each picture, and what else is true in them."""
    groups = lessons.groups(max_things=style.max_things)
    for _ in range(num_batches):
        numbers = _picture_numbers(rng.sample(groups, _GROUPS_PER_BATCH))
        scenes = [lessons.scenes[number] for number in numbers]
        texts = [_text(scene, style=style, rng=rng) for scene in scenes]
        yield TextImageBatch(
            images=torch.from_numpy(lessons.pixels[numbers]),
            texts=texts,
            known_matches=true_pairs(scenes, texts),
            distractors=[[false_text(scene, rng) for scene in scenes]],
        )


def true_pairs(scenes: Sequence[Scene], texts: Sequence[str]) -> Tensor:
    """Give (B, B) bool, True where text j is true of scene i."""
    statements = [parse(text) for text in texts]
    rows = [[s is not None and holds(s, scene) for s in statements] for scene in scenes]
    return torch.tensor(rows)


def _text(scene: Scene, *, style: Style, rng: random.Random) -> str:
    while True:
        text = true_text(scene, rng, full_share=style.full_share)
        if len(text.split()) <= style.max_words:
            return text


def _picture_numbers(groups: Sequence[int]) -> list[int]:
    return [group * GROUP_SIZE + place for group in groups for place in range(GROUP_SIZE)]
