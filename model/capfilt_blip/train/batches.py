"""What trainings read: batches of rows, and above all images with their texts.

B batch, S image side in pixels, L text tokens.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class Batch(Protocol):
    """Rows of one step, in an order."""

    def __len__(self) -> int:
        """Count the rows."""
        ...

    def rows(self, chosen: slice) -> Self:
        """Give some of them."""
        ...


B = TypeVar("B", bound=Batch)


def split(batch: B, num_parts: int) -> list[B]:
    """Cut a batch into parts, in order, whose sizes differ by one at most.

    Raises:
        ValueError: there are fewer rows than parts.
    """
    if num_parts == 1:
        return [batch]
    if len(batch) < num_parts:
        raise ValueError(
            f"a batch of {len(batch)} cannot be cut into {num_parts} parts; lower "
            "accumulation_steps, or give each process more"
        )
    edges = [len(batch) * part // num_parts for part in range(num_parts + 1)]
    return [batch.rows(slice(*ends)) for ends in itertools.pairwise(edges)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextImageBatch:
    """B images with one true text each, in the same order."""

    images: Tensor
    """(B, S, S, 3) uint8, augmented already."""

    texts: Sequence[str]
    """B texts; text b describes image b."""

    image_ids: Sequence[str] | None = None
    """B names, equal for the same image before augmentation; None says that all differ."""

    known_matches: Tensor | None = None
    """(B, B) bool, True where text j is known to be true of image i. Pairs of the same image or
    the same text need not be given. Such a pair is never used as a negative."""

    distractors: Sequence[Sequence[str]] = ()
    """Rows of B texts; text b of each row is known to be false of image b. One more ITM negative
    per image and row, for the matcher's finetuning."""

    def __post_init__(self) -> None:
        rows = [self.texts, *self.distractors, *([self.image_ids] if self.image_ids else [])]
        if any(len(row) != len(self.images) for row in rows):
            lengths = ", ".join(f"{len(row)}" for row in rows)
            raise ValueError(f"{len(self.images)} images came with {lengths} texts and names")

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, chosen: slice) -> TextImageBatch:
        """Give some rows; what is known of pairs is lost where image or text are not among them."""
        known = self.known_matches
        return TextImageBatch(
            images=self.images[chosen],
            texts=self.texts[chosen],
            image_ids=None if self.image_ids is None else self.image_ids[chosen],
            known_matches=None if known is None else known[chosen, chosen],
            distractors=[row[chosen] for row in self.distractors],
        )


def ids_of(names: Sequence[str], *, device: torch.device) -> Tensor:
    """Map names to (B,) int64, equal names to equal numbers, the same in every process."""
    digests = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
    numbers = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def image_ids_of(batch: TextImageBatch, *, first_sample: int, device: torch.device) -> Tensor:
    """Give (B,) int64, equal where the images are equal.

    Args:
        batch: its `image_ids` if it has them.
        first_sample: samples seen before this batch; numbers the images that have no names.
        device: where the ids are needed.
    """
    if batch.image_ids is None:
        return torch.arange(first_sample, first_sample + len(batch.images), device=device)
    return ids_of(batch.image_ids, device=device)
