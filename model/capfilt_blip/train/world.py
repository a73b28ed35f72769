"""The processes that train one model together, each on its share of every batch.

A process has rows; `gather` gives it those of all, in the order of the ranks. Shares may differ in
size. With one process nothing is sent, and the same lines serve.

    B rows of this process, N rows of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How many processes there are, and which this is; alone unless said otherwise."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """Give the processes of torch.distributed, or this one alone if it is not in use."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(rank=distributed.get_rank(), size=distributed.get_world_size())

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's tensors, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), src=0)

    def summed(self, numbers: Tensor) -> Tensor:
        """Add up a tensor over all processes; without gradient."""
        if self.size == 1:
            return numbers.detach()
        total = numbers.detach().clone()
        distributed.all_reduce(total)
        return total

    def told(self, numbers: Sequence[int], *, device: torch.device) -> list[list[int]]:
        """Tell the other processes a few numbers, and give those of all, by rank.

        Args:
            numbers: as many in each process.
            device: that the processes' messages take.
        """
        if self.size == 1:
            return [list(numbers)]
        own = torch.tensor(numbers, device=device)
        every = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(every, own)
        told: list[list[int]] = torch.stack(every).tolist()
        return told

    def gather(self, rows: Tensor, *, counts: Sequence[int]) -> Tensor:
        """Give the rows of all processes, without gradient.

        Args:
            rows: (B, ...), in which processes differ in B alone.
            counts: B of each process, by rank.

        Returns:
            (N, ...).
        """
        return rows.detach() if self.size == 1 else _gathered(rows.detach(), counts)

    def gather_with_gradient(self, rows: Tensor, *, counts: Sequence[int]) -> Tensor:
        """Do what `gather` does; a row's gradient is the sum of what all processes made of it."""
        if self.size == 1:
            return rows
        start = sum(counts[: self.rank])
        gathered: Tensor = _Gather.apply(rows, tuple(counts), start)  # type: ignore[no-untyped-call]
        return gathered


ALONE = World()


class _Gather(torch.autograd.Function):
    """Rows of all processes, and back: one sum, which every backend of torch has."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...], start: int) -> Tensor:
        ctx.own = slice(start, start + len(rows))
        return _gathered(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[ctx.own], None, None


def _gathered(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Fill up to the longest share, since all must send as much, and cut the filling out."""
    most = max(counts)
    sent = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    sent = F.pad(sent, (0, 0) * (rows.dim() - 1) + (0, most - len(rows))).contiguous()
    every = [torch.empty_like(sent) for _ in counts]
    distributed.all_gather(every, sent)
    shares = [share[:count] for share, count in zip(every, counts, strict=True)]
    return torch.cat(shares).to(rows.dtype)
