"""The table of speeds below a run's status: per stage, and per worker where there are several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from capfilt.console import counted, new_table, show_table
from capfilt.meter import Memory
from capfilt.stages.speed import Speed, StageSpeed
from capfilt.stages.status import StageStatus

MAX_WORKERS = 8
"""Workers of a stage that have a line; those seen last."""

SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def show_speed(statuses: Sequence[StageStatus]) -> None:
    """How fast the measured stages are; nothing if none was measured."""
    measured = [(status, status.speed) for status in statuses if status.speed is not None]
    if not measured:
        return
    table = new_table(
        "round", "stage", "worker", "images>", "images/s>", "at work>", "waiting>", "MFU>",
        "memory>", title="Speed",
    )  # fmt: skip
    for status, speed in measured:
        _add_stage(table, status, speed)
    show_table(table)
    for line in _notes(measured):
        Console().print(line, style="dim", highlight=False, soft_wrap=True)


def _add_stage(table: Table, status: StageStatus, speed: StageSpeed) -> None:
    stage = (str(status.funnel.round), status.funnel.stage)
    table.add_row(*stage, speed.total.worker, *_cells(speed.total))
    if len(speed.workers) == 1:
        return
    for worker in speed.workers[:MAX_WORKERS]:
        table.add_row("", "", worker.worker, *_cells(worker))
    more = len(speed.workers) - MAX_WORKERS
    if more > 0:
        table.add_row("", "", f"and {counted(more, 'other')}")


def _cells(speed: Speed) -> Iterator[str]:
    yield f"{speed.num_images:,}"
    yield _rate(speed.wall_images_per_s)
    yield duration(speed.busy_s)
    yield _percent(speed.waiting_share)
    yield _percent(speed.mfu)
    yield _memory_text(speed.memory)


def _notes(measured: Sequence[tuple[StageStatus, StageSpeed]]) -> Iterator[str]:
    """What the columns mean, as far as their names do not say it."""
    yield "images/s: by the clock; at work: time of all workers, added; memory: the most one held"
    yield "waiting: the part of the time at work in which there were no pixels"
    for status, speed in measured:
        if speed.total.mfu is not None and speed.total.peak_flops_per_s is not None:
            peak = flops_text(speed.total.peak_flops_per_s)
            labels = "; ".join(speed.total.peak_labels)
            yield f"MFU of {status.funnel.stage}: of {peak} ({labels})"


def duration(seconds: float) -> str:
    """A time of work: `0.42 s`, `12 s`, `3:05`, `1:02:03`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    hours, rest = divmod(round(seconds), 3600)
    clock = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours}:{clock}" if hours else clock.removeprefix("0")


def flops_text(flops_per_s: float) -> str:
    """A rate of operations: `989 TFLOP/s`."""
    for size, letter in SI:
        if flops_per_s >= size:
            return f"{flops_per_s / size:.3g} {letter}FLOP/s"
    return f"{flops_per_s:.3g} FLOP/s"


def _rate(images_per_s: float | None) -> str:
    if images_per_s is None:
        return "-"
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.3g}"


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.2g}%"


def _memory_text(memory: Memory) -> str:
    parts = ((memory.host_bytes, "GiB"), (memory.gpu_bytes, "GiB GPU"))
    found = [f"{count / 2**30:.2f} {unit}" for count, unit in parts if count is not None]
    return ", ".join(found) or "-"
