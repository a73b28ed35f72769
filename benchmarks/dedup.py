"""How fast near-duplicates are found, and how many: planted copies in a made-up web.

    python benchmarks/dedup.py [--images 100000] [--dimensions 256] [--audit 10000] [--json FILE]

30 % of the images are copies: a third with the same bytes, a third with a close hash and a vector
at cosine 0.9 to 1, a third by their vector alone, at 0.95 to 1; a third of each are copies of very
few originals. Half of the originals belong to topics, half are alone. The audit compares a sample
of kept images with *all* kept images of better rank: what it finds was missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capfilt.dedup.index import limit_threads
from capfilt.dedup.leader import Duplicates, find_duplicates, group_sizes, rank_order

Vectors = npt.NDArray[np.float32]
MIN_COSINE = 0.95
CHUNK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured call of `find_duplicates`."""

    tiers: str
    wall_s: float
    cpu_s: float
    removed: int
    missed: float  # of the kept images, estimated by the audit
    recall: float  # removed / (removed + missed)
    largest_group: int


def planted_web(count: int, dimensions: int) -> tuple[pa.Table, Vectors]:
    """Images in random order of quality, and their vectors."""
    random = np.random.default_rng(0)
    originals = int(count * 0.7)
    vectors = original_vectors(random, originals, count, dimensions)
    source = random.integers(0, originals, count - originals)
    source[::3] %= max(originals // 2_000, 1)
    kind = random.integers(0, 3, count - originals)  # 0 same bytes, 1 close hash, 2 vector only
    lowest = np.where(kind == 1, 0.9, MIN_COSINE)
    plant_vectors(vectors, source, random.uniform(lowest, 1).astype(np.float32))
    phash = random.integers(0, 2**64, count, dtype=np.uint64)
    flipped = np.uint64(1) << random.integers(0, 64, (2, count), dtype=np.uint64)
    close, same = (originals + np.flatnonzero(kind == k) for k in (1, 0))
    phash[close] = phash[source[close - originals]] ^ flipped[0, close] ^ flipped[1, close]
    digest, side = np.arange(count), random.integers(100, 2_000, count).astype(np.int32)
    for column in (digest, phash, vectors, side):
        column[same] = column[source[same - originals]]
    columns = {
        "key": pa.array(random.permutation(count)).cast(pa.string()),
        "image_sha256": pa.array(digest).cast(pa.string()),
        "phash": pa.array(phash),
        "width_px": pa.array(side),
        "height_px": pa.array(side),
        "text_fit": pa.array(random.random(count, dtype=np.float32)),
    }
    return pa.table(columns), vectors


def original_vectors(
    random: np.random.Generator, originals: int, count: int, dimensions: int
) -> Vectors:
    """(count, dimensions) unit vectors; half of the originals lie about centres of topics."""
    vectors = random.standard_normal((count, dimensions), dtype=np.float32)
    topics = random.standard_normal((max(originals // 500, 1), dimensions), dtype=np.float32)
    topic = np.minimum(random.zipf(1.3, originals // 2), len(topics)) - 1
    vectors[: originals // 2] += topics[topic]
    unit(vectors)
    return vectors


def plant_vectors(vectors: Vectors, source: npt.NDArray[np.int64], cosine: Vectors) -> None:
    """Turn the last vectors toward their sources, to a cosine (len(source),) each; in place."""
    originals = len(vectors) - len(source)
    for start in range(0, len(source), 100_000):
        toward = vectors[source[start : start + 100_000]]
        aside = vectors[originals + start : originals + start + len(toward)]
        aside -= (aside * toward).sum(1, keepdims=True) * toward
        unit(aside)
        share = cosine[start : start + len(toward), None]
        aside *= np.sqrt(1 - share**2)
        aside += share * toward
    unit(vectors)


def unit(vectors: Vectors) -> None:
    """Scale each row to length one, in place."""
    vectors /= np.sqrt(np.einsum("ne,ne->n", vectors, vectors))[:, None]


def missed_share(images: pa.Table, vectors: Vectors, found: Duplicates, audit: int) -> float:
    """Share of kept images that have a kept image of better rank within the cosine threshold."""
    order = rank_order(images)
    kept = order[found.kept[order]]
    audit = min(audit, len(kept))
    chosen = np.sort(np.random.default_rng(1).choice(len(kept), audit, replace=False))
    missed = 0
    for start in range(0, audit, CHUNK):
        ranks = chosen[start : start + CHUNK]
        near = np.zeros(len(ranks), np.bool_)
        for first in range(0, int(ranks[-1]), 100_000):
            better = np.arange(first, min(first + 100_000, int(ranks[-1])))
            cosine = vectors[kept[ranks]] @ vectors[kept[better]].T
            near |= ((cosine >= MIN_COSINE) & (better < ranks[:, None])).any(axis=1)
        missed += int(near.sum())
    return missed / audit


def measure(
    images: pa.Table, vectors: Vectors, *, tiers: str, max_phash_distance: int, audit: int
) -> Result:
    """Time one call and audit its answer."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = find_duplicates(
        images,
        vectors,
        exact=max_phash_distance >= 0,
        max_phash_distance=max_phash_distance,
        min_cosine_perceptual=0.9,
        min_cosine=MIN_COSINE,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    removed = int((~found.kept).sum())
    missed = missed_share(images, vectors, found, audit) * int(found.kept.sum())
    return Result(
        tiers=tiers,
        wall_s=wall,
        cpu_s=cpu,
        removed=removed,
        missed=missed,
        recall=removed / (removed + missed),
        largest_group=max(group_sizes(found.representative)),
    )


def report(results: Sequence[Result], count: int, dimensions: int) -> dict[str, object]:
    """Print a table and return it as plain data."""
    print(f"{count:,} images x {dimensions}, cosine >= {MIN_COSINE}, FAISS on one thread")
    for row in results:
        print(
            f"{row.tiers:>10}  {row.wall_s:7.2f} s wall  {row.cpu_s:7.2f} s CPU  "
            f"{row.removed:,} removed  recall {row.recall:.4f}  largest {row.largest_group:,}"
        )
    rows = [{name: getattr(row, name) for name in Result.__dataclass_fields__} for row in results]
    return {
        "images": count,
        "dimensions": dimensions,
        "python": platform.python_version(),
        "results": rows,
    }


def main() -> None:
    """Measure the embedding tier alone and all three tiers."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=100_000)
    options.add_argument("--dimensions", type=int, default=256)
    options.add_argument("--audit", type=int, default=10_000)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    limit_threads(1)
    images, vectors = planted_web(chosen.images, chosen.dimensions)
    results = [
        measure(images, vectors, tiers=tiers, max_phash_distance=bits, audit=chosen.audit)
        for tiers, bits in (("embedding", -1), ("all", 4))
    ]
    record = report(results, chosen.images, chosen.dimensions)
    if chosen.json:
        chosen.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
