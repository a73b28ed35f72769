"""Thumbnails: small JPEGs in the proportions of the image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from capfilt.io.thumbnails import thumbnail_jpeg

PIXELS = np.full((32, 32, 3), (200, 30, 60), np.uint8)


@pytest.mark.parametrize(
    ("width_px", "height_px", "size"),
    [(100, 100, (32, 32)), (400, 200, (32, 16)), (200, 800, (8, 32)), (9000, 1, (32, 1))],
)
def test_a_squashed_image_gets_its_proportions_back(
    width_px: int, height_px: int, size: tuple[int, int]
) -> None:
    jpeg = thumbnail_jpeg(PIXELS, width_px=width_px, height_px=height_px)
    image = Image.open(io.BytesIO(jpeg))
    assert (image.format, image.size) == ("JPEG", size)


def test_colours_stay_and_equal_pixels_give_equal_bytes() -> None:
    jpeg = thumbnail_jpeg(PIXELS, width_px=10, height_px=10)
    colour = Image.open(io.BytesIO(jpeg)).convert("RGB").getpixel((5, 5))
    assert colour == pytest.approx((200, 30, 60), abs=4)
    assert thumbnail_jpeg(PIXELS.copy(), width_px=10, height_px=10) == jpeg
