"""Which image stands for which: a leader cover, visited in order of quality.

Images are ranked: more pixels first, then the better-supported text, then the smaller key. In that
order an image is kept unless it is a near-duplicate of one that is *kept*. Comparing with removed
images too, as connected components do, deletes whole chains (video frames, product variants) and
leaves nothing like them; here every removed image has a kept one within the threshold:

    kept(i) = no kept j before i in rank is linked to i
    representative(i) = the kept j before i with the strongest tier, then the highest similarity,
                        then the best rank

The rank is a total order and all else follows from it, so the order of shards changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.dedup.exact import equality_codes, first_of_equal
from capfilt.dedup.index import CosineIndex, HammingIndex, cosine_index
from capfilt.dedup.perceptual import (
    EMBEDDING,
    HASH_BITS,
    PERCEPTUAL,
    Likeness,
    Links,
    Positions,
    joined,
)
from capfilt.records import Reason

Tiers: TypeAlias = npt.NDArray[np.int8]
Vectors: TypeAlias = npt.NDArray[np.float32]

KEPT, EXACT = 0, 1
TIER_REASONS = {
    KEPT: None,
    EXACT: Reason.DUPLICATE_EXACT,
    PERCEPTUAL: Reason.DUPLICATE_PERCEPTUAL,
    EMBEDDING: Reason.DUPLICATE_EMBEDDING,
}
BLOCK = 512  # images decided together; if no index misses a pair, the results do not depend on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """What became of N images, in the order they were given."""

    representative: Positions  # (N,) row of the kept image that stands for it; a kept one's own
    tier: Tiers  # (N,) KEPT, EXACT, PERCEPTUAL or EMBEDDING
    similarity: npt.NDArray[np.float32]  # (N,) to the representative; 1 if kept or exact

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """(N,) True where the image stays."""
        kept: npt.NDArray[np.bool_] = self.tier == KEPT
        return kept

    def reasons(self) -> pa.Array:
        """(N,) strings: why the image goes, null where it stays."""
        return pa.array(list(TIER_REASONS.values()), pa.string()).take(pa.array(self.tier))


def find_duplicates(  # noqa: PLR0913  # the bounds of three tiers, each set by somebody
    images: pa.Table,
    vectors: Vectors,
    *,
    exact: bool,
    max_phash_distance: int,
    min_cosine_perceptual: float,
    min_cosine: float,
    max_phash_distance_embedding: int = HASH_BITS,
) -> Duplicates:
    """Find the near-duplicates among images, and the best image of each to keep.

    Args:
        images: one row per image, in any order, without nulls: `key` (unique), `image_sha256`,
            `phash`, `width_px`, `height_px` as in `records.Sample`, and `text_fit`, how well the
            best of its kept texts fits.
        vectors: (N, E) float32 unit vectors of the same images in the same order.
        exact: whether equal bytes are a tier of their own; a copy shares the fate of the best
            image with its bytes, whose hash and vector are taken for its own.
        max_phash_distance: most differing bits of the perceptual hash, 0 to 64; -1 turns the
            perceptual tier off.
        min_cosine_perceptual: vectors of images with close hashes must agree this much; -1 asks
            nothing.
        min_cosine: lowest cosine of the embedding tier; the bound counts as a duplicate. Above 1
            turns the tier off.
        max_phash_distance_embedding: most differing bits that images of the embedding tier may
            have; 64 asks nothing.

    Returns:
        One answer per image. A removed image's similarity is at least the threshold of its tier.

    Raises:
        MissingDependencyError: FAISS is not installed.
    """
    assert len(vectors) == len(images), f"{len(vectors)} vectors for {len(images)} images"
    order = rank_order(images)
    first = np.arange(len(order))
    if exact:
        first = first_of_equal(equality_codes(images["image_sha256"])[order])
    leaders = np.flatnonzero(first == np.arange(len(order)))  # ranks of the first with their bytes
    likeness = Likeness(
        phash=images["phash"].to_numpy()[order[leaders]],
        vectors=vectors,
        rows=order[leaders],
        max_phash_distance=max_phash_distance,
        min_cosine_perceptual=min_cosine_perceptual,
        min_cosine=min_cosine,
        max_phash_distance_embedding=max_phash_distance_embedding,
    )
    return _expand(cover(likeness), order=order, first=first, leaders=leaders)


def rank_order(images: pa.Table) -> Positions:
    """Rows from best to worst: more pixels, then higher `text_fit`, then smaller `key`."""
    ranking = pa.table(
        {
            "num_pixels": pc.multiply(
                images["width_px"].cast(pa.int64()), images["height_px"].cast(pa.int64())
            ),
            "text_fit": images["text_fit"],
            "key": images["key"],
        }
    )
    by = [("num_pixels", "descending"), ("text_fit", "descending"), ("key", "ascending")]
    order: Positions = pc.sort_indices(ranking, sort_keys=by).to_numpy().astype(np.int64)
    return order


def cover(likeness: Likeness, *, block: int = BLOCK) -> Duplicates:
    """Leader cover of M images in rank order, none of them with the bytes of another.

    A block of images is compared with those kept so far, then its members with each other. Only
    kept images are ever compared with, so ten thousand copies cost ten thousand links and not
    their square.
    """
    count = len(likeness.rows)
    found = Duplicates(
        representative=np.arange(count),
        tier=np.full(count, KEPT, np.int8),
        similarity=np.ones(count, np.float32),
    )
    kept_so_far = _KeptImages(likeness)
    for start in range(0, count, block):
        members = np.arange(start, min(start + block, count))
        links = strongest(_decide(members, kept_so_far))
        found.representative[links.worse] = links.better
        found.tier[links.worse] = links.tier
        found.similarity[links.worse] = links.similarity
        kept_so_far.add(members[found.tier[members] == KEPT])
    return found


def greedy_cover(count: int, better: Positions, worse: Positions) -> npt.NDArray[np.bool_]:
    """Keep each image that no kept image of better rank is linked to.

    Every round decides all images whose better-ranked neighbours are decided, at once; a chain
    of n images takes n / 2 rounds, anything else very few.

    Args:
        count: images, numbered in rank order.
        better: (K,) the linked image of better rank.
        worse: (K,) the other one.

    Returns:
        (count,) True where kept: what a visit one by one in rank order gives.
    """
    kept = np.zeros(count, np.bool_)
    open_ = np.ones(count, np.bool_)
    while open_.any():
        waiting = np.zeros(count, np.bool_)
        waiting[worse] = True
        kept |= open_ & ~waiting
        open_ &= waiting
        open_[worse[kept[better]]] = False
        undecided = open_[better] & open_[worse]
        better, worse = better[undecided], worse[undecided]
    return kept


def strongest(links: Links) -> Links:
    """One link per worse image: the strongest tier, the highest similarity, the best rank."""
    order = np.lexsort((links.better, -links.similarity, links.tier, links.worse))
    _, first = np.unique(links.worse[order], return_index=True)
    return links.only(order[first])


def group_sizes(representative: Positions) -> dict[int, int]:
    """How many groups there are of each size; a group is a kept image and those it stands for.

    Args:
        representative: (N,) row of the kept image that stands for each image.

    Returns:
        Number of groups by number of images, in order of size; size times number sums up to N.
    """
    members = np.bincount(representative)
    sizes, counts = np.unique(members[members > 0], return_counts=True)
    return dict(zip(sizes.tolist(), counts.tolist(), strict=True))


class _KeptImages:
    """The images kept so far, to be found by hash and by vector."""

    def __init__(self, likeness: Likeness) -> None:
        self.likeness = likeness
        self._hashes: HammingIndex | None = None
        self._vectors: CosineIndex | None = None
        if likeness.max_phash_distance >= 0:
            self._hashes = HammingIndex(
                capacity=len(likeness.rows), max_distance=likeness.max_phash_distance
            )
        if likeness.min_cosine <= 1:
            self._vectors = cosine_index(likeness.vectors, likeness.rows)

    def add(self, members: Positions) -> None:
        if self._hashes is not None:
            self._hashes.add(members, self.likeness.phash[members])
        if self._vectors is not None:
            self._vectors.add(members, self.likeness.vectors_of(members))

    def near(self, members: Positions) -> Positions:
        """The kept images that may be near-duplicates of some of these."""
        found = [np.zeros(0, np.int64)]
        if self._hashes is not None:
            found.append(self._hashes.search(self.likeness.phash[members]))
        if self._vectors is not None:
            vectors = self.likeness.vectors_of(members)
            found.append(self._vectors.search(vectors, self.likeness.min_cosine))
        return np.unique(np.concatenate(found))


def _decide(members: Positions, kept_so_far: _KeptImages) -> Links:
    """All links from kept images to the members of a block that must go."""
    likeness = kept_so_far.likeness
    outer = likeness.links(kept_so_far.near(members), members)
    gone = np.unique(outer.worse)
    open_ = np.setdiff1d(members, gone, assume_unique=True)
    inner = likeness.links(open_, open_)
    in_open = (np.searchsorted(open_, inner.better), np.searchsorted(open_, inner.worse))
    kept = greedy_cover(len(open_), *in_open)
    # Those gone already may be closer to one kept just now: without asking, the representative
    # would depend on where a block ends.
    newer = likeness.links(open_[kept], gone)
    return joined([outer, inner.only(kept[in_open[0]]), newer])


def _expand(
    cover_: Duplicates, *, order: Positions, first: Positions, leaders: Positions
) -> Duplicates:
    """From the leaders of equal bytes to all images, and from rank order to the order given."""
    leader = np.searchsorted(leaders, first)  # (N,) by rank: number among the leaders
    tier = cover_.tier[leader]
    tier[(tier == KEPT) & (first != np.arange(len(first)))] = EXACT
    by_row = np.argsort(order)
    return Duplicates(
        representative=order[leaders[cover_.representative[leader]]][by_row],
        tier=tier[by_row],
        similarity=cover_.similarity[leader][by_row],
    )
