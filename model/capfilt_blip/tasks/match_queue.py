"""The ITM half of matching: images wait with their texts until a full batch of them is there.

Every pass has one text of each image of the batch, all padded to one length: see `match_rows`.

Letters: B images of a batch, P image tokens, D width of the image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from capfilt_blip.attention import Memory
from capfilt_blip.blip import BlipMatcher
from capfilt_blip.tasks.match_rows import TEXT_LENGTHS, TextRow, padded


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedImage:
    """An image, the texts that ITM is asked of, and where the answers go."""

    embeds: Tensor
    """(P, D), from the vision transformer."""
    rows: Sequence[tuple[int, TextRow]]
    """The texts, each with its place in `itm_prob`."""
    itm_prob: list[float | None]


class MatchQueue:
    """Judges texts once enough images wait.

    Args:
        model: in eval mode.
        first_id: the token that the ITM head reads.
        num_images: B; fewer images, at the end, are filled up.
    """

    def __init__(self, model: BlipMatcher, *, first_id: int, num_images: int) -> None:
        self._model = model
        self._first_id = first_id
        self._num_images = num_images
        self._waiting: list[AskedImage] = []

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._model.text_encoder.embeddings.words.weight.device

    def add(self, image: AskedImage) -> None:
        """Take an image; the answers come with this call or a later one."""
        self._waiting.append(image)
        if len(self._waiting) == self._num_images:
            self.finish()

    def finish(self) -> None:
        """Judge the texts of all images that wait."""
        if not self._waiting:
            return
        filler = [self._waiting[0]] * (self._num_images - len(self._waiting))
        embeds = torch.stack([image.embeds for image in (*self._waiting, *filler)])
        memory = self._model.text_encoder.project_memory(embeds)
        for turn in _turns([image.rows for image in self._waiting]):
            self._judge(turn, memory)
        self._waiting.clear()

    def _judge(self, turn: Sequence[tuple[int, TextRow] | None], memory: Memory) -> None:
        rows = [None if one is None else one[1] for one in turn]
        ids, mask = padded(rows, num_rows=self._num_images, first_id=self._first_id)
        logits = self._model.itm_logits(ids.to(memory.device), mask.to(memory.device), memory)
        found = logits.float().softmax(-1)[:, 1].tolist()
        for image, one, itm_prob in zip(self._waiting, turn, found, strict=False):  # then filler
            if one is not None:
                image.itm_prob[one[0]] = itm_prob


def _turns(
    images: Sequence[Sequence[tuple[int, TextRow]]],
) -> Iterator[tuple[tuple[int, TextRow] | None, ...]]:
    """Passes with at most one text of each image, all of one length."""
    for length in TEXT_LENGTHS:
        queues = [[one for one in rows if one[1].length == length] for rows in images]
        yield from zip_longest(*queues)
