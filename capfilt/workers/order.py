"""The order in which training meets its rows: a permutation keyed by (seed, epoch)."""

from __future__ import annotations

import hashlib

import torch

from capfilt.errors import CapfiltError


class EpochOrder:
    """Maps the position in a training to a row: epoch after epoch, each in an order of its own.

    The position is all the state there is, so a training that knows how many rows it has seen
    knows which comes next.

    Args:
        num_rows: rows of an epoch, at least 2.
        seed: of the permutations.

    Raises:
        CapfiltError: there are too few rows to train on.
    """

    def __init__(self, *, num_rows: int, seed: int) -> None:
        if num_rows < 2:
            raise CapfiltError(f"training needs at least 2 pairs, and there are {num_rows}")
        self._num_rows = num_rows
        self._seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def __call__(self, position: int) -> int:
        """The row at a position, counted from the beginning of the training."""
        epoch, place = divmod(position, self._num_rows)
        if epoch != self._epoch:
            self._permutation = self._shuffled(epoch)
            self._epoch = epoch
        return int(self._permutation[place])

    def _shuffled(self, epoch: int) -> torch.Tensor:
        digest = hashlib.blake2b(f"{self._seed}/{epoch}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.randperm(self._num_rows, generator=generator)
