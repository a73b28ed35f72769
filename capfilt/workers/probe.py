"""The probe's worker: a model's speed and memory, at one batch size after another.

Pixels are noise and texts are as long as the model reads, so a batch costs what the costliest real
one does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from capfilt.batch_size import FIRST_SIZE, Budget, Trial, why_stop
from capfilt.suspects import ran_out_of_memory
from capfilt.workers.memory import WorkerMemory
from capfilt.workers.protocols import ImageArray, ImageCaptioner, Sampling, TextScorer

LONG_TEXT = "a small red circle to the left of a large blue square " * 12
"""More tokens than any filter reads."""

ENOUGH_S = 0.5
MOST_RUNS = 10
"""A size is run again until this much time or this many runs are measured; the fastest counts."""

TryBatch = Callable[[int], None]
"""Works on one batch of so many images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a probe found."""

    budget: Budget
    trials: tuple[Trial, ...]
    ended: str  # why no larger size was tried


class ProbeWorker:
    """Tries batch sizes until a larger one is not worth it.

    Args:
        try_batch: the model at work.
        memory: that it fills.
        budget: that it should stay in.
    """

    def __init__(self, try_batch: TryBatch, memory: WorkerMemory, budget: Budget) -> None:
        self._try_batch = try_batch
        self._memory = memory
        self._budget = budget

    def __call__(self, inputs: Sequence[str]) -> list[Measured]:
        """One table of trials per input."""
        return [self._measure() for _ in inputs]

    def close(self) -> None:
        """Nothing to give back: the model goes with the worker."""

    def _measure(self) -> Measured:
        loaded = self._memory.filled_bytes()
        trials: list[Trial] = []
        size, ended = FIRST_SIZE, None
        while ended is None:
            trials.append(self._trial(size))
            size *= 2
            ended = why_stop(trials, budget_bytes=self._budget.worker_bytes, loaded_bytes=loaded)
        return Measured(budget=self._budget, trials=tuple(trials), ended=ended)

    def _trial(self, size: int) -> Trial:
        self._memory.restart()
        try:
            seconds = self._fastest(size)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            return Trial(batch_images=size, seconds=None, memory_bytes=None)
        return Trial(batch_images=size, seconds=seconds, memory_bytes=self._memory.peak_bytes())

    def _fastest(self, size: int) -> float:
        """Seconds of one batch. The first run of a size also chooses kernels, and is slower."""
        seconds = [self._seconds(size)]
        while len(seconds) < 2 or (sum(seconds) < ENOUGH_S and len(seconds) < MOST_RUNS):
            seconds.append(self._seconds(size))
        return min(seconds)

    def _seconds(self, size: int) -> float:
        began = time.perf_counter()
        self._try_batch(size)  # its results are numbers of Python: nothing is still being computed
        return time.perf_counter() - began


def caption_batches(captioner: ImageCaptioner, sampling: Sampling) -> TryBatch:
    """Caption noise as a run would: as many captions, each as long as it may be.

    Args:
        captioner: the model.
        sampling: the run's; its batch size is not used.
    """
    longest = replace(sampling, min_new_tokens=sampling.max_new_tokens - 1)

    def try_batch(size: int) -> None:
        captioner.caption(
            _noise(size, side_px=captioner.image_size_px),
            keys=[str(image) for image in range(size)],
            sampling=replace(longest, batch_images=size),
        )

    return try_batch


def score_batches(scorer: TextScorer, *, num_texts: int) -> TryBatch:
    """Score long texts against noise.

    Args:
        scorer: the model.
        num_texts: of each image.
    """

    def try_batch(size: int) -> None:
        images = _noise(size, side_px=scorer.image_size_px)
        scorer.score(images, [[LONG_TEXT] * num_texts] * size, batch_size=size)

    return try_batch


def _noise(size: int, *, side_px: int) -> ImageArray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (size, side_px, side_px, 3), np.uint8)
