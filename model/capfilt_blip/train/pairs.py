"""The pairs of a batch as tensors: its texts as tokens, the candidates, and what matches what.

Each text is tokenised once; what it is read as is its first token, which is exchanged.

B rows of this process, N candidates, T rows of all processes, R texts per row, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt_blip import losses
from capfilt_blip.tokenizer import TokenBatch, Tokenizer
from capfilt_blip.train.batches import TextImageBatch, ids_of, image_ids_of
from capfilt_blip.train.draws import key_of, uniform_draws
from capfilt_blip.train.world import World

Negatives = Literal["local", "global"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts as tokens, padded on the right."""

    ids: Tensor  # (..., L) int64
    mask: Tensor  # (..., L) bool, True where a token is real

    def read_as(self, first_id: int) -> Tensor:
        """Give the ids, (..., L), with another first token."""
        return torch.cat([torch.full_like(self.ids[..., :1], first_id), self.ids[..., 1:]], dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What the contrast needs to know of a batch, or of a part of it."""

    own: Texts
    """(R, B, L): the true texts, then the distractors."""
    candidates: Texts
    """(N, L), the true texts only."""
    image_ids: Tensor
    """(B,) int64, equal for equal images."""
    text_ids: Tensor
    """(B,) int64, equal for equal texts."""
    all_image_ids: Tensor
    """(T,) int64, those of all processes."""
    all_text_ids: Tensor
    """(T,) int64, those of all processes."""
    known_to_text: Tensor
    """(B, N) bool, True where candidate text n is true of image b."""
    known_to_image: Tensor
    """(B, N) bool, True where text b is true of candidate image n."""
    draws: Tensor
    """(2, B) float64, uniform in [0, 1): for the wrong text and the wrong image of each row."""
    counts: Sequence[int]
    """Rows of each process; T in all."""
    first_row: int
    """Of this process, among the rows of all."""
    is_global: bool
    """Whether the candidates are the rows of all processes, and not B alone."""

    @property
    def num_itm_pairs(self) -> Tensor:
        """How many pairs ITM learns of these, a scalar."""
        found = [
            losses.has_wrong_partner(k).sum() for k in (self.known_to_text, self.known_to_image)
        ]
        return found[0] + found[1] + self.own.ids.shape[0] * self.own.ids.shape[1]


class PairReader:
    """Makes batches into pairs; all processes call it together.

    Args:
        tokenizer: the model's.
        max_tokens: longest text, special tokens included.
        negatives: whose rows are candidates, see `ContrastSettings`.
        seed: of the draws, which depend on the step and not on the number of processes.
        world: the processes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        negatives: Negatives,
        seed: int,
        world: World,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._is_global = negatives == "global" and world.size > 1
        self._seed = seed
        self._world = world

    def read(
        self, parts: Sequence[TextImageBatch], *, step: int, num_samples: int, device: torch.device
    ) -> list[Pairs]:
        """Read the parts of this process's share of a batch.

        Args:
            parts: as many in each process.
            step: from 0.
            num_samples: rows of all processes before this batch.
            device: of the model.
        """
        encoded = [self._encoded(part) for part in parts]
        lengths = [batch.ids.shape[1] for batch in encoded]
        sizes = [len(part.images) for part in parts]
        told = self._world.told([*sizes, *lengths], device=device)
        found = list[Pairs]()
        for index, (part, batch) in enumerate(zip(parts, encoded, strict=True)):
            pairs = self._pairs(
                part,
                _padded(batch, length=max(row[len(parts) + index] for row in told), device=device),
                counts=[row[index] for row in told],
                first_sample=num_samples,
                key=key_of("negatives", self._seed, step, index),
            )
            found.append(pairs)
            num_samples += sum(pairs.counts)
        return found

    def _encoded(self, part: TextImageBatch) -> TokenBatch:
        texts = [text for row in (part.texts, *part.distractors) for text in row]
        return self._tokenizer.encode(texts, first="cls", max_tokens=self._max_tokens)

    def _pairs(
        self,
        part: TextImageBatch,
        texts: Texts,
        *,
        counts: Sequence[int],
        first_sample: int,
        key: int,
    ) -> Pairs:
        num_rows, device = len(part.images), texts.ids.device
        shape = (-1, num_rows, texts.ids.shape[1])
        own = Texts(ids=texts.ids.view(shape), mask=texts.mask.view(shape))
        first_row = sum(counts[: self._world.rank])
        ids = [
            image_ids_of(part, first_sample=first_sample + first_row, device=device),
            ids_of(part.texts, device=device),
        ]
        all_ids = [self._world.gather(own_ids, counts=counts) for own_ids in ids]
        near = all_ids if self._is_global else ids
        known = losses.known_pairs(*ids, all_image_ids=near[0], all_text_ids=near[1])
        told, first_column = part.known_matches, first_row if self._is_global else 0
        draws = uniform_draws(key, num_draws=sum(counts))
        return Pairs(
            own=own,
            candidates=self._candidates(own, counts=counts),
            image_ids=ids[0],
            text_ids=ids[1],
            all_image_ids=all_ids[0],
            all_text_ids=all_ids[1],
            known_to_text=_also_known(known, told, first_column=first_column),
            known_to_image=_also_known(
                known, None if told is None else told.T, first_column=first_column
            ),
            draws=draws[:, first_row : first_row + num_rows].to(device),
            counts=counts,
            first_row=first_row,
            is_global=self._is_global,
        )

    def _candidates(self, own: Texts, *, counts: Sequence[int]) -> Texts:
        ids, mask = own.ids[0], own.mask[0]
        if not self._is_global:
            return Texts(ids=ids, mask=mask)
        return Texts(
            ids=self._world.gather(ids, counts=counts), mask=self._world.gather(mask, counts=counts)
        )


def _padded(batch: TokenBatch, *, length: int, device: torch.device) -> Texts:
    missing = length - batch.ids.shape[1]
    # Any id will do where the mask is False.
    ids, mask = F.pad(batch.ids, (0, missing)), F.pad(batch.mask, (0, missing))
    return Texts(ids=ids.to(device), mask=mask.to(device))


def _also_known(known: Tensor, told: Tensor | None, *, first_column: int) -> Tensor:
    """Add pairs that a batch says are true, (B, B), to (B, N) that are seen to be."""
    if told is None:
        return known
    after = known.shape[1] - first_column - told.shape[1]
    return known | F.pad(told.to(known.device), (first_column, after))
