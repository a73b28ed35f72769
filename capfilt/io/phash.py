"""A 64-bit perceptual hash: copies of a picture have hashes that differ in few bits.

It is the DCT hash of Zauner (Implementation and Benchmarking of Perceptual Image Hash Functions,
2010: a 32 x 32 thumbnail, one bit per low frequency of its cosine transform) with two changes.

A bit is set if its coefficient is clearly above zero, not above the median. In a flat picture most
coefficients are zero but for noise, and so is their median: half the bits would be noise.

Colour counts: 44 bits describe luminance and 10 each blue and red difference, so a red ball and a
green ball of the same brightness are told apart.

Everything is computed in integers, so the hash of a thumbnail is the same on every machine.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

THUMBNAIL_PX = 32
"""Side of the picture that is hashed; reduced to it by averaging areas."""

_LUMINANCE_DIAGONALS = range(1, 9)  # 44 frequencies; diagonal 0, the mean, is only exposure
_CHROMA_DIAGONALS = range(0, 4)  # 10 frequencies, the mean among them
_NUM_LUMINANCE = 44
_NUM_CHROMA = 9  # beside the mean
_LUMINANCE_WEIGHTS = (77, 150, 29)  # 256 times the red, green and blue of ITU-R BT.601
_COSINE_SCALE = 2**12
_SHIFT = 28  # brings a wave of one grey level's amplitude to 2**12
_FLAT = 2**12  # a smaller wave is noise
_NOISE_SHARE = 20  # so is one below a 20th of the picture's root mean square


def perceptual_hash(thumbnail: npt.NDArray[np.uint8]) -> int:
    """Hash a thumbnail.

    Args:
        thumbnail: (32, 32, 3) RGB.

    Returns:
        64 bits. Each 16 bits in a row hold low and high frequencies, luminance and colour alike,
        so that none of four bands is the same for many pictures.
    """
    luminance, blue, red = _transform(thumbnail)
    chroma = _frequencies(_CHROMA_DIAGONALS)
    light = luminance[_frequencies(_LUMINANCE_DIAGONALS)]
    colour = np.stack([blue[chroma], red[chroma]])
    # mean(light**2) + mean(colour**2 of blue) + mean(colour**2 of red), over a common denominator
    energy = _NUM_CHROMA * np.sum(light**2) + _NUM_LUMINANCE * np.sum(colour[:, 1:] ** 2)
    values = np.concatenate([light, colour.ravel()])
    is_loud = values**2 * (_NOISE_SHARE**2 * _NUM_LUMINANCE * _NUM_CHROMA) > energy
    bits = (values > _FLAT) & is_loud
    return int.from_bytes(np.packbits(bits.reshape(16, 4).T).tobytes(), "big")


def _transform(thumbnail: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """DCT-II of luminance, blue and red difference: (3, 9, 9), the lowest frequency first."""
    rgb = thumbnail.astype(np.int64)
    luminance = rgb @ np.array(_LUMINANCE_WEIGHTS)
    planes = np.stack([luminance, 256 * rgb[:, :, 2] - luminance, 256 * rgb[:, :, 0] - luminance])
    cosines = _cosines(len(_LUMINANCE_DIAGONALS) + 1)
    transform: npt.NDArray[np.int64] = (cosines @ planes @ cosines.T) >> _SHIFT
    return transform


def _cosines(num_frequencies: int) -> npt.NDArray[np.int64]:
    position = np.arange(THUMBNAIL_PX) * 2 + 1
    frequency = np.arange(num_frequencies)[:, None]
    waves: npt.NDArray[np.float64] = _COSINE_SCALE * np.cos(
        math.pi / (2 * THUMBNAIL_PX) * frequency * position
    )
    waves[0] /= math.sqrt(2)
    cosines: npt.NDArray[np.int64] = np.rint(waves).astype(np.int64)
    return cosines


def _frequencies(diagonals: range) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of the coefficients on the given anti-diagonals of the transform."""
    rows = [row for diagonal in diagonals for row in range(diagonal + 1)]
    columns = [diagonal - row for diagonal in diagonals for row in range(diagonal + 1)]
    return np.array(rows), np.array(columns)
