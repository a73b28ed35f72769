from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from capfilt_blip.train.errors import StateError, TrainingError
from capfilt_blip.train.optimizer import OptimizerSettings
from capfilt_blip.train.progress import load_state, save_state, state_path
from capfilt_blip.train.settings import EngineSettings
from tests.blip.train.lessons import (
    KINDS,
    Kind,
    batch,
    blip,
    captioning,
    matching,
    pretraining,
)

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


@every_kind
def test_a_training_killed_and_resumed_goes_on_to_the_last_bit(kind: Kind, tmp_path: Path) -> None:
    whole = kind(blip())
    straight = [whole.step(batch(step)) for step in range(10)]
    killed = kind(blip())
    before = [killed.step(batch(step)) for step in range(4)]
    save_state(state_path(tmp_path, step=4), killed.state(), {})
    resumed = kind(blip(seed=1))
    torch.manual_seed(99)  # what else the process draws does not matter
    resumed.load_state(load_state(state_path(tmp_path, step=4))[0])
    assert before + [resumed.step(batch(step)) for step in range(4, 10)] == straight
    ends = whole.state(), resumed.state()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert ends[0].keys() == ends[1].keys()


@every_kind
def test_a_state_is_a_copy(kind: Kind) -> None:
    session = kind(blip())
    session.step(batch(0))
    state = session.state()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    session.load_state(state)
    session.step(batch(1))
    assert all(torch.equal(state[name], copies[name]) for name in state)


def test_what_is_drawn_differs_from_step_to_step() -> None:
    flat = OptimizerSettings(learning_rate=lambda _: 0.0)
    session = captioning(blip(dropout=0.5), optimizer=flat)
    assert session.step(batch(0)).loss != session.step(batch(0)).loss


def test_a_step_leaves_torchs_generator_as_it_was() -> None:
    session = pretraining(blip())
    before = torch.get_rng_state()
    session.step(batch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_was_looked_at_in_between_trains_on_with_dropout() -> None:
    metrics = []
    for mode in (True, False):
        model = blip(dropout=0.5)
        session = pretraining(model)
        session.step(batch(0))
        model.train(mode)
        metrics.append(session.step(batch(1)))
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("model.temp"), "lacks 1: model.temp"),
        (lambda state: state.update(extra=torch.zeros(1)), "does not know 1: extra"),
        (
            lambda state: state.update({"model.temp": torch.zeros(2)}),
            r"model\.temp float32 \(2,\) for float32 \(\)",
        ),
    ],
)
def test_a_state_of_another_training_is_refused_in_one_line(change, words: str) -> None:
    session = pretraining(blip())
    state = session.state()
    change(state)
    with pytest.raises(StateError, match=words) as refused:
        session.load_state(state)
    assert "\n" not in str(refused.value)


def test_a_refused_state_changes_nothing() -> None:
    session = captioning(blip())
    before = session.state()
    other = {name: tensor + 1 for name, tensor in before.items()} | {"extra": torch.zeros(1)}
    with pytest.raises(StateError):
        session.load_state(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in session.state().items())


def test_a_loss_that_is_no_number_is_said_before_the_weights_change() -> None:
    model = blip()
    session = pretraining(model)
    session.step(batch(0))
    with torch.no_grad():
        model.itm_head.bias.fill_(math.nan)
    before = session.state()
    with pytest.raises(TrainingError, match="step 1: itm_loss is nan"):
        session.step(batch(1))
    after = session.state()
    assert all(
        torch.equal(before[name], after[name])
        for name in before
        if name.startswith(("model.", "adamw.")) and "itm_head" not in name
    )


def test_vectors_that_are_no_numbers_are_an_itc_loss_that_is_none() -> None:
    model = blip()
    session = matching(model)
    with torch.no_grad():
        model.vision_proj.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 0: itc_loss is nan"):
        session.step(batch(0))


def test_a_gradient_that_is_no_number_is_said() -> None:
    model = blip()
    model.vision.norm.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"step 0: grad_norm is (nan|inf)"):
        captioning(model).step(batch(0))


def test_accumulation_gives_the_gradient_of_the_whole_batch() -> None:
    found = []
    for parts in (1, 3):
        engine = EngineSettings(accumulation_steps=parts)
        session = captioning(blip(dropout=0.0, drop_path=0.0), engine=engine)
        found.append([session.step(batch(step)) for step in range(5)])
    for whole, in_parts in zip(*found, strict=True):
        assert in_parts.loss == pytest.approx(whole.loss, abs=1e-5)
        assert in_parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
        assert in_parts.num_samples == whole.num_samples


def test_accumulation_with_a_contrast_counts_every_pair_once() -> None:
    session = pretraining(blip(), engine=EngineSettings(accumulation_steps=2))
    metrics = [session.step(batch(step)) for step in range(2)]
    state = session.state()
    assert metrics[1].num_samples == 16 and len(state["queue.image_ids"]) == 12
    assert metrics[0].itm_accuracy is not None and 0 <= metrics[0].itm_accuracy <= 1


def test_recomputed_layers_change_no_bit() -> None:
    metrics = []
    for num_layers in (0, 2):
        session = pretraining(blip(), engine=EngineSettings(recomputed_layers=num_layers))
        metrics.append([session.step(batch(step)) for step in range(3)])
    assert metrics[0] == metrics[1]


def test_bfloat16_products_come_near_those_of_float32() -> None:
    losses = []
    for autocast in ("none", "bfloat16"):
        session = pretraining(
            blip(dropout=0.0, drop_path=0.0), engine=EngineSettings(autocast=autocast)
        )
        losses.append([session.step(batch(step)).loss for step in range(3)])
        assert all(tensor.dtype != torch.bfloat16 for tensor in session.state().values())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.gpu
def test_compiled_encoders_come_near_the_plain_ones() -> None:
    losses = []
    for compiled in (False, True):
        model = blip(dropout=0.0, drop_path=0.0).cuda()
        session = pretraining(model, engine=EngineSettings(compile=compiled))
        losses.append([session.step(batch(step)).loss for step in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_contrast_does_not_depend_on_the_texts_padding() -> None:
    """Texts are tokenised once, and padded to the longest of the batch and its distractors."""
    losses = []
    for distractor in ("red", "red green blue white small large round old"):
        model = blip(dropout=0.0, drop_path=0.0)
        short = dataclasses.replace(batch(0), distractors=[[distractor] * 8])
        losses.append(matching(model).step(short).itc_loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_more_parts_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="8 images cannot be cut into 9 parts"):
        batch(0).split(9)


def test_parts_are_the_batch_in_order() -> None:
    whole = dataclasses.replace(
        batch(0), known_matches=torch.eye(8, dtype=torch.bool), distractors=[[*"abcdefgh"]]
    )
    parts = whole.split(3)
    assert [len(part.images) for part in parts] == [2, 3, 3]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert [text for part in parts for text in part.texts] == list(whole.texts)
    assert [text for part in parts for text in part.distractors[0]] == [*"abcdefgh"]
    assert all(part.known_matches.equal(torch.eye(len(part.images)).bool()) for part in parts)  # type: ignore[union-attr]
