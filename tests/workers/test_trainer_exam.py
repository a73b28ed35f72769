"""Measuring on held-out pairs: when it happens, and that training does not notice it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError, ShardError
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.records import TrainStep
from capfilt.workers.trainer_batches import TRAINING_PIXELS
from capfilt.workers.trainer_exam import Exam
from capfilt.workers.trainer_pairs import TrainingSet
from capfilt_blip.tokenizer import Tokenizer
from tests.workers.test_train import PAIRS, Dying, folder_at, pair, trained

MEASURED = TrainingSet(web=PAIRS.web, human=PAIRS.human, held_out=[pair(4), pair(5)])


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    with ImageDecoder(ImageLimits(), part=TRAINING_PIXELS) as decoder:
        yield decoder


def has_recalls(row: TrainStep) -> bool:
    return row.text_recall_at_1 is not None and row.image_recall_at_1 is not None


def test_measuring_on_the_way_changes_nothing_that_is_learnt(
    models: Path, decoder: ImageDecoder
) -> None:
    rarely, often = (
        trained(models, decoder, MEASURED, held_out_every=every) for every in (None, 2)
    )
    assert (often.files, often.captions) == (rarely.files, rarely.captions)
    assert [row for row in often.steps if row in rarely.steps] == list(rarely.steps)
    assert [(row.phase, row.step) for row in often.steps if has_recalls(row)] == [
        ("pretrain", 1), ("pretrain", 3), ("pretrain", 5), ("filter", 0),
    ]  # fmt: skip
    # Rows are logged at 0, 2, 4 and the last step by themselves.
    assert [row.step for row in often.steps if row.phase == "pretrain"] == [0, 1, 2, 3, 4, 5]


def test_a_training_that_goes_on_repeats_no_measurement_and_loses_none(
    models: Path, decoder: ImageDecoder, tmp_path: Path
) -> None:
    often = {"held_out_every": 2, "checkpoint_steps": 1}
    web, human = Dying(PAIRS.web), Dying(PAIRS.human)
    web.reads_left = human.reads_left = 7
    ending = TrainingSet(web=web, human=human, held_out=MEASURED.held_out)
    with pytest.raises(ShardError, match="power"):
        trained(models, decoder, ending, progress=folder_at(tmp_path), **often)
    assert {path.parent.name for path in tmp_path.glob("*/step-*")} == {"pretrain"}
    gone_on = trained(models, decoder, MEASURED, progress=folder_at(tmp_path), **often)
    assert gone_on == trained(models, decoder, MEASURED, **often)


def test_samples_with_the_same_bytes_are_one_image_to_find(
    models: Path, decoder: ImageDecoder
) -> None:
    first = pair(4)
    again = replace(first, image=replace(first.image, key="another name"))
    exam = Exam([first, again, pair(5)], decoder, Tokenizer.from_dir(models / "captioner"))
    measured = exam.of("filter", side_px=16)
    assert measured is not None
    assert measured.pairs.image_of_text == [0, 0, 1]


def test_held_out_images_that_cannot_be_read_are_told_before_training(
    models: Path, decoder: ImageDecoder
) -> None:
    held_out = [pair(4), pair(5, b"no image")]
    unreadable = TrainingSet(web=Dying(PAIRS.web), human=Dying(PAIRS.human), held_out=held_out)
    with pytest.raises(CapfiltError, match="1 of the images set aside can be read"):
        trained(models, decoder, unreadable)
