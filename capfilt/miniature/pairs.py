"""Clean pairs of picture and caption, as people would write them: the human texts (T_h).

Pair number i of a seed is always the same, however many are asked for. Seeds are strings with
room for a name, so that two uses never share a scene's randomness: "train/0", "held-out/0".
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass

from capfilt.miniature.grammar import describe, full_description
from capfilt.miniature.render import render
from capfilt.miniature.world import Scene, sample_scene, siblings


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanPair:
    """A scene and a caption that is true of it."""

    scene: Scene
    text: str


def human_pairs(seed: str, num: int) -> Iterator[HumanPair]:
    """Draw scenes, each with one true caption of any form."""
    for i in range(num):
        rng = random.Random(f"human/{seed}/{i}")
        scene = sample_scene(rng)
        yield HumanPair(scene=scene, text=describe(scene, rng))


def sibling_groups(seed: str, num: int) -> Iterator[list[HumanPair]]:
    """Draw groups of scenes that differ in one attribute, each with its full description.

    Within a group each text is true of its own picture; the first text is false of all others and
    all others are false of the first: hard negatives in both directions.

    Yields:
        Lists of 5 to 8 pairs: the scene first, then its siblings.
    """
    for i in range(num):
        rng = random.Random(f"siblings/{seed}/{i}")
        scene = sample_scene(rng)
        group = [scene, *siblings(scene, rng)]
        yield [HumanPair(scene=one, text=full_description(one, rng)) for one in group]


def write_human_shard(seed: str, num: int, *, side_px: int) -> list[tuple[str, bytes, str]]:
    """Draw human pairs as samples of a shard.

    Returns:
        (key, JPEG bytes, caption) for each of `human_pairs(seed, num)`; the key is its number.
    """
    return [
        (f"{i:06d}", _jpeg(pair.scene, side_px), pair.text)
        for i, pair in enumerate(human_pairs(seed, num))
    ]


def _jpeg(scene: Scene, side_px: int) -> bytes:
    buffer = io.BytesIO()
    render(scene, side_px=side_px).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
