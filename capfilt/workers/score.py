"""The score stage's worker: the filter's opinion of every text of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import overload

import torch

from capfilt.config import DType
from capfilt.io.images import ImageDecoder, Refused
from capfilt.io.models import model_type_of
from capfilt.meter import Meter
from capfilt.pool import Subset
from capfilt.records import ImageVector, Reason, Score, TextSource
from capfilt.workers.batches import BatchFeeder, DecodedBatch, SourceImage
from capfilt.workers.blip import BlipScorer
from capfilt.workers.cascade import Cascade
from capfilt.workers.dual_encoder import DualEncoder
from capfilt.workers.kinds import check_dtype, check_filter, is_blip
from capfilt.workers.memory import shortage_explained
from capfilt.workers.protocols import Asked, Scoring, TextScorer, TextScores


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

    key: str
    read_image: Callable[[], SourceImage]  # when it is the image's turn
    texts: tuple[TextToScore, ...]

    def texts_with_words(self) -> list[TextToScore]:
        """Those that can be scored."""
        return [text for text in self.texts if text.reason is None]


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
        CheckpointError: the directory holds no filter, or none for this dtype.
    """
    torch.set_num_threads(num_threads)
    model_type = model_type_of(directory)
    check_filter(str(directory), model_type)
    check_dtype(str(directory), model_type, dtype)
    if is_blip(model_type):
        return BlipScorer.from_directory(directory, device=device, dtype=dtype)
    return DualEncoder.from_directory(directory, device=device, dtype=dtype)


class ScoreWorker:
    """Scores texts with one model.

    Args:
        scorer: the model.
        decoder: decoding processes; closed with the worker.
        batch_images: images per batch.
        cascade: whose texts ITM is asked of; None asks it of all.
        device: of the model.
        meter: measures the work; closed with the worker.
    """

    def __init__(
        self,
        scorer: TextScorer,
        decoder: ImageDecoder,
        *,
        batch_images: int,
        cascade: Cascade | None = None,
        device: str = "cpu",
        meter: Meter | None = None,
    ) -> None:
        self.meter = meter or Meter()
        self._scorer = scorer
        self._decoder = decoder
        self._batch_images = batch_images
        self._cascade = cascade
        self._device = device
        self._feeder: BatchFeeder[ImageToScore] = BatchFeeder(
            lambda row: row.read_image(),
            decoder,
            batch_images=batch_images,
            side_px=scorer.image_size_px,
            fit=scorer.fit,
            device=device,
            meter=self.meter,
        )

    def prepare(self, inputs: Sequence[ImageToScore]) -> OrderedInputs:
        """Begin to decode a shard's images before its turn."""
        ordered = self._ordered(inputs)
        ordered.in_turn = self._feeder.prepare(ordered.in_turn)
        return ordered

    def __call__(self, inputs: Sequence[ImageToScore]) -> list[ScoredImage]:
        """Scores of each image's texts, in order; an image that cannot be read scores nothing."""
        meter = self.meter
        with meter.working(num_inputs=len(inputs)):
            ordered = inputs if isinstance(inputs, OrderedInputs) else self._ordered(inputs)
            with closing(self._feeder.batches(ordered.in_turn)) as found:
                scored = self._score(meter.awaited(found))
        return ordered.back_in_order(scored)

    def close(self) -> None:
        """End the decoding processes and the trace."""
        self._feeder.close()
        self._decoder.close()
        self.meter.close()

    def _ordered(self, inputs: Sequence[ImageToScore]) -> OrderedInputs:
        words = [[text.text or "" for text in row.texts_with_words()] for row in inputs]
        return OrderedInputs(inputs, self._scorer.best_order(words))

    def _score(self, batches: Iterable[DecodedBatch[ImageToScore]]) -> list[ScoredImage]:
        scoring = self._scorer.begin(batch_size=self._batch_images)
        seen: list[tuple[ImageToScore, Refused | TextScores]] = []
        for batch in batches:
            found = iter(self._found(batch, scoring))
            for row, pixels in zip(batch.inputs, batch.pixels, strict=True):
                seen.append((row, pixels if isinstance(pixels, Refused) else next(found)))
        with self._explained(), self.meter.span("finish"):
            scoring.finish()
        scores = [found for _, found in seen if not isinstance(found, Refused)]
        self.meter.add(num_images=len(scores), flops=self._scorer.flops(scores))
        return [
            unscored(row, found.reason, found.detail)
            if isinstance(found, Refused)
            else scored_image(row, found, cascade=self._cascade)
            for row, found in seen
        ]

    def _found(self, batch: DecodedBatch[ImageToScore], scoring: Scoring) -> Sequence[TextScores]:
        rows, images = batch.readable()
        if not rows:
            return []
        asked = None if self._cascade is None else _asked(rows, self._cascade)
        texts = [[text.text or "" for text in row.texts_with_words()] for row in rows]
        with self._explained():
            with self.meter.span("score", images=len(rows), texts=sum(map(len, texts))):
                return scoring.add(images, texts, asked=asked)

    def _explained(self) -> AbstractContextManager[None]:
        size = self._batch_images
        return shortage_explained("score", batch_images=size, device=self._device)


class OrderedInputs(Sequence[ImageToScore]):
    """A shard's inputs as they are, and in the order in which they are best scored.

    Args:
        inputs: the rows.
        order: numbers of the rows.
    """

    def __init__(self, inputs: Sequence[ImageToScore], order: Sequence[int]) -> None:
        self._inputs = inputs
        self._order = order
        self.in_turn: Sequence[ImageToScore] = Subset(inputs, order)

    def __len__(self) -> int:
        return len(self._inputs)

    @overload
    def __getitem__(self, index: int) -> ImageToScore: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageToScore]: ...
    def __getitem__(self, index: int | slice) -> ImageToScore | Sequence[ImageToScore]:
        return self._inputs[index]

    def back_in_order(self, scored: Sequence[ScoredImage]) -> list[ScoredImage]:
        """Outputs that came in turn, as the inputs stand."""
        of = dict(zip(self._order, scored, strict=True))
        return [of[number] for number in range(len(of))]


def _asked(rows: Sequence[ImageToScore], cascade: Cascade) -> Asked:
    """Ask ITM of what ITC leaves open, and of the audit."""
    texts = [row.texts_with_words() for row in rows]

    def asked(image: int, place: int, itc_cos: float) -> bool:
        return cascade.decided_by(itc_cos) == "itm" or _in_audit(
            rows[image].key, texts[image][place], cascade
        )

    return asked


def _in_audit(key: str, text: TextToScore, cascade: Cascade) -> bool:
    return cascade.audits(key, text_source=text.text_source, text_index=text.text_index)


def scored_image(
    row: ImageToScore, found: TextScores, *, cascade: Cascade | None = None
) -> ScoredImage:
    """Join the model's numbers with the texts they belong to.

    Args:
        row: the image and its texts.
        found: the model's answer for the texts that have no `reason`, in order.
        cascade: that chose whom ITM was asked of; None if it was asked of all.
    """
    numbers = iter(zip(found.itm_prob, found.itc_cos, found.num_tokens, strict=True))
    scores = tuple(
        _unscored_text(row.key, text, text.reason, None)
        if text.reason is not None
        else _settled(_scored_text(row.key, text, *next(numbers)), cascade)
        for text in row.texts
    )
    vector = tuple(found.image_vector)
    if not all(map(isfinite, vector)):
        return ScoredImage(scores=scores, vector=None)
    return ScoredImage(scores=scores, vector=ImageVector(key=row.key, vector=vector))


def unscored(row: ImageToScore, reason: str, detail: str | None) -> ScoredImage:
    """What stands for an image whose texts could not be scored."""
    scores = tuple(
        _unscored_text(row.key, text, text.reason or reason, detail) for text in row.texts
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


def _settled(score: Score, cascade: Cascade | None) -> Score:
    """A score with whom its text is decided by."""
    if cascade is None or score.itc_cos is None:
        return score
    by = cascade.decided_by(score.itc_cos)
    return replace(score, decided_by=by, audited=by != "itm" and score.itm_prob is not None)


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
