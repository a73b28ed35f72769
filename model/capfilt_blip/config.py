"""Sizes of a BLIP model, and their translation to and from a `config.json` of transformers.

The named sizes are the paper's two (`base`, `large`: arXiv:2201.12086, sec. 4.1) and one of a few
megabytes (`tiny`). Everything a checkpoint can disagree about is a field here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Sizes of the vision transformer; the defaults are ViT-B/16."""

    image_size_px: int = 384
    """Side of the square input image."""
    patch_size_px: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    layer_norm_eps: float = 1e-6
    """1e-6 in the original; the checkpoints on the Hugging Face hub say 1e-5."""
    drop_path: float = 0.0
    """Chance that the last layer skips its branches in training; from 0 in the first, linearly."""

    @property
    def num_tokens(self) -> int:
        """Tokens of one image: the class token and one per patch."""
        return (self.image_size_px // self.patch_size_px) ** 2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Sizes of one text stack; the defaults are BERT-base with two more tokens."""

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    """Of hidden states and of attention weights, in training only."""
    image_width: int = 768
    """Width of the image tokens that cross-attention reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipConfig:
    """A whole BLIP: image side, text side, shared space, and the ids of the special tokens.

    The default ids are those of bert-base-uncased with [DEC] and [ENC] appended.
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    shared_width: int = 256
    """Width of the space in which image and text vectors are compared (ITC)."""
    pad_token_id: int = 0
    cls_token_id: int = 101
    sep_token_id: int = 102
    """[SEP] ends every text; the captioner stops at it."""
    bos_token_id: int = 30522
    """[DEC], the first token of a text to be generated."""
    enc_token_id: int = 30523
    """[ENC], the first token of a text that is read together with an image."""

    @classmethod
    def base(cls) -> BlipConfig:
        """Return BLIP with ViT-B/16 at 384 px."""
        return cls()

    @classmethod
    def large(cls) -> BlipConfig:
        """Return BLIP with ViT-L/16 at 384 px; the text side keeps the width of BERT-base."""
        vision = VisionConfig(width=1024, depth=24, num_heads=16, mlp_width=4096, drop_path=0.1)
        return cls(vision=vision, text=TextConfig(image_width=1024))

    @classmethod
    def tiny(
        cls,
        *,
        vocab_size: int,
        image_size_px: int = 64,
        width: int = 128,
        text_depth: int = 3,
        dropout: float = 0.1,
    ) -> BlipConfig:
        """Return a BLIP for the miniature web: under two million parameters per finetuned model.

        Args:
            vocab_size: tokens of the vocabulary: [PAD], [UNK], [CLS], [SEP] and [MASK] are 0 to 4,
                [DEC] and [ENC] the last two.
            image_size_px: side of the input image, a multiple of 8.
            width: of image and text tokens alike, a multiple of 32.
            text_depth: layers of the text stack.
            dropout: of the text stack, in training.
        """
        heads, mlp_width = width // 32, 4 * width
        return cls(
            vision=VisionConfig(
                image_size_px=image_size_px,
                patch_size_px=8,
                width=width,
                depth=4,
                num_heads=heads,
                mlp_width=mlp_width,
            ),
            text=TextConfig(
                vocab_size=vocab_size,
                width=width,
                depth=text_depth,
                num_heads=heads,
                mlp_width=mlp_width,
                max_positions=64,
                dropout=dropout,
                image_width=width,
            ),
            shared_width=64,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=vocab_size - 2,
            enc_token_id=vocab_size - 1,
        )

    def at_image_size(self, image_size_px: int) -> BlipConfig:
        """Return the same model for another image size; its weights need resized positions."""
        vision = dataclasses.replace(self.vision, image_size_px=image_size_px)
        return dataclasses.replace(self, vision=vision)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> BlipConfig:
        """Read the `config.json` of a transformers BLIP.

        A field that is absent has the default of transformers' BlipConfig, not ours: transformers
        leaves defaults out when it saves.

        Raises:
            ValueError: the model is not one this package can build.
        """
        _refuse_foreign(fields)
        text = fields.get("text_config") or {}
        bos_token_id = text.get("bos_token_id", 30522)
        return cls(
            vision=_vision_from_hf(fields.get("vision_config") or {}),
            text=_text_from_hf(fields),
            shared_width=fields.get("image_text_hidden_size", 256),
            pad_token_id=text.get("pad_token_id", 0),
            cls_token_id=text.get("cls_token_id", 101),
            sep_token_id=text.get("sep_token_id", 102),
            bos_token_id=bos_token_id,
            enc_token_id=text.get("enc_token_id", bos_token_id + 1),
        )

    def to_hf(self, *, architecture: str) -> dict[str, Any]:
        """Return the `config.json` that `from_hf` and transformers read.

        Args:
            architecture: class of the weights, such as "BlipForConditionalGeneration".
        """
        return {
            "architectures": [architecture],
            "model_type": "blip",
            "image_text_hidden_size": self.shared_width,
            "projection_dim": self.shared_width,
            "vision_config": _vision_to_hf(self.vision),
            "text_config": {
                **_text_to_hf(self.text),
                "pad_token_id": self.pad_token_id,
                "cls_token_id": self.cls_token_id,
                "sep_token_id": self.sep_token_id,
                "eos_token_id": self.sep_token_id,
                "bos_token_id": self.bos_token_id,
                "enc_token_id": self.enc_token_id,
            },
        }


def _refuse_foreign(fields: Mapping[str, Any]) -> None:
    if fields.get("model_type") != "blip":
        raise ValueError(f"model_type is {fields.get('model_type')!r}; only 'blip' can be read")
    for part in ("vision_config", "text_config"):
        activation = (fields.get(part) or {}).get("hidden_act", "gelu")
        if activation != "gelu":
            raise ValueError(f"{part}.hidden_act is {activation!r}; BLIP uses 'gelu'")
    image_size = (fields.get("vision_config") or {}).get("image_size", 384)
    if not isinstance(image_size, int):
        raise ValueError(
            f"vision_config.image_size is {image_size!r}; one side of a square is needed"
        )


def _vision_from_hf(vision: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        image_size_px=vision.get("image_size", 384),
        patch_size_px=vision.get("patch_size", 16),
        width=vision.get("hidden_size", 768),
        depth=vision.get("num_hidden_layers", 12),
        num_heads=vision.get("num_attention_heads", 12),
        mlp_width=vision.get("intermediate_size", 3072),
        layer_norm_eps=vision.get("layer_norm_eps", 1e-5),
        drop_path=vision.get("drop_path_rate", 0.0),
    )


def _vision_to_hf(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "blip_vision_model",
        "image_size": vision.image_size_px,
        "patch_size": vision.patch_size_px,
        "hidden_size": vision.width,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.num_heads,
        "intermediate_size": vision.mlp_width,
        "layer_norm_eps": vision.layer_norm_eps,
        "drop_path_rate": vision.drop_path,
        "hidden_act": "gelu",
    }


def _text_from_hf(fields: Mapping[str, Any]) -> TextConfig:
    text = fields.get("text_config") or {}
    return TextConfig(
        vocab_size=text.get("vocab_size", 30524),
        width=text.get("hidden_size", 768),
        depth=text.get("num_hidden_layers", 12),
        num_heads=text.get("num_attention_heads", 8),
        mlp_width=text.get("intermediate_size", 3072),
        max_positions=text.get("max_position_embeddings", 512),
        layer_norm_eps=text.get("layer_norm_eps", 1e-12),
        dropout=text.get("hidden_dropout_prob", 0.0),
        # transformers, too, ignores what the file says here and takes the vision width.
        image_width=(fields.get("vision_config") or {}).get("hidden_size", 768),
    )


def _text_to_hf(text: TextConfig) -> dict[str, Any]:
    return {
        "model_type": "blip_text_model",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.num_heads,
        "intermediate_size": text.mlp_width,
        "max_position_embeddings": text.max_positions,
        "layer_norm_eps": text.layer_norm_eps,
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.dropout,
        "encoder_hidden_size": text.image_width,
        "hidden_act": "gelu",
        "is_decoder": True,
    }
