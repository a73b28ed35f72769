"""The grounder: images and phrases in, the box of each phrase out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from capfilt_blip.boxes import BoxTokens, from_bins
from capfilt_blip.checkpoint import load_grounding
from capfilt_blip.grounding import BlipGrounding, SeenImages, write_boxes
from capfilt_blip.tasks.asked import check_lists
from capfilt_blip.tasks.placement import Device, Dtype, torch_device, torch_dtype
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import Images, fixed_batches, normalise, to_uint8

MAX_PHRASE_TOKENS = 64
"""Phrases are padded to this length and cut to it, [CLS] and [SEP] included. mmpretrain cuts at
128; with a fixed length every phrase would pay for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Where a phrase's object is, as fractions of the image's sides, from its upper left corner.

    Times the image's own width (x) and height (y) they are pixels, whatever size the model saw.
    """

    x_min: float
    """In [0, 1], as are the others; x_min <= x_max, y_min <= y_max."""
    y_min: float
    x_max: float
    y_max: float
    logprob: float
    """Log-probability of the four tokens of the box among those that boxes are written with, summed
    over them. It compares answers; a phrase that means nothing in its image has a box, too."""


class Grounder:
    """Finds what phrases mean. A box depends on its phrase and image, not on the batch.

    Args:
        model: a grounding model; it is moved to the device and dtype, and to eval mode.
        tokenizer: the one the model was trained with.
        device: where it computes.
        dtype: what it computes in.

    Raises:
        ValueError: the tokenizer's vocabulary lacks the tokens of boxes.
    """

    def __init__(
        self,
        model: BlipGrounding,
        tokenizer: Tokenizer,
        *,
        device: Device = "cpu",
        dtype: Dtype = "float32",
    ) -> None:
        self._box_tokens = BoxTokens.of(tokenizer)
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
    ) -> Grounder:
        """Load a grounding model; source and tokenizer are those of `load_grounding`.

        Raises:
            CheckpointError: the source cannot be read, or is no grounding model.
            ValueError: its vocabulary lacks the tokens of boxes.
        """
        model, loaded = load_grounding(source, tokenizer=tokenizer, dtype=torch_dtype(dtype))
        return cls(model, loaded, device=device, dtype=dtype)

    @property
    def image_size_px(self) -> int:
        """Side of the square images that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    def locate(
        self, images: Images, phrases: Sequence[Sequence[str]], *, batch_size: int = 8
    ) -> list[list[Box]]:
        """Find the box of each phrase; the phrases of one image share one pass over it.

        Args:
            images: N images: (N, S, S, 3) uint8 with S = `image_size_px`, or PIL images.
            phrases: about each image, N lists of any length; read as they are, in lower case.
            batch_size: images in one pass; memory grows with it. Fewer images are padded to it.

        Returns:
            The boxes of each image, in the order of its phrases.

        Raises:
            ValueError: there are not as many lists of phrases as images.
        """
        pixels = to_uint8(images, side_px=self.image_size_px)
        check_lists(phrases, pixels, what="phrases", each="image")
        boxes: list[list[Box]] = []
        for batch in fixed_batches(pixels, batch_size=batch_size):
            boxes += self._locate_batch(batch, phrases[len(boxes) : len(boxes) + len(batch)])
        return boxes

    @torch.inference_mode()
    def _locate_batch(self, pixels: Tensor, phrases: Sequence[Sequence[str]]) -> list[list[Box]]:
        """Handle a batch whose last images may be filler, that is without an entry in `phrases`."""
        seen = self._model.see(normalise(pixels.to(self._device)))
        found: list[list[Box]] = [[] for _ in phrases]
        # One phrase of each image at a time: so every pass has the same shape.
        for number in range(max(map(len, phrases))):
            now = [row[number] if number < len(row) else "" for row in phrases]
            boxes = self._locate_pass([*now, *[""] * (len(pixels) - len(now))], seen)
            for row, image_phrases in enumerate(phrases):
                if number < len(image_phrases):
                    found[row].append(boxes[row])
        return found

    def _locate_pass(self, phrases: Sequence[str], seen: SeenImages) -> list[Box]:
        """Find the box of one phrase in each image."""
        batch = self._tokenizer.encode(
            phrases, first="cls", max_tokens=MAX_PHRASE_TOKENS, pad_to=MAX_PHRASE_TOKENS
        )
        memory = self._model.read_phrases(
            batch.ids.to(self._device), batch.mask.to(self._device), seen
        )
        bins, logprobs = write_boxes(self._model, memory, tokens=self._box_tokens)
        return [
            Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max, logprob=logprob)
            for (x_min, y_min, x_max, y_max), logprob in zip(
                from_bins(bins).tolist(), logprobs.tolist(), strict=True
            )
        ]
