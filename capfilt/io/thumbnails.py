"""Small JPEGs of decoded images, fit to be put into a page.

They are made from bare pixels, so nothing of a hostile file (metadata, profiles, a second format
hidden in the first) comes through.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

JPEG_QUALITY = 80


def thumbnail_jpeg(pixels: npt.NDArray[np.uint8], *, width_px: int, height_px: int) -> bytes:
    """A JPEG in the proportions an image had before it was squashed to a square.

    Args:
        pixels: (S, S, 3) RGB, from `ImageDecoder.pixels`; the longer side will have S pixels.
        width_px: of the image itself.
        height_px: of the image itself.
    """
    side = pixels.shape[0]
    longest = max(width_px, height_px)
    size = (max(1, side * width_px // longest), max(1, side * height_px // longest))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()
