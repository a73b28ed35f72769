"""The round report: what a round's texts and models are worth, in figures two rounds can share.

    <run>/round-000/round.json    written when all of a round is published, again when it is trained

It is made from committed tables alone and holds no times, so the same run gives the same bytes. It
is of one plan: once that is published its figures stay, and are read rather than counted again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from capfilt.config import Recipe
from capfilt.io.parquet import from_bytes
from capfilt.io.storage import MissingError, Store
from capfilt.records import Reason, Score, TrainStep, Verdict
from capfilt.stages.cascade import audit
from capfilt.stages.diversity import DIGITS, Diversity, Share, diversity_of, ratio, share_of
from capfilt.stages.tables import Tables

FILE = "round.json"
MAX_CAPTIONS = 1_000_000
"""Captions whose words are counted: about 1 GB at work. Of more, those of the lowest keys are
taken, which are as good as random and the same images in every round."""

SCORE_COLUMNS = ["key", "text_source", "text", "itm_prob", "itc_cos"]
VERDICT_COLUMNS = ["key", "kept", "reason"]
KEY_DIGITS = 16  # of a key's hex digits, those that are compared

REJECTED = (Reason.ITM_BELOW_MIN, Reason.ITC_CLEARLY_LOW, Reason.ITC_BELOW_MIN)
"""The filter says that a text does not fit its image."""
PASSED = (Reason.NOT_BEST, Reason.WEB_PREFERRED)
"""The filter lets a text pass, and the policy does not need it."""

Counts = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFigures:
    """The texts of one source."""

    kept: Share  # of all of them, those without a score too
    mean_itm_prob: float | None  # of the texts that have one: a cascade asks only of some
    mean_itc_cos: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFigures:
    """Where one phase of training ended."""

    phase: str
    values: Mapping[str, float]  # the last of every number the phase logged, by column of `models`
    warnings: tuple[str, ...] = ()  # what looked wrong on the way


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What is published of a round."""

    round: int
    plan: str  # digest of `publish`, and so of all that was measured but training
    noise_ratio: Share  # captions the filter rejects, of those it judges
    web: SourceFigures
    synthetic: SourceFigures
    images_kept: int  # with a kept text; near-duplicates are not merged yet
    texts_per_kept_image: float | None
    images_published: int
    captions: Diversity  # of the captions as written, before the filter
    audit_disagreement: Share | None  # of a cascade: audited texts that ITM judges otherwise
    training: tuple[PhaseFigures, ...]  # empty until it is done
    v: Literal[1] = 1  # of this format


REPORT = TypeAdapter(RoundReport)


def record_round(recipe: Recipe, tables: Tables) -> RoundReport:
    """Measure a round that is published, and write `round.json`."""
    report = round_report(recipe, tables)
    assert report is not None, "a published round has verdicts"
    _folder(tables).put(FILE, REPORT.dump_json(report, indent=2) + b"\n")
    return report


def round_report(recipe: Recipe, tables: Tables) -> RoundReport | None:
    """Measure a round as far as it has come; None if nothing is judged yet. Nothing is written."""
    found = _recorded(tables)
    if found is None and tables.committed("select"):
        found = _measured(recipe, tables)
    return found and replace(found, training=tuple(_phases(tables)))


def _folder(tables: Tables) -> Store:
    return tables.store.child(f"round-{tables.round:03d}")


def _recorded(tables: Tables) -> RoundReport | None:
    """What was written before, if it is of the same plan."""
    try:
        report = REPORT.validate_json(_folder(tables).read(FILE))
    except (MissingError, ValidationError):
        return None
    return report if report.plan == tables.plans["publish"].digest else None


def _measured(recipe: Recipe, tables: Tables) -> RoundReport:
    num_captions = sum(c.file().rows for c in tables.committed("caption").values())
    seen = texts_seen(_judged_shards(tables), max_key=max_key_of(num_captions))
    published = tables.committed("publish").values()
    return RoundReport(
        round=tables.round,
        plan=tables.plans["publish"].digest,
        noise_ratio=share_of(seen.rejected, seen.judged),
        web=seen.web,
        synthetic=seen.synthetic,
        images_kept=seen.images_kept,
        texts_per_kept_image=ratio(
            seen.web.kept.count + seen.synthetic.kept.count, seen.images_kept
        ),
        images_published=sum(commit.kept for commit in published),
        captions=diversity_of(seen.captions),
        audit_disagreement=_disagreement(recipe, tables),
        training=(),
    )


def _disagreement(recipe: Recipe, tables: Tables) -> Share | None:
    if recipe.score.cascade is None:
        return None
    found = audit(tables, recipe.select)
    return share_of(found.disagreed, found.audited)


def _judged_shards(tables: Tables) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Scores and verdicts of each shard that has both, row by row of the same texts."""
    scores, verdicts = tables.of("score"), tables.of("select")
    for shard in sorted(tables.committed("select")):
        yield (
            from_bytes(scores.read(shard), Score, SCORE_COLUMNS),
            from_bytes(verdicts.read(shard), Verdict, VERDICT_COLUMNS),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsSeen:
    """What was counted of a round's texts."""

    web: SourceFigures
    synthetic: SourceFigures
    judged: int  # captions
    rejected: int
    images_kept: int
    captions: pa.Array


def max_key_of(num_captions: int) -> str:
    """The key below which captions are taken so that about `MAX_CAPTIONS` are.

    Keys are hashes (`lineage.sample_key`), so their first digits are spread evenly.
    """
    if num_captions <= MAX_CAPTIONS:
        return "g"  # above every hex digit
    return f"{16**KEY_DIGITS * MAX_CAPTIONS // num_captions:0{KEY_DIGITS}x}"


def texts_seen(shards: Iterable[tuple[pa.Table, pa.Table]], *, max_key: str) -> TextsSeen:
    """Go through the scores and verdicts of a round; nothing held grows with it but captions.

    Args:
        shards: `SCORE_COLUMNS` and `VERDICT_COLUMNS` of each; an image's texts are in one shard.
        max_key: captions of keys below it are taken.
    """
    counts, sums = np.zeros((4, 2), np.int64), np.zeros((4, 2))
    images_kept, captions = 0, [pa.array([], pa.large_string())]
    for scores, verdicts in shards:
        assert verdicts["key"].equals(scores["key"]), "verdicts are of other texts"
        is_caption = pc.equal(scores["text_source"], "synthetic")
        source = is_caption.to_numpy().astype(np.int64)  # 0 web, 1 synthetic
        counts += _counts(verdicts, source)
        sums += np.stack([*_sum(scores["itm_prob"], source), *_sum(scores["itc_cos"], source)])
        images_kept += pc.count_distinct(verdicts["key"].filter(verdicts["kept"])).as_py()
        taken = pc.and_(is_caption, pc.less(scores["key"], max_key))
        texts = scores["text"].filter(taken).drop_null().cast(pa.large_string())
        captions.append(texts.combine_chunks())
    return TextsSeen(
        web=_source_figures(counts[:, 0], sums[:, 0]),
        synthetic=_source_figures(counts[:, 1], sums[:, 1]),
        judged=int(counts[2, 1]),
        rejected=int(counts[3, 1]),
        images_kept=images_kept,
        captions=pa.concat_arrays(captions),
    )


def _counts(verdicts: pa.Table, source: Counts) -> Counts:
    """(4 counts, 2 sources): texts, kept ones, those the filter judged, those it rejected."""
    kept = verdicts["kept"].to_numpy()
    rejected = pc.is_in(verdicts["reason"], pa.array(REJECTED)).to_numpy()
    passed = pc.is_in(verdicts["reason"], pa.array(PASSED)).to_numpy()
    masks = (np.ones_like(kept), kept, kept | rejected | passed, rejected)
    return np.stack([np.bincount(source[mask], minlength=2) for mask in masks])


def _sum(column: pa.ChunkedArray, source: Counts) -> tuple[Sums, Sums]:
    """Sum and number of the values that are there, by source."""
    values = pc.fill_null(column, math.nan).to_numpy().astype(np.float64)
    there = np.isfinite(values)
    number: Sums = np.bincount(source[there], minlength=2).astype(np.float64)
    total: Sums = np.bincount(source[there], weights=values[there], minlength=2).astype(np.float64)
    return total, number


def _source_figures(counts: Counts, sums: Sums) -> SourceFigures:
    texts, kept = int(counts[0]), int(counts[1])
    itm_sum, itm_number, itc_sum, itc_number = map(float, sums)
    return SourceFigures(
        kept=share_of(kept, texts),
        mean_itm_prob=ratio(itm_sum, itm_number),
        mean_itc_cos=ratio(itc_sum, itc_number),
    )


def _phases(tables: Tables) -> Iterator[PhaseFigures]:
    if tables.has("train") and tables.committed("train"):
        yield from phase_figures(from_bytes(tables.of("train").read(0), TrainStep))


def phase_figures(steps: pa.Table) -> Iterator[PhaseFigures]:
    """The last values of every phase of training.

    Whatever number a phase logs is taken, so that figures on held-out data are there once training
    logs them.

    Args:
        steps: table `models`, in the order it was logged.
    """
    numbers = [f.name for f in steps.schema if f.type in (pa.float32(), pa.float64(), pa.int32())]
    for phase in pc.unique(steps["phase"]).to_pylist():
        rows = steps.filter(pc.equal(steps["phase"], phase))
        last = {name: rows[name].drop_null()[-1:].to_pylist() for name in numbers}
        values = {
            name: round(float(found[0]), DIGITS)
            for name, found in last.items()
            if found and math.isfinite(found[0])
        }
        yield PhaseFigures(phase=phase, values=values, warnings=tuple(_warnings(rows)))


def _warnings(rows: pa.Table) -> Iterator[str]:
    warned = rows.filter(pc.is_valid(rows["warning"]))
    for step, line in zip(warned["step"].to_pylist(), warned["warning"].to_pylist(), strict=True):
        yield f"step {step + 1:,}: {line}"
