from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from capfilt_blip.augment import (
    Augmentation,
    Plan,
    Window,
    augment,
    carry_out,
    crop_window,
    draw_plan,
    mirrored_text,
    position_keys,
)
from capfilt_blip.operations import BLIP_OPERATIONS, Operation, affine, apply

SIDE = 32
KEYS = position_keys(range(6), seed=0)


Pixels = NDArray[np.uint8]
SQUARE = {"width_px": SIDE, "height_px": SIDE}


@pytest.fixture
def pictures() -> Pixels:
    """Six smooth pictures, (6, 32, 32, 3), of values from about 30 to 220."""
    small = np.random.default_rng(0).integers(40, 210, (6, 4, 4, 3), dtype=np.uint8)
    large = [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for one in small]
    return np.stack([np.asarray(one) for one in large])


def done(image: Pixels, operation: Operation, amount: float = 0.0) -> Pixels:
    return np.asarray(apply(Image.fromarray(image), operation, amount=amount))


def augmented(images: Pixels, keys: Sequence[str], how: Augmentation | None = None) -> Pixels:
    return augment(
        [Image.fromarray(one) for one in images], side_px=SIDE, keys=keys, augmentation=how
    )


def grey(values: list[list[int]]) -> Pixels:
    """A picture whose three channels are these rows."""
    return np.repeat(np.array(values, dtype=np.uint8)[..., None], 3, axis=2)


def slow_move(image: Pixels, operation: Operation, amount: float) -> NDArray[np.float64]:
    """Each pixel is mixed of the four around the place it comes from, 128 where there is none."""
    side = len(image)
    a, b, c, d, e, f = affine(operation, amount=-amount, side_px=side) or (0,) * 6
    out = np.full(image.shape, 128.0)
    for row in range(side):
        for column in range(side):
            x, y = column + 0.5, row + 0.5
            from_x, from_y = a * x + b * y + c, d * x + e * y + f
            if not (0 <= from_x < side and 0 <= from_y < side):
                continue
            left, top = math.floor(from_x - 0.5), math.floor(from_y - 0.5)
            right_share, low_share = from_x - 0.5 - left, from_y - 0.5 - top
            columns = np.clip([left, left + 1], 0, side - 1)
            rows = np.clip([top, top + 1], 0, side - 1)
            weights = np.outer([1 - low_share, low_share], [1 - right_share, right_share])
            around = image[np.ix_(rows, columns)].astype(float)
            out[row, column] = (weights[..., None] * around).sum((0, 1))
    return out


def test_auto_contrast_stretches_each_channel_to_the_whole_range() -> None:
    image = grey([[50, 101], [75, 60]])
    image[..., 2] = 7  # nothing to stretch
    # (value - 50) * 255 / 51.
    expected = [[0, 255], [125, 50]]
    found = done(image, "auto_contrast")
    assert found[..., 0].tolist() == found[..., 1].tolist() == expected
    assert (found[..., 2] == 7).all()


def test_equalize_gives_each_value_its_rank() -> None:
    # 1024 pixels, 256 each of four values: the step is (1024 - 256) // 255 = 3; a value goes to
    # (3 // 2 + number of pixels below it) // 3.
    image = grey([[10] * 32] * 8 + [[20] * 32] * 8 + [[30] * 32] * 8 + [[40] * 32] * 8)
    assert done(image, "equalize")[::8, 0, 0].tolist() == [0, 257 // 3, 513 // 3, 255]


def test_translation_moves_whole_pixels_and_fills_with_grey(pictures: Pixels) -> None:
    found = done(pictures[0], "translate_x", 5.0)
    assert np.array_equal(found[:, 5:], pictures[0, :, :-5])
    assert (found[:, :5] == 128).all()
    found = done(pictures[0], "translate_y", -5.0)
    assert np.array_equal(found[:-5], pictures[0, 5:])
    assert (found[-5:] == 128).all()


@pytest.mark.parametrize(
    ("operation", "amount"),
    [
        ("rotate", 15.0), ("rotate", -15.0), ("shear_x", 0.15), ("shear_x", -0.15),
        ("shear_y", 0.15), ("translate_x", 2.5), ("translate_y", -5.0),
    ],
)  # fmt: skip
def test_a_move_is_that_of_a_slow_version(
    pictures: Pixels, operation: Operation, amount: float
) -> None:
    expected = slow_move(pictures[0], operation, amount)
    found = done(pictures[0], operation, amount).astype(float)
    assert np.abs(found - expected).max() <= 1  # Pillow cuts off where it rounds


def test_a_quarter_turn_is_counter_clockwise_about_half_a_pixel_off_the_middle() -> None:
    image = grey([[128] * 4] * 4)
    image[1, 3] = 200
    # OpenCV's middle of 4 x 4 is the centre of pixel (2, 2): one up and one right of it goes to
    # one up and one left.
    assert np.argwhere(done(image, "rotate", 90.0)[..., 0] == 200).tolist() == [[1, 1]]


def test_a_shear_leaves_the_first_row_where_it_is(pictures: Pixels) -> None:
    found = done(pictures[0], "shear_x", 0.5)
    assert np.array_equal(found[0], pictures[0, 0])
    assert np.array_equal(found[4, 2:], pictures[0, 4, :-2])  # 4 rows down: 4 * 0.5 to the right
    found = done(pictures[0], "shear_y", -0.5)
    assert np.array_equal(found[:, 0], pictures[0, :, 0])
    assert np.array_equal(found[:-2, 4], pictures[0, 2:, 4])


@pytest.mark.parametrize(
    ("operation", "amounts"),
    [
        ("rotate", {15.0, -15.0}), ("shear_x", {0.15, -0.15}), ("shear_y", {0.15, -0.15}),
        ("translate_x", {5.0, -5.0}), ("translate_y", {5.0, -5.0}),
        ("auto_contrast", {0.0}), ("equalize", {0.0}),
        ("identity", set()), ("brightness", set()), ("sharpness", set()),
    ],
)  # fmt: skip
def test_magnitude_5_is_that_of_blip(operation: Operation, amounts: set[float]) -> None:
    alone = Augmentation(operations=(operation,), operation_probability=1.0)
    plans = [draw_plan(str(key), augmentation=alone, **SQUARE) for key in range(20)]
    assert {abs(amount) for plan in plans for _, amount in plan.steps} == {*map(abs, amounts)}
    assert {amount for plan in plans for _, amount in plan.steps} == amounts


@pytest.mark.parametrize(("operation", "outer"), [("brightness", 1.72), ("sharpness", 1.72)])
def test_brightness_and_sharpness_change_at_another_magnitude(
    pictures: Pixels, operation: Operation, outer: float
) -> None:
    alone = Augmentation(operations=(operation,), operation_probability=1.0, magnitude=9.0)
    [_, (_, amount)] = draw_plan("a", augmentation=alone, **SQUARE).steps
    assert amount == pytest.approx(outer)  # 0.1 + 9 * 0.18
    assert not np.array_equal(done(pictures[0], operation, amount), pictures[0])


def test_two_of_ten_are_chosen_and_each_is_left_out_by_even_chance() -> None:
    how = Augmentation(magnitude=9.0)  # so that nothing but identity does nothing
    plans = [draw_plan(str(key), augmentation=how, **SQUARE) for key in range(4000)]
    counts = Counter(operation for plan in plans for operation, _ in plan.steps)
    assert set(counts) == set(BLIP_OPERATIONS) - {"identity"}
    # 4000 * 2 * 0.5 / 10 = 400 of each, with a standard deviation below 20.
    assert all(abs(count - 400) < 80 for count in counts.values())
    # One and the same may be chosen twice.
    assert any(len(plan.steps) == 2 and len({*plan.steps}) == 1 for plan in plans)


def test_a_batch_split_over_processes_gives_the_same_pictures(pictures: Pixels) -> None:
    together = augmented(pictures, KEYS)
    apart = [augmented(pictures[part], KEYS[part]) for part in (slice(4), slice(4, 6))]
    assert np.array_equal(together, np.concatenate(apart))
    assert np.array_equal(together, augmented(pictures[::-1], KEYS[::-1])[::-1])


def test_a_new_position_or_seed_changes_a_picture_otherwise(pictures: Pixels) -> None:
    one = pictures[:1]
    keys = [*position_keys([0, 1], seed=0), *position_keys([0], seed=1)]
    found = {augmented(one, [key]).tobytes() for key in keys}
    assert len(found | {one.tobytes()}) == 4


def test_the_given_pictures_stay_as_they_are(pictures: Pixels) -> None:
    given = [Image.fromarray(one) for one in pictures]
    augment(given, side_px=SIDE, keys=KEYS, augmentation=Augmentation(flip_probability=0.5))
    assert all(np.array_equal(a, b) for a, b in zip(given, pictures, strict=True))


def test_nothing_asked_for_is_a_squash(pictures: Pixels) -> None:
    nothing = Augmentation(min_area=1.0, num_operations=0)
    assert np.array_equal(augmented(pictures, KEYS, nothing), pictures)
    wide = Image.fromarray(pictures[0]).crop((0, 4, 32, 20))
    expected = wide.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    [found] = augment([wide], side_px=SIDE, keys=["a"], augmentation=nothing)
    assert np.array_equal(found, expected)


def test_every_second_image_is_mirrored_when_asked_for(pictures: Pixels) -> None:
    mirror = Augmentation(min_area=1.0, num_operations=0, flip_probability=0.5)
    many = np.repeat(pictures[:1], 400, axis=0)
    found = augmented(many, position_keys(range(400), seed=3), mirror)
    mirrored = (found == pictures[:1, :, ::-1]).all((1, 2, 3))
    assert ((found == pictures[:1]).all((1, 2, 3)) | mirrored).all()
    assert 160 < mirrored.sum() < 240  # four standard deviations of 10


def test_a_crop_of_the_whole_picture_comes_before_scaling_mirror_and_operations() -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    window = Window(left_px=30, top_px=5, width_px=50, height_px=40)
    plan = Plan(window=window, mirrored=True, steps=(("translate_x", 5.0), ("equalize", 0.0)))
    cut = np.asarray(wide)[5:45, 30:80]
    scaled = Image.fromarray(cut).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    moved = done(np.asarray(scaled)[:, ::-1].copy(), "translate_x", 5.0)
    assert np.array_equal(carry_out(plan, wide, side_px=SIDE), done(moved, "equalize"))


def test_other_crops_leave_the_operations_as_they_are() -> None:
    plans = [
        [
            draw_plan(str(k), augmentation=Augmentation(min_area=a), width_px=w, height_px=SIDE)
            for k in range(20)
        ]
        for a, w in ((0.2, SIDE), (0.5, 9 * SIDE), (1.0, SIDE))
    ]
    assert len({tuple(plan.steps for plan in row) for row in plans}) == 1
    assert all(plan.window is None for plan in plans[2])


def test_each_image_needs_a_key(pictures: Pixels) -> None:
    with pytest.raises(ValueError, match="6 images came with 2 keys; each needs its own"):
        augmented(pictures, KEYS[:2])


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the man left of the dog", "the man right of the dog"),
        ("Left, then right-hand side", "right, then left-hand side"),
        ("leftover brightness", "leftover brightness"),
    ],
)
def test_left_and_right_change_places(text: str, mirrored: str) -> None:
    assert mirrored_text(text) == mirrored


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("operation", ["rotate", "shear_x", "shear_y", "translate_x"])
def test_moves_are_those_of_opencv_at_blips_coordinates(
    pictures: Pixels, operation: Operation, side: int
) -> None:
    cv2 = pytest.importorskip("cv2")
    # The matrices that BLIP hands to OpenCV, which counts from the middle of the first pixel.
    matrix = {
        "rotate": cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), 15 * side, 1),
        "shear_x": np.array([[1, 0.15 * side, 0], [0, 1, 0]]),
        "shear_y": np.array([[1, 0, 0], [0.15 * side, 1, 0]]),
        "translate_x": np.array([[1.0, 0, 5 * side], [0, 1, 0]]),
    }[operation]
    amount = {"rotate": 15.0, "translate_x": 5.0}.get(operation, 0.15) * side
    warp = functools.partial(cv2.warpAffine, M=matrix, dsize=(SIDE, SIDE))
    inside = warp(np.full((SIDE, SIDE), 255, np.uint8)) == 255  # no part of the border in it
    expected = warp(pictures[0], borderValue=(128, 128, 128)).astype(int)
    found = done(pictures[0], operation, amount).astype(int)
    assert inside.mean() > 0.8
    # OpenCV rounds coordinates to 1/32 of a pixel; neighbours differ by up to 20 or so here.
    assert np.abs(found - expected)[inside].max() <= 2
    lost = warp(np.full((SIDE, SIDE), 255, np.uint8)) == 0
    assert (found[lost] == 128).all()


def window_of(draws: Sequence[float], width_px: int, height_px: int, *, min_area: float) -> Window:
    return crop_window(iter(draws), width_px=width_px, height_px=height_px, min_area=min_area)


def test_a_window_has_the_area_and_the_ratio_that_were_drawn() -> None:
    # Half of the area at 4:3, in the middle: 100 * sqrt(0.5 * 4 / 3) by 100 * sqrt(0.5 * 3 / 4).
    found = window_of([0.0, 1.0, 0.5, 0.5], 100, 100, min_area=0.5)
    assert found == Window(left_px=9, top_px=20, width_px=82, height_px=61)
    whole = window_of([1.0, 0.5, 0.5, 0.5], 100, 100, min_area=0.5)
    assert whole == Window(left_px=0, top_px=0, width_px=100, height_px=100)
    # A quarter of 400 x 100 px at 1:1 is a square of 100, at the right end.
    wide = window_of([0.0, 0.5, 0.999, 0.0], 400, 100, min_area=0.25)
    assert wide == Window(left_px=300, top_px=0, width_px=100, height_px=100)


def test_a_window_that_does_not_fit_is_drawn_again() -> None:
    # All of 400 x 100 px at 1:1 would be 200 high; then a quarter of it.
    found = window_of([1.0, 0.5, 0.0, 0.5, 0.0, 0.0], 400, 100, min_area=0.25)
    assert found == Window(left_px=0, top_px=0, width_px=100, height_px=100)


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((400, 100), Window(left_px=133, top_px=0, width_px=133, height_px=100)),
        ((100, 400), Window(left_px=0, top_px=133, width_px=100, height_px=133)),
        ((1000, 1), Window(left_px=499, top_px=0, width_px=1, height_px=1)),
    ],
)
def test_after_ten_windows_that_do_not_fit_the_middle_is_taken(
    size: tuple[int, int], window: Window
) -> None:
    assert window_of([1.0, 0.5] * 10, *size, min_area=0.25) == window


def test_crops_lie_in_pictures_of_any_shape_and_have_the_area_asked_for() -> None:
    rng = np.random.default_rng(0)
    for key in range(300):
        width, height = (int(side) for side in rng.integers(100, 300, 2))
        how = Augmentation(min_area=0.2)
        plan = draw_plan(str(key), augmentation=how, width_px=width, height_px=height)
        assert plan.window is not None
        left, top, right, bottom = plan.window.edges
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left) * (bottom - top) > 0.19 * width * height
        assert 0.73 < (right - left) / (bottom - top) < 1.37
