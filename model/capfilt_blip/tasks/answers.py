"""Answers to questions about anything that is encoded as images are: the parts of the answerer.

`Answerer` does it for images. A memory of several frames, side by side, makes it video QA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from capfilt_blip.attention import Memory
from capfilt_blip.beam import Beams, generate_beams
from capfilt_blip.choosing import Candidates, Ranking, best_answers, rank_answers
from capfilt_blip.decode import Limits
from capfilt_blip.tasks.texts import clean_question
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.vqa import BlipVqa

MAX_QUESTION_TOKENS = 35
"""BLIP cuts questions to this length, [ENC] and [SEP] included."""

ORIGINAL_LIMITS = Limits(min_new_tokens=0, max_new_tokens=9)
"""The original's max_length=10 and min_length=1 count [DEC], which is no new token: so an answer
has nine tokens at most, [SEP] included, and may be empty (salesforce/BLIP: models/blip_vqa.py)."""

ORIGINAL_BEAMS = Beams(num_beams=3)

ORIGINAL_NUM_FIRST = 128
"""k_test of the original's configs/vqa.yaml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A written answer."""

    text: str
    logprob: float
    """Log-probability of the answer under the model, [SEP] included: a sum over tokens."""
    num_tokens: int
    """Tokens written, [SEP] included; equal to max_new_tokens where the text may be cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenAnswer:
    """An answer from a list."""

    index: int
    """Its place in the list."""
    text: str
    logprob: float
    """Log-probability of the answer under the model, [SEP] included: a sum over tokens."""


@torch.inference_mode()
def read_questions(
    model: BlipVqa, tokenizer: Tokenizer, questions: Sequence[str], *, image_memory: Memory
) -> Memory:
    """Clean, tokenize and understand questions.

    They are padded to MAX_QUESTION_TOKENS, and the answer decoder does not see the padding. (In the
    original it does when it writes answers, so that an answer depends on the other questions.)

    Args:
        model: in eval mode.
        tokenizer: the model's.
        questions: one or more about each memory; those about one memory follow each other.
        image_memory: of I images, or of as many sets of frames: of `project_memory` of the model's
            `text_encoder`, whatever number of tokens each has.

    Returns:
        One memory for each question, for `write_answers` and `choose_answers`.
    """
    batch = tokenizer.encode(
        [clean_question(question) for question in questions],
        first="enc",
        max_tokens=MAX_QUESTION_TOKENS,
        pad_to=MAX_QUESTION_TOKENS,
    )
    device = image_memory.device
    return model.read_questions(batch.ids.to(device), batch.mask.to(device), image_memory)


def write_answers(
    model: BlipVqa,
    tokenizer: Tokenizer,
    memory: Memory,
    *,
    limits: Limits = ORIGINAL_LIMITS,
    beams: Beams = ORIGINAL_BEAMS,
) -> list[Answer]:
    """Write the answers to questions that have been read; see `Answerer.answer`.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        memory: of `read_questions`.
        limits: on the answers.
        beams: the search.

    Returns:
        One per question, in order.
    """
    generated = generate_beams(
        model, memory, prompt_ids=tokenizer.prompt_ids(""), limits=limits, beams=beams
    )
    rows = zip(generated.token_ids, generated.num_tokens, generated.logprobs, strict=True)
    return [
        Answer(
            text=tokenizer.decode(ids[:count]).strip(),
            logprob=float(logprob),
            num_tokens=int(count),
        )
        for ids, count, logprob in rows
    ]


def choose_answers(
    model: BlipVqa,
    memory: Memory,
    *,
    candidates: Candidates,
    num_first: int = ORIGINAL_NUM_FIRST,
) -> list[ChosenAnswer]:
    """Choose the answers to questions that have been read; see `Answerer.rank`.

    Args:
        model: in eval mode.
        memory: of `read_questions`.
        candidates: answers to choose from.
        num_first: candidates that come into question, those with the likeliest first tokens.

    Returns:
        One per question, in order.
    """
    ranking = best_answers(model, memory, candidates, num_first=num_first)
    return [row[0] for row in _chosen(ranking, candidates)]


def score_answers(
    model: BlipVqa,
    memory: Memory,
    *,
    candidates: Candidates,
    num_first: int = ORIGINAL_NUM_FIRST,
) -> list[list[ChosenAnswer]]:
    """Score all that `choose_answers` chooses from, with its arguments.

    Returns:
        For each question `num_first` candidates, or all if there are fewer, best first.
    """
    return _chosen(rank_answers(model, memory, candidates, num_first=num_first), candidates)


def _chosen(ranking: Ranking, candidates: Candidates) -> list[list[ChosenAnswer]]:
    return [
        [
            ChosenAnswer(index=index, text=candidates.texts[index], logprob=logprob)
            for index, logprob in zip(*row, strict=True)
        ]
        for row in zip(ranking.index.tolist(), ranking.logprobs.tolist(), strict=True)
    ]
