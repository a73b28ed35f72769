"""Memory of captioning and scoring: per batch size, and over many batches.

    python benchmarks/memory.py peak [--model base tiny] [--work score ...] [--sizes 1 4 8 16]
    python benchmarks/memory.py growth [--batches 1000]

Both take --device and --json FILE.

`peak`: each size in a process of its own. On a CPU the peak of the resident set, less what the
process held once the model was loaded; on a GPU the peak of torch's allocator, likewise. Weights
are random: they change nothing about memory, since captions are kept from ending early.

`growth`: the tiny model works on batch after batch; the resident set is read after each of some.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from capfilt.workers.memory import memory_of, resident_bytes
from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.tasks.captioner import Captioner
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tokenizer import Tokenizer

MIB = 2**20
NUM_TOKENS = 20
TEXTS = ["a small red circle to the left of a large blue square", "a green star above a grey dog"]
WORK = ("caption 1", "caption 10", "score")
"""One caption per image, ten, and the scores of two texts per image."""
MODELS = ("base", "tiny")
SETTLED = 200
"""Batches after which a process holds all it will ever hold, unless it grows."""
LEAST_LEAK_BYTES_PER_BATCH = 4096
"""Growth called a leak: a page per batch, a hundredth of one batch's pixels at base size."""

TryBatch = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What one batch size takes."""

    model: str
    work: str
    batch_images: int
    device: str
    loaded_bytes: int
    peak_bytes: int  # less `loaded_bytes`
    seconds: float  # of the thread's time


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The resident set after so many batches."""

    work: str
    resident_bytes: dict[int, int]

    @property
    def bytes_per_batch(self) -> float:
        """Growth once the process has settled."""
        counts = sorted(count for count in self.resident_bytes if count >= SETTLED)
        first, last = counts[0], counts[-1]
        grown = self.resident_bytes[last] - self.resident_bytes[first]
        return grown / max(1, last - first)


def architecture(model: str) -> tuple[BlipConfig, Tokenizer]:
    """`base` is ViT-B/16 at 384 px with a vocabulary of that size, `tiny` the miniature web's."""
    if model == "tiny":
        tokenizer = Tokenizer.train(TEXTS, vocab_size=240)
        return BlipConfig.tiny(vocab_size=tokenizer.vocab_size), tokenizer
    config = BlipConfig.base()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names += [f"word{number}" for number in range(config.text.vocab_size - len(names) - 2)]
    return config, Tokenizer({name: index for index, name in enumerate(names)})


def worker_of(work: str, config: BlipConfig, tokenizer: Tokenizer, device: str) -> TryBatch:
    """A model of random weights, ready for batches of any size."""
    if work == "score":
        matcher = Matcher(BlipMatcher(config), tokenizer, device=device)
        return lambda size: matcher.score(
            noise(size, matcher.image_size_px), [TEXTS] * size, batch_size=size
        )
    captioner = Captioner(BlipCaptioner(config), tokenizer, device=device)
    num_captions = int(work.split()[1])
    return lambda size: captioner.caption(
        noise(size, captioner.image_size_px),
        num_captions=num_captions,
        min_new_tokens=NUM_TOKENS - 1,
        max_new_tokens=NUM_TOKENS,
        batch_size=size,
    )


def noise(size: int, side_px: int) -> np.ndarray:
    """(size, S, S, 3) uint8, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (size, side_px, side_px, 3), np.uint8)


def built(model: str, work: str, device: str) -> TryBatch:
    """The worker of a case, in this process."""
    torch.manual_seed(0)
    config, tokenizer = architecture(model)
    return worker_of(work, config, tokenizer, device)


def measure_peak(model: str, work: str, size: int, *, device: str) -> Peak:
    """Measure a case; in a fresh process, or what ran before is in it."""
    torch.set_num_threads(1)
    memory = memory_of(device)
    try_batch = built(model, work, device)
    gc.collect()
    memory.restart()
    loaded = memory.filled_bytes()
    began = time.thread_time()
    try_batch(size)
    return Peak(
        model=model,
        work=work,
        batch_images=size,
        device=device,
        loaded_bytes=loaded,
        peak_bytes=memory.peak_bytes() - loaded,
        seconds=time.thread_time() - began,
    )


def peaks(options: argparse.Namespace) -> Iterator[Peak]:
    """Measure all cases, each in a process of its own."""
    for model, work, size in product(options.model, options.work, options.sizes):
        command = [sys.executable, __file__, "one", model, work, str(size), options.device]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak = Peak(**json.loads(ran.stdout))
        print(f"{model}, {work}, {size} images: {peak.peak_bytes / MIB:,.0f} MiB", file=sys.stderr)
        yield peak


def measure_growth(work: str, *, batches: int, device: str, size: int = 2) -> Growth:
    """Work on many batches with the tiny model and read the resident set now and then."""
    try_batch = built("tiny", work, device)
    marks = {mark for mark in (100, SETTLED, 500, 1000, batches) if mark <= batches}
    resident: dict[int, int] = {}
    for count in range(1, batches + 1):
        try_batch(size)
        if count in marks:
            gc.collect()
            resident[count] = resident_bytes()
    return Growth(work=work, resident_bytes=resident)


def show_peaks(found: Sequence[Peak]) -> None:
    """Print a line per model and work, a column per size."""
    sizes = sorted({peak.batch_images for peak in found})
    print(f"{'MiB, the model not included':<28}" + "".join(f"{size:>10}" for size in sizes))
    by_case: dict[tuple[str, str], dict[int, Peak]] = {}
    for peak in found:
        by_case.setdefault((peak.model, peak.work), {})[peak.batch_images] = peak
    for (model, work), row in by_case.items():
        cells = "".join(f"{row[size].peak_bytes / MIB:>10,.0f}" for size in sizes)
        loaded = next(iter(row.values())).loaded_bytes / MIB
        print(f"{model + ', ' + work:<28}{cells}   (loaded: {loaded:,.0f})")


def show_growth(found: Growth) -> None:
    """Print the resident set after each mark, and a verdict."""
    cells = ", ".join(
        f"{size / MIB:,.1f} MiB after {count:,}" for count, size in found.resident_bytes.items()
    )
    leaks = found.bytes_per_batch >= LEAST_LEAK_BYTES_PER_BATCH
    verdict = "GROWS" if leaks else "does not grow"
    print(f"{found.work:<12}{cells}: {found.bytes_per_batch:,.0f} bytes per batch, {verdict}")


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.what == "one":
        peak = measure_peak(options.model, options.work, options.size, device=options.device)
        print(json.dumps(asdict(peak)))
        return
    found: list[Peak] | list[Growth]
    if options.what == "peak":
        found = list(peaks(options))
        show_peaks(found)
    else:
        torch.set_num_threads(1)
        found = [
            measure_growth(work, batches=options.batches, device=options.device) for work in WORK
        ]
        for growth in found:
            show_growth(growth)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    peak = commands.add_parser("peak", help="memory per batch size")
    peak.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    peak.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    peak.add_argument("--sizes", nargs="+", type=int, default=[1, 4, 8, 16])
    growth = commands.add_parser("growth", help="memory over many batches")
    growth.add_argument("--batches", type=int, default=1000)
    for command in (peak, growth):
        command.add_argument("--device", default="cpu")
        command.add_argument("--json", type=Path)
    one = commands.add_parser("one", help="one case in this process, as JSON")
    one.add_argument("model", choices=MODELS)
    one.add_argument("work", choices=WORK)
    one.add_argument("size", type=int)
    one.add_argument("device")
    return parser.parse_args()


if __name__ == "__main__":
    main()
