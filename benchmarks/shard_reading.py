"""Reading a shard beside webdataset and tarfile: the same tar, in one process.

    python benchmarks/shard_reading.py [--samples 2000] [--turns 7] [--json FILE]

Each side reads a made tar of samples of jpg (84 kB), txt and json, until the key and the bytes of
each sample are in hand. All give the same samples, which is checked first. They take turns, one
thread, time of that thread, so that a neighbour on the machine costs little; the tar is in memory
(page cache). "plain" has a header before each file; "pax" has PAX records too, with the time to
the fraction, as webdataset's writer makes them. Digests are not in these figures: what they
cost, and what one sample costs once the tar is scanned, is printed below.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import webdataset

from capfilt.io.shards import open_shard
from capfilt.io.tar import group_samples, split_name

IMAGE_BYTES = 84_000
NUM_LOOKUPS = 200

Read = Callable[[Path], Iterator[tuple[str, Mapping[str, bytes]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One side, measured on one tar."""

    tar: str
    side: str
    samples_per_s: float  # in the median turn
    mb_per_s: float
    best_samples_per_s: float
    ratio: float  # ours to this side, median of the turns
    ratios: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What is not in the figures of reading."""

    tar: str
    image_digest_us: float  # SHA-256 of one image
    shard_digest_us: float  # of the whole shard, per sample
    median_lookup_us: float  # any one sample, once the tar is scanned
    largest_lookup_us: float


def main() -> None:
    """Measure both tars and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="capfilt-shards-") as folder:
        tars = made_tars(Path(folder), num_samples=options.samples)
        results = [r for tar in tars for r in compare(tar, num_turns=options.turns)]
        extras = [extras_of(tar) for tar in tars]
    versions = f"Python {platform.python_version()}, webdataset {webdataset.__version__}"
    print(f"{platform.machine()}, {versions}, {options.samples} samples, {options.turns} turns")
    print(f"{'tar':<8}{'side':<13}{'samples/s':>10}{'MB/s':>8}{'best':>10}{'ours is':>9}  range")
    for r in results:
        print(
            f"{r.tar:<8}{r.side:<13}{r.samples_per_s:>10,.0f}{r.mb_per_s:>8,.0f}"
            f"{r.best_samples_per_s:>10,.0f}{r.ratio:>8.2f}x  "
            f"{min(r.ratios):.2f} to {max(r.ratios):.2f}"
        )
    for e in extras:
        print(
            f"{e.tar}: per sample, image SHA-256 {e.image_digest_us:.0f} us, shard SHA-256 "
            f"{e.shard_digest_us:.0f} us; any sample after the scan {e.median_lookup_us:.0f} us, "
            f"at most {e.largest_lookup_us:.0f} us"
        )
    if options.json:
        found = {"results": [asdict(r) for r in results], "extras": [asdict(e) for e in extras]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def compare(tar: Path, *, num_turns: int) -> list[Result]:
    """Let all sides read in turn; the first, which is checked, warms up and is dropped.

    Raises:
        ValueError: the samples of one side differ.
    """
    sides: dict[str, Read] = {"ours": ours, "webdataset": by_webdataset, "tarfile": by_tarfile}
    expected = digests(ours, tar)
    for name, read in sides.items():
        if digests(read, tar) != expected:
            raise ValueError(f"{tar.name}: the samples of {name} differ from ours")
    turns = [{name: seconds(read, tar) for name, read in sides.items()} for _ in range(num_turns)]
    return [result(tar, name, turns, num_samples=len(expected)) for name in sides]


def result(tar: Path, side: str, turns: list[dict[str, float]], *, num_samples: int) -> Result:
    """What the turns say of one side."""
    median_s = statistics.median(turn[side] for turn in turns)
    ratios = [turn[side] / turn["ours"] for turn in turns]
    return Result(
        tar=tar.stem,
        side=side,
        samples_per_s=num_samples / median_s,
        mb_per_s=tar.stat().st_size / 1e6 / median_s,
        best_samples_per_s=num_samples / min(turn[side] for turn in turns),
        ratio=statistics.median(ratios),
        ratios=ratios,
    )


def seconds(read: Read, tar: Path) -> float:
    """Time of this thread to have each sample once."""
    start = time.thread_time()
    for _ in read(tar):
        pass
    return time.thread_time() - start


def digests(read: Read, tar: Path) -> list[tuple[str, dict[str, str]]]:
    """Every sample's key, and the SHA-256 of its parts."""
    return [
        (key, {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()})
        for key, parts in read(tar)
    ]


def ours(tar: Path) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """As the stages do it: scan, group, read by place."""
    shard = open_shard(str(tar))
    for sample in group_samples(shard.members()):
        yield (
            sample.source_key,
            {
                extension: shard.read(offset=member.offset, num_bytes=member.num_bytes)
                for extension, member in sample.members.items()
            },
        )


def by_webdataset(tar: Path) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Its own reader, nothing decoded."""
    for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
        yield sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")}


def by_tarfile(tar: Path) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """A loop over tarfile that joins neighbours, as a script would have it."""
    last, parts = None, {}
    with tarfile.open(tar, "r:") as archive:
        for info in archive:
            file = archive.extractfile(info)
            key, extension = split_name(info.name)
            if last is not None and key != last:
                yield last, parts
                parts = {}
            last, parts[extension] = key, b"" if file is None else file.read()
    if last is not None:
        yield last, parts


def extras_of(tar: Path) -> Extras:
    """Digests, and single samples in any order."""
    shard = open_shard(str(tar))
    samples = group_samples(shard.members())
    images = [sample.members["jpg"] for sample in samples]
    payloads = [shard.read(offset=m.offset, num_bytes=m.num_bytes) for m in images[:NUM_LOOKUPS]]
    start = time.thread_time()
    for payload in payloads:
        hashlib.sha256(payload).hexdigest()
    image_s = (time.thread_time() - start) / len(payloads)
    start = time.thread_time()
    shard.sha256()
    shard_s = (time.thread_time() - start) / len(samples)
    lookups = []
    for image in random.Random(0).choices(images, k=NUM_LOOKUPS):
        start = time.thread_time()
        shard.read(offset=image.offset, num_bytes=image.num_bytes)
        lookups.append(time.thread_time() - start)
    return Extras(
        tar=tar.stem,
        image_digest_us=image_s * 1e6,
        shard_digest_us=shard_s * 1e6,
        median_lookup_us=statistics.median(lookups) * 1e6,
        largest_lookup_us=max(lookups) * 1e6,
    )


def made_tars(folder: Path, *, num_samples: int) -> list[Path]:
    """The same samples twice: with plain headers, and with PAX records."""
    return [
        made_tar(folder / "plain.tar", num_samples=num_samples, time_s=1_700_000_000),
        made_tar(folder / "pax.tar", num_samples=num_samples, time_s=1_700_000_000.25),
    ]


def made_tar(path: Path, *, num_samples: int, time_s: float) -> Path:
    """Samples of noise in place of JPEGs, of about one size."""
    rng = random.Random(0)
    with tarfile.open(path, "w") as archive:
        for number in range(num_samples):
            size = IMAGE_BYTES + rng.randrange(-4_000, 4_000)
            about = {"url": f"https://example.org/{number}.jpg", "width": 640, "height": 480}
            parts = {
                "jpg": rng.randbytes(size),
                "txt": f"a picture of number {number}".encode(),
                "json": json.dumps(about).encode(),
            }
            for extension, payload in parts.items():
                info = tarfile.TarInfo(f"{number:09d}.{extension}")
                info.size, info.mtime = len(payload), time_s + number
                archive.addfile(info, io.BytesIO(payload))
    read_back(path)
    return path


def read_back(path: Path) -> None:
    """Have the file in the page cache as reading it from a disk leaves it, not as writing does."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(2**23):
            pass


if __name__ == "__main__":
    main()
