from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from capfilt.errors import CapfiltError, ShardError, StorageError
from capfilt.pool import Quarantine, ShardReport
from capfilt.records import Reason
from capfilt.runtime.actor import Probed, ShardActor
from capfilt.suspects import Probe, Run
from tests.runtime.jobs import DoublingJob


def built(job: DoublingJob) -> ShardActor:
    actor = ShardActor(job)
    assert actor.build() is None
    return actor


def test_a_run_commits_the_shard(tmp_path: Path):
    job = DoublingJob(folder=tmp_path, num_rows=2)
    report = built(job).carry_out(0, Run(shard=1))
    assert isinstance(report, ShardReport)
    assert (report.kept, job.rows(1)) == (2, [200, 202])


def test_a_probe_commits_nothing_and_tells_the_number_of_rows(tmp_path: Path):
    job = DoublingJob(folder=tmp_path, num_rows=4)
    assert built(job).carry_out(0, Probe(shard=1, start=0, stop=2)) == Probed(num_inputs=4)
    assert not (tmp_path / "first").exists()


def test_a_probe_leaves_excluded_rows_alone(tmp_path: Path):
    why = Quarantine(reason=Reason.KILLED_WORKER, detail="died")
    job = DoublingJob(folder=tmp_path, on_row={101: "raise"})
    outcome = built(job).carry_out(0, Probe(shard=1, start=0, stop=4, excluded={1: why}))
    assert outcome == Probed(num_inputs=4)


def test_turns_are_taken_in_the_order_of_tickets(tmp_path: Path):
    seen: list[int] = []
    actor = built(RecordingJob(folder=tmp_path, seen=seen))
    with ThreadPoolExecutor(max_workers=2) as threads:
        later = threads.submit(actor.carry_out, 1, Run(shard=1))
        sooner = threads.submit(actor.carry_out, 0, Run(shard=0))
        assert later.result(timeout=10).shard == 1
        assert sooner.result(timeout=10).shard == 0
    assert seen == [0, 1, 2, 3, 100, 101, 102, 103]


def test_the_next_shard_is_read_while_the_worker_is_busy(tmp_path: Path):
    job = MeetingJob(folder=tmp_path, meeting=threading.Barrier(2))
    actor = built(job)
    with ThreadPoolExecutor(max_workers=2) as threads:
        calls = [threads.submit(actor.carry_out, n, Run(shard=n)) for n in range(2)]
        assert all(isinstance(call.result(timeout=10), ShardReport) for call in calls)


def test_a_shard_is_committed_while_the_next_one_has_its_turn(tmp_path: Path):
    job = CommitMeetingJob(folder=tmp_path, meeting=threading.Barrier(2))
    actor = built(job)
    with ThreadPoolExecutor(max_workers=2) as threads:
        calls = [threads.submit(actor.carry_out, n, Run(shard=n)) for n in range(2)]
        assert all(isinstance(call.result(timeout=10), ShardReport) for call in calls)


def test_the_worker_may_begin_with_the_next_shard_before_its_turn(tmp_path: Path):
    job = PreparingJob(folder=tmp_path, meeting=threading.Barrier(2))
    actor = built(job)
    with ThreadPoolExecutor(max_workers=2) as threads:
        calls = [threads.submit(actor.carry_out, n, Run(shard=n)) for n in range(2)]
        assert all(isinstance(call.result(timeout=10), ShardReport) for call in calls)
    assert job.rows(1) == [200, 202, 204, 206]


def test_a_shard_with_rows_left_out_is_not_prepared(tmp_path: Path):
    why = Quarantine(reason=Reason.KILLED_WORKER, detail="died")
    actor = built(PreparingJob(folder=tmp_path, meeting=threading.Barrier(2)))
    outcome = actor.carry_out(0, Run(shard=1, excluded={0: why}))  # prepare would wait for company
    assert isinstance(outcome, ShardReport)
    assert outcome.kept == 3


def test_a_shard_that_cannot_be_read_passes_its_turn_on(tmp_path: Path):
    actor = built(DoublingJob(folder=tmp_path, unreadable=frozenset({0})))
    assert isinstance(actor.carry_out(0, Run(shard=0)), ShardError)
    assert isinstance(actor.carry_out(1, Run(shard=1)), ShardReport)


def test_a_disk_that_fails_while_a_shard_is_read_is_the_shards_error(tmp_path: Path):
    later = DoublingJob(folder=tmp_path, stage="second", source="first")
    outcome = built(later).carry_out(0, Run(shard=0))  # nothing was committed by the first
    assert isinstance(outcome, ShardError)
    assert str(outcome).startswith("cannot be read: [Errno 2] No such file")


def test_an_exception_of_the_worker_is_returned_in_one_line(tmp_path: Path):
    outcome = built(DoublingJob(folder=tmp_path, on_row={0: "raise"})).carry_out(0, Run(shard=0))
    assert outcome == Quarantine(reason=Reason.WORKER_ERROR, detail="ValueError: row 0 is bad")


def test_memory_that_runs_out_is_an_error_of_the_run_and_no_rows_fault(tmp_path: Path):
    outcome = built(DoublingJob(folder=tmp_path, on_row={0: "exhaust"})).carry_out(0, Run(shard=0))
    assert isinstance(outcome, CapfiltError)
    assert not isinstance(outcome, ShardError)  # which the dispatcher would answer by going on
    assert str(outcome).startswith("stage first, shard 0: the worker ran out of memory")


def test_a_worker_that_cannot_be_built_says_why(tmp_path: Path):
    error = ShardActor(DoublingJob(folder=tmp_path, on_build="raise")).build()
    assert str(error) == "stage first: no worker could be built: ValueError: row 0 is bad"


def test_an_error_that_cannot_travel_travels_as_its_text(tmp_path: Path):
    outcome = built(UntravelledJob(folder=tmp_path)).carry_out(0, Run(shard=0))
    assert type(outcome) is CapfiltError
    assert str(outcome) == "disk 7 is full"


def test_closing_gives_the_worker_back(tmp_path: Path):
    built(DoublingJob(folder=tmp_path)).close()
    assert (tmp_path / "closed-first").exists()


class RecordingJob(DoublingJob):
    """Notes the rows its worker sees."""

    def __init__(self, *, folder: Path, seen: list[int]) -> None:
        super().__init__(folder=folder)
        object.__setattr__(self, "seen", seen)

    def build_worker(self):
        inner = super().build_worker()
        return _Worker(lambda rows: (self.seen.extend(rows), inner(rows))[1])


class MeetingJob(DoublingJob):
    """The worker on shard 0 goes on only when shard 1 is being read."""

    def __init__(self, *, folder: Path, meeting: threading.Barrier) -> None:
        super().__init__(folder=folder)
        object.__setattr__(self, "meeting", meeting)

    def fetch(self, shard):
        if shard == 1:
            self.meeting.wait(timeout=10)
        return super().fetch(shard)

    def build_worker(self):
        inner = super().build_worker()
        return _Worker(lambda rows: (0 in rows and self.meeting.wait(timeout=10), inner(rows))[1])


class CommitMeetingJob(MeetingJob):
    """The commit of shard 0 goes on only when the worker is at shard 1."""

    def fetch(self, shard):
        return DoublingJob.fetch(self, shard)

    def build_worker(self):
        inner = DoublingJob.build_worker(self)
        return _Worker(lambda rows: (100 in rows and self.meeting.wait(timeout=10), inner(rows))[1])

    def commit(self, shard, fetched, outputs):
        if shard == 0:
            self.meeting.wait(timeout=10)
        return super().commit(shard, fetched, outputs)


class PreparingJob(MeetingJob):
    """The worker on shard 0 goes on only when shard 1 is being prepared."""

    def fetch(self, shard):
        return DoublingJob.fetch(self, shard)

    def build_worker(self):
        inner = DoublingJob.build_worker(self)
        worker = _Worker(lambda rows: (0 in rows and self.meeting.wait(timeout=10), inner(rows))[1])
        worker.prepare = self.prepare
        return worker

    def prepare(self, rows):
        if 100 in rows:
            self.meeting.wait(timeout=10)
        return rows


class _Worker:
    def __init__(self, work) -> None:
        self.work = work

    def close(self) -> None:
        """Nothing to give back."""

    def __call__(self, inputs):
        return self.work(inputs)


class UntravelledError(StorageError):
    def __init__(self, disk: int, *, why: str) -> None:
        super().__init__(f"disk {disk} is {why}")


class UntravelledJob(DoublingJob):
    def commit(self, shard, fetched, outputs):
        raise UntravelledError(7, why="full")
