"""BLIP as captioner and as filter: `capfilt_blip` behind the two protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import capfilt_blip.checkpoint
from capfilt.config import DType
from capfilt.errors import CheckpointError
from capfilt.io.images import SQUASH, Fit
from capfilt.workers.protocols import ImageArray, Sampling, TextScores
from capfilt_blip.tasks.captioner import PROMPT, Caption, Captioner
from capfilt_blip.tasks.matcher import Matcher


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
        return [
            TextScores(
                itm_prob=found.itm_prob,
                itc_cos=found.itc_cos,
                num_tokens=found.num_tokens,
                image_vector=found.image_vector,
            )
            for found in self._matcher.score(images, texts, batch_size=batch_size)
        ]
