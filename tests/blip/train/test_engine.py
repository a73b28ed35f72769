from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from capfilt_blip.train.batches import split
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
    training = kind(blip())
    training.step(batch(0))
    state = training.state()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    training.load_state(state)
    training.step(batch(1))
    assert all(torch.equal(state[name], copies[name]) for name in state)


def test_what_is_drawn_differs_from_step_to_step() -> None:
    flat = OptimizerSettings(learning_rate=lambda _: 0.0)
    training = captioning(blip(dropout=0.5), optimizer=flat)
    assert training.step(batch(0)).loss != training.step(batch(0)).loss


def test_a_step_leaves_torchs_generator_as_it_was() -> None:
    training = pretraining(blip())
    before = torch.get_rng_state()
    training.step(batch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_was_looked_at_in_between_trains_on_with_dropout() -> None:
    metrics = []
    for mode in (True, False):
        model = blip(dropout=0.5)
        training = pretraining(model)
        training.step(batch(0))
        model.train(mode)
        metrics.append(training.step(batch(1)))
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
    training = pretraining(blip())
    state = training.state()
    change(state)
    with pytest.raises(StateError, match=words) as refused:
        training.load_state(state)
    assert "\n" not in str(refused.value)


def test_a_refused_state_changes_nothing() -> None:
    training = captioning(blip())
    before = training.state()
    other = {name: tensor + 1 for name, tensor in before.items()} | {"extra": torch.zeros(1)}
    with pytest.raises(StateError):
        training.load_state(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.state().items())


def test_a_step_whose_loss_is_no_number_leaves_no_trace() -> None:
    model = blip()
    training, undisturbed = pretraining(model), pretraining(blip())
    first = [engine.step(batch(0)) for engine in (training, undisturbed)]
    before = training.state()
    wrong = {**before, "model.itm_head.bias": torch.full((2,), math.nan)}
    training.load_state(wrong)
    with pytest.raises(TrainingError, match="step 1: itm_loss is nan"):
        training.step(batch(1))
    after = training.state()
    assert all(torch.equal(after[name], wrong[name]) for name in wrong if "itm_head" not in name)
    with torch.no_grad():
        model.itm_head.bias.copy_(before["model.itm_head.bias"])
    assert first[0] == first[1] and training.step(batch(2)) == undisturbed.step(batch(2))
    expected = undisturbed.state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in training.state().items())


def test_vectors_that_are_no_numbers_are_an_itc_loss_that_is_none() -> None:
    model = blip()
    training = matching(model)
    with torch.no_grad():
        model.vision_proj.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 0: itc_loss is nan"):
        training.step(batch(0))


def test_a_gradient_that_is_no_number_is_said() -> None:
    model = blip()
    model.vision.norm.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"step 0: grad_norm is (nan|inf)"):
        captioning(model).step(batch(0))


def test_accumulation_gives_the_gradient_of_the_whole_batch() -> None:
    found = []
    for parts in (1, 3):
        engine = EngineSettings(accumulation_steps=parts)
        training = captioning(blip(dropout=0.0, drop_path=0.0), engine=engine)
        found.append([training.step(batch(step)) for step in range(5)])
    for whole, in_parts in zip(*found, strict=True):
        assert in_parts.loss == pytest.approx(whole.loss, abs=1e-5)
        assert in_parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
        assert in_parts.num_samples == whole.num_samples


def test_accumulation_with_a_contrast_counts_every_pair_once() -> None:
    training = pretraining(blip(), engine=EngineSettings(accumulation_steps=2))
    metrics = [training.step(batch(step)) for step in range(2)]
    state = training.state()
    assert metrics[1].num_samples == 16 and len(state["queue.image_ids"]) == 12
    assert metrics[0].itm_accuracy is not None and 0 <= metrics[0].itm_accuracy <= 1


def test_recomputed_layers_change_no_bit() -> None:
    metrics = []
    for num_layers in (0, 2):
        training = pretraining(blip(), engine=EngineSettings(recomputed_layers=num_layers))
        metrics.append([training.step(batch(step)) for step in range(3)])
    assert metrics[0] == metrics[1]


def test_bfloat16_products_come_near_those_of_float32() -> None:
    losses = []
    for autocast in ("none", "bfloat16"):
        training = pretraining(
            blip(dropout=0.0, drop_path=0.0), engine=EngineSettings(autocast=autocast)
        )
        losses.append([training.step(batch(step)).loss for step in range(3)])
        assert all(tensor.dtype != torch.bfloat16 for tensor in training.state().values())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.gpu
def test_compiled_encoders_come_near_the_plain_ones() -> None:
    losses = []
    for compiled in (False, True):
        model = blip(dropout=0.0, drop_path=0.0).cuda()
        training = pretraining(model, engine=EngineSettings(compile=compiled))
        losses.append([training.step(batch(step)).loss for step in range(3)])
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
    with pytest.raises(ValueError, match="a batch of 8 cannot be cut into 9 parts; lower"):
        split(batch(0), 9)


def test_parts_are_the_batch_in_order() -> None:
    whole = dataclasses.replace(
        batch(0), known_matches=torch.eye(8, dtype=torch.bool), distractors=[[*"abcdefgh"]]
    )
    parts = split(whole, 3)
    assert [len(part.images) for part in parts] == [2, 3, 3]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert [text for part in parts for text in part.texts] == list(whole.texts)
    assert [text for part in parts for text in part.distractors[0]] == [*"abcdefgh"]
    assert all(part.known_matches.equal(torch.eye(len(part.images)).bool()) for part in parts)  # type: ignore[union-attr]
