"""The original BLIP, as functions of its checkpoint: what a loaded model must compute.

Every weight is taken by its name in the file, so that a wrong place in our map shows. Slow and
plain on purpose. After salesforce/BLIP 056a169: vit.py, med.py, nlvr_encoder.py, blip*.py; texts
are not padded.

Letters: B batch, P image tokens, L text tokens, M tokens of a memory, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]

_HEAD_WIDTH = 64


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor, *, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Attend with (B, L, D) to (B, M, D), head by head."""
    mixed = []
    for start in range(0, query.shape[-1], _HEAD_WIDTH):
        q, k, v = (x[..., start : start + _HEAD_WIDTH] for x in (query, key, value))
        scores = q @ k.transpose(-1, -2) / _HEAD_WIDTH**0.5
        if causal:
            scores = scores - 10000.0 * torch.ones_like(scores).triu(1)
        mixed.append(scores.softmax(-1) @ v)
    return torch.cat(mixed, -1)


def vit(w: Weights, pixels: Tensor) -> Tensor:
    """Map (B, 3, S, S) to (B, P, D)."""
    patch = w["visual_encoder.patch_embed.proj.weight"]
    bias = w["visual_encoder.patch_embed.proj.bias"]
    x = F.conv2d(pixels, patch, bias, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual_encoder.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + w["visual_encoder.pos_embed"]
    index = 0
    while f"visual_encoder.blocks.{index}.norm1.weight" in w:
        block = f"visual_encoder.blocks.{index}"
        qkv = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x, eps=1e-6))
        x = x + linear(w, f"{block}.attn.proj", attention(*qkv.chunk(3, -1)))
        hidden = linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x, eps=1e-6))
        x = x + linear(w, f"{block}.mlp.fc2", F.gelu(hidden))
        index += 1
    return norm(w, "visual_encoder.norm", x, eps=1e-6)


def embed(w: Weights, prefix: str, ids: Tensor) -> Tensor:
    """Map (B, L) to (B, L, D)."""
    words = w[f"{prefix}.embeddings.word_embeddings.weight"][ids]
    positions = w[f"{prefix}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    return norm(w, f"{prefix}.embeddings.LayerNorm", words + positions, eps=1e-12)


def bert(
    w: Weights, prefix: str, x: Tensor, *, memories: Sequence[Tensor] = (), causal: bool = False
) -> Tensor:
    """Read embedded texts, (B, L, D): alone, with one memory, or with two as NLVR does."""
    index = 0
    while f"{prefix}.encoder.layer.{index}.output.dense.weight" in w:
        layer = f"{prefix}.encoder.layer.{index}"
        own = attend(w, f"{layer}.attention.self", x, x, causal=causal)
        own = linear(w, f"{layer}.attention.output.dense", own)
        x = norm(w, f"{layer}.attention.output.LayerNorm", x + own, eps=1e-12)
        if memories:
            cross = f"{layer}.crossattention"
            seen = look(w, cross, x, memories)
            x = norm(w, f"{cross}.output.LayerNorm", x + seen, eps=1e-12)
        hidden = F.gelu(linear(w, f"{layer}.intermediate.dense", x))
        x = norm(
            w,
            f"{layer}.output.LayerNorm",
            x + linear(w, f"{layer}.output.dense", hidden),
            eps=1e-12,
        )
        index += 1
    return x


def attend(w: Weights, name: str, x: Tensor, memory: Tensor, *, causal: bool = False) -> Tensor:
    query = linear(w, f"{name}.query", x)
    key, value = linear(w, f"{name}.key", memory), linear(w, f"{name}.value", memory)
    return attention(query, key, value, causal=causal)


def look(w: Weights, cross: str, x: Tensor, memories: Sequence[Tensor]) -> Tensor:
    if len(memories) == 1:
        return linear(w, f"{cross}.output.dense", attend(w, f"{cross}.self", x, memories[0]))
    first, second = (
        linear(w, f"{cross}.output.dense{i}", attend(w, f"{cross}.self{i}", x, memory))
        for i, memory in enumerate(memories)
    )
    if f"{cross}.output.merge_layer.weight" in w:
        return linear(w, f"{cross}.output.merge_layer", torch.cat([first, second], -1))
    return (first + second) / 2


def lm(w: Weights, prefix: str, ids: Tensor, memory: Tensor) -> Tensor:
    """Give the logits, (B, L, V), of a decoder."""
    embedded = embed(w, f"{prefix}.bert", ids)
    x = bert(w, f"{prefix}.bert", embedded, memories=[memory], causal=True)
    head = f"{prefix}.cls.predictions"
    x = F.gelu(linear(w, f"{head}.transform.dense", x))
    x = norm(w, f"{head}.transform.LayerNorm", x, eps=1e-12)
    return linear(w, f"{head}.decoder", x)


def caption_logits(w: Weights, pixels: Tensor, ids: Tensor) -> Tensor:
    """(B, L, V)."""
    return lm(w, "text_decoder", ids, vit(w, pixels))


def itm_logits(w: Weights, pixels: Tensor, ids: Tensor) -> Tensor:
    """(B, 2)."""
    x = bert(w, "text_encoder", embed(w, "text_encoder", ids), memories=[vit(w, pixels)])
    return linear(w, "itm_head", x[:, 0])


def itc_vectors(w: Weights, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors of images and of texts, each (B, E)."""
    text = bert(w, "text_encoder", embed(w, "text_encoder", ids))[:, 0]
    image = linear(w, "vision_proj", vit(w, pixels)[:, 0])
    return F.normalize(image, dim=-1), F.normalize(linear(w, "text_proj", text), dim=-1)


def vqa_logits(w: Weights, pixels: Tensor, questions: Tensor, answers: Tensor) -> Tensor:
    """(B, L, V)."""
    embedded = embed(w, "text_encoder", questions)
    return lm(
        w, "text_decoder", answers, bert(w, "text_encoder", embedded, memories=[vit(w, pixels)])
    )


def nlvr_logits(w: Weights, left: Tensor, right: Tensor, ids: Tensor) -> Tensor:
    """(B, 2)."""
    memories = [vit(w, left), vit(w, right)]
    x = bert(w, "text_encoder", embed(w, "text_encoder", ids), memories=memories)[:, 0]
    return linear(w, "cls_head.2", F.relu(linear(w, "cls_head.0", x)))


def grounding_logits(w: Weights, pixels: Tensor, phrases: Tensor, box: Tensor) -> Tensor:
    """(B, L, V); after mmpretrain's blip_grounding.py, with the original's vision names."""
    image = vit(w, pixels)
    alone = bert(w, "text_encoder", embed(w, "text_encoder", phrases))
    fused = bert(w, "multimodal_encoder", alone, memories=[image])
    return lm(w, "grounding_head.decoder", box, torch.cat([image, fused], 1))
