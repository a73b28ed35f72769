"""Steps of pre-training written out row by row, to be compared with what the engine does.

From the formulas: ITC with momentum, soft targets and queue (ALBEF, arXiv:2107.07651, eq. 1 to 6),
ITM with hard negatives, and LM (BLIP, arXiv:2201.12086, sec. 3.2). Ours, beside these: pairs of the
same image or the same text are positives in batch and queue, and never negatives; the queue starts
empty. The model encodes one row at a time. A table of vectors is a list of (E,) tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt_blip.attention import Memory
from capfilt_blip.blip import Blip, BlipMatcher
from capfilt_blip.tokenizer import FirstToken, Tokenizer
from capfilt_blip.transforms import normalise


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A pair of a batch."""

    image: Tensor  # (S, S, 3) uint8
    image_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A pair as the slow encoders see it, of the batch or of the queue."""

    image: Tensor  # (E,)
    text: Tensor  # (E,)
    image_id: str
    words: str

    def is_known(self, row: Row) -> bool:
        """Say whether it is true of a row without looking."""
        return self.image_id == row.image_id or self.words == row.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a step finds before the weights change."""

    itc: Tensor
    itm: Tensor
    lm: Tensor
    gradients: dict[str, Tensor]


class PlainSteps:
    """Pre-training of a model without dropout, whose weights somebody else changes.

    Args:
        model: read at each step.
        tokenizer: the model's.
        momentum: share of the slow weights kept after each step.
        queue_size: pairs kept.
        soft_weights: alpha of eq. 6, of each step.
    """

    def __init__(
        self,
        model: Blip,
        *,
        tokenizer: Tokenizer,
        momentum: float,
        queue_size: int,
        soft_weights: Sequence[float],
    ) -> None:
        self.slow = copy.deepcopy(model.matching())
        self.queue: list[Seen] = []
        self._model = model
        self._tokenizer = tokenizer
        self._momentum = momentum
        self._queue_size = queue_size
        self._soft_weights = soft_weights

    def look(self, rows: Sequence[Row], *, step: int, draws: Tensor) -> Step:
        """Find losses and gradients of a batch; draws, (2, B), choose the hard negatives."""
        fast = self._model.matching()
        images = [self._image_vector(fast, row) for row in rows]
        texts = [self._text_vector(fast, row) for row in rows]
        with torch.no_grad():
            batch = [self._seen(row) for row in rows]
        alpha = self._soft_weights[step]
        itc = self._itc(rows, images, texts, batch, alpha)
        itm = self._itm(rows, images, texts, batch, draws.tolist())
        lm = self._lm(rows)
        gradients = self._gradients(itc + itm + lm)
        self.queue = [*self.queue, *batch][-self._queue_size :]
        return Step(itc=itc.detach(), itm=itm.detach(), lm=lm.detach(), gradients=gradients)

    @torch.no_grad()
    def follow(self) -> None:
        """Move each slow weight towards the model's: once between two steps, as the original."""
        fast = dict(self._model.matching().named_parameters())
        for name, weight in self.slow.named_parameters():
            weight.copy_(self._momentum * weight + (1 - self._momentum) * fast[name])

    def _itc(
        self,
        rows: Sequence[Row],
        images: Sequence[Tensor],
        texts: Sequence[Tensor],
        batch: Sequence[Seen],
        alpha: float,
    ) -> Tensor:
        """Mean over rows and both sides of the cross-entropy with soft targets."""
        total, all_seen = torch.zeros(()), [*batch, *self.queue]
        for number, row in enumerate(rows):
            known = [seen.is_known(row) for seen in all_seen]
            slow = batch[number]
            slow_texts = [seen.text for seen in all_seen]
            slow_images = [seen.image for seen in all_seen]
            total = total + self._surprise(images[number], slow.image, slow_texts, known, alpha)
            total = total + self._surprise(texts[number], slow.text, slow_images, known, alpha)
        return total / 2 / len(rows)

    def _surprise(
        self, fast: Tensor, slow: Tensor, table: Sequence[Tensor], known: list[bool], alpha: float
    ) -> Tensor:
        """Cross-entropy of one row on one side."""
        found = self._scores(fast, table).log_softmax(0)
        belief = self._scores(slow, table).softmax(0).detach()
        total = torch.zeros(())
        for candidate, is_known in enumerate(known):
            hard = 1 / sum(known) if is_known else 0.0
            target = alpha * belief[candidate] + (1 - alpha) * hard
            total = total - target * found[candidate]
        return total

    def _scores(self, vector: Tensor, table: Sequence[Tensor]) -> Tensor:
        return torch.stack([vector.dot(other) / self._model.temp for other in table])

    def _itm(
        self,
        rows: Sequence[Row],
        images: Sequence[Tensor],
        texts: Sequence[Tensor],
        batch: Sequence[Seen],
        draws: list[list[float]],
    ) -> Tensor:
        """Mean over true pairs, images with a wrong text, and texts with a wrong image."""
        judged = [self._judged(row, row.text, is_match=True) for row in rows]
        for number, row in enumerate(rows):
            known = [seen.is_known(row) for seen in batch]
            to_text = self._scores(images[number], [seen.text for seen in batch])
            to_image = self._scores(texts[number], [seen.image for seen in batch])
            wrong_text = drawn(to_text, known, draws[0][number])
            wrong_image = drawn(to_image, known, draws[1][number])
            judged.append(self._judged(row, rows[wrong_text].text, is_match=False))
            judged.append(self._judged(rows[wrong_image], row.text, is_match=False))
        return torch.stack(judged).mean()

    def _judged(self, image_of: Row, text: str, *, is_match: bool) -> Tensor:
        matcher = self._model.matching()
        logits = matcher.itm_logits(*self._tokens(text, "enc"), self._memory(image_of))[0]
        return -logits.log_softmax(0)[int(is_match)]

    def _lm(self, rows: Sequence[Row]) -> Tensor:
        """Mean over all tokens; a tenth of the target lies evenly on the vocabulary."""
        total, num_tokens = torch.zeros(()), 0
        for row in rows:
            ids, mask = self._tokens(row.text, "dec")
            logits = self._model.captioning().lm_logits(ids, mask, self._memory(row))[0]
            for place, token in enumerate(ids[0, 1:].tolist()):
                found = logits[place].log_softmax(0)
                total = total - 0.9 * found[token] - 0.1 * found.mean()
                num_tokens += 1
        return total / num_tokens

    def _gradients(self, loss: Tensor) -> dict[str, Tensor]:
        names, weights = zip(*self._model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))

    def _seen(self, row: Row) -> Seen:
        image, text = self._image_vector(self.slow, row), self._text_vector(self.slow, row)
        return Seen(image=image, text=text, image_id=row.image_id, words=row.text)

    def _image_vector(self, matcher: BlipMatcher, row: Row) -> Tensor:
        return matcher.image_vectors(matcher.vision(normalise(row.image[None])))[0]

    def _text_vector(self, matcher: BlipMatcher, row: Row) -> Tensor:
        return matcher.text_vectors(*self._tokens(row.text, "cls"))[0]

    def _memory(self, row: Row) -> Memory:
        embeds = self._model.vision(normalise(row.image[None]))
        return self._model.text_encoder.project_memory(embeds)

    def _tokens(self, text: str, first: FirstToken) -> tuple[Tensor, Tensor]:
        encoded = self._tokenizer.encode([text], first=first, max_tokens=30)
        return encoded.ids, encoded.mask


def drawn(scores: Tensor, known: Sequence[bool], draw: float) -> int:
    """Give the wrong partner at a draw in [0, 1): heap up weights until the draw is passed."""
    found = scores.detach().double().softmax(0).tolist()
    weights = [0.0 if is_known else w + 1e-4 for w, is_known in zip(found, known, strict=True)]
    heap = 0.0
    for candidate, weight in enumerate(weights):
        heap += weight
        if heap > draw * sum(weights):
            return candidate
    raise AssertionError("the row has no wrong partner")
