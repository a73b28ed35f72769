"""VQA, NLVR2 and grounding are finetuned by the engine, as the trainings of capfilt are."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from capfilt_blip.train.errors import TrainingError
from capfilt_blip.train.grounding import grounding_loss
from capfilt_blip.train.settings import EngineSettings
from tests.blip.train.task_lessons import TASKS, Task

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


@every_task
def test_a_finetuning_killed_and_resumed_goes_on_to_the_last_bit(task: Task) -> None:
    whole = task.engine(task.new_model())
    straight = [whole.step(task.batch(step)) for step in range(6)]
    killed = task.engine(task.new_model())
    before = [killed.step(task.batch(step)) for step in range(2)]
    resumed = task.engine(task.new_model(seed=1))
    torch.manual_seed(99)  # what else the process draws does not matter
    resumed.load_state(killed.state())
    assert before + [resumed.step(task.batch(step)) for step in range(2, 6)] == straight
    ends = whole.state(), resumed.state()
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@every_task
def test_accumulation_gives_the_losses_and_the_gradient_of_the_whole_batch(task: Task) -> None:
    found = []
    for num_parts in (1, 3):
        model = task.new_model(dropout=0.0, drop_path=0.0)
        engine = task.engine(model, engine=EngineSettings(accumulation_steps=num_parts))
        found.append([dataclasses.asdict(engine.step(task.batch(step))) for step in range(3)])
    for whole, in_parts in zip(*found, strict=True):
        assert in_parts.pop("grad_norm") == pytest.approx(whole.pop("grad_norm"), rel=1e-4)
        assert in_parts == pytest.approx(whole, abs=2e-5)
        assert in_parts["num_samples"] == 8 * (whole["step"] + 1)


@every_task
def test_bfloat16_products_come_near_those_of_float32(task: Task) -> None:
    losses = []
    for autocast in ("none", "bfloat16"):
        engine = task.engine(
            task.new_model(dropout=0.0, drop_path=0.0), engine=EngineSettings(autocast=autocast)
        )
        losses.append([engine.step(task.batch(step)).loss for step in range(2)])
        assert all(tensor.dtype != torch.bfloat16 for tensor in engine.state().values())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


@every_task
def test_a_loss_that_is_no_number_is_said_before_the_weights_change(task: Task) -> None:
    model = task.new_model()
    engine = task.engine(model)
    with torch.no_grad():
        model.vision.norm.bias.fill_(math.nan)
    before = engine.state()
    with pytest.raises(TrainingError, match=r"step 0: \w+ is nan"):
        engine.step(task.batch(0))
    after = engine.state()
    assert all(torch.equal(before[name], after[name]) for name in before if "norm" not in name)


@every_task
def test_what_is_drawn_is_keyed_by_the_step_and_torchs_generator_left_alone(task: Task) -> None:
    engine = task.engine(task.new_model(dropout=0.5), peak=0.0)
    before = torch.get_rng_state()
    engine.step(task.batch(0))
    assert torch.equal(before, torch.get_rng_state())
    assert engine.step(task.batch(0)).loss != engine.step(task.batch(0)).loss


@every_task
def test_recomputed_layers_change_no_bit(task: Task) -> None:
    metrics = []
    for num_layers in (0, 2):
        settings = EngineSettings(recomputed_layers=num_layers)
        engine = task.engine(task.new_model(), engine=settings)
        metrics.append([engine.step(task.batch(step)) for step in range(2)])
    assert metrics[0] == metrics[1]


@every_task
def test_a_batch_that_cannot_be_cut_is_refused(task: Task) -> None:
    engine = task.engine(task.new_model(), engine=EngineSettings(accumulation_steps=9))
    with pytest.raises(ValueError, match="a batch of 8 cannot be cut into 9 parts"):
        engine.step(task.batch(0))


def test_boxes_are_as_exact_under_autocast() -> None:
    logits = torch.randn(4, 4, 641, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.9]]).expand(4, -1)
    plain = grounding_loss(logits, boxes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert grounding_loss(logits, boxes).l1 == plain.l1
