"""How many floating-point operations one pair costs in training: what MFU is computed from.

The backward pass of a matrix product is two more of its size. What is computed without gradient,
the momentum encoders, counts once. Padding, and what activation checkpointing computes again, is
not needed and not counted; see `capfilt_blip.flops`.
"""

from __future__ import annotations

from capfilt_blip.config import BlipConfig
from capfilt_blip.flops import (
    caption_flops,
    image_flops,
    image_vector_flops,
    itc_flops,
    itm_flops,
    linear_flops,
    memory_flops,
)

FORWARD_AND_BACKWARD = 3
ITM_PAIRS = 3
"""Per image: its text, a wrong text, and its text with a wrong image."""


def pretrain_flops(config: BlipConfig, *, num_tokens: int) -> int:
    """Operations of a pair in pre-training: ITC with momentum encoders, ITM and LM.

    Args:
        config: of the model.
        num_tokens: of the text, special tokens included: the mean over the texts will do.
    """
    learnt = _contrast_flops(config, num_tokens) + _lm_flops(config, num_tokens)
    return FORWARD_AND_BACKWARD * learnt + _vector_flops(config, num_tokens)


def matcher_flops(config: BlipConfig, *, num_tokens: int) -> int:
    """Operations of a pair in the matcher's finetuning, ITC with momentum encoders and ITM."""
    learnt = _contrast_flops(config, num_tokens)
    return FORWARD_AND_BACKWARD * learnt + _vector_flops(config, num_tokens)


def captioner_flops(config: BlipConfig, *, num_tokens: int) -> int:
    """Operations of a pair in the captioner's finetuning; the prompt counts as text."""
    seen = image_flops(config.vision) + memory_flops(config)
    return FORWARD_AND_BACKWARD * (seen + _lm_flops(config, num_tokens))


def _contrast_flops(config: BlipConfig, num_tokens: int) -> int:
    """Forward: both vectors, and ITM with the keys and values of the image, which LM shares."""
    vectors = _vector_flops(config, num_tokens)
    return vectors + memory_flops(config) + ITM_PAIRS * itm_flops(config, num_tokens=num_tokens)


def _vector_flops(config: BlipConfig, num_tokens: int) -> int:
    image = image_flops(config.vision) + image_vector_flops(config)
    return image + itc_flops(config, num_tokens=num_tokens)


def _lm_flops(config: BlipConfig, num_tokens: int) -> int:
    """Forward, of an image whose keys and values are there; nothing follows the last token."""
    D, V = config.text.width, config.text.vocab_size
    logits = linear_flops(num_tokens - 1, D, D) + linear_flops(num_tokens - 1, D, V)
    return caption_flops(config, prompt_tokens=num_tokens, new_tokens=()) + logits
