"""How much of the GPU's memory a batch takes, beyond the weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu_rows.bench import Bench, Work
from benchmarks.gpu_rows.rows import Figures, Job
from benchmarks.gpu_rows.speed import NUM_DRAWN, NUM_TEXTS, pixels_of, texts_of

Sides = dict[str, Work]


def jobs(bench: Bench) -> Iterator[Job]:
    """A row per kind of work."""
    kinds: dict[str, Callable[[Bench], Sides]] = {
        "caption, 1 an image": functools.partial(captions, num_captions=1),
        f"caption, {NUM_DRAWN} an image": functools.partial(captions, num_captions=NUM_DRAWN),
        f"score, {NUM_TEXTS} texts an image": scores,
    }
    for name, sides in kinds.items():
        yield Job(
            group="memory",
            name=f"memory: {name}",
            run=functools.partial(peaks, bench, sides),
            needs_gpu=True,
        )


def captions(bench: Bench, *, num_captions: int) -> Sides:
    """Drawn captions."""
    pair = bench.captioners(bench.scale.base, bench.dtype)
    pixels = pixels_of(bench, bench.scale.base)
    return {
        "ours": lambda count: pair.drawn(pixels[:count], num_captions=num_captions),
        "transformers": lambda count: pair.their_drawn(pixels[:count], num_captions=num_captions),
    }


def scores(bench: Bench) -> Sides:
    """ITM."""
    pair = bench.matchers(bench.scale.base, bench.dtype)
    pixels = pixels_of(bench, bench.scale.base)
    ids = texts_of(bench, pair, len(pixels))
    return {
        "ours": lambda count: pair.itm(pixels[:count], ids[: count * NUM_TEXTS]),
        "transformers": lambda count: pair.their_itm(pixels[:count], ids[: count * NUM_TEXTS]),
    }


@torch.inference_mode()
def peaks(bench: Bench, make_sides: Callable[[Bench], Sides]) -> Figures:
    """The most memory that was allocated at a time, beyond what lay there before."""
    sizes = bench.scale.batch_sizes[::2]
    return {
        f"{name}, GiB at a batch of": ", ".join(f"{size}: {_peak(work, size)}" for size in sizes)
        for name, work in make_sides(bench).items()
    }


def _peak(work: Work, size: int) -> str:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        work(size)
    except torch.OutOfMemoryError:
        return "too large"
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.2f}"
