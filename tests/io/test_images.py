import io
import os
import random
import select
import signal
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import capfilt
from capfilt.errors import CapfiltError
from capfilt.io import decode_process
from capfilt.io.images import Fit, ImageDecoder, ImageLimits, Inspected, Refused, Resampling
from capfilt.records import Reason


@pytest.fixture(scope="module")
def decoder():
    limits = ImageLimits(max_side_px=3000, min_side_px=2, max_pixels=4_000_000, max_bytes=500_000)
    with ImageDecoder(limits) as decoder:
        yield decoder


def encoded(picture, image_format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def gradient(width_px=40, height_px=30):
    y, x = np.mgrid[0:height_px, 0:width_px]
    rgb = np.stack([x * 5, y * 7, (x + y) * 3], axis=2)
    return Image.fromarray(rgb.astype(np.uint8), "RGB")


def png_header(width_px, height_px):
    """A PNG that promises many pixels and holds none."""

    def chunk(name, body):
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    size = struct.pack(">IIBBBBB", width_px, height_px, 1, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + rows + chunk(b"IEND", b"")


def jpeg_of_many_scans(num_scans):
    """Each scan makes the C library go over all the pixels again."""
    jpeg = encoded(Image.new("L", (1000, 1000), 7), "JPEG", progressive=True)
    last_scan = jpeg.rindex(b"\xff\xda")
    return jpeg[:last_scan] + jpeg[last_scan:-2] * num_scans + jpeg[-2:]


def with_orientation(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, exif=exif.tobytes())


SOUND = encoded(gradient())


def outcome(decoder, image):
    [answer] = decoder.inspect([image])
    return answer.reason if isinstance(answer, Refused) else answer.image_format


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_format_and_size_are_told(decoder, image_format):
    [inspected] = decoder.inspect([encoded(gradient(40, 30), image_format)])
    assert isinstance(inspected, Inspected)
    assert inspected.image_format == image_format
    assert (inspected.width_px, inspected.height_px) == (40, 30)


def test_pixels_are_pillows_bicubic_squash(decoder):
    jpeg = encoded(gradient(), "JPEG")
    expected = (
        Image.open(io.BytesIO(jpeg)).convert("RGB").resize((24, 24), Image.Resampling.BICUBIC)
    )
    [pixels] = decoder.pixels([jpeg], side_px=24)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize(
    ("size", "scaled"), [((40, 30), (34, 26)), ((30, 40), (26, 34)), ((9, 8), (29, 26))]
)
@pytest.mark.parametrize("resampling", Resampling)
def test_a_crop_is_the_middle_of_the_picture_scaled_by_its_shortest_side(
    decoder, size, scaled, resampling
):
    fit = Fit(crop_from_px=26, resampling=resampling)
    [pixels] = decoder.pixels([encoded(gradient(*size))], side_px=24, fit=fit)
    left, top = (scaled[0] - 24) // 2, (scaled[1] - 24) // 2
    whole = gradient(*size).resize(scaled, Image.Resampling(resampling))
    expected = whole.crop((left, top, left + 24, top + 24))
    np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_the_middle_of_a_line_is_cut_without_scaling_all_of_it(decoder):
    line = gradient(2900, 2)  # scaled to 300 px on the short side: 130 million pixels
    fit = Fit(crop_from_px=300)
    [pixels] = decoder.pixels([encoded(line)], side_px=300, fit=fit)
    assert isinstance(pixels, np.ndarray)
    middle = np.asarray(line)[0, 1450].astype(int)
    assert np.abs(pixels[0, 150].astype(int) - middle).max() <= 8


def test_resampling_is_as_asked(decoder):
    [pixels] = decoder.pixels([SOUND], side_px=24, fit=Fit(resampling=Resampling.BILINEAR))
    expected = gradient().resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(decoder, orientation):
    image = with_orientation(gradient(40, 30), orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
    [inspected] = decoder.inspect([image])
    [pixels] = decoder.pixels([image], side_px=16)
    assert (inspected.width_px, inspected.height_px) == upright.size
    resized = upright.resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels, np.asarray(resized))


@pytest.mark.parametrize(
    ("picture", "image_format", "rgb"),
    [
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)), "PNG", (128, 128, 128)),
        (Image.new("LA", (8, 8), (90, 0)), "PNG", (90, 90, 90)),
        (Image.new("RGBA", (8, 8), (10, 20, 30, 0)), "PNG", (10, 20, 30)),
        (Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)),
        (Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4), "GIF", (10, 200, 30)),
    ],
    ids=["cmyk", "grey_16_bits", "grey_alpha", "transparent", "one_bit", "palette"],
)
def test_every_mode_becomes_rgb(decoder, picture, image_format, rgb):
    [pixels] = decoder.pixels([encoded(picture, image_format)], side_px=4)
    np.testing.assert_allclose(pixels, np.broadcast_to(rgb, (4, 4, 3)), atol=1)


def test_a_jpeg_of_several_pictures_is_a_jpeg(decoder):
    several = encoded(gradient(), "MPO", save_all=True, append_images=[gradient(9, 9)])
    assert outcome(decoder, several) == "JPEG"


@pytest.mark.parametrize("image_format", ["GIF", "WEBP"])
def test_an_animation_is_its_first_frame(decoder, image_format):
    red, blue = (Image.new("RGB", (8, 8), name) for name in ("red", "blue"))
    options = {"save_all": True, "append_images": [blue]}
    [pixels] = decoder.pixels([encoded(red, image_format, **options)], side_px=4)
    np.testing.assert_allclose(pixels, np.broadcast_to((255, 0, 0), (4, 4, 3)), atol=4)


@pytest.mark.parametrize(
    "image",
    [
        encoded(gradient(), "JPEG", icc_profile=random.Random(0).randbytes(9000)),
        encoded(gradient(), "JPEG", exif=b"Exif\0\0" + random.Random(0).randbytes(60_000)),
        encoded(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    ],
    ids=["icc", "huge_exif", "exif_past_the_end"],
)
def test_broken_metadata_does_not_lose_the_picture(decoder, image):
    [expected, inspected] = decoder.inspect([encoded(gradient(), "JPEG"), image])
    assert inspected == expected


REFUSED = {
    "nothing": (b"", Reason.IMAGE_UNREADABLE),
    "zeros": (bytes(1000), Reason.IMAGE_UNREADABLE),
    "html": (b"<!doctype html><title>404</title>", Reason.IMAGE_UNREADABLE),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', Reason.IMAGE_UNREADABLE),
    "text": (b"not an image\n" * 9, Reason.IMAGE_UNREADABLE),
    "tiff": (encoded(gradient(), "TIFF"), Reason.IMAGE_UNREADABLE),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", Reason.IMAGE_UNREADABLE),
    "truncated_jpeg": (encoded(gradient(), "JPEG")[:-200], Reason.IMAGE_UNREADABLE),
    "truncated_png": (SOUND[: len(SOUND) // 2], Reason.IMAGE_UNREADABLE),
    "bomb": (png_header(30_000, 30_000), Reason.IMAGE_TOO_LARGE),
    "many_pixels": (png_header(2900, 2900), Reason.IMAGE_TOO_LARGE),
    "long_side": (png_header(3001, 3), Reason.IMAGE_TOO_LARGE),
    "one_pixel": (encoded(gradient(1, 1)), Reason.IMAGE_TOO_SMALL),
    "many_bytes": (SOUND + bytes(500_000), Reason.IMAGE_BYTES_TOO_MANY),
}


@pytest.mark.parametrize(("image", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_image_says_why_in_one_line(decoder, image, reason):
    [inspected] = decoder.inspect([image])
    [pixels] = decoder.pixels([image], side_px=8)
    assert inspected == pixels
    assert inspected.reason == reason
    assert 0 < len(inspected.detail) <= 200
    assert inspected.detail.isprintable()
    assert "0x" not in inspected.detail  # a memory address would differ from run to run


def test_a_limit_is_named_in_the_detail(decoder):
    [refused] = decoder.inspect([png_header(3001, 3)])
    assert refused.detail == "image is 3001 x 3 px; the longest side allowed is 3000"


def test_answers_keep_the_order_of_images(decoder):
    images = [encoded(gradient(10 + i, 10)) if i % 3 else b"" for i in range(40)]
    with ImageDecoder(ImageLimits(), num_processes=3) as several:
        answers = several.inspect(images)
    widths = [None if isinstance(answer, Refused) else answer.width_px for answer in answers]
    assert widths == [10 + i if i % 3 else None for i in range(40)]


def test_no_images_give_no_answers(decoder):
    assert decoder.inspect([]) == []
    assert decoder.pixels([], side_px=8) == []


def test_any_damage_ends_in_one_outcome_that_repeats(decoder):
    rng = random.Random(3)
    seeds = [encoded(gradient(), image_format) for image_format in ("JPEG", "PNG", "GIF", "WEBP")]
    damaged = []
    for i in range(200):
        image = bytearray(seeds[i % 4])
        for _ in range(rng.randint(1, 8)):
            image[rng.randrange(len(image))] = rng.randrange(256)
        damaged.append(bytes(image[: rng.randint(len(image) // 2, len(image))]))
    answers = decoder.inspect(damaged)
    assert decoder.inspect(damaged) == answers
    reasons = {answer.reason for answer in answers if isinstance(answer, Refused)}
    assert reasons <= {Reason.IMAGE_UNREADABLE, Reason.IMAGE_TOO_LARGE, Reason.IMAGE_TOO_SMALL}


def test_an_image_that_takes_too_long_is_refused_and_its_neighbours_are_not():
    with ImageDecoder(ImageLimits(timeout_s=0.1)) as decoder:
        answers = decoder.inspect([SOUND, jpeg_of_many_scans(2000), SOUND])
    assert isinstance(answers[0], Inspected)
    assert answers[1] == Refused(
        reason=Reason.DECODE_TIMEOUT, detail="needs more than 0.1 s of CPU time"
    )
    assert answers[2] == answers[0]


def test_an_image_that_needs_too_much_memory_is_refused():
    large = encoded(Image.new("1", (6000, 6000)))
    with ImageDecoder(ImageLimits(memory_bytes=256 * 2**20)) as decoder:
        large_answer, sound_answer = decoder.inspect([large, SOUND])
    assert large_answer.reason == Reason.DECODE_CRASHED
    assert large_answer.detail == "needs more than 256 MiB of memory"
    assert isinstance(sound_answer, Inspected)


class KillerOfChildren(threading.Thread):
    """Kills the first children of a decoder, each while it is at an image."""

    def __init__(self, decoder, num_kills):
        super().__init__(daemon=True)
        self.decoder, self.num_kills, self.killed = decoder, num_kills, set()

    def run(self):
        pause = threading.Event()
        while len(self.killed) < self.num_kills:
            for process in list(self.decoder._processes):
                if process.ready and process.in_flight and process.pid not in self.killed:
                    os.kill(process.pid, signal.SIGKILL)
                    self.killed.add(process.pid)
            pause.wait(0.001)


@pytest.mark.parametrize(
    ("num_kills", "expected"), [(1, "JPEG"), (2, Reason.DECODE_CRASHED)], ids=["once", "twice"]
)
def test_only_the_image_at_which_two_children_died_is_refused(num_kills, expected):
    slow = jpeg_of_many_scans(300)
    with ImageDecoder(ImageLimits(timeout_s=30)) as decoder:
        killer = KillerOfChildren(decoder, num_kills)
        killer.start()
        answers = decoder.inspect([slow, SOUND, SOUND])
        killer.join()
    first = answers[0]
    assert (first.reason if isinstance(first, Refused) else first.image_format) == expected
    assert [answer.image_format for answer in answers[1:]] == ["PNG", "PNG"]


def test_a_child_killed_while_idle_is_replaced(decoder):
    expected = decoder.inspect([SOUND, SOUND])
    [process] = decoder._processes
    os.kill(process.pid, signal.SIGKILL)
    assert decoder.inspect([SOUND, SOUND]) == expected


def test_a_silent_child_is_replaced_and_its_image_is_tried_again():
    with ImageDecoder(ImageLimits(timeout_s=0.05)) as decoder:
        expected = decoder.inspect([SOUND])
        [process] = decoder._processes
        os.kill(process.pid, signal.SIGSTOP)
        assert decoder.inspect([SOUND]) == expected


def test_a_child_is_replaced_after_its_share_of_images(monkeypatch):
    monkeypatch.setattr(decode_process, "MAX_IMAGES_PER_CHILD", 3)
    with ImageDecoder(ImageLimits()) as decoder:
        first = decoder.inspect([SOUND])[0]
        [process] = decoder._processes
        assert decoder.inspect([SOUND] * 5) == [first] * 5
        assert process not in decoder._processes


def test_a_closed_decoder_starts_again():
    decoder = ImageDecoder(ImageLimits())
    first = decoder.inspect([SOUND])
    decoder.close()
    assert decoder.inspect([SOUND]) == first
    decoder.close()


def test_a_child_that_cannot_start_is_an_error_with_its_last_words(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no Pillow here >&2\nexit 7\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(CapfiltError, match=r"ended before .* code 7: 'no Pillow here'"):
        ImageDecoder(ImageLimits()).inspect([SOUND])


def test_the_users_own_modules_do_not_reach_the_child(monkeypatch, tmp_path):
    for name in ("PIL", "numpy", "struct", "json", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    with ImageDecoder(ImageLimits()) as decoder:
        assert outcome(decoder, SOUND) == "PNG"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_has_no_secrets_and_can_open_nothing(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    with ImageDecoder(ImageLimits()) as decoder:
        decoder.inspect([SOUND])
        child = Path("/proc", str(decoder._processes[0].pid))
        assert b"do-not-tell" not in (child / "environ").read_bytes()
        num_open = len(list((child / "fd").iterdir()))
        limits = (child / "limits").read_text()
    assert f"Max open files            {num_open} " in limits
    assert "Max core file size        0 " in limits
    assert "Max file size             0 " in limits


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd")
def test_the_child_can_start_no_process_even_if_root_started_it():
    code = (
        "import os\n"
        "from capfilt.io.decode_child import _confine\n"
        "from capfilt.io.decode_wire import ImageLimits\n"
        "_confine(ImageLimits(), max_files=4)\n"
        "try: os.fork(); os._exit(0)\n"
        "except BlockingIOError: os._exit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 7


def test_a_child_ends_when_its_parent_is_killed():
    program = (
        "from capfilt.io.images import *; decoder = ImageDecoder(ImageLimits());"
        "decoder.inspect([b'']); print(decoder._processes[0].pid, flush=True); input()"
    )
    root = str(Path(capfilt.__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    )
    with parent:
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    ended, _, _ = select.select([child], [], [], 10)
    os.close(child)
    assert ended
