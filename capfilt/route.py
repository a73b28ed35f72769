"""The way of shards along a chain of jobs: which shards wait for which job."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from capfilt.pool import ShardReport


class Route:
    """Queues of shard numbers, one per job; jobs that committed a shard already let it pass.

    Args:
        committed: per job of the chain, what earlier runs committed.
    """

    def __init__(self, committed: Sequence[Mapping[int, ShardReport]]) -> None:
        self._committed = [dict(reports) for reports in committed]
        self.waiting: list[deque[int]] = [deque() for _ in committed]

    def arrive(self, shard: int, position: int) -> list[ShardReport]:
        """Queue a shard for the first job that still has to work on it.

        Args:
            shard: the shard's number.
            position: the job it stands before, counted from 0 along the chain.

        Returns:
            Reports of the jobs it passes, with `already=True`.
        """
        passed: list[ShardReport] = []
        for job in range(position, len(self.waiting)):
            report = self._committed[job].pop(shard, None)
            if report is None:
                self.waiting[job].append(shard)
                break
            passed.append(replace(report, already=True))
        return passed
