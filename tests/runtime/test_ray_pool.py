from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError, Stopped, StorageError
from capfilt.pool import Resources, ShardReport
from capfilt.runtime.ray_pool import RayPool
from tests.runtime.jobs import DoublingJob, wait_for_file, worker_pids


def run(pool: RayPool, *chain: DoublingJob, shards: list[int]) -> list[ShardReport]:
    return list(pool.run(chain, shards))


def assert_all_doubled(job: DoublingJob, shards: list[int]) -> None:
    for shard in shards:
        assert job.rows(shard) == [2 * (100 * shard + i) for i in range(job.num_rows)]


def test_a_chain_takes_every_shard_through_and_its_jobs_overlap(pool: RayPool, job: DoublingJob):
    first = PatientJob(folder=job.folder, wait_for="second/0.json")
    second = replace(job, stage="second", source="first")
    reports = run(pool, first, second, shards=[*range(6)])
    assert sorted((r.stage, r.shard) for r in reports) == [
        (stage, shard) for stage in ("first", "second") for shard in range(6)
    ]
    assert second.rows(5) == [2000, 2004, 2008, 2012]


def test_committed_shards_need_no_worker(pool: RayPool, job: DoublingJob):
    run(pool, job, shards=[0, 1])
    again = run(pool, replace(job, on_build="exit"), shards=[0, 1])
    assert [r.already for r in again] == [True, True]


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_row_that_ends_its_worker_is_quarantined_alone(pool: RayPool, job: DoublingJob, how: str):
    job = replace(job, on_row={2: how}, num_rows=3)
    reports = run(pool, job, shards=[0, 1])
    assert {r.shard: r.dropped for r in reports} == {0: {"killed_worker": 1}, 1: {}}
    assert job.rows(0) == [0, 2, [2, "killed_worker", "the worker process died"]]


def test_a_shard_that_is_one_whole_fails_with_its_own_error(pool: RayPool, job: DoublingJob):
    whole = Resources(num_cpus=0.5, divisible=False, shard_timeout_s=math.inf)
    [report] = run(pool, replace(job, on_row={0: "raise"}, resources=whole), shards=[0])
    assert report.error == "the worker raised ValueError: row 0 is bad"


def test_rows_that_raise_are_quarantined_without_a_new_worker(pool: RayPool, job: DoublingJob):
    job = replace(job, on_row={0: "raise", 3: "raise"})
    run(pool, job, shards=[0])
    assert job.rows(0)[0] == [0, "worker_error", "ValueError: row 0 is bad"]
    assert job.rows(0)[3] == [3, "worker_error", "ValueError: row 3 is bad"]
    assert len(worker_pids(job.folder)) == 1


def test_a_row_that_hangs_is_quarantined(pool: RayPool, job: DoublingJob):
    limits = Resources(num_cpus=0.5, shard_timeout_s=0.3)
    job = replace(job, num_rows=1, on_row={0: "hang"}, resources=limits)
    [report] = run(pool, job, shards=[0])
    assert report.dropped == {"killed_worker": 1}
    assert job.rows(0) == [[0, "killed_worker", "the worker gave no answer in 0.3 s"]]


def kill_workers_at_random(
    pool: RayPool, job: DoublingJob, *, shards: list[int], kills: int, seed: int
) -> list[ShardReport]:
    """Run a job of two workers; after every few shards one of them gets SIGKILL."""
    rng, every, reports = random.Random(seed), len(shards) // (kills + 1), []
    for report in pool.run([job], shards):
        reports.append(report)
        if len(reports) % every == 0 and kills:
            kills -= kill_one(rng, worker_pids(job.folder))
    return reports


def kill_one(rng: random.Random, pids: list[int]) -> bool:
    alive = [pid for pid in sorted(pids) if is_worker(pid)]
    if alive:
        os.kill(rng.choice(alive), signal.SIGKILL)
    return bool(alive)


def is_worker(pid: int) -> bool:
    """Whether the process still is one of ours: numbers are given anew."""
    try:
        return b"ShardActor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def test_killed_workers_cost_no_shard_and_double_none(pool: RayPool, job: DoublingJob):
    job = replace(job, resources=Resources(num_workers=2, num_cpus=0.5))
    reports = kill_workers_at_random(pool, job, shards=[*range(40)], kills=3, seed=1)
    assert sorted(r.shard for r in reports) == [*range(40)]
    assert not any(r.error or r.dropped for r in reports)
    assert_all_doubled(job, [*range(40)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_run_survives_25_kills_with_the_same_result(pool: RayPool, job: DoublingJob, seed: int):
    job = replace(job, resources=Resources(num_workers=2, num_cpus=0.5))
    kill_workers_at_random(pool, job, shards=[*range(120)], kills=25, seed=seed)
    assert len(worker_pids(job.folder)) > 20
    assert_all_doubled(job, [*range(120)])


def test_a_shard_that_cannot_be_read_is_reported_and_the_others_go_on(
    pool: RayPool, job: DoublingJob
):
    reports = run(pool, replace(job, unreadable=frozenset({1})), shards=[0, 1, 2])
    errors = {r.shard: r.error for r in reports}
    assert errors == {0: None, 1: "shard 1 is damaged", 2: None}


def test_a_storage_error_reaches_the_caller_as_itself(pool: RayPool, tmp_path: Path):
    with pytest.raises(StorageError, match="disk is full"):
        run(pool, FullDiskJob(folder=tmp_path), shards=[0])


def test_a_worker_that_cannot_be_built_ends_the_run_with_its_text(pool: RayPool, job: DoublingJob):
    with pytest.raises(CapfiltError, match="stage first: no worker could be built: ValueError"):
        run(pool, replace(job, on_build="raise"), shards=[0])


def test_a_worker_that_dies_while_built_ends_the_run(pool: RayPool, job: DoublingJob):
    with pytest.raises(CapfiltError, match="stage first: 4 workers in a row died"):
        run(pool, replace(job, on_build="kill"), shards=[0])


def test_four_jobs_that_each_need_the_whole_machine_get_through(pool: RayPool, job: DoublingJob):
    whole = Resources(num_workers=2, num_cpus=2.0)
    stages = ["first", "second", "third", "fourth"]
    chain = [
        replace(job, stage=stage, source=source, resources=whole)
        for stage, source in zip(stages, [None, *stages], strict=False)
    ]
    reports = run(pool, *chain, shards=[0, 1, 2])
    assert len(reports) == 12
    assert chain[-1].rows(2)[0] == 16 * 200


def test_a_worker_that_fits_nowhere_is_refused_with_the_numbers(pool: RayPool, job: DoublingJob):
    big = replace(job, resources=Resources(num_cpus=3.0))
    with pytest.raises(CapfiltError, match=r"first: a worker asks for 3 CPUs .* \(largest: 2 CPUs"):
        run(pool, big, shards=[0])


def test_a_stop_request_finishes_the_shard_at_work_and_no_other(pool: RayPool, job: DoublingJob):
    reports = pool.run([replace(job)], [*range(200)])
    assert next(reports).error is None
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        list(reports)
    assert 1 <= len(job.committed()) < 100


def test_released_workers_are_closed(pool: RayPool, job: DoublingJob):
    run(pool, job, shards=[0])
    assert (job.folder / "closed-first").exists()


@pytest.mark.slow
def test_workers_die_with_a_driver_that_is_killed(job: DoublingJob, short_folder: str):
    program = (
        "import sys; from pathlib import Path; from tests.runtime.jobs import DoublingJob;"
        "from capfilt.runtime.cluster import ClusterSettings;"
        "from capfilt.runtime.ray_pool import RayPool, RaySettings;"
        "pool = RayPool(RaySettings(cluster=ClusterSettings(address='local', num_cpus=1)));"
        "list(pool.run([DoublingJob(folder=Path(sys.argv[1]), on_row={0: 'hang'})], [0]))"
    )
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": short_folder}
    with subprocess.Popen(
        [sys.executable, "-c", program, job.folder], env=os.environ | paths
    ) as driver:
        wait_for_file(job.folder / "hanging")
        driver.kill()
    [pid] = worker_pids(job.folder)
    pause = threading.Event()
    assert any(not is_worker(pid) or pause.wait(0.1) for _ in range(300))


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Sockets must have short names, so pytest's own folders do not do."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


class PatientJob(DoublingJob):
    """Reads its last shard only when the file it waits for is there."""

    def fetch(self, shard):
        if shard == 5:
            wait_for_file(self.folder / self.wait_for)
        return super().fetch(shard)


class FullDiskJob(DoublingJob):
    def commit(self, shard, fetched, outputs):
        raise StorageError("disk is full")
