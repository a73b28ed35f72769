"""Attention and feed-forward blocks of the text side, and the memory that texts attend to.

Letters: B texts, I memories (images, or texts; text b reads memory b // (B / I)), M tokens of a
memory, L text tokens, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.config import TextConfig

KV: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of what one layer attends to, each (I, H, M, D/H)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the cross-attention of all layers reads: computed once, for all texts and steps."""

    layers: list[KV]
    """Keys and values for each layer."""
    mask: Tensor | None = None
    """(I, M) bool, True where a token is real; None if all are, as with images."""

    def __len__(self) -> int:
        """Return the number of memories, I."""
        return len(self.layers[0][0])

    @property
    def visible(self) -> Tensor | None:
        """(I, 1, 1, M) bool: the mask as attention takes it."""
        return None if self.mask is None else self.mask[:, None, None, :]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.layers[0][0].device

    def rows(self, index: Tensor) -> Memory:
        """Return the memories of these indices, (N,) int64, as copies."""
        layers = [(key[index], value[index]) for key, value in self.layers]
        return Memory(layers=layers, mask=None if self.mask is None else self.mask[index])


class MultiHead(nn.Module):
    """Multi-head attention of text tokens to a memory: the text itself, or its image."""

    def __init__(self, config: TextConfig, *, memory_width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(memory_width, config.width)
        self.value = nn.Linear(memory_width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def project(self, memory: Tensor) -> KV:
        """Map a memory, (I, M, Dm), to its keys and values, each (I, H, M, D/H)."""
        return self._by_head(self.key(memory)), self._by_head(self.value(memory))

    def forward(self, hidden: Tensor, *, kv: KV, visible: Tensor | None = None) -> Tensor:
        """Map (B, L, D) to (B, L, D).

        Where B texts read I images, the texts of one image become one long text for the time of
        the attention: no token sees another text here, and keys and values are not copied.

        Args:
            hidden: (B, L, D).
            kv: keys and values, each (I, H, M, D/H); B is a multiple of I.
            visible: bool, broadcastable to (I, H, B / I * L, M); None is all.
        """
        B, L, D = hidden.shape
        query = self._by_head(self.query(hidden).view(len(kv[0]), -1, D))  # (I, H, B / I * L, D/H)
        mixed = self._attend(query, kv, visible=visible)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(B, L, D))
        return out

    def _attend(self, query: Tensor, kv: KV, *, visible: Tensor | None) -> Tensor:
        num_queries = query.shape[2]
        # Filler rows. With fewer queries torch's CPU kernel gives each thread a buffer that may
        # start off a cache line, and MKL rounds by alignment: then a text's last bits would depend
        # on which thread it falls to, that is on its place in the batch.
        missing = -num_queries % 16 if query.is_cpu and num_queries < 32 else 0
        query = F.pad(query, (0, 0, 0, missing))
        if visible is not None and visible.shape[-2] > 1:
            visible = F.pad(visible, (0, 0, 0, missing), value=True)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, *kv, attn_mask=visible, dropout_p=dropout)
        return mixed[:, :, :num_queries]

    def _by_head(self, tokens: Tensor) -> Tensor:
        num_rows, num_tokens, width = tokens.shape
        split = tokens.view(num_rows, num_tokens, self.num_heads, width // self.num_heads)
        return split.transpose(1, 2)  # (B, H, L, D/H)


class Attention(nn.Module):
    """Multi-head attention that adds its input and then normalises, as BERT does."""

    def __init__(self, config: TextConfig, *, memory_width: int) -> None:
        super().__init__()
        self.heads = MultiHead(config, memory_width=memory_width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def project(self, memory: Tensor) -> KV:
        """Map a memory, (I, M, Dm), to its keys and values, each (I, H, M, D/H)."""
        return self.heads.project(memory)

    def forward(self, hidden: Tensor, *, kv: KV, visible: Tensor | None = None) -> Tensor:
        """Map (B, L, D) to (B, L, D); the arguments are those of `MultiHead`."""
        mixed = self.heads(hidden, kv=kv, visible=visible)
        normed: Tensor = self.norm(hidden + drop(mixed, self.dropout, training=self.training))
        return normed


class FeedForward(nn.Module):
    """Two linear maps with an exact GELU between them, added and normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        residual = self.down(F.gelu(self.up(hidden)))
        normed: Tensor = self.norm(hidden + drop(residual, self.dropout, training=self.training))
        return normed


def drop(hidden: Tensor, probability: float, *, training: bool) -> Tensor:
    """Apply dropout in training; else do nothing, not even call torch.

    Out of training torch's own is a call that changes nothing: 37 of them in each decoding step.
    """
    return F.dropout(hidden, probability) if training else hidden
