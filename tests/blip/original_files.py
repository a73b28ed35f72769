"""Checkpoints of Salesforce, LAVIS and mmpretrain: their names and shapes, written down once more.

From the model code of salesforce/BLIP 056a169 and open-mmlab/mmpretrain ee7f2e8, not from ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Sizes of a BLIP; heads are 64 wide."""

    vision_width: int
    vision_depth: int
    text_width: int = 768
    text_depth: int = 12
    vocab_size: int = 30524
    max_positions: int = 512
    patch_px: int = 16
    grid: int = 24
    """Patches along one side."""
    shared_width: int = 256
    queue: int = 57600


BASE = Size(vision_width=768, vision_depth=12)
LARGE = Size(vision_width=1024, vision_depth=24)


def tiny(*, vocab_size: int, vision_width: int = 128) -> Size:
    return Size(
        vision_width=vision_width,
        vision_depth=3,
        text_width=128,
        text_depth=2,
        vocab_size=vocab_size,
        max_positions=48,
        patch_px=8,
        grid=3,
        shared_width=32,
        queue=16,
    )


def linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit(prefix: str, size: Size) -> Shapes:
    D = size.vision_width
    shapes: Shapes = {
        f"{prefix}.cls_token": (1, 1, D),
        f"{prefix}.pos_embed": (1, size.grid**2 + 1, D),
        f"{prefix}.patch_embed.proj.weight": (D, 3, size.patch_px, size.patch_px),
        f"{prefix}.patch_embed.proj.bias": (D,),
    }
    for index in range(size.vision_depth):
        block = f"{prefix}.blocks.{index}"
        shapes |= norm(f"{block}.norm1", D) | norm(f"{block}.norm2", D)
        shapes |= linear(f"{block}.attn.qkv", 3 * D, D) | linear(f"{block}.attn.proj", D, D)
        shapes |= linear(f"{block}.mlp.fc1", 4 * D, D) | linear(f"{block}.mlp.fc2", D, 4 * D)
    return shapes | norm(f"{prefix}.norm", D)


def bert(prefix: str, size: Size, *, memory_width: int, nlvr: bool = False) -> Shapes:
    D = size.text_width
    shapes: Shapes = {
        f"{prefix}.embeddings.position_ids": (1, size.max_positions),
        f"{prefix}.embeddings.word_embeddings.weight": (size.vocab_size, D),
        f"{prefix}.embeddings.position_embeddings.weight": (size.max_positions, D),
        **norm(f"{prefix}.embeddings.LayerNorm", D),
    }
    for index in range(size.text_depth):
        layer = f"{prefix}.encoder.layer.{index}"
        shapes |= qkv(f"{layer}.attention.self", D, D)
        shapes |= linear(f"{layer}.attention.output.dense", D, D)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", D)
        cross = f"{layer}.crossattention"
        for twin in ("0", "1") if nlvr else ("",):
            shapes |= qkv(f"{cross}.self{twin}", D, memory_width)
            shapes |= linear(f"{cross}.output.dense{twin}", D, D)
        if nlvr and index >= size.text_depth // 2:  # 6 of 12
            shapes |= linear(f"{cross}.output.merge_layer", D, 2 * D)
        shapes |= norm(f"{cross}.output.LayerNorm", D)
        shapes |= linear(f"{layer}.intermediate.dense", 4 * D, D)
        shapes |= linear(f"{layer}.output.dense", D, 4 * D) | norm(f"{layer}.output.LayerNorm", D)
    return shapes


def qkv(name: str, width: int, memory_width: int) -> Shapes:
    query = linear(f"{name}.query", width, width)
    return (
        query
        | linear(f"{name}.key", width, memory_width)
        | linear(f"{name}.value", width, memory_width)
    )


def lm(prefix: str, size: Size, *, memory_width: int) -> Shapes:
    head = f"{prefix}.cls.predictions"
    return {
        **bert(f"{prefix}.bert", size, memory_width=memory_width),
        f"{head}.bias": (size.vocab_size,),
        **linear(f"{head}.transform.dense", size.text_width, size.text_width),
        **norm(f"{head}.transform.LayerNorm", size.text_width),
        **linear(f"{head}.decoder", size.vocab_size, size.text_width),
    }


def caption(size: Size) -> Shapes:
    return vit("visual_encoder", size) | lm("text_decoder", size, memory_width=size.vision_width)


def encoders_and_heads(size: Size, *, copy: str = "") -> Shapes:
    shapes = vit(f"visual_encoder{copy}", size)
    shapes |= bert(f"text_encoder{copy}", size, memory_width=size.vision_width)
    shapes |= linear(f"vision_proj{copy}", size.shared_width, size.vision_width)
    return shapes | linear(f"text_proj{copy}", size.shared_width, size.text_width)


def with_queues(size: Size) -> Shapes:
    return {
        **encoders_and_heads(size),
        **linear("itm_head", 2, size.text_width),
        **encoders_and_heads(size, copy="_m"),
        "image_queue": (size.shared_width, size.queue),
        "text_queue": (size.shared_width, size.queue),
        "temp": (),
    }


def retrieval(size: Size) -> Shapes:
    return with_queues(size) | {"idx_queue": (1, size.queue), "ptr_queue": (1,)}


def pretrain(size: Size) -> Shapes:
    decoder = lm("text_decoder", size, memory_width=size.vision_width)
    return with_queues(size) | decoder | {"queue_ptr": (1,)}


def vqa(size: Size) -> Shapes:
    encoder = bert("text_encoder", size, memory_width=size.vision_width)
    decoder = lm("text_decoder", size, memory_width=size.text_width)
    return vit("visual_encoder", size) | encoder | decoder


def nlvr(size: Size) -> Shapes:
    D = size.text_width
    encoder = bert("text_encoder", size, memory_width=size.vision_width, nlvr=True)
    head = linear("cls_head.0", D, D) | linear("cls_head.2", 2, D)
    return vit("visual_encoder", size) | encoder | head


def grounding(size: Size) -> Shapes:
    """mmpretrain's alone; its vision side is renamed by `as_mmpretrain` with the others."""
    shapes = vit("visual_encoder", size)
    for stack in ("text_encoder", "multimodal_encoder"):
        shapes |= bert(stack, size, memory_width=size.vision_width)
    shapes |= lm("grounding_head.decoder", size, memory_width=size.vision_width)
    buffers = {"prefix_ids": (1,), "target_ids": (641,), "bbox_prob_mask": (size.vocab_size,)}
    return shapes | {f"grounding_head.{name}": shape for name, shape in buffers.items()}


_TASK_PREFIXES: dict[Callable[[Size], Shapes], dict[str, str]] = {
    caption: {"text_decoder.": "seq_gen_head.decoder."},
    vqa: {
        "visual_encoder.": "vision_backbone.",
        "text_encoder.": "multimodal_backbone.",
        "text_decoder.": "vqa_head.decoder.",
    },
    nlvr: {
        "visual_encoder.": "vision_backbone.",
        "text_encoder.": "multimodal_backbone.",
        "cls_head.": "head.",
    },
    retrieval: {
        "visual_encoder": "vision_backbone",
        "text_encoder": "text_backbone",
        "vision_proj": "vision_neck",
        "text_proj": "text_neck",
        "itm_head.": "multimodal_head.fc.",
        "image_queue": "head.image_queue",
        "text_queue": "head.text_queue",
        "idx_queue": "head.idx_queue",
        "ptr_queue": "head.queue_ptr",
    },
    grounding: {},
}


def as_mmpretrain(weights: dict[str, Tensor], of: Callable[[Size], Shapes]) -> dict[str, Tensor]:
    """Rename an original checkpoint as mmpretrain would have saved it."""
    renamed = {_mmpretrain_name(name, of): tensor for name, tensor in weights.items()}
    return renamed | ({"head.temp": weights["temp"]} if "temp" in weights else {})


def _mmpretrain_name(name: str, of: Callable[[Size], Shapes]) -> str:
    if name.startswith("visual_encoder"):
        for old, new in (
            ("patch_embed.proj", "patch_embed.projection"),
            (".norm1", ".ln1"),
            (".norm2", ".ln2"),
            (".norm.", ".ln1."),
            (".blocks.", ".layers."),
            (".mlp.fc1", ".ffn.layers.0.0"),
            (".mlp.fc2", ".ffn.layers.1"),
        ):
            name = name.replace(old, new)
    for old, new in _TASK_PREFIXES[of].items():
        if name.startswith(old):
            return name.replace(old, new, 1)
    return name


def filled(shapes: Shapes, *, seed: int = 0) -> dict[str, Tensor]:
    """Make the tensors of a checkpoint, random but for the copies of tied ones.

    Scaled so that every tensor matters to the outputs and none drowns the others.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _tensor(name, shape, generator) for name, shape in shapes.items()}
    return _tied(weights)


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return _tied({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


def _tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith(("position_ids", "_ids")):
        return torch.arange(shape[-1]).view(shape)
    if name.endswith(("idx_queue", "ptr_queue", "queue_ptr")):
        return torch.zeros(shape, dtype=torch.int64)
    noise = torch.randn(shape, generator=generator)
    if "norm" in name.lower() and name.endswith("weight"):
        return 1 + 0.1 * noise
    if name.endswith(("embeddings.weight", "pos_embed", "cls_token")):
        return 0.2 * noise
    # Queries and keys are larger, for attention that looks somewhere.
    gain = 2.0 if any(part in name for part in ("query", "key", "qkv", "patch_embed")) else 0.7
    return noise * gain / (noise[0].numel() if noise.ndim > 1 else 25) ** 0.5


def _tied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in list(weights):
        if name.endswith("cls.predictions.decoder.weight"):
            words = "bert.embeddings.word_embeddings.weight"
            weights[name] = weights[name.replace("cls.predictions.decoder.weight", words)]
        if name.endswith("cls.predictions.decoder.bias"):
            weights[name] = weights[name.replace("decoder.bias", "bias")]
        decoder = name.replace("text_encoder.", "text_decoder.bert.")
        is_pretrain = "itm_head.weight" in weights and "text_encoder." in name
        if is_pretrain and decoder in weights and ".attention." not in name:
            weights[name] = weights[decoder]
    return weights
