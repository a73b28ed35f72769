from __future__ import annotations

import random
from fractions import Fraction
from itertools import combinations

import pytest

from capfilt_blip.evaluate.diversity import (
    MIN_CAPTIONS,
    SAMPLE_SIZE,
    collapse_of,
    diversity_of,
    expected_vocabulary,
)

VARIED = [f"a thing number {number}" for number in range(100)]


def repeated(times: int, *, of: int) -> list[str]:
    return ["A red circle."] * times + VARIED[: of - times]


def test_diversity_counts_texts_words_and_pairs_of_words():
    found = diversity_of(["a red star", "A red star!", "a moon", "a"])
    assert (found.num_texts, found.num_distinct, found.distinct_share) == (4, 3, 0.75)
    assert (found.commonest, found.commonest_share) == ("a red star", 0.5)
    assert (found.vocabulary_size, found.num_words) == (4, 9)  # a, red, star, moon
    assert found.distinct_1 == 4 / 9
    assert found.distinct_2 == 3 / 5  # a red, red star, a moon; of five


def test_texts_without_words_are_texts():
    found = diversity_of(["", "..."])
    assert (found.num_distinct, found.commonest, found.distinct_1, found.distinct_2) == (
        1,
        "",
        0,
        0,
    )


def test_no_texts_have_no_diversity():
    with pytest.raises(ValueError, match="no texts were given"):
        diversity_of([])


def test_the_expected_vocabulary_is_the_mean_over_all_draws():
    words = "a a a red red star".split()
    draws = list(combinations(range(6), 3))
    mean = Fraction(sum(len({words[place] for place in draw}) for draw in draws), len(draws))
    assert expected_vocabulary(["a a a", "red red star"], num_words=3) == pytest.approx(float(mean))
    assert expected_vocabulary(["a a a", "red red star"], num_words=6) == pytest.approx(3)


def test_one_caption_may_be_a_fifth_of_all_and_no_more():
    assert collapse_of(repeated(20, of=100), None) is None
    said = collapse_of(repeated(21, of=100), None)
    assert said is not None
    assert said.startswith("the captions repeat: 'a red circle' is 21% of 100, and 20% is the most")
    assert "\n" not in said


def test_a_tenth_of_the_captions_has_to_be_distinct():
    ten = [f"thing {number}" for number in range(10)]
    assert collapse_of(ten * 10, None) is None
    said = collapse_of([*(ten[:9] * 11), ten[0]], None)
    assert said is not None and "9 of 100 are distinct, 9%, and 10% is the least allowed" in said


def test_half_of_the_vocabulary_may_go_between_two_rounds():
    # As many words in both, so nothing is drawn: 100 distinct words, then 50 and 49.
    before = [f"w{number}" for number in range(100)]
    assert collapse_of(before[:50] * 2, before) is None
    said = collapse_of([*(before[:49] * 2), "w0", "w1"], before)
    assert said is not None
    assert "49 distinct words where the round before had 100, in 100 words of each" in said


def test_a_round_with_fewer_captions_has_not_lost_its_vocabulary():
    rng = random.Random(0)
    words = [f"w{number}" for number in range(500)]
    before = [" ".join(rng.choices(words, k=5)) for _ in range(2000)]
    assert diversity_of(before[:60]).vocabulary_size < 0.5 * diversity_of(before).vocabulary_size
    assert collapse_of(before[:60], before) is None


def test_too_few_captions_are_not_judged():
    assert collapse_of(["a"] * (MIN_CAPTIONS - 1), None) is None
    assert collapse_of(["a"] * MIN_CAPTIONS, None) is not None
    assert collapse_of(VARIED, ["w"] * (MIN_CAPTIONS - 1)) is None


def test_many_captions_are_judged_as_fewer_would_be():
    few = [f"thing {number % 1200}" for number in range(SAMPLE_SIZE)]
    many = [f"thing {number % 1200}" for number in range(12 * SAMPLE_SIZE + 7)]
    assert diversity_of(many).distinct_share < 0.1 < diversity_of(few).distinct_share
    assert collapse_of(few, None) is None
    assert collapse_of(many, None) is None
