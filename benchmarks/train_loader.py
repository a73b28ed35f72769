"""The training loader alone: what a batch costs the training process, and what the children.

    python benchmarks/train_loader.py TARS [--side-px 224] [--samples 512] [--decode exact]
        [--decode-processes 1] [--need 1100]

TARS hold human pairs, such as 'data/{00000..00009}.tar'. Printed is, for crop and mirror image and
with RandAugment beside, the median of --turns turns, which the two take by turns: samples per
second by the clock, which counts neighbours on the machine; and CPU milliseconds per sample, which
do not, of the training process (reading, handing over) and of its children (decode, crop, change).
For a trainer that needs so many samples per second: how many cores keep up with three times that,
how often the training process could hand over as many, and how often one core could make them.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import get_args

import torch

from capfilt.config import Decoding
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.io.inputs import expand_pattern
from capfilt.stages.pairs import human_texts, list_pairs, read_pairs
from capfilt.workers.order import steps_of
from capfilt.workers.trainer_batches import TRAINING_PIXELS, BatchLoader
from capfilt.workers.trainer_pairs import TrainingPair, TrainingSet, human_pairs
from capfilt_blip.augment import Augmentation
from capfilt_blip.train.world import World

BATCH_SIZE = 64
NUM_OPERATIONS = {"crop and mirror": 0, "and RandAugment": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds of the clock, and of CPU time."""

    clock_s: float
    own_s: float
    children_s: float  # that have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What samples took: CPU time of this process and of its children, each per sample."""

    rate: float  # samples per second, by the clock
    own_ms: float
    children_ms: float


def now() -> Spent:
    """What is spent by now."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(
        clock_s=time.perf_counter(),
        own_s=time.process_time(),
        children_s=children.ru_utime + children.ru_stime,
    )


def main() -> None:
    """Measure with and without RandAugment, by turns."""
    options = _options()
    torch.set_num_threads(1)
    texts_of = partial(human_texts, text_field=options.text_field)
    urls = [shard.url for shard in expand_pattern(options.tars)]
    rows = read_pairs(list_pairs(urls, texts_of, max_text_bytes=1_000_000))
    print(f"{len(rows):,} pairs, {options.side_px} px, {options.decode_processes} decoding")
    costs: dict[str, list[Cost]] = {name: [] for name in NUM_OPERATIONS}
    for _ in range(options.turns):
        for name, number in NUM_OPERATIONS.items():
            augmentation = Augmentation(min_area=0.2, flip_probability=0.5, num_operations=number)
            costs[name].append(_cost(rows, augmentation, options))
    for name, turns in costs.items():
        _show(name, turns, need=options.need)


def _cost(
    rows: Sequence[TrainingPair], augmentation: Augmentation, options: argparse.Namespace
) -> Cost:
    """Make batches for a while, with new children, whose start counts too."""
    before = now()
    with ImageDecoder(
        ImageLimits(),
        num_processes=options.decode_processes,
        decoding=options.decode,
        part=TRAINING_PIXELS,
    ) as decoder:
        loader = BatchLoader(
            human_pairs(TrainingSet(web=(), human=rows), seed=0),
            decoder,
            side_px=options.side_px,
            augmentation=augmentation,
            seed=0,
            device="cpu",
        )
        stop = options.samples // BATCH_SIZE * BATCH_SIZE
        steps = steps_of(first=0, stop=stop, batch_size=BATCH_SIZE, world=World())
        num_samples = sum(len(batch.images) for batch in loader.batches(steps))
    after = now()
    return Cost(
        rate=num_samples / (after.clock_s - before.clock_s),
        own_ms=1000 * (after.own_s - before.own_s) / num_samples,
        children_ms=1000 * (after.children_s - before.children_s) / num_samples,
    )


def _show(name: str, turns: Sequence[Cost], *, need: float | None) -> None:
    rate, own, children = (
        median(getattr(turn, field) for turn in turns)
        for field in ("rate", "own_ms", "children_ms")
    )
    print(
        f"{name:<16} {rate:7.0f} samples/s  CPU: own {own:.2f} ms, children {children:.2f} ms "
        f"({1000 / (own + children):.0f} samples/s a core)"
    )
    if need is not None:
        print(
            f"  needed {need:g}/s: {3 * need * (own + children) / 1000:.1f} cores make three times "
            f"that; this process hands over {1000 / own / need:.1f} times, "
            f"one core in all makes {1000 / (own + children) / need:.2f} times as many"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tars")
    parser.add_argument("--text-field", default=None)
    parser.add_argument("--side-px", type=int, default=224)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--decode", choices=get_args(Decoding), default="exact")
    parser.add_argument("--need", type=float, help="samples per second that the trainer takes")
    parser.add_argument("--decode-processes", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
