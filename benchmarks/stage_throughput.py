"""The stages `caption` and `score`, from shards to committed tables, beside their bare model loops.

    python benchmarks/stage_throughput.py [--size mid|tiny|base] [--turns 3] [--pools local ray]
                                          [--json FILE]

A bare loop calls the model on pixels and texts that lie ready in memory, in one process per worker
with one thread each. The stage does the whole work on the same images: it reads JPEGs of 640 x 480
from tars, decodes them, captions or scores them, and commits Parquet; in one process with
`LocalPool`, and with two workers on `RayPool`. Both run in turns, and the ratio is of each turn.

The clock starts when every worker has its model and has been through one batch, so loading and the
start of processes are not counted, and decoding the first batch is. It stops with the last commit.
Shards are small, so that there are many ends of shards. The decoding processes need cores, too:
where workers leave none free, their share of the CPU time is what the stage cannot reach. The ratio
of CPU time, bare loop by model's process, is what feeding costs in that process; other work on the
machine spoils the ratio of speeds and leaves this one alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stage_material import (
    BATCH_IMAGES,
    SHARD_IMAGES,
    SHARDS_PER_WORKER,
    STAGES,
    bare_calls,
    num_shards,
    recipe_of,
    write_models,
    write_web,
)

from capfilt.config import Recipe
from capfilt.local_pool import LocalPool
from capfilt.pool import AnyJob, Fetched, Pool, Quarantine, Resources, ShardReport, Worker
from capfilt.runtime.cluster import ClusterSettings
from capfilt.runtime.ray_pool import RayPool, RaySettings
from capfilt.stages import index
from capfilt.stages.tables import open_tables

START_S = 180.0  # for all workers of a stage to be ready
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
POOLS = {"local": 1, "ray": 2}  # and their workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """A job of which every worker waits for the others, and notes when it worked."""

    job: AnyJob
    notes: Path

    @property
    def stage(self) -> str:
        """The job's."""
        return self.job.stage

    @property
    def resources(self) -> Resources:
        """The job's."""
        return self.job.resources

    def committed(self) -> Mapping[int, ShardReport]:
        """The job's."""
        return self.job.committed()

    def build_worker(self) -> Worker[Any, Any]:
        """The job's worker, after one batch and once all others are as far."""
        worker = self.job.build_worker()
        worker(self.job.fetch(0).inputs[:BATCH_IMAGES])
        note(self.notes, "ready")
        wait_for(lambda: len(noted(self.notes, "ready")) == self.resources.num_workers)
        note(self.notes, "start")
        return worker

    def fetch(self, shard: int) -> Fetched[Any]:
        """The job's."""
        return self.job.fetch(shard)

    def quarantine(self, rejected: object, why: Quarantine) -> object:
        """Does not occur."""
        raise AssertionError(why)

    def commit(self, shard: int, fetched: Fetched[Any], outputs: Sequence[Any]) -> ShardReport:
        """The job's; notes its end."""
        report = self.job.commit(shard, fetched, outputs)
        note(self.notes, "end")
        return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast something went."""

    images_per_s: float
    cpu_s_per_image: float  # of the processes that hold a model
    decode_share: float = 0.0  # of the CPU time of these and their decoding processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A bare loop and a stage, one after the other."""

    pool: str
    stage: str
    num_workers: int
    bare: Pace
    whole: Pace

    @property
    def ratio(self) -> float:
        """The stage's speed by the loop's."""
        return self.whole.images_per_s / self.bare.images_per_s

    @property
    def cpu_ratio(self) -> float:
        """The loop's CPU time by that of the model's process in the stage."""
        return self.bare.cpu_s_per_image / self.whole.cpu_s_per_image


def note(folder: Path, what: str) -> None:
    """Write down what happened, when, and the CPU seconds spent by then."""
    now = {"what": what, "at_s": time.monotonic(), "own_s": time.process_time()}
    now["children_s"] = children_cpu_s()
    with (folder / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(now) + "\n")


def noted(folder: Path, what: str) -> list[dict[str, Any]]:
    """All notes of one kind, in the order of time; each with its process."""
    lines = [
        {**json.loads(line), "process": path.stem}
        for path in folder.glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return sorted((n for n in lines if n["what"] == what), key=lambda n: n["at_s"])


def wait_for(condition: Callable[[], bool]) -> None:
    """Look every few milliseconds, so that all who wait go on together."""
    until = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < until, f"not all workers were ready in {START_S:g} s"
        time.sleep(0.005)


def children_cpu_s() -> float:
    """CPU time of this process's children, which are the decoding processes (Linux)."""
    ticks = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / CLOCK_TICKS


def pace_of(notes: Path, *, num_images: int) -> Pace:
    """From the first start to the last end; CPU time between each worker's own."""
    starts, ends = noted(notes, "start"), noted(notes, "end")
    last = {n["process"]: n for n in ends}.values()
    own_s, children_s = (
        sum(n[name] for n in last) - sum(n[name] for n in starts)
        for name in ("own_s", "children_s")
    )
    return Pace(
        images_per_s=num_images / (ends[-1]["at_s"] - starts[0]["at_s"]),
        cpu_s_per_image=own_s / num_images,
        decode_share=children_s / (own_s + children_s),
    )


def stage_turn(recipe: Recipe, stage: str, pool: Pool, notes: Path) -> Pace:
    """Run a stage."""
    notes.mkdir()
    job = Noted(job=STAGES[stage].job(recipe, open_tables(recipe, 0)), notes=notes)
    reports = list(pool.run([job], range(num_shards(recipe))))
    assert all(report.error is None for report in reports), reports
    return pace_of(notes, num_images=num_shards(recipe) * SHARD_IMAGES)


def local_stage_turn(recipe: Recipe, stage: str, notes: Path) -> Pace:
    """The same on a `LocalPool` in a process of its own, which has no other children."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(stage_turn, recipe, stage, LocalPool(), notes).result()


def bare_turn(recipe: Recipe, stage: str, num_workers: int, notes: Path) -> Pace:
    """Run the model alone, in one process per worker."""
    notes.mkdir()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=spawn) as processes:
        work = [
            processes.submit(bare_loop, recipe, stage, worker, num_workers, notes)
            for worker in range(num_workers)
        ]
        num_images = sum(future.result() for future in work)
    return pace_of(notes, num_images=num_images)


def bare_loop(recipe: Recipe, stage: str, worker: int, num_workers: int, notes: Path) -> int:
    """One worker's share; the number of its images."""
    calls = list(bare_calls(recipe, stage, range(worker, num_shards(recipe), num_workers)))
    calls[0]()
    note(notes, "ready")
    wait_for(lambda: len(noted(notes, "ready")) == num_workers)
    note(notes, "start")
    for call in calls:
        call()
    note(notes, "end")
    return len(calls) * SHARD_IMAGES


def turns_of(folder: Path, turn: int, pool: str, ray_pool: Pool | None) -> Iterator[Turn]:
    """Both stages on a pool, each after its bare loop, in a run of their own."""
    num_workers = POOLS[pool]
    recipe = recipe_of(folder, run=f"run-{pool}-{turn}", num_workers=num_workers)
    index.run(recipe, open_tables(recipe, 0), LocalPool())
    for stage in STAGES:
        notes = folder / f"{pool}-{stage}-{turn}"
        bare = bare_turn(recipe, stage, num_workers, notes.with_suffix(".bare"))
        if ray_pool is None:
            whole = local_stage_turn(recipe, stage, notes)
        else:
            whole = stage_turn(recipe, stage, ray_pool, notes)
        yield Turn(pool=pool, stage=stage, num_workers=num_workers, bare=bare, whole=whole)


def measure(*, size: str, num_turns: int, pools: Sequence[str]) -> Iterator[Turn]:
    """All turns; one cluster serves all that need one."""
    settings = RaySettings(cluster=ClusterSettings(address="local"))
    ray_pool = RayPool(settings) if "ray" in pools else None
    try:
        with tempfile.TemporaryDirectory() as name:
            write_web(Path(name) / "web", shards=SHARDS_PER_WORKER * max(POOLS.values()))
            write_models(Path(name), size=size)
            for number in range(num_turns):
                for pool in pools:
                    cluster = ray_pool if pool == "ray" else None
                    yield from turns_of(Path(name), number, pool, cluster)
    finally:
        if ray_pool is not None:
            ray_pool.close()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=["mid", "tiny", "base"], default="mid")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pools", choices=list(POOLS), nargs="+", default=list(POOLS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    turns = list(measure(size=options.size, num_turns=options.turns, pools=options.pools))
    print(
        f"{options.size} size, {os.cpu_count()} CPUs, {platform.machine()}, {options.turns} turns"
    )
    print(f"{'':<26}{'bare':>10}{'stage':>12}   ratio (range)      of CPU time  decoding")
    for key in dict.fromkeys((turn.pool, turn.stage) for turn in turns):
        print(line_of([turn for turn in turns if (turn.pool, turn.stage) == key]))
    if options.json:
        rows = [
            {**asdict(turn), "ratio": turn.ratio, "cpu_ratio": turn.cpu_ratio} for turn in turns
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def line_of(turns: Sequence[Turn]) -> str:
    """One line of the table: medians, and the range of the ratio."""
    ratios = [turn.ratio for turn in turns]
    bare = statistics.median(turn.bare.images_per_s for turn in turns)
    whole = statistics.median(turn.whole.images_per_s for turn in turns)
    share = statistics.median(turn.whole.decode_share for turn in turns)
    cpu = statistics.median(turn.cpu_ratio for turn in turns)
    name = f"{turns[0].stage}, {turns[0].pool}, {turns[0].num_workers} workers"
    span = f"({min(ratios):.3f}-{max(ratios):.3f})"
    return (
        f"{name:<26}{bare:>8.1f}/s{whole:>10.1f}/s   {statistics.median(ratios):.3f} {span}"
        f"{cpu:>11.3f}{share:>10.1%}"
    )


if __name__ == "__main__":
    main()
