"""The table of speeds: whole on any screen, with units, and silent where nothing is known."""

from __future__ import annotations

import dataclasses

import pytest

from capfilt.meter import Memory
from capfilt.speed_text import MAX_WORKERS, duration, flops_text, show_speed
from capfilt.stages.shards import Funnel
from capfilt.stages.speed import Speed, StageSpeed
from capfilt.stages.status import StageStatus

SPEED = Speed(
    worker="host:17", num_images=12_345, busy_s=600.0, waiting_s=60.0, wall_s=620.0,
    busy_images_per_s=20.575, wall_images_per_s=19.91, achieved_flops_per_s=4e11,
    peak_flops_per_s=1e12, peak_labels=("CPU float32, threads: 2, measured",),
    memory=Memory(host_bytes=3 * 2**29),
)  # fmt: skip
FUNNEL = Funnel(
    stage="caption", round=0, unit="image", shards=1, rows_in=1, kept=1, dropped={}
)  # fmt: skip


def status(speed: StageSpeed | None) -> StageStatus:
    return StageStatus(funnel=FUNNEL, shards_total=1, folder="f", speed=speed)


def shown(capsys: pytest.CaptureFixture[str], *workers: Speed) -> list[str]:
    total = workers[0] if len(workers) == 1 else dataclasses.replace(SPEED, worker="all")
    show_speed([status(StageSpeed(total=total, workers=workers))])
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("columns", ["40", "200"])
def test_one_worker_is_one_line_with_units_on_any_screen(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    lines = shown(capsys, SPEED)
    assert "0 caption host:17 12,345 19.9 10:00 10.0% 40.0% 1.50 GiB" in lines
    assert "MFU of caption: of 1 TFLOP/s (CPU float32, threads: 2, measured)" in lines


def test_what_is_not_known_is_a_dash(capsys):
    unknown = dataclasses.replace(
        SPEED, wall_images_per_s=None, peak_flops_per_s=None, busy_s=0.0, memory=Memory()
    )
    lines = shown(capsys, unknown)
    assert "0 caption host:17 12,345 - 0 s - - -" in lines
    assert not [line for line in lines if line.startswith("MFU of")]


def test_memory_of_a_gpu_stands_beside_that_of_the_process(capsys):
    both = dataclasses.replace(SPEED, memory=Memory(host_bytes=2**31, gpu_bytes=2**33))
    assert [line for line in shown(capsys, both) if "2.00 GiB, 8.00 GiB GPU" in line]


def test_of_many_workers_the_last_seen_have_a_line(capsys):
    workers = [dataclasses.replace(SPEED, worker=f"host:{n}") for n in range(MAX_WORKERS + 2)]
    lines = shown(capsys, *workers)
    assert [line.split()[0] for line in lines if line.startswith("host:")] == [
        f"host:{n}" for n in range(MAX_WORKERS)
    ]
    assert "and 2 others" in lines


def test_a_run_that_was_not_measured_has_no_table(capsys):
    show_speed([status(None)])
    assert capsys.readouterr().out == ""


def test_times_and_rates_are_as_long_as_they_need_to_be():
    assert [duration(s) for s in (0.0, 0.649, 12.4, 185, 3723)] == [
        "0 s", "0.65 s", "12 s", "3:05", "1:02:03",
    ]  # fmt: skip
    assert [flops_text(f) for f in (989.5e12, 92.7e9, 4e6, 12.0)] == [
        "990 TFLOP/s", "92.7 GFLOP/s", "4 MFLOP/s", "12 FLOP/s",
    ]  # fmt: skip
