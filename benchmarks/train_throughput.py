"""Pre-training beside a plain loop over transformers' modules: samples/s, MFU, memory.

python benchmarks/train_throughput.py [--size base|tiny|small] [--device cpu|cuda]
    [--batch-sizes N ...] [--repeats 4] [--json FILE]

First both sides take two steps in float32 without dropout, and LM, ITC and ITM must agree. Then
they take turns on the same batches, from images and texts in the computer's memory to updated
weights. On a CPU one thread computes, in float32, and its own time is measured; on a GPU bfloat16
autocast is on and events measure. MFU is what a pair needs (`train.cost`), padding and repeated
work left out, over the rate of a large matrix product; it means the same for both sides.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from benchmarks.peers import quiet_transformers
from benchmarks.train_peers import (
    TrainingPair,
    first_rows,
    largest_difference,
    mean_tokens,
    random_batch,
    training_config,
    training_pair,
)
from benchmarks.train_plain import Learning
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.cost import pretrain_flops

GPU_LEARNING = Learning(autocast="bfloat16", num_past=57_600)
CPU_LEARNING = Learning()
GPU_BATCH_SIZES = (32, 64, 128, 256)
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """What rates are held against."""

    sample_flops: int  # operations that a sample needs
    peak_flops: float  # operations per second of a large product


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured at one batch size."""

    batch_size: int
    ours_per_s: float  # samples, median over the turns
    theirs_per_s: float
    ratios: list[float]  # ours over theirs, turn by turn
    ours_tflops: float  # of what is needed, in 10**12 per second
    ours_mfu: float
    theirs_mfu: float
    ours_peak_gib: float | None  # beyond what lay there before the step; None on a CPU
    theirs_peak_gib: float | None


def main() -> None:
    """Check that both sides learn the same, measure every batch size, and print a table."""
    chosen = _options().parse_args()
    quiet_transformers()
    torch.manual_seed(0)
    if chosen.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        apart = largest_difference(chosen.size, Path(folder) / "check", device=chosen.device)
        print(f"LM, ITC and ITM of two steps agree within {apart:.0e} in float32")
        results = list(_results(chosen, Path(folder)))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{chosen.size} size, {_machine(chosen.device)}, {versions}")
    if chosen.json:
        values = {"largest_difference": apart, "rows": [asdict(row) for row in results]}
        chosen.json.write_text(json.dumps(values, indent=1) + "\n")


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--size", choices=["base", "tiny", "small"], default="base")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--batch-sizes", type=int, nargs="+")
    options.add_argument("--repeats", type=int, default=4)
    options.add_argument("--json", type=Path)
    return options


def _machine(device: str) -> str:
    if device == "cpu":
        return f"one thread, {platform.machine()}, float32"
    return f"{torch.cuda.get_device_name()}, bfloat16 autocast"


def _results(chosen: argparse.Namespace, folder: Path) -> Iterator[Result]:
    on_gpu = chosen.device == "cuda"
    sizes = chosen.batch_sizes or (GPU_BATCH_SIZES if on_gpu else (4,))
    config, tokenizer = training_config(chosen.size)
    learning = GPU_LEARNING if on_gpu else CPU_LEARNING
    pair = training_pair(config, tokenizer, folder, device=chosen.device, learning=learning)
    batch = random_batch(config, max(sizes), seed=0)
    num_tokens = mean_tokens(batch.texts, tokenizer)
    yardstick = Yardstick(
        sample_flops=pretrain_flops(config, num_tokens=num_tokens),
        peak_flops=_peak_flops(chosen.device),
    )
    print(
        f"{yardstick.sample_flops / 1e9:,.3g} GFLOP a sample, {num_tokens} tokens a text, "
        f"product at {yardstick.peak_flops / 1e12:,.3g} TFLOP/s\n{_HEAD}"
    )
    for size in sizes:
        rows = first_rows(batch, size)
        result = measure(
            pair, rows, repeats=chosen.repeats, device=chosen.device, yardstick=yardstick
        )
        print(line_of(result), flush=True)
        yield result


def measure(
    pair: TrainingPair,
    batch: TextImageBatch,
    *,
    repeats: int,
    device: str,
    yardstick: Yardstick,
) -> Result:
    """Let both sides take steps in turns; the first turn warms up and is dropped.

    Args:
        pair: both sides.
        batch: of each step.
        repeats: turns that count.
        device: whose clock is read.
        yardstick: what a sample needs, and what the device could do.
    """
    sides = [lambda: pair.ours.step(batch), lambda: pair.theirs.step(batch)]
    peaks = [_peak_gib(side, device) for side in sides]
    turns = [[_seconds(side, device) for side in sides] for _ in range(repeats)]
    ours, theirs = (
        len(batch.images) / statistics.median(side) for side in zip(*turns, strict=True)
    )
    ours_flops, theirs_flops = (rate * yardstick.sample_flops for rate in (ours, theirs))
    return Result(
        batch_size=len(batch.images),
        ours_per_s=ours,
        theirs_per_s=theirs,
        ratios=[b / a for a, b in turns],
        ours_tflops=ours_flops / 1e12,
        ours_mfu=ours_flops / yardstick.peak_flops,
        theirs_mfu=theirs_flops / yardstick.peak_flops,
        ours_peak_gib=peaks[0],
        theirs_peak_gib=peaks[1],
    )


def _seconds(work: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.thread_time()
        work()
        return time.thread_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
    begin.record()
    work()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3


def _peak_gib(work: Callable[[], object], device: str) -> float | None:
    """The most memory that a step had at a time, beyond what lay there before."""
    if device == "cpu":
        work()
        return None
    torch.cuda.empty_cache()
    work()  # the first step makes AdamW's means, which then lie there
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def _peak_flops(device: str) -> float:
    """Operations per second of a large square product, in the type that steps compute in."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in "ab")
    times = [_seconds(lambda: left @ right, device) for _ in range(13)][3:]
    return 2 * side**3 / statistics.median(times)


_HEAD = (
    f"{'batch':>5}  {'ours':>9}  {'theirs':>9}  {'ratio: median (range)':<22} "
    f"{'TFLOP/s':>8}  {'MFU: ours, theirs':<18} memory of a step: ours, theirs"
)


def line_of(result: Result) -> str:
    """One line of the table."""
    ratio = statistics.median(result.ratios)
    span = f"{ratio:.2f} ({min(result.ratios):.2f}-{max(result.ratios):.2f})"
    mfu = f"{result.ours_mfu:.1%}, {result.theirs_mfu:.1%}"
    return (
        f"{result.batch_size:>5}  {result.ours_per_s:>7.4g}/s  {result.theirs_per_s:>7.4g}/s  "
        f"{span:<22} {result.ours_tflops:>8.3g}  {mfu:<18} "
        f"{_memory([result.ours_peak_gib, result.theirs_peak_gib])}"
    )


def _memory(peaks: Sequence[float | None]) -> str:
    known = [f"{peak:.1f}" for peak in peaks if peak is not None]
    return f"{', '.join(known)} GiB" if known else "not measured"


if __name__ == "__main__":
    main()
