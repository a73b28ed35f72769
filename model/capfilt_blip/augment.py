"""Training images, changed at random: a crop, a mirror image, and RandAugment as BLIP has it.

What happens to an image is drawn from its key alone: neither batch mates nor the number of
processes change a picture. First a plan is drawn (`draw_plan`), then it is carried out.

BLIP's RandAugment (arXiv:1909.13719; salesforce/BLIP: transform/randaugment.py) takes two of ten
operations, each with an even chance of being left out, at magnitude 5 of 10:

    identity, auto_contrast, equalize
    brightness, sharpness       a factor of 0.1 + 0.18 * magnitude: exactly 1 at 5, so nothing
    shear_x, shear_y            by 0.03 * magnitude to either side, along the top or left edge
    translate_x, translate_y    by magnitude pixels to either side, whatever the image's size
    rotate                      by 3 * magnitude degrees to either side, about the middle

What comes into view is grey (128). The original computes with OpenCV; here Pillow does, with the
same coordinates, bilinear as there. The two differ by one in rounding, and along the edge of what
is moved, which OpenCV blends with the grey.

Letters: B batch, S image side in pixels.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from capfilt_blip.transforms import Window, crop_window, resized_crop

Operation: TypeAlias = Literal[
    "identity",
    "auto_contrast",
    "brightness",
    "sharpness",
    "equalize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
]
BLIP_OPERATIONS: tuple[Operation, ...] = get_args(Operation)
"""Those of every training of BLIP: RandAugment's without colour, contrast, solarize, posterize."""

Affine: TypeAlias = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: x and y, in pixels from the upper left corner, go to a x + b y + c and
d x + e y + f. The middle of the first pixel is (0.5, 0.5)."""

_MAX_MAGNITUDE = 10
# At the largest magnitude: degrees, shares of a side, pixels.
_LARGEST: dict[Operation, float] = {
    "rotate": 30.0,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 10.0,
    "translate_y": 10.0,
}
_FILL = (128, 128, 128)


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
class Plan:
    """What is to happen to one image, in this order."""

    window: Window | None  # None keeps the whole
    mirrored: bool
    steps: tuple[tuple[Operation, float], ...]  # with amounts: degrees, pixels, share or factor


def augment(
    images: Tensor, *, keys: Sequence[str], augmentation: Augmentation | None = None
) -> Tensor:
    """Change each image as its key says.

    Args:
        images: (B, S, S, 3) uint8, on the CPU; not changed.
        keys: B names, such as those of `position_keys`; equal keys draw equal changes.
        augmentation: how much; None takes the defaults.

    Returns:
        (B, S, S, 3) uint8.

    Raises:
        ValueError: there are not as many keys as images.
    """
    check_keys(keys, images)
    chosen = augmentation or Augmentation()
    out = torch.empty(images.shape, dtype=torch.uint8)
    for row, (image, key) in enumerate(zip(images, keys, strict=True)):
        out[row] = carry_out(draw_plan(key, augmentation=chosen, side_px=image.shape[0]), image)
    return out


def position_keys(positions: Sequence[int], *, seed: int) -> list[str]:
    """Name samples by their place in a training.

    Args:
        positions: samples seen before each one, counted over all epochs and processes, so that an
            image is changed otherwise in every epoch.
        seed: of the training.
    """
    return [f"{seed}/{position}" for position in positions]


def check_keys(keys: Sequence[str], images: Tensor) -> None:
    """Refuse another number of keys than of images.

    Raises:
        ValueError: that is the case.
    """
    if len(keys) != len(images):
        raise ValueError(f"{len(images)} images came with {len(keys)} keys; each needs its own")


def draw_plan(key: str, *, augmentation: Augmentation, side_px: int) -> Plan:
    """Draw what is to happen to an image.

    Every draw is made whether it is needed or not, so that, say, another `min_area` leaves the
    operations as they are.

    Args:
        key: of the image.
        augmentation: how much.
        side_px: S.
    """
    num_draws = 5 + 3 * augmentation.num_operations  # crop and mirror, then each operation
    draws = torch.rand(num_draws, generator=_generator(key), dtype=torch.float64).tolist()
    where, flip, rest = draws[:4], draws[4], draws[5:]
    window = None
    if augmentation.min_area < 1:
        window = crop_window(where, side_px=side_px, min_area=augmentation.min_area)
    return Plan(
        window=window,
        mirrored=flip < augmentation.flip_probability,
        steps=tuple(_steps(rest, augmentation)),
    )


def carry_out(plan: Plan, image: Tensor) -> Tensor:
    """Return an image, (S, S, 3) uint8, changed as planned."""
    if plan.window is not None:
        image = resized_crop(image, plan.window)
    if plan.mirrored:
        image = image.flip(1)
    if not plan.steps:
        return image
    picture = Image.fromarray(image.numpy())
    for operation, amount in plan.steps:
        picture = apply(picture, operation, amount=amount)
    return torch.from_numpy(np.array(picture))


def apply(picture: Image.Image, operation: Operation, *, amount: float = 0.0) -> Image.Image:
    """Return a picture after one operation.

    Args:
        picture: RGB, a square.
        operation: what to do.
        amount: degrees for rotate, pixels for translate, a share of the side for shear, a factor
            for brightness and sharpness; the others have none.
    """
    match operation:
        case "identity":
            return picture
        case "auto_contrast":
            return ImageOps.autocontrast(picture)
        case "equalize":
            return ImageOps.equalize(picture)
        case "brightness":
            return ImageEnhance.Brightness(picture).enhance(amount)
        case "sharpness":
            return ImageEnhance.Sharpness(picture).enhance(amount)
        case _:
            return _moved(picture, operation, amount=amount)


def affine(operation: Operation, *, amount: float, side_px: int) -> Affine | None:
    """Tell where an operation moves the points of an image; None if it moves none.

    The fixed points are those of the original, which counts from the middle of the first pixel:
    so its rotation is about a point half a pixel right of and below the middle.

    Args:
        operation: what is done.
        amount: see `apply`; with the opposite sign the map is the inverse.
        side_px: S.
    """
    angle, middle = math.radians(amount), side_px / 2 + 0.5
    cos, sin = math.cos(angle), math.sin(angle)
    match operation:
        case "translate_x":
            return (1, 0, amount, 0, 1, 0)
        case "translate_y":
            return (1, 0, 0, 0, 1, amount)
        case "shear_x":
            return (1, amount, -amount / 2, 0, 1, 0)
        case "shear_y":
            return (1, 0, 0, amount, 1, -amount / 2)
        case "rotate":  # counter-clockwise
            across, down = middle * (1 - cos - sin), middle * (1 - cos + sin)
            return (cos, sin, across, -sin, cos, down)
        case _:
            return None


def mirrored_text(text: str) -> str:
    """Say of the mirror image what a text says of the image: left and right change places."""
    return re.sub(
        r"\b(left|right)\b",
        lambda found: "right" if found[0].lower() == "left" else "left",
        text,
        flags=re.IGNORECASE,
    )


def _steps(draws: Sequence[float], augmentation: Augmentation) -> Iterator[tuple[Operation, float]]:
    """Choose operations, those left out that would do nothing."""
    for which, chance, side in zip(draws[::3], draws[1::3], draws[2::3], strict=True):
        operation = augmentation.operations[int(which * len(augmentation.operations))]
        amount = _amount(operation, magnitude=augmentation.magnitude, negative=side < 0.5)
        idle = operation == "identity" or (_is_factor(operation) and amount == 1)
        if chance < augmentation.operation_probability and not idle:
            yield operation, amount


def _amount(operation: Operation, *, magnitude: float, negative: bool) -> float:
    share = magnitude / _MAX_MAGNITUDE
    if _is_factor(operation):
        return share * 1.8 + 0.1
    amount = share * _LARGEST.get(operation, 0.0)
    return -amount if negative else amount


def _is_factor(operation: Operation) -> bool:
    return operation in ("brightness", "sharpness")


def _moved(picture: Image.Image, operation: Operation, *, amount: float) -> Image.Image:
    # Pillow asks where each pixel comes from: that is the inverse.
    source = affine(operation, amount=-amount, side_px=picture.width)
    assert source is not None, f"{operation} moves nothing"
    whole_pixels = operation.startswith("translate") and amount.is_integer()
    # No pixel falls between two others then, and the nearest is found ten times as fast.
    resample = Image.Resampling.NEAREST if whole_pixels else Image.Resampling.BILINEAR
    return picture.transform(
        picture.size, Image.Transform.AFFINE, source, resample, fillcolor=_FILL
    )


def _generator(key: str) -> torch.Generator:
    digest = hashlib.blake2b(key.encode(), digest_size=7, person=b"capfilt-aug-v1").digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
