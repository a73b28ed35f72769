"""Keep or drop each text, with a reason: a policy over the scores, decided in seconds.

Scores are made once and never filtered, so a policy can be tried as often as you like. The judge
works on columns and allocates nothing per row, for a table of scores may hold a billion of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.config import Recipe, SelectSection
from capfilt.errors import CapfiltError
from capfilt.io.commits import NewFile, Table
from capfilt.io.parquet import arrow_schema, from_bytes, to_bytes
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport, Worker
from capfilt.records import Reason, Score, Verdict
from capfilt.stages.shards import (
    Funnel,
    reason_counts,
    report_of,
    reports_of,
    run_jobs,
    undivided_resources_of,
)
from capfilt.stages.source_notes import Source
from capfilt.stages.sources import web_shards
from capfilt.stages.tables import Tables
from capfilt.workers.kinds import gives_match_probability

STAGE = "select"

log = logging.getLogger(__name__)

Policy: TypeAlias = Literal["both", "best", "web_first"]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
CodeArray: TypeAlias = npt.NDArray[np.int8]

# A row's answer while columns are at work: its number in this tuple, 0 if the row passes.
_ANSWERS = (
    None,
    Reason.TEXT_MISSING,
    Reason.SCORE_NOT_FINITE,
    Reason.TEXT_TOO_LONG,
    Reason.ITM_BELOW_MIN,
    Reason.ITC_CLEARLY_LOW,
    Reason.ITC_BELOW_MIN,
    Reason.NOT_BEST,
    Reason.WEB_PREFERRED,
)
_PASSES = 0
_CODES = {answer: code for code, answer in enumerate(_ANSWERS)}
_CAME_WITH_ONE = len(_ANSWERS)  # a row that came with a reason keeps it


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What a text of one source must reach. Both bounds are kept: a text at the bound passes."""

    min_itm_prob: float | None = 0.5
    """Lowest ITM match probability kept, in [0, 1]. 0.5 is BLIP's rule: the head says "match". None
    asks nothing of it."""

    min_itc_cos: float | None = None
    """Lowest ITC cosine kept, in [-1, 1]; None asks nothing of it."""

    def __post_init__(self) -> None:
        """Refuse a NaN: no score is below it, so it would drop nothing or everything."""
        for name in ("min_itm_prob", "min_itc_cos"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}; a threshold is a finite number")


def judge(
    scores: pa.Table,
    *,
    policy: Policy,
    web: Thresholds,
    synthetic: Thresholds,
    max_text_chars: int,
) -> pa.Table:
    """Keep each text that its image supports, as far as the policy wants it.

    Every text is first judged alone, against the thresholds of its source (CapFilt:
    arXiv:2201.12086, sec. 3.3). Of several shortcomings the first of these is the reason: the one
    the row came with, text missing, score not finite, text too long, ITM below, ITC below. A score
    that is null is none: it is wanting only if it is asked for. Where a cascade had ITC decide a
    text, that stands for what is asked of its ITM probability: a clearly low one is dropped, a
    clearly high one passes, audited or not. Then the policy looks at the texts of each image that
    passed:

        both       keeps them all, as the paper does
        best       keeps the one with the highest ITM probability, or cosine where the filter gives
                   no probability or is a cascade; at a tie the web text goes before synthetic
                   ones, and the lower `text_index` before the higher
        web_first  keeps the web text if it passed, else every synthetic text that did

    Thresholds are rounded to float32, the precision of the scores, before they are compared.

    Args:
        scores: columns of `records.Score`, rows in any order, unique by (key, text_source,
            text_index); all texts of an image are in the same table.
        policy: which of the passing texts of an image stay.
        web: what the web text must reach.
        synthetic: what a synthetic text must reach.
        max_text_chars: longest text kept, in Unicode code points.

    Returns:
        Columns of `records.Verdict`; one verdict per score, in the same order.
    """
    is_web = _booleans(pc.equal(scores["text_source"], "web"))
    codes = _judge_alone(scores, is_web, web, synthetic, max_text_chars)
    if policy == "best":
        _keep_best(codes, scores, is_web)
    elif policy == "web_first":
        _keep_web_first(codes, scores, is_web)
    return _verdicts(scores, codes)


def _judge_alone(
    scores: pa.Table, is_web: BoolArray, web: Thresholds, synthetic: Thresholds, max_text_chars: int
) -> CodeArray:
    """The answer of each row, its image's other texts left aside; the strongest written last."""
    itm_prob = _floats(scores["itm_prob"])
    itc_cos = _floats(scores["itc_cos"])
    low, high = (_booleans(pc.equal(scores["decided_by"], by)) for by in ("itc_low", "itc_high"))
    codes = np.zeros(scores.num_rows, np.int8)
    for bounds, of_source in ((web, is_web), (synthetic, ~is_web)):
        # Never `x < bound`: a NaN must not pass. Here it falls below, and gets its own answer next.
        if bounds.min_itc_cos is not None:
            below = ~(itc_cos >= np.float32(bounds.min_itc_cos))
            codes[of_source & below] = _CODES[Reason.ITC_BELOW_MIN]
        if bounds.min_itm_prob is not None:
            below = ~(itm_prob >= np.float32(bounds.min_itm_prob))
            codes[of_source & low] = _CODES[Reason.ITC_CLEARLY_LOW]
            codes[of_source & below & ~low & ~high] = _CODES[Reason.ITM_BELOW_MIN]
    too_long = _booleans(pc.greater(pc.utf8_length(scores["text"]), max_text_chars))
    codes[too_long] = _CODES[Reason.TEXT_TOO_LONG]
    asked = np.where(is_web, web.min_itm_prob is not None, synthetic.min_itm_prob is not None)
    itm_needed = asked & ~low & ~high
    itm_fine = np.isfinite(itm_prob) | (_booleans(pc.is_null(scores["itm_prob"])) & ~itm_needed)
    codes[~(itm_fine & np.isfinite(itc_cos))] = _CODES[Reason.SCORE_NOT_FINITE]
    codes[_booleans(pc.is_null(scores["text"]))] = _CODES[Reason.TEXT_MISSING]
    codes[_booleans(pc.is_valid(scores["reason"]))] = _CAME_WITH_ONE
    return codes


def _keep_best(codes: CodeArray, scores: pa.Table, is_web: BoolArray) -> None:
    """Of the passing rows of each image, let one stand; changes `codes`."""
    rows = np.flatnonzero(codes == _PASSES)
    image = _image_numbers(scores["key"])[rows]
    merit = _merit(scores, is_web)[rows]
    best = np.zeros(scores.num_rows, np.uint64)
    np.maximum.at(best, image, merit)
    codes[rows[merit != best[image]]] = _CODES[Reason.NOT_BEST]


def _merit(scores: pa.Table, is_web: BoolArray) -> npt.NDArray[np.uint64]:
    """One number per row, higher is better: fit of the text, then web text, then low index.

    The bits of a float32 sort like the number itself once those of a negative one are inverted and
    the sign of the others is set, so they can lead a 64-bit number: 32 bits of fit, 1 of source, 31
    of index counted down.
    """
    fit = _floats(text_fit(scores)) + np.float32(0)  # no -0.0
    bits = fit.view(np.uint32)
    bits = np.where(np.signbit(fit), ~bits, bits | np.uint32(2**31))
    index = scores["text_index"].to_numpy().astype(np.uint64)
    source = is_web.astype(np.uint64) << np.uint64(31)
    low_index_first = np.uint64(2**31 - 1) - index
    merit: npt.NDArray[np.uint64] = bits.astype(np.uint64) << np.uint64(32)
    merit |= source | low_index_first
    return merit


def text_fit(scores: pa.Table) -> pa.ChunkedArray:
    """How well each text fits its image: ITM probability, or cosine where not every text has one.

    All texts of a round are scored by one filter, so only like is compared with like. A cascade
    leaves some texts without a probability, so there all are compared by cosine.

    Args:
        scores: columns `itm_prob`, `itc_cos` and `decided_by` of `records.Score`.
    """
    probability = pc.if_else(pc.is_null(scores["decided_by"]), scores["itm_prob"], None)
    return pc.coalesce(probability, scores["itc_cos"])


def _keep_web_first(codes: CodeArray, scores: pa.Table, is_web: BoolArray) -> None:
    """Drop the passing synthetic texts of an image whose web text passed; changes `codes`."""
    passing = codes == _PASSES
    image = _image_numbers(scores["key"])
    has_web = np.zeros(scores.num_rows, np.bool_)
    has_web[image[passing & is_web]] = True
    codes[passing & ~is_web & has_web[image]] = _CODES[Reason.WEB_PREFERRED]


def _image_numbers(keys: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A number per row, equal where the key is, below the number of rows.

    Texts of one image mostly lie side by side, so only the first key of each run is looked up:
    much cheaper than all of them, and right for any order.
    """
    if len(keys) == 0:
        return np.zeros(0, np.int64)
    changes = _booleans(pc.not_equal(keys[1:], keys[:-1]))
    starts = np.concatenate([np.ones(1, np.bool_), changes])
    heads = keys.filter(pa.array(starts)).combine_chunks().dictionary_encode()
    of_runs = heads.indices.to_numpy().astype(np.int64)
    numbers: npt.NDArray[np.int64] = of_runs[np.cumsum(starts) - 1]
    return numbers


def _verdicts(scores: pa.Table, codes: CodeArray) -> pa.Table:
    """Verdict columns from the answers and the reasons that rows came with."""
    answered = (codes != _PASSES) & (codes != _CAME_WITH_ONE)
    names = pa.array(_ANSWERS, pa.string())
    reasons = names.take(pa.array(codes, mask=~answered))
    columns = {
        "key": scores["key"],
        "text_source": scores["text_source"],
        "text_index": scores["text_index"],
        "kept": pa.array(codes == _PASSES),
        "reason": pc.coalesce(scores["reason"], reasons),
    }
    return pa.table(columns, schema=arrow_schema(Verdict))


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """(N,) float32, NaN where the column is null."""
    floats: npt.NDArray[np.float32] = pc.fill_null(column, math.nan).to_numpy()
    return floats


def _booleans(column: pa.ChunkedArray) -> BoolArray:
    """(N,) bool, False where the column is null."""
    booleans: BoolArray = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
    return booleans


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Judge all scored shards."""
    shards = web_shards(recipe, tables).count
    tables.require("score", shards)
    return run_jobs([job(recipe, tables)], shards, tables=tables, pool=pool)[STAGE]


def job(recipe: Recipe, tables: Tables) -> SelectJob:
    """The stage's work on one shard.

    Raises:
        CapfiltError: the policy asks for a number that the filter does not give.
    """
    check_policy(recipe.select, tables.sources["filter"])
    return SelectJob(
        recipe=recipe, scores=tables.of("score"), table=tables.begin(STAGE, recompute=True)
    )


def check_policy(policy: SelectSection, filter_: Source) -> None:
    """Refuse a policy that would drop every text for want of a number.

    Raises:
        CapfiltError: says what to set.
    """
    if gives_match_probability(filter_.model_type):
        return
    asked = [
        name
        for name in ("min_itm_prob", "min_itm_prob_synthetic")
        if getattr(policy, name) is not None
    ]
    if asked:
        raise CapfiltError(
            f"{filter_.name}: a filter of type {filter_.model_type!r} gives cosines and no match "
            f"probability; set {' and '.join(f'select.{name}: null' for name in asked)}, and "
            "select.min_itc_cos and select.min_itc_cos_synthetic to the lowest cosine kept; "
            "LAION-5B kept 0.28 (arXiv:2210.08402)"
        )
    if policy.min_itc_cos is None and policy.min_itc_cos_synthetic is None:
        log.warning(
            "select asks nothing of the texts: set select.min_itc_cos and "
            "select.min_itc_cos_synthetic to drop those that do not fit"
        )


class SelectWorker:
    """Judges the scores of whole shards.

    Args:
        options: the policy.
    """

    def __init__(self, options: SelectSection) -> None:
        self._options = options

    def __call__(self, inputs: Sequence[pa.Table]) -> list[pa.Table]:
        """One table of verdicts per table of scores."""
        return [self._judge(scores) for scores in inputs]

    def close(self) -> None:
        """Nothing to give back."""

    def _judge(self, scores: pa.Table) -> pa.Table:
        options = self._options
        return judge(
            scores,
            policy=options.policy,
            web=Thresholds(min_itm_prob=options.min_itm_prob, min_itc_cos=options.min_itc_cos),
            synthetic=Thresholds(
                min_itm_prob=options.min_itm_prob_synthetic,
                min_itc_cos=options.min_itc_cos_synthetic,
            ),
            max_text_chars=options.max_text_chars,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectJob:
    """Judging of one shard."""

    recipe: Recipe
    scores: Table
    table: Table

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What each worker needs."""
        return undivided_resources_of(self.recipe.pool, self.recipe.pool.select)

    def committed(self) -> Mapping[int, ShardReport]:
        """Shards judged by an earlier run."""
        return reports_of(STAGE, self.table)

    def build_worker(self) -> Worker[pa.Table, pa.Table]:
        """A worker; it needs no model."""
        return SelectWorker(self.recipe.select)

    def fetch(self, shard: int) -> Fetched[pa.Table]:
        """The scores of the shard."""
        return Fetched(inputs=[from_bytes(self.scores.read(shard), Score)])

    def quarantine(self, rejected: pa.Table, why: Quarantine) -> pa.Table:
        """A shard cannot be left out of itself: its one row is its whole input."""
        raise AssertionError("never asked for: not divisible")

    def commit(
        self, shard: int, fetched: Fetched[pa.Table], outputs: Sequence[pa.Table]
    ) -> ShardReport:
        """Write the shard's verdicts, in the order of its scores."""
        [verdicts] = outputs
        payload = to_bytes(verdicts)
        rows = len(verdicts)
        dropped = reason_counts(verdicts["reason"])
        commit = self.table.commit(
            shard,
            [NewFile(role="rows", folder="", suffix=".parquet", payload=payload, rows=rows)],
            rows_in=rows,
            kept=rows - sum(dropped.values()),
            dropped=dropped,
        )
        return report_of(STAGE, commit)
