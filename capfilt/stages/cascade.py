"""What a filter that works as a cascade may be, and how far its two halves agree.

ITC decides the texts whose cosine is clear. Some of them, drawn at random, were put to ITM as well:
the audit. How often it says otherwise there is what the cascade costs.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.config import Recipe, ScoreSection, SelectSection
from capfilt.errors import CapfiltError
from capfilt.io.parquet import from_bytes
from capfilt.records import Score
from capfilt.stages.source_notes import Source
from capfilt.stages.tables import Tables
from capfilt.workers.cascade import Cascade
from capfilt.workers.kinds import is_blip

AUDIT_COLUMNS = ["text_source", "itm_prob", "decided_by", "audited"]
Z_95 = 1.959964
"""Of the normal distribution: 95 % lie within so many deviations."""

log = logging.getLogger(__name__)


def cascade_of(recipe: Recipe) -> Cascade | None:
    """The cascade of a recipe, if it has one."""
    chosen = recipe.score.cascade
    if chosen is None:
        return None
    return Cascade(
        itc_cos_drop=chosen.itc_cos_drop,
        itc_cos_keep=chosen.itc_cos_keep,
        audit_share=chosen.audit_share,
        seed=recipe.seed,
    )


def check_cascade(score: ScoreSection, filter_: Source) -> None:
    """Refuse a cascade where there is no ITM to save.

    Raises:
        CapfiltError: the filter is no BLIP.
    """
    if score.cascade is not None and not is_blip(filter_.model_type):
        raise CapfiltError(
            f"{filter_.name}: a filter of type {filter_.model_type!r} has no ITM that a cascade "
            "could save; set score.cascade: null"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Texts of a cascade, counted by who decided them; they add up."""

    itc_low: int = 0
    itc_high: int = 0
    itm: int = 0
    audited: int = 0
    disagreed: int = 0
    """Audited texts of which ITM, at the recipe's thresholds, says otherwise."""

    @property
    def total(self) -> int:
        """Texts that have a score."""
        return self.itc_low + self.itc_high + self.itm

    def __add__(self, other: Audit) -> Audit:
        return Audit(
            itc_low=self.itc_low + other.itc_low,
            itc_high=self.itc_high + other.itc_high,
            itm=self.itm + other.itm,
            audited=self.audited + other.audited,
            disagreed=self.disagreed + other.disagreed,
        )

    def __str__(self) -> str:
        by_itc = self.itc_low + self.itc_high
        said = f"ITC decided {by_itc:,} of {self.total:,} texts ({_percent(by_itc, self.total)})"
        low, high = wilson_interval(self.disagreed, self.audited)
        return (
            f"{said}: {self.itc_low:,} low, {self.itc_high:,} high; of {self.audited:,} of them "
            f"put to ITM all the same, it disagrees on {self.disagreed:,} "
            f"({_percent(self.disagreed, self.audited)}; 95 % interval {low:.1%} to {high:.1%})"
        )


def audit_of(scores: pa.Table, policy: SelectSection) -> Audit:
    """Count the texts of a cascade.

    Args:
        scores: `AUDIT_COLUMNS` of `records.Score`.
        policy: whose thresholds say what ITM would decide; a text of which it asks no ITM
            probability is not disagreed on.
    """
    counts = {
        by: pc.sum(pc.equal(scores["decided_by"], by)).as_py() or 0
        for by in ("itc_low", "itc_high", "itm")
    }
    audited = scores.filter(scores["audited"])
    is_web = pc.equal(audited["text_source"], "web").to_numpy()
    web, synthetic = (
        np.float32(math.nan if bound is None else bound)
        for bound in (policy.min_itm_prob, policy.min_itm_prob_synthetic)
    )
    bounds = np.where(is_web, web, synthetic)
    itm_prob = audited["itm_prob"].to_numpy()
    said_high = pc.equal(audited["decided_by"], "itc_high").to_numpy()
    differs = np.where(said_high, itm_prob < bounds, itm_prob >= bounds)
    return Audit(**counts, audited=len(audited), disagreed=int(differs.sum()))


def audit(tables: Tables, policy: SelectSection) -> Audit:
    """Count the texts of all shards that a round has scored."""
    table = tables.of("score")
    found = (
        audit_of(from_bytes(table.read(shard), Score, AUDIT_COLUMNS), policy)
        for shard in sorted(tables.committed("score"))
    )
    return sum(found, Audit())


def log_audit(recipe: Recipe, tables: Tables) -> None:
    """Say how far ITC and ITM agree, where the recipe has a cascade."""
    if recipe.score.cascade is not None:
        log.info("score: %s", audit(tables, recipe.select))


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); [0, 1] where nothing was counted.

    Args:
        count: how often it was so.
        total: how often it was looked at.
    """
    if total == 0:
        return 0.0, 1.0
    share, z2 = count / total, Z_95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) * Z_95 / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
