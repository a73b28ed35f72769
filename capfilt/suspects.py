"""Shards that kill or break their worker, and the search for the rows to blame.

A worker that dies once is bad luck; twice on the same shard is suspicion. Then ranges of the
shard's rows are tried, halved each time, down to one row; a row that fails twice on its own is
excluded from the shard (it gets a quarantine row instead) and the shard is run again. Whatever ends
a worker is answered the same way: a signal, the out-of-memory killer, a hang, an exception. The one
exception is that memory runs out in a way Python can tell: then the run stops and says what to set.

Where one input is the whole work, as in training, nothing can be left out and nothing is searched:
an exception fails the shard at once, since it would come again; a death does so the second time.

All of it is decided here from plain events; where the work runs is the pool's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from capfilt.errors import CapfiltError
from capfilt.pool import (
    Fetched,
    InputT,
    OutputT,
    Quarantine,
    ShardJob,
    Worker,
    work_on_shard,
)
from capfilt.records import Reason

DETAIL_CHARS = 200

OUT_OF_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator: can't allocate|CUBLAS_STATUS_ALLOC_FAILED"
)
"""What torch says in a plain RuntimeError when memory runs out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Work on a shard and commit it."""

    shard: int
    excluded: Mapping[int, Quarantine] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Work on some rows of a shard and throw the outputs away; `start == stop` only reads it."""

    shard: int
    start: int
    stop: int
    excluded: Mapping[int, Quarantine] = field(default_factory=dict)


Task = Run | Probe


def carry_out(
    job: ShardJob[InputT, OutputT],
    worker: Worker[InputT, OutputT],
    fetched: Fetched[InputT],
    task: Task,
) -> list[OutputT] | None:
    """Do the worker's part of a task.

    Returns:
        The shard's outputs, ready to commit; None for a probe.

    Raises:
        CapfiltError: memory ran out. That is no row's fault, and the next shard would fare alike.
    """
    try:
        return _carry_out(job, worker, fetched, task)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise CapfiltError(
            f"stage {job.stage}, shard {task.shard}: the worker ran out of memory "
            f"({worker_error(error).detail}); give it more, or less to do at once: fewer workers "
            "on a machine or GPU, smaller batches"
        ) from error


def _carry_out(
    job: ShardJob[InputT, OutputT],
    worker: Worker[InputT, OutputT],
    fetched: Fetched[InputT],
    task: Task,
) -> list[OutputT] | None:
    if isinstance(task, Run):
        return work_on_shard(job, worker, fetched, task.excluded)
    rows = [fetched.inputs[i] for i in range(task.start, task.stop) if i not in task.excluded]
    if rows:
        work_on_shard(job, worker, Fetched(inputs=rows), {})
    return None


def worker_error(error: Exception) -> Quarantine:
    """Describe an exception in one line that is the same in every run.

    The line is stored with the row, and a resumed run must give the same bytes: so memory addresses
    are masked.
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    masked = re.sub(r"0x[0-9a-fA-F]{4,}", "0x...", text)
    return Quarantine(reason=Reason.WORKER_ERROR, detail=masked[:DETAIL_CHARS])


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, a GPU's or the machine's.

    torch has a class for GPUs, `torch.OutOfMemoryError`, and only words for the CPU. Known by name,
    because a pool does not import torch.
    """
    if isinstance(error, MemoryError):
        return True
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or (isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error))))


def breaks_device(error: Exception) -> bool:
    """Whether an exception leaves the accelerator unusable for the rest of the process.

    CUDA reports such faults as `torch.AcceleratorError`; every later call fails as well, so only a
    new process helps. Known by name, because a pool does not import torch.
    """
    return any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__)


class Suspect:
    """One shard that failed: what to try next, and when to give up.

    Args:
        shard: its number.
        max_failures: failures in a row, searches aside, without a row to blame.
        max_excluded: rows that may be excluded.
        divisible: whether rows can be left out of it at all.
    """

    def __init__(
        self, shard: int, *, max_failures: int = 12, max_excluded: int = 8, divisible: bool = True
    ) -> None:
        self.shard = shard
        self.given_up: str | None = None
        self._max_failures = max_failures
        self._max_excluded = max_excluded
        self._divisible = divisible
        self._excluded: dict[int, Quarantine] = {}
        self._failures = 0
        self._patience = 2  # failures until the next search
        self._search: _RowSearch | None = None

    def next_task(self) -> Task:
        """What to try next; meaningless once given up."""
        excluded = dict(self._excluded)
        if self._search is None:
            return Run(shard=self.shard, excluded=excluded)
        start, stop = self._search.next_range()
        return Probe(shard=self.shard, start=start, stop=stop, excluded=excluded)

    def came_back(self, num_inputs: int) -> None:
        """Note that the last probe did no harm.

        Args:
            num_inputs: rows of the whole shard.
        """
        assert self._search is not None, f"shard {self.shard}: nothing was being probed"
        self._search.came_back(num_inputs)
        self._end_search(patience=2)

    def failed(self, why: Quarantine) -> None:
        """Note that the last task, run or probe, ended the worker or raised."""
        if not self._divisible:
            self._count_whole(why)
            return
        if self._search is None:
            self._count(why)
            return
        self._search.failed()
        if self._search.culprit is not None:
            self._exclude(self._search.culprit, why)
        # One more failure after a conviction is enough to look for the next culprit.
        self._end_search(patience=2 if self._search.culprit is None else 1)

    def _count_whole(self, why: Quarantine) -> None:
        self._failures += 1
        if why.reason is Reason.WORKER_ERROR:
            self.given_up = f"the worker raised {why.detail}"
        elif self._failures == 2:
            self.given_up = f"failed twice; last: {why.detail}"

    def _count(self, why: Quarantine) -> None:
        self._failures += 1
        self._patience -= 1
        if self._failures > self._max_failures:
            self.given_up = (
                f"failed {self._failures} times, and no row alone is to blame; last: {why.detail}"
            )
        elif self._patience == 0:
            self._search = _RowSearch()

    def _exclude(self, row: int, why: Quarantine) -> None:
        self._excluded[row] = why
        self._failures = 0
        if len(self._excluded) > self._max_excluded:
            self.given_up = (
                f"more than {self._max_excluded} rows fail their worker; last: {why.detail}"
            )

    def _end_search(self, *, patience: int) -> None:
        if self._search is not None and self._search.over:
            self._search = None
            self._patience = patience


class _RowSearch:
    """Halving the rows of a shard until one of them fails twice.

    First nothing is worked on at all: it tells the number of rows, and whether reading is what
    fails. Then the left half of the suspected rows is tried; if it comes back, the right half is
    assumed, and the single row at the end has to prove it.
    """

    def __init__(self) -> None:
        self.culprit: int | None = None
        self.over = False
        self._suspected: tuple[int, int] | None = None
        self._strikes = 0

    def next_range(self) -> tuple[int, int]:
        if self._suspected is None:
            return 0, 0
        start, stop = self._suspected
        return start, stop if stop - start == 1 else (start + stop) // 2

    def came_back(self, num_inputs: int) -> None:
        if self._suspected is None:
            self._suspected = (0, num_inputs)
        else:
            _, middle = self.next_range()
            self._suspected = (middle, self._suspected[1])
        start, stop = self._suspected
        self.over = start == stop

    def failed(self) -> None:
        start, stop = self.next_range()
        if start == stop:
            self.over = True
            return
        self._suspected = (start, stop)
        self._strikes += stop - start == 1
        if self._strikes == 2:
            self.culprit = start
            self.over = True
