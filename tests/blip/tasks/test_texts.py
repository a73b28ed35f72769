from __future__ import annotations

import pytest

from capfilt_blip.tasks.texts import clean_question, clean_sentence


# Expected values by hand from the regular expressions of salesforce/BLIP, data/utils.py.
@pytest.mark.parametrize(
    ("text", "question", "sentence"),
    [
        ("Is it 3:30?", "is it 330?", "is it 3 30?"),
        ('A "dog"; a cat.', "a dog a cat", "a dog a cat"),
        (
            "John's well-lit, red (big) hat!",
            "john's well-lit, red big hat",
            "john's well-lit, red big hat",
        ),
        ("a.b  c ", "ab c", "a b c"),
        ("#~*", "", ""),
    ],
)
def test_punctuation_goes_from_questions_and_makes_room_in_sentences(
    text: str, question: str, sentence: str
) -> None:
    assert clean_question(text) == question
    assert clean_sentence(text) == sentence


def test_fifty_words_of_a_question_and_forty_of_a_sentence_are_read() -> None:
    text = " ".join(map(str, range(60)))
    assert clean_question(text).split()[-1] == "49"
    assert clean_sentence(text).split()[-1] == "39"
