"""How much decoding in a child process costs beside decoding in this one.

    python benchmarks/decode.py [IMAGE_FOLDER_OR_TAR]

Both sides do the same work on the same images with one core: plain Pillow here, and `ImageDecoder`
with one child. They take turns, so that a busy machine slows both, and the ratio is of each turn.
Without an argument the images are made: JPEGs of 640 x 480 with the detail of smoothed noise.
"""

from __future__ import annotations

import io
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.io.phash import THUMBNAIL_PX, perceptual_hash

NUM_IMAGES = 200
NUM_TURNS = 7
SIDE_PX = 384  # of BLIP's base captioner


def main() -> None:
    """Print a line per operation: images per second on both sides, and their ratio."""
    images = found_images(Path(sys.argv[1])) if len(sys.argv) > 1 else made_images()
    mean_kb = statistics.mean(len(image) for image in images) / 1000
    print(f"{len(images)} images of {mean_kb:.0f} kB, {NUM_TURNS} turns, medians")
    print(f"{'operation':<14}{'Pillow here':>14}{'one child':>14}{'ratio':>8}")
    with ImageDecoder(ImageLimits()) as decoder:
        decoder.inspect(images[:1])  # starts the child
        compare(f"pixels({SIDE_PX})", plain_pixels, lambda batch: in_child(decoder, batch), images)
        compare("inspect()", plain_inspect, decoder.inspect, images)


def compare(
    name: str,
    plain: Callable[[Sequence[bytes]], object],
    child: Callable[[Sequence[bytes]], object],
    images: Sequence[bytes],
) -> None:
    """Let both sides work in turn and print their medians."""
    turns = [(rate(plain, images), rate(child, images)) for _ in range(NUM_TURNS)]
    here = statistics.median(plain_rate for plain_rate, _ in turns)
    there = statistics.median(child_rate for _, child_rate in turns)
    ratio = statistics.median(child_rate / plain_rate for plain_rate, child_rate in turns)
    print(f"{name:<14}{here:>12.0f}/s{there:>12.0f}/s{ratio:>8.2f}")


def rate(work: Callable[[Sequence[bytes]], object], images: Sequence[bytes]) -> float:
    """Images per second."""
    start_s = time.perf_counter()
    work(images)
    return len(images) / (time.perf_counter() - start_s)


def in_child(decoder: ImageDecoder, images: Sequence[bytes]) -> object:
    """Pixels from the child."""
    return decoder.pixels(images, side_px=SIDE_PX)


def plain_pixels(images: Sequence[bytes]) -> object:
    """Pixels as a script would get them."""
    return [
        np.asarray(opened(image).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))
        for image in images
    ]


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


def made_images() -> list[bytes]:
    """JPEGs of noise at three scales, about as dense as photographs."""
    rng = np.random.default_rng(0)
    return [made_image(rng) for _ in range(NUM_IMAGES)]


def made_image(rng: np.random.Generator) -> bytes:
    """One JPEG."""
    total = np.zeros((480, 640, 3))
    for cells in (4, 40, 240):
        noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)) / 3
    file = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(file, "JPEG", quality=88)
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
