"""Pre-training: the engine beside a plain loop over transformers' modules, and ViT-L's memory."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Sequence

import torch

from benchmarks.gpu_rows.bench import Bench, Work
from benchmarks.gpu_rows.rows import Comparison, Figures, Job, Target
from benchmarks.train_peers import (
    TrainingPair,
    first_rows,
    largest_difference,
    mean_tokens,
    random_batch,
    random_past,
    training_config,
    training_of,
    training_pair,
)
from benchmarks.train_plain import Learning
from capfilt_blip.blip import Blip
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.cost import pretrain_flops
from capfilt_blip.train.settings import EngineSettings

LARGE_BATCH = 75
"""Of one of the paper's 32 GPUs: 2,400 for ViT-L in all (arXiv:2201.12086, sec. 4.1)."""
LARGE_RECOMPUTED = (0, 12)
"""Last layers of each stack; the original recomputes 12 of ViT-L's 24."""
SMALL_GPU_BYTES = 80e9
NUM_TINY_PAST = 64


def jobs(bench: Bench) -> Iterator[Job]:
    """Two rows."""
    yield Job(
        group="training",
        name="pre-training, ViT-B at 224 px",
        run=lambda: pretraining(bench, bench.scale.base),
    )
    yield Job(
        group="training",
        name=f"pre-training, ViT-L at 224 px, batch {LARGE_BATCH}: memory",
        run=lambda: large_memory(bench, bench.scale.large),
        needs_gpu=True,
    )


def pretraining(bench: Bench, size: str) -> Comparison:
    """Steps of both sides, from a batch in the computer's memory to updated weights."""
    folder = bench.folder / "training"
    apart = largest_difference(size, folder, device=bench.device)
    gc.collect()
    config, tokenizer = training_config(size)
    pair = training_pair(config, tokenizer, folder, device=bench.device, learning=learning(bench))
    batch = random_batch(config, max(bench.scale.batch_sizes), seed=0)
    num_tokens = mean_tokens(batch.texts, tokenizer)
    sides = _sides(pair, batch)
    found = bench.compare(
        sides["ours"],
        sides["transformers"],
        unit="samples",
        gflops=pretrain_flops(config, num_tokens=num_tokens) / 1e9,
        target=Target(rate=1_100),
    )
    figures = _peaks(sides, bench.scale.batch_sizes) if bench.on_gpu else {}
    answers = f"LM, ITC and ITM of two steps within {apart:.0e} float32"
    return dataclasses.replace(found, answers=answers, figures=figures)


def learning(bench: Bench) -> Learning:
    """Autocast on a GPU, and a queue that is full from the start."""
    if bench.on_gpu:
        return Learning(autocast="bfloat16", num_past=Learning().queue_size)
    return Learning(num_past=NUM_TINY_PAST)


def _sides(pair: TrainingPair, batch: TextImageBatch) -> dict[str, Work]:
    return {
        "ours": lambda count: pair.ours.step(first_rows(batch, count)),
        "transformers": lambda count: pair.theirs.step(first_rows(batch, count)),
    }


def _peaks(sides: dict[str, Work], batch_sizes: Sequence[int]) -> Figures:
    """The most memory that a step had at a time, beyond the weights, means and queues of both."""
    found = {}
    for name, step in sides.items():
        peaks = [f"{size}: {_peak_text(step, size)}" for size in batch_sizes]
        found[f"{name}, GiB of a step with a batch of"] = ", ".join(peaks)
    return found


def _peak_text(step: Work, size: int) -> str:
    try:
        return f"{_peak_bytes(step, size) / 2**30:.1f}"
    except torch.OutOfMemoryError:
        return "too large"


def _peak_bytes(step: Work, size: int) -> int:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(size)
    return torch.cuda.max_memory_allocated() - before


def large_memory(bench: Bench, size: str) -> Figures:
    """All that ViT-L's training allocates: weights, means, slow weights, queue and a step."""
    found = {}
    for num_layers in LARGE_RECOMPUTED:
        gc.collect()
        torch.cuda.empty_cache()
        peak = _large_peak_bytes(bench, size, num_layers)
        fits = "fits" if peak <= SMALL_GPU_BYTES else "does not fit"
        name = f"bfloat16 autocast, {num_layers} layers of each stack recomputed"
        found[name] = f"{peak / 1e9:.1f} GB, {fits} 80 GB"
    return found


def _large_peak_bytes(bench: Bench, size: str, num_layers: int) -> int:
    before = torch.cuda.memory_allocated()
    config, tokenizer = training_config(size)
    with torch.device(bench.device):
        model = Blip(config)
    engine = EngineSettings(autocast="bfloat16", recomputed_layers=num_layers)
    plan = learning(bench)
    past = random_past(config, plan.num_past)
    training = training_of(model, tokenizer, learning=plan, engine=engine, past=past)
    batch = random_batch(config, LARGE_BATCH, seed=0)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # the second step has AdamW's means from the start
        training.step(batch)
    return torch.cuda.max_memory_allocated() - before
