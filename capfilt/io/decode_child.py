"""Decode images in a process that can be killed: the program of `ImageDecoder`'s children.

It reads images from standard input and writes pixels, measurements or refusals to standard output
(frames of `decode_wire.py`), one after the other, until its input ends; so it also ends when its
parent dies. Before the first image it gives up what it no longer needs: being root, opening files
and sockets, writing files, starting processes, memory past a limit. An image that takes too much
CPU time ends the process from within C code too, which no Python signal handler could.

Colour is that of BLIP's evaluation: `convert("RGB")` (an alpha channel and an ICC profile are
ignored, CMYK is converted without a profile). So is geometry, a bicubic squash to a square, unless
another `Fit` is asked for or another `SquareMaker` is handed in. Three things differ from a plain
`Image.open(...).convert("RGB")`: the EXIF orientation is applied, 16-bit grey is scaled instead of
clipped, and what is broken or truncated is refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import signal
import sys
import warnings
from functools import partial
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, MpoImagePlugin, TiffImagePlugin, UnidentifiedImageError

from capfilt.io.decode_wire import (
    ANSWER,
    FORMATS,
    REQUEST,
    Fit,
    ImageLimits,
    Inspected,
    Kind,
    Operation,
    Refused,
    Resampling,
    pack_inspected,
    pack_refused,
    refuse,
)
from capfilt.io.phash import THUMBNAIL_PX, perceptual_hash
from capfilt.io.squares import Box, Change, Draw, Square, SquareMaker, scaled, unchanged
from capfilt.records import Reason

_LAZY_PLUGINS = (MpoImagePlugin, TiffImagePlugin)
"""Pillow imports these when an image needs them (two pictures in a JPEG, EXIF): too late here."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (tag 0x0112, EXIF 2.32 section 4.6.4) to the transposition that undoes it."""


_NOBODY = 65534
"""The user who owns nothing; Linux shows unknown users by this number (`overflowuid`)."""


class _RefusalError(Exception):
    """Ends the work on one image."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.refused = refuse(reason, detail)


def main(limits_json: str, squares: SquareMaker, draw: Draw | None) -> None:
    """Serve requests until standard input ends.

    Args:
        limits_json: the fields of an `ImageLimits`.
        squares: brings pictures into squares; has imported all it needs.
        draw: reads orders; None if none will come.
    """
    limits = ImageLimits(**json.loads(limits_json))
    _prepare_pillow(limits)
    # A library that prints must not write into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    _silence(1, 2)
    _confine(limits, max_files=answers.fileno() + 1)
    _send(answers, Kind.READY, b"")
    try:
        _serve(sys.stdin.buffer, answers, limits, squares, draw)
    except BrokenPipeError:  # the parent is gone, and nobody is left to tell
        os._exit(0)


def _prepare_pillow(limits: ImageLimits) -> None:
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    for name in FORMATS:
        Image.open(_one_pixel(name)).load()  # imports the plugin


def _one_pixel(image_format: str) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, image_format)
    file.seek(0)
    return file


def _silence(*descriptors: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _confine(limits: ImageLimits, *, max_files: int) -> None:
    # Ctrl-C and a polite kill of the process group are the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    highest = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: max_files,
    }
    if sys.platform == "linux":  # macOS refuses to lower it below the gigabytes it maps at start
        highest[resource.RLIMIT_AS] = limits.memory_bytes
    for kind, value in highest.items():
        _, hard = resource.getrlimit(kind)
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lowest, lowest))
    if os.geteuid() == 0:
        _become_nobody()


def _become_nobody() -> None:
    # Root is not bound by the limit on processes, and may raise the others again. A container that
    # knows no other user refuses; its walls must do then.
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def _serve(
    requests: BinaryIO,
    answers: BinaryIO,
    limits: ImageLimits,
    squares: SquareMaker,
    draw: Draw | None,
) -> None:
    while len(header := requests.read(REQUEST.size)) == REQUEST.size:
        operation, side_px, crop_from_px, resampling, *sizes = REQUEST.unpack(header)
        order, image_bytes = map(requests.read, sizes)
        if len(image_bytes) < sizes[1]:
            return
        # SIGPROF is left at its default action: the kernel ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, limits.timeout_s)
        fit = Fit(crop_from_px=crop_from_px or None, resampling=Resampling(resampling))
        asked = None if operation == Operation.INSPECT else Square(side_px=side_px, fit=fit)
        change = partial(draw, order) if draw and order else unchanged
        kind, body = answer(asked, image_bytes, limits, squares, change=change)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(answers, kind, body)


def _send(answers: BinaryIO, kind: Kind, body: bytes) -> None:
    answers.write(ANSWER.pack(kind, len(body)) + body)  # in one piece: each write may wake a parent
    answers.flush()


def answer(
    asked: Square | None,
    image_bytes: bytes,
    limits: ImageLimits,
    squares: SquareMaker,
    *,
    change: Change = unchanged,
) -> tuple[Kind, bytes]:
    """Do what is asked with one image.

    Args:
        asked: what pixels; None to inspect it.
        image_bytes: encoded, as found.
        limits: what it may ask of the machine; time and memory are the kernel's to limit.
        squares: brings the picture into a square.
        change: what is cut out before, and done afterwards.

    Returns:
        Kind and body of the answer; a refusal if the image is broken or too large.
    """
    try:
        image = Image.open(io.BytesIO(image_bytes), formats=FORMATS)
        _check_size(image.width, image.height, limits)
        if asked is None:
            return Kind.INSPECTED, pack_inspected(_inspect(image))
        whole = image.size
        box, finish = change(whole)
        squares.prepare(image, asked, part=box)
        picture = _upright(image, part=scaled(box, whole, image.size))
        square = squares.make(picture, asked, max_pixels=limits.max_pixels)
        return Kind.PIXELS, finish(square).tobytes()
    except Exception as error:  # broken images make Pillow raise nearly everything
        if isinstance(error, ImportError) or getattr(error, "errno", None) is not None:
            raise  # not the image's fault: this process lacks something
        return Kind.REFUSED, pack_refused(_explain(error, image_bytes, limits))


def _upright(image: Image.Image, *, part: Box | None = None) -> Image.Image:
    """The upright RGB picture, or a part of it; the first frame of an animation."""
    image.load()
    orientation = _orientation(image)
    whole = part is None or part == (0, 0, *image.size)
    picture = _to_rgb(image if whole else image.crop(part))
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _check_size(width_px: int, height_px: int, limits: ImageLimits) -> None:
    found = f"image is {width_px} x {height_px} px"
    if max(width_px, height_px) > limits.max_side_px:
        allowed = f"the longest side allowed is {limits.max_side_px}"
        raise _RefusalError(Reason.IMAGE_TOO_LARGE, f"{found}; {allowed}")
    if width_px * height_px > limits.max_pixels:
        allowed = f"{limits.max_pixels} pixels are allowed"
        raise _RefusalError(Reason.IMAGE_TOO_LARGE, f"{found}; {allowed}")
    if min(width_px, height_px) < limits.min_side_px:
        allowed = f"the shortest side allowed is {limits.min_side_px}"
        raise _RefusalError(Reason.IMAGE_TOO_SMALL, f"{found}; {allowed}")


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(0x0112)
    except Exception:  # broken metadata is no reason to lose a sound picture
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # convert("RGB") would clip at 255. Colour PNGs of 16 bits lose their low byte in Pillow; so
        # does grey here.
        high_byte = np.clip(np.asarray(image), 0, 65535) >> 8
        image = Image.fromarray(high_byte.astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _inspect(image: Image.Image) -> Inspected:
    picture = _upright(image)
    thumbnail = picture.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return Inspected(
        # A JPEG file with more pictures behind the first is MPO to Pillow.
        image_format="JPEG" if image.format == "MPO" else str(image.format),
        width_px=picture.width,
        height_px=picture.height,
        phash=perceptual_hash(np.asarray(thumbnail)),
    )


def _explain(error: Exception, image_bytes: bytes, limits: ImageLimits) -> Refused:
    if isinstance(error, _RefusalError):
        return error.refused
    if isinstance(error, MemoryError):
        found = f"needs more than {limits.memory_bytes // 2**20} MiB of memory"
        return refuse(Reason.DECODE_CRASHED, found)
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return refuse(Reason.IMAGE_TOO_LARGE, f"more than {limits.max_pixels} pixels")
    if isinstance(error, UnidentifiedImageError):
        found = f"not a readable {', '.join(FORMATS)}; it begins with {image_bytes[:8]!r}"
        return refuse(Reason.IMAGE_UNREADABLE, found)
    # Memory addresses in an error's text would make two runs differ.
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error))
    return refuse(Reason.IMAGE_UNREADABLE, f"{type(error).__name__}: {text}")
