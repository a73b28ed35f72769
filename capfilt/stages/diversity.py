"""How varied texts are: repeats, vocabulary and n-grams, counted over columns.

A captioner that collapses says the same of many images long before its losses tell: its commonest
caption spreads, and words disappear from its vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.stages.cascade import wilson_interval

NO_WORD = r"[^\pL\pM\pN]+"
"""What parts words: anything but letters, their marks, and digits."""

DIGITS = 6
"""Of a published share or mean: machines may differ in the last bits of a sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of a whole, with its 95 % Wilson interval. Make it with `share_of`."""

    count: int
    total: int
    share: float | None  # null where nothing was counted
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """What is counted of some captions. A word is a run of letters or digits, in lower case."""

    captions: int
    distinct_captions: Share
    commonest: str | None  # of equally common ones the first in code point order
    commonest_caption: Share
    vocabulary: int  # distinct words
    words_seen_once: int
    words_per_caption: float | None
    distinct_1: float | None  # distinct words in all words (Li et al. 2016, arXiv:1510.03055)
    distinct_2: float | None  # distinct pairs of neighbouring words in all such pairs


def share_of(count: int, total: int) -> Share:
    """A share of things that are taken as independent of each other."""
    low, high = wilson_interval(count, total)
    return Share(
        count=count,
        total=total,
        share=ratio(count, total),
        low=round(low, DIGITS),
        high=round(high, DIGITS),
    )


def ratio(part: float, whole: float) -> float | None:
    """A ratio as it is published; None of nothing."""
    return round(part / whole, DIGITS) if whole else None


def diversity_of(texts: pa.Array) -> Diversity:
    """Count how varied some texts are.

    Figures of two sets can be compared if the sets are of one size: the more texts, the more words
    have been said before.

    Args:
        texts: strings without nulls; texts that differ in a letter's case or in a blank are
            different captions of the same words.
    """
    texts = texts.cast(pa.large_string())
    num_distinct, commonest, num_commonest = _repeats(texts)
    words, owners = _words(texts)
    encoded = words.dictionary_encode()
    vocabulary = len(encoded.dictionary)
    codes = encoded.indices.to_numpy().astype(np.int64)
    neighbours = owners[1:] == owners[:-1]  # within one text
    pairs = (codes[:-1] * vocabulary + codes[1:])[neighbours]
    return Diversity(
        captions=len(texts),
        distinct_captions=share_of(num_distinct, len(texts)),
        commonest=commonest,
        commonest_caption=share_of(num_commonest, len(texts)),
        vocabulary=vocabulary,
        words_seen_once=int((np.bincount(codes) == 1).sum()),
        words_per_caption=ratio(len(codes), len(texts)),
        distinct_1=ratio(vocabulary, len(codes)),
        distinct_2=ratio(len(np.unique(pairs)), len(pairs)),
    )


def _repeats(texts: pa.Array) -> tuple[int, str | None, int]:
    """How many different texts there are, the commonest, and how often it was said."""
    if not len(texts):
        return 0, None, 0
    counted = pc.value_counts(texts)
    values, counts = counted.field("values"), counted.field("counts")
    most = pc.max(counts)
    return len(values), pc.min(values.filter(pc.equal(counts, most))).as_py(), most.as_py()


def _words(texts: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The words of all texts, and the position of the text each stands in."""
    spaced = pc.replace_substring_regex(pc.utf8_lower(texts), pattern=NO_WORD, replacement=" ")
    split = pc.utf8_split_whitespace(spaced)
    words, owners = pc.list_flatten(split), pc.list_parent_indices(split)
    real = pc.not_equal(words, "")  # a blank at the end of a text has an empty word behind it
    return words.filter(real), owners.filter(real).to_numpy().astype(np.int64)
