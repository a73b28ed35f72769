"""What a training is given: pairs by source, read as they are needed, in a keyed order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from capfilt.config import MixingSection
from capfilt.io.rows import LazyRows
from capfilt.workers.batches import SourceImage
from capfilt.workers.order import EpochOrder, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPair:
    """An image and one text of it."""

    image: SourceImage
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """All pairs of a training; rows are read as they are needed."""

    web: Sequence[TrainingPair]  # published, with a web text
    human: Sequence[TrainingPair]
    synthetic: Sequence[TrainingPair] = ()  # published, with a synthetic text
    held_out: Sequence[TrainingPair] = ()  # human pairs that nothing is learnt from
    lost: Mapping[str, int] = field(default_factory=dict)  # samples that are no pair, by reason

    @property
    def num_pairs(self) -> int:
        """All of them, those held out included."""
        return sum(len(part) for part in (self.web, self.synthetic, self.human, self.held_out))


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedPairs:
    """Pairs, and the order in which a phase of training meets them."""

    rows: Sequence[TrainingPair]
    order: EpochOrder


def all_pairs(pairs: TrainingSet, *, mixing: MixingSection, seed: int) -> OrderedPairs:
    """All pairs, each source as often as its weight says: what pre-training meets."""
    parts = (pairs.web, pairs.synthetic, pairs.human)
    weights = (mixing.web, mixing.synthetic, mixing.human)
    shares = [Share(num_rows=len(p), weight=w) for p, w in zip(parts, weights, strict=True)]
    return OrderedPairs(rows=_joined(parts), order=EpochOrder(shares, seed=seed))


def human_pairs(pairs: TrainingSet, *, seed: int) -> OrderedPairs:
    """The pairs that people wrote: what the two finetunings meet."""
    shares = [Share(num_rows=len(pairs.human))]
    return OrderedPairs(rows=pairs.human, order=EpochOrder(shares, seed=seed))


def _joined(parts: Sequence[Sequence[TrainingPair]]) -> Sequence[TrainingPair]:
    stops = list(accumulate(len(part) for part in parts))

    def read(row: int) -> TrainingPair:
        part = bisect_right(stops, row)
        return parts[part][row - stops[part] + len(parts[part])]

    return LazyRows(range(stops[-1]), read)
