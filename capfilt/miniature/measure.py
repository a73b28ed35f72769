"""Measure a run against the truth of the miniature world. Pure: counts and sets, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from capfilt.miniature.truth import is_true
from capfilt.miniature.world import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well a choice agrees with the truth, as counts that a reader can check."""

    num_right: int  # chosen and true
    num_chosen: int
    num_true: int

    @property
    def precision(self) -> float | None:
        """Share of what was chosen that is true; None if nothing was chosen."""
        return self.num_right / self.num_chosen if self.num_chosen else None

    @property
    def recall(self) -> float | None:
        """Share of what is true that was chosen; None if nothing is true."""
        return self.num_right / self.num_true if self.num_true else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthShare:
    """How many of some texts are true of their scenes."""

    num_true: int
    num_texts: int

    @property
    def share(self) -> float | None:
        """True texts among all; None if there are none."""
        return self.num_true / self.num_texts if self.num_texts else None


def filter_quality(kept: Sequence[bool], is_true: Sequence[bool]) -> Quality:
    """Compare what a filter kept with what is true.

    Args:
        kept: one flag per text.
        is_true: whether the same text is true of its image.
    """
    both = sum(k and t for k, t in zip(kept, is_true, strict=True))
    return Quality(num_right=both, num_chosen=sum(kept), num_true=sum(is_true))


def truth_share(texts: Iterable[str | None], scenes: Iterable[Scene]) -> TruthShare:
    """Count the texts that are true of their scenes; what is no statement is not true."""
    flags = [
        text is not None and is_true(text, scene) is True
        for text, scene in zip(texts, scenes, strict=True)
    ]
    return TruthShare(num_true=sum(flags), num_texts=len(flags))


def duplicate_quality(found: Mapping[str, str], planted: Mapping[str, str]) -> Quality:
    """Compare groups found with groups planted, by pairs of samples in the same group.

    Args:
        found: key of a sample to what stands for its group, such as the representative's key.
        planted: the same keys, to the group that was planted.
    """
    assert found.keys() == planted.keys(), "both must speak of the same samples"
    found_pairs, planted_pairs = _pairs(found), _pairs(planted)
    return Quality(
        num_right=len(found_pairs & planted_pairs),
        num_chosen=len(found_pairs),
        num_true=len(planted_pairs),
    )


def _pairs(groups: Mapping[str, str]) -> set[tuple[str, str]]:
    members: dict[str, list[str]] = {}
    for key in sorted(groups):
        members.setdefault(groups[key], []).append(key)
    return {pair for keys in members.values() for pair in combinations(keys, 2)}
