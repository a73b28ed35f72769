"""What the web serves, opened with Pillow."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from capfilt.miniature.distort import CROP_SHARE, Edit, Encoding, Picture, picture_bytes
from capfilt.miniature.hostile import Hostile, encoding_of, expected_reasons, hostile_bytes
from capfilt.miniature.render import render
from capfilt.miniature.world import sample_scene

SCENE = sample_scene(random.Random(5))


def opened(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture_bytes(picture)))


def picture(*, edit: Edit = Edit.NONE, encoding: Encoding = Encoding.PNG) -> Picture:
    return Picture(drawn=SCENE, side_px=128, edit=edit, encoding=encoding)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of channels, of 255, at 64 px."""
    small = [
        np.asarray(i.convert("RGB").resize((64, 64), Image.Resampling.BOX)) for i in (one, other)
    ]
    return float(np.abs(small[0].astype(int) - small[1].astype(int)).mean())


@pytest.mark.parametrize("encoding", list(Encoding))
def test_every_encoding_shows_the_scene(encoding):
    assert difference(opened(picture(encoding=encoding)), render(SCENE, side_px=128)) < 4


@pytest.mark.parametrize("encoding", list(Encoding))
def test_every_encoding_gives_the_same_bytes_again(encoding):
    assert picture_bytes(picture(encoding=encoding)) == picture_bytes(picture(encoding=encoding))


def test_rare_encodings_are_what_they_are_called():
    modes = {e: opened(picture(encoding=e)).mode for e in Encoding}
    assert (modes[Encoding.CMYK_JPEG], modes[Encoding.RGBA_PNG]) == ("CMYK", "RGBA")
    assert modes[Encoding.PALETTE_PNG] == "P"
    assert opened(picture(encoding=Encoding.ANIMATED_GIF)).n_frames == 2
    assert picture_bytes(picture(encoding=Encoding.PNG_16_BIT))[24:26] == b"\x10\x02"  # depth, RGB


@pytest.mark.parametrize("edit", [Edit.SHRUNK, Edit.ENLARGED, Edit.CROPPED, Edit.WATERMARKED])
def test_an_edited_copy_is_near_the_original(edit):
    assert 0 < difference(opened(picture(edit=edit)), render(SCENE, side_px=128)) < 8


def test_a_crop_takes_two_percent_of_each_side():
    assert CROP_SHARE == 0.02
    assert opened(picture(edit=Edit.CROPPED)).size == (124, 124)  # 128 - 2 * 2


def test_a_mirrored_picture_is_the_mirror_image():
    mirror = ImageOps.mirror(render(SCENE, side_px=128))
    assert difference(opened(picture(edit=Edit.MIRRORED)), mirror) == 0


def hostile_body(hostile: Hostile) -> bytes:
    return hostile_bytes(hostile, picture(encoding=encoding_of(hostile)))


@pytest.mark.parametrize(
    "hostile",
    [Hostile.HTML, Hostile.ZERO_BYTES, Hostile.BROKEN_HEADER, Hostile.TEXT, Hostile.SVG],
)
def test_what_is_no_image_cannot_be_identified(hostile):
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(hostile_body(hostile)))


def test_a_truncated_jpeg_opens_but_does_not_load():
    image = Image.open(io.BytesIO(hostile_body(Hostile.TRUNCATED_JPEG)))
    with pytest.raises(OSError, match="truncated"):
        image.load()


def test_a_bomb_is_a_small_file_that_pillow_refuses():
    body = hostile_body(Hostile.BOMB)
    assert len(body) < 100_000
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(body))


def test_too_many_pixels_are_within_the_usual_side():
    image = Image.open(io.BytesIO(hostile_body(Hostile.TOO_MANY_PIXELS)))
    assert image.size == (7000, 7000)  # sides below 8192; 49 million pixels, above 36 million


def test_one_pixel_is_a_sound_image():
    image = Image.open(io.BytesIO(hostile_body(Hostile.ONE_PIXEL)))
    image.load()
    assert image.size == (1, 1)


def test_every_hostile_body_has_a_reason_to_be_lost():
    assert all(expected_reasons(hostile) for hostile in Hostile)
