"""The measure of likeness: what makes one image a near-duplicate of another.

Candidates come from indexes that may err; this file decides. The numbers it decides by are computed
for each pair on its own, so the decision does not depend on the batch the pair was found in:

    perceptual   64-bit perceptual hashes differ in few bits, and the vectors agree somewhat
    embedding    the filter's image vectors agree closely, and the hashes have something in common

The floor under the perceptual tier is there for flat images (logos, charts, skies): their hashes
are close although they show different things. The bound on the embedding tier is there because the
vectors were taught by texts: two pictures of one kind of scene agree in them, and are not copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

HASH_BITS = 64
COSINE_SLACK = 1e-4  # float32 sums of a unit vector's products, in any order, stay well within it
CHUNK = 4_096  # images compared with a block at once
CHUNK_PAIRS = 65_536  # 64 MiB of float32 per gathered side at 256 dimensions

PERCEPTUAL, EMBEDDING = 2, 3  # codes of a tier, stronger first; `leader.TIER_REASONS` names them

Positions: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Pairs of images that are near-duplicates; `better` has the better rank. K pairs."""

    better: Positions
    worse: Positions
    tier: npt.NDArray[np.int8]
    similarity: npt.NDArray[np.float32]  # in the unit of the tier, see `Likeness`

    def only(self, chosen: npt.NDArray[np.bool_] | Positions) -> Links:
        """The chosen pairs, by mask or by number."""
        return Links(
            better=self.better[chosen],
            worse=self.worse[chosen],
            tier=self.tier[chosen],
            similarity=self.similarity[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Hashes and vectors of M images in rank order, and how close is too close."""

    phash: npt.NDArray[np.uint64]  # (M,)
    vectors: npt.NDArray[np.float32]  # (N, E) unit vectors, N >= M
    rows: Positions  # (M,) row in `vectors` of each image
    max_phash_distance: int  # bits; -1: the tier is off
    min_cosine_perceptual: float
    min_cosine: float  # above 1: the tier is off
    max_phash_distance_embedding: int = HASH_BITS  # bits; 64 asks nothing

    def links(self, left: Positions, right: Positions) -> Links:
        """The near-duplicates among all pairs of one of `left` and one of `right` that ranks below.

        Args:
            left: (A,) positions.
            right: (B,) positions; keep B in the hundreds, `CHUNK` times B numbers are in memory.

        Returns:
            Similarity is `1 - bits / 64` in the perceptual tier and the cosine in the embedding
            tier. A pair of both tiers is of the perceptual one.
        """
        parts = [self._links(left[i : i + CHUNK], right) for i in range(0, len(left), CHUNK)]
        return joined([no_links(), *parts])

    def _links(self, left: Positions, right: Positions) -> Links:
        bits = hamming(self.phash[left][:, None], self.phash[right])  # (A, B)
        cosines = self.vectors_of(left) @ self.vectors_of(right).T  # (A, B)
        like = cosines >= self.min_cosine - COSINE_SLACK
        like |= (bits <= self.max_phash_distance) & (
            cosines >= self.min_cosine_perceptual - COSINE_SLACK
        )
        like &= left[:, None] < right
        a, b = np.nonzero(like)
        return self._decide(left[a], right[b], bits[a, b])

    def _decide(self, better: Positions, worse: Positions, bits: npt.NDArray[np.uint8]) -> Links:
        """The links among candidate pairs (K,) that differ in so many bits."""
        cosine = self._cosines(better, worse)
        close_hash = bits <= self.max_phash_distance
        perceptual = close_hash & (cosine >= np.float32(self.min_cosine_perceptual))
        embedding = cosine >= np.float32(self.min_cosine)
        embedding &= bits <= self.max_phash_distance_embedding
        from_bits = (1 - bits / np.float32(HASH_BITS)).astype(np.float32)
        links = Links(
            better=better,
            worse=worse,
            tier=np.where(perceptual, PERCEPTUAL, EMBEDDING).astype(np.int8),
            similarity=np.where(perceptual, from_bits, cosine),
        )
        return links.only(perceptual | embedding)

    def vectors_of(self, positions: Positions) -> npt.NDArray[np.float32]:
        """(K, E) vectors of the images at these positions (K,)."""
        return self.vectors[self.rows[positions]]

    def _cosines(self, left: Positions, right: Positions) -> npt.NDArray[np.float32]:
        """Cosine per pair, summed in float64: the same to the last bit wherever the pair stands."""
        cosines = np.empty(len(left), np.float32)
        for start in range(0, len(left), CHUNK_PAIRS):
            part = slice(start, start + CHUNK_PAIRS)
            a, b = self.vectors_of(left[part]), self.vectors_of(right[part])
            cosines[part] = np.einsum("ke,ke->k", a, b, dtype=np.float64)
        return np.minimum(cosines, np.float32(1))


def joined(parts: Sequence[Links]) -> Links:
    """One after the other."""
    return Links(
        better=np.concatenate([links.better for links in parts]),
        worse=np.concatenate([links.worse for links in parts]),
        tier=np.concatenate([links.tier for links in parts]),
        similarity=np.concatenate([links.similarity for links in parts]),
    )


def no_links() -> Links:
    """No pairs."""
    none = np.zeros(0, np.int64)
    return Links(
        better=none, worse=none, tier=np.zeros(0, np.int8), similarity=np.zeros(0, np.float32)
    )


def hamming(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Number of differing bits, elementwise under broadcasting."""
    bits: npt.NDArray[np.uint8] = np.bitwise_count(left ^ right)
    return bits
