"""What the tiny BLIP is taught with: pictures as the web serves them, and texts true and false.

Lessons come in groups: a scene and three scenes that differ from it in one attribute. Pictures
have the sizes, edits and encodings of the miniature web, but never its scenes: the seeds of the
two are apart. No picture is mirrored, as left and right would change places.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
from PIL import Image

from capfilt.miniature.alt_texts import AltKind, alt_text
from capfilt.miniature.distort import Edit, Encoding, Picture, picture_bytes
from capfilt.miniature.grammar import full_description
from capfilt.miniature.truth import is_true
from capfilt.miniature.world import Scene, sample_scene, siblings

GROUP_SIZE = 4

_SIDES_PX = (72, 96, 128, 160)
_EDITS = (Edit.NONE,) * 4 + (Edit.CROPPED, Edit.WATERMARKED, Edit.SHRUNK)
_ENCODINGS = (Encoding.JPEG,) * 4 + (
    Encoding.ROUGH_JPEG,
    Encoding.WEBP,
    Encoding.PNG,
    Encoding.PALETTE_PNG,
)
_NOISE_KINDS = (
    AltKind.BOILERPLATE,
    AltKind.FILE_NAME,
    AltKind.KEYWORD_SPAM,
    AltKind.OTHER_SCRIPT,
    AltKind.MARKUP,
    AltKind.EMPTY,
)
_WRONG_PROB, _OTHER_PROB, _SHUFFLED_PROB = 0.6, 0.15, 0.05  # of a false text; the rest is noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """Scenes with their pictures. Group g holds the pictures 4 g to 4 g + 3."""

    scenes: list[Scene]
    pixels: npt.NDArray[np.uint8]  # (N, S, S, 3)

    def groups(self, *, max_things: int) -> list[int]:
        """Give the numbers of the groups of which no scene has more things than this."""
        starts = range(0, len(self.scenes), GROUP_SIZE)
        return [
            start // GROUP_SIZE
            for start in starts
            if all(len(s.things) <= max_things for s in self.scenes[start : start + GROUP_SIZE])
        ]


def make_lessons(seed: str, *, num_groups: int, side_px: int, num_processes: int = 2) -> Lessons:
    """Draw groups of scenes and their pictures.

    Args:
        seed: the same seed gives the same lessons, however many are asked for.
        num_groups: of four pictures each.
        side_px: side of the pictures after decoding.
        num_processes: that draw; no influence on the result.
    """
    asked = [(seed, number, side_px) for number in range(num_groups)]
    # Not forked: a fork of a process whose torch has threads may hang.
    with get_context("spawn").Pool(num_processes) as pool:
        groups = pool.starmap(_group, asked, chunksize=50)
    return Lessons(
        scenes=[scene for scenes, _ in groups for scene in scenes],
        pixels=np.concatenate([pixels for _, pixels in groups]),
    )


def true_text(scene: Scene, rng: random.Random, *, full_share: float) -> str:
    """Write a true text: a full description in `full_share` of the cases, else any alt text."""
    if rng.random() < full_share:
        return full_description(scene, rng)
    return alt_text(AltKind.TRUE, scene, rng) or ""


def false_text(scene: Scene, rng: random.Random) -> str:
    """Write a text that is false of the scene: near to the truth, far from it, or noise."""
    while True:
        text = _perhaps_false_text(scene, rng)
        if not is_true(text, scene):
            return text


def corpus(lessons: Lessons, rng: random.Random) -> Iterator[str]:
    """Write texts of all kinds, true and false, to make a vocabulary of."""
    for scene in lessons.scenes[:4000]:
        yield full_description(scene, rng)
        yield true_text(scene, rng, full_share=0.0)
        yield alt_text(AltKind.KEYWORD_SPAM, scene, rng) or ""
        yield alt_text(AltKind.BOILERPLATE, scene, rng) or ""


def _group(seed: str, number: int, side_px: int) -> tuple[list[Scene], npt.NDArray[np.uint8]]:
    rng = random.Random(f"lesson/{seed}/{number}")
    scene = sample_scene(rng)
    others = siblings(scene, rng)
    alike = [scene, *rng.sample(others, GROUP_SIZE - 1)]
    # Their own seeds: else light and grain would tell the siblings from all other scenes.
    scenes = [replace(one, seed=rng.getrandbits(32)) for one in alike]
    return scenes, np.stack([_pixels(one, rng, side_px) for one in scenes])


def _pixels(scene: Scene, rng: random.Random, side_px: int) -> npt.NDArray[np.uint8]:
    picture = Picture(
        drawn=scene,
        side_px=rng.choice(_SIDES_PX),
        edit=rng.choice(_EDITS),
        encoding=rng.choice(_ENCODINGS),
    )
    image = Image.open(io.BytesIO(picture_bytes(picture))).convert("RGB")
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BICUBIC))


def _perhaps_false_text(scene: Scene, rng: random.Random) -> str:
    form = rng.random()
    if form < _WRONG_PROB:
        return alt_text(AltKind.WRONG_ATTRIBUTE, scene, rng) or ""
    if form < _WRONG_PROB + _OTHER_PROB:
        return alt_text(AltKind.OTHER_IMAGE, scene, rng) or ""
    if form < _WRONG_PROB + _OTHER_PROB + _SHUFFLED_PROB:
        return _keywords(scene, rng)
    return alt_text(rng.choice(_NOISE_KINDS), scene, rng) or ""


def _keywords(scene: Scene, rng: random.Random) -> str:
    """Some words of a true text in any order: almost never a sentence."""
    words = full_description(scene, rng).split()
    return " ".join(rng.sample(words, rng.randint(2, min(8, len(words)))))
