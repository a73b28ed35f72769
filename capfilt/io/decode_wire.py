"""What `images.ImageDecoder` and its child processes say to each other over two pipes.

Requests and answers are frames: a header of fixed size, then as many bytes as the header says.
There is no pickle: a child that was taken over by a hostile image can send wrong pixels or a wrong
refusal for that image, and nothing else. So whatever comes from a child is checked here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from capfilt.records import Reason

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Pillow's names of the formats decoded; no other decoder is ever reached by an image."""

REQUEST = struct.Struct("<BIIBHQ")
"""Operation, side_px, `Fit` in two numbers (0 for None), bytes of the order and of the image that
follow."""
ANSWER = struct.Struct("<BI")  # kind, bytes of the body that follows
MAX_DETAIL_CHARS = 200
_SIZE_AND_HASH = struct.Struct("<IIQ")
_MAX_SMALL_BODY_BYTES = 4096


class Operation(IntEnum):
    """What is asked of the child."""

    INSPECT = 1
    PIXELS = 2


class Kind(IntEnum):
    """What an answer's body holds."""

    READY = 0  # nothing: the child has started and given up its rights
    INSPECTED = 1
    PIXELS = 2  # side_px * side_px * 3 bytes, RGB, rows from the top
    REFUSED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """How much an image may ask of the machine."""

    max_side_px: int = 8192
    min_side_px: int = 1
    max_pixels: int = 36_000_000  # width times height; such a progressive JPEG takes about 1 s
    max_bytes: int = 20_000_000  # of the encoded image
    timeout_s: float = 2.0  # CPU seconds, so that a busy machine does not change the outcome
    memory_bytes: int = 1536 * 2**20  # address space of the child; it needs about 150 MiB to start


class Resampling(IntEnum):
    """How pixels are resized; the numbers are Pillow's, and those of `preprocessor_config.json`."""

    LANCZOS = 1
    BILINEAR = 2
    BICUBIC = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a picture is brought into the square a model sees. As it stands: BLIP's squash."""

    crop_from_px: int | None = None
    """The shortest side is scaled to this, at least the square's side, and the square is cut from
    the middle, as for CLIP. None: both sides are scaled to the square's, and nothing is lost."""
    resampling: Resampling = Resampling.BICUBIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What is known of an image that was decoded whole."""

    image_format: str  # one of FORMATS
    width_px: int  # as seen: after the EXIF orientation
    height_px: int
    phash: int  # 64-bit perceptual hash, see `phash.py`


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why an image was not decoded."""

    reason: Reason
    detail: str  # one line, at most 200 printable characters, the same in every run


def refuse(reason: Reason, detail: str) -> Refused:
    """Make a refusal whose detail is fit for a table: one line, printable, short."""
    printable = "".join(char if char.isprintable() else " " for char in detail)
    return Refused(reason=reason, detail=" ".join(printable.split())[:MAX_DETAIL_CHARS])


def pack_inspected(inspected: Inspected) -> bytes:
    """The body of an INSPECTED answer."""
    numbers = (inspected.width_px, inspected.height_px, inspected.phash)
    return _SIZE_AND_HASH.pack(*numbers) + inspected.image_format.encode("ascii")


def pack_refused(refused: Refused) -> bytes:
    """The body of a REFUSED answer."""
    return f"{refused.reason.value}\n{refused.detail}".encode("utf-8", "backslashreplace")


def unpack_small(kind: Kind, body: bytes | bytearray, limits: ImageLimits) -> Inspected | Refused:
    """Read the body of an answer that holds no pixels.

    Args:
        kind: from the header.
        body: what followed it.
        limits: what the child was told to refuse.

    Raises:
        ValueError: no honest child sends this.
    """
    if kind is Kind.INSPECTED:
        if len(body) <= _SIZE_AND_HASH.size:
            raise ValueError(f"{len(body)} bytes are too few")
        width_px, height_px, phash = _SIZE_AND_HASH.unpack_from(body)
        name = body[_SIZE_AND_HASH.size :].decode("ascii")
        if name not in FORMATS:
            raise ValueError(f"format {name!r} is not one of {', '.join(FORMATS)}")
        longest, shortest = max(width_px, height_px), min(width_px, height_px)
        if longest > limits.max_side_px or shortest < max(limits.min_side_px, 1):
            raise ValueError(f"{width_px} x {height_px} px should have been refused")
        return Inspected(image_format=name, width_px=width_px, height_px=height_px, phash=phash)
    if kind is Kind.REFUSED:
        reason, _, detail = body.decode("utf-8").partition("\n")
        return refuse(Reason(reason), detail)
    raise ValueError(f"answer of kind {kind!r}")


def is_expected(kind: int, num_bytes: int, *, side_px: int | None) -> bool:
    """Whether an answer's header fits what was asked.

    Args:
        kind: from the header.
        num_bytes: of the body, from the header.
        side_px: of the pixels asked for; None if the image was to be inspected.
    """
    if kind == Kind.PIXELS:
        return side_px is not None and num_bytes == side_px * side_px * 3
    if kind == Kind.INSPECTED:
        return side_px is None and num_bytes <= _MAX_SMALL_BODY_BYTES
    return kind == Kind.REFUSED and num_bytes <= _MAX_SMALL_BODY_BYTES
