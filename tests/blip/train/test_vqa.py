from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from capfilt_blip.tasks.answerer import Answerer
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.optimizer import CosineSchedule, OptimizerSettings
from capfilt_blip.train.recipes import VQA, EpochCosine
from capfilt_blip.train.vqa import (
    VqaBatch,
    VqaMetrics,
    VqaSettings,
    batch_losses,
    vqa_finetuning,
    would_be_written,
)
from capfilt_blip.transforms import normalise
from capfilt_blip.vqa import BlipVqa

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 60, 220)}


def batch() -> VqaBatch:
    """Three images in one colour each, with two questions each and one to three answers."""
    images, questions, answers = [], [], list[dict[str, float]]()
    for number, (name, colour) in enumerate(COLOURS.items()):
        images += [np.full((32, 32, 3), colour, dtype=np.uint8)] * 2
        questions += ["What (colour) is it?", "is it red"]
        answers += [
            {name: 0.7, f"a {name} square": 0.2, "yellow": 0.1},
            {"yes" if number == 0 else "no": 1.0},
        ]
    return VqaBatch(images=torch.from_numpy(np.stack(images)), questions=questions, answers=answers)


def settings(*, peak: float = 1e-4, num_steps: int = 10) -> VqaSettings:
    schedule = CosineSchedule(peak=peak, num_steps=num_steps, num_warmup_steps=5)
    return VqaSettings(optimizer=OptimizerSettings(learning_rate=schedule, max_grad_norm=1.0))


def run(
    model: BlipVqa, tokenizer: Tokenizer, batches: Sequence[VqaBatch], *, peak: float = 1e-4
) -> Iterator[VqaMetrics]:
    chosen = settings(peak=peak, num_steps=len(batches))
    return vqa_finetuning(model, tokenizer=tokenizer, settings=chosen).run(batches)


def without_dropout(model: BlipVqa) -> BlipVqa:
    text = dataclasses.replace(model.config.text, dropout=0.0)
    plain = BlipVqa(dataclasses.replace(model.config, text=text))
    plain.load_state_dict(model.state_dict())
    return plain


def surprise(model: BlipVqa, tokenizer: Tokenizer, image: Tensor, asked: str, said: str) -> Tensor:
    """Minus the smoothed log-probability of one answer to one question, token by token."""
    question = tokenizer.encode([asked], first="enc", max_tokens=35)
    answer = tokenizer.encode([said], first="dec", max_tokens=35)
    seen = model.text_encoder.project_memory(model.vision(normalise(image[None])))
    memory = model.read_questions(question.ids, question.mask, seen)
    log_probs = model.lm_logits(answer.ids, answer.mask, memory).log_softmax(-1)[0]
    total = torch.zeros(())
    for place, token in enumerate(answer.ids[0, 1:].tolist()):
        total -= 0.9 * log_probs[place, token] + 0.1 * log_probs[place].mean()
    return total


@torch.no_grad()
def test_the_loss_is_that_of_each_answer_alone(vqa: BlipVqa, tokenizer: Tokenizer) -> None:
    now, total = batch(), torch.zeros(())
    cleaned = {"What (colour) is it?": "what colour is it?", "is it red": "is it red"}
    for image, question, answers in zip(now.images, now.questions, now.answers, strict=True):
        for answer, weight in answers.items():
            total += weight * surprise(vqa, tokenizer, image, cleaned[question], answer)
    found = batch_losses(vqa, now, tokenizer=tokenizer, settings=settings())
    assert found.total.item() == pytest.approx(total.item() / 6, rel=1e-4)


def test_a_gradient_reaches_every_weight(vqa: BlipVqa, tokenizer: Tokenizer) -> None:
    found = batch_losses(vqa, batch(), tokenizer=tokenizer, settings=settings())
    found.total.backward()  # type: ignore[no-untyped-call]
    idle = {name for name, p in vqa.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == set()


def test_the_loss_reported_is_that_of_the_batch(vqa: BlipVqa, tokenizer: Tokenizer) -> None:
    model = without_dropout(vqa)
    expected = batch_losses(model, batch(), tokenizer=tokenizer, settings=settings())
    [row] = run(model, tokenizer, [batch()])
    assert row.loss == pytest.approx(expected.total.item(), rel=1e-6)
    assert row.agreement == expected.told["agreement"]


def test_the_same_batches_give_the_same_weights(vqa: BlipVqa, tokenizer: Tokenizer) -> None:
    start = {name: weight.clone() for name, weight in vqa.state_dict().items()}
    first = list(run(vqa, tokenizer, [batch()] * 3))
    weights = {name: weight.clone() for name, weight in vqa.state_dict().items()}
    vqa.load_state_dict(start)
    torch.manual_seed(7)
    assert list(run(vqa, tokenizer, [batch()] * 3)) == first
    assert all(torch.equal(weights[name], weight) for name, weight in vqa.state_dict().items())


def test_each_step_tells_what_it_did(vqa: BlipVqa, tokenizer: Tokenizer) -> None:
    metrics = list(run(vqa, tokenizer, [batch()] * 3))
    assert [row.step for row in metrics] == [0, 1, 2]
    assert [row.num_samples for row in metrics] == [6, 12, 18]
    assert all(row.grad_norm > 0 and 0 <= row.agreement <= 1 for row in metrics)
    assert not vqa.training


def test_an_answer_is_written_if_each_of_its_tokens_is_the_likeliest() -> None:
    ids = torch.tensor([[9, 5, 3, 0], [9, 5, 6, 3], [9, 7, 3, 0]])
    logits = torch.zeros(3, 4, 10)
    for place, token in enumerate([5, 3, 8]):  # the same for all; what follows [SEP] = 3 is idle
        logits[:, place, token] = 1.0
    assert would_be_written(logits, ids, ids != 0).tolist() == [True, False, False]


def test_a_question_without_an_answer_is_refused() -> None:
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="the question 'why' has no answer to be learnt"):
        VqaBatch(images=images, questions=["why"], answers=[{}])


def test_images_questions_and_answers_must_be_as_many() -> None:
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="2 images came with 1 questions and 2 sets of answers"):
        VqaBatch(images=images, questions=["why"], answers=[{"so": 1.0}] * 2)


def test_the_rate_of_the_recipe_goes_down_in_stairs() -> None:
    optimizer = VQA.optimizer(num_samples=3 * 256 + 5)
    rates = [optimizer.learning_rate(step) for step in range(30)]
    assert rates[:3] == [2e-5] * 3 and rates[3] == rates[5] < 2e-5
    # Half a cosine over ten epochs: half of the peak after five.
    assert rates[15] == pytest.approx(1e-5) and rates[29] == rates[27] > 0
    assert EpochCosine(peak=1.0, steps_per_epoch=1, num_epochs=2)(9) == pytest.approx(0)
    assert optimizer.weight_decay == 0.05


@pytest.mark.slow
def test_a_small_set_is_learnt_by_heart(vqa: BlipVqa, tokenizer: Tokenizer) -> None:
    model = without_dropout(vqa)
    for weight in (weight for weight in model.parameters() if weight.ndim > 1):
        torch.nn.init.normal_(weight, std=0.1)
    rows = list(run(model, tokenizer, [batch()] * 80, peak=3e-3))
    found = Answerer(model, tokenizer).answer(batch().images, [[q] for q in batch().questions])
    likeliest = [max(answers, key=answers.__getitem__) for answers in batch().answers]
    assert [answer.text for [answer] in found] == likeliest
    # Three questions have an answer with a weight of 0.7, and three one of 1.
    assert rows[-1].agreement == pytest.approx((3 * 0.7 + 3 * 1.0) / 6)
