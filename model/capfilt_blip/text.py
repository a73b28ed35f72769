"""The text side (MED, arXiv:2201.12086, fig. 2): one BERT-shaped stack, four ways to read a text.

    encode   unimodal encoder          every token sees every token, no image
    fuse     image-grounded encoder    every token sees every token, and the image
    decode   image-grounded decoder    a token sees itself and those before, and the image
    step     the same, a few tokens at a time, with what came before in a cache

Attention to the image needs its keys and values, which depend on the image alone: `project_memory`
computes them once, for all texts of the image and for all steps of a caption. What is read need not
be an image: the answer decoder of VQA reads questions.

Letters: B texts, I images (B is a multiple of I: text b reads image b // (B / I)), P image tokens,
L text tokens, D width, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.attention import Attention, FeedForward, Memory, SelfAttention, Source, drop
from capfilt_blip.config import TextConfig
from capfilt_blip.recompute import layer_calls

_FOLDED_QUERIES = {"cpu": 32, "cuda": 128}
"""From so many on, keys and values pay. On a CPU, where products of few rows run at half speed, 32
of 64 (D / H). On a GPU by arithmetic: decoding is bound by what it moves, 21 MB per image."""


class TextStack(nn.Module):
    """Embeddings and layers; what a text is read as is chosen by the method."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.depth))
        self.num_recomputed = 0  # see `recompute_activations`
        self.apply(initialise_text)

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

    def project_memory(self, embeds: Tensor, *, mask: Tensor | None = None) -> Memory:
        """Compute what cross-attention needs of the images, once for all texts and steps.

        Args:
            embeds: (I, P, width of the image tokens), from the vision transformer.
            mask: (I, P) bool, True where a token is real; None if all are.
        """
        layers = [layer.cross_attention.project(embeds) for layer in self._text_layers()]
        return Memory(layers=layers, mask=mask)

    def memory_for(self, embeds: Tensor, *, num_queries: int) -> Memory:
        """Choose what cross-attention reads of images, by how often they are read.

        Keys and values cost 4 P Dm D operations for each image and layer, and a query reads them
        for 4 P D. A query that reads the tokens themselves takes 4 P Dm H, and no keys and values
        are needed: cheaper for fewer than D / H queries, and 24 times less to keep and to move.

        Args:
            embeds: (I, P, width of the image tokens), from the vision transformer.
            num_queries: text tokens that will read each image, over all texts and steps.
        """
        if num_queries >= _FOLDED_QUERIES.get(embeds.device.type, _FOLDED_QUERIES["cpu"]):
            return self.project_memory(embeds)
        return Memory(layers=[embeds] * len(self.layers))

    def encode(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Read texts on their own.

        Args:
            token_ids: (B, L) int64, [CLS] first.
            mask: (B, L) bool, True where a token is real.

        Returns:
            (B, L, D).
        """
        return self._read(self.embeddings(token_ids), mask[:, None, None, :], memory=None)

    def encode_first(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Give what `encode` gives for the first token of each text, (B, D), for less.

        The last layer is computed for that token alone.
        """
        hidden = self.embeddings(token_ids)
        return self._read(hidden, mask[:, None, None, :], memory=None, num_wanted=1)[:, 0]

    def fuse(self, token_ids: Tensor, mask: Tensor, memory: Memory) -> Tensor:
        """Read texts together with their images.

        Args:
            token_ids: (B, L) int64, [ENC] first: it is the position that the ITM head reads.
            mask: (B, L) bool, True where a token is real.
            memory: of I images; the texts of one image follow each other.

        Returns:
            (B, L, D).
        """
        return self.fuse_embedded(self.embeddings(token_ids), mask, memory)

    def fuse_first(self, token_ids: Tensor, mask: Tensor, memory: Memory) -> Tensor:
        """Give what `fuse` gives for the first token of each text, (B, D), for less."""
        hidden = self.embeddings(token_ids)
        return self._read(hidden, mask[:, None, None, :], memory=memory, num_wanted=1)[:, 0]

    def fuse_embedded(self, hidden: Tensor, mask: Tensor, memory: Memory) -> Tensor:
        """Do what `fuse` does with texts that another stack has read already.

        Args:
            hidden: (B, L, D), taken as they are in place of embeddings.
            mask: (B, L) bool.
            memory: as of `fuse`.

        Returns:
            (B, L, D).
        """
        return self._read(hidden, mask[:, None, None, :], memory=memory)

    def decode(self, token_ids: Tensor, mask: Tensor, memory: Memory) -> Tensor:
        """Read texts from left to right, given their images; position l predicts token l + 1.

        Args:
            token_ids: (B, L) int64, [DEC] first.
            mask: (B, L) bool, True where a token is real.
            memory: of I images; the texts of one image follow each other.

        Returns:
            (B, L, D).
        """
        L = token_ids.shape[1]
        square = torch.ones(L, L, dtype=torch.bool, device=mask.device)
        # Padding sees itself: a row that sees nothing would turn into NaN.
        visible = (square.tril() & mask[:, None, :]) | torch.eye(
            L, dtype=torch.bool, device=mask.device
        )
        return self._read(self.embeddings(token_ids), visible[:, None], memory=memory)

    def new_cache(self, *, num_texts: int, num_tokens: int) -> Tensor:
        """Return an empty cache for `step`, with room for `num_tokens` tokens of each text.

        Returns:
            (depth, 2, num_texts, H, num_tokens, D/H), zeros in the dtype and on the device of the
            weights: the keys and the values of each layer's self-attention.
        """
        heads, width = self.config.num_heads, self.config.width
        shape = (self.config.depth, 2, num_texts, heads, num_tokens, width // heads)
        return self.embeddings.words.weight.new_zeros(shape)

    def step(self, token_ids: Tensor, *, position: int, cache: Tensor, memory: Memory) -> Tensor:
        """Read the next tokens as `decode` does, without reading again what came before.

        For inference: no gradients flow through the cache.

        Args:
            token_ids: (B, L) int64 without padding: a whole prompt at position 0, else one token.
            position: how many tokens of each text the cache holds already.
            cache: from `new_cache`; what these tokens add is written into it.
            memory: of I images; the texts of one image follow each other.

        Returns:
            (B, D), the hidden state of the last token given.
        """
        assert position == 0 or token_ids.shape[1] == 1, "only a prompt may hold several tokens"
        hidden: Tensor = self.embeddings(token_ids, position=position)
        visible = memory.visible
        layers = zip(self._text_layers(), cache, memory.layers, strict=True)
        for layer, layer_cache, source in layers:
            hidden = layer.step(
                hidden,
                position=position,
                cache=layer_cache,
                source=source,
                source_visible=visible,
            )
        return hidden[:, -1]

    def read_prompt(
        self, prompt_ids: Sequence[int] | Tensor, *, num_texts: int, num_tokens: int, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Read the prompt that all texts begin with, once for each image.

        Args:
            prompt_ids: tokens of the prompt, (L,) if they are a tensor.
            num_texts: B; the texts of one image will follow each other.
            num_tokens: tokens of each text that the cache must have room for, the prompt's too.
            memory: of I images.

        Returns:
            (B, D), the hidden state of the prompt's last token; and the cache for `step`.
        """
        num_images, length = len(memory), len(prompt_ids)
        prompts = torch.as_tensor(prompt_ids, device=memory.device).expand(num_images, length)
        read = self.new_cache(num_texts=num_images, num_tokens=length)
        hidden = self.step(prompts, position=0, cache=read, memory=memory)
        cache = self.new_cache(num_texts=num_texts, num_tokens=num_tokens)
        copies = num_texts // num_images
        cache[:, :, :, :, :length] = read.repeat_interleave(copies, dim=2)
        return hidden.repeat_interleave(copies, dim=0), cache

    def _read(
        self,
        hidden: Tensor,
        visible: Tensor,
        *,
        memory: Memory | None,
        num_wanted: int | None = None,
    ) -> Tensor:
        """Go through the layers; of the last one only the first `num_wanted` tokens."""
        sources = [None] * len(self.layers) if memory is None else memory.layers
        seen = None if memory is None else memory.visible
        calls = layer_calls(self.layers, num_recomputed=self.num_recomputed, training=self.training)
        wanted = [None] * (len(calls) - 1) + [num_wanted]
        for call, source, count in zip(calls, sources, wanted, strict=True):
            hidden = call(
                hidden, visible=visible, source=source, source_visible=seen, num_wanted=count
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
        return drop(self.norm(hidden), self.dropout, training=self.training)


class TextLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each adds its input and then normalises."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.cross_attention = Attention(config, memory_width=config.image_width)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        hidden: Tensor,
        *,
        visible: Tensor,
        source: Source | None,
        source_visible: Tensor | None,
        num_wanted: int | None = None,
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D), or to the first so many tokens of it.

        Args:
            hidden: (B, L, D).
            visible: bool, broadcastable to (B, H, L, L): True where the row may see the column.
            source: what this layer reads of the images; None leaves cross-attention out.
            source_visible: (I, 1, 1, P) bool, which of their tokens may be seen; None is all.
            num_wanted: tokens to compute, from the first on; see `SelfAttention`.
        """
        hidden = self.self_attention(hidden, visible=visible, num_wanted=num_wanted)
        if source is not None:
            hidden = self.cross_attention(hidden, source=source, visible=source_visible)
        out: Tensor = self.feed_forward(hidden)
        return out

    def step(
        self,
        hidden: Tensor,
        *,
        position: int,
        cache: Tensor,
        source: Source,
        source_visible: Tensor | None,
    ) -> Tensor:
        """Map (B, L, D), the tokens from `position` on, to (B, L, D).

        Args:
            hidden: (B, L, D), L > 1 only at position 0.
            position: tokens that the cache holds already.
            cache: (2, B, H, room, D/H), keys and values; those of these tokens are written into it.
            source: what this layer reads of the images.
            source_visible: (I, 1, 1, P) bool, which of their tokens may be seen; None is all.
        """
        hidden = self.self_attention.step(hidden, position=position, cache=cache)
        hidden = self.cross_attention(hidden, source=source, visible=source_visible)
        out: Tensor = self.feed_forward(hidden)
        return out


class LanguageModelHead(nn.Module):
    """Turn hidden states into token logits, with the word embeddings as the last linear map."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(initialise_text)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Score the whole vocabulary at each position.

        Args:
            hidden: (..., D), from `decode` or `step`.
            words: (V, D), the word embeddings; handed in, not held, so that the tie cannot break.

        Returns:
            (..., V) logits.
        """
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words, self.bias)


def initialise_text(module: nn.Module) -> None:
    """Give one module BERT's first weights: normal of 0.02, biases 0; LayerNorm keeps 1 and 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
