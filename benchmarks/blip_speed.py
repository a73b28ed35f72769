"""Captioning and scoring beside transformers: the same weights and inputs, in one process.

python benchmarks/blip_speed.py [--size base|tiny] [--repeats 4] [--json FILE]

Each case runs ours and theirs in turns, checks that both give the same answer, and reports the
ratio of their time to ours: of the fastest runs, and the median and range over the turns. One
thread, time of that thread, so that a neighbour on the machine costs little. Weights are random:
they change nothing about the work, since texts are kept from ending early.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor

from benchmarks.peers import caption_pair, config_of, quiet_transformers, random_texts, score_pair
from capfilt_blip.config import BlipConfig
from capfilt_blip.sampling import Sampling, sample
from capfilt_blip.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Two ways to do one thing."""

    name: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    tolerance: float | None  # of the two answers; None where both draw at random


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured of a case."""

    name: str
    ours_s: float
    theirs_s: float
    ratio: float
    ratios: list[float]
    largest_difference: float | None


def measure(case: Case, *, repeats: int) -> Result:
    """Run both in turns; the first turn warms up and is dropped.

    Raises:
        ValueError: the answers differ.
    """
    difference = _difference(case)
    times = [(_seconds(case.ours), _seconds(case.theirs)) for _ in range(repeats)]
    ours, theirs = (min(column) for column in zip(*times, strict=True))
    return Result(
        name=case.name,
        ours_s=ours,
        theirs_s=theirs,
        ratio=theirs / ours,
        ratios=[b / a for a, b in times],
        largest_difference=difference,
    )


def _difference(case: Case) -> float | None:
    mine, peer = case.ours(), case.theirs()
    if case.tolerance is None:
        return None
    difference = float((mine.double() - peer.double()).abs().max())
    if not difference <= case.tolerance:
        raise ValueError(f"{case.name}: the answers differ by {difference}")
    return difference


def _seconds(work: Callable[[], Tensor]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def caption_cases(config: BlipConfig, tokenizer: Tokenizer, folder: Path) -> Iterator[Case]:
    """One caption of each of 8 images, greedily; and 10 drawn captions of one image."""
    pair = caption_pair(config, tokenizer, folder)
    side = config.vision.image_size_px
    pixels = torch.randn(8, 3, side, side)
    yield Case(
        name="caption 8 images, 1 each",
        ours=lambda: pair.greedy(pixels),
        theirs=lambda: pair.their_greedy(pixels),
        tolerance=0.0,
    )
    yield Case(
        name="caption 1 image, 10 drawn",
        ours=lambda: pair.drawn(pixels[:1], num_captions=10).token_ids,
        theirs=lambda: pair.their_drawn(pixels[:1], num_captions=10),
        tolerance=None,
    )


def score_cases(config: BlipConfig, tokenizer: Tokenizer, folder: Path) -> Iterator[Case]:
    """ITM of 4 images with 2 texts each, and of one with 11."""
    pair = score_pair(config, tokenizer, folder)
    side = config.vision.image_size_px
    for num_images, num_texts in ((4, 2), (1, 11)):
        pixels = torch.randn(num_images, 3, side, side)
        ids = random_texts(config, num_images * num_texts)
        yield Case(
            name=f"score {num_images} images, {num_texts} texts each",
            ours=functools.partial(pair.itm, pixels, ids),
            theirs=functools.partial(pair.their_itm, pixels, ids),
            tolerance=1e-5,
        )


def sampler_cases() -> Iterator[Case]:
    """Drawing the next token of 8 and of 64 rows from a nucleus of 30,524 tokens."""
    warpers = transformers.LogitsProcessorList([transformers.TopPLogitsWarper(top_p=0.9)])
    for num_rows in (8, 64):
        # As peaked as a trained model's: nuclei of 2 to 30 tokens.
        logits = torch.randn(num_rows, 30_524) * 2
        logits.scatter_add_(1, torch.randint(30_524, (num_rows, 40)), torch.rand(num_rows, 40) * 16)
        keys = torch.arange(num_rows)

        def ours(logits: Tensor = logits, keys: Tensor = keys) -> Tensor:
            return sample(logits, row_keys=keys, step=0, sampling=Sampling(top_p=0.9))

        def theirs(logits: Tensor = logits) -> Tensor:
            scores = warpers(torch.zeros(len(logits), 1, dtype=torch.int64), logits)
            return torch.multinomial(scores.softmax(-1), 1)

        yield Case(name=f"draw {num_rows} tokens", ours=ours, theirs=theirs, tolerance=None)


@torch.inference_mode()
def main() -> None:
    """Measure every case and print a table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--size", choices=["base", "tiny"], default="base")
    options.add_argument("--repeats", type=int, default=4)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quiet_transformers()
    config, tokenizer = config_of(chosen.size)
    results: list[Result] = []
    print(f"{'':<32} {'ours':>9} {'theirs':>9} {'ratio':>6}  median (range)    difference")
    with tempfile.TemporaryDirectory() as folder:
        for cases in (
            sampler_cases(),
            caption_cases(config, tokenizer, Path(folder) / "captioner"),
            score_cases(config, tokenizer, Path(folder) / "matcher"),
        ):
            for case in cases:
                result = measure(case, repeats=chosen.repeats)
                results.append(result)
                print(line_of(result), flush=True)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{chosen.size} size, one thread, {versions}, {platform.machine()}")
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in results], indent=1) + "\n")


def line_of(result: Result) -> str:
    """One line of the table."""
    span = f"{min(result.ratios):.2f}-{max(result.ratios):.2f}"
    difference = (
        "drawn" if result.largest_difference is None else f"{result.largest_difference:.0e}"
    )
    return (
        f"{result.name:<32} {result.ours_s * 1e3:>6.0f} ms {result.theirs_s * 1e3:>6.0f} ms "
        f"{result.ratio:>6.2f}  {statistics.median(result.ratios):.2f} ({span})    {difference}"
    )


if __name__ == "__main__":
    main()
