from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from capfilt.batch_size import Budget
from capfilt.workers.caption import load_captioner
from capfilt.workers.memory import MachineMemory
from capfilt.workers.probe import Measured, ProbeWorker, TryBatch, caption_batches, score_batches
from capfilt.workers.protocols import ImageArray, ImageCaptioner, Sampling
from capfilt.workers.score import load_scorer
from capfilt_blip.tasks.captioner import Caption

GIB = 2**30
SAMPLING = Sampling(
    num_captions=2, prompt=None, top_p=0.9, top_k=0, temperature=1.0,
    repetition_penalty=1.0, min_new_tokens=1, max_new_tokens=6, batch_images=3, seed=0, round=0,
)  # fmt: skip


class CountedMemory:
    """A memory of 1 GiB of model and what batches say they fill."""

    def __init__(self) -> None:
        self.peak = GIB

    def available_bytes(self) -> int:
        return 10 * GIB

    def filled_bytes(self) -> int:
        return GIB

    def restart(self) -> None:
        self.peak = GIB

    def peak_bytes(self) -> int:
        return self.peak


def measured(try_batch: TryBatch, memory: CountedMemory, *, share: float = 1.0) -> Measured:
    budget = Budget(available_bytes=memory.available_bytes(), share=share, workers=1)
    [found] = ProbeWorker(try_batch, memory, budget)(["caption"])
    return found


def filling(memory: CountedMemory, *, per_image_gib: float) -> TryBatch:
    def try_batch(size: int) -> None:
        memory.peak = int(GIB * (1 + per_image_gib * size))

    return try_batch


def test_each_size_is_measured_with_its_own_peak():
    memory = CountedMemory()
    found = measured(filling(memory, per_image_gib=0.5), memory, share=0.5)
    # 4 images take 3 GiB of 5, and so 8 would take 5: that is tried; 16 would take 9.
    assert [(t.batch_images, t.memory_bytes) for t in found.trials] == [
        (2, 2 * GIB), (4, 3 * GIB), (8, 5 * GIB),
    ]  # fmt: skip
    assert found.ended == "16 would be over the memory budget"


def test_memory_that_runs_out_ends_the_probe_and_is_in_its_table():
    memory = CountedMemory()

    def try_batch(size: int) -> None:
        if size == 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    found = measured(try_batch, memory)
    assert [(t.batch_images, t.memory_bytes) for t in found.trials] == [(2, GIB), (4, None)]
    assert found.ended == "memory ran out at 4"


def test_any_other_error_is_not_taken_for_a_want_of_memory():
    def try_batch(size: int) -> None:
        raise RuntimeError("the model is broken")

    with pytest.raises(RuntimeError, match="is broken"):
        measured(try_batch, CountedMemory())


class ListeningCaptioner:
    """Passes on to a captioner, and remembers what it was asked."""

    def __init__(self, captioner: ImageCaptioner) -> None:
        self._captioner = captioner
        self.image_size_px = captioner.image_size_px
        self.fit = captioner.fit
        self.lengths: list[int] = []
        self.shapes: list[tuple[int, ...]] = []

    def caption(
        self, images: ImageArray, *, keys: Sequence[str], sampling: Sampling
    ) -> Sequence[Sequence[Caption]]:
        assert sampling.batch_images == len(images)
        captions = self._captioner.caption(images, keys=keys, sampling=sampling)
        self.shapes.append(images.shape)
        self.lengths += [caption.num_tokens for of_image in captions for caption in of_image]
        return captions

    def flops(self, captions: Sequence[Sequence[Caption]], *, sampling: Sampling) -> None:
        raise AssertionError("never asked for")


def test_captions_of_the_probe_are_as_many_and_as_long_as_they_may_be(models: Path):
    captioner = ListeningCaptioner(
        load_captioner(
            models / "captioner", device="cpu", dtype="float32", num_threads=1,
            image_size_px=None, sampling=SAMPLING,
        )
    )  # fmt: skip
    caption_batches(captioner, SAMPLING)(5)
    assert captioner.shapes == [(5, 32, 32, 3)]
    assert captioner.lengths == [6] * 10


def test_a_real_model_is_measured_on_this_machine(models: Path):
    scorer = load_scorer(models / "filter", device="cpu", dtype="float32", num_threads=1)
    memory = MachineMemory()
    budget = Budget(available_bytes=memory.available_bytes(), share=0.8, workers=1)
    try_batch = score_batches(scorer, num_texts=3)
    [found] = ProbeWorker(lambda size: try_batch(min(size, 8)), memory, budget)(["score"])
    assert found.trials[0].batch_images == 2
    assert all(t.images_per_s > 0 and (t.memory_bytes or 0) > 10**7 for t in found.trials)
