"""Ranking texts and images for each other: ITC vectors find candidates, the ITM head reads them.

What texts are ranked against is a gallery of items: images, which are items of one frame, or
videos, which are items of several (tasks/retriever.py, tasks/video.py).

Letters: N items, T texts, Q queries (items or texts), K candidates of a query, F frames of an item,
P image tokens of a frame, R pairs, C texts in a pass, L text tokens, D width, E shared width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt_blip.attention import Memory
from capfilt_blip.blip import BlipMatcher
from capfilt_blip.tasks.match_rows import MAX_TEXT_TOKENS
from capfilt_blip.tokenizer import Tokenizer

_QUERIES_PER_BLOCK = 256
"""Queries compared with all others at once: with 25,000 of these, 51 MB of cosines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """The candidates of each query, the best first; all else is not ranked. On the CPU."""

    indices: Tensor
    """(Q, K) int64, places of the candidates; of equal scores the lower place comes first."""
    scores: Tensor
    """(Q, K) float32, falling: ITM match logit (before the softmax) plus ITC cosine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """Both directions."""

    texts: Hits
    """Of each image or video, its texts."""
    images: Hits
    """Of each text, its images or videos."""


class Gallery(Protocol):
    """Items that can be encoded as often as they are needed."""

    def __len__(self) -> int:
        """Return N."""
        ...

    def encode(self, places: Sequence[int]) -> Iterator[Tensor]:
        """Yield the image tokens of these items, in this order, each (F, P, width of the images).

        Nothing that was yielded may be kept.
        """
        ...


class Reranker:
    """Ranks texts and items for each other. Image tokens are made twice and never kept.

    Args:
        model: a matcher in eval mode.
        tokenizer: the one the model was trained with.
        texts_per_pass: C, texts that are read with an item at once; fewer are padded to it.
    """

    def __init__(self, model: BlipMatcher, tokenizer: Tokenizer, *, texts_per_pass: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._texts_per_pass = max(1, texts_per_pass)

    @torch.inference_mode()
    def rank(self, gallery: Gallery, texts: Sequence[str], *, num_candidates: int) -> Retrieved:
        """Rank both ways. A pair that is a candidate in both is read once."""
        sides = self._sides(gallery, texts)
        of_items = _texts_of_items(sides, num_candidates=num_candidates)
        of_texts = _items_of_texts(sides, num_candidates=num_candidates)
        pairs = torch.unique(torch.cat([of_items.pairs.flatten(), of_texts.pairs.flatten()]))
        scores = self._scores(pairs, gallery, sides)
        return Retrieved(
            texts=_best_first(of_items, pairs, scores), images=_best_first(of_texts, pairs, scores)
        )

    @torch.inference_mode()
    def find_texts(self, gallery: Gallery, texts: Sequence[str], *, num_candidates: int) -> Hits:
        """Rank the texts of each item."""
        sides = self._sides(gallery, texts)
        return self._hits(_texts_of_items(sides, num_candidates=num_candidates), gallery, sides)

    @torch.inference_mode()
    def find_items(self, gallery: Gallery, texts: Sequence[str], *, num_candidates: int) -> Hits:
        """Rank the items of each text."""
        sides = self._sides(gallery, texts)
        return self._hits(_items_of_texts(sides, num_candidates=num_candidates), gallery, sides)

    def _hits(self, candidates: _Candidates, gallery: Gallery, sides: _Sides) -> Hits:
        pairs = torch.unique(candidates.pairs)
        return _best_first(candidates, pairs, self._scores(pairs, gallery, sides))

    def _sides(self, gallery: Gallery, texts: Sequence[str]) -> _Sides:
        batch = self._tokenizer.encode(
            texts, first="enc", max_tokens=MAX_TEXT_TOKENS, pad_to=MAX_TEXT_TOKENS
        )
        device = self._model.vision_proj.weight.device
        ids, mask = batch.ids.to(device), batch.mask.to(device)
        items = torch.empty(len(gallery), self._model.config.shared_width, device=device)
        for place, tokens in enumerate(gallery.encode(range(len(gallery)))):
            items[place] = self._item_vector(tokens)
        return _Sides(items=items, texts=self._text_vectors(ids, mask), ids=ids, mask=mask)

    def _item_vector(self, tokens: Tensor) -> Tensor:
        """Map image tokens, (F, P, width), to a unit vector, (E,) float32: the frames' mean."""
        return F.normalize(self._model.vision_proj(tokens[:, 0]).float().mean(0), dim=0)

    def _text_vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Map (T, L) texts to unit vectors, (T, E) float32."""
        lone_ids = ids.clone()
        lone_ids[:, 0] = self._tokenizer.cls_id
        passes = _passes(torch.arange(len(ids), device=ids.device), size=self._texts_per_pass)
        vectors = [self._model.text_vectors(lone_ids[rows], mask[rows]).float() for rows in passes]
        none = torch.empty(0, self._model.config.shared_width, device=ids.device)
        return torch.cat([none, *vectors])[: len(ids)]

    def _scores(self, pairs: Tensor, gallery: Gallery, sides: _Sides) -> Tensor:
        """Map pairs, (R,) int64 in rising order, to their scores, (R,) float32 on the CPU."""
        num_texts = max(1, len(sides.texts))
        found, counts = torch.unique_consecutive(pairs // num_texts, return_counts=True)
        places = torch.split(pairs % num_texts, counts.tolist())
        scores = [torch.empty(0)]
        for item, tokens, texts in zip(
            found.tolist(), gallery.encode(found.tolist()), places, strict=True
        ):
            # All frames of an item are one memory, in their order.
            memory = self._model.text_encoder.project_memory(tokens.flatten(0, 1)[None])
            scores.append(self._item_scores(memory, sides, item=item, texts=texts))
        return torch.cat(scores)

    def _item_scores(self, memory: Memory, sides: _Sides, *, item: int, texts: Tensor) -> Tensor:
        """Score one item with its texts, (number,) int64 places; return (number,) on the CPU."""
        passes = _passes(texts.to(sides.ids.device), size=self._texts_per_pass)
        scores = [
            self._model.itm_logits(sides.ids[rows], sides.mask[rows], memory)[:, 1].float()
            + (sides.texts[rows] * sides.items[item]).sum(-1)
            for rows in passes
        ]
        return torch.cat(scores)[: len(texts)].cpu()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """What is compared, where the model computes."""

    items: Tensor
    """(N, E) float32 unit vectors."""
    texts: Tensor
    """(T, E) float32 unit vectors."""
    ids: Tensor
    """(T, L) int64, [ENC] first."""
    mask: Tensor
    """(T, L) bool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """The others that are nearest to each query, as places and as pairs; both (Q, K) int64.

    A pair is one number, item * T + text: it sorts by item, then by text.
    """

    places: Tensor
    pairs: Tensor


def _texts_of_items(sides: _Sides, *, num_candidates: int) -> _Candidates:
    texts = nearest(sides.items, sides.texts, num_candidates=num_candidates)
    items = torch.arange(len(sides.items))[:, None]
    return _Candidates(places=texts, pairs=items * len(sides.texts) + texts)


def _items_of_texts(sides: _Sides, *, num_candidates: int) -> _Candidates:
    items = nearest(sides.texts, sides.items, num_candidates=num_candidates)
    texts = torch.arange(len(sides.texts))[:, None]
    return _Candidates(places=items, pairs=items * len(sides.texts) + texts)


def nearest(queries: Tensor, others: Tensor, *, num_candidates: int) -> Tensor:
    """Find for each query the others with the highest cosines.

    Args:
        queries: (Q, E) float32 unit vectors.
        others: (N, E) float32 unit vectors.
        num_candidates: K, at most; N if that is less.

    Returns:
        (Q, min(K, N)) int64 on the CPU: their places in rising order. Of equal cosines the lower
        places are taken.

    Raises:
        ValueError: `num_candidates` is less than 1.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates is {num_candidates}; it must be 1 or more")
    found = [torch.empty(0, min(num_candidates, len(others)), dtype=torch.int64)]
    # In float32 the rounding of a cosine depends on where in the matrix it stands, so that equal
    # vectors would not be equally near; in float64 that is lost when it is cut to float32.
    columns = others.double().T
    for block in torch.split(queries.double(), _QUERIES_PER_BLOCK):
        # topk would be faster, but takes any of equal ones.
        order = (block @ columns).float().argsort(dim=1, descending=True, stable=True)
        found.append(order[:, :num_candidates].sort(dim=1).values.cpu())
    return torch.cat(found)


def _best_first(candidates: _Candidates, pairs: Tensor, scores: Tensor) -> Hits:
    """Sort the candidates by the scores of their pairs, (R,), which `pairs` gives in order."""
    rows = scores[torch.searchsorted(pairs, candidates.pairs)]  # (Q, K)
    best = rows.sort(dim=1, descending=True, stable=True)
    return Hits(indices=candidates.places.gather(1, best.indices), scores=best.values)


def _passes(places: Tensor, *, size: int) -> tuple[Tensor, ...]:
    """Cut places, (any,) int64, into passes of one size; the last is filled up with its first.

    Kernels, and so the last bits of a result, are chosen by shape.
    """
    filler = places[:1].expand(-len(places) % size)
    return torch.split(torch.cat([places, filler]), size) if len(places) else ()
