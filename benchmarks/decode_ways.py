"""How fast images become the squares a model sees, in each way of decoding, and how true they are.

    python -m benchmarks.decode_ways [--images FOLDER_OR_TAR] [--side 384]

CPU time of one core in this process, and beside it the CPU time the guarded child takes for the
same work, with what this process spends on feeding it. All ways work in turn, so that a busy
machine slows all; ratios are of each turn, to plain Pillow. `transformers` is its
BlipImageProcessor on Pillow's decoded picture, in batches of 8; it also normalises to float32,
which here is left to the model's device. PSNR is against Pillow's bicubic of the whole picture.
Linux only.

Without images, photographs are imitated (`decode.py`), of 640 x 480 and of 2000 x 1500.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from benchmarks.decode import (
    NUM_TURNS,
    Pixels,
    Work,
    describe,
    found_images,
    made_images,
    opened,
    plain_pixels,
    read_arguments,
)
from capfilt.config import Decoding
from capfilt.io.decode_child import answer
from capfilt.io.images import SQUASH, ImageDecoder, ImageLimits, Refused
from capfilt.io.simd_resize import SimdResize
from capfilt.io.squares import OVERSIZE, Square, SquareMaker

PROCESSOR_BATCH = 8
LIMITS = ImageLimits()
MADE_SIZES = {(640, 480): 40, (2000, 1500): 10}
"""Width and height of the images made, and how many of them."""


def main() -> None:
    """Print a table for every set of images."""
    arguments = read_arguments(__doc__)
    if arguments.images is not None:
        sets = {str(arguments.images.name): found_images(arguments.images)}
    else:
        sets = {f"{w} x {h}": made_images(n, size=(w, h)) for (w, h), n in MADE_SIZES.items()}
    for name, images in sets.items():
        print(f"\n{name}: {describe(images)}, {NUM_TURNS} turns, medians")
        print_ways(images, arguments.side)


@dataclass(slots=True, kw_only=True)
class Way:
    """One way to pixels, and its CPU seconds per image in each turn."""

    here: Work
    decoder: ImageDecoder | None  # the same in a child
    here_s: list[float]
    child_s: list[float]
    feeding_s: list[float]


def print_ways(images: Sequence[bytes], side_px: int) -> None:
    """CPU time and fidelity of each way."""
    ways = ways_to(side_px)
    for _ in range(NUM_TURNS):
        for way in ways.values():
            take_turn(way, images, side_px)
    expected = plain_pixels(images, side_px)
    print(f"{'':<14}{'one core':>10}{'ratio (range)':>20}{'child':>10}{'feeding':>10}  fidelity")
    for name, way in ways.items():
        ratios = [a / b for a, b in zip(ways["Pillow"].here_s, way.here_s, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name:<14}{1 / statistics.median(way.here_s):>8.0f}/s{spread:>20}", end="")
        if way.decoder is not None:
            child, feeding = statistics.median(way.child_s), statistics.median(way.feeding_s)
            print(f"{child * 1e3:>7.2f} ms{feeding * 1e3:>7.2f} ms", end="")
            print("  " + fidelity(way.decoder.pixels(images, side_px=side_px), expected), end="")
            way.decoder.close()
        print()


def ways_to(side_px: int) -> dict[str, Way]:
    """All ways, by name; Pillow's is what the others are compared with."""
    asked = Square(side_px=side_px, fit=SQUASH)
    simd = SimdResize()
    makers: dict[Decoding, SquareMaker] = {
        "exact": SquareMaker(),
        "scaled": SquareMaker(oversize=OVERSIZE),
        "fast": SquareMaker(resize=simd),
        "fast_scaled": SquareMaker(resize=simd, oversize=OVERSIZE),
    }
    assert set(makers) == set(get_args(Decoding))
    processor = BlipImageProcessorPil(size={"height": side_px, "width": side_px})
    here: dict[str, tuple[Work, ImageDecoder | None]] = {
        "Pillow": (lambda images: plain_pixels(images, side_px), None),
        "transformers": (lambda images: processed(processor, images), None),
    }
    for name, maker in makers.items():
        here[name] = (worker(maker, asked), ImageDecoder(LIMITS, decoding=name))
    return {
        name: Way(here=work, decoder=decoder, here_s=[], child_s=[], feeding_s=[])
        for name, (work, decoder) in here.items()
    }


def worker(maker: SquareMaker, asked: Square) -> Work:
    """What the child does with images, but here."""
    return lambda images: [answer(asked, image, LIMITS, maker) for image in images]


def take_turn(way: Way, images: Sequence[bytes], side_px: int) -> None:
    """Add one turn's CPU seconds per image."""
    start_s = time.thread_time()
    way.here(images)
    way.here_s.append((time.thread_time() - start_s) / len(images))
    if way.decoder is None:
        return
    way.decoder.pixels(images[:1], side_px=side_px)  # starts the child
    child_s, start_s = child_cpu_s(way.decoder), time.thread_time()
    way.decoder.pixels(images, side_px=side_px)
    way.feeding_s.append((time.thread_time() - start_s) / len(images))
    way.child_s.append((child_cpu_s(way.decoder) - child_s) / len(images))


def child_cpu_s(decoder: ImageDecoder) -> float:
    """CPU seconds of the decoder's child: the clock that clock_getcpuclockid(3) names on Linux."""
    [process] = decoder._processes
    return time.clock_gettime((~process.pid << 3) | 2)


def fidelity(found: Sequence[Pixels | Refused], expected: Sequence[Pixels]) -> str:
    """How far the squares are from those of plain Pillow."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if not isinstance(a, Refused)]
    errors = [np.abs(pixels.astype(int) - reference) for pixels, reference in pairs]
    if not any(error.any() for error in errors):
        return "the same pixels"
    decibels = [10 * np.log10(255**2 / max(np.mean(error**2), 1e-9)) for error in errors]
    return (
        f"PSNR mean {np.mean(decibels):.1f}, least {min(decibels):.1f} dB, "
        f"largest difference {max(int(error.max()) for error in errors)}"
    )


def processed(processor: BlipImageProcessorPil, images: Sequence[bytes]) -> object:
    """What transformers makes of images."""
    starts = range(0, len(images), PROCESSOR_BATCH)
    batches = [images[start : start + PROCESSOR_BATCH] for start in starts]
    return [processor([opened(image) for image in batch]) for batch in batches]


if __name__ == "__main__":
    main()
