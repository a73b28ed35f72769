"""Means, spreads and paired differences over seeds. Pure: numbers in, numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One figure of one arm over its seeds."""

    mean: float
    sd: float
    """Of a sample, n - 1; 0 where there is one seed."""
    low: float
    high: float
    num_seeds: int


class Certainty(StrEnum):
    """How sure it is that one arm is better than another.

    By more than the spread: the worst seed of the one is better than the best of the other.
    """

    APART = "better by more than the spread"
    ALWAYS = "better with every seed, but by less than the spread"
    MOSTLY = "better on average, not with every seed"
    NOT = "not better"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """One arm against another, seed by seed, on one figure."""

    differences: Mapping[int, float]
    """By seed; above 0 where the first arm is better."""
    certainty: Certainty

    @property
    def mean(self) -> float:
        """Mean of the differences."""
        return statistics.fmean(self.differences.values())


def spread(values: Sequence[float]) -> Spread:
    """Sum up one figure over seeds; at least one is needed."""
    return Spread(
        mean=statistics.fmean(values),
        sd=statistics.stdev(values) if len(values) > 1 else 0.0,
        low=min(values),
        high=max(values),
        num_seeds=len(values),
    )


def gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Gain:
    """Compare two arms on the seeds that both have, the same world and start in each.

    Args:
        ours: by seed, the higher the better; one seed at least in common.
        theirs: the same of the other arm.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    differences = {seed: ours[seed] - theirs[seed] for seed in seeds}
    return Gain(differences=differences, certainty=_certainty(seeds, ours, theirs))


def _certainty(
    seeds: Sequence[int], ours: Mapping[int, float], theirs: Mapping[int, float]
) -> Certainty:
    if min(ours[seed] for seed in seeds) > max(theirs[seed] for seed in seeds):
        return Certainty.APART
    if all(ours[seed] > theirs[seed] for seed in seeds):
        return Certainty.ALWAYS
    mean = statistics.fmean(ours[seed] - theirs[seed] for seed in seeds)
    return Certainty.MOSTLY if mean > 0 else Certainty.NOT


def auc(probs: Sequence[float], is_true: Sequence[bool]) -> float:
    """Area under the ROC curve: how often a true text has a higher score than a false one.

    Ties count as one half (Mann and Whitney 1947). Both kinds must occur.
    """
    ranked = sorted(zip(probs, is_true, strict=True))
    num_true = sum(is_true)
    num_false = len(ranked) - num_true
    won, false_below, start = 0.0, 0, 0
    while start < len(ranked):
        end = start
        while end < len(ranked) and ranked[end][0] == ranked[start][0]:
            end += 1
        tied_true = sum(flag for _, flag in ranked[start:end])
        tied_false = end - start - tied_true
        won += tied_true * (false_below + tied_false / 2)
        false_below += tied_false
        start = end
    return won / (num_true * num_false)
