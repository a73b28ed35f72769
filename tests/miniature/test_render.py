import random

import numpy as np
import pytest

from capfilt.miniature.render import render
from capfilt.miniature.world import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    Cell,
    Scene,
    Thing,
    sample_scene,
    scene_of,
)


def one_thing(
    *, size: str = "large", colour: str = "red", kind: str = "square", background: str = "white",
    row: int = 1, column: int = 1, seed: int = 0,
) -> Scene:  # fmt: skip
    thing = Thing(size=size, colour=colour, kind=kind, cell=Cell(row=row, column=column))
    return scene_of(background=background, things=(thing,), seed=seed)


def pixels(scene: Scene, *, side_px: int = 64) -> np.ndarray:
    return np.asarray(render(scene, side_px=side_px)).astype(int)


def shape_box(scene: Scene) -> tuple[int, int, int, int]:
    """First and last row and column of the dark or saturated pixels, at 64 px."""
    rgb = pixels(scene)
    ys, xs = np.nonzero(rgb.max(axis=2) - rgb.min(axis=2) > 60)
    return ys.min(), ys.max(), xs.min(), xs.max()


def test_the_same_scene_gives_the_same_pixels():
    scene = sample_scene(random.Random(0))
    assert (pixels(scene) == pixels(scene)).all()


def test_another_seed_is_another_picture():
    assert (pixels(one_thing(seed=0)) != pixels(one_thing(seed=1))).mean() > 0.5


@pytest.mark.parametrize("side_px", [48, 64, 97, 256])
def test_the_picture_has_the_side_asked_for(side_px):
    picture = render(one_thing(), side_px=side_px)
    assert (picture.size, picture.mode) == ((side_px, side_px), "RGB")


@pytest.mark.parametrize(("size", "least_px", "most_px"), [("small", 10, 15), ("large", 18, 24)])
@pytest.mark.parametrize("kind", ["circle", "square", "cross"])
def test_small_and_large_are_well_apart(size, kind, least_px, most_px):
    top, bottom, left, right = shape_box(one_thing(size=size, kind=kind))
    assert least_px <= bottom - top + 1 <= most_px
    assert least_px <= right - left + 1 <= most_px


@pytest.mark.parametrize(("index", "share"), [(0, 0.18), (1, 0.5), (2, 0.82)])
def test_a_thing_stands_in_its_row_and_column(index, share):
    top, bottom, left, right = shape_box(one_thing(row=index, column=2 - index, size="small"))
    assert abs((top + bottom) / 2 / 64 - share) < 0.06
    assert abs((left + right) / 2 / 64 - (1 - share)) < 0.06


def test_large_things_stay_off_the_edge_by_more_than_a_crop_takes():
    for seed in range(10):
        top, _, left, _ = shape_box(one_thing(row=0, column=0, kind="circle", seed=seed))
        assert min(top, left) >= 64 * 0.02 - 0.5


def test_every_colour_is_far_from_the_others_and_from_the_backgrounds():
    centres = [pixels(one_thing(colour=colour))[28:36, 28:36].mean((0, 1)) for colour in COLOURS]
    grounds = [pixels(one_thing(background=ground))[:8].mean((0, 1)) for ground in BACKGROUNDS]
    for i, one in enumerate(centres + grounds):
        for other in (centres + grounds)[:i]:
            assert np.abs(one - other).max() > 45


def test_every_two_kinds_differ_in_a_seventh_of_what_they_cover():
    def covered(kind: str) -> np.ndarray:
        rgb = pixels(one_thing(kind=kind), side_px=64)
        return rgb.max(axis=2) - rgb.min(axis=2) > 60

    shapes = [covered(kind) for kind in KINDS]
    for i, one in enumerate(shapes):
        for other in shapes[:i]:
            assert (one ^ other).sum() > (one | other).sum() / 7  # circle and square are closest
