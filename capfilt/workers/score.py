"""The score stage's worker: the filter's opinion of every text of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch

import capfilt_blip.checkpoint
from capfilt.config import DType
from capfilt.errors import CheckpointError
from capfilt.io.images import ImageDecoder, Refused
from capfilt.records import ImageVector, Reason, Score, TextSource
from capfilt.workers.batches import DecodedBatch, Pixels, SourceImage, decoded_batches
from capfilt_blip.tasks.matcher import Matcher, MatchScores


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToScore:
    """A text and where it came from."""

    text: str | None
    text_source: TextSource
    text_index: int
    logprob: float | None
    reason: str | None  # why there is no text to score, if there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageToScore:
    """An image with all its texts: they share one pass of the image encoder."""

    image: SourceImage
    texts: tuple[TextToScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredImage:
    """One score per text, in order, and the image's vector if it could be read."""

    scores: tuple[Score, ...]
    vector: ImageVector | None


def load_matcher(directory: Path, *, device: str, dtype: DType, num_threads: int) -> Matcher:
    """Load a filter and bound the CPU threads of this process.

    Raises:
        CheckpointError: the directory holds no filter.
    """
    torch.set_num_threads(num_threads)
    try:
        return Matcher.from_pretrained(str(directory), device=device, dtype=dtype)
    except capfilt_blip.checkpoint.CheckpointError as err:
        raise CheckpointError(str(err)) from err


class ScoreWorker:
    """Scores texts with one model.

    Args:
        matcher: the model.
        decoder: decoding processes; closed with the worker.
        batch_images: images per batch.
    """

    def __init__(self, matcher: Matcher, decoder: ImageDecoder, *, batch_images: int) -> None:
        self._matcher = matcher
        self._decoder = decoder
        self._batch_images = batch_images

    def __call__(self, inputs: Sequence[ImageToScore]) -> list[ScoredImage]:
        """Scores of each image's texts, in order; an image that cannot be read scores nothing."""
        batches = decoded_batches(
            inputs,
            lambda row: row.image,
            self._decoder,
            batch_images=self._batch_images,
            side_px=self._matcher.image_size_px,
        )
        return [scored for batch in batches for scored in self._score(batch)]

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()

    def _score(self, batch: DecodedBatch[ImageToScore]) -> list[ScoredImage]:
        readable, pixels = batch.readable()
        matched = iter(self._match(readable, pixels))
        return [
            unscored(row, seen.reason, seen.detail)
            if isinstance(seen, Refused)
            else scored_image(row, next(matched))
            for row, seen in zip(batch.inputs, batch.pixels, strict=True)
        ]

    def _match(self, rows: Sequence[ImageToScore], images: list[Pixels]) -> list[MatchScores]:
        if not rows:
            return []
        texts = [[t.text or "" for t in row.texts if t.reason is None] for row in rows]
        return self._matcher.score(np.stack(images), texts, batch_size=self._batch_images)


def scored_image(row: ImageToScore, matched: MatchScores) -> ScoredImage:
    """Join the model's numbers with the texts they belong to.

    Args:
        row: the image and its texts.
        matched: the model's answer for the texts that have no `reason`, in order.
    """
    numbers = iter(zip(matched.itm_prob, matched.itc_cos, matched.num_tokens, strict=True))
    scores = tuple(
        _unscored_text(row.image.key, text, text.reason, None)
        if text.reason is not None
        else _scored_text(row.image.key, text, *next(numbers))
        for text in row.texts
    )
    vector = tuple(matched.image_vector)
    if not all(map(isfinite, vector)):
        return ScoredImage(scores=scores, vector=None)
    return ScoredImage(scores=scores, vector=ImageVector(key=row.image.key, vector=vector))


def unscored(row: ImageToScore, reason: str, detail: str | None) -> ScoredImage:
    """What stands for an image whose texts could not be scored."""
    scores = tuple(
        _unscored_text(row.image.key, text, text.reason or reason, detail) for text in row.texts
    )
    return ScoredImage(scores=scores, vector=None)


def _scored_text(
    key: str, text: TextToScore, itm_prob: float, itc_cos: float, num_tokens: int
) -> Score:
    if not (isfinite(itm_prob) and isfinite(itc_cos)):
        detail = f"itm_prob is {itm_prob}, itc_cos is {itc_cos}"
        return _unscored_text(key, text, Reason.SCORE_NOT_FINITE, detail)
    return Score(
        key=key,
        text_source=text.text_source,
        text_index=text.text_index,
        text=text.text,
        logprob=text.logprob,
        itm_prob=itm_prob,
        itc_cos=itc_cos,
        num_tokens=num_tokens,
        reason=None,
        detail=None,
    )


def _unscored_text(key: str, text: TextToScore, reason: str, detail: str | None) -> Score:
    return Score(
        key=key,
        text_source=text.text_source,
        text_index=text.text_index,
        text=text.text,
        logprob=text.logprob,
        itm_prob=None,
        itc_cos=None,
        num_tokens=None,
        reason=reason,
        detail=detail,
    )
