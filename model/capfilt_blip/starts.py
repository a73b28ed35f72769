"""What the models of the tasks take over from pre-training alike: its image encoder.

Each model says in its own `from_blip` what becomes of the text side.
"""

from __future__ import annotations

import dataclasses

import torch

from capfilt_blip.config import BlipConfig
from capfilt_blip.vision import VisionTransformer, resize_positions


def task_config(config: BlipConfig, *, image_size_px: int, drop_path: float) -> BlipConfig:
    """Return the config of a pre-trained model for another image size and drop path.

    Args:
        config: of pre-training.
        image_size_px: side of the images to be read.
        drop_path: chance that the last vision layer skips its branches in training, in [0, 1).
    """
    resized = config.at_image_size(image_size_px)
    vision = dataclasses.replace(resized.vision, drop_path=drop_path)
    return dataclasses.replace(resized, vision=vision)


def copied_vision(vision: VisionTransformer, *, config: BlipConfig) -> VisionTransformer:
    """Return a copy of an image encoder, its positions resized.

    Args:
        vision: of the pre-trained model.
        config: of the new model, from `task_config`.
    """
    with torch.device("meta"):
        copied = VisionTransformer(config.vision)
    weights = {name: weight.clone() for name, weight in vision.state_dict().items()}
    weights["positions"] = resize_positions(
        weights["positions"], num_tokens=config.vision.num_tokens
    )
    copied.load_state_dict(weights, assign=True)
    copied.num_recomputed = vision.num_recomputed
    return copied
