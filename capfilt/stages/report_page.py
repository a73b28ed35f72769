"""The report as a page: one file, no script, nothing fetched, the same bytes for the same tables.

Sections stand in the order of questions: how much is left, why is the rest gone, is the filter
right, what was merged, how did training go, and with which settings all that was done.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from capfilt import __version__
from capfilt.lineage import Plan
from capfilt.stages.report_html import Picture, said
from capfilt.stages.report_rows import DuplicateGroup
from capfilt.stages.report_scores import SOURCES
from capfilt.stages.report_sections import (
    SOURCE_NAMES,
    Dropped,
    Gallery,
    ReportedRound,
    drop_list,
    funnel,
    judged_and_kept,
    model_table,
    percent,
    plan_details,
    rounds_table,
    score_charts,
    training,
)
from capfilt.stages.status import StageStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything on the page."""

    name: str  # of the data set
    rounds: tuple[ReportedRound, ...]
    shown: ReportedRound  # whose images are shown: the last one with scores
    pictures: Mapping[str, Picture]  # by key
    groups: tuple[DuplicateGroup, ...]
    dropped: tuple[Dropped, ...]
    models: tuple[tuple[str, str, str], ...]  # role, name, digest
    plans: tuple[Plan, ...]


def render(report: Report, *, style: str) -> str:
    """The whole page.

    Args:
        report: what is on it.
        style: the style sheet; ours.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = [section for section in _sections(report) if section.body]
    links = "".join(f'<a href="#{s.name}">{s.title}</a>' for s in sections)
    body = "".join(
        f'<section id="{s.name}"><h2>{s.title}</h2><p class="soft">{s.lead}</p>{s.body}</section>\n'
        for s in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{_title(report.name)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{_header(report)}<nav>{links}</nav>\n{body}{_footer()}</body>\n</html>\n"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    name: str
    title: str
    lead: str
    body: str  # nothing to show, no section


def _audit_words(shown: ReportedRound) -> str:
    return "" if shown.audit is None else f" Texts without ITM are not in the chart: {shown.audit}."


def _sections(report: Report) -> Iterator[_Section]:
    texts, gallery = (
        report.shown.texts,
        Gallery(pictures=report.pictures, yardstick=report.shown.yardstick),
    )
    yield _Section(
        name="funnel",
        title="Where the rows went",
        lead="Bars are to scale: images with images, texts with texts.",
        body="".join(map(funnel, report.rounds)),
    )
    yield _Section(
        name="rounds",
        title="Round by round",
        lead="Of the captions as they were written: how many the filter rejects (the paper saw 25% "
        "by nucleus sampling, 8% where captioner and filter share their weights), and how varied "
        "they are. A captioner that collapses repeats itself and loses words.",
        body=rounds_table([r.report for r in report.rounds if r.report is not None]),
    )
    yield _Section(
        name="scores",
        title="What the filter thinks",
        lead=f"Each text's {report.shown.yardstick.words}. Pale bars were dropped; heights are "
        "square roots, so that the few doubtful texts are seen." + _audit_words(report.shown),
        body=score_charts(report.shown),
    )
    yield _Section(
        name="sample",
        title="A look at the images",
        lead="Picked by key, which is as good as at random, among those that have a text left.",
        body=gallery.images(texts.sample),
    )
    yield _Section(
        name="replaced",
        title="Where a caption took the web text's place",
        lead="The web text was dropped and the captioner's own was kept: CapFilt at work. The "
        "largest gains come first.",
        body=gallery.images(texts.replaced),
    )
    yield _Section(
        name="borderline",
        title="On the borderline",
        lead="The texts nearest to the threshold, the tick on each bar. Good ones below it ask for "
        "a lower threshold, bad ones above it for a higher one.",
        body=gallery.borderline(texts),
    )
    yield _Section(
        name="lost",
        title="Rejected, with the highest scores",
        lead="Images that are out because none of their texts was kept, the closest calls first.",
        body=gallery.images(texts.lost),
    )
    yield _Section(
        name="duplicates",
        title="The largest groups of near-duplicates",
        lead="Framed in green: the image that stays and takes over the others' web texts. Of the "
        "others, the least alike come first, since a wrong merge shows there.",
        body="".join(map(gallery.group, report.groups)),
    )
    yield _Section(
        name="dropped",
        title="Why rows were dropped",
        lead="Every reason, with a few of the rows it was given for; of texts that have a score, "
        "the highest-scored ones.",
        body=drop_list(report.dropped),
    )
    yield _Section(
        name="training",
        title="Training",
        lead="Losses of the models trained on what was kept. Lower is better.",
        body="".join(training(r, alone=len(report.rounds) == 1) for r in report.rounds),
    )
    yield _Section(
        name="plans",
        title="Made with",
        lead="A plan is everything that can change a byte of a table. The same plan, inputs and "
        "models give the same table, and this same page.",
        body=model_table(report.models) + "".join(map(plan_details, report.plans)),
    )


def _header(report: Report) -> str:
    first, last = report.rounds[0], report.shown
    images = _stage_of(first, "download") or _stage_of(first, "index")
    published = _stage_of(last, "publish")
    groups = _stage_of(last, "dedup")
    tiles = []
    if images is not None:
        unit = "URLs" if images.funnel.stage == "download" else "samples"
        tiles.append((f"{unit} looked at", f"{images.funnel.rows_in:,}"))
    for source in SOURCES:
        total, kept = judged_and_kept(last, source)
        if total:
            tiles.append((f"{SOURCE_NAMES[source].lower()} kept", percent(kept, total)))
    if groups is not None:
        merged = sum(n for reason, n in groups.funnel.dropped.items() if "duplicate" in reason)
        tiles.append(("near-duplicates merged", f"{merged:,}"))
    if published is not None:
        tiles.append(("images published", f"{published.funnel.kept:,}"))
    shown = "".join(f'<div class="tile"><dt>{n}</dt><dd>{v}</dd></div>' for n, v in tiles)
    return (
        f'<header><p class="overline">capfilt report</p><h1>{said(report.name)}</h1>'
        f'<p class="lead">{_lead(report)}</p><dl class="tiles">{shown}</dl></header>'
    )


def _lead(report: Report) -> str:
    stages = [stage for round_ in report.rounds for stage in round_.stages]
    done = sum(stage.done for stage in stages)
    rounds = "One round" if len(report.rounds) == 1 else f"{len(report.rounds)} rounds"
    if done == len(stages):
        return f"{rounds}, all stages done."
    return f"{rounds}, {done} of {len(stages)} stages done so far."


def _stage_of(round_: ReportedRound, name: str) -> StageStatus | None:
    """The stage's status, if it has begun."""
    return next((s for s in round_.stages if s.funnel.stage == name and s.funnel.shards), None)


def _footer() -> str:
    return (
        f"<footer>Made by capfilt {__version__}. "
        "<code>capfilt explain RECIPE KEY</code> tells everything about one image; the grey "
        "digits on its card are enough of the key.</footer>"
    )


def _title(name: str) -> str:
    return escape("capfilt report: " + "".join(char for char in name if char.isprintable()))
