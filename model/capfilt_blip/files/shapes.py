"""The config of a BLIP, read off the shapes of its tensors: original files come without one.

What no shape tells is as in every BLIP that was published: heads of 64, the epsilons and dropouts
of the original, image and patches square.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from capfilt_blip.config import BlipConfig, TextConfig, VisionConfig
from capfilt_blip.files.hf_names import POSITIONS
from capfilt_blip.files.weights import CheckpointError
from capfilt_blip.tokenizer import Tokenizer

_HEAD_WIDTH = 64  # of BERT-base, ViT-B and ViT-L alike


def config_of(weights: Mapping[str, Tensor], *, tokenizer: Tokenizer, place: Path) -> BlipConfig:
    """Build the config of the model that holds these weights.

    Args:
        weights: by the names of transformers; meta tensors will do.
        tokenizer: gives the ids of the special tokens.
        place: the file, for messages.

    Raises:
        CheckpointError: a tensor that tells a size is missing, or has a shape that is no BLIP's.
    """
    shapes = _Shapes(weights=weights, place=place)
    config = BlipConfig(
        vision=_vision_config(shapes),
        text=_text_config(shapes),
        pad_token_id=tokenizer.pad_id,
        cls_token_id=tokenizer.cls_id,
        sep_token_id=tokenizer.sep_id,
        bos_token_id=tokenizer.dec_id,
        enc_token_id=tokenizer.enc_id,
        shared_width=shapes.of("vision_proj.weight", dims=2)[0]
        if "vision_proj.weight" in weights
        else BlipConfig.base().shared_width,
    )
    if config.text.vocab_size != tokenizer.vocab_size:
        raise CheckpointError(
            f"{place}: words for {config.text.vocab_size} tokens, and the tokenizer has "
            f"{tokenizer.vocab_size}; give the one it was trained with"
        )
    return config


def grid_side(positions: Tensor, *, place: Path) -> int:
    """Give the number of patches along one side of the image that positions are for.

    Args:
        positions: (1, P, D), the class token first.
        place: the file, for messages.

    Raises:
        CheckpointError: the patches are no square.
    """
    num_patches = positions.shape[1] - 1 if positions.ndim == 3 else -1
    side = math.isqrt(max(0, num_patches))
    if side * side != num_patches:
        raise CheckpointError(
            f"{place}: {POSITIONS} is {tuple(positions.shape)}; the class token and a square of "
            "patches are due"
        )
    return side


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shapes:
    """Shapes by name, with errors that say which tensor is missing or odd."""

    weights: Mapping[str, Tensor]
    place: Path

    def of(self, name: str, *, dims: int) -> tuple[int, ...]:
        if name not in self.weights:
            raise CheckpointError(f"{self.place}: {name} is missing")
        shape = tuple(self.weights[name].shape)
        if len(shape) != dims:
            raise CheckpointError(f"{self.place}: {name} is {shape}; {dims} dimensions are due")
        return shape

    def num_layers(self, prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        return 1 + max((int(m[1]) for m in map(pattern.match, self.weights) if m), default=-1)

    def num_heads(self, width: int) -> int:
        if width % _HEAD_WIDTH:
            raise CheckpointError(
                f"{self.place}: tokens are {width} wide; BLIP's heads are {_HEAD_WIDTH} wide each"
            )
        return width // _HEAD_WIDTH


def _vision_config(shapes: _Shapes) -> VisionConfig:
    width, _, patch_size_px, _ = shapes.of("vision_model.embeddings.patch_embedding.weight", dims=4)
    shapes.of(POSITIONS, dims=3)
    side = grid_side(shapes.weights[POSITIONS], place=shapes.place)
    layers = "vision_model.encoder.layers."
    depth = shapes.num_layers(layers)
    return VisionConfig(
        image_size_px=side * patch_size_px,
        patch_size_px=patch_size_px,
        width=width,
        depth=depth,
        num_heads=shapes.num_heads(width),
        mlp_width=shapes.of(f"{layers}0.mlp.fc1.weight", dims=2)[0],
        # The original's create_vit gives ViT-L 0.1 whatever it is asked for.
        drop_path=BlipConfig.large().vision.drop_path if depth > 12 else 0.0,
    )


def _text_config(shapes: _Shapes) -> TextConfig:
    # The encoder, where there is one: the decoder of VQA reads no images.
    has_encoder = any(name.startswith("text_encoder.") for name in shapes.weights)
    stack = "text_encoder" if has_encoder else "text_decoder.bert"
    vocab_size, width = shapes.of(f"{stack}.embeddings.word_embeddings.weight", dims=2)
    layer = f"{stack}.encoder.layer.0"
    is_twin = f"{layer}.crossattention.self0.key.weight" in shapes.weights
    key = f"{layer}.crossattention.{'self0' if is_twin else 'self'}.key.weight"
    return TextConfig(
        vocab_size=vocab_size,
        width=width,
        depth=shapes.num_layers(f"{stack}.encoder.layer."),
        num_heads=shapes.num_heads(width),
        mlp_width=shapes.of(f"{layer}.intermediate.dense.weight", dims=2)[0],
        max_positions=shapes.of(f"{stack}.embeddings.position_embeddings.weight", dims=2)[0],
        image_width=shapes.of(key, dims=2)[1],
    )
