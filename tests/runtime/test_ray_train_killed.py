"""A training on several workers that loses one, or is stopped, ends with the same models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from capfilt.errors import Stopped
from tests.small_run import SmallRun, files_of, training

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 400.0

pytestmark = pytest.mark.long


def started(run: SmallRun) -> subprocess.Popen[bytes]:
    """The command as a shell starts it: leader of a process group of its own."""
    options = {
        **training(run.web), "pretrain_steps": 30, "finetune_steps": 4, "checkpoint_steps": 1,
        "held_out_pairs": 2, "held_out_every": 8,
    }  # fmt: skip
    pool = {"kind": "ray", "train": {"workers": 2, "cpus": 1}}
    recipe = run.folder.with_suffix(".yaml")
    values = run.recipe(train=options, pool=pool).model_dump(mode="json")
    recipe.write_text(yaml.safe_dump(values))
    # Ray's workers are nice: on a busy machine the test would wait for them.
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'model'}", "RAY_worker_niceness": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "capfilt", "train", str(recipe)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(DEADLINE_S)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)


def family(pid: int) -> dict[int, str]:
    """The processes that a process started, and those that they started: command lines by id."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (parent := parent_of(int(folder.name))) is not None:
            children.setdefault(parent, []).append(int(folder.name))
    found, left = dict[int, str](), [pid]
    while left:
        for child in children.get(left.pop(), []):
            found[child] = command_of(child)
            left.append(child)
    return found


def parent_of(pid: int) -> int | None:
    """The parent of a process that runs; a zombie has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def wait_until_it_trains(run: SmallRun, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    pattern = "round-000/models/*/_progress/pretrain/step-*.safetensors"
    while not any(int(path.stem.removeprefix("step-")) >= 5 for path in run.folder.glob(pattern)):
        assert process.poll() is None, "the training was over before it was disturbed"
        assert time.monotonic() < deadline, "the training did not come to step 5"
        time.sleep(0.01)


def left_of(processes: dict[int, str]) -> dict[int, str]:
    """Those that still run some seconds later."""
    deadline = time.monotonic() + 20
    while left := {
        pid: command for pid, command in processes.items() if parent_of(pid) is not None
    }:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return left


def models_of(run: SmallRun) -> dict[str, bytes]:
    return files_of(run.folder / "round-000" / "models")


@pytest.fixture(scope="module")
def quiet(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a training that nobody disturbs leaves."""
    run = small_run.copied_to(tmp_path_factory.mktemp("quiet") / "run")
    assert finish(started(run)) == 0
    return models_of(run)


def test_a_worker_that_is_killed_is_replaced_and_the_models_are_the_same(
    small_run: SmallRun, quiet: dict[str, bytes], tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    process = started(run)
    wait_until_it_trains(run, process)
    before = family(process.pid)
    workers = [pid for pid, command in before.items() if "RayTrainWorker" in command]
    assert len(workers) == 2, before
    os.kill(max(workers), signal.SIGKILL)
    assert finish(process) == 0
    assert models_of(run) == quiet
    assert not left_of(before)


def test_ctrl_c_ends_all_processes_and_the_same_command_goes_on(
    small_run: SmallRun, quiet: dict[str, bytes], tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    process = started(run)
    wait_until_it_trains(run, process)
    before = family(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert finish(process) == Stopped.exit_code
    assert not left_of(before)
    assert finish(started(run)) == 0
    assert models_of(run) == quiet
