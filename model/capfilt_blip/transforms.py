"""Pixels on their way into the model: uint8 images to normalised floats.

Letters: B batch, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

# Mean and standard deviation of CLIP's training images (arXiv:2103.00020), which BLIP keeps.
CHANNEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
CHANNEL_STD = (0.26862954, 0.26130258, 0.27577711)


Images: TypeAlias = NDArray[np.uint8] | Tensor | Sequence[Image.Image]
"""N images: an array or tensor (N, S, S, 3) uint8, red, green, blue; or PIL images of any size."""


def to_uint8(images: Images, *, side_px: int) -> Tensor:
    """Bring images to one tensor of the model's size.

    Args:
        images: PIL images are squashed to a square, bicubically and without a crop, as BLIP does;
            arrays and tensors must have the size already.
        side_px: S.

    Returns:
        (N, S, S, 3) uint8.

    Raises:
        ValueError: an array or tensor has another shape or dtype, or the images are something else.
    """
    if isinstance(images, np.ndarray):
        # torch takes no negative strides, such as those of images[::-1].
        images = torch.from_numpy(images.copy() if min(images.strides) < 0 else images)
    if not isinstance(images, Tensor):
        _check_pictures(images)
        size = (side_px, side_px)
        squashed = [im.convert("RGB").resize(size, Image.Resampling.BICUBIC) for im in images]
        rows = np.array([np.asarray(im) for im in squashed], dtype=np.uint8)
        images = torch.from_numpy(rows.reshape(-1, side_px, side_px, 3))
    if images.dtype != torch.uint8 or images.shape[1:] != (side_px, side_px, 3):
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; this model takes "
            f"torch.uint8 of shape (N, {side_px}, {side_px}, 3), or PIL images"
        )
    return images


def _check_pictures(images: Sequence[Image.Image]) -> None:
    if isinstance(images, Image.Image):
        raise ValueError("one picture was given where several are expected: write [picture]")
    for index, picture in enumerate(images):
        if not isinstance(picture, Image.Image):
            raise ValueError(
                f"images[{index}] is a {type(picture).__name__}; give PIL images (a path opens "
                "with PIL.Image.open), or an array of uint8"
            )


def fixed_batches(images: Tensor, *, batch_size: int) -> Iterator[Tensor]:
    """Cut images into batches of one shape, so that no result depends on who is in the batch.

    Kernels, and so the last bits of a result, are chosen by shape. The last batch is filled up
    with its first image; so is a batch of one, for matrix-vector kernels differ most.

    Args:
        images: (N, S, S, 3).
        batch_size: images in a batch; at least 2 are put in.

    Yields:
        (max(2, batch_size), S, S, 3), in order; a full batch is a view of `images`.
    """
    batch_size = max(2, batch_size)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        if len(batch) < batch_size:
            filler = batch[:1].expand(batch_size - len(batch), -1, -1, -1)
            batch = torch.cat([batch, filler])
        yield batch


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Bring images to the model; bytes travel, floats are made where they are needed.

    Args:
        images: (B, S, S, 3) uint8. From pinned memory the device fetches them by itself; they may
            be changed again once a result that depends on them has been read.
        device: of the model.

    Returns:
        The same on the device.
    """
    return images.to(device, non_blocking=images.is_pinned())


def normalise(images: Tensor) -> Tensor:
    """Turn images into what the vision transformer reads.

    Args:
        images: (B, S, S, 3) uint8, red, green, blue.

    Returns:
        (B, 3, S, S) float32 on the same device, about zero mean and unit deviation per channel.
    """
    mean = torch.tensor(CHANNEL_MEAN, device=images.device) * 255
    std = torch.tensor(CHANNEL_STD, device=images.device) * 255
    return ((images.float() - mean) / std).permute(0, 3, 1, 2).contiguous()
