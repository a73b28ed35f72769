"""What a row of the GPU benchmark is, and how it is printed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Figures: TypeAlias = Mapping[str, str]
"""Name to figure, with its unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a row should reach; None is not asked."""

    ratio: float | None = None
    rate: float | None = None

    def __str__(self) -> str:
        parts = [] if self.ratio is None else [f"{self.ratio:g}x"]
        parts += [] if self.rate is None else [f"{self.rate:,.0f}/s"]
        return ", ".join(parts) or "-"


NO_TARGET = Target()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Ours beside transformers, each at the batch size that suits it best."""

    unit: str  # what the rates count: images, captions
    ours_per_s: float  # median over the turns
    theirs_per_s: float
    ours_batch: int
    theirs_batch: int
    ratios: Sequence[float]  # ours over theirs, turn by turn
    target: Target = NO_TARGET
    ours_tflops: float | None = None  # of what our way must compute, in 10**12 per second
    peak_share: float | None = None  # of the dense GEMM peak measured in the same dtype
    answers: str = ""
    ours_by_batch: Mapping[int, float] = field(default_factory=dict)  # units per second
    theirs_by_batch: Mapping[int, float] = field(default_factory=dict)
    figures: Figures = field(default_factory=dict)

    @property
    def ratio_text(self) -> str:
        """Median and range."""
        median = statistics.median(self.ratios)
        return f"{median:.2f} ({min(self.ratios):.2f}-{max(self.ratios):.2f})"


Outcome: TypeAlias = Comparison | Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row to be measured."""

    group: str
    name: str
    run: Callable[[], Outcome]
    needs_gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row that was measured, or why it was not."""

    group: str
    name: str
    outcome: Outcome | None = None
    not_measured: str | None = None  # why
    error: str | None = None
    seconds: float = 0.0  # that the row took

    @property
    def lines(self) -> Iterator[str]:
        """What is printed as the row comes."""
        head = f"[{self.group}] {self.name}"
        if self.outcome is None:
            yield f"{head}: {_missing(self)}"
        elif isinstance(self.outcome, Comparison):
            yield f"{head}: {_one_line(self.outcome)}   ({self.seconds:.0f} s)"
            yield from (f"    {name}: {figure}" for name, figure in self.outcome.figures.items())
        else:
            yield f"{head}   ({self.seconds:.0f} s)"
            yield from (f"    {name}: {figure}" for name, figure in self.outcome.items())


def markdown(rows: Sequence[Row]) -> str:
    """All rows as two Markdown tables: comparisons, then figures."""
    return "\n".join([*_comparisons(rows), "", *_figures(rows)]) + "\n"


def _comparisons(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| what | transformers | ours | ratio: median (range) | TFLOP/s (of peak) "
        "| target | answers |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        if isinstance(row.outcome, Comparison):
            yield f"| {row.name} | {' | '.join(_cells(row.outcome))} |"


def _cells(found: Comparison) -> list[str]:
    return [
        f"{found.theirs_per_s:,.0f} {found.unit}/s at {found.theirs_batch}",
        f"{found.ours_per_s:,.0f} {found.unit}/s at {found.ours_batch}",
        found.ratio_text,
        _work_text(found),
        str(found.target),
        found.answers or "-",
    ]


def _figures(rows: Sequence[Row]) -> Iterator[str]:
    yield "| what | measured |"
    yield "|---|---|"
    for row in rows:
        if row.outcome is None:
            yield f"| {row.name} | {_missing(row)} |"
            continue
        compared = isinstance(row.outcome, Comparison)
        figures = row.outcome.figures if isinstance(row.outcome, Comparison) else row.outcome
        text = "; ".join(f"{name}: {figure}" for name, figure in figures.items())
        if text or not compared:
            yield f"| {row.name} | {text} |"


def _missing(row: Row) -> str:
    if row.error is not None:
        return f"failed: {row.error}"
    return f"not measured: {row.not_measured}"


def _one_line(found: Comparison) -> str:
    theirs, ours, ratio, work, target, answers = _cells(found)
    return (
        f"ours {ours}, transformers {theirs}, ratio {ratio}, {work} TFLOP/s, target {target}; "
        f"{answers}"
    )


def _work_text(found: Comparison) -> str:
    if found.ours_tflops is None:
        return "-"
    share = "" if found.peak_share is None else f" ({found.peak_share:.0%})"
    return f"{found.ours_tflops:,.3g}{share}"
