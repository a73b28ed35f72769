"""Texts as BLIP's models for the tasks were trained to read them: cleaned of punctuation, and cut.

The tokenizer lowers the case and sees any run of white space as one, so a text that differs from
the original's in these two alone is the same text (salesforce/BLIP: data/utils.py).
"""

from __future__ import annotations

import re

_REMOVED = re.compile(r'[.!"()*#:;~]')  # commas, hyphens, apostrophes and question marks stay

MAX_QUESTION_WORDS = 50
MAX_SENTENCE_WORDS = 40
"""Of a sentence about a pair of images (NLVR2)."""


def clean_question(text: str, *, max_words: int = MAX_QUESTION_WORDS) -> str:
    """Delete punctuation from a question, and what is beyond its first words.

    "Is it 3:30?" becomes "is it 330?".
    """
    return _first_words(_REMOVED.sub("", text.lower()), max_words=max_words)


def clean_sentence(text: str, *, max_words: int = MAX_SENTENCE_WORDS) -> str:
    """Put spaces for punctuation in a statement or caption, and delete what is beyond its words.

    "A dog; a cat." becomes "a dog a cat".
    """
    return _first_words(_REMOVED.sub(" ", text.lower()), max_words=max_words)


def _first_words(text: str, *, max_words: int) -> str:
    return " ".join(text.split()[:max_words])
