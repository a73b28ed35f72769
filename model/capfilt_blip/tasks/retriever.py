"""The retriever: which images does a text describe, and which texts describe an image.

Letters: N images, S image side in pixels, T texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.checkpoint import load_matcher
from capfilt_blip.tasks.placement import Device, Dtype, torch_device, torch_dtype
from capfilt_blip.tasks.reranker import Hits, Reranker, Retrieved
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import Images, fixed_batches, normalise, to_uint8
from capfilt_blip.vision import VisionTransformer

COCO_CANDIDATES = 256
"""Candidates that BLIP re-ranks on COCO (salesforce/BLIP, configs/retrieval_coco.yaml, k_test)."""

FLICKR_CANDIDATES = 128
"""And on Flickr30K (configs/retrieval_flickr.yaml, k_test)."""


class Retriever:
    """Ranks texts for images and images for texts. A pair's score depends on the two alone.

    The ITC vectors of all find the candidates; the ITM head then reads each candidate with its
    query (arXiv:2201.12086, sec. 5.1). An image is encoded twice: for its vector, and for all texts
    that it is paired with. So no image tokens are kept, where the original keeps those of all
    images, 8.9 GB for the 5,000 of COCO.

    Cost: 2 vision passes an image, one text pass a text, and one text pass with cross-attention a
    pair. There are at most K (N + T) pairs with K candidates, 7.7 million for the test images of
    COCO and their 25,000 texts; `find_images` and `find_texts` read but K T and K N of them.

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

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
    ) -> Retriever:
        """Load a matcher from a directory in transformers' layout, from the hub or a `.pth`.

        Args:
            source: the matcher.
            tokenizer: directory or vocab.txt, for a source without one.
            device: where it computes.
            dtype: what it computes in.

        Raises:
            CheckpointError: the source cannot be read, or is no matcher.
        """
        model, found = load_matcher(source, tokenizer=tokenizer, dtype=torch_dtype(dtype))
        return cls(model, found, device=device, dtype=dtype)

    @property
    def image_size_px(self) -> int:
        """Side of the square images that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    def rank(
        self,
        images: Images,
        texts: Sequence[str],
        *,
        num_candidates: int = COCO_CANDIDATES,
        batch_size: int = 8,
        texts_per_pass: int = 32,
    ) -> Retrieved:
        """Rank all texts for each image, and all images for each text.

        Args:
            images: N images: (N, S, S, 3) uint8 with S = `image_size_px`, or PIL images; anything
                with a length and [] that opens an image when it is asked for will do as well.
            texts: T texts, read as they are, in lower case.
            num_candidates: how many of the nearest are ranked for each query; the others are not.
            batch_size: images in one pass; memory grows with it. Fewer images are padded to it.
            texts_per_pass: texts that are read with an image at once, likewise.

        Raises:
            ValueError: `num_candidates` is less than 1, or the images are not what they should be.
        """
        gallery = _ImageGallery(self._model.vision, images, batch_size=batch_size)
        reranker = Reranker(self._model, self._tokenizer, texts_per_pass=texts_per_pass)
        return reranker.rank(gallery, texts, num_candidates=num_candidates)

    def find_images(
        self,
        images: Images,
        texts: Sequence[str],
        *,
        num_candidates: int = COCO_CANDIDATES,
        batch_size: int = 8,
        texts_per_pass: int = 32,
    ) -> Hits:
        """Rank the images for each text, T queries; the arguments are those of `rank`."""
        gallery = _ImageGallery(self._model.vision, images, batch_size=batch_size)
        reranker = Reranker(self._model, self._tokenizer, texts_per_pass=texts_per_pass)
        return reranker.find_items(gallery, texts, num_candidates=num_candidates)

    def find_texts(
        self,
        images: Images,
        texts: Sequence[str],
        *,
        num_candidates: int = COCO_CANDIDATES,
        batch_size: int = 8,
        texts_per_pass: int = 32,
    ) -> Hits:
        """Rank the texts for each image, N queries; the arguments are those of `rank`."""
        gallery = _ImageGallery(self._model.vision, images, batch_size=batch_size)
        reranker = Reranker(self._model, self._tokenizer, texts_per_pass=texts_per_pass)
        return reranker.find_texts(gallery, texts, num_candidates=num_candidates)


class _ImageGallery:
    """Images as items of one frame."""

    def __init__(self, vision: VisionTransformer, images: Images, *, batch_size: int) -> None:
        self._vision = vision
        self._images = images
        self._batch_size = max(2, batch_size)

    def __len__(self) -> int:
        return len(self._images)

    def encode(self, places: Sequence[int]) -> Iterator[Tensor]:
        """Yield the tokens of each image, (1, P, width), from batches of one shape."""
        for start in range(0, len(places), self._batch_size):
            now = places[start : start + self._batch_size]
            pixels = to_uint8(_taken(self._images, now), side_px=self._vision.config.image_size_px)
            [batch] = fixed_batches(pixels, batch_size=self._batch_size)
            embeds = self._vision(normalise(batch.to(self._vision.positions.device)))
            yield from embeds[: len(now), None]


def _taken(images: Images, places: Sequence[int]) -> Images:
    if isinstance(images, np.ndarray | Tensor):
        return images[list(places)]
    return [images[place] for place in places]
