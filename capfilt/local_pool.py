"""The pool of this process: for notebooks, tests, and a machine that does not need Ray.

While the worker is at one shard, a thread reads the next one and another commits the last one, so a
shard is reported when the one after it has been worked on. A worker that raises is answered like
one that dies elsewhere: the row is searched for and quarantined. A worker that dies takes the run
with it; that is what `runtime.RayPool` is for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import perf_counter

from capfilt.errors import CapfiltError, ShardError
from capfilt.meter import Effort, effort_of, span_of
from capfilt.pool import (
    AnyJob,
    Fetched,
    ShardReport,
    Worker,
    build_error,
    failed_report,
    prepared,
    read_shard,
)
from capfilt.route import Route
from capfilt.stopping import stop_on_signals
from capfilt.suspects import Suspect, breaks_device, carry_out, worker_error

log = logging.getLogger(__name__)


class LocalPool:
    """Runs a chain of jobs in this process, one worker per job."""

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        """Take every shard through the chain; see `pool.Pool.run`."""
        route = Route([job.committed() for job in chain])
        with ExitStack() as stack:
            stop = stack.enter_context(stop_on_signals())
            bench = _Bench(chain, route, stack)
            for shard in shards:
                yield from route.arrive(shard, 0)
            ahead = bench.read_next()
            while ahead is not None:
                if stop.requested:
                    yield from bench.settle()
                stop.raise_if_requested()
                current, ahead = ahead, bench.read_next()
                yield from bench.work_on(current, ahead)
                ahead = ahead or bench.read_next()
                if ahead is None:  # the next one may be what is being committed
                    yield from bench.settle()
                    ahead = bench.read_next()

    def close(self) -> None:
        """Nothing outlives `run`."""


@dataclass(slots=True, kw_only=True)
class _Reading:
    """A shard being read for one job of the chain, and prepared for its worker if there is one."""

    position: int
    shard: int
    fetched: Future[Fetched[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Committing:
    """A shard being committed."""

    position: int
    report: Future[ShardReport]
    effort: Effort | None


class _Bench:
    """The workers of a chain, built when their first shard comes, and the threads beside them."""

    def __init__(self, chain: Sequence[AnyJob], route: Route, stack: ExitStack) -> None:
        self._chain = chain
        self._route = route
        self._stack = stack
        self._workers: dict[int, Worker[object, object]] = {}
        # Leaving waits for the thread's task at hand: a commit that was begun is ended.
        self._reader = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        self._writer = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        self._committing: _Committing | None = None

    def read_next(self) -> _Reading | None:
        """Start to read the next shard: the one furthest along the chain."""
        for position in reversed(range(len(self._chain))):
            if self._route.waiting[position]:
                shard = self._route.waiting[position].popleft()
                fetched = self._reader.submit(read_shard, self._chain[position], shard)
                return _Reading(position=position, shard=shard, fetched=fetched)
        return None

    def work_on(self, current: _Reading, ahead: _Reading | None) -> Iterator[ShardReport]:
        """Work on a shard, and begin to commit it.

        Args:
            current: the shard.
            ahead: the one after it; its worker, if it has one by now, may begin with it.

        Yields:
            What was committed meanwhile, and this shard if it failed.
        """
        job, shard = self._chain[current.position], current.shard
        worker = self._worker(current.position)
        began = perf_counter()
        try:
            fetched = current.fetched.result()
            if ahead is not None:
                self._prepare(ahead)
            outputs = _outputs(job, worker, shard, fetched)
        except ShardError as error:
            yield from self.settle()
            yield failed_report(job.stage, shard, str(error))
            return
        worked_s, effort = perf_counter() - began, effort_of(worker)
        settled = list(self.settle())  # before whoever reads the reports keeps this one waiting
        report = self._writer.submit(_committed, job, worker, shard, fetched, outputs, worked_s)
        self._committing = _Committing(position=current.position, report=report, effort=effort)
        yield from settled

    def settle(self) -> Iterator[ShardReport]:
        """Wait for the commit under way, if any; its shard goes on to the next job.

        Raises:
            StorageError: nothing was committed.
        """
        if self._committing is None:
            return
        ended, self._committing = self._committing, None
        report = replace(ended.report.result(), effort=ended.effort)
        yield report
        if report.error is None:
            yield from self._route.arrive(report.shard, ended.position + 1)

    def _prepare(self, ahead: _Reading) -> None:
        worker = self._workers.get(ahead.position)
        if worker is not None:
            ahead.fetched = self._reader.submit(_prepared, worker, ahead.fetched)

    def _worker(self, position: int) -> Worker[object, object]:
        if position not in self._workers:
            worker = _built(self._chain[position])
            self._stack.callback(worker.close)
            self._workers[position] = worker
        return self._workers[position]


def _built(job: AnyJob) -> Worker[object, object]:
    try:
        return job.build_worker()
    except CapfiltError:
        raise
    except Exception as error:
        raise build_error(job, error) from error


def _prepared(worker: Worker[object, object], fetched: Future[Fetched[object]]) -> Fetched[object]:
    return prepared(worker, fetched.result())


def _committed(
    job: AnyJob,
    worker: Worker[object, object],
    shard: int,
    fetched: Fetched[object],
    outputs: list[object],
    worked_s: float,
) -> ShardReport:
    began = perf_counter()
    try:
        with span_of(worker, "commit"):
            report = job.commit(shard, fetched, outputs)
    except ShardError as error:
        return failed_report(job.stage, shard, str(error))
    return replace(report, seconds=worked_s + perf_counter() - began)


def _outputs(
    job: AnyJob, worker: Worker[object, object], shard: int, fetched: Fetched[object]
) -> list[object]:
    """The shard's outputs, after as many attempts as it takes to find the rows that raise."""
    suspect = Suspect(shard, divisible=job.resources.divisible)
    while suspect.given_up is None:
        try:
            outputs = carry_out(job, worker, fetched, suspect.next_task())
        except CapfiltError:
            raise
        except Exception as error:
            if breaks_device(error):
                raise
            why = worker_error(error)
            log.warning("stage %s, shard %d: the worker raised %s", job.stage, shard, why.detail)
            suspect.failed(why)
        else:
            if outputs is not None:
                return outputs
            suspect.came_back(len(fetched.inputs))
    raise ShardError(suspect.given_up)
