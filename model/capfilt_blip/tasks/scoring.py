"""Scoring that goes on from batch to batch: ITC for every text, ITM only where it is asked for.

Letters: B images of a batch, P image tokens, D width of the image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.tasks.asked import check_lists
from capfilt_blip.tasks.match_cosines import image_vectors, text_cosines
from capfilt_blip.tasks.match_queue import AskedImage, MatchQueue
from capfilt_blip.tasks.match_rows import TextRow, steady_rows, text_rows
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import Images, fixed_batches, normalise, to_device, to_uint8

Asked: TypeAlias = Callable[[int, int, float], bool]
"""Whether ITM is asked of a text: called with the number of its image, its place among the image's
texts, and its ITC cosine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchScores:
    """One image and its texts; the lists are in the order of the texts."""

    itm_prob: list[float | None]
    """Probability in [0, 1] that the text describes the image (ITM head, after softmax); None where
    it was not asked for."""
    itc_cos: list[float]
    """Cosine in [-1, 1] of the text's and the image's vector (ITC)."""
    num_tokens: list[int]
    """Tokens of the whole text, special tokens excluded; the model reads MAX_TEXT_TOKENS - 2."""
    image_vector: list[float]
    """The image's unit vector; there without texts, too."""


class Scoring:
    """Scores images that come bit by bit; made by `Matcher.begin`.

    Keys and values of an image are computed only if ITM is asked of one of its texts, and then with
    those of other such images, so ITM probabilities may come after the cosines. What else is asked
    changes no bit of an answer.

    Args:
        model: in eval mode.
        tokenizer: the one it was trained with.
        itm_first_id: the token that the ITM head reads.
        batch_size: images in one pass.
    """

    def __init__(
        self, model: BlipMatcher, tokenizer: Tokenizer, *, itm_first_id: int, batch_size: int
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._queue = MatchQueue(model, first_id=itm_first_id, num_images=steady_rows(batch_size))

    @torch.inference_mode()
    def add(
        self, images: Images, texts: Sequence[Sequence[str]], *, asked: Asked | None = None
    ) -> list[MatchScores]:
        """Score images; each `itm_prob` is complete after `finish`.

        Args:
            images: N images: (N, S, S, 3) uint8, or PIL images.
            texts: the texts of each image, N lists of any length.
            asked: called for each text in order; None asks for all.

        Returns:
            One per image, in order.

        Raises:
            ValueError: there are not as many lists of texts as images, or a text is no list.
        """
        pixels = to_uint8(images, side_px=self._model.config.vision.image_size_px)
        check_lists(texts, pixels, what="texts", each="image")
        scores: list[MatchScores] = []
        for batch in fixed_batches(pixels, batch_size=self._batch_size):
            done = len(scores)
            scores += self._add_batch(batch, texts[done : done + len(batch)], asked, first=done)
        return scores

    @torch.inference_mode()
    def finish(self) -> None:
        """Compute the ITM probabilities that are still to come."""
        self._queue.finish()

    def _add_batch(
        self, pixels: Tensor, texts: Sequence[Sequence[str]], asked: Asked | None, *, first: int
    ) -> list[MatchScores]:
        """Score a batch whose last images may be filler, that is without an entry in `texts`."""
        embeds = self._model.vision(normalise(to_device(pixels, self._queue.device)))  # (B, P, D)
        vectors = image_vectors(self._model, embeds)
        rows = text_rows(self._tokenizer, texts)
        cosines = text_cosines(self._model, rows, vectors, cls_id=self._tokenizer.cls_id)
        seen = zip(embeds, rows, cosines, vectors.tolist(), strict=False)  # then filler
        scores = []
        for number, (tokens, of_image, itc_cos, vector) in enumerate(seen, start=first):
            score = _without_itm(of_image, itc_cos=itc_cos, image_vector=vector)
            scores.append(score)
            wanted = [
                (place, row)
                for place, row in enumerate(of_image)
                if asked is None or asked(number, place, itc_cos[place])
            ]
            if wanted:
                # A copy: a view would keep the tokens of the whole batch while it waits.
                one = tokens.clone()
                self._queue.add(AskedImage(embeds=one, rows=wanted, itm_prob=score.itm_prob))
        return scores


def _without_itm(
    texts: Sequence[TextRow], *, itc_cos: list[float], image_vector: list[float]
) -> MatchScores:
    return MatchScores(
        itm_prob=[None] * len(texts),
        itc_cos=itc_cos,
        num_tokens=[row.num_tokens for row in texts],
        image_vector=image_vector,
    )
