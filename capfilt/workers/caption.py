"""The caption stage's worker: samples synthetic texts (T_s) for images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from math import isfinite
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import capfilt_blip.tasks.captioner
from capfilt.config import DType
from capfilt.errors import CheckpointError
from capfilt.io.images import ImageDecoder, Refused
from capfilt.io.models import model_type_of
from capfilt.meter import Meter
from capfilt.records import Caption, Reason
from capfilt.workers.batches import BatchFeeder, DecodedBatch, PreparedInputs, SourceImage
from capfilt.workers.blip import BlipCaptioner
from capfilt.workers.hub_captioner import HubCaptioner
from capfilt.workers.kinds import check_dtype, is_blip, takes_prompt
from capfilt.workers.memory import shortage_explained
from capfilt.workers.protocols import ImageArray, ImageCaptioner, Sampling

BATCHES_AT_ONCE = 4
"""Handed to a model on a GPU: it encodes the next batch while it writes about the one before."""


def check_captioner(name: str, model_type: str | None, *, prompt: str | None) -> None:
    """Refuse a model that cannot be the captioner, before anything is loaded.

    Args:
        name: of the model, for the message.
        model_type: of its config.json.
        prompt: the recipe's.

    Raises:
        CheckpointError: says which can, or that this one takes no prompt.
    """
    if not is_blip(model_type) and model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise CheckpointError(
            f"{name}: a model of type {model_type!r} cannot be the captioner; types that can: "
            "blip, and those AutoModelForImageTextToText of transformers knows, such as "
            "git, blip-2, vision-encoder-decoder, paligemma, llava, qwen2_vl"
        )
    if prompt and not takes_prompt(model_type):
        raise CheckpointError(
            f"{name}: a model of type {model_type!r} reads the image alone; caption.prompt is "
            f"{prompt!r}: set caption.prompt: null"
        )


def load_captioner(
    directory: Path,
    *,
    device: str,
    dtype: DType,
    num_threads: int,
    image_size_px: int | None,
    sampling: Sampling,
) -> ImageCaptioner:
    """Load a captioner and bound the CPU threads of this process.

    Args:
        directory: of the model; its config.json decides which code runs it.
        device: where it computes.
        dtype: what it computes in.
        num_threads: CPU threads.
        image_size_px: side of the squares shown to a model that takes any shape.
        sampling: what it will be asked for.

    Raises:
        CheckpointError: the directory holds no captioner, or none for this dtype.
    """
    torch.set_num_threads(num_threads)
    model_type = model_type_of(directory)
    check_captioner(str(directory), model_type, prompt=sampling.prompt)
    check_dtype(str(directory), model_type, dtype)
    if is_blip(model_type):
        return BlipCaptioner.from_directory(directory, device=device, dtype=dtype)
    return HubCaptioner.from_directory(
        directory, device=device, dtype=dtype, image_size_px=image_size_px, sampling=sampling
    )


class CaptionWorker:
    """Captions images with one model.

    Args:
        captioner: the model.
        decoder: decoding processes; closed with the worker.
        sampling: how to sample.
        device: of the model.
        meter: measures the work; closed with the worker.
    """

    def __init__(
        self,
        captioner: ImageCaptioner,
        decoder: ImageDecoder,
        sampling: Sampling,
        *,
        device: str = "cpu",
        meter: Meter | None = None,
    ) -> None:
        self.meter = meter or Meter()
        self._captioner = captioner
        self._decoder = decoder
        self._sampling = sampling
        self._device = device
        self._feeder: BatchFeeder[SourceImage] = BatchFeeder(
            lambda image: image,
            decoder,
            batch_images=sampling.batch_images * (BATCHES_AT_ONCE if device != "cpu" else 1),
            side_px=captioner.image_size_px,
            fit=captioner.fit,
            device=device,
            meter=self.meter,
        )

    def prepare(self, inputs: Sequence[SourceImage]) -> PreparedInputs[SourceImage]:
        """Begin to decode a shard's images before its turn."""
        return self._feeder.prepare(inputs)

    def __call__(self, inputs: Sequence[SourceImage]) -> list[list[Caption]]:
        """The captions of each image; an image that cannot be read has one row with a reason."""
        meter = self.meter
        with meter.working(num_inputs=len(inputs)), closing(self._feeder.batches(inputs)) as found:
            return [captions for batch in meter.awaited(found) for captions in self._caption(batch)]

    def close(self) -> None:
        """End the decoding processes and the trace."""
        self._feeder.close()
        self._decoder.close()
        self.meter.close()

    def _caption(self, batch: DecodedBatch[SourceImage]) -> list[list[Caption]]:
        readable, pixels = batch.readable()
        sampled = iter(self._sample([image.key for image in readable], pixels))
        return [
            [failed_caption(image.key, seen.reason, seen.detail)]
            if isinstance(seen, Refused)
            else next(sampled)
            for image, seen in zip(batch.inputs, batch.pixels, strict=True)
        ]

    def _sample(self, keys: list[str], images: ImageArray) -> list[list[Caption]]:
        if not keys:
            return []
        size = self._sampling.batch_images
        with shortage_explained("caption", batch_images=size, device=self._device):
            with self.meter.span("caption", images=len(keys)):
                sampled = self._captioner.caption(images, keys=keys, sampling=self._sampling)
        flops = self._captioner.flops(sampled, sampling=self._sampling)
        self.meter.add(num_images=len(keys), flops=flops)
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
