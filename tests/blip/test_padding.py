"""Padding never changes an output, and what stands in it does not matter at all.

In double precision, where a difference is a leak and not rounding.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt_blip.attention import Memory
from capfilt_blip.beam import Beams, generate_beams
from capfilt_blip.decode import Generated, Limits, generate_greedy, generate_sampled
from capfilt_blip.grounding import BlipGrounding
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.sampling import Sampling
from capfilt_blip.text import TextStack
from capfilt_blip.vqa import BlipVqa

LENGTH, NUM_PADDING = 6, 5
LIMITS = Limits(min_new_tokens=2, max_new_tokens=8)


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture
def vqa(vqa: BlipVqa) -> BlipVqa:
    return vqa.double()


def texts(num_texts: int = 4, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 60, (num_texts, length))
    return ids, torch.ones_like(ids, dtype=torch.bool)


def padded(ids: Tensor, mask: Tensor, *, with_id: int = 7) -> tuple[Tensor, Tensor]:
    return F.pad(ids, (0, NUM_PADDING), value=with_id), F.pad(mask, (0, NUM_PADDING), value=False)


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["encode", "fuse", "decode"])
def test_each_mode_of_a_text_stack(vqa: BlipVqa, mode: str) -> None:
    stack: TextStack = vqa.text_encoder
    memory = [] if mode == "encode" else [stack.project_memory(double(2, 17, 64))]
    ids, mask = texts()
    alone, *others = (
        getattr(stack, mode)(*tokens, *memory)[:, :LENGTH]
        for tokens in ((ids, mask), padded(ids, mask), padded(ids, mask, with_id=0))
    )
    assert_near(others[0], alone)
    assert torch.equal(others[0], others[1])


@torch.no_grad()
def test_the_nlvr_stack(nlvr: BlipNlvr) -> None:
    stack = nlvr.double().text_encoder
    memories = stack.project_memories(double(4, 17, 64), double(4, 17, 64))
    ids, mask = texts()
    alone, *others = (
        stack.fuse(*tokens, *memories)[:, :LENGTH]
        for tokens in ((ids, mask), padded(ids, mask), padded(ids, mask, with_id=0))
    )
    assert_near(others[0], alone)
    assert torch.equal(others[0], others[1])


def three_memories(vqa: BlipVqa) -> tuple[Memory, Memory, Memory]:
    """The same questions without padding, with it, and with something else in it."""
    image_memory = vqa.text_encoder.project_memory(double(2, 17, 64))
    ids, mask = texts()
    alone, one, two = (
        vqa.read_questions(*tokens, image_memory)
        for tokens in ((ids, mask), padded(ids, mask), padded(ids, mask, with_id=0))
    )
    return alone, one, two


@torch.no_grad()
def test_the_answers_to_padded_questions(vqa: BlipVqa) -> None:
    answers, mask = texts(num_texts=8, length=4)
    alone, one, two = (vqa.lm_logits(answers, mask, m) for m in three_memories(vqa))
    assert_near(one, alone)
    assert torch.equal(one, two)


@torch.no_grad()
def test_the_steps_of_answers_to_padded_questions(vqa: BlipVqa) -> None:
    answers, mask = texts(num_texts=4, length=4)
    memories = three_memories(vqa)
    found = []
    for memory in memories:
        cache = vqa.text_decoder.new_cache(num_texts=4, num_tokens=4)
        steps = [
            vqa.text_decoder.step(answers[:, i, None], position=i, cache=cache, memory=memory)
            for i in range(4)
        ]
        found.append(torch.stack(steps, 1))
    alone, one, two = found
    assert_near(one, alone)
    assert torch.equal(one, two)
    assert_near(one, vqa.text_decoder.decode(answers, mask, memories[1]))


@torch.no_grad()
@pytest.mark.parametrize("how", ["greedy", "sampled", "beams"])
def test_the_answers_written_to_padded_questions(vqa: BlipVqa, how: str) -> None:
    alone, one, two = (written(vqa, memory, how=how) for memory in three_memories(vqa))
    assert torch.equal(one.token_ids, alone.token_ids)
    torch.testing.assert_close(one.logprobs, alone.logprobs)
    assert torch.equal(one.logprobs, two.logprobs)
    assert len(alone.token_ids.unique(dim=0)) >= 3  # the questions do make a difference


def written(vqa: BlipVqa, memory: Memory, *, how: str) -> Generated:
    prompt = [vqa.config.bos_token_id]
    if how == "greedy":
        return generate_greedy(vqa, memory, prompt_ids=prompt, limits=LIMITS)
    if how == "beams":
        return generate_beams(vqa, memory, prompt_ids=prompt, limits=LIMITS, beams=Beams())
    return generate_sampled(
        vqa, memory, prompt_ids=prompt, row_keys=range(4), limits=LIMITS, sampling=Sampling()
    )


@torch.no_grad()
def test_the_boxes_of_padded_phrases(grounding: BlipGrounding) -> None:
    model, (ids, mask) = grounding.double(), texts()
    seen, (answers, answer_mask) = model.see(double(2, 3, 32, 32)), texts(length=4)
    alone, one, two = (
        model.text_decoder.decode(answers, answer_mask, model.read_phrases(*tokens, seen))
        for tokens in ((ids, mask), padded(ids, mask), padded(ids, mask, with_id=0))
    )
    assert_near(one, alone)
    assert torch.equal(one, two)
