"""CIDEr: how near a caption is to what people wrote of the same image (Vedantam et al. 2015).

A text is a vector of its n-grams, each weighted by how rare it is: TF-IDF, where a document is all
references of one image (arXiv:1411.5726, sec. 3). CIDEr is the mean cosine of a caption and its
references, over n = 1 to 4. CIDEr-D (sec. 5) cannot be won by repeating rare words: an n-gram
counts no more often than the reference has it, and another length costs.

Both are multiplied by 10. Papers print 100 times that: their 133.3 is 1.333 here.

Letters: N images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from capfilt_blip.evaluate.words import NGram, ngrams_of, words_of

MAX_N = 4
"""Longest n-gram (arXiv:1411.5726, sec. 3)."""

SCALE = 10.0
"""Of CIDEr-D in the paper (sec. 5), and of both in the authors' code."""

SIGMA = 6.0
"""Words: the width of the Gaussian that lets CIDEr-D punish another length (sec. 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vector:
    """A text: its weighted n-grams, a part for each n."""

    parts: tuple[dict[NGram, float], ...]
    num_words: int


class Cider:
    """Compares captions with the references of their images.

    As in the authors' code, words are not stemmed, an n-gram that no reference has is as rare as
    one that a single image has, and a count is taken as it is: the paper divides it by the length,
    which changes no cosine.

    Args:
        references: of each of N images, one text or more.

    Raises:
        ValueError: there are fewer than two images, or one has no reference. With one image no
            word is rarer than another, and every weight would be 0.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        if len(references) < 2:
            raise ValueError(
                f"CIDEr weighs words by how rare they are among images; {len(references)} images "
                "were given, 2 or more are needed"
            )
        if not all(references):
            missing = next(place for place, texts in enumerate(references) if not texts)
            raise ValueError(f"image {missing} has no reference; each needs one or more")
        seen: Counter[NGram] = Counter()
        for texts in references:
            seen.update({ngram for text in texts for ngram in _counted(words_of(text))})
        self._log_num_images = math.log(len(references))
        self._log_seen = {ngram: math.log(count) for ngram, count in seen.items()}
        self._references = [[self._vector(text) for text in texts] for texts in references]

    def cider(self, captions: Sequence[str]) -> list[float]:
        """Score captions by CIDEr.

        Args:
            captions: of the first images, one each; the others only tell which words are rare.

        Returns:
            As many numbers, in [0, 10].

        Raises:
            ValueError: there are more captions than images.
        """
        return self._scores(captions, _cosine)

    def cider_d(self, captions: Sequence[str]) -> list[float]:
        """Score captions by CIDEr-D; the arguments and the range are those of `cider`."""
        return self._scores(captions, _clipped_cosine)

    def _scores(
        self, captions: Sequence[str], alike: Callable[[_Vector, _Vector], float]
    ) -> list[float]:
        if len(captions) > len(self._references):
            raise ValueError(f"{len(captions)} captions of {len(self._references)} images")
        return [
            SCALE * fmean(alike(self._vector(caption), reference) for reference in references)
            for caption, references in zip(captions, self._references, strict=False)
        ]

    def _vector(self, text: str) -> _Vector:
        words = words_of(text)
        parts: tuple[dict[NGram, float], ...] = tuple({} for _ in range(MAX_N))
        for ngram, count in _counted(words).items():
            rarity = self._log_num_images - self._log_seen.get(ngram, 0.0)
            parts[len(ngram) - 1][ngram] = count * rarity
        return _Vector(parts=parts, num_words=len(words))


def _counted(words: list[str]) -> Counter[NGram]:
    """Count the n-grams of all lengths."""
    return Counter(ngram for n in range(1, MAX_N + 1) for ngram in ngrams_of(words, n=n))


def _cosine(caption: _Vector, reference: _Vector) -> float:
    """Mean over n of the cosines; that of a vector of length 0 counts as 0."""
    return fmean(
        _normed(
            sum(weight * theirs.get(ngram, 0.0) for ngram, weight in ours.items()), ours, theirs
        )
        for ours, theirs in zip(caption.parts, reference.parts, strict=True)
    )


def _clipped_cosine(caption: _Vector, reference: _Vector) -> float:
    """The same with the caption's weights clipped to the reference's, less for another length."""
    longer_by = caption.num_words - reference.num_words
    return math.exp(-(longer_by**2) / (2 * SIGMA**2)) * fmean(
        _normed(_clipped_product(ours, theirs), ours, theirs)
        for ours, theirs in zip(caption.parts, reference.parts, strict=True)
    )


def _clipped_product(ours: dict[NGram, float], theirs: dict[NGram, float]) -> float:
    return sum(min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0)
               for ngram, weight in ours.items())  # fmt: skip


def _normed(product: float, ours: dict[NGram, float], theirs: dict[NGram, float]) -> float:
    length = math.hypot(*ours.values()) * math.hypot(*theirs.values())
    return product / length if length else 0.0
