from __future__ import annotations

import json
import logging
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capfilt.errors import MissingDependencyError
from capfilt.io import tensorboard
from capfilt.meter import Peak
from capfilt.workers.watch import Watcher, WatchOptions
from capfilt_blip.evaluate.heldout import CaptionSample, HeldOut
from capfilt_blip.tasks.recall import Recalls
from capfilt_blip.train.errors import TrainingError
from capfilt_blip.train.settings import StepMetrics

OPTIONS = WatchOptions(phase="pretrain", num_steps=100, log_every=4)
FOUND = HeldOut(
    itm=Recalls(texts=(0.5, 0.7, 0.8), images=(0.25, 0.6, 0.75)),
    cider_d=0.8,
    captions=(CaptionSample(text="a star", references=("a red star",)),),
)


def metrics(step: int, **values: float) -> StepMetrics:
    known: dict[str, Any] = {"loss": 4.0, "learning_rate": 1e-4, "grad_norm": 1.0, **values}
    return StepMetrics(step=step, num_samples=8 * (step + 1), **known)


def ticking(*seconds: float) -> Callable[[], float]:
    return iter(seconds).__next__


def rows_in(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "pretrain" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="capfilt")


def test_a_line_has_the_means_of_the_steps_since_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with Watcher(tmp_path, OPTIONS) as watcher:
        for step, itm in enumerate([0.6, 0.5, 0.3, 0.3, 0.1, 0.9]):
            watcher.step(metrics(step, itm_loss=itm))
    first, second = rows_in(tmp_path)
    assert (first["step"], first["itm_loss"], first["num_samples"]) == (0, 0.6, 8)
    assert (second["step"], second["num_samples"]) == (4, 40)
    assert second["itm_loss"] == pytest.approx((0.5 + 0.3 + 0.3 + 0.1) / 4)
    assert second["loss"] == 4.0
    assert "lm_loss" not in second
    assert [record.getMessage()[:21] for record in caplog.records] == [
        "pretrain step   1/100", "pretrain step   5/100",
    ]  # fmt: skip


def test_the_last_step_is_always_reported(tmp_path: Path):
    with Watcher(tmp_path, replace(OPTIONS, num_steps=7)) as watcher:
        for step in range(7):
            watcher.step(metrics(step))
    assert [row["step"] for row in rows_in(tmp_path)] == [0, 4, 6]


def test_rates_are_of_the_time_between_steps(tmp_path: Path):
    # Steps end at 10, 11, 13, 14 and 16 s: 32 pairs in 6 s, 1.5 s a step, 95 to go.
    peak = Peak(flops_per_s=1e9, label="measured")
    options = replace(OPTIONS, flops_per_sample=3e7, peak=peak)
    with Watcher(tmp_path, options, clock=ticking(10, 11, 13, 14, 16)) as watcher:
        for step in range(5):
            watcher.step(metrics(step))
    first, second = rows_in(tmp_path)
    assert not {"samples_per_s", "mfu", "eta_s"} & set(first)
    assert second["samples_per_s"] == pytest.approx(32 / 6)
    assert second["mfu"] == pytest.approx(32 / 6 * 3e7 / 1e9)
    assert second["eta_s"] == pytest.approx(1.5 * 95)


def test_the_time_of_a_measurement_is_not_that_of_the_steps(tmp_path: Path):
    # Measuring ends at 100 s; the step after it takes 2 s.
    with Watcher(tmp_path, OPTIONS, clock=ticking(0, 1, 2, 100, 102, 103)) as watcher:
        for step in range(3):
            watcher.step(metrics(step))
        watcher.held_out(FOUND)
        for step in (3, 4):
            watcher.step(metrics(step))
    assert rows_in(tmp_path)[-1]["samples_per_s"] == pytest.approx(32 / 5)


def test_a_resumed_training_counts_what_it_saw_itself(tmp_path: Path):
    with Watcher(tmp_path, OPTIONS, clock=ticking(0, 1, 2, 3, 4)) as watcher:
        for step in range(40, 45):
            watcher.step(metrics(step))
    first, second = rows_in(tmp_path)
    assert "samples_per_s" not in first
    assert second["samples_per_s"] == pytest.approx(32 / 4)


def test_held_out_measures_are_noted_at_the_last_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with Watcher(tmp_path, OPTIONS) as watcher:
        watcher.step(metrics(0))
        watcher.step(metrics(1))
        watcher.held_out(FOUND)
    row = rows_in(tmp_path)[-1]
    row.pop("time_s")
    assert row == {
        "phase": "pretrain", "step": 1, "held_out/cider_d": 0.8,
        "held_out/itm_text_r1": 0.5, "held_out/itm_text_r5": 0.7, "held_out/itm_text_r10": 0.8,
        "held_out/itm_image_r1": 0.25, "held_out/itm_image_r5": 0.6, "held_out/itm_image_r10": 0.75,
        "held_out/captions": ["'a star' where a person wrote 'a red star'"],
    }  # fmt: skip
    assert "held out: ITM recall at 1/5/10 of texts 50.0/70.0/80.0 %" in caplog.text
    assert "  'a star' where a person wrote 'a red star'" in caplog.text


def test_what_looks_wrong_is_said_in_log_and_journals(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("tensorboardX")
    with Watcher(tmp_path, replace(OPTIONS, tensorboard=True)) as watcher:
        watcher.step(metrics(0))
        watcher.step(metrics(1))
        watcher.warn("ITM is stuck")
    [warning] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.getMessage() == "pretrain step   2/100: ITM is stuck"
    row = rows_in(tmp_path)[-1]
    assert (row["step"], row["warning"]) == (1, ["ITM is stuck"])
    [path] = (tmp_path / "pretrain").glob("events.out.tfevents.*")
    assert b"ITM is stuck" in path.read_bytes()


def test_the_journal_says_why_a_training_could_not_go_on(tmp_path: Path):
    with pytest.raises(TrainingError), Watcher(tmp_path, OPTIONS) as watcher:
        watcher.step(metrics(0))
        raise TrainingError("step 1: lm_loss is nan")
    assert rows_in(tmp_path)[-1]["warning"] == ["step 1: lm_loss is nan"]


def test_the_event_file_has_the_journals_numbers(tmp_path: Path):
    pytest.importorskip("tensorboardX")
    with Watcher(tmp_path, replace(OPTIONS, tensorboard=True)) as watcher:
        watcher.step(metrics(0, temperature=0.07))
    [path] = (tmp_path / "pretrain").glob("events.out.tfevents.*")
    assert b"temperature" in path.read_bytes()
    assert rows_in(tmp_path)[0]["temperature"] == 0.07


def test_tensorboard_that_is_asked_for_and_missing_stops_the_training_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tensorboard, "RecordWriter", None)
    with pytest.raises(MissingDependencyError):
        Watcher(tmp_path, replace(OPTIONS, tensorboard=True))
    Watcher(tmp_path, OPTIONS).close()


def test_journals_that_outgrow_the_disk_cost_a_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("tensorboardX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with Watcher(tmp_path, replace(OPTIONS, tensorboard=True)) as watcher:
            for step in range(100):
                watcher.step(metrics(step))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2 and all("File too large" in line for line in warnings)
    assert caplog.text.count("pretrain step") == 26  # each fourth, and the last


def test_without_a_folder_there_is_only_the_log(caplog: pytest.LogCaptureFixture):
    with Watcher(None, OPTIONS) as watcher:
        watcher.step(metrics(0))
        watcher.held_out(FOUND)
    assert "pretrain step   1/100" in caplog.text


def test_a_folder_that_cannot_be_made_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "pretrain").write_text("a file")
    with Watcher(tmp_path, OPTIONS) as watcher:
        for step in range(9):
            watcher.step(metrics(step))
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("a journal of the training is given up, the training goes on: ")
    assert caplog.text.count("pretrain step") == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_costs_one_warning_a_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "metrics.jsonl").symlink_to("/dev/full")
    with Watcher(tmp_path, OPTIONS) as watcher:
        for step in range(9):
            watcher.step(metrics(step))
        watcher.held_out(FOUND)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "No space left on device" in warnings[0]
