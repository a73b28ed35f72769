"""Pillow's resizing with SIMD instructions: the same filters, several times as fast.

cykooz_resizer (the extra `fast-decode`) has Pillow's filters in fixed-point numbers of 16 bits; all
its instruction sets give the same bytes. It rounds to 8 bits between the two directions, as Pillow
does, but always scales vertically first. Scaling one direction at a time, in Pillow's order, leaves
a difference of one step of 255 here and there (two on pure noise).
"""

from __future__ import annotations

import cykooz_resizer as simd
import numpy as np
import PIL
from PIL import Image

from capfilt.io.decode_wire import Resampling
from capfilt.io.squares import Size, pillow_resize

_FILTERS = {
    Resampling.LANCZOS: simd.FilterType.lanczos3,
    Resampling.BILINEAR: simd.FilterType.bilinear,
    Resampling.BICUBIC: simd.FilterType.catmull_rom,  # the cubic with a = -0.5, as Pillow's
}
_MAX_DIFFERENCE = 2
"""Of any value, to Pillow's."""


class SimdResize:
    """Scales RGB pictures.

    Raises:
        RuntimeError: it does not give Pillow's pixels. It reads and writes pictures where Pillow
            keeps them, so a Pillow that keeps them otherwise would make it write nonsense.
    """

    def __init__(self) -> None:
        self._resizer = simd.Resizer()
        self._options = {
            resampling: simd.ResizeOptions(simd.ResizeAlg.convolution(name), use_alpha=False)
            for resampling, name in _FILTERS.items()
        }
        for resampling in Resampling:
            self._compare(resampling)

    def __call__(self, picture: Image.Image, size: Size, resampling: Resampling) -> Image.Image:
        """The picture scaled to a size."""
        between = (
            (picture.width, size[1])
            if is_vertical_first(picture.size, size)
            else (size[0], picture.height)
        )
        return self._pass(self._pass(picture, between, resampling), size, resampling)

    def _pass(self, picture: Image.Image, size: Size, resampling: Resampling) -> Image.Image:
        if picture.size == size:
            return picture
        scaled = Image.new("RGB", size)
        self._resizer.resize_pil(picture, scaled, self._options[resampling])
        return scaled

    def _compare(self, resampling: Resampling) -> None:
        y, x = np.mgrid[0:31, 0:53]
        ramps = np.stack([5 * x, 255 - 8 * y, 3 * (x + y)], axis=2).clip(0, 255)
        picture = Image.fromarray(ramps.astype(np.uint8))
        scaled, expected = (
            np.asarray(resize(picture, (24, 40), resampling)).astype(int)
            for resize in (self, pillow_resize)
        )
        if (difference := abs(scaled - expected).max()) > _MAX_DIFFERENCE:
            raise RuntimeError(
                f"cykooz_resizer differs from Pillow {PIL.__version__} by {difference} of 255"
            )


def is_vertical_first(size: Size, new_size: Size) -> bool:
    """Whether Pillow 13 scales a picture vertically before it does horizontally.

    It does if the height loses more than twice the pixels the width loses (found by trying; see
    python-pillow/Pillow pull request 9549). Older ones always begin horizontally; their tall
    pictures differ by up to 30 steps at hard edges.

    Args:
        size: of the picture.
        new_size: what it is scaled to.
    """
    width_lost, height_lost = size[0] - new_size[0], size[1] - new_size[1]
    return height_lost > max(0, 2 * width_lost)
