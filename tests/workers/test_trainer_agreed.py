"""Processes that train together go on from one record, the first one's choice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capfilt.io.storage import Store
from capfilt.workers.trainer_progress import Notes, Progress, ProgressFolder

ROOT = Path(__file__).resolve().parents[2]


def records(folder: Path, steps: list[int]) -> None:
    progress = ProgressFolder(Store.at_url(str(folder)), num_kept=9)
    for step in steps:
        notes = Notes(num_samples=4 * step)
        progress.save("pretrain", Progress(notes=notes, tensors={"a": torch.zeros(1)}), step=step)


def outcomes(folder: Path) -> list[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model")])
    environment = {**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    script = str(Path(__file__).with_name("agreeing.py"))
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), str(folder)], env=environment)
        for rank in (0, 1)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    return [(folder / f"{rank}.txt").read_text() for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "other", "chosen"),
    [
        ([2, 5], [2, 5, 7], "step 5"),
        ([2], [2, 5], "step 2"),
        ([], [2], "the beginning"),
        ([2, 5], [2], "cannot"),
    ],
)
def test_all_go_on_from_the_first_ones_record_or_stop(
    tmp_path: Path, first: list[int], other: list[int], chosen: str
) -> None:
    records(tmp_path / "0", first)
    records(tmp_path / "1", other)
    if chosen == "cannot":
        chosen = (
            "pretrain: training goes on from step 5, and workers [1] of 2 cannot read its record; "
            "all machines must see the run's folder as it is"
        )
    assert outcomes(tmp_path) == [chosen, chosen]
