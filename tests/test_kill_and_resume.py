"""The promise of the project: a run that is killed, again and again, ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from capfilt.config import check_recipe
from capfilt.io.tar import write_tar
from capfilt.local_pool import LocalPool
from capfilt.miniature.pairs import write_human_shard
from capfilt.stages.loop import bootstrap

NUM_SHARDS = 10
IMAGES_PER_SHARD = 6
ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    pairs = write_human_shard("kill", NUM_SHARDS * IMAGES_PER_SHARD, side_px=48)
    for number in range(NUM_SHARDS):
        rows = pairs[number * IMAGES_PER_SHARD : (number + 1) * IMAGES_PER_SHARD]
        members = [
            m for key, jpeg, text in rows for m in ((f"{key}.jpg", jpeg), text_of(key, text))
        ]
        (folder / f"{number:05d}.tar").write_bytes(write_tar(members))
    return folder


def text_of(key: str, text: str) -> tuple[str, bytes]:
    return f"{key}.txt", text.encode()


def recipe_values(run: Path, shards: Path, models: Path, *, kind: str) -> dict[str, object]:
    return {
        "run": str(run),
        "input": {"shards": f"{shards}/{{00000..{NUM_SHARDS - 1:05d}}}.tar"},
        "caption": {"model": str(models / "captioner"), "max_new_tokens": 8, "batch_images": 4},
        "score": {"model": str(models / "filter"), "batch_images": 4},
        "select": {"min_itm_prob": 0.2, "min_itm_prob_synthetic": 0.2},
        "dedup": {"min_cosine": 1.01, "min_cosine_perceptual": -1.0},
        "pool": {"kind": kind},
    }


def files_of(run: Path) -> dict[str, bytes]:
    """Every file of a run that a reader may follow, by path."""
    paths = (p for p in sorted((run / "round-000").rglob("*")) if p.is_file())
    return {str(p.relative_to(run)): p.read_bytes() for p in paths}


def commits_of(run: Path) -> int:
    return len(list(run.glob("round-000/*/*/_commits/*.json")))


def children_of(parent: int) -> Iterator[int]:
    """All processes below one, deepest last."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and parent_of(entry) == parent:
            yield int(entry.name)
            yield from children_of(int(entry.name))


def parent_of(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def is_actor(pid: int) -> bool:
    try:
        return b"ShardActor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Driver:
    """A `capfilt run` in a process of its own."""

    def __init__(self, recipe: Path, run: Path) -> None:
        self.run = run
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'model'}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "capfilt", "run", str(recipe)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_commits(self, count: int) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while commits_of(self.run) < count and self.process.poll() is None:
            assert time.monotonic() < deadline, f"{commits_of(self.run)} of {count} commits"
            time.sleep(0.02)

    def kill_an_actor(self, rng: random.Random) -> bool:
        actors = [pid for pid in children_of(self.process.pid) if is_actor(pid)]
        if actors:
            kill(rng.choice(sorted(actors)))
        return bool(actors)

    def kill_everything(self) -> None:
        if self.process.poll() is not None:
            pytest.fail(f"the run was over before it was killed: {self.process.communicate()[0]}")
        for pid in [self.process.pid, *children_of(self.process.pid)]:
            kill(pid)
        self.process.communicate()


@pytest.mark.slow
def test_a_run_whose_workers_and_driver_are_killed_ends_with_the_same_bytes(
    tmp_path: Path, shards: Path, models: Path
) -> None:
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    recipe = check_recipe("quiet", recipe_values(quiet, shards, models, kind="local"))
    list(bootstrap(recipe, LocalPool(), rounds=1))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(killed, shards, models, kind="ray")))

    rng = random.Random(7)
    actors_killed = 0
    for milestones, last in (((1, 4, 7, 10), 14), ((18, 22), 26)):
        driver = Driver(path, killed)
        for milestone in milestones:
            driver.wait_for_commits(milestone)
            actors_killed += driver.kill_an_actor(rng)
        driver.wait_for_commits(last)
        assert driver.process.poll() is None, "the run was over before it was killed"
        driver.kill_everything()
    final = Driver(path, killed)
    output, _ = final.process.communicate(timeout=DEADLINE_S)

    assert final.process.returncode == 0, output
    assert actors_killed >= 4
    assert files_of(killed) == files_of(quiet)
