"""Draw a scene.

Shapes are drawn four times as large and averaged down, so that edges are smooth at any size. Light
and grain come from the scene's seed: a coarse grid of brightness over the whole picture, a little
noise, a few degrees of turn and a slight cast of each colour. Two scenes of the same things but of
different seeds are different pictures; a scene looks alike at every `side_px`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from capfilt.miniature.world import Cell, Scene, Thing

# All lengths are shares of the picture's side. Of 64 px, a large thing takes 20 and a small one 12.
_DIAMETERS = {"small": 0.19, "large": 0.3125}
_JITTERS = {"small": 0.03, "large": 0.003}  # so that things in neighbouring cells never touch
_CENTRES = (0.18, 0.5, 0.82)  # off the edge, so that a crop of 4 % cuts nothing off
_OUTLINE = 0.012
_SUPERSAMPLE = 4

_COLOUR_RGB = {
    "red": (214, 40, 40),
    "orange": (246, 140, 20),
    "yellow": (252, 224, 50),
    "green": (34, 160, 70),
    "blue": (40, 92, 220),
    "purple": (136, 56, 180),
}
_BACKGROUND_RGB = {
    "white": (240, 240, 236),
    "grey": (150, 152, 156),
    "black": (42, 42, 46),
    "pink": (246, 182, 200),
}
_CAST = 10  # largest shift of a colour channel, of 255
_TURN = math.radians(6)
_LIGHT = 26.0  # largest change of brightness by the light
_LIGHT_CELLS = 5
_GRAIN = 7.0

Point = tuple[float, float]


def render(scene: Scene, *, side_px: int) -> Image.Image:
    """Draw a scene as a square RGB picture.

    Args:
        scene: a legal scene.
        side_px: side of the picture; from 48 px the shapes can be told apart.
    """
    picture = Image.new("RGB", (side_px, side_px), _BACKGROUND_RGB[scene.background])
    for thing in scene.things:
        _draw(picture, thing, _rng_at(scene.seed, thing.cell))
    shade = _light(scene.seed, side_px)[:, :, None] + _grain(scene.seed, side_px)
    lit = np.asarray(picture, dtype=np.float32) + shade
    return Image.fromarray(np.clip(lit + 0.5, 0, 255).astype(np.uint8), "RGB")


def _draw(picture: Image.Image, thing: Thing, rng: random.Random) -> None:
    side_px = picture.width
    jitter = _JITTERS[thing.size]
    x = _CENTRES[thing.cell.column] + rng.uniform(-jitter, jitter)
    y = _CENTRES[thing.cell.row] + rng.uniform(-jitter, jitter)
    turn = rng.uniform(-_TURN, _TURN)
    fill = tuple(channel + rng.randint(-_CAST, _CAST) for channel in _COLOUR_RGB[thing.colour])
    radius = _DIAMETERS[thing.size] / 2
    left, top = round((x - 0.2) * side_px), round((y - 0.2) * side_px)
    box_px = math.ceil(0.4 * side_px)
    centre = (x * side_px - left, y * side_px - top)
    edge = tuple(int(0.55 * channel) for channel in fill)
    for colour, shrink in ((edge, 0.0), (fill, _OUTLINE)):
        outline = _outline(thing.kind, radius=radius, shrink=shrink, turn=turn)
        points = [(centre[0] + dx * side_px, centre[1] + dy * side_px) for dx, dy in outline]
        picture.paste(colour, (left, top), _mask(points, box_px))


def _mask(points: Sequence[Point], box_px: int) -> Image.Image:
    large = Image.new("L", (box_px * _SUPERSAMPLE, box_px * _SUPERSAMPLE))
    corners = [(x * _SUPERSAMPLE, y * _SUPERSAMPLE) for x, y in points]
    ImageDraw.Draw(large).polygon(corners, fill=255)
    return large.reduce(_SUPERSAMPLE)


def _outline(kind: str, *, radius: float, shrink: float, turn: float) -> list[Point]:
    """The corners of a shape around (0, 0), turned, and made smaller by `shrink` on each side."""
    # A shape's sides come in by less than its corners: a star's corners by about three times.
    reach = {"circle": 1.0, "square": 1.0, "triangle": 1.8, "star": 2.2, "cross": 1.0}[kind]
    scale = radius - shrink * reach
    if kind == "cross":
        arm = 0.36 * radius - shrink
        shape = [
            (arm, arm),
            (arm, scale),
            (-arm, scale),
            (-arm, arm),
            (-scale, arm),
            (-scale, -arm),
        ]
        shape += [(-x, -y) for x, y in shape]
    elif kind == "square":
        side = 0.92 * radius - shrink
        shape = [(side, side), (-side, side), (-side, -side), (side, -side)]
    else:
        shape = [(scale * x, scale * y) for x, y in _round_shape(kind)]
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in shape]


def _round_shape(kind: str) -> list[Point]:
    """The corners of a circle, triangle or star of radius 1, the first one at the top."""
    num_corners, inner = {"circle": (48, 1.0), "triangle": (3, 1.0), "star": (10, 0.45)}[kind]
    turns = [2 * math.pi * i / num_corners for i in range(num_corners)]
    radii = [inner if i % 2 else 1.0 for i in range(num_corners)]
    return [(r * math.sin(a), -r * math.cos(a)) for a, r in zip(turns, radii, strict=True)]


def _rng_at(seed: int, cell: Cell) -> random.Random:
    return random.Random(f"thing/{seed}/{cell.row}/{cell.column}")


def _light(seed: int, side_px: int) -> npt.NDArray[np.float32]:
    """(side, side) brightness change, smooth over the picture."""
    coarse = np.random.Generator(np.random.PCG64([seed, 0])).random((_LIGHT_CELLS, _LIGHT_CELLS))
    image = Image.fromarray(((coarse * 2 - 1) * _LIGHT).astype(np.float32), "F")
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BICUBIC))


def _grain(seed: int, side_px: int) -> npt.NDArray[np.float32]:
    """(side, side, 3) noise, independent for each pixel and channel."""
    noise = np.random.Generator(np.random.PCG64([seed, 1])).random((side_px, side_px, 3))
    return ((noise * 2 - 1) * _GRAIN).astype(np.float32)
