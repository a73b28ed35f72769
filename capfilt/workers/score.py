"""The score stage's worker: the filter's opinion of every text of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch

from capfilt.config import DType
from capfilt.io.images import ImageDecoder, Refused
from capfilt.io.models import model_type_of
from capfilt.records import ImageVector, Reason, Score, TextSource
from capfilt.workers.batches import DecodedBatch, Pixels, SourceImage, decoded_batches
from capfilt.workers.blip import BlipScorer
from capfilt.workers.dual_encoder import DualEncoder
from capfilt.workers.kinds import check_filter, is_blip
from capfilt.workers.protocols import TextScorer, TextScores


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


def load_scorer(directory: Path, *, device: str, dtype: DType, num_threads: int) -> TextScorer:
    """Load a filter and bound the CPU threads of this process.

    Args:
        directory: of the model; its config.json decides which code runs it.
        device: where it computes.
        dtype: what it computes in.
        num_threads: CPU threads.

    Raises:
        CheckpointError: the directory holds no filter.
    """
    torch.set_num_threads(num_threads)
    model_type = model_type_of(directory)
    check_filter(str(directory), model_type)
    if is_blip(model_type):
        return BlipScorer.from_directory(directory, device=device, dtype=dtype)
    return DualEncoder.from_directory(directory, device=device, dtype=dtype)


class ScoreWorker:
    """Scores texts with one model.

    Args:
        scorer: the model.
        decoder: decoding processes; closed with the worker.
        batch_images: images per batch.
    """

    def __init__(self, scorer: TextScorer, decoder: ImageDecoder, *, batch_images: int) -> None:
        self._scorer = scorer
        self._decoder = decoder
        self._batch_images = batch_images

    def __call__(self, inputs: Sequence[ImageToScore]) -> list[ScoredImage]:
        """Scores of each image's texts, in order; an image that cannot be read scores nothing."""
        batches = decoded_batches(
            inputs,
            lambda row: row.image,
            self._decoder,
            batch_images=self._batch_images,
            side_px=self._scorer.image_size_px,
            fit=self._scorer.fit,
        )
        return [scored for batch in batches for scored in self._score(batch)]

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()

    def _score(self, batch: DecodedBatch[ImageToScore]) -> list[ScoredImage]:
        readable, pixels = batch.readable()
        found = iter(self._found(readable, pixels))
        return [
            unscored(row, seen.reason, seen.detail)
            if isinstance(seen, Refused)
            else scored_image(row, next(found))
            for row, seen in zip(batch.inputs, batch.pixels, strict=True)
        ]

    def _found(self, rows: Sequence[ImageToScore], images: list[Pixels]) -> Sequence[TextScores]:
        if not rows:
            return []
        texts = [[t.text or "" for t in row.texts if t.reason is None] for row in rows]
        return self._scorer.score(np.stack(images), texts, batch_size=self._batch_images)


def scored_image(row: ImageToScore, found: TextScores) -> ScoredImage:
    """Join the model's numbers with the texts they belong to.

    Args:
        row: the image and its texts.
        found: the model's answer for the texts that have no `reason`, in order.
    """
    numbers = iter(zip(found.itm_prob, found.itc_cos, found.num_tokens, strict=True))
    scores = tuple(
        _unscored_text(row.image.key, text, text.reason, None)
        if text.reason is not None
        else _scored_text(row.image.key, text, *next(numbers))
        for text in row.texts
    )
    vector = tuple(found.image_vector)
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
    key: str, text: TextToScore, itm_prob: float | None, itc_cos: float, num_tokens: int
) -> Score:
    if not (isfinite(itc_cos) and (itm_prob is None or isfinite(itm_prob))):
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
