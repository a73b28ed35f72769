"""Takes the steps of all seeds in processes of one thread each; what is on disk is skipped."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from benchmarks.bootstrap_rows.arms import NEEDS, Lab, Step, is_done, take
from benchmarks.bootstrap_rows.beginning import beginning
from benchmarks.bootstrap_rows.miniature import miniature_world
from benchmarks.bootstrap_rows.plans import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One step of one seed."""

    seed: int
    step: Step


def tasks_of(seeds: Sequence[int], steps: Sequence[Step]) -> list[Task]:
    """All tasks, in the order in which they are wanted: a step with all seeds, then the next."""
    return [Task(seed=seed, step=step) for step in NEEDS if step in steps for seed in seeds]


def with_needs(steps: Sequence[Step]) -> list[Step]:
    """These steps and all that they need."""
    wanted: set[Step] = set()
    for step in steps:
        needed: Step | None = step
        while needed is not None:
            wanted.add(needed)
            needed = NEEDS[needed]
    return [step for step in NEEDS if step in wanted]


def run(
    plan: Plan, tasks: Sequence[Task], *, folder: Path, num_processes: int, deadline: float
) -> Iterator[Task]:
    """Take tasks, each after what it needs, and yield each when its result is on disk.

    Args:
        plan: sizes and settings.
        tasks: in the order in which they are wanted.
        folder: of everything that is kept.
        num_processes: tasks at a time.
        deadline: on `time.monotonic`; no task begins after it.
    """
    torch.set_num_threads(1)  # as in the other processes, so that the start has the same bits
    beginning(folder.parent / plan.start_name, plan.naming, num_pictures=plan.num_single_things)
    waiting = [task for task in tasks if not is_done(home(folder, task.seed), task.step)]
    running: dict[Future[None], Task] = {}
    # Not forked: a fork of a process whose torch has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        while waiting or running:
            for task in _ready(waiting, folder)[: num_processes - len(running)]:
                if time.monotonic() < deadline:
                    waiting.remove(task)
                    running[pool.submit(_take, plan, task, folder)] = task
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                yield running.pop(future)


def home(folder: Path, seed: int) -> Path:
    """Where the results of a seed are."""
    return folder / f"seed-{seed}"


def _ready(waiting: Sequence[Task], folder: Path) -> list[Task]:
    return [
        task
        for task in waiting
        if (need := NEEDS[task.step]) is None or is_done(home(folder, task.seed), need)
    ]


def _take(plan: Plan, task: Task, folder: Path) -> None:
    torch.set_num_threads(1)  # threads that meet after every tiny product cost more than it
    take(task.step, _lab(plan, task.seed, folder))


@cache
def _lab(plan: Plan, seed: int, folder: Path) -> Lab:
    start = beginning(
        folder.parent / plan.start_name, plan.naming, num_pictures=plan.num_single_things
    )
    return Lab(
        folder=home(folder, seed),
        seed=seed,
        world=miniature_world(seed, plan.world),
        start=start,
        training=plan.training,
        num_candidates=plan.num_candidates,
    )
