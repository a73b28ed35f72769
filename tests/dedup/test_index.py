from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from capfilt.dedup import index
from capfilt.dedup.index import (
    ClusteredCosineIndex,
    CosineIndex,
    FlatCosineIndex,
    HammingIndex,
    cosine_index,
)
from capfilt.dedup.perceptual import hamming
from capfilt.errors import MissingDependencyError


def unit_vectors(count: int, *, dimensions: int = 32) -> npt.NDArray[np.float32]:
    """Pairs (2i, 2i + 1) at a cosine between 0.85 and 1."""
    random = np.random.default_rng(7)
    vectors = random.standard_normal((count, dimensions), dtype=np.float32)
    vectors[1::2] = vectors[::2] + 0.6 * random.random((count // 2, 1)) * vectors[1::2]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


@pytest.mark.parametrize("make", [
    lambda vectors: FlatCosineIndex(capacity=len(vectors), dimensions=vectors.shape[1]),
    lambda vectors: ClusteredCosineIndex(vectors, num_lists=8),
])  # fmt: skip
def test_search_finds_what_comparing_with_all_finds(make: object) -> None:
    assert callable(make)
    vectors = unit_vectors(800)
    added, queries = vectors[::2], vectors[1::2]
    found_by: CosineIndex = make(vectors)
    for start in (0, 100):
        positions = np.arange(start, start + 100)
        found_by.add(positions * 10, added[positions])
    highest = (added[:200] @ queries.T).max(axis=1)
    found = set((found_by.search(queries, 0.95) // 10).tolist())
    assert set(np.flatnonzero(highest >= 0.95).tolist()) <= found
    assert found <= set(np.flatnonzero(highest >= 0.9498).tolist())
    assert 20 < len(found) < 180


@pytest.mark.parametrize("max_distance", [0, 2, 3, 5, 6, 8, 9, 20])
def test_hamming_search_is_exact_at_every_distance(max_distance: int) -> None:
    random = np.random.default_rng(max_distance)
    hashes = random.integers(0, 2**64, 300, dtype=np.uint64)
    for _ in range(max_distance + 2):  # up to so many bits flipped
        bits = np.uint64(1) << random.integers(0, 64, 200, dtype=np.uint64)
        hashes[100:] ^= bits * (random.random(200) < 0.9).astype(np.uint64)
        hashes[200:] = np.where(random.random(100) < 0.1, hashes[:100], hashes[200:])
    found_by = HammingIndex(capacity=300, max_distance=max_distance)
    found_by.add(np.arange(100, 200), hashes[100:200])
    found_by.add(np.arange(100), hashes[:100])
    near = np.flatnonzero((hamming(hashes[:200, None], hashes[200:]) <= max_distance).any(axis=1))
    assert 0 < len(near) < 200
    assert np.unique(found_by.search(hashes[200:])).tolist() == near.tolist()


def test_searching_before_anything_is_added_finds_nothing() -> None:
    vectors = unit_vectors(64)
    flat = FlatCosineIndex(capacity=64, dimensions=32)
    clustered = ClusteredCosineIndex(vectors, num_lists=4)
    assert len(flat.search(vectors, 0.5)) == 0
    assert len(clustered.search(vectors, 0.5)) == 0
    assert len(HammingIndex(capacity=4, max_distance=4).search(np.zeros(3, np.uint64))) == 0


def test_many_images_get_the_clustered_index(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_vectors(6_000)
    rows = np.arange(6_000)
    assert isinstance(cosine_index(vectors, rows), FlatCosineIndex)
    monkeypatch.setattr(index, "EXACT_UP_TO", 5_000)
    assert isinstance(cosine_index(vectors, rows), ClusteredCosineIndex)


def test_missing_faiss_names_both_ways_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "faiss", None)
    with pytest.raises(MissingDependencyError) as refused:
        HammingIndex(capacity=1, max_distance=4)
    assert "pip install 'capfilt[cpu]'" in str(refused.value)
    assert "pip install 'capfilt[gpu]'" in str(refused.value)
    with pytest.raises(MissingDependencyError):
        ClusteredCosineIndex(unit_vectors(8), num_lists=2)
