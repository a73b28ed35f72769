"""Attention and feed-forward blocks of the text side, and the memory that texts attend to.

Letters: B texts, I memories (images, or texts; text b reads memory b // (B / I)), M tokens of a
memory, R = B / I * L queries of a memory, L text tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.config import TextConfig

KV: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of what one layer attends to, each (I, H, M, D/H)."""

Source: TypeAlias = KV | Tensor
"""What one layer attends to: keys and values; or the tokens, (I, M, Dm), that they are made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the cross-attention of all layers reads: computed once, for all texts and steps."""

    layers: Sequence[Source]
    """For each layer: keys and values, or the same tokens for all."""
    mask: Tensor | None = None
    """(I, M) bool, True where a token is real; None if all are, as with images."""

    def __len__(self) -> int:
        """Return the number of memories, I."""
        return len(_first_tensor(self.layers[0]))

    @property
    def visible(self) -> Tensor | None:
        """(I, 1, 1, M) bool: the mask as attention takes it."""
        return None if self.mask is None else self.mask[:, None, None, :]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return _first_tensor(self.layers[0]).device

    def rows(self, index: Tensor) -> Memory:
        """Return the memories of these indices, (N,) int64, as copies."""
        mask = None if self.mask is None else self.mask[index]
        first = self.layers[0]
        if isinstance(first, Tensor):
            return Memory(layers=[first[index]] * len(self.layers), mask=mask)
        return Memory(layers=[(key[index], value[index]) for key, value in self.layers], mask=mask)


class MultiHead(nn.Module):
    """Multi-head attention of text tokens to a memory: their image, or another text."""

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
        key = by_head(self.key(memory), self.num_heads)
        return key, by_head(self.value(memory), self.num_heads)

    def forward(self, hidden: Tensor, *, source: Source, visible: Tensor | None = None) -> Tensor:
        """Map (B, L, D) to (B, L, D).

        Where B texts read I images, the texts of one image become one long text for the time of
        the attention: no token sees another text here, and keys and values are not copied.

        Args:
            hidden: (B, L, D).
            source: of I memories; B is a multiple of I.
            visible: bool, broadcastable to (I, H, R, M); None is all.
        """
        B, L, D = hidden.shape
        num_memories = len(_first_tensor(source))
        query = by_head(self.query(hidden).view(num_memories, -1, D), self.num_heads)
        if isinstance(source, Tensor):
            mixed = self._attend_folded(query, source, visible=visible)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = attend(query, source, visible=visible, dropout=dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(B, L, D))
        return out

    def _attend_folded(self, query: Tensor, tokens: Tensor, *, visible: Tensor | None) -> Tensor:
        """Attend to tokens as they are: the maps to keys and values act on queries and results.

        softmax(q (x K + k)') (x V + v) = (softmax((q K') x') x) V + v, since q k' adds the same to
        all scores of a query, and its weights sum to 1. There is no state but the tokens.

        Args:
            query: (I, H, R, D/H).
            tokens: (I, M, Dm).
            visible: (I, 1, 1, M) bool; None is all.

        Returns:
            (I, H, R, D/H).
        """
        I, H, R, size = query.shape  # noqa: E741  # a letter of the legend
        to_keys = self.key.weight.view(H, size, -1)
        to_values = self.value.weight.view(H, size, -1)
        rows = query.transpose(0, 1).reshape(H, I * R, size)
        wanted = _swapped(torch.bmm(rows, to_keys), I)  # (I, H R, Dm)
        scores = _scaled_product(wanted, tokens.transpose(1, 2), size**-0.5)  # (I, H R, M)
        if visible is not None:
            scores = scores.masked_fill(~visible[:, 0], -torch.inf)
        found = _swapped(torch.bmm(scores.softmax(-1), tokens), H)  # (H, I R, Dm)
        bias = self.value.bias.view(H, 1, size)
        mixed = torch.baddbmm(bias, found, to_values.transpose(1, 2))  # (H, I R, D/H)
        return mixed.view(H, I, R, size).transpose(0, 1)


class Attention(nn.Module):
    """Attention to a memory that adds its input and then normalises, as BERT does."""

    def __init__(self, config: TextConfig, *, memory_width: int) -> None:
        super().__init__()
        self.heads = MultiHead(config, memory_width=memory_width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def project(self, memory: Tensor) -> KV:
        """Map a memory, (I, M, Dm), to its keys and values, each (I, H, M, D/H)."""
        return self.heads.project(memory)

    def forward(self, hidden: Tensor, *, source: Source, visible: Tensor | None = None) -> Tensor:
        """Map (B, L, D) to (B, L, D); the arguments are those of `MultiHead`."""
        mixed = self.heads(hidden, source=source, visible=visible)
        normed: Tensor = self.norm(hidden + drop(mixed, self.dropout, training=self.training))
        return normed


class SelfHeads(nn.Module):
    """Multi-head attention of text tokens to their own text."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        # One map for three: its rows are query, key, value in this order.
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def project(self, hidden: Tensor) -> Tensor:
        """Map (B, L, D) to queries, keys and values, (3, B, H, L, D/H)."""
        B, L, D = hidden.shape
        qkv: Tensor = self.qkv(hidden).view(B, L, 3, self.num_heads, D // self.num_heads)
        return qkv.permute(2, 0, 3, 1, 4)

    def forward(self, query: Tensor, kv: KV, *, visible: Tensor | None) -> Tensor:
        """Map queries, (B, H, L, D/H), to (B, L, D).

        Args:
            query: of the tokens wanted.
            kv: of the tokens they may see.
            visible: bool, broadcastable to (B, H, L, M); None is all.
        """
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, kv, visible=visible, dropout=dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class SelfAttention(nn.Module):
    """Attention of a text to itself that adds its input and then normalises."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = SelfHeads(config)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def forward(self, hidden: Tensor, *, visible: Tensor, num_wanted: int | None = None) -> Tensor:
        """Map (B, L, D) to (B, L, D), or to the first so many tokens of it.

        Args:
            hidden: (B, L, D).
            visible: bool, broadcastable to (B, H, L, L): True where the row may see the column.
            num_wanted: tokens to compute, from the first on; None is all. `visible` must be the
                same for all rows then.
        """
        query, key, value = self.heads.project(hidden)
        mixed = self.heads(query[:, :, :num_wanted], (key, value), visible=visible)
        return self._added(hidden[:, :num_wanted], mixed)

    def step(self, hidden: Tensor, *, position: int, cache: Tensor) -> Tensor:
        """Map (B, L, D), the tokens from `position` on, to (B, L, D).

        Args:
            hidden: (B, L, D), L > 1 only at position 0.
            position: tokens that the cache holds already.
            cache: (2, B, H, room, D/H), keys and values; those of these tokens are written into it.
        """
        L = hidden.shape[1]
        projected = self.heads.project(hidden)
        cache[:, :, :, position : position + L] = projected[1:]
        seen = cache[:, :, :, : position + L]
        visible = hidden.new_ones(L, L, dtype=torch.bool).tril() if L > 1 else None
        mixed = self.heads(projected[0], (seen[0], seen[1]), visible=visible)
        return self._added(hidden, mixed)

    def _added(self, hidden: Tensor, mixed: Tensor) -> Tensor:
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


def attend(query: Tensor, kv: KV, *, visible: Tensor | None, dropout: float) -> Tensor:
    """Mix values by the softmax of scaled scores.

    Args:
        query: (I, H, R, D/H).
        kv: each (I, H, M, D/H).
        visible: bool, broadcastable to (I, H, R, M); None is all.
        dropout: of the weights, in [0, 1).

    Returns:
        (I, H, R, D/H).
    """
    num_queries = query.shape[2]
    if query.is_cpu and num_queries == 1 and dropout == 0:
        return _attend_alone(query, kv, visible=visible)
    # Filler rows. With fewer queries torch's CPU kernel gives each thread a buffer that may start
    # off a cache line, and MKL rounds by alignment: then a text's last bits would depend on which
    # thread it falls to, that is on its place in the batch.
    missing = -num_queries % 16 if query.is_cpu and num_queries < 32 else 0
    if missing:
        query = F.pad(query, (0, 0, 0, missing))
    if missing and visible is not None and visible.shape[-2] > 1:
        visible = F.pad(visible, (0, 0, 0, missing), value=True)
    mixed = F.scaled_dot_product_attention(query, *kv, attn_mask=visible, dropout_p=dropout)
    return mixed[:, :, :num_queries]


def _attend_alone(query: Tensor, kv: KV, *, visible: Tensor | None) -> Tensor:
    """Do what `attend` does with one query, as plain products: six times faster on a CPU."""
    # Flattened, heads that lie apart are copied; the product would copy them too, to a place where
    # a row's alignment, and so its last bits, depend on the place in the batch.
    key, value = kv[0].flatten(0, 1), kv[1].flatten(0, 1)  # (I H, M, D/H)
    scores = _scaled_product(query.flatten(0, 1), key.transpose(1, 2), query.shape[-1] ** -0.5)
    if visible is not None:
        apart = scores.view(*query.shape[:3], -1)  # (I, H, 1, M)
        scores = apart.masked_fill(~visible, -torch.inf).flatten(0, 1)
    return torch.bmm(scores.softmax(-1), value).view(query.shape)


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Map (N, X, Y) and (N, Y, Z) to (N, X, Z), scaled, in one operation."""
    nothing = left.new_empty(())  # beta = 0: it is not read
    return torch.baddbmm(nothing, left, right, beta=0, alpha=scale)


def by_head(tokens: Tensor, num_heads: int) -> Tensor:
    """Split (I, M, D) by heads, to (I, H, M, D/H)."""
    num_rows, num_tokens, width = tokens.shape
    return tokens.view(num_rows, num_tokens, num_heads, width // num_heads).transpose(1, 2)


def _first_tensor(source: Source) -> Tensor:
    return source if isinstance(source, Tensor) else source[0]


def _swapped(rows: Tensor, count: int) -> Tensor:
    """Swap the outer two of three counts: (X, count * R, D) becomes (count, X * R, D)."""
    outer, inner, width = rows.shape
    apart = rows.view(outer, count, inner // count, width).transpose(0, 1)
    return apart.reshape(count, outer * inner // count, width)
