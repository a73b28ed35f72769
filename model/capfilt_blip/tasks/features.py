"""The feature extractor: images, texts and pairs of both in, tokens and unit vectors out.

As the original's feature extractor (`BLIP_Base`) and that of LAVIS, on a matcher.

Letters: N images, texts or pairs, S image side in pixels, P image tokens (class token first), L
text tokens, D width, E shared width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.checkpoint import load_matcher
from capfilt_blip.tasks.match_rows import MAX_TEXT_TOKENS
from capfilt_blip.tasks.placement import Device, Dtype, torch_device, torch_dtype
from capfilt_blip.tokenizer import FirstToken, TokenBatch, Tokenizer
from capfilt_blip.transforms import Images, fixed_batches, normalise, to_uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """What the image encoder says; float32 on the CPU."""

    tokens: Tensor
    """(N, P, D of the image side), after the last LayerNorm; token 0 is the class token."""
    vectors: Tensor
    """(N, E), of length 1: the class token in the space shared with texts (ITC)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFeatures:
    """What the unimodal text encoder says; on the CPU, floats in float32."""

    tokens: Tensor
    """(N, L, D), [CLS] first; 0 where the mask is False."""
    mask: Tensor
    """(N, L) bool, True where a token is real; L is MAX_TEXT_TOKENS."""
    vectors: Tensor
    """(N, E), of length 1: [CLS] in the space shared with images (ITC)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFeatures:
    """What the image-grounded text encoder says; on the CPU, floats in float32."""

    tokens: Tensor
    """(N, L, D), [ENC] first: the one to take for the whole pair; 0 where the mask is False."""
    mask: Tensor
    """(N, L) bool, True where a token is real; L is MAX_TEXT_TOKENS."""


class FeatureExtractor:
    """Gives the features of images and texts. They depend on these, not on their batch.

    Texts are cut to MAX_TEXT_TOKENS tokens, [CLS] or [ENC] and [SEP] included.

    Args:
        model: a matcher; it is moved to the device and dtype, and to eval mode.
        tokenizer: the one the model was trained with.
        device: where it computes.
        dtype: what it computes in.
    """

    def __init__(
        self,
        model: BlipMatcher,
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
    ) -> FeatureExtractor:
        """Load a matcher.

        Args:
            source: what `checkpoint.load_matcher` takes.
            tokenizer: directory or `vocab.txt`, for a source that has none, such as a `.pth`.
            device: where it computes.
            dtype: what it computes in.

        Raises:
            CheckpointError: the source cannot be read, or is no matcher.
        """
        model, loaded = load_matcher(source, tokenizer=tokenizer, dtype=torch_dtype(dtype))
        return cls(model, loaded, device=device, dtype=dtype)

    @property
    def image_size_px(self) -> int:
        """Side of the square images that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    @torch.inference_mode()
    def image(self, images: Images, *, batch_size: int = 8) -> ImageFeatures:
        """Encode images; at 384 px that is 577 tokens each, 1.8 MB in the width of ViT-B.

        Args:
            images: N images: (N, S, S, 3) uint8 with S = `image_size_px`, or PIL images.
            batch_size: images in one pass; memory grows with it. Fewer images are padded to it.
        """
        pixels = to_uint8(images, side_px=self.image_size_px)
        vision = self._model.config.vision
        tokens = torch.empty(len(pixels), vision.num_tokens, vision.width)
        vectors = torch.empty(len(pixels), self._model.config.shared_width)
        for rows, embeds in self._image_embeds(pixels, batch_size=batch_size):
            _put(tokens, rows, embeds)
            _put(vectors, rows, self._model.image_vectors(embeds))
        return ImageFeatures(tokens=tokens, vectors=vectors)

    @torch.inference_mode()
    def image_vectors(self, images: Images, *, batch_size: int = 8) -> Tensor:
        """Return (N, E), the `vectors` of `image` without its tokens."""
        pixels = to_uint8(images, side_px=self.image_size_px)
        vectors = torch.empty(len(pixels), self._model.config.shared_width)
        for rows, embeds in self._image_embeds(pixels, batch_size=batch_size):
            _put(vectors, rows, self._model.image_vectors(embeds))
        return vectors

    @torch.inference_mode()
    def text(self, texts: Sequence[str], *, batch_size: int = 32) -> TextFeatures:
        """Encode texts on their own.

        Args:
            texts: N texts, read in lower case.
            batch_size: texts in one pass. Fewer texts are padded to it.
        """
        found = self._tokens(texts, first="cls")
        tokens = torch.empty(*found.ids.shape, self._model.config.text.width)
        vectors = torch.empty(len(texts), self._model.config.shared_width)
        for rows, ids, mask in self._text_batches(found, batch_size=batch_size):
            hidden = self._model.text_encoder.encode(ids, mask)
            _put(tokens, rows, hidden)
            _put(vectors, rows, F.normalize(self._model.text_proj(hidden[:, 0]), dim=-1))
        return TextFeatures(
            tokens=tokens * found.mask[:, :, None], mask=found.mask, vectors=vectors
        )

    def text_vectors(self, texts: Sequence[str], *, batch_size: int = 32) -> Tensor:
        """Return (N, E), the `vectors` of `text`."""
        return self.text(texts, batch_size=batch_size).vectors

    @torch.inference_mode()
    def multimodal(
        self, images: Images, texts: Sequence[str], *, batch_size: int = 8
    ) -> PairFeatures:
        """Read each text together with its image.

        Args:
            images: N images: (N, S, S, 3) uint8 with S = `image_size_px`, or PIL images.
            texts: N texts, read in lower case.
            batch_size: pairs in one pass. Fewer pairs are padded to it.

        Raises:
            ValueError: there are not as many texts as images.
        """
        pixels = to_uint8(images, side_px=self.image_size_px)
        if len(texts) != len(pixels):
            raise ValueError(f"{len(texts)} texts were given for {len(pixels)} images")
        found = self._tokens(texts, first="enc")
        tokens = torch.empty(*found.ids.shape, self._model.config.text.width)
        encoder = self._model.text_encoder
        image_batches = self._image_embeds(pixels, batch_size=batch_size)
        text_batches = self._text_batches(found, batch_size=batch_size)
        for (rows, embeds), (_, ids, mask) in zip(image_batches, text_batches, strict=True):
            _put(tokens, rows, encoder.fuse(ids, mask, encoder.project_memory(embeds)))
        return PairFeatures(tokens=tokens * found.mask[:, :, None], mask=found.mask)

    def _image_embeds(self, pixels: Tensor, *, batch_size: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of each batch, and its tokens on the device."""
        start = 0
        for batch in fixed_batches(pixels, batch_size=batch_size):
            rows = slice(start, start + len(batch))
            yield rows, self._model.vision(normalise(batch.to(self._device)))
            start = rows.stop

    def _tokens(self, texts: Sequence[str], *, first: FirstToken) -> TokenBatch:
        return self._tokenizer.encode(
            texts, first=first, max_tokens=MAX_TEXT_TOKENS, pad_to=MAX_TEXT_TOKENS
        )

    def _text_batches(
        self, tokens: TokenBatch, *, batch_size: int
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the rows of each batch, and its ids and mask on the device."""
        batch_size = max(2, batch_size)
        for start in range(0, len(tokens.ids), batch_size):
            index = torch.arange(start, start + batch_size)
            index[index >= len(tokens.ids)] = start  # filler, as in `fixed_batches`
            ids, mask = tokens.ids[index], tokens.mask[index]
            rows = slice(start, start + batch_size)
            yield rows, ids.to(self._device), mask.to(self._device)


def _put(whole: Tensor, rows: slice, batch: Tensor) -> None:
    """Write a batch to its rows; those that `whole` does not have are filler."""
    places = whole[rows]
    places.copy_(batch[: len(places)])
