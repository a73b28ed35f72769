from __future__ import annotations

import functools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from capfilt_blip.augment import (
    BLIP_OPERATIONS,
    Augmentation,
    Operation,
    Plan,
    affine,
    apply,
    augment,
    carry_out,
    draw_plan,
    mirrored_text,
    position_keys,
)
from capfilt_blip.transforms import Window, crop_window, resized_crop

SIDE = 32
KEYS = position_keys(range(6), seed=0)


@pytest.fixture
def pictures() -> Tensor:
    """Six smooth pictures, (6, 32, 32, 3), of values from about 30 to 220."""
    small = np.random.default_rng(0).integers(40, 210, (6, 4, 4, 3), dtype=np.uint8)
    large = [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for one in small]
    return torch.from_numpy(np.stack([np.asarray(one) for one in large]))


def done(image: Tensor, operation: Operation, amount: float = 0.0) -> NDArray[np.uint8]:
    return np.asarray(apply(Image.fromarray(image.numpy()), operation, amount=amount))


def grey(values: list[list[int]]) -> Tensor:
    """A picture whose three channels are these rows."""
    return torch.tensor(values, dtype=torch.uint8)[..., None].expand(-1, -1, 3).contiguous()


def slow_move(image: NDArray[np.uint8], operation: Operation, amount: float) -> NDArray[np.float64]:
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


def test_translation_moves_whole_pixels_and_fills_with_grey(pictures: Tensor) -> None:
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
    pictures: Tensor, operation: Operation, amount: float
) -> None:
    expected = slow_move(pictures[0].numpy(), operation, amount)
    found = done(pictures[0], operation, amount).astype(float)
    assert np.abs(found - expected).max() <= 1  # Pillow cuts off where it rounds


def test_a_quarter_turn_is_counter_clockwise_about_half_a_pixel_off_the_middle() -> None:
    image = grey([[128] * 4] * 4)
    image[1, 3] = 200
    # OpenCV's middle of 4 x 4 is the centre of pixel (2, 2): one up and one right of it goes to
    # one up and one left.
    assert np.argwhere(done(image, "rotate", 90.0)[..., 0] == 200).tolist() == [[1, 1]]


def test_a_shear_leaves_the_first_row_where_it_is(pictures: Tensor) -> None:
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
    plans = [draw_plan(str(key), augmentation=alone, side_px=SIDE) for key in range(20)]
    assert {abs(amount) for plan in plans for _, amount in plan.steps} == {*map(abs, amounts)}
    assert {amount for plan in plans for _, amount in plan.steps} == amounts


@pytest.mark.parametrize(("operation", "outer"), [("brightness", 1.72), ("sharpness", 1.72)])
def test_brightness_and_sharpness_change_at_another_magnitude(
    pictures: Tensor, operation: Operation, outer: float
) -> None:
    alone = Augmentation(operations=(operation,), operation_probability=1.0, magnitude=9.0)
    [_, (_, amount)] = draw_plan("a", augmentation=alone, side_px=SIDE).steps
    assert amount == pytest.approx(outer)  # 0.1 + 9 * 0.18
    assert not np.array_equal(done(pictures[0], operation, amount), pictures[0])


def test_two_of_ten_are_chosen_and_each_is_left_out_by_even_chance() -> None:
    how = Augmentation(magnitude=9.0)  # so that nothing but identity does nothing
    plans = [draw_plan(str(key), augmentation=how, side_px=SIDE) for key in range(4000)]
    counts = Counter(operation for plan in plans for operation, _ in plan.steps)
    assert set(counts) == set(BLIP_OPERATIONS) - {"identity"}
    # 4000 * 2 * 0.5 / 10 = 400 of each, with a standard deviation below 20.
    assert all(abs(count - 400) < 80 for count in counts.values())
    # One and the same may be chosen twice.
    assert any(len(plan.steps) == 2 and len({*plan.steps}) == 1 for plan in plans)


def test_a_batch_split_over_processes_gives_the_same_pictures(pictures: Tensor) -> None:
    together = augment(pictures, keys=KEYS)
    apart = [augment(pictures[part], keys=KEYS[part]) for part in (slice(4), slice(4, 6))]
    assert torch.equal(together, torch.cat(apart))
    back = augment(pictures.flip(0), keys=KEYS[::-1]).flip(0)
    assert torch.equal(together, back)


def test_a_new_position_or_seed_changes_a_picture_otherwise(pictures: Tensor) -> None:
    one = pictures[:1]
    keys = [*position_keys([0, 1], seed=0), *position_keys([0], seed=1)]
    a, b, c = (augment(one, keys=[key]) for key in keys)
    assert not (torch.equal(a, b) or torch.equal(a, c) or torch.equal(a, one))


def test_the_given_images_stay_as_they_are(pictures: Tensor) -> None:
    before = pictures.clone()
    augment(pictures, keys=KEYS, augmentation=Augmentation(flip_probability=0.5))
    assert torch.equal(before, pictures)


def test_nothing_asked_for_is_nothing_done(pictures: Tensor) -> None:
    nothing = Augmentation(min_area=1.0, num_operations=0)
    assert torch.equal(augment(pictures, keys=KEYS, augmentation=nothing), pictures)


def test_every_second_image_is_mirrored_when_asked_for(pictures: Tensor) -> None:
    mirror = Augmentation(min_area=1.0, num_operations=0, flip_probability=0.5)
    many = pictures[:1].expand(400, -1, -1, -1)
    found = augment(many, keys=position_keys(range(400), seed=3), augmentation=mirror)
    mirrored = (found == pictures[:1].flip(2)).all((1, 2, 3))
    assert ((found == pictures[:1]).all((1, 2, 3)) | mirrored).all()
    assert 160 < mirrored.sum() < 240  # four standard deviations of 10


def test_a_crop_comes_before_the_mirror_and_the_operations(pictures: Tensor) -> None:
    window = Window(left_px=3, top_px=5, width_px=20, height_px=24)
    plan = Plan(window=window, mirrored=True, steps=(("translate_x", 5.0), ("equalize", 0.0)))
    expected = resized_crop(pictures[0], window).flip(1)
    moved = torch.from_numpy(done(expected, "translate_x", 5.0).copy())
    assert np.array_equal(carry_out(plan, pictures[0]), done(moved, "equalize"))


def test_other_crops_leave_the_operations_as_they_are() -> None:
    plans = [
        [draw_plan(str(k), augmentation=Augmentation(min_area=a), side_px=SIDE) for k in range(20)]
        for a in (0.2, 0.5, 1.0)
    ]
    assert len({tuple(plan.steps for plan in row) for row in plans}) == 1
    assert all(plan.window is None for plan in plans[2])


def test_each_image_needs_a_key(pictures: Tensor) -> None:
    with pytest.raises(ValueError, match="6 images came with 2 keys; each needs its own"):
        augment(pictures, keys=KEYS[:2])


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
    pictures: Tensor, operation: Operation, side: int
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
    expected = warp(pictures[0].numpy(), borderValue=(128, 128, 128)).astype(int)
    found = done(pictures[0], operation, amount).astype(int)
    assert inside.mean() > 0.8
    # OpenCV rounds coordinates to 1/32 of a pixel; neighbours differ by up to 20 or so here.
    assert np.abs(found - expected)[inside].max() <= 2
    lost = warp(np.full((SIDE, SIDE), 255, np.uint8)) == 0
    assert (found[lost] == 128).all()


def test_a_window_has_the_area_and_the_ratio_that_were_drawn() -> None:
    # Half of the area at 4:3, in the middle: 100 * sqrt(0.5 * 4 / 3) by 100 * sqrt(0.5 * 3 / 4).
    found = crop_window([0.0, 1.0, 0.5, 0.5], side_px=100, min_area=0.5)
    assert found == Window(left_px=9, top_px=20, width_px=82, height_px=61)
    whole = crop_window([1.0, 0.5, 0.5, 0.5], side_px=100, min_area=0.5)
    assert whole == Window(left_px=0, top_px=0, width_px=100, height_px=100)


def test_a_crop_is_that_of_pillow_but_for_rounding(pictures: Tensor) -> None:
    window = Window(left_px=3, top_px=5, width_px=20, height_px=24)
    cut = Image.fromarray(pictures[0].numpy()).crop((3, 5, 23, 29))
    expected = np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
    found = resized_crop(pictures[0], window).numpy().astype(int)
    assert np.abs(found - expected).max() <= 2 and (found == expected).mean() > 0.9
