from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capfilt_blip.train.world import World
from tests.blip.train import task_lessons
from tests.blip.train.lessons import train

ROOT = Path(__file__).resolve().parents[3]


def trained_by_two(script: str, *arguments: str, folder: Path) -> list[dict[str, Any]]:
    """Train with two processes; what each of them saw."""
    path = str(Path(__file__).with_name(script))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model")])
    environment = {**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, path, *arguments, str(rank), "2", str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "contrast"),
    [
        ("pretrain", "momentum"),
        ("matcher", "momentum"),
        ("matcher", "batch alone"),
        ("captioner", "momentum"),
    ],
)
def test_two_workers_train_as_one_with_the_same_batches(
    kind: str, contrast: str, tmp_path: Path
) -> None:
    alone = train(kind, contrast, World())
    first, second = trained_by_two("lessons.py", kind, contrast, folder=tmp_path)
    assert first == second
    rows: Any = alone["metrics"]
    assert len(rows) == 50
    for expected, found in zip(rows, first["metrics"], strict=True):
        assert found["num_samples"] == expected["num_samples"]
        for name in ("loss", "lm_loss", "itc_loss", "itm_loss"):
            assert found[name] == pytest.approx(expected[name], abs=1e-5), (found["step"], name)
        # Adam's step does not show how long a gradient is.
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_workers_with_negatives_of_their_own_keep_equal_weights_and_queues(tmp_path: Path) -> None:
    first, second = trained_by_two("lessons.py", "pretrain", "local", folder=tmp_path)
    assert first == second
    assert any(name.startswith("queue.") for name in first["sums"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", task_lessons.TASKS)
def test_two_workers_finetune_for_a_task_as_one(kind: str, tmp_path: Path) -> None:
    alone: Any = task_lessons.train(kind, World())["metrics"]
    first, second = trained_by_two("task_lessons.py", kind, folder=tmp_path)
    assert first == second and len(alone) == 20
    for expected, found in zip(alone, first["metrics"], strict=True):
        assert found.pop("grad_norm") == pytest.approx(expected.pop("grad_norm"), rel=1e-3)
        assert found == pytest.approx(expected, abs=1e-5)
