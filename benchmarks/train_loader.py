"""The training loader alone: what it costs the training process to make a batch.

    python benchmarks/train_loader.py TARS [--side-px 224] [--samples 512] [--decode-processes 1]

TARS hold human pairs, such as 'data/{00000..00009}.tar'. Printed are samples per second by the
clock, which counts neighbours on the machine, and CPU milliseconds per sample of the training
process (reading, handing over, augmenting) and of all processes (decoding too), which do not.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass
from functools import partial

import torch

from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.io.inputs import expand_pattern
from capfilt.stages.pairs import human_texts, list_pairs, read_pairs
from capfilt.workers.order import steps_of
from capfilt.workers.trainer_batches import BatchLoader
from capfilt.workers.trainer_pairs import TrainingSet, human_pairs
from capfilt_blip.augment import Augmentation
from capfilt_blip.train.world import World

BATCH_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds of the clock, and of CPU time."""

    clock_s: float
    own_s: float
    all_s: float  # with child processes that have ended


def now() -> Spent:
    """What is spent by now."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = time.process_time()
    all_s = own + children.ru_utime + children.ru_stime
    return Spent(clock_s=time.perf_counter(), own_s=own, all_s=all_s)


def main() -> None:
    """Measure with and without RandAugment."""
    options = _options()
    torch.set_num_threads(1)
    texts_of = partial(human_texts, text_field=options.text_field)
    urls = [shard.url for shard in expand_pattern(options.tars)]
    rows = read_pairs(list_pairs(urls, texts_of, max_text_bytes=1_000_000))
    print(f"{len(rows):,} pairs, {options.side_px} px, {options.decode_processes} decoding")
    for name, number in (("crop and mirror", 0), ("and RandAugment", 2)):
        augmentation = Augmentation(min_area=0.2, flip_probability=0.5, num_operations=number)
        before = now()
        with ImageDecoder(ImageLimits(), num_processes=options.decode_processes) as decoder:
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
        _show(name, before, now(), num_samples=num_samples)


def _show(name: str, before: Spent, after: Spent, *, num_samples: int) -> None:
    rate = num_samples / (after.clock_s - before.clock_s)
    own, everything = (
        1000 * spent / num_samples
        for spent in (after.own_s - before.own_s, after.all_s - before.all_s)
    )
    print(f"{name:<16} {rate:7.0f} samples/s  own {own:.2f} ms  all {everything:.2f} ms of CPU")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tars")
    parser.add_argument("--text-field", default=None)
    parser.add_argument("--side-px", type=int, default=224)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--decode-processes", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
