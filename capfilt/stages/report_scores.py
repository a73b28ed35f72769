"""What the report shows of the scores: a histogram, and the few texts and images worth a look.

Scores are looked through shard by shard and column by column. Nothing held grows with the table:
counts, and at most `PICKS` rows of each kind, which `report_rows` then reads whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.config import SelectSection
from capfilt.io.parquet import from_bytes
from capfilt.records import Score, TextSource, Verdict
from capfilt.stages.tables import Tables

SCORE_COLUMNS = ["key", "text_source", "text_index", "itm_prob", "itc_cos", "reason"]
SOURCES: tuple[TextSource, ...] = ("web", "synthetic")
DROPPED, KEPT, UNJUDGED = 0, 1, 2  # outcomes of a text; the last where `select` has not been
BINS = 40
"""Of a histogram; with 40, the usual thresholds lie between two bins."""
PICKS = 8
PICKS_BY_REASON = 3

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """The number by which a report shows how well texts fit, and what must be reached of it."""

    column: Literal["itm_prob", "itc_cos"]
    name: str
    words: str
    low: float
    """Left end of the scale; what lies beyond an end is shown at it."""
    high: float
    thresholds: Mapping[TextSource, float | None]

    def share(self, value: float) -> float:
        """Where a value lies between the ends of the scale, in [0, 1]."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def yardstick_of(policy: SelectSection, *, has_itm_prob: bool) -> Yardstick:
    """The match probability; or the cosine, if there is none or the policy asks for that alone.

    Args:
        policy: of `select`.
        has_itm_prob: whether the filter gives match probabilities.
    """
    itm = (policy.min_itm_prob, policy.min_itm_prob_synthetic)
    itc = (policy.min_itc_cos, policy.min_itc_cos_synthetic)
    if has_itm_prob and (any(x is not None for x in itm) or all(x is None for x in itc)):
        return Yardstick(
            column="itm_prob",
            name="ITM",
            words="match probability (ITM)",
            low=0.0,
            high=1.0,
            thresholds=dict(zip(SOURCES, itm, strict=True)),
        )
    # Cosines of image and text lie in a narrow part of [-1, 1]: 0.1 to 0.4 by CLIP, about 0 to 0.2
    # by SigLIP, up to 0.6 by BLIP.
    return Yardstick(
        column="itc_cos",
        name="ITC",
        words="cosine of image and text (ITC)",
        low=-0.2,
        high=0.6,
        thresholds=dict(zip(SOURCES, itc, strict=True)),
    )


@dataclass(frozen=True, slots=True, order=True)
class Pick:
    """A row worth a look: the lower its rank, the more so; equal ranks go by key."""

    rank: float
    key: str
    shard: int
    text: tuple[str, int] | None = None  # source and index, if it is one text that is meant


@dataclass(frozen=True, slots=True, kw_only=True)
class TextView:
    """The scores of a round, as far as they are shown."""

    histogram: Counts  # (2 sources, 3 outcomes, BINS) texts along the yardstick
    totals: Counts  # (2 sources, 3 outcomes) texts, those without a score too
    above: tuple[Pick, ...] = ()  # texts at the threshold or just above
    below: tuple[Pick, ...] = ()
    replaced: tuple[Pick, ...] = ()  # images whose web text went and whose caption stayed
    lost: tuple[Pick, ...] = ()  # images without a kept text, the best-scored first
    sample: tuple[Pick, ...] = ()  # images with a kept text, in order of key: as good as random
    by_reason: tuple[tuple[str, tuple[Pick, ...]], ...] = ()  # texts `select` dropped, best first


def text_view(tables: Tables, yardstick: Yardstick) -> TextView:
    """Look through all scores of a round.

    Args:
        tables: of the round; shards that are not scored yet are left out.
        yardstick: what texts are shown by.
    """
    judged = tables.committed("select")
    views = (
        view_of_shard(
            shard,
            from_bytes(tables.of("score").read(shard), Score, SCORE_COLUMNS),
            from_bytes(tables.of("select").read(shard), Verdict) if shard in judged else None,
            yardstick,
        )
        for shard in sorted(tables.committed("score"))
    )
    return reduce(joined, views, empty_view())


def empty_view() -> TextView:
    """The view of no text."""
    return TextView(
        histogram=np.zeros((len(SOURCES), 3, BINS), np.int64),
        totals=np.zeros((len(SOURCES), 3), np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """The texts of a shard; rows of one image are adjacent, images in order of key."""

    shard: int
    scores: pa.Table
    verdicts: pa.Table | None  # of the same rows
    fit: Floats  # along the yardstick; NaN where there is no score
    source: Counts  # position in SOURCES
    outcome: Counts
    starts: Counts  # first row of each image

    def texts(self, rows: Counts, ranks: Floats, *, most: int = PICKS) -> tuple[Pick, ...]:
        """The lowest-ranked of some texts."""
        chosen, ranked = _lowest(rows, ranks, most)
        of = self.scores.select(["key", "text_source", "text_index"]).take(pa.array(chosen))
        return tuple(
            Pick(rank, row["key"], self.shard, (row["text_source"], row["text_index"]))
            for rank, row in zip(ranked, of.to_pylist(), strict=True)
        )

    def images(self, numbers: Counts, ranks: Floats, *, most: int = PICKS) -> tuple[Pick, ...]:
        """The lowest-ranked of some images, given by their number in `starts`."""
        chosen, ranked = _lowest(self.starts[numbers], ranks, most)
        keys = self.scores["key"].take(pa.array(chosen)).to_pylist()
        return tuple(Pick(rank, key, self.shard) for rank, key in zip(ranked, keys, strict=True))

    def best(self, chosen: Mask) -> Floats:
        """Of each image, the highest score among the chosen texts; NaN if none."""
        with np.errstate(invalid="ignore"):
            among = np.where(chosen, self.fit, np.float32("nan"))
            best: Floats = np.fmax.reduceat(among, self.starts)
        return best


def view_of_shard(
    shard: int,
    scores: pa.Table,
    verdicts: pa.Table | None,
    yardstick: Yardstick,
) -> TextView:
    """Look through the scores of one shard.

    Args:
        shard: its number.
        scores: `SCORE_COLUMNS` of the shard.
        verdicts: of the same texts in the same order; None if there are none yet.
        yardstick: what texts are shown by.
    """
    if len(scores) == 0:
        return empty_view()
    columns = _columns(shard, scores, verdicts, yardstick)
    above, below = _near_threshold(columns, yardstick)
    kept, dropped = columns.outcome == KEPT, columns.outcome == DROPPED
    web = columns.source == 0
    best_kept, best_dropped = columns.best(kept), columns.best(dropped)
    has_kept = np.logical_or.reduceat(columns.outcome != DROPPED, columns.starts)
    gain = columns.best(kept & ~web) - columns.best(dropped & web)
    lost = np.flatnonzero(~has_kept & np.isfinite(best_dropped))
    replaced = np.flatnonzero(np.isfinite(gain))
    staying = np.flatnonzero(has_kept)
    return TextView(
        histogram=_histogram(columns, yardstick),
        totals=_totals(columns),
        above=above,
        below=below,
        replaced=columns.images(replaced, -gain[replaced]),
        lost=columns.images(lost, -best_dropped[lost]),
        sample=columns.images(staying, np.zeros_like(best_kept[staying])),
        by_reason=tuple(_by_reason(columns)),
    )


def _columns(
    shard: int, scores: pa.Table, verdicts: pa.Table | None, yardstick: Yardstick
) -> _Columns:
    keys = scores["key"].combine_chunks()
    changes = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    if verdicts is None:
        outcome = np.full(len(scores), UNJUDGED, np.int64)
    else:
        assert verdicts["key"].equals(scores["key"]), f"shard {shard}: verdicts are of other rows"
        outcome = np.where(verdicts["kept"].to_numpy(), KEPT, DROPPED).astype(np.int64)
    is_web = pc.equal(scores["text_source"], "web").to_numpy()
    fit = pc.fill_null(scores[yardstick.column], float("nan")).to_numpy()
    return _Columns(
        shard=shard,
        scores=scores,
        verdicts=verdicts,
        fit=fit.astype(np.float32),
        source=np.where(is_web, 0, 1).astype(np.int64),
        outcome=outcome,
        starts=np.concatenate([[0], np.flatnonzero(changes) + 1]).astype(np.int64),
    )


def _histogram(columns: _Columns, yardstick: Yardstick) -> Counts:
    scored = np.isfinite(columns.fit)
    shares = (columns.fit[scored] - yardstick.low) / (yardstick.high - yardstick.low)
    bins = np.clip(np.floor(shares * BINS).astype(np.int64), 0, BINS - 1)
    cells = (columns.source[scored] * 3 + columns.outcome[scored]) * BINS + bins
    counts: Counts = np.bincount(cells, minlength=len(SOURCES) * 3 * BINS)
    return counts.reshape(len(SOURCES), 3, BINS)


def _totals(columns: _Columns) -> Counts:
    cells = columns.source * 3 + columns.outcome
    counts: Counts = np.bincount(cells, minlength=len(SOURCES) * 3)
    return counts.reshape(len(SOURCES), 3)


def _near_threshold(
    columns: _Columns, yardstick: Yardstick
) -> tuple[tuple[Pick, ...], tuple[Pick, ...]]:
    bounds = np.array([yardstick.thresholds[source] for source in SOURCES], np.float32)  # None: NaN
    distance = columns.fit - bounds[columns.source]
    above = np.flatnonzero(distance >= 0)
    below = np.flatnonzero(distance < 0)
    return columns.texts(above, distance[above]), columns.texts(below, -distance[below])


def _by_reason(columns: _Columns) -> Iterator[tuple[str, tuple[Pick, ...]]]:
    if columns.verdicts is None:
        return
    reasons = columns.verdicts["reason"].filter(columns.scores["reason"].is_null())
    for reason in sorted(pc.unique(reasons.drop_null()).to_pylist()):
        rows = np.flatnonzero(pc.fill_null(pc.equal(columns.verdicts["reason"], reason), False))
        ranks = np.nan_to_num(-columns.fit[rows])
        yield reason, columns.texts(rows, ranks, most=PICKS_BY_REASON)


def _lowest(rows: Counts, ranks: Floats, most: int) -> tuple[Counts, list[float]]:
    """The rows of lowest rank, in that order; of equal ones the first."""
    order = np.argsort(ranks, kind="stable")[:most]
    return rows[order], [float(rank) for rank in ranks[order]]


def joined(a: TextView, b: TextView) -> TextView:
    """Two parts of a round seen as one."""
    reasons = dict(a.by_reason)
    for reason, picks in b.by_reason:
        reasons[reason] = _best([*reasons.get(reason, ()), *picks], most=PICKS_BY_REASON)
    return TextView(
        histogram=a.histogram + b.histogram,
        totals=a.totals + b.totals,
        above=_best([*a.above, *b.above]),
        below=_best([*a.below, *b.below]),
        replaced=_best([*a.replaced, *b.replaced]),
        lost=_best([*a.lost, *b.lost]),
        sample=_best([*a.sample, *b.sample]),
        by_reason=tuple(sorted(reasons.items())),
    )


def _best(picks: Iterable[Pick], *, most: int = PICKS) -> tuple[Pick, ...]:
    return tuple(sorted(picks)[:most])
