"""The guard: a round that has collapsed is not trained on.

A captioner that repeats itself, trained on what it wrote, repeats itself more. So the run stops
before a round's models are trained where its report leaves no doubt: a limit counts as broken
only if the whole 95 % interval of what was measured lies beyond it, and a small run stops by no
chance. What is measured is of committed tables, so a resumed run stops at the same place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from capfilt.config import GuardSection
from capfilt.errors import CollapseError
from capfilt.stages.cascade import Z_95
from capfilt.stages.diversity import Diversity, Share
from capfilt.stages.round_report import RoundReport

MAX_SHOWN_CHARS = 60
"""Of a caption in an error."""


def check_round(
    report: RoundReport, before: RoundReport | None, guard: GuardSection, *, where: str
) -> None:
    """Refuse to train on a round that has collapsed.

    Args:
        report: of the round.
        before: of the round before it; None in the first.
        guard: the limits.
        where: the run, for the error.

    Raises:
        CollapseError: says what was measured, what is allowed, and what to set.
    """
    found = list(problems(report, before, guard))
    if found:
        raise CollapseError(
            f"{where}: round {report.round} is not trained on: {'; '.join(found)}. Its tables "
            "stay: look at them with `capfilt report`; a limit set to null is off"
        )


def problems(report: RoundReport, before: RoundReport | None, guard: GuardSection) -> Iterator[str]:
    """Every limit a round breaks, a phrase each."""
    captions, noise = report.captions, report.noise_ratio
    if captions.captions < guard.min_captions:
        return
    limit = guard.max_commonest_caption_share
    if limit is not None and captions.commonest_caption.low > limit:
        yield (
            f"the commonest caption, {_cut(captions.commonest or '')!r}, is "
            f"{_measured(captions.commonest_caption)}, and guard.max_commonest_caption_share "
            f"allows {limit}"
        )
    limit = guard.max_noise_ratio
    if limit is not None and noise.low > limit:
        yield (
            f"the filter rejects {_measured(noise)} captions, and guard.max_noise_ratio allows "
            f"{limit}"
        )
    if before is not None and guard.min_vocabulary_kept is not None:
        yield from _lost_words(captions, before.captions, at_least=guard.min_vocabulary_kept)


def most_vocabulary_kept(now: Diversity, before: Diversity) -> float:
    """Upper end of the 95 % interval of the ratio of two vocabularies; infinite if nothing is sure.

    Were every word said independently of the others, the variance of the number of distinct words
    would be what that number grows by if as much were said again (each word's Poisson variance,
    summed), which is at most the number of words seen once (Good and Toulmin 1956).
    """
    high = now.vocabulary + Z_95 * math.sqrt(now.words_seen_once)
    low = before.vocabulary - Z_95 * math.sqrt(before.words_seen_once)
    return high / low if low > 0 else math.inf


def _lost_words(now: Diversity, before: Diversity, *, at_least: float) -> Iterator[str]:
    most = most_vocabulary_kept(now, before)
    if most < at_least:
        yield (
            f"the vocabulary fell from {before.vocabulary:,} to {now.vocabulary:,} words, "
            f"{now.vocabulary / before.vocabulary:.1%} (95 % interval up to {most:.1%}), and "
            f"guard.min_vocabulary_kept asks for {at_least}"
        )


def _measured(share: Share) -> str:
    return (
        f"{share.count / share.total:.1%} of {share.total:,} "
        f"(95 % interval {share.low:.1%} to {share.high:.1%})"
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
