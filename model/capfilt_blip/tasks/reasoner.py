"""The reasoner (NLVR2): pairs of images and sentences in, the probability that each is true out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from capfilt_blip.checkpoint import load_nlvr
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.tasks.placement import Device, Dtype, torch_device, torch_dtype
from capfilt_blip.tasks.texts import clean_sentence
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import Images, fixed_batches, normalise, to_uint8

MAX_SENTENCE_TOKENS = 64
"""Sentences are padded and cut to this length, [ENC] and [SEP] included. The original knows no such
bound; the 40 words it leaves of a sentence stay below it."""


class Reasoner:
    """Judges sentences about pairs of images. A judgement depends on its pair, not on the batch.

    Sentences are cleaned as in training (`texts.clean_sentence`) and cut to MAX_SENTENCE_TOKENS.
    The images stay in the order they are given. (The original swaps them at random when it is
    evaluated, too.)

    Args:
        model: an NLVR2 model; it is moved to the device and dtype, and to eval mode.
        tokenizer: the one the model was trained with.
        device: where it computes.
        dtype: what it computes in.
    """

    def __init__(
        self,
        model: BlipNlvr,
        tokenizer: Tokenizer,
        *,
        device: Device = "cpu",
        dtype: Dtype = "float32",
    ) -> None:
        self._model = model.to(torch_device(device), torch_dtype(dtype)).eval()
        self._tokenizer = tokenizer
        self._device = torch.device(device)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
    ) -> Reasoner:
        """Load an NLVR2 model; source and tokenizer are those of `load_nlvr`.

        Raises:
            CheckpointError: the source cannot be read, or is no NLVR2 model.
        """
        model, loaded = load_nlvr(source, tokenizer=tokenizer, dtype=torch_dtype(dtype))
        return cls(model, loaded, device=device, dtype=dtype)

    @property
    def image_size_px(self) -> int:
        """Side of the square images that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    def judge(
        self,
        left_images: Images,
        right_images: Images,
        texts: Sequence[str],
        *,
        batch_size: int = 4,
    ) -> list[float]:
        """Judge whether sentences are true of their pairs of images.

        Args:
            left_images: N images: (N, S, S, 3) uint8 with S = `image_size_px`, or PIL images.
            right_images: N images, likewise; image n belongs to the left image n.
            texts: N sentences, one about each pair.
            batch_size: pairs in one pass; memory grows with it. Fewer pairs are padded to it.

        Returns:
            N probabilities in [0, 1] that the sentence is true; BLIP says so from 0.5 on.

        Raises:
            ValueError: there are not as many left images, right images and sentences.
        """
        left = to_uint8(left_images, side_px=self.image_size_px)
        right = to_uint8(right_images, side_px=self.image_size_px)
        if not len(left) == len(right) == len(texts):
            raise ValueError(
                f"{len(left)} left images, {len(right)} right images and {len(texts)} sentences "
                "were given; they must be as many"
            )
        probabilities: list[float] = []
        for batch in zip(
            fixed_batches(left, batch_size=batch_size),
            fixed_batches(right, batch_size=batch_size),
            strict=True,
        ):
            start = len(probabilities)
            probabilities += self._judge_batch(*batch, texts[start : start + len(batch[0])])
        return probabilities

    @torch.inference_mode()
    def _judge_batch(self, left: Tensor, right: Tensor, texts: Sequence[str]) -> list[float]:
        """Judge a batch whose last pairs may be filler, that is without an entry in `texts`."""
        filled = [*map(clean_sentence, texts), *[""] * (len(left) - len(texts))]
        batch = self._tokenizer.encode(
            filled, first="enc", max_tokens=MAX_SENTENCE_TOKENS, pad_to=MAX_SENTENCE_TOKENS
        )
        logits = self._model(
            normalise(left.to(self._device)),
            normalise(right.to(self._device)),
            batch.ids.to(self._device),
            batch.mask.to(self._device),
        )
        found: list[float] = logits.float().softmax(-1)[: len(texts), 1].tolist()
        return found
