"""What the command line shows: progress, funnels, status, passports.

On a terminal there are progress bars and tables; in a log, one line per shard and per stage. What
comes from the web is printed without its control characters: a terminal would obey them.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from capfilt.pool import AnyJob, Pool, ShardReport
from capfilt.records import Download, Group, Verdict
from capfilt.stages.explain import Passport
from capfilt.stages.report_rounds import round_rows
from capfilt.stages.round_report import RoundReport
from capfilt.stages.shards import Funnel
from capfilt.stages.status import StageStatus

if TYPE_CHECKING:  # the demo imports every stage, and those the models
    from capfilt.demo import DemoFigures

log = logging.getLogger("capfilt")

CONTROLS = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that are not for the eye: controls, half characters, line separators."""

MAX_TEXT_CHARS = 300
"""Of a text in a passport."""

WRAPPED_WIDTH = 24
"""Least width of a column whose cells wrap: the longest reason and its count fit."""

MAX_WIDTH = 1_000
"""Of a line, in characters."""

BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They change the order in which what follows is shown."""


class ReportingPool:
    """A pool that shows what passes through it, and is otherwise the pool it wraps.

    Args:
        pool: does the work; closed with this one.
        console: where to draw; bars appear if it is a terminal, log lines otherwise.
    """

    def __init__(self, pool: Pool, console: Console) -> None:
        self._pool = pool
        self._console = console

    def __enter__(self) -> ReportingPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        """As `Pool.run`, with progress shown."""
        bars_shown = self._console.is_terminal
        with Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rows]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not bars_shown,
        ) as progress:
            bars = {
                job.stage: progress.add_task(job.stage, total=len(shards), rows="") for job in chain
            }
            kept = dict.fromkeys(bars, 0)
            for report in self._pool.run(chain, shards):
                kept[report.stage] += report.kept
                progress.update(bars[report.stage], advance=1, rows=f"{kept[report.stage]:,} kept")
                _log_report(report, level=logging.DEBUG if bars_shown else logging.INFO)
                yield report

    def close(self) -> None:
        """Close the wrapped pool."""
        self._pool.close()


def _log_report(report: ShardReport, *, level: int) -> None:
    if report.error is not None:
        log.error("%s shard %d: %s", report.stage, report.shard, report.error)
    elif not report.already:
        log.log(
            level,
            "%s shard %d: %d rows, %d kept, %s, %.1f s",
            report.stage,
            report.shard,
            report.rows_in,
            report.kept,
            reasons_text(report.dropped) or "none dropped",
            report.seconds,
        )


def reasons_text(dropped: Mapping[str, int]) -> str:
    """Reasons and counts in one line, most frequent first."""
    ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered)


def counted(number: int, unit: str) -> str:
    """A number of things: `1 image`, `2,000 images`."""
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"


def printable(text: str) -> str:
    """Text whose control characters are spelled out, as Python spells them."""
    return "".join(
        ascii(c)[1:-1] if c in BIDI_CONTROLS or unicodedata.category(c) in CONTROLS else c
        for c in text
    )


def show_funnel(funnel: Funnel) -> None:
    """One line on what a stage did."""
    line = Text(f"{funnel.stage:<9}", style="bold")
    line.append(f" {counted(funnel.rows_in, funnel.unit)}, {funnel.kept:,} kept", style="not bold")
    if funnel.dropped:
        line.append(f"; {reasons_text(funnel.dropped)}", style="not bold")
    Console().print(line, soft_wrap=True)
    if funnel.stage == "publish" and funnel.kept == 0:
        hint = "          nothing is published; `capfilt status` shows at which stage the rows went"
        Console().print(hint, style="bold yellow", soft_wrap=True)


def show_warning(line: str) -> None:
    """One line that the user should not pass over; it may quote what is not ours."""
    Console().print(Text(f"warning: {printable(line)}", style="bold yellow"), soft_wrap=True)


def show_status(statuses: Sequence[StageStatus]) -> None:
    """Where a run stands, as a table."""
    table = new_table("round", "stage", "shards>", "in>", "kept>", "dropped~")
    for status in statuses:
        funnel = status.funnel
        table.add_row(
            str(funnel.round),
            funnel.stage,
            f"{funnel.shards:,}/{status.shards_total:,}",
            counted(funnel.rows_in, funnel.unit) if funnel.shards else "",
            f"{funnel.kept:,}" if funnel.shards else "",
            reasons_text(funnel.dropped),
        )
    show_table(table)


def show_rounds(reports: Sequence[RoundReport]) -> None:
    """What was measured of each round, side by side."""
    table = new_table("", *(f"round {report.round}>" for report in reports), title="The rounds")
    for name, cells in round_rows(reports):
        table.add_row(name, *(Text(printable(cell)) for cell in cells))
    show_table(table)


def new_table(*columns: str, title: str | None = None) -> Table:
    """A table whose columns marked `>` are right-aligned; those marked `~` wrap, all others do not.

    Show it with `show_table`.
    """
    table = Table(
        title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1)
    )
    for column in columns:
        table.add_column(
            column.rstrip(">~"),
            justify="right" if column.endswith(">") else "left",
            no_wrap=not column.endswith("~"),
            min_width=WRAPPED_WIDTH if column.endswith("~") else None,
            overflow="fold",
        )
    return table


def show_table(table: Table) -> None:
    """Print a table whole: on a screen that is too narrow, its lines are too long."""
    console = Console()
    measured = table.__rich_measure__(console, console.options.update(width=MAX_WIDTH))
    wraps = any(not column.no_wrap for column in table.columns)
    columns = measured.minimum if wraps else measured.maximum
    borders = len(table.columns) + 1
    Console(width=max(console.width, columns + borders)).print(table)


def status_json(statuses: Sequence[StageStatus]) -> list[dict[str, object]]:
    """The same as plain data."""
    return [
        {
            **asdict(status.funnel),
            "remainder": status.funnel.remainder,
            "shards_total": status.shards_total,
            "done": status.done,
            "folder": status.folder,
            "speed": None if status.speed is None else asdict(status.speed),
        }
        for status in statuses
    ]


def show_passport(found: Passport) -> None:
    """A sample's passport: what each stage recorded of it."""
    _show_card(found.sample.key, _sample_lines(found))
    table = new_table("text~", "source", "log p>", "ITM>", "ITC>", "verdict")
    verdicts = {(v.text_source, v.text_index): v for v in found.verdicts}
    for score in found.scores:
        verdict = verdicts.get((score.text_source, score.text_index))
        table.add_row(
            Text("none" if score.text is None else _quoted(score.text)),
            score.text_source,
            _number(score.logprob, 2),
            _number(score.itm_prob, 4),
            _number(score.itc_cos, 3),
            _verdict_text(verdict, score.reason),
        )
    if found.scores:
        show_table(table)


def show_lost(row: Download) -> None:
    """A URL that gave no image."""
    lines = [("source", row.source_key), ("not fetched", f"{row.reason}: {row.detail or '-'}")]
    if row.web_text is not None:
        lines.append(("web text", _quoted(row.web_text)))
    _show_card(row.url, lines)


def _show_card(title: str, lines: Iterable[tuple[str, str]]) -> None:
    console = Console()
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    for name, value in lines:
        line = Text("  ")
        line.append(f"{name:<12}", style="dim").append(f" {printable(value)}")
        console.print(line, soft_wrap=True)


def _quoted(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARS:
        return f'"{printable(text)}"'
    return (
        f'"{printable(text[:MAX_TEXT_CHARS])}" and {len(text) - MAX_TEXT_CHARS:,} more characters'
    )


def _verdict_text(verdict: Verdict | None, reason: str | None) -> str:
    if verdict is None:
        return reason or "-"
    return "kept" if verdict.kept else str(verdict.reason)


def _sample_lines(found: Passport) -> Iterator[tuple[str, str]]:
    sample = found.sample
    yield "source", f"shard {sample.shard}, {sample.source_key}"
    if sample.url is not None:
        yield "url", sample.url
    if sample.reason is not None:
        yield "not usable", f"{sample.reason}: {sample.detail or '-'}"
    else:
        size = f"{sample.width_px} x {sample.height_px} px, {sample.num_bytes:,} bytes"
        yield "image", f"{sample.image_format}, {size}"
        yield "sha256", str(sample.image_sha256)
    for caption in found.captions:
        if caption.reason is not None:
            yield "no caption", f"{caption.reason}: {caption.detail or '-'}"
    if found.group is not None:
        yield "duplicates", _group_text(found.group, len(found.represents))
    if found.published_in is not None:
        yield "published", found.published_in
    yield "plans", ", ".join(f"{stage} {digest[:12]}" for stage, digest in found.plans.items())


def _group_text(group: Group, num_represented: int) -> str:
    if group.kept:
        return (
            "none; it stays"
            if not num_represented
            else (f"it stays, and stands for {counted(num_represented, 'other image')}")
        )
    if group.representative is None:
        return f"not looked for: {group.reason}"
    return f"{group.reason} ({_number(group.similarity, 3)}) of {group.representative}, which stays"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_demo(figures: DemoFigures, folder: Path) -> None:
    """What the demo measured, and what to try next."""
    funnel = new_table(
        "stage", "in>", "kept>", "dropped, by reason~", "unaccounted>", title="Where the rows went"
    )
    for row in figures.funnels:
        funnel.add_row(
            row.stage,
            counted(row.rows_in, row.unit),
            f"{row.kept:,}",
            reasons_text(row.dropped) or "-",
            str(row.remainder),
        )
    show_table(funnel)
    truth = new_table("what~", "figure>", "counts~", title="Against the truth")
    for what, figure, counts in _demo_lines(figures):
        truth.add_row(what, figure, counts)
    show_table(truth)
    # Without the environment's bin on the path, as after `make demo`, the bare name is not found.
    unknown = which("capfilt") is None and Path(sys.argv[0]).name == "capfilt"
    capfilt = sys.argv[0] if unknown else "capfilt"
    Console().print(
        f"Dataset  {figures.dataset}\nModels   {figures.models}\n\n"
        "Try next\n"
        f"  {capfilt} status {folder}/recipe.yaml\n"
        f"  {capfilt} explain {folder}/recipe.yaml 00000-000007\n"
        f"  {capfilt} select {folder}/recipe.yaml --set select.min_itm_prob=0.9\n"
        f"  {capfilt} report {folder}/recipe.yaml",
        highlight=False,
        soft_wrap=True,
    )


def _demo_lines(figures: DemoFigures) -> Iterator[tuple[str, str, str]]:
    web = figures.filter_on_web_texts
    yield (
        "filter precision, web texts",
        _share(web.precision),
        f"{web.num_right:,} of the {web.num_chosen:,} it kept are true",
    )
    yield (
        "filter recall, web texts",
        _share(web.recall),
        f"{web.num_right:,} of the {web.num_true:,} true ones were kept",
    )
    for what, found in (
        ("true texts on the raw web", figures.texts_on_the_web),
        ("true captions before the filter", figures.captions),
        ("true texts published", figures.texts_published),
    ):
        yield what, _share(found.share), f"{found.num_true:,} of {found.num_texts:,}"
    pairs = figures.duplicates
    yield (
        "planted duplicates, recall",
        _share(pairs.recall),
        f"{pairs.num_right:,} of {pairs.num_true:,} pairs found",
    )
    yield (
        "planted duplicates, precision",
        _share(pairs.precision),
        f"{pairs.num_right:,} of {pairs.num_chosen:,} pairs found were planted",
    )
    yield "pages lost or kept wrongly", str(figures.lost_wrongly), f"of {figures.pages:,}"
    yield "time", f"{figures.seconds:.0f} s", ""


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
