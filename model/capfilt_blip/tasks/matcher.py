"""The matcher, CapFilt's filter: does a text describe an image, and how near are the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast, get_args

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.checkpoint import load_matcher
from capfilt_blip.flops import (
    image_flops,
    image_vector_flops,
    itc_flops,
    itm_flops,
    memory_flops,
)
from capfilt_blip.tasks.asked import check_lists
from capfilt_blip.tasks.match_rows import MAX_TEXT_TOKENS, text_rows
from capfilt_blip.tasks.placement import Device, NumberFormat, placed, weights_dtype
from capfilt_blip.tasks.scoring import Asked, MatchScores, Scoring
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import Images, to_uint8

ItmFirstToken = Literal["enc", "cls"]
"""The token at position 0 of a text that is read with its image, which the ITM head reads.

[ENC] is what the head was trained on. [CLS] is what the published code of transformers and the
original's ITM demo leave there: it gives their probabilities, not better ones."""


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
        dtype: NumberFormat = "float32",
        first_token: ItmFirstToken = "enc",
    ) -> None:
        if first_token not in get_args(ItmFirstToken):
            raise ValueError(f"first_token is {first_token!r}; it must be 'enc' or 'cls'")
        self._model = placed(model, device=device, dtype=dtype)
        self._tokenizer = tokenizer
        self._first_token = first_token

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: Device = "cpu",
        dtype: NumberFormat = "float32",
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
        model, loaded = load_matcher(source, tokenizer=tokenizer, dtype=weights_dtype(dtype))
        return cls(model, loaded, device=device, dtype=dtype, first_token=first_token)

    @property
    def image_size_px(self) -> int:
        """Side of the square images that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    def match(self, images: Images, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return for each image the ITM probabilities of its texts, in [0, 1]."""
        found = self.score(images, texts)
        return [cast("list[float]", scores.itm_prob) for scores in found]  # asked of all

    def similarity(
        self, images: Images, texts: Sequence[Sequence[str]], *, batch_size: int = 8
    ) -> list[list[float]]:
        """Return for each image the ITC cosines of its texts, in [-1, 1]; ITM is not computed."""
        found = self._in_best_order(images, texts, batch_size=batch_size, asked=_asked_of_none)
        return [scores.itc_cos for scores in found]

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
        return self._in_best_order(images, texts, batch_size=batch_size, asked=None)

    def best_order(self, texts: Sequence[Sequence[str]]) -> list[int]:
        """Say in which order images are scored fastest: those with texts of like length together.

        Args:
            texts: the texts of each image.

        Returns:
            The numbers of the images.
        """
        read = text_rows(self._tokenizer, texts)
        lengths = [sorted(row.length for row in of_image) for of_image in read]
        return sorted(range(len(texts)), key=lengths.__getitem__)

    def begin(self, *, batch_size: int = 8) -> Scoring:
        """Begin to score images that come bit by bit, ITM only where it is asked for.

        Args:
            batch_size: images in one pass.
        """
        first_id = {"enc": self._tokenizer.enc_id, "cls": self._tokenizer.cls_id}[self._first_token]
        return Scoring(self._model, self._tokenizer, itm_first_id=first_id, batch_size=batch_size)

    def flops(
        self, num_tokens: Sequence[Sequence[int]], *, asked: Sequence[Sequence[bool]] | None = None
    ) -> int:
        """Count the operations that scores need; see `capfilt_blip.flops`.

        Args:
            num_tokens: of each image, those of its texts, as `MatchScores` has them.
            asked: of each image, whether ITM was asked of its texts; None if it was of all.
        """
        config = self._model.config
        total = len(num_tokens) * (image_flops(config.vision) + image_vector_flops(config))
        for number, counts in enumerate(num_tokens):
            itm = [True] * len(counts) if asked is None else asked[number]
            total += memory_flops(config) * any(itm)
            for count, is_asked in zip(counts, itm, strict=True):
                read = min(count + 2, MAX_TEXT_TOKENS)
                total += itc_flops(config, num_tokens=read)
                total += itm_flops(config, num_tokens=read) * is_asked
        return total

    def _in_best_order(
        self,
        images: Images,
        texts: Sequence[Sequence[str]],
        *,
        batch_size: int,
        asked: Asked | None,
    ) -> list[MatchScores]:
        pixels = to_uint8(images, side_px=self.image_size_px)
        check_lists(texts, pixels, what="texts", each="image")
        order = self.best_order(texts)
        scoring = self.begin(batch_size=batch_size)
        found: dict[int, MatchScores] = {}
        for start in range(0, len(order), batch_size):
            turn = order[start : start + batch_size]
            scores = scoring.add(pixels[turn], [texts[number] for number in turn], asked=asked)
            found.update(zip(turn, scores, strict=True))
        scoring.finish()
        return [found[number] for number in range(len(order))]


def _asked_of_none(image: int, place: int, itc_cos: float) -> bool:
    return False
