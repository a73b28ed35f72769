"""How a picture becomes the square a model sees: Pillow's resizing, or another one handed in.

Used inside the decoding processes only (`decode_child.py`). Two things can be had cheaper than they
are by default, and both change bytes, so a recipe must ask for them (`caption.decode`):

- A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which skips most of the inverse transform
  and of the resizing. `oversize` says how much larger than the square it must stay.
- The resizing may be done with SIMD instructions (`simd_resize.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

from PIL import Image

from capfilt.io.decode_wire import Fit, Resampling

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in pixels."""
Finish: TypeAlias = Callable[[Image.Image], Image.Image]
"""A square, changed."""
Change: TypeAlias = Callable[[Size], tuple[Box, Finish]]
"""For the size of an image as its file has it: the part that becomes the square, and what is done
to the square."""
Draw: TypeAlias = Callable[[bytes, Size], tuple[Box, Finish]]
"""The same, as an order has it."""
Resize: TypeAlias = Callable[[Image.Image, Size, Resampling], Image.Image]
"""An RGB picture, scaled to a size."""

OVERSIZE = 1.9
"""A JPEG decoded at part of its size keeps at least this many times the square's side. Halved
photographs are then 46.7 dB from whole ones, in the mean; at 1.5 times 43, at 1 time 37."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """What pixels are asked for."""

    side_px: int
    fit: Fit


def unchanged(size: Size) -> tuple[Box, Finish]:
    """The whole picture, and nothing more: no change."""
    return (0, 0, *size), lambda square: square


def scaled(box: Box, size: Size, new_size: Size) -> Box:
    """Where a part of a picture lies once the picture is scaled."""
    left, top, right, bottom = (
        round(edge * now / before)
        for edge, now, before in zip(box, 2 * new_size, 2 * size, strict=True)
    )
    return left, top, right, bottom


def pillow_resize(picture: Image.Image, size: Size, resampling: Resampling) -> Image.Image:
    """Scale as BLIP's evaluation does."""
    return picture.resize(size, Image.Resampling(resampling))


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareMaker:
    """Brings pictures into squares.

    Args:
        resize: how they are scaled.
        oversize: how many times the square's side a JPEG must keep to be decoded at part of its
            size; None decodes it whole.
    """

    resize: Resize = pillow_resize
    oversize: float | None = None

    def prepare(self, image: Image.Image, asked: Square, *, part: Box) -> None:
        """Say how much of an image is needed, before it is decoded.

        Every coefficient of the file is read at any scale, so what is truncated or broken is
        refused all the same.

        Args:
            image: opened, and not decoded.
            asked: the square.
            part: of the image, that becomes the square.
        """
        if self.oversize is not None:
            shortest = ceil(self.oversize * max(asked.side_px, asked.fit.crop_from_px or 0))
            width = ceil(shortest * image.width / (part[2] - part[0]))
            height = ceil(shortest * image.height / (part[3] - part[1]))
            image.draft(None, (width, height))  # formats but JPEG have no such thing

    def make(self, picture: Image.Image, asked: Square, *, max_pixels: int) -> Image.Image:
        """The square a model sees; see `Fit`.

        Args:
            picture: RGB, upright.
            asked: the square's side, and how the picture is brought into it.
            max_pixels: most pixels the picture may be enlarged to.
        """
        side, how = asked.side_px, asked.fit.resampling
        if asked.fit.crop_from_px is None:
            return self.resize(picture, (side, side), how)
        # Sides and margins are rounded down, as transformers does for CLIP.
        shortest = min(picture.size)
        width, height = (asked.fit.crop_from_px * edge // shortest for edge in picture.size)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        if width * height <= max_pixels:
            return self.resize(picture, (width, height), how).crop(box)
        # A line a thousand times as long as wide would grow to gigabytes. Scaling the square alone
        # gives the same picture, but for the rounding between the two directions.
        across, down = picture.width / width, picture.height / height
        part = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        return picture.resize((side, side), Image.Resampling(how), box=part)
