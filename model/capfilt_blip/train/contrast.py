"""ITC and ITM of one batch: the contrast with momentum and queue, and what it finds hard.

B batch, N candidates, Q queue, E shared width, P image tokens, L text tokens, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capfilt_blip import losses
from capfilt_blip.attention import Memory
from capfilt_blip.blip import BlipMatcher
from capfilt_blip.momentum import MomentumEncoder, VectorQueue
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch, ids_of, image_ids_of


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastLoss:
    """The two losses of one batch, with gradient."""

    itc: Tensor
    itm: Tensor
    itm_accuracy: float
    """Share of ITM pairs judged right; 2/3 comes free by always saying "no match"."""


class Contrast:
    """Computes ITC and ITM of batch after batch; remembers the past in the queue.

    Args:
        matcher: the model that learns.
        temperature: scalar, learnt, of the ITC softmax; clamped in place at each batch.
        tokenizer: makes the texts into tokens.
        settings: see `ContrastSettings`.
        max_tokens: longest text, special tokens included.
        generator: of the hard negatives; on the CPU.
    """

    def __init__(
        self,
        matcher: BlipMatcher,
        *,
        temperature: nn.Parameter,
        tokenizer: Tokenizer,
        settings: ContrastSettings,
        max_tokens: int,
        generator: torch.Generator,
    ) -> None:
        self._matcher = matcher
        self._temperature = temperature
        self._tokenizer = tokenizer
        self._settings = settings
        self._max_tokens = max_tokens
        self._generator = generator
        self._num_batches = 0
        self._num_samples = 0
        self._average: MomentumEncoder | None = None
        size = 0
        if settings.momentum is not None:
            self._average = MomentumEncoder(matcher, momentum=settings.momentum)
            size = settings.queue_size
        self._queue = VectorQueue(size=size, width=matcher.config.shared_width)
        self._queue.to(temperature.device)

    def loss(
        self, batch: TextImageBatch, *, pixels: Tensor, image_embeds: Tensor, memory: Memory
    ) -> ContrastLoss:
        """Compute both losses of a batch, and let the queue see it.

        Args:
            batch: the texts, and what is known of them.
            pixels: (B, 3, S, S), for the slow encoders.
            image_embeds: (B, P, D) of the learning encoder.
            memory: keys and values of the same images.
        """
        losses.clamp_temperature(self._temperature)
        device = pixels.device
        image_ids = image_ids_of(batch, first_sample=self._num_samples, device=device)
        text_ids = ids_of(batch.texts, device=device)
        known = losses.known_pairs(image_ids, text_ids)
        if batch.known_matches is not None:
            known = known | batch.known_matches.to(device)
        sides = self._itc_sides(batch, pixels, image_embeds, image_ids, text_ids, known)
        itc = (losses.itc_loss(*sides[0]) + losses.itc_loss(*sides[1])) / 2
        to_text, to_image = (similarity[:, : len(known)] for similarity, _ in sides)
        itm, accuracy = self._itm(batch, memory, to_text, to_image, known)
        self._num_batches += 1
        self._num_samples += len(batch.images)
        return ContrastLoss(itc=itc, itm=itm, itm_accuracy=accuracy)

    def _itc_sides(
        self,
        batch: TextImageBatch,
        pixels: Tensor,
        image_embeds: Tensor,
        image_ids: Tensor,
        text_ids: Tensor,
        known: Tensor,
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Similarity (B, N) and targets (B, N): images to texts, then texts to images."""
        encoded = self._tokenizer.encode(batch.texts, first="cls", max_tokens=self._max_tokens)
        tokens, mask = encoded.ids.to(pixels.device), encoded.mask.to(pixels.device)
        images = self._matcher.image_vectors(image_embeds)
        texts = self._matcher.text_vectors(tokens, mask)
        slow_images, slow_texts = images, texts
        soft_weight = 0.0
        if self._average is not None:
            self._average.update()
            slow_images, slow_texts = self._average.encode(pixels, tokens, mask)
            ramp = min(1.0, self._num_batches / max(1, self._settings.num_ramp_steps))
            soft_weight = ramp * self._settings.soft_weight
        queue = self._queue
        positives = torch.cat([known, losses.cross_pairs(image_ids, queue.image_ids)], dim=1)
        positives_back = torch.cat([known.T, losses.cross_pairs(text_ids, queue.text_ids)], dim=1)
        all_images = torch.cat([slow_images, queue.image_vectors])  # (N, E)
        all_texts = torch.cat([slow_texts, queue.text_vectors])  # (N, E)
        to_text = self._side(images, slow_images, all_texts, positives, soft_weight)
        to_image = self._side(texts, slow_texts, all_images, positives_back, soft_weight)
        queue.push(
            image_vectors=slow_images,
            text_vectors=slow_texts,
            image_ids=image_ids,
            text_ids=text_ids,
        )
        return to_text, to_image

    def _side(
        self,
        vectors: Tensor,
        slow_vectors: Tensor,
        candidates: Tensor,
        positives: Tensor,
        soft_weight: float,
    ) -> tuple[Tensor, Tensor]:
        similarity = vectors @ candidates.T / self._temperature  # (B, N)
        beliefs = (slow_vectors @ candidates.T / self._temperature).detach()
        return similarity, losses.itc_targets(beliefs, positives, soft_weight=soft_weight)

    def _itm(
        self,
        batch: TextImageBatch,
        memory: Memory,
        to_text: Tensor,
        to_image: Tensor,
        known: Tensor,
    ) -> tuple[Tensor, float]:
        """Judge each pair, a hard wrong text, a hard wrong image, and the distractors."""
        text_of, image_has_wrong = losses.hard_negatives(to_text, known, generator=self._generator)
        image_of, text_has_wrong = losses.hard_negatives(
            to_image, known.T, generator=self._generator
        )
        wrong_texts = [batch.texts[index] for index in text_of.tolist()]
        rows = [batch.texts, wrong_texts, *batch.distractors]
        # The texts of one image follow each other, so that they share its keys and values.
        own = self._itm_logits([row[b] for b in range(len(known)) for row in rows], memory)
        swapped = self._itm_logits(batch.texts, memory.rows(image_of))
        own_logits = own.view(len(known), len(rows), 2).transpose(0, 1).flatten(0, 1)
        logits = torch.cat([own_logits, swapped])
        is_match = torch.arange(len(logits), device=logits.device) < len(known)
        used = torch.ones_like(is_match)
        used[len(known) : 2 * len(known)] = image_has_wrong
        used[len(own_logits) :] = text_has_wrong
        right = (logits.argmax(dim=1) == is_match)[used]
        return losses.itm_loss(logits[used], is_match[used]), float(right.float().mean())

    def _itm_logits(self, texts: Sequence[str], memory: Memory) -> Tensor:
        encoded = self._tokenizer.encode(texts, first="enc", max_tokens=self._max_tokens)
        device = memory.device
        return self._matcher.itm_logits(encoded.ids.to(device), encoded.mask.to(device), memory)
