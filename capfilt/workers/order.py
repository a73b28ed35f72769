"""The order in which training meets its rows: a permutation keyed by (seed, epoch).

The position, a number of samples, is all the state there is. Which rows make an epoch, what comes
at a position, and which process takes it are functions of it, so a training may go on anywhere,
with any number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from capfilt.errors import CapfiltError
from capfilt_blip.train.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Rows of one source, and how often an epoch takes them."""

    num_rows: int
    weight: float = 1.0
    """Times an epoch takes each row, at least 0. With 1.5 an epoch takes every row once and half
    of them twice; the next epoch takes the other half twice."""

    @property
    def num_taken(self) -> int:
        """Rows of an epoch that are of this source."""
        return round(self.weight * self.num_rows)


class EpochOrder:
    """Maps the position in a training to a row: epoch after epoch, each in an order of its own.

    Args:
        shares: the sources; the rows of one follow those of the one before it.
        seed: of the permutations.

    Raises:
        CapfiltError: there are too few rows to train on.
    """

    def __init__(self, shares: Sequence[Share], *, seed: int) -> None:
        self._shares = shares
        self._seed = seed
        self._epoch = -1
        self._rows = torch.empty(0, dtype=torch.int64)
        self.epoch_size = sum(share.num_taken for share in shares)
        if self.epoch_size < 2:
            raise CapfiltError(f"training needs at least 2 pairs, and there are {self.epoch_size}")

    def __call__(self, position: int) -> int:
        """The row at a position, counted from the beginning of the training."""
        epoch, place = divmod(position, self.epoch_size)
        if epoch != self._epoch:
            self._rows = self._rows_of(epoch)
            self._epoch = epoch
        return int(self._rows[place])

    def spare(self, position: int, *, attempt: int) -> int:
        """Another row of the same epoch, for one that cannot be read; a function of both."""
        first = position - position % self.epoch_size
        return self(first + _number(f"{self._seed}/{position}/{attempt}") % self.epoch_size)

    def _rows_of(self, epoch: int) -> torch.Tensor:
        first, parts = 0, list[torch.Tensor]()
        for number, share in enumerate(self._shares):
            parts += [first + rows for rows in self._taken(number, share, epoch)]
            first += share.num_rows
        rows = torch.cat(parts)
        return rows[self._shuffled(f"{epoch}", len(rows))]

    def _taken(self, number: int, share: Share, epoch: int) -> list[torch.Tensor]:
        """The rows of a source in one epoch: the whole of it as often as it goes, and a part.

        The parts of successive epochs follow each other in permutations of the source, so no row
        is taken twice more often than another.
        """
        if not share.num_rows:
            return []
        whole, rest = divmod(share.num_taken, share.num_rows)
        taken = [torch.arange(share.num_rows)] * whole
        start, stop = epoch * rest, (epoch + 1) * rest
        for cycle in range(start // share.num_rows, -(-stop // share.num_rows)):
            offset = cycle * share.num_rows
            rows = self._shuffled(f"source {number}/{cycle}", share.num_rows)
            taken.append(rows[max(0, start - offset) : stop - offset])
        return taken

    def _shuffled(self, name: str, num_rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(_number(f"{self._seed}/{name}"))
        return torch.randperm(num_rows, generator=generator)


def steps_of(*, first: int, stop: int, batch_size: int, world: World) -> Sequence[Sequence[int]]:
    """The positions that one process takes, step by step.

    All processes together take `batch_size` positions a step, each a slice of them in the order of
    the ranks: another number of processes makes the same batches.

    Args:
        first: position to begin at: samples that all processes have seen so far.
        stop: position to end before.
        batch_size: of all processes together; a multiple of their number.
        world: the processes, and which this is.
    """
    own, rest = divmod(batch_size, world.size)
    assert not rest, f"{world.size} processes cannot share {batch_size} samples alike"
    starts = range(first + world.rank * own, stop, batch_size)
    return [range(start, start + own) for start in starts]


def _number(name: str) -> int:
    """A number of 56 bits that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
