from __future__ import annotations

import pytest

from capfilt_blip.evaluate.words import ngrams_of, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red circle, a BLUE square .", ["a", "red", "circle", "a", "blue", "square"]),
        ("the man's t-shirt - red", ["the", "man's", "t-shirt", "red"]),
        ("ein grünes Dreieck; 2 Sterne", ["ein", "grünes", "dreieck", "2", "sterne"]),
        ("...", []),
    ],
)  # fmt: skip
def test_words_are_in_lower_case_and_without_what_stands_between(text: str, words: list[str]):
    assert words_of(text) == words


def test_ngrams_are_runs_of_words():
    assert ngrams_of(["a", "b", "c"], n=2) == [("a", "b"), ("b", "c")]
    assert ngrams_of(["a"], n=2) == []
