"""Training images changed at random together with the boxes in them, for visual grounding.

As `augment`, but what a phrase means must stay in sight: a crop grows until it holds the box, and
an operation that would push most of the box out of the image is left out. Where an image is
mirrored, "left" and "right" change places in its phrase.

Letters: B batch, S image side in pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from capfilt_blip.augment import (
    Augmentation,
    Plan,
    Window,
    carry_out,
    check_keys,
    draw_plan,
    mirrored_text,
)
from capfilt_blip.operations import Affine, Operation, affine

UPRIGHT_OPERATIONS: tuple[Operation, ...] = (
    "identity",
    "auto_contrast",
    "brightness",
    "sharpness",
    "equalize",
    "translate_x",
    "translate_y",
)
"""BLIP's without rotation and shear: the upright box around a turned one is larger than what it
holds, at 15 degrees by half of the area of a square."""

MIN_VISIBLE = 0.5
"""Smallest part of a box's area that an operation must leave in the image, in (0, 1]."""

_Box: TypeAlias = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """B changed images, what they show, and where."""

    images: Tensor  # (B, S, S, 3) uint8
    phrases: list[str]
    boxes: Tensor  # (B, 4) float32 in [0, 1], x_min, y_min, x_max, y_max


def augment_located(
    images: Tensor,
    phrases: Sequence[str],
    boxes: Tensor,
    *,
    keys: Sequence[str],
    augmentation: Augmentation | None = None,
) -> Located:
    """Change each image as its key says, and its box and phrase with it.

    Args:
        images: (B, S, S, 3) uint8, on the CPU; not changed.
        phrases: B phrases; they change only where the image is mirrored.
        boxes: (B, 4) float: x_min, y_min, x_max, y_max as fractions of the image's sides.
        keys: B names, as of `augment`.
        augmentation: how much; None takes the defaults with UPRIGHT_OPERATIONS. With operations
            that tilt, a box becomes the upright one around the tilted one.

    Raises:
        ValueError: there are not as many keys as images.
    """
    check_keys(keys, images)
    chosen = augmentation or Augmentation(operations=UPRIGHT_OPERATIONS)
    side = images.shape[1]
    rows = []
    for image, phrase, box, key in zip(images, phrases, boxes.tolist(), keys, strict=True):
        drawn = draw_plan(key, augmentation=chosen, width_px=side, height_px=side)
        plan, moved = fitted(drawn, (box[0], box[1], box[2], box[3]), side_px=side)
        said = mirrored_text(phrase) if plan.mirrored else phrase
        changed = carry_out(plan, Image.fromarray(image.numpy()), side_px=side)
        rows.append((torch.from_numpy(np.array(changed)), said, moved))
    return Located(
        images=torch.stack([image for image, _, _ in rows]),
        phrases=[phrase for _, phrase, _ in rows],
        boxes=torch.tensor([box for _, _, box in rows], dtype=torch.float32),
    )


def fitted(plan: Plan, box: _Box, *, side_px: int) -> tuple[Plan, _Box]:
    """Change a plan so that a box stays in sight, and follow the box through it.

    Args:
        plan: drawn without regard to the box.
        box: as fractions of the image's sides.
        side_px: S.

    Returns:
        The plan with a window that holds the box and without the steps that would push it out; and
        the box after it, as fractions, cut off at the edges.
    """
    box = _times(box, side_px)
    window = plan.window and _grown(plan.window, box)
    if window is not None:
        box = _cut(_cropped(box, window, side_px=side_px), side_px=side_px)
    if plan.mirrored:
        box = (side_px - box[2], box[1], side_px - box[0], box[3])
    kept = []
    for operation, amount in plan.steps:
        path = affine(operation, amount=amount, side_px=side_px)
        moved = box if path is None else _through(path, box)
        inside = _cut(moved, side_px=side_px)
        if _area(inside) >= MIN_VISIBLE * _area(moved):
            box = inside
            kept.append((operation, amount))
    fitting = dataclasses.replace(plan, window=window, steps=tuple(kept))
    return fitting, _times(box, 1 / side_px)


def _grown(window: Window, box: _Box) -> Window:
    """Give the smallest window that holds a window and a box, (4,) in pixels."""
    left = min(window.left_px, math.floor(box[0]))
    top = min(window.top_px, math.floor(box[1]))
    right = max(window.left_px + window.width_px, math.ceil(box[2]))
    bottom = max(window.top_px + window.height_px, math.ceil(box[3]))
    return Window(left_px=left, top_px=top, width_px=right - left, height_px=bottom - top)


def _cropped(box: _Box, window: Window, *, side_px: int) -> _Box:
    across, down = side_px / window.width_px, side_px / window.height_px
    return (
        (box[0] - window.left_px) * across,
        (box[1] - window.top_px) * down,
        (box[2] - window.left_px) * across,
        (box[3] - window.top_px) * down,
    )


def _through(path: Affine, box: _Box) -> _Box:
    """Give the upright box around where a box's corners go."""
    a, b, c, d, e, f = path
    corners = [(x, y) for x in box[::2] for y in box[1::2]]
    xs = [a * x + b * y + c for x, y in corners]
    ys = [d * x + e * y + f for x, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _cut(box: _Box, *, side_px: int) -> _Box:
    low_x, low_y, high_x, high_y = (min(max(edge, 0.0), float(side_px)) for edge in box)
    return low_x, low_y, high_x, high_y


def _area(box: _Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _times(box: _Box, factor: float) -> _Box:
    return box[0] * factor, box[1] * factor, box[2] * factor, box[3] * factor
