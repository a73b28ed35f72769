"""Finds candidates among the images kept so far; the one home of FAISS.

Indexes answer "which of the added images may be this close to one of these?". They may report one
that is not close enough, for `perceptual.Likeness` decides, and one index may miss some. Images are
added while the search goes on, because only kept images are ever added.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from capfilt.dedup.perceptual import COSINE_SLACK, HASH_BITS, Positions
from capfilt.errors import MissingDependencyError

try:
    import faiss
except ImportError:
    faiss = None  # type: ignore[assignment]  # a module or nothing

Vectors: TypeAlias = npt.NDArray[np.float32]
Hashes: TypeAlias = npt.NDArray[np.uint64]

EXACT_UP_TO = 50_000  # images; comparing all with all takes seconds up to here
NUM_BANDS = 3  # of 21 bits: nearly every bucket of a million hashes is empty
MAX_BANDED_DISTANCE = 8  # bits; beyond, a search has thousands of look-ups: all are quicker
NUM_PROBES = 16  # clusters searched; recall 0.9995 where vectors form no clusters: the worst case
NUM_LEVELS = 8  # of early stopping in a comparison: after 1/8, 2/8 ... of the dimensions
POINTS_PER_LIST = 64  # training vectors per centroid; FAISS asks for 39 at least
SEED = 20220128


class CosineIndex(Protocol):
    """Unit vectors to be found by cosine."""

    def add(self, positions: Positions, vectors: Vectors) -> None:
        """Let the vectors (K, E) be found from now on, under these positions (K,)."""
        ...

    def search(self, vectors: Vectors, min_cosine: float) -> Positions:
        """Positions with a cosine of at least `min_cosine` to any query (K, E); may repeat."""
        ...


class FlatCosineIndex:
    """Compares with every vector. Exact."""

    def __init__(self, *, capacity: int, dimensions: int) -> None:
        """Make room for `capacity` vectors."""
        self._vectors = np.empty((capacity, dimensions), np.float32)
        self._positions = np.empty(capacity, np.int64)
        self._count = 0

    def add(self, positions: Positions, vectors: Vectors) -> None:
        """See `CosineIndex.add`."""
        end = self._count + len(positions)
        self._vectors[self._count : end] = vectors
        self._positions[self._count : end] = positions
        self._count = end

    def search(self, vectors: Vectors, min_cosine: float) -> Positions:
        """See `CosineIndex.search`; misses none."""
        cosines = vectors @ self._vectors[: self._count].T  # (K, count)
        near = (cosines >= min_cosine - COSINE_SLACK).any(axis=0)
        found: Positions = self._positions[: self._count][near]
        return found


class ClusteredCosineIndex:
    """Compares with the vectors of the nearest clusters only, each comparison stopped early.

    An inverted file with about sqrt(N) lists. FAISS's "Panorama" layout adds up a distance
    dimension by dimension and gives up once it is out of reach, which it nearly always is after a
    few: no pair is lost by that and it is six times faster. A pair is lost if the kept vector lies
    in none of the `NUM_PROBES` lists nearest to the query.
    """

    def __init__(self, sample: Vectors, *, num_lists: int) -> None:
        """Place the lists' centroids.

        Args:
            sample: (S, E) unit vectors, some of those to come.
            num_lists: clusters, at most S.

        Raises:
            MissingDependencyError: FAISS is not installed.
        """
        _require_faiss()
        dimensions = sample.shape[1]
        self._index = faiss.IndexIVFFlatPanorama(
            faiss.IndexFlatL2(dimensions), dimensions, num_lists, NUM_LEVELS
        )
        self._index.cp.spherical = True
        self._index.cp.niter = 6  # more moves centroids, but hardly the recall
        self._index.cp.seed = SEED
        self._index.train(sample)
        self._num_probes = min(NUM_PROBES, num_lists)

    def add(self, positions: Positions, vectors: Vectors) -> None:
        """See `CosineIndex.add`."""
        self._index.add_with_ids(vectors, positions)

    def search(self, vectors: Vectors, min_cosine: float) -> Positions:
        """See `CosineIndex.search`; may miss some."""
        self._index.nprobe = self._num_probes
        max_squared_distance = 2 - 2 * (min_cosine - COSINE_SLACK)  # of unit vectors
        found: Positions
        _, _, found = self._index.range_search(vectors, max_squared_distance)
        return found


class HammingIndex:
    """64-bit hashes to be found by the number of differing bits. Exact.

    Of three bands of 21 bits, two hashes that differ in h bits agree in one up to h // 3 bits. So
    three tables are looked up, at the band itself and at its close neighbours.
    """

    def __init__(self, *, capacity: int, max_distance: int) -> None:
        """Make room for `capacity` hashes, to be searched within `max_distance` bits.

        Raises:
            MissingDependencyError: FAISS is not installed.
        """
        _require_faiss()
        self._max_distance = max_distance
        self._positions = np.empty(capacity, np.int64)
        self._index: faiss.IndexBinary = faiss.IndexBinaryFlat(HASH_BITS)
        if max_distance <= MAX_BANDED_DISTANCE:
            self._index = faiss.IndexBinaryMultiHash(HASH_BITS, NUM_BANDS, HASH_BITS // NUM_BANDS)
            self._index.nflip = max_distance // NUM_BANDS

    def add(self, positions: Positions, hashes: Hashes) -> None:
        """Let hashes (K,) be found from now on, under these positions (K,)."""
        start = self._index.ntotal
        self._positions[start : start + len(positions)] = positions
        self._index.add(_as_bytes(hashes))

    def search(self, hashes: Hashes) -> Positions:
        """Positions at most `max_distance` bits from any query (K,); may repeat."""
        _, _, numbers = self._index.range_search(_as_bytes(hashes), self._max_distance + 1)
        found: Positions = self._positions[numbers]
        return found


def cosine_index(vectors: Vectors, rows: Positions) -> CosineIndex:
    """The index fit for a number of images: exact for few, clustered for many.

    Args:
        vectors: (N, E) unit vectors.
        rows: (M,) which of them may be added.

    Raises:
        MissingDependencyError: FAISS is needed and not installed.
    """
    if len(rows) <= EXACT_UP_TO:
        return FlatCosineIndex(capacity=len(rows), dimensions=vectors.shape[1])
    num_lists = math.isqrt(len(rows))
    drawn = np.random.default_rng(SEED).choice(
        len(rows), num_lists * POINTS_PER_LIST, replace=False, shuffle=False
    )
    return ClusteredCosineIndex(vectors[rows[np.sort(drawn)]], num_lists=num_lists)


def limit_threads(num_threads: int) -> None:
    """Bound the CPU threads FAISS uses in this process; results do not depend on it.

    A process that was given a share of a machine must keep to it: FAISS takes all cores, and its
    threads wait for each other by spinning, which on busy cores is many times slower than one.

    Raises:
        MissingDependencyError: FAISS is not installed.
    """
    _require_faiss()
    faiss.omp_set_num_threads(num_threads)


def _as_bytes(hashes: Hashes) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8)


def _require_faiss() -> None:
    if faiss is None:
        raise MissingDependencyError(
            "dedup: FAISS is not installed; run: pip install 'capfilt[cpu]' "
            "(or, with a GPU: pip install 'capfilt[gpu]')"
        )
