"""Learning rates and ramps of the three phases, as BLIP's code and paper have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.config import TrainSection
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.records import TrainStep
from capfilt.workers.trainer_batches import TRAINING_PIXELS
from capfilt.workers.trainer_engines import num_ramp_steps, pretrain_schedule
from tests.workers.test_train import trained


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    with ImageDecoder(ImageLimits(), part=TRAINING_PIXELS) as decoder:
        yield decoder


def rows(models: Path, decoder: ImageDecoder, phase: str, **options: object) -> list[TrainStep]:
    result = trained(models, decoder, log_every=1, **options)
    return [row for row in result.steps if row.phase == phase]


@pytest.mark.parametrize("phase", ["captioner", "filter"])
def test_a_finetuning_falls_to_0_on_half_a_cosine(
    models: Path, decoder: ImageDecoder, phase: str
) -> None:
    found = rows(models, decoder, phase, finetune_steps=3, finetune_learning_rate=4e-6)
    assert [row.learning_rate for row in found] == pytest.approx([4e-6, 3e-6, 1e-6])


def test_step_takes_a_tenth_off_with_each_epoch_of_the_pairs(
    models: Path, decoder: ImageDecoder
) -> None:
    # Four pairs, two a step: an epoch has two steps.
    found = rows(models, decoder, "pretrain", schedule="step", learning_rate=0.1, warmup_steps=2)
    assert [row.learning_rate for row in found] == pytest.approx(
        [0.05, 0.1, 0.09, 0.09, 0.081, 0.081], rel=1e-4
    )


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_a_rate_below_blips_least_does_not_rise(schedule: str) -> None:
    options = TrainSection.model_validate({"schedule": schedule, "learning_rate": 1e-8})
    rate = pretrain_schedule(options, num_pairs=64_000)
    assert {rate(step) for step in (0, 500, 2999, 5000, 9999)} == {1e-8}


def test_the_filters_ramp_is_one_of_six_epochs() -> None:
    options = TrainSection(ramp_steps=1000, finetune_steps=3000)
    assert num_ramp_steps(options, "filter") == 500
    assert num_ramp_steps(options, "pretrain") == 1000


def test_the_ramp_of_pre_training_is_not_the_filters(models: Path, decoder: ImageDecoder) -> None:
    # The first step of a ramp has a weight of 0, so both start the filter with the same weights.
    short, long = (
        rows(models, decoder, "filter", ramp_steps=ramp_steps, pretrain_steps=1, finetune_steps=3)
        for ramp_steps in (1, 1000)
    )
    assert short == long
