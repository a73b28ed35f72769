"""CIDEr against numbers worked out by hand, and against what the paper says of it."""

from __future__ import annotations

import math

import pytest

from capfilt_blip.evaluate.cider import Cider

FOUR = [["a cat sat"], ["a dog"], ["a bird"], ["a fish"]]
"""Seen by images of four: "a" 4, so it weighs nothing; all others 1, so they weigh log 4."""


def test_the_cosines_of_each_length_are_averaged():
    # "a cat": of single words, "cat" alone weighs: cosine with "cat sat" 1 / sqrt(2). Of pairs,
    # "a cat" with "a cat", "cat sat": the same. Of three and four, nothing in common.
    expected = 10 * (1 / math.sqrt(2) + 1 / math.sqrt(2) + 0 + 0) / 4
    assert Cider(FOUR).cider(["a cat"]) == pytest.approx([expected])


def test_another_length_costs():
    # Two words where the reference has three, sigma 6: times exp(-1 / 72).
    found = Cider(FOUR)
    [plain], [punished] = found.cider(["a cat"]), found.cider_d(["a cat"])
    assert punished == pytest.approx(plain * math.exp(-1 / 72))


def test_a_repeated_word_counts_no_more_often_than_the_reference_has_it():
    # "cat cat": weights 2 and 1; CIDEr's cosine is 2 / (2 sqrt 2), CIDEr-D clips 2 to 1. "cat cat"
    # as a pair is in no reference.
    found = Cider(FOUR)
    assert found.cider(["cat cat"]) == pytest.approx([10 / 4 / math.sqrt(2)])
    assert found.cider_d(["cat cat"]) == pytest.approx(
        [10 / 4 / (2 * math.sqrt(2)) * math.exp(-1 / 72)]
    )


def test_rarer_words_weigh_more():
    # Of four images two have "red" and one has "star": log 2 and log 4.
    found = Cider([["red star"], ["red"], ["x"], ["y"]])
    short, long = math.log(2), math.log(4)
    of_red = short / math.hypot(short, long)
    assert found.cider(["red"]) == pytest.approx([10 / 4 * of_red])


def test_the_references_of_an_image_are_averaged():
    both = Cider([["a cat sat", "a dog"], ["a bird"], ["a fish"], ["a cow"]])
    [of_both] = both.cider(["a dog"])
    # Equal to the second: 1 for single words and for pairs, 0 for longer ones. "a cat sat" shares
    # only "a", which weighs nothing.
    assert of_both == pytest.approx(10 * (1 + 1) / 4 / 2)


def test_the_references_text_itself_scores_ten():
    references = [["a cat sat on a mat"], ["two dogs run in the park"], ["one red star and a moon"]]
    captions = [texts[0] for texts in references]
    assert Cider(references).cider(captions) == pytest.approx([10, 10, 10])
    assert Cider(references).cider_d(captions) == pytest.approx([10, 10, 10])


def test_the_order_of_references_and_the_case_of_letters_change_nothing():
    one = Cider([["a cat sat", "the cat"], ["a dog"]]).cider_d(["A cat."])
    other = Cider([["The cat!", "a cat sat"], ["a dog"]]).cider_d(["a cat"])
    assert one == pytest.approx(other)


def test_what_has_no_words_or_none_in_common_scores_nothing():
    assert Cider(FOUR).cider_d(["", "a zebra", "a"]) == [0, 0, 0]


def test_references_are_checked():
    with pytest.raises(ValueError, match="1 images were given, 2 or more are needed"):
        Cider([["a"]])
    with pytest.raises(ValueError, match="image 1 has no reference"):
        Cider([["a"], []])
    with pytest.raises(ValueError, match="5 captions of 4 images"):
        Cider(FOUR).cider(["a"] * 5)
