from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from capfilt_blip import task_losses
from capfilt_blip.config import BlipConfig
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.vqa import BlipVqa

QUESTIONS = ["what colour is it", "how many are there"]
ANSWERS = [["red", "red", "dark red"], ["two"]]


def vqa_batch_loss(model: BlipVqa, tokenizer: Tokenizer, pixels: Tensor) -> Tensor:
    """The loss of two questions, each about its own image, with two answers and one."""
    weighted = [task_losses.distinct_answers(answers) for answers in ANSWERS]
    asked = tokenizer.encode(QUESTIONS, first="enc", max_tokens=35)
    said = tokenizer.encode([a for row in weighted for a in row], first="dec", max_tokens=35)
    memory = model.text_encoder.project_memory(model.vision(pixels))
    read = model.read_questions(asked.ids, asked.mask, memory)
    owners = torch.tensor([q for q, row in enumerate(weighted) for _ in row])
    return task_losses.vqa_loss(
        model.lm_logits(said.ids, said.mask, read.rows(owners)),
        said.ids,
        said.mask,
        weights=torch.tensor([weight for row in weighted for weight in row.values()]),
        num_questions=2,
    )


def nlvr_batch_loss(model: BlipNlvr, tokenizer: Tokenizer, pixels: Tensor) -> Tensor:
    """The loss of two pairs, the same images the other way round: one sentence, true and false."""
    said = tokenizer.encode(["a red circle left"] * 2, first="enc", max_tokens=35)
    logits = model(pixels, pixels.flip(0), said.ids, said.mask)
    return task_losses.nlvr_loss(logits, torch.tensor([True, False]))


def learn(model: nn.Module, loss_of: Callable[[], Tensor], *, num_steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss_of().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_answers_weigh_what_their_share_is() -> None:
    assert task_losses.distinct_answers(["b", "a", "b", "b"]) == {"b": 0.75, "a": 0.25}
    assert list(task_losses.distinct_answers(["b", "a", "b", "b"])) == ["b", "a"]


def test_vqa_loss_is_that_of_a_slow_version() -> None:
    ids = torch.tensor([[9, 5, 3, 0], [9, 5, 6, 3], [9, 3, 0, 0]])
    logits, weights = torch.randn(3, 4, 10), torch.tensor([0.3, 0.7, 1.0])
    total = 0.0
    for answer in range(3):
        for place in range(3):
            target = int(ids[answer, place + 1])
            if target == 0:
                continue
            log_probs = logits[answer, place].log_softmax(0)
            smoothed = 0.9 * log_probs[target] + 0.1 * log_probs.mean()
            total -= float(weights[answer] * smoothed)
    found = task_losses.vqa_loss(logits, ids, ids != 0, weights=weights, num_questions=2)
    assert found.item() == pytest.approx(total / 2, rel=1e-5)


def test_vqa_loss_learns_no_padding() -> None:
    ids, logits = torch.tensor([[9, 5, 3, 0]]), torch.randn(1, 4, 10)
    other = logits.clone()
    other[:, 2:] += torch.randn(1, 2, 10)
    losses = [
        task_losses.vqa_loss(each, ids, ids != 0, weights=torch.ones(1), num_questions=1)
        for each in (logits, other)
    ]
    assert losses[0] == losses[1]


def test_nlvr_loss_is_the_mean_surprise_at_the_truth() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    probabilities = logits.softmax(1)
    expected = -(probabilities[0, 1].log() + probabilities[1, 0].log() + probabilities[2, 1].log())
    found = task_losses.nlvr_loss(logits, torch.tensor([True, False, True]))
    assert found.item() == pytest.approx(expected.item() / 3, rel=1e-5)


@pytest.mark.parametrize("task", ["vqa", "nlvr"])
def test_gradients_reach_every_weight(
    task: str, vqa: BlipVqa, nlvr: BlipNlvr, tokenizer: Tokenizer
) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    if task == "vqa":
        vqa_batch_loss(vqa, tokenizer, pixels).backward()  # type: ignore[no-untyped-call]
    else:
        nlvr_batch_loss(nlvr, tokenizer, pixels).backward()  # type: ignore[no-untyped-call]
    model = vqa if task == "vqa" else nlvr
    missed = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missed == []


@pytest.mark.slow
def test_a_vqa_model_learns_a_batch_by_heart(config: BlipConfig, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model, pixels = BlipVqa(without_dropout(config)), torch.randn(2, 3, 32, 32)
    learn(model, lambda: vqa_batch_loss(model, tokenizer, pixels), num_steps=100)
    asked = tokenizer.encode(QUESTIONS, first="enc", max_tokens=35)
    read = model.read_questions(
        asked.ids, asked.mask, model.text_encoder.project_memory(model.vision(pixels))
    )
    start = torch.full((2, 1), tokenizer.dec_id)
    first = model.lm_logits(start, torch.ones_like(start, dtype=torch.bool), read)[:, 0].softmax(-1)
    red, two, dark = (tokenizer.prompt_ids(word)[1] for word in ("red", "two", "dark red"))
    assert first[0, red] > 0.5 > first[0, dark] > 0.2  # two of three people said "red"
    assert first[1, two] > 0.8


@pytest.mark.slow
def test_an_nlvr_model_learns_which_image_is_left(config: BlipConfig, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model, pixels = BlipNlvr(without_dropout(config)), torch.randn(2, 3, 32, 32)
    learn(model, lambda: nlvr_batch_loss(model, tokenizer, pixels), num_steps=60)
    assert nlvr_batch_loss(model, tokenizer, pixels) < 0.05


def without_dropout(config: BlipConfig) -> BlipConfig:
    return dataclasses.replace(config, text=dataclasses.replace(config.text, dropout=0.0))
