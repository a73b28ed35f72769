"""What a file of weights holds: whose layout, which task, and tensors by transformers' names.

    transformers   vision_model.*      its directories, and ours
    original       visual_encoder.*    salesforce/BLIP and LAVIS
    mmpretrain     visual_encoder.* or vision_backbone.*, with "layers" for "blocks"

What training leaves in a file is left out on purpose: momentum copies, queues and their pointers,
position_ids, and the temperature of ITC unless the model is one of pre-training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from capfilt_blip.files.weights import CheckpointError, some_of

Layout = Literal["transformers", "original", "mmpretrain"]
Task = Literal["captioning", "retrieval", "pre-training", "VQA", "NLVR2", "grounding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a file of weights holds."""

    layout: Layout
    """Who wrote it."""
    task: Task
    """What the model was trained for."""
    weights: dict[str, Tensor]
    """By the names that transformers uses; tied tensors stand under their first name."""


_NO_WEIGHTS = re.compile(
    r"(visual_encoder|vision_backbone|text_encoder|text_backbone)_m\."  # momentum copies
    r"|(vision_proj|text_proj|vision_neck|text_neck)_m\."
    r"|(head\.)?(image_queue|text_queue|idx_queue|queue_ptr|ptr_queue)$"
    r"|.*\.position_ids$"
    r"|grounding_head\.(prefix_ids|target_ids|bbox_prob_mask)$"  # made of the vocabulary
)

# Salesforce's names to transformers'. Those of the text side are the same.
_ORIGINAL_NAMES = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (
        r"^visual_encoder\.blocks\.(\d+)\.norm(\d)\.",
        r"vision_model.encoder.layers.\1.layer_norm\2.",
    ),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.",
        r"vision_model.encoder.layers.\1.self_attn.qkv.",
    ),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
)
# mmpretrain's names to Salesforce's.
_MMPRETRAIN_NAMES = (
    (r"^vision_backbone\.", "visual_encoder."),
    (r"^visual_encoder\.patch_embed\.projection\.", "visual_encoder.patch_embed.proj."),
    (r"^visual_encoder\.ln1\.", "visual_encoder.norm."),
    (r"^visual_encoder\.layers\.(\d+)\.ln(\d)\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"^visual_encoder\.layers\.(\d+)\.ffn\.layers\.0\.0\.", r"visual_encoder.blocks.\1.mlp.fc1."),
    (r"^visual_encoder\.layers\.(\d+)\.ffn\.layers\.1\.", r"visual_encoder.blocks.\1.mlp.fc2."),
    (r"^visual_encoder\.layers\.(\d+)\.attn\.", r"visual_encoder.blocks.\1.attn."),
    (r"^(multimodal_backbone|text_backbone)\.", "text_encoder."),
    (r"^(seq_gen_head|vqa_head|grounding_head)\.decoder\.", "text_decoder."),
    (r"^vision_neck\.", "vision_proj."),
    (r"^text_neck\.", "text_proj."),
    (r"^multimodal_head\.fc\.", "itm_head."),
    (r"^head\.temp$", "temp"),
    (r"^head\.([02])\.", r"cls_head.\1."),
)
# Second names of tied tensors, which some files hold beside the first or in place of it.
_LM_HEAD = "text_decoder.cls.predictions"
_TIED = {
    f"{_LM_HEAD}.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    f"{_LM_HEAD}.decoder.bias": f"{_LM_HEAD}.bias",
}
# What a captioner and a matcher do not take over from a pre-trained BLIP.
_ENCODER_HALF = ("text_encoder.", "vision_proj.", "text_proj.", "itm_head.", "temp")
_DECODER_HALF = ("text_decoder.", "temp")


def recognise(tensors: Mapping[str, Tensor], *, place: Path) -> Contents:
    """Tell from its names what a file holds, and give its tensors the names of transformers.

    Args:
        tensors: all of a file.
        place: the file, for messages.

    Raises:
        CheckpointError: the names are those of no BLIP, or tied tensors differ.
    """
    layout = _layout(tensors, place=place)
    weights = named_as_in_transformers(tensors, layout=layout, place=place)
    return Contents(layout=layout, task=_task(weights, place=place), weights=weights)


def named_as_in_transformers(
    tensors: Mapping[str, Tensor], *, layout: Layout, place: Path
) -> dict[str, Tensor]:
    """Rename tensors, leave out what is no weight, and put tied ones under their first name.

    Args:
        tensors: all of a file.
        layout: of the file.
        place: the file, for messages.

    Raises:
        CheckpointError: tensors that are tied in the model differ, or two get one name.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not _NO_WEIGHTS.match(name)}
    weights: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        new_name = _translated(name, layout=layout)
        other = weights.setdefault(new_name, tensor)
        if not _same(other, tensor):
            raise CheckpointError(
                f"{place}: {name} is not what stands under its other name; the model has only one "
                f"({new_name})"
            )
    return weights


def for_task(
    weights: Mapping[str, Tensor], *, trained_for: Task, task: Task, place: Path
) -> dict[str, Tensor]:
    """Take what a model for one task needs out of weights trained for the same or pre-training.

    A captioner takes the decoder half of a pre-trained BLIP, a matcher the encoder half. Half of
    the encoder may stand under the decoder's names: self-attention apart, both are one.

    Args:
        weights: by the names of transformers.
        trained_for: what the weights are of.
        task: what the model is for.
        place: the file, for messages.

    Raises:
        CheckpointError: a pre-trained encoder and decoder differ where they must be one.
    """
    if trained_for != "pre-training":
        return {name: tensor for name, tensor in weights.items() if name != "temp"}
    if task == "captioning":
        return _without(weights, _ENCODER_HALF)
    if task == "retrieval":
        shared = {
            name.replace("text_decoder.bert.", "text_encoder.", 1): tensor
            for name, tensor in weights.items()
            if name.startswith("text_decoder.bert.") and not _is_own(name)
        }
        return _without({**shared, **weights}, _DECODER_HALF)
    return _encoder_and_decoder_as_one(weights, place=place)


def _layout(tensors: Mapping[str, Tensor], *, place: Path) -> Layout:
    if any(name.startswith("vision_model.") for name in tensors):
        return "transformers"
    if any(name.startswith("visual_encoder.blocks.") for name in tensors):
        return "original"
    if any(re.match(r"(visual_encoder|vision_backbone)\.layers\.", name) for name in tensors):
        return "mmpretrain"
    raise CheckpointError(
        f"{place}: not the weights of a BLIP: none of the {len(tensors)} names begins with "
        f"'visual_encoder.', 'vision_backbone.' or 'vision_model.'; found: {some_of(tensors)}"
    )


def _task(weights: Mapping[str, Tensor], *, place: Path) -> Task:
    parts = {name.split(".")[0] for name in weights}
    match (
        "text_encoder" in parts,
        "text_decoder" in parts,
        sorted(parts & {"itm_head", "cls_head", "multimodal_encoder"}),
    ):
        case (False, True, []):
            return "captioning"
        case (True, False, ["itm_head"]):
            return "retrieval"
        case (True, True, ["itm_head"]):
            return "pre-training"
        case (True, True, []):
            return "VQA"
        case (True, False, ["cls_head"]):
            return "NLVR2"
        case (True, True, ["multimodal_encoder"]):
            return "grounding"
    raise CheckpointError(
        f"{place}: the weights of no task of BLIP's; its parts are: {', '.join(sorted(parts))}"
    )


def _translated(name: str, *, layout: Layout) -> str:
    if layout == "mmpretrain":
        name = _renamed(name, _MMPRETRAIN_NAMES)
    if layout != "transformers":
        name = _renamed(name, _ORIGINAL_NAMES)
    return _TIED.get(name, name)


def _renamed(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def _encoder_and_decoder_as_one(weights: Mapping[str, Tensor], *, place: Path) -> dict[str, Tensor]:
    one = dict(weights)
    for name, tensor in weights.items():
        if not name.startswith("text_encoder.") or _is_own(name):
            continue
        decoder_name = name.replace("text_encoder.", "text_decoder.bert.", 1)
        if not _same(one.setdefault(decoder_name, tensor), tensor):
            raise CheckpointError(
                f"{place}: {name} and {decoder_name} differ; in pre-training they are one"
            )
        del one[name]
    return one


def _is_own(name: str) -> bool:
    # Self-attention and its LayerNorm. ".crossattention." is another word.
    return ".attention." in name


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)


def _without(weights: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
