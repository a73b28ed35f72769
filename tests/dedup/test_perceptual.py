from __future__ import annotations

import numpy as np
import pytest

from capfilt.dedup import perceptual
from capfilt.dedup.perceptual import EMBEDDING, PERCEPTUAL, Likeness, hamming


def at_angle(cosine: float) -> list[float]:
    return [cosine, float(np.sqrt(1 - cosine**2))]


def likeness(
    phash: list[int], vectors: list[list[float]], *, bits: int = 4, floor: float = 0.9
) -> Likeness:
    return Likeness(
        phash=np.array(phash, np.uint64),
        vectors=np.array(vectors, np.float32),
        rows=np.arange(len(phash)),
        max_phash_distance=bits,
        min_cosine_perceptual=floor,
        min_cosine=0.97,
    )


FIRST, SECOND = np.array([0]), np.array([1])
FAR = 2**64 - 1  # 64 bits from hash 0


def test_hamming_counts_differing_bits() -> None:
    left = np.array([0, 0b1011, 2**63], np.uint64)
    right = np.array([0, 0b0001, 2**64 - 1], np.uint64)
    assert hamming(left, right).tolist() == [0, 2, 63]


def test_close_hashes_report_one_minus_bits_over_64() -> None:
    links = likeness([0, 0b1111], [at_angle(1), at_angle(0.95)]).links(FIRST, SECOND)
    assert links.tier.tolist() == [PERCEPTUAL]
    assert links.similarity.tolist() == [1 - 4 / 64]


def test_one_bit_past_the_bound_is_no_link() -> None:
    links = likeness([0, 0b11111], [at_angle(1), at_angle(0.95)]).links(FIRST, SECOND)
    assert len(links.better) == 0


def test_close_hashes_of_images_that_look_unlike_are_no_link() -> None:
    flat = [at_angle(1), at_angle(0.89)]
    assert len(likeness([0, 0], flat).links(FIRST, SECOND).better) == 0
    assert len(likeness([0, 0], flat, floor=-1).links(FIRST, SECOND).better) == 1


def test_close_vectors_report_their_cosine() -> None:
    links = likeness([0, FAR], [at_angle(1), at_angle(0.98)]).links(FIRST, SECOND)
    assert links.tier.tolist() == [EMBEDDING]
    assert links.similarity[0] == pytest.approx(0.98, abs=1e-6)


def test_cosine_at_the_bound_is_a_link() -> None:
    links = likeness([0, FAR], [at_angle(1), at_angle(0.97)]).links(FIRST, SECOND)
    assert links.similarity.tolist() == [np.float32(0.97)]


def test_left_is_paired_only_with_the_right_ones_below_it() -> None:
    same = likeness([0, 0, 0], [at_angle(1)] * 3)
    links = same.links(np.array([1]), np.array([0, 1, 2]))
    assert (links.better.tolist(), links.worse.tolist()) == ([1], [2])


def test_similarity_of_a_pair_does_not_depend_on_its_company() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((400, 256), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    all_pass = Likeness(
        phash=np.zeros(400, np.uint64), vectors=vectors, rows=np.arange(400),
        max_phash_distance=-1, min_cosine_perceptual=-1, min_cosine=-1,
    )  # fmt: skip
    left, right = np.arange(200), np.arange(200, 400)
    together = all_pass.links(left, right).similarity.reshape(200, 200)
    alone = [all_pass.links(left[i : i + 1], right[i : i + 1]).similarity[0] for i in range(200)]
    assert together.diagonal().tolist() == alone


def test_more_images_than_fit_a_chunk_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "CHUNK", 3)
    links = likeness([0] * 8, [at_angle(1)] * 8).links(np.arange(7), np.array([7]))
    assert links.better.tolist() == [0, 1, 2, 3, 4, 5, 6]
