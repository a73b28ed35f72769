"""The sections of the report's page, each made of the few things it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capfilt.lineage import Plan, PlanValue
from capfilt.records import TextSource, TrainStep
from capfilt.stages.cascade import Audit
from capfilt.stages.report_charts import (
    LOSSES,
    drop_shade,
    funnel_bar,
    histogram,
    last_losses,
    loss_curves,
)
from capfilt.stages.report_html import (
    REASON_WORDS,
    Picture,
    image_card,
    plain,
    said,
    text_card,
    thumbnail,
)
from capfilt.stages.report_rounds import round_rows
from capfilt.stages.report_rows import DuplicateGroup, Example
from capfilt.stages.report_scores import (
    DROPPED,
    KEPT,
    SOURCES,
    UNJUDGED,
    Pick,
    TextView,
    Yardstick,
)
from capfilt.stages.round_report import RoundReport
from capfilt.stages.status import StageStatus

SOURCE_NAMES: Mapping[TextSource, str] = {"web": "Web texts", "synthetic": "Captions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRound:
    """What is shown of every round."""

    number: int
    stages: tuple[StageStatus, ...]
    yardstick: Yardstick  # what its texts are shown by
    texts: TextView
    steps: tuple[TrainStep, ...]
    audit: Audit | None = None  # of the filter, if it is a cascade
    report: RoundReport | None = None  # once texts are judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Rows a stage dropped for one reason, with examples."""

    stage: str
    reason: str
    count: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The pictures of the page, and what texts are shown by."""

    pictures: Mapping[str, Picture]  # by key
    yardstick: Yardstick

    def images(self, picks: Sequence[Pick]) -> str:
        """Cards of images with all their texts."""
        cards = "".join(
            image_card(self.pictures[pick.key], yardstick=self.yardstick) for pick in picks
        )
        return f'<div class="cards">{cards}</div>' if cards else ""

    def borderline(self, texts: TextView) -> str:
        """Cards of single texts, those below the threshold beside those above."""
        sides = (
            ("Just below the threshold", texts.below),
            ("Just above the threshold", texts.above),
        )
        shown = "".join(
            f'<div><h3>{title}</h3><div class="cards">{self._texts(picks)}</div></div>'
            for title, picks in sides
            if picks
        )
        return f'<div class="sides">{shown}</div>' if shown else ""

    def group(self, group: DuplicateGroup) -> str:
        """An image that stays, and some of those it stands for."""
        members = "".join(
            f"<figure>{thumbnail(self.pictures[member.key])}"
            f"<figcaption>{member.similarity:.3f}<br>"
            f"<code>{plain(member.reason.removeprefix('duplicate_'))}</code></figcaption></figure>"
            for member in group.members
        )
        hidden = group.num_members - len(group.members)
        more = f', <span class="soft">{hidden:,} not shown</span>' if hidden else ""
        return (
            f'<div class="panel group"><h3>{group.num_members + 1:,} images became one{more}</h3>'
            f'<figure class="stays">{thumbnail(self.pictures[group.representative])}'
            f"<figcaption>stays</figcaption></figure>{members}</div>"
        )

    def _texts(self, picks: Sequence[Pick]) -> str:
        return "".join(
            text_card(self.pictures[pick.key], pick.text, yardstick=self.yardstick)
            for pick in picks
            if pick.text is not None
        )


def funnel(round_: ReportedRound) -> str:
    """The stages of a round as bars, with counts and reasons."""
    full: dict[str, int] = {}
    for stage in round_.stages:
        scale = _scale(stage.funnel.unit)
        full[scale] = max(full.get(scale, 0), stage.funnel.rows_in)
    stages = "".join(_stage(s, full=full[_scale(s.funnel.unit)]) for s in round_.stages)
    return f"<h3>Round {round_.number}</h3>{panel(stages)}"


def _scale(unit: str) -> str:
    """Units whose bars may be compared: a URL, a sample and an image are all one image."""
    return "image" if unit in ("url", "sample") else unit


def _stage(status: StageStatus, *, full: int) -> str:
    funnel = status.funnel
    if not funnel.shards:
        return f'<div class="stage"><b>{funnel.stage}</b><div class="soft">not done yet</div></div>'
    dropped = _by_count(funnel.dropped)
    progress = "" if status.done else f" · {funnel.shards:,} of {status.shards_total:,} shards"
    reasons = "".join(
        f'<li><span class="swatch {drop_shade(i)}"></span><code>{plain(reason)}</code> '
        f"{count:,} · {percent(count, funnel.rows_in)}</li>"
        for i, (reason, count) in enumerate(dropped)
    )
    return (
        f'<div class="stage"><b>{funnel.stage}</b><div><div class="counts">'
        f"<span>{funnel.rows_in:,} {funnel.unit}s{progress}</span>"
        f"<span><b>{funnel.kept:,}</b> kept · {percent(funnel.kept, funnel.rows_in)}</span></div>"
        f"{funnel_bar(funnel.kept, dropped, full=full)}"
        f'<ul class="reasons">{reasons}</ul></div></div>'
    )


def score_charts(shown: ReportedRound) -> str:
    """Histograms of one round."""
    if not shown.texts.totals.any():
        return ""
    charts = ""
    for i, source in enumerate(SOURCES):
        counts = shown.texts.histogram[i]
        charts += (
            f'<figure class="panel"><figcaption><b>{SOURCE_NAMES[source]}</b> · '
            f"{_share_line(shown, source)}</figcaption>"
            f"{histogram(counts, yardstick=shown.yardstick, source=source)}</figure>"
        )
    return f'<div class="charts">{charts}</div>'


def _share_line(round_: ReportedRound, source: TextSource) -> str:
    total, kept = judged_and_kept(round_, source)
    waiting = int(round_.texts.totals[SOURCES.index(source), UNJUDGED])
    judged = f"{kept:,} of {total:,} kept ({percent(kept, total)})" if total else "none judged yet"
    return judged + (f", {waiting:,} wait for select" if waiting else "")


def rounds_table(reports: Sequence[RoundReport]) -> str:
    """What was measured of each round, side by side; nothing of no round."""
    if not reports:
        return ""
    head = "".join(f'<th class="number">Round {report.round}</th>' for report in reports)
    rows = "".join(
        f"<tr><td>{plain(name)}</td>"
        + "".join(f'<td class="number">{plain(cell)}</td>' for cell in cells)
        + "</tr>"
        for name, cells in round_rows(reports)
    )
    return f'<div class="panel scroll"><table><tr><th>Figure</th>{head}</tr>{rows}</table></div>'


def drop_list(dropped: Sequence[Dropped]) -> str:
    """Reasons and examples."""
    return panel("".join(map(_drop, dropped)))


def _drop(dropped: Dropped) -> str:
    rows = "".join(
        f"<li>{said(example.what)}"
        + (f' <span class="soft">· {said(example.detail)}</span>' if example.detail else "")
        + "</li>"
        for example in dropped.examples
    )
    meaning = REASON_WORDS.get(dropped.reason, "")
    return (
        f'<div class="drop"><h3><code>{plain(dropped.reason)}</code>'
        f'<span class="soft">{dropped.stage} · {dropped.count:,}</span></h3>'
        f"<p>{meaning}</p><ul>{rows}</ul></div>"
    )


def training(round_: ReportedRound, *, alone: bool) -> str:
    """The loss curves of a round, a chart per phase."""
    phases = list(dict.fromkeys(step.phase for step in round_.steps))
    charts = ""
    for phase in phases:
        steps = [step for step in round_.steps if step.phase == phase]
        last = "".join(_loss(name, value) for name, value in last_losses(steps).items())
        charts += (
            f'<figure class="panel"><figcaption><b>{plain(phase)}</b>{last}</figcaption>'
            f"{loss_curves(steps, phase=phase)}{_warnings(steps)}</figure>"
        )
    title = "" if alone else f"<h3>Round {round_.number}</h3>"
    return f'{title}<div class="charts">{charts}</div>' if charts else ""


def _warnings(steps: Sequence[TrainStep]) -> str:
    lines = [f"step {step.step + 1:,}: {step.warning}" for step in steps if step.warning]
    return "".join(f"<p><b>Warning</b>, {plain(line)}</p>" for line in lines)


def _loss(name: str, value: float) -> str:
    swatch = f'<span class="swatch {name}"></span>'
    return f'<span class="loss">{swatch}{LOSSES[name]} {value:.3f}</span>'


def model_table(models: Sequence[tuple[str, str, str]]) -> str:
    """What a round read from outside: role, name, digest."""
    rows = "".join(
        f"<tr><td>{plain(role)}</td><td>{plain(name)}</td><td><code>{plain(digest[:12])}</code></td>"
        "</tr>"
        for role, name, digest in models
    )
    head = "<tr><th>Read</th><th>Name</th><th>Digest</th></tr>"
    return f'<div class="panel scroll"><table>{head}{rows}</table></div>'


def plan_details(plan: Plan) -> str:
    """A plan, folded up."""
    options = "".join(
        f"<dt>{plain(name)}</dt><dd><code>{_json(value)}</code></dd>"
        for name, value in sorted(plan.options.items())
    )
    return (
        f"<details><summary><b>{plain(plan.stage)}</b> · round {plan.round} · "
        f'<code>{plan.digest[:12]}</code></summary><dl class="options">'
        f"<dt>plan</dt><dd><code>{plan.digest}</code></dd>{options}</dl></details>"
    )


def _json(value: PlanValue) -> str:
    return plain(json.dumps(value, ensure_ascii=False))


def panel(content: str) -> str:
    """A card around something; nothing around nothing."""
    return f'<div class="panel">{content}</div>' if content else ""


def judged_and_kept(round_: ReportedRound, source: TextSource) -> tuple[int, int]:
    """Judged texts of a source, and how many of them were kept."""
    totals = round_.texts.totals[SOURCES.index(source)]
    return int(totals[KEPT] + totals[DROPPED]), int(totals[KEPT])


def _by_count(dropped: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(dropped.items(), key=lambda item: (-item[1], item[0]))


def percent(part: int, whole: int) -> str:
    """A share in percent, as HTML; what is not all or nothing is never rounded to it."""
    if not whole:
        return "-"
    rounded = f"{100 * part / whole:.1f}"
    if rounded == "100.0":
        return "100%" if part == whole else "&gt;99.9%"
    if rounded == "0.0":
        return "0%" if part == 0 else "&lt;0.1%"
    return f"{rounded}%"
