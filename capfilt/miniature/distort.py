"""Turn a scene into the bytes of an image file, as the web copies it: edited and encoded again.

The edits that make near-duplicates keep what the picture shows (resized, cropped by at most 2 % on
each side, watermarked); the mirror image does not, as left and right change places.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from capfilt.miniature.render import render
from capfilt.miniature.world import Scene

CROP_SHARE = 0.02  # of the side, cut off on each side

_WATERMARK = "shapes.example"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Edit(StrEnum):
    """What was done to a picture before it was encoded."""

    NONE = "none"
    SHRUNK = "shrunk"
    ENLARGED = "enlarged"
    CROPPED = "cropped"
    WATERMARKED = "watermarked"
    MIRRORED = "mirrored"


class Encoding(StrEnum):
    """How a picture is written: all are readable, the later ones less common."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    PROGRESSIVE_JPEG = "progressive_jpeg"
    ROUGH_JPEG = "rough_jpeg"
    CMYK_JPEG = "cmyk_jpeg"
    PALETTE_PNG = "palette_png"
    RGBA_PNG = "rgba_png"
    PNG_16_BIT = "png_16_bit"
    ANIMATED_GIF = "animated_gif"

    @property
    def suffix(self) -> str:
        """The file name's suffix."""
        return "jpg" if "jpeg" in self else "png" if "png" in self else self.split("_")[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image file of the miniature web, before it is made."""

    drawn: Scene  # before the edit: a mirrored picture shows `mirrored(drawn)`
    side_px: int  # of the drawing, before the edit
    edit: Edit = Edit.NONE
    encoding: Encoding = Encoding.JPEG


def picture_bytes(picture: Picture) -> bytes:
    """Draw, edit and encode a picture. The same picture gives the same bytes."""
    image = _edited(render(picture.drawn, side_px=picture.side_px), picture.edit)
    return _encoded(image, picture.encoding)


def png_bytes(ihdr: bytes, rows: bytes) -> bytes:
    """Put a PNG file together from the body of its header chunk and its filtered rows."""
    chunks = ((b"IHDR", ihdr), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _edited(image: Image.Image, edit: Edit) -> Image.Image:
    side_px = image.width
    if edit is Edit.SHRUNK:
        return image.resize((side_px * 5 // 8,) * 2, Image.Resampling.LANCZOS)
    if edit is Edit.ENLARGED:
        return image.resize((side_px * 3 // 2,) * 2, Image.Resampling.BICUBIC)
    if edit is Edit.CROPPED:
        cut_px = max(1, int(side_px * CROP_SHARE))
        return image.crop((cut_px, cut_px, side_px - cut_px, side_px - cut_px))
    if edit is Edit.WATERMARKED:
        return _watermarked(image)
    return ImageOps.mirror(image) if edit is Edit.MIRRORED else image


def _watermarked(image: Image.Image) -> Image.Image:
    mark = Image.new("L", image.size)
    font = ImageFont.load_default(size=max(6.0, image.width * 0.055))
    corner = (image.width * 0.98, image.height * 0.98)
    ImageDraw.Draw(mark).text(corner, _WATERMARK, fill=130, font=font, anchor="rs")
    return Image.composite(Image.new("RGB", image.size, (128, 128, 128)), image, mark)


def _encoded(image: Image.Image, encoding: Encoding) -> bytes:
    if encoding is Encoding.PNG_16_BIT:
        return _png_16_bit(image)
    if encoding is Encoding.ANIMATED_GIF:
        return _animated_gif(image)
    if encoding is Encoding.PALETTE_PNG:
        image = image.quantize(128)
    mode = {Encoding.CMYK_JPEG: "CMYK", Encoding.RGBA_PNG: "RGBA"}.get(encoding, image.mode)
    quality = {Encoding.ROUGH_JPEG: 45, Encoding.PROGRESSIVE_JPEG: 82}.get(encoding, 90)
    buffer = io.BytesIO()
    image.convert(mode).save(
        buffer,
        {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[encoding.suffix],
        quality=quality,
        progressive=encoding is Encoding.PROGRESSIVE_JPEG,
    )
    return buffer.getvalue()


def _animated_gif(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # The first frame is the picture; who shows the last one shows its negative.
    negative = ImageOps.invert(image)
    image.save(buffer, "GIF", save_all=True, append_images=[negative], duration=500)
    return buffer.getvalue()


def _png_16_bit(image: Image.Image) -> bytes:
    """Write 16 bits a channel, which Pillow reads but does not write."""
    samples = np.asarray(image).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png_bytes(struct.pack(">IIBBBBB", image.width, image.height, 16, 2, 0, 0, 0), rows)
