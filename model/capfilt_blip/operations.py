"""The ten operations that BLIP's RandAugment chooses from, on one picture.

They are those of arXiv:1909.13719 without colour, contrast, solarize and posterize
(salesforce/BLIP: transform/randaugment.py):

    identity, auto_contrast, equalize
    brightness, sharpness       a factor of 0.1 + 0.18 * magnitude: exactly 1 at 5, so nothing
    shear_x, shear_y            by 0.03 * magnitude to either side, along the top or left edge
    translate_x, translate_y    by magnitude pixels to either side, whatever the image's size
    rotate                      by 3 * magnitude degrees to either side, about the middle

What comes into view is grey (128). The original computes with OpenCV; here Pillow does, with the
same coordinates, bilinear as there. The two differ by one in rounding, and along the edge of what
is moved, which OpenCV blends with the grey.

This runs in the processes that decode images, so it imports nothing of torch.

    S image side in pixels
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

from PIL import Image, ImageEnhance, ImageOps

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
"""Those of every training of BLIP."""

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


def amount_at(magnitude: float, operation: Operation, *, negative: bool) -> float:
    """Give the amount of an operation, as `apply` takes it.

    Args:
        magnitude: how strongly, in [0, 10].
        operation: what is done.
        negative: to which side; a factor has none.
    """
    share = magnitude / _MAX_MAGNITUDE
    if _is_factor(operation):
        return share * 1.8 + 0.1
    amount = share * _LARGEST.get(operation, 0.0)
    return -amount if negative else amount


def is_idle(operation: Operation, *, amount: float) -> bool:
    """Whether an operation would leave every picture as it is."""
    return operation == "identity" or (_is_factor(operation) and amount == 1)


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
