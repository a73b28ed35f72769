"""No growth: the thousandth batch leaves as little behind as the two hundredth."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from capfilt.workers.caption import load_captioner
from capfilt.workers.memory import resident_bytes
from capfilt.workers.probe import TryBatch, caption_batches, score_batches
from capfilt.workers.protocols import Sampling
from capfilt.workers.score import load_scorer

SETTLED = 200
BATCHES = 1000
LARGEST_GROWTH_BYTES = 2 * 2**20
"""In 800 batches: 2.6 kB each, less than one of the 32 px images of a batch (3 kB)."""

SAMPLING = Sampling(
    num_captions=2, prompt=None, top_p=0.9, top_k=0, temperature=1.0,
    repetition_penalty=1.0, min_new_tokens=1, max_new_tokens=4, batch_images=2, seed=0, round=0,
)  # fmt: skip


def growth_bytes(try_batch: Callable[[int], object]) -> int:
    """What the process holds more after all batches than after it has settled."""
    settled = 0
    for count in range(1, BATCHES + 1):
        try_batch(2)
        if count == SETTLED:
            settled = bytes_in_use()
    return bytes_in_use() - settled


def bytes_in_use() -> int:
    """Resident memory without what was freed and malloc kept: a leak would hide in it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # of glibc
    return resident_bytes()


def captioning(models: Path) -> TryBatch:
    captioner = load_captioner(
        models / "captioner", device="cpu", dtype="float32", num_threads=1, image_size_px=None,
        sampling=SAMPLING,
    )  # fmt: skip
    return caption_batches(captioner, SAMPLING)


def scoring(models: Path) -> TryBatch:
    scorer = load_scorer(models / "filter", device="cpu", dtype="float32", num_threads=1)
    return score_batches(scorer, num_texts=2)


def leaking(models: Path) -> TryBatch:
    try_batch, kept = scoring(models), list[bytearray]()

    def leak(size: int) -> None:
        try_batch(size)
        kept.append(bytearray(b"x" * 16_384))

    return leak


def growth_of(work: Callable[[Path], TryBatch], models: Path) -> int:
    return growth_bytes(work(models))


@pytest.fixture(scope="module")
def fresh_process() -> Iterator[ProcessPoolExecutor]:
    """A process in which no earlier test has left memory that a leak could hide in."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("work", [captioning, scoring])
def test_memory_does_not_grow_over_1000_batches(
    work: Callable[[Path], TryBatch], models: Path, fresh_process: ProcessPoolExecutor
):
    assert fresh_process.submit(growth_of, work, models).result() < LARGEST_GROWTH_BYTES


@pytest.mark.slow
def test_16_kb_kept_of_each_batch_would_be_seen(models: Path, fresh_process: ProcessPoolExecutor):
    assert fresh_process.submit(growth_of, leaking, models).result() >= LARGEST_GROWTH_BYTES
