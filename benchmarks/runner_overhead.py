"""What a pool costs per shard, beside the work itself.

    python benchmarks/runner_overhead.py [--shards 10000] [--workers 2] [--json FILE]

Empty shards do nothing in any step: all of their time is the pool's. Timed shards read for 20 ms,
work for 50 ms and commit for 20 ms, asleep: 50 ms each if reading and committing are hidden behind
work, 70 if only reading is, 90 if nothing is. MB is the growth of the
driver's resident set over the run; the first run with Ray includes what Ray itself sets up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from capfilt.local_pool import LocalPool
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport
from capfilt.runtime.cluster import ClusterSettings
from capfilt.runtime.ray_pool import RayPool, RaySettings

LOCAL_CLUSTER = ClusterSettings(address="local")


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepingJob:
    """Sleeps through its three steps, and keeps nothing."""

    resources: Resources
    stage: str = "sleep"
    read_s: float = 0.0
    work_s: float = 0.0
    commit_s: float = 0.0

    def committed(self) -> Mapping[int, ShardReport]:
        """Nothing."""
        return {}

    def build_worker(self) -> SleepingWorker:
        """The worker."""
        return SleepingWorker(seconds=self.work_s)

    def fetch(self, shard: int) -> Fetched[int]:
        """One row."""
        time.sleep(self.read_s)
        return Fetched(inputs=[shard])

    def quarantine(self, rejected: int, why: Quarantine) -> int:
        """Does not occur."""
        raise AssertionError(why)

    def commit(self, shard: int, fetched: Fetched[int], outputs: Sequence[int]) -> ShardReport:
        """Count the row."""
        time.sleep(self.commit_s)
        return ShardReport(stage=self.stage, shard=shard, rows_in=1, kept=1, dropped={})


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepingWorker:
    """Sleeps, then gives back what it got."""

    seconds: float

    def __call__(self, inputs: Sequence[int]) -> Sequence[int]:
        """Work on a batch."""
        time.sleep(self.seconds)
        return inputs

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured run."""

    pool: str
    shards: str
    num_workers: int
    num_shards: int
    wall_s: float
    first_s: float  # until the first report: processes start
    ms_per_shard: float  # between first and last report, per shard and worker
    driver_growth_mb: float


def main() -> None:
    """Measure both pools and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = measure_all(num_shards=options.shards, num_workers=options.workers)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(f"{'pool':<8}{'shards':<10}{'workers':>8}{'ms per shard':>14}{'first s':>9}{'MB':>7}")
    for r in results:
        print(
            f"{r.pool:<8}{r.shards:<10}{r.num_workers:>8}{r.ms_per_shard:>14.2f}"
            f"{r.first_s:>9.2f}{r.driver_growth_mb:>7.1f}"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


def measure_all(*, num_shards: int, num_workers: int) -> list[Result]:
    """Empty and timed shards in this process, with one actor, and with several."""
    local = LocalPool()
    results = [
        measure(local, "local", empty_job(1), num_shards),
        measure(local, "local", timed_job(1), 100),
    ]
    pool = RayPool(RaySettings(cluster=LOCAL_CLUSTER))
    try:
        for workers in sorted({1, num_workers}):
            results.append(measure(pool, "ray", empty_job(workers), num_shards))
            results.append(measure(pool, "ray", timed_job(workers), 100 * workers))
    finally:
        pool.close()
    return results


def empty_job(num_workers: int) -> SleepingJob:
    """Shards without any work."""
    return SleepingJob(stage="empty", resources=Resources(num_workers=num_workers, num_cpus=0.5))


def timed_job(num_workers: int) -> SleepingJob:
    """Shards that take 20, 50 and 20 ms."""
    resources = Resources(num_workers=num_workers, num_cpus=0.5)
    return SleepingJob(stage="timed", resources=resources, read_s=0.02, work_s=0.05, commit_s=0.02)


def measure(pool: Pool, name: str, job: SleepingJob, num_shards: int) -> Result:
    """Run a job over shards and take the times."""
    before_mb, began = resident_mb(), time.perf_counter()
    reports = pool.run([job], range(num_shards))
    next(iter(reports))
    first_s = time.perf_counter() - began
    rest = sum(1 for _ in reports)
    wall_s = time.perf_counter() - began
    assert rest == num_shards - 1, f"{rest + 1} reports for {num_shards} shards"
    return Result(
        pool=name,
        shards=job.stage,
        num_workers=job.resources.num_workers,
        num_shards=num_shards,
        wall_s=wall_s,
        first_s=first_s,
        ms_per_shard=1000 * (wall_s - first_s) * job.resources.num_workers / rest,
        driver_growth_mb=resident_mb() - before_mb,
    )


def resident_mb() -> float:
    """Memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
