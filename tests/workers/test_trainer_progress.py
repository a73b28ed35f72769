"""The records of a training: what is saved comes back, and damage costs one record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from capfilt.io.storage import Store
from capfilt.records import HeldOutCaption, TrainStep
from capfilt.workers.trainer_progress import Notes, Progress, ProgressFolder

STEP = TrainStep(
    phase="pretrain", step=3, loss=0.1, itc_loss=None, itm_loss=0.3, lm_loss=None,
    itm_accuracy=1 / 3, learning_rate=1e-4, num_samples=8,
)  # fmt: skip
CAPTION = HeldOutCaption(phase="pretrain", caption="a cat", human_texts=("one cat", "a pet"))
NOTES = Notes(num_samples=8, steps=(STEP,), captions=(CAPTION,))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store.at_url(str(tmp_path / "run")).child("_progress")
        return
    yield Store.at_url("memory://progress-tests/run").child("_progress")
    fsspec.filesystem("memory").rm("/", recursive=True)


def record(number: int) -> Progress:
    return Progress(notes=NOTES, tensors={"a": torch.tensor([number]), "b": torch.tensor(0.1)})


def saved(store: Store, *steps: int, num_kept: int = 2) -> ProgressFolder:
    folder = ProgressFolder(store, num_kept=num_kept)
    for step in steps:
        folder.save("pretrain", record(step), step=step)
    return folder


def test_a_record_comes_back_as_it_was(store: Store) -> None:
    found = saved(store, 4).newest("pretrain")
    assert found is not None
    assert found.notes == NOTES
    assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {
        "a": [4], "b": pytest.approx(0.1)
    }  # fmt: skip


def test_the_newest_record_of_a_phase_is_found_and_the_last_ones_are_kept(store: Store) -> None:
    folder = saved(store, 9, 10, 100)
    found = folder.newest("pretrain")
    assert found is not None
    assert found.tensors["a"].item() == 100
    assert len(store.names("pretrain")) == 2
    assert folder.newest("captioner") is None


@pytest.mark.parametrize("kept", [0, -1])
def test_a_damaged_record_is_passed_over(store: Store, kept: int) -> None:
    folder = saved(store, 1, 2)
    path = f"pretrain/{store.names('pretrain')[-1]}"
    payload = store.read(path)
    store.put(path, payload[:-1] + bytes([payload[-1] ^ 1]) if kept else b"")
    found = folder.newest("pretrain")
    assert found is not None
    assert found.tensors["a"].item() == 1


def test_a_record_that_was_damaged_is_written_again(store: Store) -> None:
    folder = saved(store, 1, 2)
    store.put(f"pretrain/{store.names('pretrain')[-1]}", b"")
    folder.save("pretrain", record(3), step=2)
    found = folder.newest("pretrain")
    assert found is not None
    assert found.tensors["a"].item() == 3


def test_nothing_is_left_of_a_training_that_is_over(store: Store) -> None:
    folder = saved(store, 1, 2)
    folder.note_lost("filter", {"a": "image_unreadable"}, name="8-0")
    folder.clear()
    folder.clear()
    assert folder.newest("pretrain") is None
    assert store.names() == []
    place = store.local_path()
    assert place is None or not place.exists()


def test_a_pair_that_could_not_be_read_is_noted_once_whoever_meets_it(store: Store) -> None:
    folder = saved(store)
    folder.note_lost("pretrain", {"a": "image_unreadable"}, name="000-0")
    folder.note_lost("pretrain", {"b": "decode_timeout"}, name="000-1")
    folder.note_lost("captioner", {"a": "image_unreadable"}, name="000-0")
    assert folder.lost() == {"a": "image_unreadable", "b": "decode_timeout"}


def test_the_record_of_a_step_is_found_unless_it_is_damaged(store: Store) -> None:
    folder = saved(store, 9, 10)
    found = folder.of_step("pretrain", step=9)
    assert found is not None
    assert (found.notes, found.tensors["a"].item()) == (NOTES, 9)
    assert folder.of_step("pretrain", step=8) is None
    store.child("pretrain").put("step-00000010.safetensors", b"torn")
    assert folder.of_step("pretrain", step=10) is None
