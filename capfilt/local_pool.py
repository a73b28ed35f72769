"""The pool of this process: for notebooks, tests, and a machine that does not need Ray.

One shard is worked on while the next one is read ahead. A worker that raises is answered like one
that dies elsewhere: the row is searched for and quarantined. A worker that dies takes the run with
it; that is what `runtime.RayPool` is for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import perf_counter

from capfilt.errors import CapfiltError, ShardError
from capfilt.pool import (
    AnyJob,
    Fetched,
    ShardReport,
    Worker,
    build_error,
    failed_report,
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
                stop.raise_if_requested()
                current, ahead = ahead, bench.read_next()
                report = bench.finish(current)
                yield report
                if report.error is None:
                    yield from route.arrive(current.shard, current.position + 1)
                ahead = ahead or bench.read_next()

    def close(self) -> None:
        """Nothing outlives `run`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """A shard being read for one job of the chain."""

    position: int
    shard: int
    fetched: Future[Fetched[object]]


class _Bench:
    """The workers of a chain, built when their first shard comes, and a thread that reads."""

    def __init__(self, chain: Sequence[AnyJob], route: Route, stack: ExitStack) -> None:
        self._chain = chain
        self._route = route
        self._stack = stack
        self._workers: dict[int, Worker[object, object]] = {}
        self._reader = stack.enter_context(ThreadPoolExecutor(max_workers=1))

    def read_next(self) -> _Reading | None:
        """Start to read the next shard: the one furthest along the chain."""
        for position in reversed(range(len(self._chain))):
            if self._route.waiting[position]:
                shard = self._route.waiting[position].popleft()
                fetched = self._reader.submit(read_shard, self._chain[position], shard)
                return _Reading(position=position, shard=shard, fetched=fetched)
        return None

    def finish(self, reading: _Reading) -> ShardReport:
        """Work on a shard and commit it."""
        job, shard = self._chain[reading.position], reading.shard
        worker = self._worker(reading.position)
        began = perf_counter()
        try:
            fetched = reading.fetched.result()
            outputs = _outputs(job, worker, shard, fetched)
            report = job.commit(shard, fetched, outputs)
        except ShardError as error:
            return failed_report(job.stage, shard, str(error))
        return replace(report, seconds=perf_counter() - began)

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
