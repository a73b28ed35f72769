"""Rows made when they are asked for, so that a shard's images are never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

RowT = TypeVar("RowT")
PlanT = TypeVar("PlanT")


class LazyRows(Sequence[RowT], Generic[PlanT, RowT]):
    """A sequence whose items are read on access and not kept.

    Args:
        plans: small descriptions, one per row.
        read: makes the row a description stands for.
    """

    def __init__(self, plans: Sequence[PlanT], read: Callable[[PlanT], RowT]) -> None:
        self._plans = plans
        self._read = read

    def __len__(self) -> int:
        return len(self._plans)

    @overload
    def __getitem__(self, index: int) -> RowT: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RowT]: ...
    def __getitem__(self, index: int | slice) -> RowT | Sequence[RowT]:
        if isinstance(index, slice):
            return [self._read(plan) for plan in self._plans[index]]
        return self._read(self._plans[index])
