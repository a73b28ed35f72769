"""How much decoding in a child process costs beside decoding in this one.

    python benchmarks/decode.py [--images FOLDER_OR_TAR] [--side 384]

Both sides do the same work on the same images with one core: plain Pillow here, and `ImageDecoder`
with one child. They take turns, so that a busy machine slows both, and the ratio is of each turn.
Times are by the clock, pipes and all. `decode_ways.py` compares the ways of decoding.

Without images, photographs are imitated: dead leaves (discs of all sizes over each other, as in
natural images) with grain, JPEG quality 88.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.io.phash import THUMBNAIL_PX, perceptual_hash

NUM_IMAGES = 200
NUM_TURNS = 7
NUM_LEAVES = 400

Pixels = npt.NDArray[np.uint8]
Work = Callable[[Sequence[bytes]], object]


def main() -> None:
    """Print a line per operation: images per second on both sides, and their ratio."""
    arguments = read_arguments(__doc__)
    images = made_images() if arguments.images is None else found_images(arguments.images)
    side_px: int = arguments.side
    print(f"{describe(images)}, {NUM_TURNS} turns, medians")
    print(f"{'operation':<14}{'Pillow here':>14}{'one child':>14}{'ratio':>8}")
    with ImageDecoder(ImageLimits()) as decoder:
        decoder.inspect(images[:1])  # starts the child

        def child_pixels(batch: Sequence[bytes]) -> object:
            return decoder.pixels(batch, side_px=side_px)

        def here_pixels(batch: Sequence[bytes]) -> object:
            return plain_pixels(batch, side_px)

        compare(f"pixels({side_px})", here_pixels, child_pixels, images)
        compare("inspect()", plain_inspect, decoder.inspect, images)


def read_arguments(doc: str | None) -> argparse.Namespace:
    """The images to use and the side of the squares."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help="a folder, or a tar; else they are made")
    parser.add_argument("--side", type=int, default=384, help="of the squares, in pixels")
    return parser.parse_args()


def describe(images: Sequence[bytes]) -> str:
    """How many, and how large."""
    mean_kb = statistics.mean(len(image) for image in images) / 1000
    return f"{len(images)} images of {mean_kb:.0f} kB"


def compare(name: str, plain: Work, child: Work, images: Sequence[bytes]) -> None:
    """Let both sides work in turn and print their medians."""
    turns = [(rate(plain, images), rate(child, images)) for _ in range(NUM_TURNS)]
    here = statistics.median(plain_rate for plain_rate, _ in turns)
    there = statistics.median(child_rate for _, child_rate in turns)
    ratio = statistics.median(child_rate / plain_rate for plain_rate, child_rate in turns)
    print(f"{name:<14}{here:>12.0f}/s{there:>12.0f}/s{ratio:>8.2f}")


def rate(work: Work, images: Sequence[bytes]) -> float:
    """Images per second, by the clock."""
    start_s = time.perf_counter()
    work(images)
    return len(images) / (time.perf_counter() - start_s)


def plain_pixels(images: Sequence[bytes], side_px: int) -> list[Pixels]:
    """Pixels as a script would get them."""
    size, bicubic = (side_px, side_px), Image.Resampling.BICUBIC
    return [np.asarray(opened(image).resize(size, bicubic)) for image in images]


def plain_inspect(images: Sequence[bytes]) -> object:
    """The hash of each image, decoded whole."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return [
        perceptual_hash(np.asarray(opened(image).resize(size, Image.Resampling.BOX)))
        for image in images
    ]


def opened(image: bytes) -> Image.Image:
    """An image as RGB."""
    return Image.open(io.BytesIO(image)).convert("RGB")


def made_images(count: int = NUM_IMAGES, *, size: tuple[int, int] = (640, 480)) -> list[bytes]:
    """JPEGs of dead leaves, about as dense as photographs."""
    rng = np.random.default_rng(0)
    return [made_image(rng, size) for _ in range(count)]


def made_image(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """One JPEG: discs whose radii r have density r^-3 (Lee, Mumford, Huang 2001), and grain."""
    picture = Image.new("RGB", size)
    draw = ImageDraw.Draw(picture)
    least, most = size[0] / 100, size[0] / 4
    radii = (least**-2 - (least**-2 - most**-2) * rng.random(NUM_LEAVES)) ** -0.5
    for radius in radii:
        x, y = rng.random(2) * size
        colour = tuple(rng.integers(0, 256, 3).tolist())
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    grain = rng.normal(0, 1.5, (size[1], size[0], 1))
    pixels = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()


def found_images(path: Path) -> list[bytes]:
    """The first images of a folder, or of a tar."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_image(file.name))
        return [file.read_bytes() for file in files[:NUM_IMAGES]]
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.isfile() and is_image(member.name)]
        streams = [tar.extractfile(member) for member in members[:NUM_IMAGES]]
        return [stream.read() for stream in streams if stream is not None]


def is_image(name: str) -> bool:
    """Whether a file's name says it is an image."""
    return name.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))


if __name__ == "__main__":
    main()
