"""A step of the decoding loop: how long it takes, and how many kernels."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_rows.bench import Bench
from benchmarks.gpu_rows.rows import Figures, Job
from benchmarks.gpu_rows.speed import pixels_of

SHORT, LONG = 4, 20
"""Tokens of two captions whose difference is that of the steps between."""

Writing = Callable[[Tensor, int], object]
"""Writes a caption of so many tokens about each image."""


def jobs(bench: Bench) -> Iterator[Job]:
    """Time at two batch sizes, and kernels."""
    for batch in sorted({min(8, bench.scale.fixed_batch), bench.scale.fixed_batch}):
        yield Job(
            group="decoding",
            name=f"decoding step, {batch} captions",
            run=functools.partial(step_times, bench, batch),
        )
    yield Job(
        group="decoding",
        name="kernels of a decoding step",
        run=lambda: step_kernels(bench),
        needs_gpu=True,
    )


@torch.inference_mode()
def step_times(bench: Bench, batch: int) -> Figures:
    """Milliseconds of a step, in turns."""
    pixels = pixels_of(bench, bench.scale.base)[:batch]
    sides = _sides(bench)
    for write in sides.values():
        write(pixels, LONG)
        write(pixels, SHORT)
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(bench.scale.repeats):
        for name, write in sides.items():
            turns[name].append(_step_s(bench, write, pixels) * 1e3)
    return {
        name: f"{statistics.median(times):.2f} ms ({min(times):.2f}-{max(times):.2f})"
        for name, times in turns.items()
    }


@torch.inference_mode()
def step_kernels(bench: Bench) -> Figures:
    """Kernels that a step launches, one by one or in a graph."""
    pixels = pixels_of(bench, bench.scale.base)[:8]
    figures = {}
    for name, write in _sides(bench).items():
        write(pixels, LONG)
        counts = [_kernels(bench, write, pixels, tokens) for tokens in (LONG, SHORT)]
        figures[name] = f"{(counts[0] - counts[1]) / (LONG - SHORT):.0f}"
    return figures


def _sides(bench: Bench) -> dict[str, Writing]:
    pair = bench.captioners(bench.scale.base, bench.dtype)
    return {
        "ours": lambda pixels, count: pair.greedy(pixels, num_tokens=count),
        "transformers": lambda pixels, count: pair.their_greedy(pixels, num_tokens=count),
    }


def _step_s(bench: Bench, write: Writing, pixels: Tensor) -> float:
    long, short = (
        min(bench.seconds(functools.partial(write, pixels, count)) for _ in range(2))
        for count in (LONG, SHORT)
    )
    return (long - short) / (LONG - SHORT)


def _kernels(bench: Bench, write: Writing, pixels: Tensor, num_tokens: int) -> int:
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        write(pixels, num_tokens)
        bench.synchronize()
    names = [e.name for e in profiler.events() if e.device_type == DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)
