"""Recall: how often a right answer is among the first that were retrieved."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from capfilt_blip.tasks.reranker import Hits, Retrieved

KS = (1, 5, 10)
"""The k of R@k in retrieval papers (arXiv:2201.12086, sec. 5.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalls:
    """How well texts and images find each other; each number in [0, 1]."""

    texts: tuple[float, ...]
    """R@1, R@5 and R@10 of image to text (TR)."""
    images: tuple[float, ...]
    """R@1, R@5 and R@10 of text to image (IR)."""

    @property
    def mean(self) -> float:
        """Mean of the six, by which BLIP chooses its checkpoint."""
        both = self.texts + self.images
        return sum(both) / len(both)


def recalls(retrieved: Retrieved, *, image_of_text: Sequence[int]) -> Recalls:
    """Measure retrieved in both directions.

    Args:
        retrieved: of N images and T texts.
        image_of_text: T places, each of the image that a text describes. An image may have many
            texts; one that has none is no query, but stays an answer that can be wrong.

    Raises:
        ValueError: there are not as many places as texts, or a place is none of an image.
    """
    texts_of_image: list[list[int]] = [[] for _ in retrieved.texts.indices]
    for text, image in enumerate(image_of_text):
        if not 0 <= image < len(texts_of_image):
            raise ValueError(
                f"image_of_text[{text}] is {image}; there are {len(texts_of_image)} images"
            )
        texts_of_image[image].append(text)
    return Recalls(
        texts=recall_at(retrieved.texts, texts_of_image),
        images=recall_at(retrieved.images, [[image] for image in image_of_text]),
    )


def recall_at(
    hits: Hits, truths: Sequence[Collection[int]], *, ks: Sequence[int] = KS
) -> tuple[float, ...]:
    """Return for each k the share of queries that have a right answer among their first k.

    Args:
        hits: of Q queries.
        truths: the right answers of each query; one of several is enough. A query without any is
            not counted.
        ks: how many places count. Answers that are no candidates are nowhere found, so a k above
            the number of candidates counts as that number.

    Returns:
        As many numbers as `ks`, in [0, 1].

    Raises:
        ValueError: there are not as many truths as queries, or all are empty.
    """
    if len(truths) != len(hits.indices):
        raise ValueError(f"{len(truths)} truths were given for {len(hits.indices)} queries")
    places = [
        _first_hit(row, set(truth))
        for row, truth in zip(hits.indices.tolist(), truths, strict=True)
        if truth
    ]
    if not places:
        raise ValueError("no query has a right answer; recall is a share of those that have")
    return tuple(sum(place < k for place in places) / len(places) for k in ks)


def _first_hit(candidates: Sequence[int], truth: set[int]) -> float:
    return next((place for place, found in enumerate(candidates) if found in truth), float("inf"))
