"""The matcher, CapFilt's filter: does a text describe an image, and how near are the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from capfilt_blip.attention import Memory
from capfilt_blip.blip import BlipMatcher
from capfilt_blip.checkpoint import load_matcher
from capfilt_blip.tasks.asked import check_lists
from capfilt_blip.tasks.placement import Device, Dtype, torch_device, torch_dtype
from capfilt_blip.tokenizer import TokenBatch, Tokenizer
from capfilt_blip.transforms import Images, fixed_batches, normalise, to_uint8

MAX_TEXT_TOKENS = 35
"""BLIP cuts texts to this length for matching, the first token and [SEP] included."""

_TEXTS_PER_PASS = 2
"""Texts of each image that are read at once: a web text and a synthetic text. More texts take more
passes, so that the shape of a pass, and with it each result, is the same for all."""


ItmFirstToken = Literal["enc", "cls"]
"""The token at position 0 of a text that is read with its image, which the ITM head reads.

[ENC] is what the head was trained on. [CLS] is what the published code of transformers and the
original's ITM demo leave there: it gives their probabilities, not better ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchScores:
    """One image and its texts; the lists are in the order of the texts."""

    itm_prob: list[float]
    """Probability in [0, 1] that the text describes the image (ITM head, after softmax)."""
    itc_cos: list[float]
    """Cosine in [-1, 1] of the text's and the image's vector (ITC)."""
    num_tokens: list[int]
    """Tokens of the whole text, special tokens excluded; the model reads MAX_TEXT_TOKENS - 2."""
    image_vector: list[float]
    """The image's unit vector; there without texts, too."""


class Matcher:
    """Scores texts against images. A score depends on its text and image, not on the batch.

    Args:
        model: a matcher; it is moved to the device and dtype, and to eval mode.
        tokenizer: the one the model was trained with.
        device: where it computes.
        dtype: what it computes in.
        first_token: "cls" reproduces the ITM probabilities that others report for the checkpoints
            on the hub; see `ItmFirstToken`. ITC reads [CLS] always.
    """

    def __init__(
        self,
        model: BlipMatcher,
        tokenizer: Tokenizer,
        *,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        first_token: ItmFirstToken = "enc",
    ) -> None:
        if first_token not in get_args(ItmFirstToken):
            raise ValueError(f"first_token is {first_token!r}; it must be 'enc' or 'cls'")
        self._model = model.to(torch_device(device), torch_dtype(dtype)).eval()
        self._tokenizer = tokenizer
        self._device = torch.device(device)
        self._first_token = first_token

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        first_token: ItmFirstToken = "enc",
    ) -> Matcher:
        """Load a matcher.

        Args:
            source: what `checkpoint.load_matcher` takes.
            tokenizer: directory or `vocab.txt`, for a source that has none, such as a `.pth`.
            device: where it computes.
            dtype: what it computes in.
            first_token: see `Matcher`.

        Raises:
            CheckpointError: the source cannot be read, or is no matcher.
        """
        model, loaded = load_matcher(source, tokenizer=tokenizer, dtype=torch_dtype(dtype))
        return cls(model, loaded, device=device, dtype=dtype, first_token=first_token)

    @property
    def image_size_px(self) -> int:
        """Side of the square images that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    def match(self, images: Images, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return for each image the ITM probabilities of its texts, in [0, 1]."""
        return [scores.itm_prob for scores in self.score(images, texts)]

    def similarity(self, images: Images, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return for each image the ITC cosines of its texts, in [-1, 1]."""
        return [scores.itc_cos for scores in self.score(images, texts)]

    def score(
        self, images: Images, texts: Sequence[Sequence[str]], *, batch_size: int = 8
    ) -> list[MatchScores]:
        """Score texts against their images; the texts of one image share one pass over it.

        Args:
            images: N images: (N, S, S, 3) uint8 with S = `image_size_px`, or PIL images.
            texts: the texts of each image, N lists of any length; read as they are, in lower case.
            batch_size: images in one pass; memory grows with it. Fewer images are padded to it.

        Returns:
            One per image, in order.

        Raises:
            ValueError: there are not as many lists of texts as images, or a text is no list.
        """
        pixels = to_uint8(images, side_px=self.image_size_px)
        check_lists(texts, pixels, what="texts", each="image")
        scores: list[MatchScores] = []
        for batch in fixed_batches(pixels, batch_size=batch_size):
            scores += self._score_batch(batch, texts[len(scores) : len(scores) + len(batch)])
        return scores

    @torch.inference_mode()
    def _score_batch(self, pixels: Tensor, texts: Sequence[Sequence[str]]) -> list[MatchScores]:
        """Score a batch whose last images may be filler, that is without an entry in `texts`."""
        image_embeds = self._model.vision(normalise(pixels.to(self._device)))
        vectors = self._model.image_vectors(image_embeds).float()  # (I, E)
        memory = self._model.text_encoder.project_memory(image_embeds)
        scores = [
            MatchScores(itm_prob=[], itc_cos=[], num_tokens=[], image_vector=vector.tolist())
            for vector in vectors[: len(texts)]
        ]
        for first in range(0, max(map(len, texts)), _TEXTS_PER_PASS):
            now = [image_texts[first : first + _TEXTS_PER_PASS] for image_texts in texts]
            batch = self._tokens(now, num_images=len(pixels))
            itm, itc = self._score_pass(batch, vectors, memory)
            for row, (score, image_texts) in enumerate(zip(scores, now, strict=True)):
                slots = slice(row * _TEXTS_PER_PASS, row * _TEXTS_PER_PASS + len(image_texts))
                score.itm_prob.extend(itm[slots])
                score.itc_cos.extend(itc[slots])
                score.num_tokens.extend(batch.num_tokens[slots])
        return scores

    def _tokens(self, texts: Sequence[Sequence[str]], *, num_images: int) -> TokenBatch:
        """Tokenize up to _TEXTS_PER_PASS texts of each image, and fill the free places."""
        rows = [*texts, *[()] * (num_images - len(texts))]
        filled = [[*row, *[""] * (_TEXTS_PER_PASS - len(row))] for row in rows]
        return self._tokenizer.encode(
            [text for row in filled for text in row],
            first=self._first_token,
            max_tokens=MAX_TEXT_TOKENS,
            pad_to=MAX_TEXT_TOKENS,
        )

    def _score_pass(
        self, batch: TokenBatch, image_vectors: Tensor, memory: Memory
    ) -> tuple[list[float], list[float]]:
        """Return the ITM probability and the ITC cosine of each row."""
        fused_ids, mask = batch.ids.to(self._device), batch.mask.to(self._device)
        itm = self._model.itm_logits(fused_ids, mask, memory).float().softmax(-1)[:, 1]
        lone_ids = fused_ids.clone()
        lone_ids[:, 0] = self._tokenizer.cls_id
        text_vectors = self._model.text_vectors(lone_ids, mask).float()  # (B, E)
        itc = (text_vectors * image_vectors.repeat_interleave(_TEXTS_PER_PASS, 0)).sum(-1)
        return itm.tolist(), itc.clamp(-1, 1).tolist()
