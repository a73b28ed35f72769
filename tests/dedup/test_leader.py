from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.dedup import index
from capfilt.dedup.leader import (
    BLOCK,
    EXACT,
    KEPT,
    Duplicates,
    cover,
    find_duplicates,
    greedy_cover,
    group_sizes,
    rank_order,
)
from capfilt.dedup.perceptual import EMBEDDING, PERCEPTUAL, Likeness

Vectors = npt.NDArray[np.float32]
MAX_BITS, FLOOR, MIN_COSINE = 4, 0.5, 0.95


def table(
    *, sha: list[str], phash: npt.ArrayLike, side_px: npt.ArrayLike, itm: npt.ArrayLike = 0.5
) -> pa.Table:
    """Images with keys that count up; every side as wide as it is high."""
    count = len(sha)
    side = pa.array(np.broadcast_to(side_px, count), pa.int32())
    return pa.table(
        {
            "key": [f"{row:032x}" for row in range(count)],
            "image_sha256": sha,
            "phash": pa.array(np.asarray(phash, np.uint64)),
            "width_px": side,
            "height_px": side,
            "text_fit": pa.array(np.broadcast_to(itm, count), pa.float32()),
        }
    )


def find(images: pa.Table, vectors: Vectors, *, exact: bool = True) -> Duplicates:
    return find_duplicates(
        images, vectors, exact=exact, max_phash_distance=MAX_BITS, min_cosine_perceptual=FLOOR,
        min_cosine=MIN_COSINE,
    )  # fmt: skip


def far_hashes(count: int) -> npt.NDArray[np.uint64]:
    """Random ones: a pair within 4 of 64 bits has a chance of 4e-14."""
    return np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)


def planted_web(seed: int, *, count: int = 400) -> tuple[pa.Table, Vectors]:
    """Originals and, by turns, copies of bytes, of hash and of vector, also copies of copies."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, 24))
    vectors[: count // 4] += 2 * vectors[0]  # a crowded topic
    phash = random.integers(0, 2**64, count, dtype=np.uint64)
    sha = [f"{row}" for row in range(count)]
    side = random.integers(10, 14, count)
    for row in range(count // 3, count):
        source = random.integers(0, row)
        noise = random.choice([0.0, 0.1, 0.3, 0.5])
        vectors[row] = (
            vectors[source] + noise * random.standard_normal(24) * np.abs(vectors[source]).mean()
        )
        flipped = np.bitwise_or.reduce(
            np.uint64(1) << random.integers(0, 64, random.integers(1, 8), dtype=np.uint64)
        )
        if noise < 0.5:
            phash[row] = phash[source] ^ flipped
        if noise == 0.0:
            vectors[row], phash[row], sha[row] = vectors[source], phash[source], sha[source]
            side[row] = side[source]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    images = table(sha=sha, phash=phash, side_px=side, itm=random.choice([0.5, 0.7], count))
    return images, vectors.astype(np.float32)


def pairwise(
    images: pa.Table, vectors: Vectors
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Tier and similarity of all pairs, by comparing all with all; tier 0 for no duplicates."""
    phash = images["phash"].to_numpy()
    sha = np.array(images["image_sha256"].to_pylist())
    bits = np.bitwise_count(phash[:, None] ^ phash)
    cosine = (vectors.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
    perceptual = (bits <= MAX_BITS) & (cosine >= np.float32(FLOOR))
    embedding = cosine >= np.float32(MIN_COSINE)
    exact = sha[:, None] == sha
    tier = np.select([exact, perceptual, embedding], [EXACT, PERCEPTUAL, EMBEDDING], 0)
    similarity = np.select([exact, perceptual], [1.0, 1 - bits / 64], cosine)
    return tier.astype(np.int8), similarity.astype(np.float32)


def slow_kept(images: pa.Table, vectors: Vectors) -> npt.NDArray[np.bool_]:
    """The definition, one image after the other."""
    tier, _ = pairwise(images, vectors)
    kept = np.zeros(len(vectors), np.bool_)
    for row in rank_order(images):
        kept[row] = not np.any(tier[row, kept])
    return kept


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 5_000))
def test_cover_keeps_what_the_definition_keeps(seed: int) -> None:
    images, vectors = planted_web(seed, count=120)
    assert find(images, vectors).kept.tolist() == slow_kept(images, vectors).tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 5_000))
def test_every_removed_image_has_a_kept_one_within_the_threshold(seed: int) -> None:
    images, vectors = planted_web(seed, count=200)
    found = find(images, vectors)
    tier, similarity = pairwise(images, vectors)
    removed = np.flatnonzero(~found.kept)
    keeper = found.representative[removed]
    assert found.kept[keeper].all()
    assert tier[removed, keeper].tolist() == found.tier[removed].tolist()
    assert np.allclose(similarity[removed, keeper], found.similarity[removed], atol=1e-6)
    least = {EXACT: 1.0, PERCEPTUAL: 1 - MAX_BITS / 64, EMBEDDING: MIN_COSINE}
    bounds = np.array([least[t] for t in found.tier[removed].tolist()], np.float32)
    assert (found.similarity[removed] >= bounds).all()


def test_no_two_kept_images_are_duplicates() -> None:
    images, vectors = planted_web(3)
    kept = find(images, vectors).kept
    tier, _ = pairwise(images, vectors)
    assert np.count_nonzero(tier[np.ix_(kept, kept)]) == kept.sum()  # each with itself


def test_twenty_orders_of_the_images_give_one_answer() -> None:
    images, vectors = planted_web(5)
    expected = find(images, vectors)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(vectors))
        found = find(images.take(order), vectors[order])
        assert order[found.representative].tolist() == expected.representative[order].tolist()
        assert found.tier.tolist() == expected.tier[order].tolist()
        assert found.similarity.tolist() == expected.similarity[order].tolist()


def test_five_orders_give_one_answer_with_the_clustered_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index, "EXACT_UP_TO", 100)
    monkeypatch.setattr(index, "POINTS_PER_LIST", 40)
    images, vectors = planted_web(6, count=2_000)
    expected = find(images, vectors).representative
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(vectors))
        found = find(images.take(order), vectors[order]).representative
        assert order[found].tolist() == expected[order].tolist()


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_answer_does_not_depend_on_the_block(block: int) -> None:
    images, vectors = planted_web(8)
    order = rank_order(images)
    likeness = Likeness(
        phash=images["phash"].to_numpy()[order], vectors=vectors, rows=order,
        max_phash_distance=MAX_BITS, min_cosine_perceptual=FLOOR, min_cosine=MIN_COSINE,
    )  # fmt: skip
    whole, parts = cover(likeness, block=BLOCK), cover(likeness, block=block)
    assert whole.representative.tolist() == parts.representative.tolist()
    assert whole.similarity.tolist() == parts.similarity.tolist()


@pytest.mark.parametrize("block", [1, 2, 4])
def test_closest_of_two_keepers_is_named_wherever_a_block_ends(block: int) -> None:
    degrees = np.deg2rad([180, 0, 20, 14])  # the last is within 0.95 of two kept: 14 and 6 away
    vectors = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    likeness = Likeness(
        phash=far_hashes(4), vectors=vectors, rows=np.arange(4), max_phash_distance=MAX_BITS,
        min_cosine_perceptual=FLOOR, min_cosine=MIN_COSINE,
    )  # fmt: skip
    assert cover(likeness, block=block).representative.tolist() == [0, 1, 2, 2]


def test_a_chain_keeps_every_second_image() -> None:
    """10 chains of 200 with neighbours at cosine 0.97; connected components would keep 10 images.

    Steps turn by the same angle in fresh random directions, so images two steps apart are at
    0.97 ** 2 = 0.94 or thereabouts: below 0.95, hence kept.
    """
    random = np.random.default_rng(0)
    chains = np.empty((10, 200, 256))
    chains[:, 0] = random.standard_normal((10, 256))
    chains[:, 0] /= np.linalg.norm(chains[:, 0], axis=1, keepdims=True)
    for step in range(1, 200):
        last = chains[:, step - 1]
        aside = random.standard_normal((10, 256))
        aside -= (aside * last).sum(1, keepdims=True) * last
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        chains[:, step] = 0.97 * last + np.sqrt(1 - 0.97**2) * aside
    vectors = chains.reshape(-1, 256).astype(np.float32)
    images = table(sha=[f"{row}" for row in range(2_000)], phash=far_hashes(2_000), side_px=100)
    found = find(images, vectors)
    assert 980 <= found.kept.sum() <= 1_000
    assert found.similarity.min() >= np.float32(0.95)
    assert found.similarity[~found.kept].mean() == pytest.approx(0.97, abs=0.005)


def one_group(**columns: npt.ArrayLike) -> Duplicates:
    count = 3
    images = table(sha=["x"] * count, phash=[0] * count, **{"side_px": 100, **columns})
    return find(images, np.ones((count, 1), np.float32))


def test_more_pixels_are_kept_first() -> None:
    assert one_group(side_px=[100, 101, 99], itm=[0.9, 0.1, 0.9]).kept.tolist() == [
        False, True, False,
    ]  # fmt: skip


def test_higher_itm_is_kept_among_equal_pixels() -> None:
    assert one_group(itm=[0.5, 0.6, 0.7]).representative.tolist() == [2, 2, 2]


def test_smaller_key_is_kept_among_equals() -> None:
    assert one_group().representative.tolist() == [0, 0, 0]


def test_copy_of_a_removed_image_shares_its_fate() -> None:
    images = table(sha=["x", "y", "y"], phash=[0, 1, 1], side_px=[9, 8, 8])
    found = find(images, np.ones((3, 1), np.float32))
    assert found.representative.tolist() == [0, 0, 0]
    assert found.tier.tolist() == [KEPT, PERCEPTUAL, PERCEPTUAL]
    assert found.similarity.tolist() == [1, 1 - 1 / 64, 1 - 1 / 64]


def test_strongest_tier_names_the_representative() -> None:
    angle = np.deg2rad([0, 40, 37])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    images = table(sha=["x", "y", "z"], phash=[0, 2**64 - 1, 1], side_px=[9, 8, 7])
    found = find(images, vectors)  # z: one bit from x (cosine 0.80), 3 degrees from y
    assert found.representative.tolist() == [0, 1, 0]
    assert found.tier.tolist() == [KEPT, KEPT, PERCEPTUAL]


def test_reasons_are_those_of_the_tiers() -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0.96, 0.28], [0, 1]], np.float32)
    far = 2**64 - 1
    images = table(
        sha=["x", "x", "y", "z", "w"], phash=[0, 0, 1, far, 255], side_px=[9, 9, 8, 7, 6]
    )
    assert find(images, vectors).reasons().to_pylist() == [
        None, "duplicate_exact", "duplicate_perceptual", "duplicate_embedding", None,
    ]  # fmt: skip


def test_tiers_can_be_turned_off() -> None:
    images = table(sha=["x"] * 4, phash=[0] * 4, side_px=9)
    found = find_duplicates(
        images, np.ones((4, 1), np.float32), exact=False, max_phash_distance=-1,
        min_cosine_perceptual=0.9, min_cosine=1.01,
    )  # fmt: skip
    assert found.kept.all()


@pytest.mark.parametrize(("bits", "num_kept"), [(9, 2), (10, 1), (64, 1)])
def test_close_vectors_are_no_duplicates_where_hashes_differ_more(bits: int, num_kept: int) -> None:
    images = table(sha=["a", "b"], phash=[0, 2**10 - 1], side_px=8)
    found = find_duplicates(
        images, np.eye(1, 4, dtype=np.float32).repeat(2, axis=0), exact=True,
        max_phash_distance=MAX_BITS, min_cosine_perceptual=FLOOR, min_cosine=MIN_COSINE,
        max_phash_distance_embedding=bits,
    )  # fmt: skip
    assert int(found.kept.sum()) == num_kept


def test_equal_bytes_are_perceptual_duplicates_without_the_exact_tier() -> None:
    images = table(sha=["x"] * 2, phash=[0] * 2, side_px=9)
    found = find(images, np.ones((2, 1), np.float32), exact=False)
    assert found.tier.tolist() == [KEPT, PERCEPTUAL]


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one_image_are_kept(count: int) -> None:
    images = table(sha=["x"] * count, phash=[0] * count, side_px=9)
    found = find(images, np.ones((count, 8), np.float32))
    assert found.representative.tolist() == list(range(count))
    assert found.reasons().to_pylist() == [None] * count


def test_thousands_of_copies_of_one_image_leave_one() -> None:
    random = np.random.default_rng(0)
    vectors = np.ones((5_000, 16)) + 0.02 * random.standard_normal((5_000, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    images = table(sha=[f"{row}" for row in range(5_000)], phash=far_hashes(5_000), side_px=100)
    found = find(images, vectors.astype(np.float32))
    assert group_sizes(found.representative) == {5_000: 1}


def test_greedy_cover_decides_a_long_chain_in_order() -> None:
    links = np.arange(999)
    kept = greedy_cover(1_000, links, links + 1)
    assert kept.tolist() == [True, False] * 500


def test_group_sizes_count_groups_by_size() -> None:
    assert group_sizes(np.array([0, 0, 0, 3, 4, 4])) == {1: 1, 2: 1, 3: 1}


def test_group_sizes_of_nothing_are_empty() -> None:
    assert group_sizes(np.zeros(0, np.int64)) == {}
