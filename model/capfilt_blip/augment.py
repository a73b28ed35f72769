"""Training images, changed at random: a crop, a mirror image, and RandAugment as BLIP has it.

What happens to an image is drawn from its key and its size: neither batch mates nor the number of
processes change a picture. First a plan is drawn (`draw_plan`), then it is carried out: a part of
the whole picture is cut out and scaled to a square, which is mirrored and changed by two of the ten
operations of `operations.py`, each with an even chance of being left out, at magnitude 5 of 10.

This runs in the processes that decode images, so it imports nothing of torch.

Letters: B batch, S image side in pixels.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capfilt_blip.operations import BLIP_OPERATIONS, Operation, amount_at, apply, is_idle

_CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop
_MAX_RATIO = 4 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How much training images are changed; the defaults are BLIP's for finetuning."""

    min_area: float = 0.5
    """Smallest part of the area that a crop keeps, in (0, 1]; 1 does not crop. BLIP's is 0.2 in
    pre-training and 0.5 in finetuning."""
    flip_probability: float = 0.0
    """Chance that an image is mirrored, in [0, 1]. BLIP's is 0.5; 0 here because a mirror image
    makes "left of" and "right of" false."""
    operations: tuple[Operation, ...] = BLIP_OPERATIONS
    """What RandAugment chooses from."""
    num_operations: int = 2
    """How many it chooses, with replacement; 0 switches it off."""
    operation_probability: float = 0.5
    """Chance that a chosen one is applied."""
    magnitude: float = 5.0
    """How strongly, in [0, 10]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a picture, in whole pixels."""

    left_px: int
    top_px: int
    width_px: int
    height_px: int

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as Pillow's `crop` takes them."""
        right, bottom = self.left_px + self.width_px, self.top_px + self.height_px
        return self.left_px, self.top_px, right, bottom


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to happen to one image, in this order."""

    window: Window | None  # None keeps the whole
    mirrored: bool
    steps: tuple[tuple[Operation, float], ...]  # with amounts: degrees, pixels, share or factor


def augment(
    pictures: Sequence[Image.Image],
    *,
    side_px: int,
    keys: Sequence[str],
    augmentation: Augmentation | None = None,
) -> NDArray[np.uint8]:
    """Bring pictures to the model's size, each changed as its key says.

    Args:
        pictures: B of any size and aspect ratio; crops are taken before they are scaled.
        side_px: S.
        keys: B names, such as those of `position_keys`; equal keys draw equal changes.
        augmentation: how much; None takes the defaults.

    Returns:
        (B, S, S, 3) uint8, red, green, blue.

    Raises:
        ValueError: there are not as many keys as pictures.
    """
    check_keys(keys, pictures)
    chosen = augmentation or Augmentation()
    out = np.empty((len(pictures), side_px, side_px, 3), np.uint8)
    for row, (picture, key) in enumerate(zip(pictures, keys, strict=True)):
        width_px, height_px = picture.size
        plan = draw_plan(key, augmentation=chosen, width_px=width_px, height_px=height_px)
        out[row] = np.asarray(carry_out(plan, picture.convert("RGB"), side_px=side_px))
    return out


def position_keys(positions: Sequence[int], *, seed: int) -> list[str]:
    """Name samples by their place in a training.

    Args:
        positions: samples seen before each one, counted over all epochs and processes, so that an
            image is changed otherwise in every epoch.
        seed: of the training.
    """
    return [f"{seed}/{position}" for position in positions]


def check_keys(keys: Sequence[str], images: Sized) -> None:
    """Refuse another number of keys than of images.

    Raises:
        ValueError: that is the case.
    """
    if len(keys) != len(images):
        raise ValueError(f"{len(images)} images came with {len(keys)} keys; each needs its own")


def draw_plan(key: str, *, augmentation: Augmentation, width_px: int, height_px: int) -> Plan:
    """Draw what is to happen to an image.

    The crop is drawn last, from as many numbers as it needs: neither another `min_area` nor another
    size changes the rest.

    Args:
        key: of the image.
        augmentation: how much.
        width_px: of the image.
        height_px: of the image.
    """
    draws = _draws(key)
    mirrored = next(draws) < augmentation.flip_probability
    steps = tuple(_steps(draws, augmentation))
    window = None
    if (min_area := augmentation.min_area) < 1:
        window = crop_window(draws, width_px=width_px, height_px=height_px, min_area=min_area)
    return Plan(window=window, mirrored=mirrored, steps=steps)


def crop_window(
    draws: Iterator[float], *, width_px: int, height_px: int, min_area: float
) -> Window:
    """Choose a part of a picture, as torchvision's RandomResizedCrop does, which BLIP uses.

    Its area is even between the least and the whole, its aspect ratio even between 3/4 and 4/3 on a
    log scale. What does not fit is drawn again; after ten times it is the largest in the middle.

    Args:
        draws: numbers in [0, 1): area and ratio of each attempt, then left and top.
        width_px: of the picture.
        height_px: of the picture.
        min_area: smallest part of the area, in (0, 1].
    """
    for _ in range(_CROP_ATTEMPTS):
        area = width_px * height_px * (min_area + (1 - min_area) * next(draws))
        ratio = math.exp((2 * next(draws) - 1) * math.log(_MAX_RATIO))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= width_px and 0 < height <= height_px:
            left = int(next(draws) * (width_px - width + 1))
            top = int(next(draws) * (height_px - height + 1))
            return Window(left_px=left, top_px=top, width_px=width, height_px=height)
    width = max(1, min(width_px, round(height_px * _MAX_RATIO)))
    height = max(1, min(height_px, round(width_px * _MAX_RATIO)))
    left, top = (width_px - width) // 2, (height_px - height) // 2
    return Window(left_px=left, top_px=top, width_px=width, height_px=height)


def carry_out(plan: Plan, picture: Image.Image, *, side_px: int) -> Image.Image:
    """Return a picture, RGB of any size, cropped, scaled to S x S bicubically, and changed."""
    if plan.window is not None:
        picture = picture.crop(plan.window.edges)
    return finish(plan, picture.resize((side_px, side_px), Image.Resampling.BICUBIC))


def finish(plan: Plan, square: Image.Image) -> Image.Image:
    """Return a square, RGB, changed by what a plan has after the crop."""
    if plan.mirrored:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for operation, amount in plan.steps:
        square = apply(square, operation, amount=amount)
    return square


def mirrored_text(text: str) -> str:
    """Say of the mirror image what a text says of the image: left and right change places."""
    return re.sub(
        r"\b(left|right)\b",
        lambda found: "right" if found[0].lower() == "left" else "left",
        text,
        flags=re.IGNORECASE,
    )


def _steps(draws: Iterator[float], augmentation: Augmentation) -> Iterator[tuple[Operation, float]]:
    """Choose operations, those left out that would do nothing."""
    for _ in range(augmentation.num_operations):
        which, chance, side = next(draws), next(draws), next(draws)
        operation = augmentation.operations[int(which * len(augmentation.operations))]
        amount = amount_at(augmentation.magnitude, operation, negative=side < 0.5)
        idle = is_idle(operation, amount=amount)
        if chance < augmentation.operation_probability and not idle:
            yield operation, amount


def _draws(key: str) -> Iterator[float]:
    """Numbers in [0, 1) that are the same on every machine."""
    digest = hashlib.blake2b(key.encode(), digest_size=7, person=b"capfilt-aug-v2").digest()
    generator = random.Random(int.from_bytes(digest, "little"))
    while True:
        yield generator.random()
