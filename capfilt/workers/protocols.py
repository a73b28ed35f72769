"""What a captioner and a filter can do, whichever code runs them.

    images, N of them   (N, S, S, 3) uint8, red, green, blue; S is the model's `image_size_px`, and
                        the pictures were brought into the square by the model's `fit`

A result depends on its image, text and key, and on the batch size; never on its batch mates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from capfilt.io.images import Fit
from capfilt_blip.tasks.captioner import Caption

ImageArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How captions are drawn; see `config.CaptionSection` for each field."""

    num_captions: int
    prompt: str | None
    top_p: float
    top_k: int
    temperature: float
    repetition_penalty: float
    min_new_tokens: int
    max_new_tokens: int
    batch_images: int
    seed: int
    round: int


class ImageCaptioner(Protocol):
    """Writes texts about images."""

    @property
    def image_size_px(self) -> int:
        """Side of the squares it takes."""
        ...

    @property
    def fit(self) -> Fit:
        """How a picture is brought into such a square."""
        ...

    def caption(
        self, images: ImageArray, *, keys: Sequence[str], sampling: Sampling
    ) -> Sequence[Sequence[Caption]]:
        """Sample captions.

        Args:
            images: N images.
            keys: of the N images; with seed, round and the caption's index they fix the noise.
            sampling: the distribution, and how many.

        Returns:
            `num_captions` per image, in order. The log-probability is the sum over generated
            tokens, the end token included, under the model as it is: before temperature, penalty
            and nucleus.
        """
        ...

    def flops(self, captions: Sequence[Sequence[Caption]], *, sampling: Sampling) -> float | None:
        """Floating-point operations that such captions need, their images included.

        Args:
            captions: of `caption`.
            sampling: that they were drawn with.

        Returns:
            The count; None if this model does not count.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScores:
    """One image and its texts; the sequences are in the order of the texts."""

    itm_prob: Sequence[float | None]
    """Probability in [0, 1] that the text describes the image; None by a model that gives none, and
    where it was not asked for."""
    itc_cos: Sequence[float]
    """Cosine in [-1, 1] of the text's and the image's vector."""
    num_tokens: Sequence[int]
    """Of the whole text, special tokens excluded, however much of it the model reads."""
    image_vector: Sequence[float]
    """The image's unit vector; there without texts, too."""


Asked: TypeAlias = Callable[[int, int, float], bool]
"""Whether the probability of a text is asked for: called with the number of its image, its place
among the image's texts, and its cosine."""


class Scoring(Protocol):
    """Scoring under way."""

    def add(
        self, images: ImageArray, texts: Sequence[Sequence[str]], *, asked: Asked | None = None
    ) -> Sequence[TextScores]:
        """Score texts against their images; each `itm_prob` is complete after `finish`.

        Args:
            images: N images, best as many as a batch has.
            texts: the texts of each image, N lists of any length.
            asked: None asks for all. A model whose probability costs nothing beside the cosine
                gives it in any case.

        Returns:
            One per image, in order.
        """
        ...

    def finish(self) -> None:
        """Compute what was put off."""
        ...


class TextScorer(Protocol):
    """Says how well texts describe images."""

    @property
    def image_size_px(self) -> int:
        """Side of the squares it takes."""
        ...

    @property
    def fit(self) -> Fit:
        """How a picture is brought into such a square."""
        ...

    def score(
        self, images: ImageArray, texts: Sequence[Sequence[str]], *, batch_size: int
    ) -> Sequence[TextScores]:
        """Score texts against their images.

        Args:
            images: N images.
            texts: the texts of each image, N lists of any length.
            batch_size: images in one pass.

        Returns:
            One per image, in order.
        """
        ...

    def begin(self, *, batch_size: int) -> Scoring:
        """Begin to score images that come batch by batch."""
        ...

    def best_order(self, texts: Sequence[Sequence[str]]) -> Sequence[int]:
        """Say in which order images are scored fastest, from the texts of each.

        Returns:
            The numbers of the images. The order changes no result.
        """
        ...

    def flops(self, scores: Sequence[TextScores]) -> float | None:
        """Floating-point operations that such scores need; None if this model does not count."""
        ...
