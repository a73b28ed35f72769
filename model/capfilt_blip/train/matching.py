"""ITM of one batch: images with their own, hard wrong and false texts; texts with wrong images.

An image's keys and values are computed once for all of these. Where a text's wrong image lies in
another process, the text goes there: a few numbers, instead of the image's tokens and their
gradient.

B rows of this process, N candidates, R true and false texts of a row, L text tokens, X texts that
read a wrong image of this process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt_blip import losses
from capfilt_blip.attention import Memory
from capfilt_blip.blip import BlipMatcher
from capfilt_blip.train.contrast import Contrasted
from capfilt_blip.train.pairs import Pairs, Texts
from capfilt_blip.train.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """What ITM said, in this process."""

    loss: Tensor
    """Scalar, with gradient: this process's share."""
    accuracy: Tensor
    """Scalar, this process's share; 2/3 in all comes free by always saying "no match"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    logits: Tensor  # (..., 2)
    is_match: Tensor  # (...) bool
    used: Tensor  # (...) bool, False where there is no such pair


class Matching:
    """Computes ITM of batch after batch.

    Args:
        matcher: the model that learns.
        enc_id: token that texts are read with.
        world: the processes.
    """

    def __init__(self, matcher: BlipMatcher, *, enc_id: int, world: World) -> None:
        self._matcher = matcher
        self._enc_id = enc_id
        self._world = world

    def loss(
        self, pairs: Pairs, found: Contrasted, *, memory: Memory, num_pairs: Tensor
    ) -> Matched:
        """Judge true pairs, hard wrong ones, and those that are known to be false.

        Args:
            pairs: the texts.
            found: the hard negatives.
            memory: keys and values of the B images.
            num_pairs: scalar, learnt in all processes and parts of the batch.
        """
        parts = [self._own(pairs, found, memory), self._swapped(pairs, found, memory)]
        logits = torch.cat([part.logits.flatten(0, -2) for part in parts])
        is_match = torch.cat([part.is_match.flatten() for part in parts])
        used = torch.cat([part.used.flatten() for part in parts])
        right = ((logits.argmax(dim=1) == is_match) & used).sum()
        return Matched(
            loss=losses.itm_loss(logits, is_match, used=used, num_pairs=num_pairs),
            accuracy=right / num_pairs,
        )

    def _own(self, pairs: Pairs, found: Contrasted, memory: Memory) -> _Judged:
        """Each image with its own text, a hard wrong one, and the distractors."""
        own, others = pairs.own, pairs.candidates
        # The texts of one image follow each other, so that they share its keys and values.
        texts = Texts(
            ids=torch.cat([own.ids, others.ids[found.wrong_text][None]]).transpose(0, 1),
            mask=torch.cat([own.mask, others.mask[found.wrong_text][None]]).transpose(0, 1),
        )  # (B, R + 1, L)
        logits = self._logits(texts, memory).view(*texts.ids.shape[:2], 2)  # (B, R + 1, 2)
        used = logits.new_ones(logits.shape[:2], dtype=torch.bool)
        is_match = torch.zeros_like(used)
        used[:, -1] = found.has_wrong_text
        is_match[:, 0] = True
        return _Judged(logits=logits, is_match=is_match, used=used)

    def _swapped(self, pairs: Pairs, found: Contrasted, memory: Memory) -> _Judged:
        """Each text with a hard wrong image."""
        texts, image, used = pairs.candidates, found.wrong_image, found.has_wrong_image
        if pairs.is_global:
            texts, image, used = self._sent_here(pairs, found)
        logits = torch.zeros(0, 2, device=memory.device)
        if len(image):  # the model cannot read no text at all
            logits = self._logits(texts, memory.rows(image))
        return _Judged(logits=logits, is_match=torch.zeros_like(used), used=used)

    def _sent_here(self, pairs: Pairs, found: Contrasted) -> tuple[Texts, Tensor, Tensor]:
        """Take of all processes' texts those whose wrong image is one of this process.

        Returns:
            X texts; (X,) int64, the image each will read; (X,) bool, whether it is learnt.
        """
        images = self._world.gather(found.wrong_image, counts=pairs.counts)
        used = self._world.gather(found.has_wrong_image, counts=pairs.counts)
        here = images - pairs.first_row
        rows = ((here >= 0) & (here < pairs.counts[self._world.rank])).nonzero().squeeze(1)
        every = pairs.candidates
        return Texts(ids=every.ids[rows], mask=every.mask[rows]), here[rows], used[rows]

    def _logits(self, texts: Texts, memory: Memory) -> Tensor:
        """Judge texts, (..., L), one or more per memory: (X, 2)."""
        ids = texts.read_as(self._enc_id).flatten(0, -2)
        return self._matcher.itm_logits(ids, texts.mask.flatten(0, -2), memory)
