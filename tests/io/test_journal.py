from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from capfilt.io.journal import JsonLines

ROOT = Path(__file__).resolve().parents[2]


def rows_in(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def test_a_line_has_its_step_its_phase_and_what_was_measured(tmp_path: Path):
    path = tmp_path / "new" / "metrics.jsonl"
    journal = JsonLines(path, phase="pretrain")
    journal.write(step=7, values={"loss": 0.1}, texts={"captions": ["a grün\nstar", "b"]})
    journal.close()
    [row] = rows_in(path)
    assert 1.7e9 < float(str(row.pop("time_s"))) < 1e10
    assert row == {"phase": "pretrain", "step": 7, "loss": 0.1, "captions": ["a grün\nstar", "b"]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(tmp_path: Path, value: float):
    journal = JsonLines(tmp_path / "a.jsonl", phase="p")
    journal.write(step=0, values={"loss": value}, texts={})
    journal.close()
    [row] = rows_in(tmp_path / "a.jsonl")
    assert row["loss"] is None


def test_a_training_that_is_resumed_goes_on_in_the_same_file(tmp_path: Path):
    for step in (0, 10):
        journal = JsonLines(tmp_path / "a.jsonl", phase="p")
        journal.write(step=step, values={}, texts={})
        journal.close()
    assert [row["step"] for row in rows_in(tmp_path / "a.jsonl")] == [0, 10]


def test_a_half_written_line_costs_no_other(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    journal = JsonLines(path, phase="p")
    journal.write(step=3, values={}, texts={})
    journal.close()
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"step": 1}', '{"step": 2, "lo']
    assert json.loads(lines[2])["step"] == 3


def test_the_lines_of_a_killed_training_are_there(tmp_path: Path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from capfilt.io.journal import JsonLines\n"
        "journal = JsonLines(Path(sys.argv[1]), phase='p')\n"
        "for step in range(20):\n"
        "    journal.write(step=step, values={'loss': 1.0}, texts={})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "a.jsonl"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model")])
    killed = subprocess.run(
        [sys.executable, "-c", program, str(path)], env={**os.environ, "PYTHONPATH": paths}
    )
    assert killed.returncode == -signal.SIGKILL
    assert [row["step"] for row in rows_in(path)] == list(range(20))
