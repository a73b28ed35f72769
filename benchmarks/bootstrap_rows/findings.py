"""What is on disk after a run, read back and put in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bootstrap_rows.arms import Arm, Row, TextStep, is_done, row_of, texts_of
from benchmarks.bootstrap_rows.runner import home
from benchmarks.bootstrap_rows.summary import auc
from benchmarks.bootstrap_rows.texts import MIN_ITM_PROB, RoundTexts
from capfilt.miniature.measure import filter_quality


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """How good one round's captioner and filter were; each share in [0, 1]."""

    step: str
    seed: int
    auc: float
    """Of the filter on the web texts, whose truth is known."""
    precision: float
    """Share of the web texts it kept that are true."""
    recall: float
    """Share of the true web texts that it kept."""
    rejected: float
    """Share of the synthetic texts that it threw away: the paper's noise ratio."""
    captions_true: float | None
    """Share of the synthetic texts that are true; None where nobody knows."""
    kept_captions_true: float | None
    """The same of those that it kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that was measured."""

    rows: Mapping[Arm, Sequence[Row]]
    """By arm, one row for each seed that is done; arms of which none is done are left out."""
    facts: Mapping[TextStep, Sequence[TextFacts]]

    @property
    def names(self) -> list[str]:
        """The names of the figures."""
        return list(next(iter(self.rows.values()))[0].figures) if self.rows else []

    def values(self, arm: Arm, figure: str) -> dict[int, float]:
        """One figure of an arm, by seed."""
        return {row.seed: row.figures[figure] for row in self.rows.get(arm, ())}


def findings(
    folder: Path, seeds: Sequence[int], *, web_is_true: Mapping[int, Sequence[bool]]
) -> Findings:
    """Read what is done.

    Args:
        folder: of the run.
        seeds: to look for.
        web_is_true: of each seed, what is known of the web's texts.
    """
    homes = {seed: home(folder, seed) for seed in seeds}
    rows = {arm: [row_of(at, arm) for at in homes.values() if is_done(at, arm)] for arm in Arm}
    facts = {
        step: [
            text_facts(texts_of(at, step), web_is_true[seed], step=step, seed=seed)
            for seed, at in homes.items()
            if is_done(at, step)
        ]
        for step in TextStep
    }
    return Findings(
        rows={arm: found for arm, found in rows.items() if found},
        facts={step: found for step, found in facts.items() if found},
    )


def text_facts(
    texts: RoundTexts, web_is_true: Sequence[bool], *, step: TextStep, seed: int
) -> TextFacts:
    """Compare a round's captioner and filter with what is known."""
    kept = [prob >= MIN_ITM_PROB for prob in texts.web_probs]
    quality = filter_quality(kept, web_is_true)
    shown = [i for i, prob in enumerate(texts.web_probs) if prob > 0]  # 0 is a missing text
    known = texts.captions_true
    kept_known = (
        None
        if known is None
        else [
            flag
            for flag, prob in zip(known, texts.caption_probs, strict=True)
            if prob >= MIN_ITM_PROB
        ]
    )
    return TextFacts(
        step=step,
        seed=seed,
        auc=auc([texts.web_probs[i] for i in shown], [web_is_true[i] for i in shown]),
        precision=quality.precision or 0.0,
        recall=quality.recall or 0.0,
        rejected=texts.rejected,
        captions_true=_share(known),
        kept_captions_true=_share(kept_known),
    )


def _share(flags: Sequence[bool] | None) -> float | None:
    return sum(flags) / len(flags) if flags else None
