import io
import random
from functools import cache

import numpy as np
import pytest
from PIL import Image

from capfilt.errors import CapfiltError, MissingDependencyError
from capfilt.io import decode_program
from capfilt.io.images import (
    Fit,
    ImageDecoder,
    ImageLimits,
    Refused,
    Resampling,
    check_decoding,
)

FAST = ("fast", "fast_scaled")
LIMITS = ImageLimits(max_side_px=3000, max_pixels=4_000_000, timeout_s=20)


@pytest.fixture(scope="module")
def decoders():
    pytest.importorskip("cykooz_resizer")
    names = ("exact", "scaled", *FAST)
    found = {name: ImageDecoder(LIMITS, decoding=name) for name in names}
    yield found
    for decoder in found.values():
        decoder.close()


@cache
def scene(width_px, height_px):
    """Flat discs before a ramp: hard edges, smooth parts, strong colours."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height_px, 0:width_px]
    picture = np.stack([x * 255 / width_px, y * 255 / height_px, 0 * x + 90], axis=2)
    for _ in range(40):
        centre, radius = rng.random(2) * (width_px, height_px), rng.uniform(0.02, 0.2) * width_px
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        picture[inside] = rng.integers(0, 256, 3)
    return Image.fromarray(picture.astype(np.uint8))


def noise(width_px, height_px):
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (height_px, width_px, 3), np.uint8))


def encoded(picture, image_format="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def psnr_db(pixels, reference):
    error = np.mean((pixels.astype(float) - reference) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def both(decoders, name, image, **asked):
    [[found], [expected]] = [
        decoders[each].pixels([image], **{"side_px": 96, **asked}) for each in (name, "exact")
    ]
    return found, expected


def largest_difference(found, expected):
    return np.abs(found.astype(int) - expected).max()


@pytest.mark.parametrize("size", [(640, 480), (300, 300), (60, 45), (96, 96), (2900, 3)])
@pytest.mark.parametrize("resampling", Resampling)
def test_fast_is_exact_to_two_steps_even_on_noise(decoders, size, resampling):
    image = encoded(noise(*size), "PNG")
    pixels, expected = both(decoders, "fast", image, fit=Fit(resampling=resampling))
    assert largest_difference(pixels, expected) <= 2


@pytest.mark.skipif(int(Image.__version__.split(".")[0]) < 13, reason="Pillow 13's order")
@pytest.mark.parametrize("size", [(480, 640), (100, 101), (120, 145), (3, 2900)])
def test_tall_pictures_are_scaled_in_pillows_order(decoders, size):
    assert largest_difference(*both(decoders, "fast", encoded(noise(*size), "PNG"))) <= 2


@pytest.mark.parametrize("resampling", Resampling)
def test_a_fast_crop_is_exact_to_two_steps(decoders, resampling):
    fit = Fit(crop_from_px=110, resampling=resampling)
    assert largest_difference(*both(decoders, "fast", encoded(scene(400, 300)), fit=fit)) <= 2


@pytest.mark.parametrize(
    ("size", "is_scaled"), [((365, 500), False), ((366, 500), True), ((500, 365), False)]
)
def test_a_jpeg_is_scaled_when_it_keeps_nearly_twice_the_side(decoders, size, is_scaled):
    scaled, expected = both(decoders, "scaled", encoded(scene(*size)))
    assert np.array_equal(scaled, expected) != is_scaled


def test_a_crop_counts_from_the_side_it_is_scaled_to(decoders):
    fit = Fit(crop_from_px=100)
    scaled, expected = both(decoders, "scaled", encoded(scene(379, 379)), fit=fit)
    np.testing.assert_array_equal(scaled, expected)


@pytest.mark.parametrize("name", ["scaled", "fast_scaled"])
@pytest.mark.parametrize("size", [(190, 250), (380, 500), (760, 1000)])  # 1/2, 1/4, 1/8
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_scaled_picture_is_close_to_the_whole_one(decoders, name, size, options):
    image = encoded(scene(*size), quality=90, **options)
    pixels, expected = both(decoders, name, image, side_px=48)
    assert 38 < psnr_db(pixels, expected) < 70


@pytest.mark.parametrize("name", ["scaled", *FAST])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_way_of_decoding(decoders, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encoded(scene(500, 400), exif=exif.tobytes(), quality=90)
    assert psnr_db(*both(decoders, name, image)) > 38


@pytest.mark.parametrize("name", ["scaled", *FAST])
@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpegs_of_other_colours_look_the_same(decoders, name, mode):
    image = encoded(scene(500, 400).convert(mode), quality=90)
    assert psnr_db(*both(decoders, name, image)) > 38


@pytest.mark.parametrize("name", ["scaled", *FAST])
def test_the_perceptual_hash_does_not_depend_on_how_squares_are_made(decoders, name):
    image = encoded(scene(800, 600))
    assert decoders[name].inspect([image]) == decoders["exact"].inspect([image])


def outcomes(decoder, images):
    """Refusals as they are, and True for pixels."""
    answers = decoder.pixels(images, side_px=24)
    return [answer if isinstance(answer, Refused) else True for answer in answers]


def damaged_images():
    rng = random.Random(5)
    seeds = [encoded(scene(200, 150), progressive=way) for way in (False, True)]
    seeds += [encoded(scene(200, 150), name) for name in ("PNG", "WEBP", "GIF", "BMP")]
    for i in range(120):
        image = bytearray(seeds[i % len(seeds)])
        for _ in range(rng.randint(0, 4)):
            image[rng.randrange(len(image))] = rng.randrange(256)
        yield bytes(image[: rng.randint(len(image) // 4, len(image))] if i % 4 == 0 else image)


@pytest.mark.parametrize("name", ["scaled", *FAST])
def test_damage_has_the_same_outcome_in_every_way_of_decoding(decoders, name):
    images = list(damaged_images())
    expected = outcomes(decoders["exact"], images)
    assert 20 < sum(isinstance(outcome, Refused) for outcome in expected) < 120
    assert outcomes(decoders[name], images) == expected


@pytest.mark.parametrize("name", ["scaled", *FAST])
def test_a_jpeg_cut_anywhere_is_refused_however_small_it_is_decoded(decoders, name):
    jpeg = encoded(scene(400, 400))
    cut = [jpeg[: len(jpeg) * part // 20] for part in range(1, 20)]
    assert all(isinstance(each, Refused) for each in outcomes(decoders[name], cut))


@pytest.mark.parametrize("name", FAST)
def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch, name):
    monkeypatch.setattr(decode_program, "find_spec", lambda package: None)
    with pytest.raises(MissingDependencyError) as told:
        check_decoding(name, asked_by="score.decode")
    assert str(told.value) == (
        f"score.decode is {name!r}: cykooz_resizer is not installed; "
        "run: pip install 'capfilt[fast-decode]'"
    )
    with pytest.raises(MissingDependencyError):
        ImageDecoder(LIMITS, decoding=name)
    check_decoding("scaled", asked_by="score.decode")


def test_a_resizer_that_writes_nonsense_lets_no_child_start(monkeypatch, tmp_path):
    pytest.importorskip("cykooz_resizer")
    broken = tmp_path / "cykooz_resizer.py"
    broken.write_text(
        "class Any:\n"
        "    def __init__(self, *args, **options): pass\n"
        "    def __getattr__(self, name): return lambda *args, **options: None\n"
        "Resizer = ResizeOptions = Any\n"
        "FilterType = ResizeAlg = Any()\n"
    )
    command = decode_program.child_command(LIMITS, "fast")
    folder = str(tmp_path)
    command[command.index("-c") + 1] = (
        "import sys; sys.path[:0] = [sys.argv[-1]]" + (command[command.index("-c") + 1])
    )
    monkeypatch.setattr("capfilt.io.decode_process.child_command", lambda *_: [*command, folder])
    with pytest.raises(CapfiltError, match="cykooz_resizer differs from Pillow"):
        ImageDecoder(LIMITS, decoding="fast").pixels([b""], side_px=8)
