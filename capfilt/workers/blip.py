"""BLIP as captioner and as filter: `capfilt_blip` behind the two protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import capfilt_blip.checkpoint
from capfilt.config import DType
from capfilt.errors import CheckpointError
from capfilt.io.images import SQUASH, Fit
from capfilt.workers.protocols import Asked, ImageArray, Sampling, TextScores
from capfilt_blip.tasks.captioner import PROMPT, Caption, Captioner
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tasks.scoring import MatchScores, Scoring


class BlipCaptioner:
    """Writes with BLIP's captioner.

    Args:
        captioner: the model.
    """

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner

    @classmethod
    def from_directory(cls, directory: Path, *, device: str, dtype: DType) -> BlipCaptioner:
        """Load a captioner.

        Raises:
            CheckpointError: the directory holds none.
        """
        try:
            return cls(Captioner.from_pretrained(directory, device=device, dtype=dtype))
        except capfilt_blip.checkpoint.CheckpointError as err:
            raise CheckpointError(str(err)) from err

    @property
    def image_size_px(self) -> int:
        """Side of the squares it takes."""
        return self._captioner.image_size_px

    @property
    def fit(self) -> Fit:
        """BLIP's squash."""
        return SQUASH

    def caption(
        self, images: ImageArray, *, keys: Sequence[str], sampling: Sampling
    ) -> list[list[Caption]]:
        """Sample captions; see `protocols.ImageCaptioner`. No prompt means BLIP's own."""
        return self._captioner.caption(
            images,
            keys=keys,
            prompt=PROMPT if sampling.prompt is None else sampling.prompt,
            num_captions=sampling.num_captions,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            temperature=sampling.temperature,
            repetition_penalty=sampling.repetition_penalty,
            min_new_tokens=sampling.min_new_tokens,
            max_new_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
            round_=sampling.round,
            batch_size=sampling.batch_images,
        )

    def flops(self, captions: Sequence[Sequence[Caption]], *, sampling: Sampling) -> float:
        """Operations these captions need; see `protocols.ImageCaptioner`."""
        prompt = PROMPT if sampling.prompt is None else sampling.prompt
        return self._captioner.flops(captions, prompt=prompt)


class BlipScorer:
    """Scores with BLIP's matcher.

    Args:
        matcher: the model.
    """

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    @classmethod
    def from_directory(cls, directory: Path, *, device: str, dtype: DType) -> BlipScorer:
        """Load a filter.

        Raises:
            CheckpointError: the directory holds none.
        """
        try:
            return cls(Matcher.from_pretrained(directory, device=device, dtype=dtype))
        except capfilt_blip.checkpoint.CheckpointError as err:
            raise CheckpointError(str(err)) from err

    @property
    def image_size_px(self) -> int:
        """Side of the squares it takes."""
        return self._matcher.image_size_px

    @property
    def fit(self) -> Fit:
        """BLIP's squash."""
        return SQUASH

    def score(
        self, images: ImageArray, texts: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[TextScores]:
        """Score texts against their images; see `protocols.TextScorer`."""
        return _text_scores(self._matcher.score(images, texts, batch_size=batch_size))

    def begin(self, *, batch_size: int) -> BlipScoring:
        """Begin to score; see `protocols.TextScorer`."""
        return BlipScoring(self._matcher.begin(batch_size=batch_size))

    def best_order(self, texts: Sequence[Sequence[str]]) -> Sequence[int]:
        """Images with texts of like length together."""
        return self._matcher.best_order(texts)

    def flops(self, scores: Sequence[TextScores]) -> float:
        """Operations these scores need; see `protocols.TextScorer`."""
        asked = [[itm_prob is not None for itm_prob in found.itm_prob] for found in scores]
        return self._matcher.flops([found.num_tokens for found in scores], asked=asked)


class BlipScoring:
    """Scoring under way.

    Args:
        scoring: the model's.
    """

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring

    def add(
        self, images: ImageArray, texts: Sequence[Sequence[str]], *, asked: Asked | None = None
    ) -> list[TextScores]:
        """Score a batch; see `protocols.Scoring`."""
        return _text_scores(self._scoring.add(images, texts, asked=asked))

    def finish(self) -> None:
        """Compute the ITM probabilities that were put off."""
        self._scoring.finish()


def _text_scores(scores: Sequence[MatchScores]) -> list[TextScores]:
    """The same lists, so that those still to be filled are."""
    return [
        TextScores(
            itm_prob=found.itm_prob,
            itc_cos=found.itc_cos,
            num_tokens=found.num_tokens,
            image_vector=found.image_vector,
        )
        for found in scores
    ]
