"""A training that is killed in a phase goes on there, and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.small_run import SmallRun, files_of, training

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 240.0

pytestmark = pytest.mark.long


def recipe_at(path: Path, run: SmallRun) -> Path:
    """A recipe of a training that notes its progress at every step."""
    options = {**training(run.web), "pretrain_steps": 24, "finetune_steps": 16,
               "checkpoint_steps": 1, "held_out_pairs": 2}  # fmt: skip
    recipe = run.recipe(train=options)
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


def started(recipe: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'model'}"}
    command = [sys.executable, "-m", "capfilt", "train", str(recipe)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def wait_for_step(
    run: SmallRun, phase: str, *, step: int, process: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not any(
        int(path.stem.removeprefix("step-")) >= step
        for path in run.folder.glob(f"round-000/models/*/_progress/{phase}/step-*.safetensors")
    ):
        assert process.poll() is None, "the training was over before it was killed"
        assert time.monotonic() < deadline, f"{phase} did not come to step {step}"
        time.sleep(0.01)


def test_a_training_that_is_killed_ends_with_the_same_bytes(
    small_run: SmallRun, tmp_path: Path
) -> None:
    quiet, killed = (small_run.copied_to(tmp_path / name) for name in ("quiet", "killed"))
    assert started(recipe_at(tmp_path / "quiet.yaml", quiet)).wait(DEADLINE_S) == 0
    recipe = recipe_at(tmp_path / "killed.yaml", killed)
    for phase, step in (("pretrain", 7), ("captioner", 4), ("filter", 3)):
        process = started(recipe)
        wait_for_step(killed, phase, step=step, process=process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert started(recipe).wait(DEADLINE_S) == 0
    first, second = (files_of(run.folder / "round-000" / "models") for run in (quiet, killed))
    assert first == second
    assert any(name.endswith("blip/model.safetensors") for name in first)
