"""Training augmentation on one core: capfilt_blip.augment against the same done by Pillow alone.

    python benchmarks/augmentation.py [--side 224] [--seconds 10]

Both sides carry out the same plans on the same photograph-like pictures, by turns. Time is CPU time
of the one thread, so that neighbours cost little. The seconds are those of both sides together.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from capfilt_blip.augment import (
    BLIP_OPERATIONS,
    Augmentation,
    Plan,
    affine,
    apply,
    augment,
    draw_plan,
    position_keys,
)

BATCH = 32
PRETRAINING = Augmentation(min_area=0.2, flip_probability=0.5)
FINETUNING = Augmentation(min_area=0.5, flip_probability=0.5)
CROPS_ALONE = Augmentation(min_area=0.2, num_operations=0)


def pictures(side_px: int) -> Tensor:
    """Random pictures, (BATCH, S, S, 3) uint8, smooth and with noise."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(BATCH):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        large = np.asarray(small.resize((side_px, side_px), Image.Resampling.BICUBIC), np.int16)
        rows.append((large + rng.integers(-8, 9, large.shape)).clip(0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(rows))


def by_pillow(plan: Plan, picture: Image.Image) -> Image.Image:
    """Carry a plan out as one would with Pillow: crop, resize, mirror, and its operations."""
    size = picture.size
    if plan.window is not None:
        left, top = plan.window.left_px, plan.window.top_px
        right, bottom = left + plan.window.width_px, top + plan.window.height_px
        picture = picture.crop((left, top, right, bottom)).resize(size, Image.Resampling.BICUBIC)
    if plan.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for operation, amount in plan.steps:
        source = affine(operation, amount=-amount, side_px=size[0])
        if source is None:
            picture = apply(picture, operation, amount=amount)
        else:
            picture = picture.transform(
                size, Image.Transform.AFFINE, source, Image.Resampling.BILINEAR,
                fillcolor=(128, 128, 128),
            )  # fmt: skip
    return picture


def pillow_batch(images: Tensor, *, keys: Sequence[str], augmentation: Augmentation) -> Tensor:
    """Do what `augment` does, with Pillow alone."""
    side = images.shape[1]
    rows = [
        np.asarray(
            by_pillow(
                draw_plan(key, augmentation=augmentation, side_px=side),
                Image.fromarray(image.numpy()),
            )
        )
        for image, key in zip(images, keys, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))


def by_turns(sides: Sequence[Callable[..., Tensor]], *, seconds: float) -> list[float]:
    """Images per second of each side, called with keys: by the median CPU time of a batch."""
    times: list[list[float]] = [[] for _ in sides]
    position, until = 0, time.thread_time() + seconds
    while time.thread_time() < until:
        keys = position_keys(range(position, position + BATCH), seed=0)
        position += BATCH
        for side, spent in zip(sides, times, strict=True):
            start = time.thread_time()
            side(keys=keys)
            spent.append(time.thread_time() - start)
    return [BATCH / median(spent) for spent in times]


def main() -> None:
    """Print a table of images per second."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = pictures(options.side)
    arms = {
        "crops alone, from 0.2 of the area": CROPS_ALONE,
        "pre-training: crop from 0.2, mirror, RandAugment": PRETRAINING,
        "finetuning: crop from 0.5, mirror, RandAugment": FINETUNING,
    } | {
        f"{operation} alone": Augmentation(
            min_area=1.0, operations=(operation,), num_operations=1, operation_probability=1.0
        )
        for operation in BLIP_OPERATIONS
        if operation not in ("identity", "brightness", "sharpness")
    }
    print(f"{options.side} px, images/s on one core\n\n| | ours | Pillow alone | |\n|-|-|-|-|")
    for name, augmentation in arms.items():
        ours, pillow = by_turns(
            [
                functools.partial(augment, images, augmentation=augmentation),
                functools.partial(pillow_batch, images, augmentation=augmentation),
            ],
            seconds=options.seconds / len(arms),
        )
        print(f"| {name} | {ours:,.0f} | {pillow:,.0f} | {ours / pillow:.2f} |", flush=True)


if __name__ == "__main__":
    main()
