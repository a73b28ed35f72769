"""Texts as the rows of a pass: tokenized, and padded to one of a few lengths.

A score must not depend on who else is scored, and kernels, so the last bits of a result, are chosen
by shape. So every pass has the same number of rows, and what a row is padded to is its own affair.

Letters: L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt_blip.tokenizer import Tokenizer

MAX_TEXT_TOKENS = 35
"""BLIP cuts texts to this length for matching, the first token and [SEP] included."""

TEXT_LENGTHS = (12, 16, 24, MAX_TEXT_TOKENS)
"""What texts are padded to. Captions of COCO and Flickr8k have 12 to 14 tokens; so padded they take
15 to 16 places, and 35 without the shorter lengths (`docs/performance.md`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRow:
    """A text as the model reads it."""

    ids: Tensor
    """(MAX_TEXT_TOKENS,) int64, padded."""
    num_read: int
    """Tokens that are no padding."""
    num_tokens: int
    """Tokens of the whole text, special tokens excluded."""

    @property
    def length(self) -> int:
        """What it is padded to in a pass."""
        return next(length for length in TEXT_LENGTHS if length >= self.num_read)


def text_rows(tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> list[list[TextRow]]:
    """Tokenize the texts of each image, [CLS] first."""
    flat = [text for of_image in texts for text in of_image]
    if not flat:
        return [[] for _ in texts]
    read = tokenizer.encode(flat, first="cls", max_tokens=MAX_TEXT_TOKENS, pad_to=MAX_TEXT_TOKENS)
    numbers = zip(read.ids, read.mask.sum(1).tolist(), read.num_tokens, strict=True)
    rows = (
        TextRow(ids=ids, num_read=num_read, num_tokens=num_tokens)
        for ids, num_read, num_tokens in numbers
    )
    return [[next(rows) for _ in of_image] for of_image in texts]


def steady_rows(num_rows: int) -> int:
    """The nearest number of rows, at least 2, that gives a row the same bits at each place.

    Of 5 to 7 and of 9 to 11 rows MKL gives two threads unlike parts, and rounds by part.
    """
    return max(2, num_rows) if num_rows < 4 else num_rows - num_rows % 4


def padded(
    turn: Sequence[TextRow | None], *, num_rows: int, first_id: int
) -> tuple[Tensor, Tensor]:
    """Stack the rows of a pass, all of one length.

    Args:
        turn: at most `num_rows` rows and at least one; None is a place that nobody takes.
        num_rows: rows of every pass; free places repeat a row of the turn.
        first_id: the token at position 0.

    Returns:
        (num_rows, L) int64 token ids, and (num_rows, L) bool, True where a token is real.
    """
    some = next(row for row in turn if row is not None)
    rows = [row or some for row in (*turn, *[None] * (num_rows - len(turn)))]
    ids = torch.stack([row.ids[: some.length] for row in rows])
    ids[:, 0] = first_id
    num_read = torch.tensor([row.num_read for row in rows])
    return ids, torch.arange(some.length) < num_read[:, None]
