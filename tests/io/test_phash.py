import io
import math
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from capfilt.dedup.perceptual import hamming
from capfilt.io.phash import THUMBNAIL_PX, perceptual_hash
from capfilt.miniature.render import render
from capfilt.miniature.world import sample_scene

NEAR = 6  # bits


def hash_of(picture):
    thumbnail = picture.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return perceptual_hash(np.asarray(thumbnail))


def distance(left, right):
    return int(hamming(np.uint64(hash_of(left)), np.uint64(hash_of(right))))


def scenes(num):
    rng = random.Random(7)
    return [render(sample_scene(rng), side_px=96) for _ in range(num)]


def saved(picture, image_format, **options):
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return Image.open(file).convert("RGB")


def ball(colour):
    picture = Image.new("RGB", (96, 96), (150, 150, 150))
    ImageDraw.Draw(picture).ellipse((12, 20, 60, 68), fill=colour)
    return picture


def grey_wave(*, flip=1, axis=1):
    position = np.arange(THUMBNAIL_PX)
    wave = np.cos(math.pi * (2 * position + 1) / (2 * THUMBNAIL_PX)) * flip
    grey = np.broadcast_to(np.rint(128 + 100 * wave), (THUMBNAIL_PX, THUMBNAIL_PX))
    grey = grey if axis == 1 else grey.T
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


COPIES = {
    "jpeg_90": lambda picture: saved(picture, "JPEG", quality=90),
    "jpeg_40": lambda picture: saved(picture, "JPEG", quality=40),
    "webp": lambda picture: saved(picture, "WEBP", quality=60),
    "gif": lambda picture: saved(picture.quantize(64), "GIF"),
    "half_size": lambda picture: picture.resize((48, 48), Image.Resampling.BICUBIC),
    "larger": lambda picture: picture.resize((144, 144), Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_a_copy_is_near(copy):
    distances = [distance(picture, copy(picture)) for picture in scenes(20)]
    assert max(distances) <= NEAR


def test_different_pictures_are_far():
    hashes = np.array([hash_of(picture) for picture in scenes(40)], dtype=np.uint64)
    distances = hamming(hashes[:, None], hashes)[~np.eye(40, dtype=bool)]
    assert distances.min() > NEAR
    assert np.mean(distances) > 24


def test_colours_of_the_same_brightness_are_far():
    red, green = (180, 60, 60), (60, 122, 60)  # BT.601 luminance 96 and 97
    assert distance(ball(red), ball(green)) > NEAR


def test_noise_in_a_flat_picture_sets_no_bit():
    noise = np.random.default_rng(0).integers(-3, 4, (96, 96, 3))
    assert hash_of(Image.fromarray((128 + noise).astype(np.uint8))) == 0


# The coefficient of one horizontal half wave is the first of the 64, the vertical one's the second;
# the values are dealt to four bands of 16 bits in turn, the first at the top.
@pytest.mark.parametrize(
    ("thumbnail", "expected"),
    [
        (grey_wave(), 1 << 63),
        (grey_wave(axis=0), 1 << 47),
        (grey_wave(flip=-1), 0),
    ],
)
def test_a_single_wave_sets_its_bit(thumbnail, expected):
    assert perceptual_hash(thumbnail) == expected


def test_exposure_hardly_matters():
    for picture in scenes(10):
        darker = Image.fromarray((np.asarray(picture) * 0.95).astype(np.uint8))
        assert distance(picture, darker) <= NEAR
