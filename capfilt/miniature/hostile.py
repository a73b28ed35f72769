"""Bodies that are served as images and should not survive the index: broken, wrong or dangerous."""

from __future__ import annotations

import struct
from enum import StrEnum

from capfilt.miniature.distort import Encoding, Picture, picture_bytes, png_bytes
from capfilt.records import Reason


class Hostile(StrEnum):
    """What is wrong with a body."""

    TRUNCATED_JPEG = "truncated_jpeg"
    HTML = "html"
    ONE_PIXEL = "one_pixel"
    BOMB = "bomb"
    ZERO_BYTES = "zero_bytes"
    BROKEN_HEADER = "broken_header"
    TOO_MANY_PIXELS = "too_many_pixels"
    TEXT = "text"
    SVG = "svg"


_EXPECTED = {
    # A downloader may take an answer without a body for no answer.
    Hostile.ZERO_BYTES: (Reason.IMAGE_UNREADABLE, Reason.IMAGE_MISSING, Reason.FETCH_FAILED),
    Hostile.ONE_PIXEL: (Reason.IMAGE_TOO_SMALL,),
    Hostile.BOMB: (Reason.IMAGE_TOO_LARGE,),
    Hostile.TOO_MANY_PIXELS: (Reason.IMAGE_TOO_LARGE,),
}
_WHITE_SIDES_PX = {
    Hostile.BOMB: 20_000,  # 50 MB of pixels in 50 kB
    Hostile.TOO_MANY_PIXELS: 7_000,  # within the usual 8192 px a side, but 49 million pixels
}
_FIXED_BODIES = {
    Hostile.HTML: b"<!doctype html><title>Not here</title><p>This picture has moved.",
    Hostile.SVG: b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="9" fill="red"/></svg>',
    Hostile.TEXT: b"hotlinking is not allowed\n",
    Hostile.ZERO_BYTES: b"",
}


def expected_reasons(hostile: Hostile) -> tuple[Reason, ...]:
    """The reasons that are right for dropping such a body."""
    return _EXPECTED.get(hostile, (Reason.IMAGE_UNREADABLE,))


def hostile_bytes(hostile: Hostile, picture: Picture) -> bytes:
    """Make such a body, from a picture where one is needed."""
    if hostile in _FIXED_BODIES:
        return _FIXED_BODIES[hostile]
    if hostile is Hostile.ONE_PIXEL:
        return png_bytes(struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), b"\0\xff\xff\xff")
    if hostile in _WHITE_SIDES_PX:
        return _white_png(_WHITE_SIDES_PX[hostile])
    whole = picture_bytes(picture)
    if hostile is Hostile.TRUNCATED_JPEG:
        return whole[: len(whole) * 3 // 5]
    return whole[:8] + bytes(byte ^ 0x5A for byte in whole[8:40]) + whole[40:]


def encoding_of(hostile: Hostile) -> Encoding:
    """The encoding that the file name promises."""
    jpeg = (Hostile.TRUNCATED_JPEG, Hostile.HTML, Hostile.ZERO_BYTES, Hostile.TEXT)
    return Encoding.JPEG if hostile in jpeg else Encoding.PNG


def _white_png(side_px: int) -> bytes:
    """A square of one bit a pixel, which compresses a thousandfold."""
    row = b"\0" + b"\xff" * (-(-side_px // 8))
    return png_bytes(struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0), row * side_px)
