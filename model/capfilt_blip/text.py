"""The text side (MED, arXiv:2201.12086, fig. 2): one BERT-shaped stack, four ways to read a text.

    encode   unimodal encoder          every token sees every token, no image
    fuse     image-grounded encoder    every token sees every token, and the image
    decode   image-grounded decoder    a token sees itself and those before, and the image
    step     the same, a few tokens at a time, with what came before in a cache

Attention to the image needs its keys and values, which depend on the image alone: `project_image`
computes them once, for all texts of the image and for all steps of a caption.

Letters: B texts, I images (B is a multiple of I: text b reads image b // (B / I)), P image tokens,
L text tokens, D width, H heads, V vocabulary.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.config import TextConfig

KV: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of what one layer attends to, each (I, H, M, D/H)."""

ImageKV: TypeAlias = list[KV]
"""Keys and values of the images for each layer."""


class TextStack(nn.Module):
    """Embeddings and layers; what a text is read as is chosen by the method."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.depth))
        self.apply(_initialise)

    def twin(self) -> TextStack:
        """Return a stack that shares every parameter with this one, but has its own self-attention.

        This is how pre-training ties encoder and decoder (arXiv:2201.12086, sec. 3.2, table 3):
        embeddings, cross-attention and feed-forward layers are the same objects in both.
        """
        twin = TextStack(self.config)
        twin.embeddings = self.embeddings
        for own, shared in zip(twin._text_layers(), self._text_layers(), strict=True):
            own.cross_attention = shared.cross_attention
            own.feed_forward = shared.feed_forward
        return twin

    def project_image(self, image_embeds: Tensor) -> ImageKV:
        """Compute what cross-attention needs of the images, once for all texts and steps.

        Args:
            image_embeds: (I, P, width of the image tokens), from the vision transformer.
        """
        return [layer.cross_attention.project(image_embeds) for layer in self._text_layers()]

    def encode(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Read texts on their own.

        Args:
            token_ids: (B, L) int64, [CLS] first.
            mask: (B, L) bool, True where a token is real.

        Returns:
            (B, L, D).
        """
        return self._read(token_ids, mask[:, None, None, :], image_kv=None)

    def fuse(self, token_ids: Tensor, mask: Tensor, image_kv: ImageKV) -> Tensor:
        """Read texts together with their images.

        Args:
            token_ids: (B, L) int64, [ENC] first: it is the position that the ITM head reads.
            mask: (B, L) bool, True where a token is real.
            image_kv: of I images; the texts of one image follow each other.

        Returns:
            (B, L, D).
        """
        return self._read(token_ids, mask[:, None, None, :], image_kv=image_kv)

    def decode(self, token_ids: Tensor, mask: Tensor, image_kv: ImageKV) -> Tensor:
        """Read texts from left to right, given their images; position l predicts token l + 1.

        Args:
            token_ids: (B, L) int64, [DEC] first.
            mask: (B, L) bool, True where a token is real.
            image_kv: of I images; the texts of one image follow each other.

        Returns:
            (B, L, D).
        """
        L = token_ids.shape[1]
        square = torch.ones(L, L, dtype=torch.bool, device=mask.device)
        # Padding sees itself: a row that sees nothing would turn into NaN.
        visible = (square.tril() & mask[:, None, :]) | torch.eye(
            L, dtype=torch.bool, device=mask.device
        )
        return self._read(token_ids, visible[:, None], image_kv=image_kv)

    def new_cache(self, *, num_texts: int, num_tokens: int) -> Tensor:
        """Return an empty cache for `step`, with room for `num_tokens` tokens of each text.

        Returns:
            (depth, 2, num_texts, H, num_tokens, D/H), zeros in the dtype and on the device of the
            weights: the keys and the values of each layer's self-attention.
        """
        heads, width = self.config.num_heads, self.config.width
        shape = (self.config.depth, 2, num_texts, heads, num_tokens, width // heads)
        return self.embeddings.words.weight.new_zeros(shape)

    def step(self, token_ids: Tensor, *, position: int, cache: Tensor, image_kv: ImageKV) -> Tensor:
        """Read the next tokens as `decode` does, without reading again what came before.

        For inference: no gradients flow through the cache.

        Args:
            token_ids: (B, L) int64 without padding: a whole prompt at position 0, else one token.
            position: how many tokens of each text the cache holds already.
            cache: from `new_cache`; what these tokens add is written into it.
            image_kv: of I images; the texts of one image follow each other.

        Returns:
            (B, D), the hidden state of the last token given.
        """
        assert position == 0 or token_ids.shape[1] == 1, "only a prompt may hold several tokens"
        hidden: Tensor = self.embeddings(token_ids, position=position)
        layers = zip(self._text_layers(), cache, image_kv, strict=True)
        for layer, layer_cache, image in layers:
            hidden = layer.step(hidden, position=position, cache=layer_cache, image=image)
        return hidden[:, -1]

    def _read(self, token_ids: Tensor, visible: Tensor, *, image_kv: ImageKV | None) -> Tensor:
        hidden: Tensor = self.embeddings(token_ids)
        for index, layer in enumerate(self.layers):
            hidden = layer(
                hidden, visible=visible, image=None if image_kv is None else image_kv[index]
            )
        return hidden

    def _text_layers(self) -> list[TextLayer]:
        return cast("list[TextLayer]", list(self.layers))


class TextEmbeddings(nn.Module):
    """Words plus positions, normalised. BLIP drops BERT's token types."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def forward(self, token_ids: Tensor, *, position: int = 0) -> Tensor:
        """Map (B, L) int64 to (B, L, D); the first token stands at `position`."""
        end = position + token_ids.shape[1]
        hidden = self.words(token_ids) + self.positions.weight[position:end]
        return F.dropout(self.norm(hidden), self.dropout, self.training)


class TextLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each adds its input and then normalises."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config, memory_width=config.width)
        self.cross_attention = Attention(config, memory_width=config.image_width)
        self.feed_forward = FeedForward(config)

    def forward(self, hidden: Tensor, *, visible: Tensor, image: KV | None) -> Tensor:
        """Map (B, L, D) to (B, L, D).

        Args:
            hidden: (B, L, D).
            visible: bool, broadcastable to (B, H, L, L): True where the row may see the column.
            image: this layer's keys and values of the images; None leaves cross-attention out.
        """
        hidden = self.self_attention(
            hidden, kv=self.self_attention.project(hidden), visible=visible
        )
        if image is not None:
            hidden = self.cross_attention(hidden, kv=image)
        out: Tensor = self.feed_forward(hidden)
        return out

    def step(self, hidden: Tensor, *, position: int, cache: Tensor, image: KV) -> Tensor:
        """Map (B, L, D), the tokens from `position` on, to (B, L, D).

        Args:
            hidden: (B, L, D), L > 1 only at position 0.
            position: tokens that the cache holds already.
            cache: (2, B, H, room, D/H), keys and values; those of these tokens are written into it.
            image: this layer's keys and values of the images.
        """
        L = hidden.shape[1]
        seen = cache[:, :, :, : position + L]
        seen[0, :, :, position:], seen[1, :, :, position:] = self.self_attention.project(hidden)
        visible = hidden.new_ones(L, L, dtype=torch.bool).tril() if L > 1 else None
        hidden = self.self_attention(hidden, kv=(seen[0], seen[1]), visible=visible)
        out: Tensor = self.feed_forward(self.cross_attention(hidden, kv=image))
        return out


class Attention(nn.Module):
    """Multi-head attention of text tokens to a memory: the text itself, or its image."""

    def __init__(self, config: TextConfig, *, memory_width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(memory_width, config.width)
        self.value = nn.Linear(memory_width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

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
        mixed = self.out(mixed.transpose(1, 2).reshape(B, L, D))
        normed: Tensor = self.norm(hidden + F.dropout(mixed, self.dropout, self.training))
        return normed

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
        residual = F.dropout(self.down(F.gelu(self.up(hidden))), self.dropout, self.training)
        normed: Tensor = self.norm(hidden + residual)
        return normed


class LanguageModelHead(nn.Module):
    """Turn hidden states into token logits, with the word embeddings as the last linear map."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(_initialise)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Score the whole vocabulary at each position.

        Args:
            hidden: (..., D), from `decode` or `step`.
            words: (V, D), the word embeddings; handed in, not held, so that the tie cannot break.

        Returns:
            (..., V) logits.
        """
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words, self.bias)


def _initialise(module: nn.Module) -> None:
    # As in BERT: normal of 0.02, biases 0, LayerNorm 1 and 0.
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
