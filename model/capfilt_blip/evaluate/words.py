"""Words and n-grams of a text, for the measures of captions."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+(?:['-]\w+)*")

NGram = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """Split into words in lower case; what stands between them is left out.

    Published figures on COCO use the tokenizer of the Penn Treebank, which needs Java and also
    parts "man's" in two; on captions the two differ in little else.
    """
    return _WORD.findall(text.lower())


def ngrams_of(words: list[str], *, n: int) -> list[NGram]:
    """List the runs of n words, in order."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))
