from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError, ShardError, Stopped, StorageError
from capfilt.local_pool import LocalPool
from capfilt.pool import Fetched, Quarantine, Resources, ShardReport, work_on_shard
from capfilt.records import Reason
from tests.runtime.jobs import DoublingJob, DoublingWorker


def run(*chain: DoublingJob, shards: list[int]) -> list[ShardReport]:
    return list(LocalPool().run(chain, shards))


def test_excluded_rows_never_reach_the_worker_and_keep_their_place(tmp_path: Path):
    job = DoublingJob(folder=tmp_path, on_row={1: "kill"})
    why = Quarantine(reason=Reason.KILLED_WORKER, detail="died")
    outputs = work_on_shard(job, job.build_worker(), Fetched(inputs=[0, 1, 2]), {1: why})
    assert outputs == [0, [1, "killed_worker", "died"], 4]


def test_a_worker_that_loses_a_row_is_caught(tmp_path: Path):
    job = DoublingJob(folder=tmp_path)
    with pytest.raises(AssertionError, match="1 outputs for 2 inputs"):
        work_on_shard(job, LosingWorker(job=job), Fetched(inputs=[0, 1]), {})


def test_every_shard_goes_through_the_chain_in_order(tmp_path: Path):
    first = DoublingJob(folder=tmp_path, num_rows=2)
    second = DoublingJob(folder=tmp_path, stage="second", source="first")
    reports = run(first, second, shards=[0, 1, 2])
    for shard in range(3):
        assert [r.stage for r in reports if r.shard == shard] == ["first", "second"]
    assert second.rows(2) == [800, 804]


def test_a_chain_starts_its_second_job_before_the_first_is_through(tmp_path: Path):
    second = DoublingJob(folder=tmp_path, stage="second", source="first")
    stages = [r.stage for r in run(DoublingJob(folder=tmp_path), second, shards=[*range(9)])]
    assert stages.index("second") <= 4  # one is worked on, one read, one committed meanwhile


def test_the_next_shard_is_read_while_the_worker_is_busy(tmp_path: Path):
    once = Resources(divisible=False)
    job = EagerJob(folder=tmp_path, was_read=threading.Event(), resources=once)
    assert [r.error for r in run(job, shards=[0, 1])] == [None, None]


def test_a_shard_is_committed_while_the_next_one_is_worked_on(tmp_path: Path):
    job = MeetingJob(folder=tmp_path, meeting=threading.Barrier(2))
    assert [r.error for r in run(job, shards=[0, 1])] == [None, None]


def test_never_more_than_one_shard_waits_to_be_committed(tmp_path: Path):
    job = HeldJob(folder=tmp_path, held=threading.Event())
    reports = LocalPool().run([job], [0, 1, 2, 3])
    threading.Timer(0.2, job.held.set).start()
    assert next(reports).shard == 0
    assert worked_on(tmp_path) == {0, 1}
    assert [r.shard for r in reports] == [1, 2, 3]


def test_what_is_reported_is_committed(tmp_path: Path):
    job = DoublingJob(folder=tmp_path)
    for report in LocalPool().run([job], [0, 1, 2]):
        assert job.rows(report.shard)[0] == 200 * report.shard


def test_a_run_that_is_left_ends_the_commit_it_began(tmp_path: Path):
    job = HeldJob(folder=tmp_path, held=threading.Event())
    reports = LocalPool().run([job], [0, 1, 2])
    job.held.set()
    next(reports)
    reports.close()
    assert sorted(job.committed()) == [0, 1]


def test_a_shard_that_cannot_be_committed_goes_no_further(tmp_path: Path):
    first = RefusingJob(folder=tmp_path)
    second = DoublingJob(folder=tmp_path, stage="second", source="first")
    reports = run(first, second, shards=[0, 1])
    assert [(r.stage, r.error) for r in reports if r.shard == 0] == [("first", "shard 0 is odd")]
    assert [r.stage for r in reports if r.shard == 1] == ["first", "second"]


def test_the_worker_may_begin_with_the_next_shard_before_its_turn(tmp_path: Path):
    job = PreparingJob(folder=tmp_path, events=[])
    run(job, shards=[0, 1, 2])
    assert {"prepared 1", "prepared 2"} <= set(job.events)
    for shard in (1, 2):
        assert job.events.index(f"prepared {shard}") < job.events.index(f"done {shard - 1}")


def test_a_prepared_shard_is_searched_like_any_other(tmp_path: Path):
    job = PreparingJob(folder=tmp_path, events=[], on_row={102: "raise"})
    reports = run(job, shards=[0, 1])
    assert [(r.kept, r.dropped) for r in reports] == [(4, {}), (3, {"worker_error": 1})]
    assert job.rows(1)[2] == [102, "worker_error", "ValueError: row 102 is bad"]


def test_committed_shards_are_reported_and_not_worked_on(tmp_path: Path):
    run(DoublingJob(folder=tmp_path), shards=[0])
    again = run(DoublingJob(folder=tmp_path, on_build="raise"), shards=[0])
    assert [r.already for r in again] == [True]


def test_no_shards_means_no_worker(tmp_path: Path):
    assert run(DoublingJob(folder=tmp_path, on_build="raise"), shards=[]) == []


def test_memory_that_runs_out_stops_the_run_and_blames_no_row(tmp_path: Path):
    job = DoublingJob(folder=tmp_path, on_row={101: "exhaust"})
    with pytest.raises(CapfiltError) as caught:
        run(job, shards=[0, 1, 2])
    assert str(caught.value) == (
        "stage first, shard 1: the worker ran out of memory (MemoryError:); give it more, or less "
        "to do at once: fewer workers on a machine or GPU, smaller batches"
    )
    assert [path.stem for path in (tmp_path / "first").iterdir()] == ["0"]


def test_rows_that_raise_are_quarantined_and_the_rest_is_kept(tmp_path: Path):
    job = DoublingJob(folder=tmp_path, on_row={1: "raise", 3: "raise"})
    [report] = run(job, shards=[0])
    assert (report.kept, report.dropped) == (2, {"worker_error": 1})
    assert job.rows(0)[1] == [1, "worker_error", "ValueError: row 1 is bad"]


def test_a_shard_that_is_one_whole_fails_with_its_own_error_at_the_first_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    whole = Resources(divisible=False)
    job = DoublingJob(folder=tmp_path, num_rows=1, on_row={0: "raise"}, resources=whole)
    [report] = run(job, shards=[0])
    assert report.error == "the worker raised ValueError: row 0 is bad"
    assert len(caplog.records) == 1


def test_a_shard_that_cannot_be_read_is_reported_and_goes_no_further(tmp_path: Path):
    first = DoublingJob(folder=tmp_path, unreadable=frozenset({1}))
    second = DoublingJob(folder=tmp_path, stage="second", source="first")
    reports = run(first, second, shards=[0, 1])
    assert [(r.stage, r.error) for r in reports if r.shard == 1] == [
        ("first", "shard 1 is damaged")
    ]


def test_a_disk_that_fails_while_a_shard_is_read_costs_that_shard_only(tmp_path: Path):
    first, second = run(BadDiskJob(folder=tmp_path), shards=[0, 1])
    assert first.error == "cannot be read: [Errno 5] Input/output error"
    assert second.error is None


def test_a_storage_error_ends_the_run(tmp_path: Path):
    with pytest.raises(StorageError, match="disk is full"):
        run(FullDiskJob(folder=tmp_path), shards=[0])


def test_workers_are_closed_also_after_an_error(tmp_path: Path):
    with pytest.raises(StorageError):
        run(FullDiskJob(folder=tmp_path), shards=[0])
    assert (tmp_path / "closed-first").exists()


def test_a_stop_request_ends_the_run_after_the_shard_at_hand(tmp_path: Path):
    job = DoublingJob(folder=tmp_path)
    reports = LocalPool().run([job], [0, 1, 2, 3])
    seen = [next(reports).shard]
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        seen.extend(report.shard for report in reports)
    assert seen == sorted(job.committed()) == [0, 1]


def test_a_worker_that_cannot_be_built_is_one_line(tmp_path: Path):
    with pytest.raises(CapfiltError) as caught:
        run(NoDeviceJob(folder=tmp_path), shards=[0])
    assert str(caught.value) == (
        "stage first: no worker could be built: ValueError: device is 'tpu', which is not here"
    )


def test_reports_tell_the_seconds_of_work(tmp_path: Path):
    [report] = run(DoublingJob(folder=tmp_path), shards=[0])
    assert 0 < report.seconds < 5


def test_the_local_pool_does_not_import_ray():
    check = "import sys, capfilt.local_pool; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], env=environment()).returncode == 0


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@dataclass(frozen=True, kw_only=True)
class EagerJob(DoublingJob):
    """Its worker takes the first shard only once the second is read."""

    was_read: threading.Event

    def fetch(self, shard):
        if shard == 1:
            self.was_read.set()
        return super().fetch(shard)

    def build_worker(self):
        return EagerWorker(job=self)


class EagerWorker(DoublingWorker):
    def __call__(self, inputs):
        assert self.job.was_read.wait(timeout=2), "the second shard is not read"
        return super().__call__(inputs)


@dataclass(frozen=True, kw_only=True)
class MeetingJob(DoublingJob):
    """The commit of shard 0 goes on only when the worker is at shard 1."""

    meeting: threading.Barrier

    def commit(self, shard, fetched, outputs):
        if shard == 0:
            self.meeting.wait(timeout=2)
        return super().commit(shard, fetched, outputs)

    def build_worker(self):
        return MeetingWorker(job=self)


class MeetingWorker(DoublingWorker):
    def __call__(self, inputs):
        if 100 in inputs:
            self.job.meeting.wait(timeout=2)
        return super().__call__(inputs)


@dataclass(frozen=True, kw_only=True)
class HeldJob(DoublingJob):
    """Its commits wait for leave; its worker notes the shards it sees."""

    held: threading.Event

    def commit(self, shard, fetched, outputs):
        assert self.held.wait(timeout=2)
        return super().commit(shard, fetched, outputs)

    def build_worker(self):
        return NotingWorker(job=self)


class NotingWorker(DoublingWorker):
    def __call__(self, inputs):
        (self.job.folder / f"worked-{inputs[0] // 100}").touch()
        return super().__call__(inputs)


def worked_on(folder: Path) -> set[int]:
    return {int(path.name.partition("-")[2]) for path in folder.glob("worked-*")}


@dataclass(frozen=True, kw_only=True)
class PreparingJob(DoublingJob):
    """Its worker takes its time until the next shard, if there is one, is prepared."""

    events: list[str]

    def build_worker(self):
        return PreparedWorker(job=self)


class PreparedWorker(DoublingWorker):
    def prepare(self, inputs):
        self.job.events.append(f"prepared {inputs[0] // 100}")
        return tuple(inputs)

    def __call__(self, inputs):
        shard = inputs[0] // 100
        for _ in range(200):
            if shard == 2 or f"prepared {shard + 1}" in self.job.events or self.job.on_row:
                break
            time.sleep(0.01)
        outputs = super().__call__(inputs)
        self.job.events.append(f"done {shard}")
        return outputs


class RefusingJob(DoublingJob):
    def commit(self, shard, fetched, outputs):
        if shard == 0:
            raise ShardError("shard 0 is odd")
        return super().commit(shard, fetched, outputs)


class NoDeviceJob(DoublingJob):
    def build_worker(self):
        raise ValueError("device is 'tpu', which is not here")


class LosingWorker(DoublingWorker):
    def __call__(self, inputs):
        return super().__call__(inputs)[1:]


class BadDiskJob(DoublingJob):
    def fetch(self, shard):
        if shard == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().fetch(shard)


class FullDiskJob(DoublingJob):
    def commit(self, shard, fetched, outputs):
        raise StorageError("disk is full")
