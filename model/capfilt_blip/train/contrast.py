"""ITC of one batch: the contrast with momentum and queue, and what it finds hard.

B rows of this process, N candidates, Q queue, E shared width, P image tokens, L text tokens,
S image side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capfilt_blip import losses
from capfilt_blip.blip import BlipMatcher
from capfilt_blip.momentum import MomentumEncoder, VectorQueue
from capfilt_blip.train.pairs import Negatives, Pairs
from capfilt_blip.train.world import World
from capfilt_blip.vision import VisionTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastSettings:
    """How images and texts are contrasted; the defaults are BLIP's (arXiv:2201.12086, sec. 4.1)."""

    momentum: float | None = 0.995
    """Share of the slow encoders kept at each step; None contrasts within the batch alone."""
    queue_size: int = 57600
    """Pairs of the past that are candidates too; used only with momentum."""
    soft_weight: float = 0.4
    """Largest share of the slow encoders' own belief in the ITC targets."""
    num_ramp_steps: int = 1000
    """Steps in which that share grows from 0: two epochs in BLIP's pre-training."""
    negatives: Negatives = "local"
    """Whose rows of a batch are candidates, of ITC and as hard negatives: the process's own, as in
    BLIP's pre-training, or those of all processes, as its finetuning on COCO draws its hard
    negatives. The queue holds those of all processes either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrasted:
    """What ITC found, in the rows of this process."""

    loss: Tensor
    """Scalar, with gradient: this process's share."""
    wrong_text: Tensor
    """(B,) int64, candidate that is a hard wrong text of the image."""
    has_wrong_text: Tensor
    """(B,) bool."""
    wrong_image: Tensor
    """(B,) int64, candidate that is a hard wrong image of the text."""
    has_wrong_image: Tensor
    """(B,) bool."""


class Contrast:
    """Computes ITC of batch after batch; remembers the past in the queue.

    Args:
        matcher: the model that learns.
        temperature: scalar, learnt, of the ITC softmax; clamped in place at each step.
        settings: see `ContrastSettings`.
        world: the processes.
    """

    def __init__(
        self,
        matcher: BlipMatcher,
        *,
        temperature: nn.Parameter,
        settings: ContrastSettings,
        world: World,
    ) -> None:
        self._matcher = matcher
        self._temperature = temperature
        self._settings = settings
        self._world = world
        self._soft_weight = 0.0
        self._average: MomentumEncoder | None = None
        size = 0
        if settings.momentum is not None:
            self._average = MomentumEncoder(matcher, momentum=settings.momentum)
            size = settings.queue_size
        self._queue = VectorQueue(size=size, width=matcher.config.shared_width)
        self._queue.to(temperature.device)
        # Slow vectors of this step's parts. They wait: a step that fails must leave no trace.
        self._seen: list[tuple[Pairs, Tensor, Tensor]] = []

    def begin(self, *, step: int) -> None:
        """Do what is done once per step, before its losses."""
        self._seen.clear()
        losses.clamp_temperature(self._temperature)
        if self._average is not None:
            ramp = min(1.0, step / max(1, self._settings.num_ramp_steps))
            self._soft_weight = ramp * self._settings.soft_weight

    def end(self) -> None:
        """Let the queue see the step's pairs, and the slow encoders follow the new weights."""
        for seen in self._seen:
            self._push(*seen)
        self._seen.clear()
        if self._average is not None:
            self._average.update()

    def loss(
        self, pairs: Pairs, *, cls_id: int, pixels: Tensor, image_embeds: Tensor, num_rows: Tensor
    ) -> Contrasted:
        """Contrast images and texts, keep them for the queue, and draw hard negatives.

        Args:
            pairs: the texts, and what is known of them.
            cls_id: token that the texts are read with.
            pixels: (B, 3, S, S), for the slow encoders.
            image_embeds: (B, P, D) of the learning encoder.
            num_rows: scalar, of all processes and parts of the batch.
        """
        tokens, mask = pairs.own.read_as(cls_id)[0], pairs.own.mask[0]
        images = self._matcher.image_vectors(image_embeds)
        texts = self._matcher.text_vectors(tokens, mask)
        slow_images, slow_texts = images, texts
        if self._average is not None:
            slow_images, slow_texts = self._average.encode(pixels, tokens, mask)
        # Without autocast: over a temperature of 0.07, what bfloat16 rounds would be 14 times it.
        with _without_autocast(pixels.device):
            slow = (slow_images.float(), slow_texts.float())
            return self._contrasted(
                pairs, fast=(images.float(), texts.float()), slow=slow, num_rows=num_rows
            )

    def vision_encoders(self) -> list[VisionTransformer]:
        """Give the image encoders that are held here."""
        return [] if self._average is None else [self._average.vision]

    def tensors(self) -> dict[str, Tensor]:
        """Give what has to be saved, by name: the slow weights and the queue."""
        slow = {} if self._average is None else self._average.named_parameters()
        return {f"slow.{name}": weight for name, weight in slow.items()} | {
            f"queue.{name}": vectors for name, vectors in self._queue.named_buffers()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave, as copies; the queue may be fuller or emptier."""
        with torch.no_grad():
            slow = {} if self._average is None else self._average.named_parameters()
            for name, weight in slow.items():
                weight.copy_(tensors[f"slow.{name}"])
        for name, vectors in list(self._queue.named_buffers()):
            saved = tensors[f"queue.{name}"][-self._queue.size :] if self._queue.size else vectors
            setattr(self._queue, name, saved.to(vectors.device, copy=True))

    def _contrasted(
        self,
        pairs: Pairs,
        *,
        fast: tuple[Tensor, Tensor],
        slow: tuple[Tensor, Tensor],
        num_rows: Tensor,
    ) -> Contrasted:
        """Do what `loss` does with image vectors and text vectors, each (B, E)."""
        if self._queue.size:
            self._seen.append((pairs, *slow))
        images, texts = self._candidates(pairs, slow)
        past = self._known_past(pairs)
        to_text, to_text_loss = self._side(
            fast[0],
            slow[0],
            candidates=texts,
            known=pairs.known_to_text,
            past=past,
            num_rows=num_rows,
        )
        to_image, to_image_loss = self._side(
            fast[1],
            slow[1],
            candidates=images,
            known=pairs.known_to_image,
            past=past,
            num_rows=num_rows,
        )
        loss = (to_text_loss + to_image_loss) / 2
        return _with_hard_negatives(pairs, loss=loss, to_text=to_text, to_image=to_image)

    def _candidates(self, pairs: Pairs, slow: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Put the queue behind the batch: images and texts, each (N + Q, E)."""
        near = list(slow)
        if pairs.is_global:
            near = [self._world.gather_with_gradient(x, counts=pairs.counts) for x in slow]
        past = (self._queue.image_vectors, self._queue.text_vectors)
        return [torch.cat(vectors) for vectors in zip(near, past, strict=True)]

    def _known_past(self, pairs: Pairs) -> Tensor:
        """Find what is true of the queue's texts and images alike, by the batch's rule: (B, Q)."""
        return losses.known_pairs(
            pairs.image_ids,
            pairs.text_ids,
            all_image_ids=self._queue.image_ids,
            all_text_ids=self._queue.text_ids,
        )

    def _side(
        self,
        vectors: Tensor,
        slow_vectors: Tensor,
        *,
        candidates: Tensor,
        known: Tensor,
        past: Tensor,
        num_rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Contrast one side: (B, N) similarities without the queue, and the loss."""
        similarity = vectors @ candidates.T / self._temperature  # (B, N + Q)
        beliefs = (slow_vectors @ candidates.T / self._temperature).detach()
        positives = torch.cat([known, past], dim=1)
        targets = losses.itc_targets(beliefs, positives, soft_weight=self._soft_weight)
        loss = losses.itc_loss(similarity, targets, num_rows=num_rows)
        return similarity[:, : known.shape[1]], loss

    def _push(self, pairs: Pairs, slow_images: Tensor, slow_texts: Tensor) -> None:
        self._queue.push(
            image_vectors=self._world.gather(slow_images, counts=pairs.counts),
            text_vectors=self._world.gather(slow_texts, counts=pairs.counts),
            image_ids=pairs.all_image_ids,
            text_ids=pairs.all_text_ids,
        )


def _with_hard_negatives(
    pairs: Pairs, *, loss: Tensor, to_text: Tensor, to_image: Tensor
) -> Contrasted:
    """Draw a wrong text for each image and a wrong image for each text, by (B, N) similarities."""
    wrong_text, has_wrong_text = losses.hard_negatives(
        to_text, pairs.known_to_text, draws=pairs.draws[0]
    )
    wrong_image, has_wrong_image = losses.hard_negatives(
        to_image, pairs.known_to_image, draws=pairs.draws[1]
    )
    return Contrasted(
        loss=loss,
        wrong_text=wrong_text,
        has_wrong_text=has_wrong_text,
        wrong_image=wrong_image,
        has_wrong_image=has_wrong_image,
    )


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
