"""The sampler inside generate(): what it leaves to choose, and what it writes down."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from capfilt.workers.keyed_sampling import KeyedSampler
from capfilt_blip.decode import Limits
from capfilt_blip.sampling import Sampling, sample

END = 0
LOGITS = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 3


def sampler(**limits: float) -> KeyedSampler:
    numbers = {"min_new_tokens": 0, "max_new_tokens": 9, "repetition_penalty": 1.0} | limits
    return KeyedSampler(
        [11, 22, 33], end_ids=[END], limits=Limits(**numbers),  # type: ignore[arg-type]
        sampling=Sampling(top_p=0.9), device=torch.device("cpu"),
    )  # fmt: skip


def sure_of(*tokens: int) -> Tensor:
    """Logits of a model that is sure of a token in each row."""
    return torch.zeros(len(tokens), 5).scatter_(1, torch.tensor(tokens)[:, None], 100.0)


def nothing_seen(rows: int) -> Tensor:
    return torch.zeros(rows, 0, dtype=torch.int64)


def test_the_token_left_is_the_one_that_key_and_step_draw() -> None:
    writer, keys = sampler(), torch.tensor([11, 22, 33])
    for step in range(3):
        left = writer(nothing_seen(3), LOGITS)
        drawn = sample(LOGITS, row_keys=keys, step=step, sampling=Sampling(top_p=0.9))
        assert left.argmax(-1).tolist() == drawn.tolist()
        assert left.isfinite().sum(-1).tolist() == [1, 1, 1]


def test_a_text_ends_with_its_end_token_and_so_does_its_log_probability() -> None:
    writer = sampler()
    for logits in (sure_of(1, 2, END), sure_of(3, END, 4), sure_of(END, 4, 4)):
        writer(nothing_seen(3), logits)
    found = writer.drawn()
    assert found.token_ids == [[1, 3, END], [2, END], [END]]
    one_token = -math.log1p(4 * math.exp(-100))
    assert found.logprobs == pytest.approx([n * one_token for n in (3, 2, 1)], rel=1e-5)


def test_no_text_ends_before_it_is_long_enough() -> None:
    writer = sampler(min_new_tokens=2)
    for _ in range(3):
        writer(nothing_seen(1), sure_of(END, END, END))
    assert [END not in row[:2] and row[2] == END for row in writer.drawn().token_ids] == [True] * 3


def test_a_penalty_weakens_what_was_said_and_not_the_log_probability() -> None:
    logits = torch.tensor([[0.0, 8.0, 7.0, -9.0, -9.0]]).repeat(3, 1)
    writer = sampler(repetition_penalty=100.0)
    left = writer(torch.tensor([[1]] * 3), logits)
    assert left.argmax(-1).tolist() == [2, 2, 2]
    expected = float(logits[0].log_softmax(-1)[2])
    assert writer.drawn().logprobs == pytest.approx([expected] * 3, rel=1e-5)


def test_a_token_the_model_can_read_but_not_write_is_no_trouble() -> None:
    left = sampler(repetition_penalty=2.0)(torch.tensor([[7]] * 3), sure_of(1, 2, 3))
    assert left.argmax(-1).tolist() == [1, 2, 3]
