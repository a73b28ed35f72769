"""Whole steps of pre-training against `plain_steps`: queue, momentum and soft targets included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from capfilt_blip.blip import Blip
from capfilt_blip.train.batches import TextImageBatch, ids_of
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.draws import key_of, uniform_draws
from capfilt_blip.train.engine import TextImageEngine
from capfilt_blip.train.settings import StepMetrics
from tests.blip.train.lessons import TOKENIZER, adam, blip, pretraining
from tests.blip.train.plain_steps import PlainSteps, Row, Seen, Step

# Image and text of each row. Within a batch and over batches, images come again with another text
# and texts with another image.
BATCHES = [
    [(0, "red"), (1, "green"), (0, "old blue"), (2, "green")],
    [(3, "red"), (0, "white"), (4, "old"), (4, "small round")],
    [(5, "green"), (2, "large"), (3, "old blue"), (6, "red")],
    [(4, "white"), (7, "round"), (5, "red"), (6, "round")],
    [(6, "large"), (0, "green"), (7, "red"), (1, "small")],
]
CONTRAST = ContrastSettings(momentum=0.8, queue_size=6, soft_weight=0.4, num_ramp_steps=2)
SOFT_WEIGHTS = [0.0, 0.2, 0.4, 0.4, 0.4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """What a step did, written out and in the engine."""

    plain: Step
    plain_slow: dict[str, Tensor]
    plain_queue: list[Seen]
    metrics: StepMetrics
    gradients: dict[str, Tensor | None]
    state: dict[str, Tensor]


@pytest.fixture(scope="module")
def steps() -> list[Both]:
    model = blip(dropout=0.0, drop_path=0.0)
    training = pretraining(model, contrast=CONTRAST, optimizer=adam(peak=5e-3))
    plain = PlainSteps(
        model, tokenizer=TOKENIZER, momentum=0.8, queue_size=6, soft_weights=SOFT_WEIGHTS
    )
    return [one_step(model, training, plain, step=step) for step in range(len(BATCHES))]


def one_step(model: Blip, training: TextImageEngine, plain: PlainSteps, *, step: int) -> Both:
    rows = rows_of(step)
    draws = uniform_draws(key_of("negatives", 0, step, 0), num_draws=len(rows))
    found = plain.look(rows, step=step, draws=draws)
    metrics = training.step(batch_of(rows))
    plain.follow()
    return Both(
        plain=found,
        plain_slow={name: w.detach().clone() for name, w in plain.slow.named_parameters()},
        plain_queue=plain.queue,
        metrics=metrics,
        gradients={name: weight.grad for name, weight in model.named_parameters()},
        state=training.state(),
    )


def batch_of(rows: Sequence[Row]) -> TextImageBatch:
    return TextImageBatch(
        images=torch.stack([row.image for row in rows]),
        texts=[row.text for row in rows],
        image_ids=[row.image_id for row in rows],
    )


def rows_of(step: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return [Row(image=images[i], image_id=f"image {i}", text=text) for i, text in BATCHES[step]]


def test_the_losses_are_those_written_out(steps: list[Both]) -> None:
    for both in steps:
        plain = (both.plain.itc.item(), both.plain.itm.item(), both.plain.lm.item())
        found = (both.metrics.itc_loss, both.metrics.itm_loss, both.metrics.lm_loss)
        assert found == pytest.approx(plain, rel=1e-5), both.metrics.step


def test_the_gradients_are_those_written_out(steps: list[Both]) -> None:
    for both in steps:
        assert both.gradients.keys() == both.plain.gradients.keys()
        for name, expected in both.plain.gradients.items():
            torch.testing.assert_close(both.gradients[name], expected, rtol=1e-3, atol=1e-5)


def test_the_slow_weights_are_those_written_out(steps: list[Both]) -> None:
    for both in steps:
        for name, expected in both.plain_slow.items():
            torch.testing.assert_close(both.state[f"slow.{name}"], expected, rtol=0, atol=1e-6)


def test_the_queue_is_that_written_out(steps: list[Both]) -> None:
    assert [len(both.plain_queue) for both in steps] == [4, 6, 6, 6, 6]
    for both in steps:
        queue, state = both.plain_queue, both.state
        images = torch.stack([seen.image for seen in queue])
        texts = torch.stack([seen.text for seen in queue])
        torch.testing.assert_close(state["queue.image_vectors"], images, rtol=0, atol=1e-5)
        torch.testing.assert_close(state["queue.text_vectors"], texts, rtol=0, atol=1e-5)
        device = images.device
        image_ids = ids_of([seen.image_id for seen in queue], device=device)
        assert torch.equal(state["queue.image_ids"], image_ids)
        text_ids = ids_of([seen.words for seen in queue], device=device)
        assert torch.equal(state["queue.text_ids"], text_ids)
