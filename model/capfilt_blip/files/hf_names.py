"""The names that transformers gives to our parameters, and names in its style where it has none.

Captioner, matcher and question answerer have transformers' own names. What only the original BLIP
and mmpretrain have (two cross-attentions per layer, the classifier of pairs, a third text stack)
keeps their names.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

POSITIONS = "vision_model.embeddings.position_embedding"
"""The one tensor whose shape depends on the image size."""

_QKV = ".attention.self.qkv"
"""One parameter of ours and three of theirs; no tensor in a file has this name."""

# Applied in this order. There is no way back: a load asks for the name of each parameter it needs.
_VISION_NAMES = (
    (r"^vision\.class_token", "vision_model.embeddings.class_embedding"),
    (r"^vision\.positions", POSITIONS),
    (r"^vision\.patches", "vision_model.embeddings.patch_embedding"),
    (r"^vision\.norm", "vision_model.post_layernorm"),
    (r"^vision\.layers", "vision_model.encoder.layers"),
    (r"\.norm(\d)", r".layer_norm\1"),
    (r"\.attention\.out", ".self_attn.projection"),
    (r"\.attention\.qkv", ".self_attn.qkv"),
    (r"\.mlp\.up", ".mlp.fc1"),
    (r"\.mlp\.down", ".mlp.fc2"),
)
_TEXT_NAMES = (
    (r"^text_decoder\.", "text_decoder.bert."),
    (r"^lm_head\.bias", "text_decoder.cls.predictions.bias"),
    (r"^lm_head\.dense", "text_decoder.cls.predictions.transform.dense"),
    (r"^lm_head\.norm", "text_decoder.cls.predictions.transform.LayerNorm"),
    (r"^classifier\.hidden", "cls_head.0"),
    (r"^classifier\.out", "cls_head.2"),
    (r"\.embeddings\.words", ".embeddings.word_embeddings"),
    (r"\.embeddings\.positions", ".embeddings.position_embeddings"),
    (r"\.embeddings\.norm", ".embeddings.LayerNorm"),
    (r"\.layers\.", ".encoder.layer."),
    (r"\.self_attention\.heads\.out", ".attention.output.dense"),
    (r"\.self_attention\.heads\.qkv", _QKV),
    (r"\.self_attention\.norm", ".attention.output.LayerNorm"),
    (r"\.cross_attention\.heads\.(query|key|value)", r".crossattention.self.\1"),
    (r"\.cross_attention\.heads\.out", ".crossattention.output.dense"),
    (r"\.cross_attention\.left\.(query|key|value)", r".crossattention.self0.\1"),
    (r"\.cross_attention\.left\.out", ".crossattention.output.dense0"),
    (r"\.cross_attention\.right\.(query|key|value)", r".crossattention.self1.\1"),
    (r"\.cross_attention\.right\.out", ".crossattention.output.dense1"),
    (r"\.cross_attention\.merge", ".crossattention.output.merge_layer"),
    (r"\.cross_attention\.norm", ".crossattention.output.LayerNorm"),
    (r"\.feed_forward\.up", ".intermediate.dense"),
    (r"\.feed_forward\.down", ".output.dense"),
    (r"\.feed_forward\.norm", ".output.LayerNorm"),
)


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Give what a checkpoint holds of a model, by the names it has there.

    A parameter that is shared is there once. The tensors have no gradients and lie in the model's
    own memory: who writes into them changes the model.
    """
    stored: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        stored_name = _hf_name(name)
        if _QKV in stored_name:
            thirds = parameter.detach().view(3, -1, *parameter.shape[1:])
            for part, rows in zip(("query", "key", "value"), thirds, strict=True):
                stored[stored_name.replace(".qkv.", f".{part}.")] = rows
        else:
            stored[stored_name] = parameter.detach()
    return stored


def _hf_name(name: str) -> str:
    for pattern, replacement in _VISION_NAMES if name.startswith("vision.") else _TEXT_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
