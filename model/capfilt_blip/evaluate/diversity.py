"""How varied captions are, and whether a round has lost what the former one had.

A captioner that learns from its own captions may end in a few sentences. The signs are in the texts
alone: one caption makes up much of them, few are distinct, words are gone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from capfilt_blip.evaluate.words import ngrams_of, words_of

MIN_CAPTIONS = 50
"""Fewer are not judged: a share among them moves by 2 per cent and more with each caption."""

SAMPLE_SIZE = 10_000
"""Captions judged, evenly spaced: the share of distinct ones falls with their number, so that a
threshold holds only for about as many."""

MAX_COMMONEST_SHARE = 0.2
"""Ten times the largest share seen in sound sets of 150 captions and more (people's of Flickr8k
0.2 %, the miniature's grammar 0.6 %, its captioner 2 %)."""

MIN_DISTINCT_SHARE = 0.1
"""A sixth of what 10,000 captions of the miniature's grammar have, 0.63, and it has but 40 words;
1,000 captions of Flickr8k have 0.999."""

MIN_VOCABULARY_SHARE = 0.5
"""Of the words that the former round used. Between the first and second captions of Flickr8k, by
different people, it is 1.00; between 200 and 1,000 of them, which are of fewer subjects, 0.91."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How varied texts are. Case and punctuation make no difference."""

    num_texts: int
    num_distinct: int
    commonest: str
    """The text that occurs most often, in lower case and without punctuation."""
    commonest_share: float
    """Its share of all texts, in [0, 1]."""
    vocabulary_size: int
    """Distinct words."""
    num_words: int
    distinct_1: float
    """Distinct words per word, in [0, 1]: distinct-1 of Li et al. 2016 (arXiv:1510.03055)."""
    distinct_2: float
    """The same of pairs of words that follow each other; 0 if there are none."""

    @property
    def distinct_share(self) -> float:
        """Distinct texts per text, in [0, 1]."""
        return self.num_distinct / self.num_texts


def diversity_of(texts: Sequence[str]) -> Diversity:
    """Measure how varied texts are.

    Raises:
        ValueError: there are none.
    """
    if not texts:
        raise ValueError("no texts were given; diversity is that of one or more")
    split = [words_of(text) for text in texts]
    counts = Counter(map(tuple, split))
    [(commonest, count)] = counts.most_common(1)
    words = Counter(word for row in split for word in row)
    return Diversity(
        num_texts=len(texts),
        num_distinct=len(counts),
        commonest=" ".join(commonest),
        commonest_share=count / len(texts),
        vocabulary_size=len(words),
        num_words=words.total(),
        distinct_1=distinct(split, n=1),
        distinct_2=distinct(split, n=2),
    )


def collapse_of(captions: Sequence[str], before: Sequence[str] | None) -> str | None:
    """Say in one line that captions have collapsed, and what to try.

    Args:
        captions: of a round, one of each image: several of one image are alike in any round.
        before: those of the round before; None if there is none.

    Returns:
        What is wrong, the commonest caption first; None if nothing is, or there are fewer than
        MIN_CAPTIONS to judge by.
    """
    if len(captions) < MIN_CAPTIONS:
        return None
    sample = _evenly(captions)
    found = diversity_of(sample)
    if found.commonest_share > MAX_COMMONEST_SHARE:
        return (
            f"the captions repeat: {found.commonest!r} is {found.commonest_share:.0%} of "
            f"{len(sample):,}, and {MAX_COMMONEST_SHARE:.0%} is the most allowed; {_REPEATING}"
        )
    if found.distinct_share < MIN_DISTINCT_SHARE:
        return (
            f"the captions repeat: {found.num_distinct:,} of {len(sample):,} are distinct, "
            f"{found.distinct_share:.0%}, and {MIN_DISTINCT_SHARE:.0%} is the least allowed; "
            f"{_REPEATING}"
        )
    return None if before is None else _lost_words(sample, before)


_REPEATING = "train longer, add human pairs, or sample more widely (caption.top_p)"


def _lost_words(sample: Sequence[str], before: Sequence[str]) -> str | None:
    former = _evenly(before)
    if len(former) < MIN_CAPTIONS:
        return None
    num_words = min(_num_words(sample), _num_words(former))
    now, then = (expected_vocabulary(texts, num_words=num_words) for texts in (sample, former))
    if now >= MIN_VOCABULARY_SHARE * then:
        return None
    return (
        f"the captions have lost their vocabulary: {now:,.0f} distinct words where the round before"
        f" had {then:,.0f}, in {num_words:,} words of each, and {MIN_VOCABULARY_SHARE:.0%} is the "
        "least allowed; pre-train anew instead of continuing, or add human pairs"
    )


def _evenly(texts: Sequence[str]) -> Sequence[str]:
    """Take every k-th, at most SAMPLE_SIZE."""
    return texts[:: max(1, math.ceil(len(texts) / SAMPLE_SIZE))]


def _num_words(texts: Sequence[str]) -> int:
    return sum(len(words_of(text)) for text in texts)


def distinct(split: Sequence[list[str]], *, n: int) -> float:
    """Give the share of n-grams that are distinct (arXiv:1510.03055, sec. 5.2); 0 without any.

    Args:
        split: the words of each text.
        n: words in a row.
    """
    found = Counter(ngram for words in split for ngram in ngrams_of(words, n=n))
    return len(found) / max(1, found.total())


def expected_vocabulary(texts: Sequence[str], *, num_words: int) -> float:
    """Give the number of distinct words to be expected among so many drawn from all of the texts.

    It is what makes two sets of texts comparable, for more words hold more distinct ones
    (rarefaction, Hurlbert 1971: drawn without putting back).

    Args:
        texts: what is drawn from.
        num_words: drawn; at most as many as there are.
    """
    counts = Counter(word for text in texts for word in words_of(text))
    total = counts.total()

    def log_ways(number: int) -> float:
        """Ways to draw from so many words, as a logarithm."""
        return math.lgamma(number + 1) - math.lgamma(number - num_words + 1)

    never = sum(
        times * math.exp(log_ways(total - count) - log_ways(total))
        for count, times in Counter(counts.values()).items()
        if total - count >= num_words
    )
    return len(counts) - never
