from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from capfilt_blip.augment import Augmentation, Plan, Window, augment, draw_plan, position_keys
from capfilt_blip.box_augment import UPRIGHT_OPERATIONS, augment_located, fitted
from capfilt_blip.train.grounding import GroundingBatch

SIDE = 40
TILTING = Augmentation(min_area=0.3, flip_probability=0.5, operation_probability=1.0)
NUM_IMAGES = 60


def white_boxes() -> tuple[Tensor, Tensor]:
    """Black images with a white box each, and the boxes as fractions."""
    rng = np.random.default_rng(0)
    images = torch.zeros(NUM_IMAGES, SIDE, SIDE, 3, dtype=torch.uint8)
    boxes = []
    for image in images:
        left, top = (int(at) for at in rng.integers(0, SIDE - 14, 2))
        width, height = (int(size) for size in rng.integers(8, 14, 2))
        image[top : top + height, left : left + width] = 255
        boxes.append([left / SIDE, top / SIDE, (left + width) / SIDE, (top + height) / SIDE])
    return images, torch.tensor(boxes)


def seen_box(image: Tensor) -> list[float]:
    """Where an image is white, as fractions; the grey that comes into view is darker."""
    rows, columns = torch.nonzero(image[..., 0] > 190, as_tuple=True)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return [float(edge) / SIDE for edge in edges]


@pytest.mark.parametrize(
    ("augmentation", "tolerance_px"),
    [
        (Augmentation(min_area=0.3, flip_probability=0.5, num_operations=0), 1.0),
        (Augmentation(operations=("translate_x", "translate_y"), operation_probability=1.0), 1.0),
        # One alone, for a box around a box is too large. Corners are thin: where one is turned up,
        # a pixel holds too little of it to be white.
        (
            Augmentation(
                operations=("rotate", "shear_x", "shear_y"), num_operations=1, min_area=0.9
            ),
            2.0,
        ),
    ],
)
def test_a_box_lies_where_its_pixels_lie(augmentation: Augmentation, tolerance_px: float) -> None:
    images, boxes = white_boxes()
    keys = position_keys(range(NUM_IMAGES), seed=0)
    found = augment_located(
        images, ["a box"] * NUM_IMAGES, boxes, keys=keys, augmentation=augmentation
    )
    seen = torch.tensor([seen_box(image) for image in found.images])
    differences = (found.boxes - seen).abs() * SIDE
    scale = 1 / augmentation.min_area**0.5 * (4 / 3) ** 0.5  # a crop enlarges half a pixel, too
    assert differences.max() <= tolerance_px * scale
    assert (found.boxes != boxes).any(1).float().mean() > 0.5


def plan_of(key: str, augmentation: Augmentation) -> Plan:
    return draw_plan(key, augmentation=augmentation, width_px=SIDE, height_px=SIDE)


def test_boxes_stay_boxes_that_training_takes() -> None:
    images, boxes = white_boxes()
    keys = position_keys(range(NUM_IMAGES), seed=1)
    found = augment_located(images, ["a"] * NUM_IMAGES, boxes, keys=keys, augmentation=TILTING)
    GroundingBatch(images=found.images, phrases=found.phrases, boxes=found.boxes)


def test_a_crop_grows_until_it_holds_the_box() -> None:
    window = Window(left_px=10, top_px=10, width_px=20, height_px=20)
    drawn = Plan(window=window, mirrored=False, steps=())
    plan, box = fitted(drawn, (0.125, 0.5, 0.5, 0.9), side_px=SIDE)  # 5, 20, 20, 36 px
    assert plan.window == Window(left_px=5, top_px=10, width_px=25, height_px=26)
    assert box == pytest.approx((0, 10 / 26, 15 / 25, 1))


def test_a_mirrored_box_changes_sides() -> None:
    drawn = Plan(window=None, mirrored=True, steps=())
    _, box = fitted(drawn, (0.1, 0.2, 0.4, 0.6), side_px=SIDE)
    assert box == pytest.approx((0.6, 0.2, 0.9, 0.6))


def test_a_move_that_hides_most_of_a_box_is_left_out() -> None:
    drawn = Plan(window=None, mirrored=False, steps=(("translate_x", -5.0), ("equalize", 0.0)))
    plan, box = fitted(drawn, (0.0, 0.0, 8 / SIDE, 0.5), side_px=SIDE)  # 3 of 8 px would stay
    assert plan.steps == (("equalize", 0.0),) and box == pytest.approx((0, 0, 0.2, 0.5))
    plan, box = fitted(drawn, (0.0, 0.0, 10 / SIDE, 0.5), side_px=SIDE)  # 5 of 10 px stay
    assert plan.steps == drawn.steps and box == pytest.approx((0, 0, 0.125, 0.5))


def test_a_turned_box_is_the_upright_one_around_it() -> None:
    drawn = Plan(window=None, mirrored=False, steps=(("rotate", 90.0),))
    # About (20.5, 20.5) px, counter-clockwise: (x, y) goes to (y, 41 - x).
    _, box = fitted(drawn, (10 / 40, 12 / 40, 30 / 40, 16 / 40), side_px=SIDE)
    assert box == pytest.approx((12 / 40, 11 / 40, 16 / 40, 31 / 40))


def test_left_and_right_are_told_of_the_mirror_image_where_there_is_one() -> None:
    images, boxes = white_boxes()
    mirror = Augmentation(min_area=1.0, num_operations=0, flip_probability=0.5)
    keys = position_keys(range(NUM_IMAGES), seed=2)
    found = augment_located(
        images, ["the left box"] * NUM_IMAGES, boxes, keys=keys, augmentation=mirror
    )
    mirrored = [not torch.equal(a, b) for a, b in zip(images, found.images, strict=True)]
    told = [phrase == "the right box" for phrase in found.phrases]
    assert told == mirrored and 10 < sum(told) < 50


def test_nothing_is_mirrored_or_tilted_unless_asked_for() -> None:
    plans = [plan_of(str(key), Augmentation(operations=UPRIGHT_OPERATIONS)) for key in range(200)]
    assert not any(plan.mirrored for plan in plans)
    assert {step for plan in plans for step, _ in plan.steps} == {
        "auto_contrast", "equalize", "translate_x", "translate_y"
    }  # fmt: skip
    images, boxes = white_boxes()
    keys = position_keys(range(NUM_IMAGES), seed=0)
    found = augment_located(images, ["a left box"] * NUM_IMAGES, boxes, keys=keys)
    assert found.phrases == ["a left box"] * NUM_IMAGES


def test_whole_images_in_sight_change_as_without_boxes() -> None:
    images, _ = white_boxes()
    keys = position_keys(range(NUM_IMAGES), seed=4)
    tiny = torch.tensor([[0.49, 0.49, 0.51, 0.51]]).expand(NUM_IMAGES, 4)
    only_crops = Augmentation(min_area=0.9, num_operations=0)
    found = augment_located(images, ["a"] * NUM_IMAGES, tiny, keys=keys, augmentation=only_crops)
    pictures = [Image.fromarray(image.numpy()) for image in images]
    alone = augment(pictures, side_px=SIDE, keys=keys, augmentation=only_crops)
    assert np.array_equal(found.images, alone)
