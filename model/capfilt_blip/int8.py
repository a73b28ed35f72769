"""Linear maps in 8-bit whole numbers, for captioning and scoring on CPUs.

Weights are rounded once, each row of the output with a scale of its own. Inputs are rounded as they
come, each token with a scale of its own: so what becomes of a token does not depend on the tokens
beside it. The product of whole numbers is exact, and what follows it is rounded one operation at a
time, so a row has the same bits in any batch and on any number of threads.

The linear maps of all layers and the language-model head are rounded. Attention, LayerNorm,
embeddings, the patch projection and the small heads of ITM and ITC stay float32: they are a few
percent of the work, or decide alone.

The product is torch's own (`_int_mm`, oneDNN below it), the one that torchao's int8 runs on. Its
name begins with an underscore, so it is asked for a known answer before it is trusted. It is fast
on CPUs with 8-bit dot products (AVX-512 VNNI, AVX-VNNI, AMX); on others the answer is the same, and
late.

Letters: K width of the input, N width of the output.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.attention import MultiHead
from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.text import LanguageModelHead, TextStack
from capfilt_blip.vision import VisionTransformer

ModelT = TypeVar("ModelT", BlipCaptioner, BlipMatcher)

_LARGEST = 127
"""-128 is left out, so that the range is symmetric and zero stays zero."""

_ROWS_AT_ONCE = 512
"""Rows multiplied in one call: their product, at most 6 MB for ViT-B, stays in the cache."""

_SMALLEST_SCALE = 1e-30
"""Keeps a row of zeros from being divided by zero."""


class Int8Linear(nn.Module):
    """A linear map with rounded weights, for inference.

    Args:
        weight: (N, K) float, of the map that this one stands for.
        bias: (N,) float; None is zero.
    """

    rounded: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rounded, scale = _rounded(weight.detach().float())
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.register_buffer("rounded", rounded)  # (N, K) int8
        self.register_buffer("scale", scale.flatten())  # (N,)
        self.register_buffer("bias", bias.detach().float().clone())

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., K) float32 to (..., N) float32."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        out = rows.new_empty(len(rows), len(self.scale))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            rounded, scale = _rounded(rows[block])
            product = torch._int_mm(rounded, self.rounded.t())  # (R, N) int32
            # Not addcmul: it rounds once or twice, as the compiler likes.
            out[block].copy_(product).mul_(scale).mul_(self.scale).add_(self.bias)
        return out.view(*hidden.shape[:-1], -1)


class Int8LanguageModelHead(nn.Module):
    """A language-model head with a rounded copy of the word embeddings.

    The embeddings themselves stay as they are, for looking words up.

    Args:
        head: the head that this one stands for.
        words: (V, D), the word embeddings.
    """

    def __init__(self, head: LanguageModelHead, words: Tensor) -> None:
        super().__init__()
        self.dense = Int8Linear(head.dense.weight, head.dense.bias)
        self.norm = head.norm
        self.vocabulary = Int8Linear(words, head.bias)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Map (..., D) to (..., V) logits; `words` are those the copy was made of."""
        assert len(words) == len(self.vocabulary.scale), "these are the words of another model"
        logits: Tensor = self.vocabulary(self.norm(F.gelu(self.dense(hidden))))
        return logits


def quantise(model: ModelT) -> ModelT:
    """Round a model's linear maps, in place; there is no way back, and no training it.

    Args:
        model: float32, on the CPU.

    Raises:
        ValueError: products of 8-bit numbers are not exact here.
    """
    check_products()
    for stack in list(model.modules()):
        if isinstance(stack, VisionTransformer | TextStack):
            _round_linears(stack)
    if isinstance(model, BlipCaptioner) and isinstance(model.lm_head, LanguageModelHead):
        words = model.text_decoder.embeddings.words.weight
        model.add_module("lm_head", Int8LanguageModelHead(model.lm_head, words))
    return model


def check_products() -> None:
    """Multiply the largest numbers there are, and see whether the answer is right.

    CPUs that add pairs of products in 16 bits would cut these off.

    Raises:
        ValueError: it is not, or torch no longer has the operation.
    """
    left = torch.full((32, 64), _LARGEST, dtype=torch.int8)
    left[1::2] = -_LARGEST
    right = torch.full((64, 32), _LARGEST, dtype=torch.int8)
    multiply = getattr(torch, "_int_mm", None)
    if multiply is None or not torch.equal(multiply(left, right), left.int() @ right.int()):
        raise ValueError(
            f"dtype is 'int8', and torch {torch.__version__} cannot multiply 8-bit numbers "
            "exactly on this CPU; use 'float32'"
        )


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (R, K) int8 and (R, 1) scales whose product is nearly the rows, (R, K) float."""
    scale = (rows.abs().amax(-1, keepdim=True) / _LARGEST).clamp_(min=_SMALLEST_SCALE)
    return (rows / scale).round_().to(torch.int8), scale


def _round_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            rounded = Int8Linear(child.weight, child.bias)
            if isinstance(module, MultiHead) and name in ("key", "value"):
                # Attention that makes no keys and values multiplies by the weights themselves.
                rounded.register_buffer("weight", child.weight.detach())
            setattr(module, name, rounded)
        else:
            _round_linears(child)
