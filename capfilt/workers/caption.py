"""The caption stage's worker: samples synthetic texts (T_s) for images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch

import capfilt_blip.checkpoint
import capfilt_blip.tasks.captioner
from capfilt.config import DType
from capfilt.errors import CheckpointError
from capfilt.io.images import ImageDecoder, Refused
from capfilt.records import Caption, Reason
from capfilt.workers.batches import DecodedBatch, Pixels, SourceImage, decoded_batches
from capfilt_blip.tasks.captioner import Captioner


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How captions are drawn; see `config.CaptionSection` for each field."""

    num_captions: int
    prompt: str
    top_p: float
    top_k: int
    temperature: float
    repetition_penalty: float
    min_new_tokens: int
    max_new_tokens: int
    batch_images: int
    seed: int
    round: int


def load_captioner(directory: Path, *, device: str, dtype: DType, num_threads: int) -> Captioner:
    """Load a captioner and bound the CPU threads of this process.

    Raises:
        CheckpointError: the directory holds no captioner.
    """
    torch.set_num_threads(num_threads)
    try:
        return Captioner.from_pretrained(str(directory), device=device, dtype=dtype)
    except capfilt_blip.checkpoint.CheckpointError as err:
        raise CheckpointError(str(err)) from err


class CaptionWorker:
    """Captions images with one model.

    Args:
        captioner: the model.
        decoder: decoding processes; closed with the worker.
        sampling: how to sample.
    """

    def __init__(self, captioner: Captioner, decoder: ImageDecoder, sampling: Sampling) -> None:
        self._captioner = captioner
        self._decoder = decoder
        self._sampling = sampling

    def __call__(self, inputs: Sequence[SourceImage]) -> list[list[Caption]]:
        """The captions of each image; an image that cannot be read has one row with a reason."""
        batches = decoded_batches(
            inputs,
            lambda image: image,
            self._decoder,
            batch_images=self._sampling.batch_images,
            side_px=self._captioner.image_size_px,
        )
        return [captions for batch in batches for captions in self._caption(batch)]

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()

    def _caption(self, batch: DecodedBatch[SourceImage]) -> list[list[Caption]]:
        readable, pixels = batch.readable()
        sampled = iter(self._sample([image.key for image in readable], pixels))
        return [
            [failed_caption(image.key, seen.reason, seen.detail)]
            if isinstance(seen, Refused)
            else next(sampled)
            for image, seen in zip(batch.inputs, batch.pixels, strict=True)
        ]

    def _sample(self, keys: list[str], images: list[Pixels]) -> list[list[Caption]]:
        if not keys:
            return []
        s = self._sampling
        sampled = self._captioner.caption(
            np.stack(images),
            keys=keys,
            prompt=s.prompt,
            num_captions=s.num_captions,
            top_p=s.top_p,
            top_k=s.top_k,
            temperature=s.temperature,
            repetition_penalty=s.repetition_penalty,
            min_new_tokens=s.min_new_tokens,
            max_new_tokens=s.max_new_tokens,
            seed=s.seed,
            round_=s.round,
            batch_size=s.batch_images,
        )
        return [
            [_row(key, index, caption) for index, caption in enumerate(captions)]
            for key, captions in zip(keys, sampled, strict=True)
        ]


def _row(key: str, index: int, caption: capfilt_blip.tasks.captioner.Caption) -> Caption:
    finite = isfinite(caption.logprob)  # a model that overflowed writes, too, and says nan
    return Caption(
        key=key,
        text_index=index,
        text=caption.text if finite else None,
        logprob=caption.logprob if finite else None,
        num_tokens=caption.num_tokens,
        reason=None if finite else Reason.SCORE_NOT_FINITE,
        detail=None if finite else f"log-probability is {caption.logprob}",
    )


def failed_caption(key: str, reason: str, detail: str | None) -> Caption:
    """The row of an image that could not be captioned."""
    return Caption(
        key=key,
        text_index=0,
        text=None,
        logprob=None,
        num_tokens=None,
        reason=reason,
        detail=detail,
    )
