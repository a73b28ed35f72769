"""The process in which one job's worker lives: read, wait for the turn, work, commit.

Two calls run at a time. While one has its turn with the worker, the other reads the next shard,
lets the worker begin with what needs no turn, or commits the previous one; turns are taken in the
order of tickets.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

from capfilt.errors import CapfiltError
from capfilt.meter import effort_of, span_of
from capfilt.pool import (
    AnyJob,
    Fetched,
    Quarantine,
    ShardReport,
    Worker,
    build_error,
    prepared,
    read_shard,
)
from capfilt.suspects import Run, Task, breaks_device, carry_out, worker_error

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A probe came back; the rows of its whole shard."""

    num_inputs: int


Outcome = ShardReport | Probed | Quarantine | CapfiltError
"""Committed | came back from a probe | the worker raised | any other error with a readable line."""


class ShardActor:
    """Works on the shards of one job, one after the other.

    Nothing heavy happens on creation: an actor that answers `pid` has found a machine.
    """

    def __init__(self, job: AnyJob) -> None:
        self._job = job
        self._turns = _Turns()
        self._worker: Worker[object, object] | None = None

    def pid(self) -> int:
        """The number of the process."""
        return os.getpid()

    def build(self) -> CapfiltError | None:
        """Build the worker; the error that prevents it, if any."""
        with _exit_ends_process():
            try:
                self._worker = self._job.build_worker()
            except CapfiltError as error:
                return _portable(error)
            except Exception as error:
                log.exception("stage %s: the worker could not be built", self._job.stage)
                return build_error(self._job, error)
        return None

    def carry_out(self, ticket: int, task: Task) -> Outcome:
        """Do a task when its turn has come; errors that have an answer are returned, not raised."""
        with _exit_ends_process():
            try:
                return self._carry_out(ticket, task)
            except CapfiltError as error:
                return _portable(error)

    def close(self) -> None:
        """Give back what the worker holds."""
        if self._worker is not None:
            self._worker.close()

    def _carry_out(self, ticket: int, task: Task) -> Outcome:
        assert self._worker is not None, f"{self._job.stage}: a task before the worker was built"
        fetched, reading_s = self._read(ticket, task, self._worker)
        with self._turns.of(ticket):
            began = perf_counter()
            try:
                outputs = carry_out(self._job, self._worker, fetched, task)
            except CapfiltError:
                raise
            except Exception as error:
                return _answer(error, stage=self._job.stage, shard=task.shard)
            if outputs is None:
                return Probed(num_inputs=len(fetched.inputs))
            effort = effort_of(self._worker)
        with span_of(self._worker, "commit"):
            report = self._job.commit(task.shard, fetched, outputs)
        return replace(report, seconds=reading_s + perf_counter() - began, effort=effort)

    def _read(
        self, ticket: int, task: Task, worker: Worker[object, object]
    ) -> tuple[Fetched[object], float]:
        began = perf_counter()
        try:
            fetched = read_shard(self._job, task.shard)
            if isinstance(task, Run) and not task.excluded:
                fetched = prepared(worker, fetched)
        except BaseException:
            with self._turns.of(ticket):  # or the next ticket would wait for this one for ever
                raise
        return fetched, perf_counter() - began


class _Turns:
    """Lets callers through one at a time, in the order of their tickets."""

    def __init__(self) -> None:
        self._next = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, ticket: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._next == ticket)
        try:
            yield
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()


@contextmanager
def _exit_ends_process() -> Iterator[None]:
    """Make `sys.exit` in a job a death like any other: in a thread it would only end the thread."""
    try:
        yield
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)


def _answer(error: Exception, *, stage: str, shard: int) -> Quarantine:
    log.error("stage %s, shard %d: the worker raised", stage, shard, exc_info=error)
    if breaks_device(error):
        os._exit(1)
    return worker_error(error)


def _portable(error: CapfiltError) -> CapfiltError:
    """The error, or one with its text if it does not survive the way to the driver."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return CapfiltError(str(error))
    return error
