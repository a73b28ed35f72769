"""Diversity: counted by hand on a few captions."""

from __future__ import annotations

import pyarrow as pa
import pytest

from capfilt.stages.diversity import Diversity, diversity_of, share_of

CAPTIONS = ["a red circle", "A blue star, a star", "a red circle"]
"""3 captions, 11 words: a 4, red 2, circle 2, star 2, blue 1. 8 neighbours: `a red` and
`red circle` twice, `a blue`, `blue star`, `star a`, `a star` once."""


@pytest.fixture
def counted() -> Diversity:
    return diversity_of(pa.array(CAPTIONS))


def test_repeated_captions_are_counted(counted: Diversity) -> None:
    assert counted.captions == 3
    assert counted.distinct_captions == share_of(2, 3)
    assert (counted.commonest, counted.commonest_caption) == ("a red circle", share_of(2, 3))


def test_words_are_counted_whatever_their_case_and_punctuation(counted: Diversity) -> None:
    assert (counted.vocabulary, counted.words_seen_once) == (5, 1)
    assert counted.words_per_caption == 3.666667  # 11 / 3
    assert counted.distinct_1 == 0.454545  # 5 / 11


def test_neighbours_are_counted_within_a_caption_and_not_across(counted: Diversity) -> None:
    assert counted.distinct_2 == 0.75  # 6 / 8; `circle a` is said nowhere


def test_of_equally_common_captions_the_order_of_rows_decides_nothing() -> None:
    for texts in (["b", "a"], ["a", "b"]):
        assert diversity_of(pa.array(texts)).commonest == "a"


def test_no_caption_has_no_diversity() -> None:
    empty = diversity_of(pa.array([], pa.string()))
    assert (empty.captions, empty.vocabulary, empty.commonest) == (0, 0, None)
    assert empty.distinct_1 is empty.distinct_2 is empty.words_per_caption is None
    assert empty.commonest_caption.share is None


def test_a_caption_without_a_word_counts_as_a_caption() -> None:
    blank = diversity_of(pa.array(["...", " ", "cat"]))
    assert (blank.captions, blank.vocabulary, blank.words_per_caption) == (3, 1, 0.333333)


@pytest.mark.parametrize(
    ("text", "vocabulary"),
    [("дом и море, Дом", 3), ("e\u0301toile", 1), ("गिलास", 1), ("2 cats, 22 cats", 3)],
)
def test_words_of_other_scripts_are_whole(text: str, vocabulary: int) -> None:
    assert diversity_of(pa.array([text])).vocabulary == vocabulary


def test_a_share_carries_its_wilson_interval() -> None:
    share = share_of(10, 100)
    assert (share.share, round(share.low, 4), round(share.high, 4)) == (0.1, 0.0552, 0.1744)
