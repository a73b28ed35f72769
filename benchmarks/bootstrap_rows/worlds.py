"""What an experiment is about: human pairs, a web whose truth is known, and an exam.

N pictures, T texts, S image side in pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Album:
    """Pictures with one text each."""

    pixels: Tensor
    """(N, S, S, 3) uint8."""
    texts: Sequence[str]
    """N texts; "" where a page has none."""
    is_true: Sequence[bool]
    """Whether text n is true of picture n. No arm may look at it but the one that says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """Clean pictures that nobody trained on."""

    pixels: Tensor
    """(N, S, S, 3) uint8."""
    texts: Sequence[str]
    """T texts, each true of one of the pictures only."""
    image_of_text: Sequence[int]
    """The place of that picture."""
    references: Sequence[Sequence[str]]
    """Of each picture, what people say of it, for CIDEr."""


Judge: TypeAlias = Callable[[str, int], bool]
"""Says whether a text is true of the picture at a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """A training set. An image may stand in it with two texts: its web text and its caption."""

    pixels: Tensor
    """(N, S, S, 3) uint8, of all pictures of the world."""
    image_of: Sequence[int]
    """T places in `pixels`."""
    texts: Sequence[str]
    """T texts, none of them empty."""
    is_true: Sequence[bool]
    """What is known of the T pairs, to be reported; a text of which nobody knows counts as true."""

    @property
    def noise(self) -> float:
        """Share of the texts that are not true."""
        return 1 - sum(self.is_true) / len(self.is_true)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything of one seed."""

    human: Pairs
    web: Album
    exam: Exam
    true_on_web: Judge | None = None
    """Of a text and a picture of the web; None where nobody knows, as with photographs."""
    true_in_exam: Judge | None = None
    """Of a text and a picture of the exam."""


def pairs_of(album: Album) -> Pairs:
    """Take an album as it is, less the pictures without a text."""
    places = [place for place, text in enumerate(album.texts) if text.strip()]
    return Pairs(
        pixels=album.pixels,
        image_of=places,
        texts=[album.texts[place] for place in places],
        is_true=[album.is_true[place] for place in places],
    )


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Put training sets one behind the other; parts with the very same pixels share them.

    So an image with two texts stays one image, and the losses do not take one of its texts for
    another image's.
    """
    pools = {id(part.pixels): part.pixels for part in parts}
    ends = dict(zip(pools, accumulate(map(len, pools.values())), strict=True))
    starts = {name: end - len(pools[name]) for name, end in ends.items()}
    return Pairs(
        pixels=torch.cat(list(pools.values())),
        image_of=[starts[id(part.pixels)] + place for part in parts for place in part.image_of],
        texts=[text for part in parts for text in part.texts],
        is_true=[flag for part in parts for flag in part.is_true],
    )


def thinned(pairs: Pairs, num: int, seed: int) -> Pairs:
    """Keep some pairs, drawn at random, in their order."""
    kept = sorted(random.Random(f"thinned/{seed}").sample(range(len(pairs.texts)), num))
    return Pairs(
        pixels=pairs.pixels,
        image_of=[pairs.image_of[row] for row in kept],
        texts=[pairs.texts[row] for row in kept],
        is_true=[pairs.is_true[row] for row in kept],
    )
