"""Pre-training as a plain loop over transformers' modules.

It is what one writes with these modules at hand, after the original BLIP: every text padded to 30
tokens, and an image's keys and values computed again for ITM's true pairs, for its two wrong ones
and for LM. It is not made slow on purpose: wrong partners are drawn for the whole batch at once,
AdamW is fused on a GPU, and nothing but the losses is fetched.

B rows, N candidates of ITC, P image tokens, L text tokens, S image side, E shared width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.transforms import normalise

Losses: TypeAlias = Mapping[str, float]
"""By name: lm, itc, itm."""
Past: TypeAlias = dict[str, Tensor]
"""Image and text vectors of earlier pairs, and their ids, as a training's state names them."""
Choose: TypeAlias = Callable[..., Tensor]
"""From similarities, (B, B), and the keywords `step` and `side` to a wrong partner each, (B,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What both sides learn with; the paper's where nothing else is said."""

    max_tokens: int = 30
    queue_size: int = 57_600
    num_past: int = 0
    """Pairs that the queue holds at the start."""
    momentum: float = 0.995
    label_smoothing: float = 0.1
    soft_weight: float = 0.4
    num_ramp_steps: int = 1
    """All steps but the first have the soft targets, which cost something."""
    learning_rate: float = 1e-6
    """So low that lively weights, which are far from trained ones, do not run away."""
    weight_decay: float = 0.05
    autocast: Literal["none", "bfloat16"] = "none"


class Towers(nn.Module):
    """Transformers' modules that encode images and texts; the slow encoders are a copy of it."""

    def __init__(self, peer: Any) -> None:
        super().__init__()
        self.vision, self.encoder = peer.vision_model, peer.text_encoder
        self.vision_proj, self.text_proj = peer.vision_proj, peer.text_proj

    def image_embeds(self, pixels: Tensor) -> Tensor:
        """Encode images, (B, 3, S, S), as (B, P, D)."""
        embeds: Tensor = self.vision(pixel_values=pixels).last_hidden_state
        return embeds

    def vectors(self, embeds: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map image tokens and texts to unit vectors, (B, E) each."""
        texts = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return (
            F.normalize(self.vision_proj(embeds[:, 0]), dim=-1),
            F.normalize(self.text_proj(texts[:, 0]), dim=-1),
        )


class PlainBlip(nn.Module):
    """Transformers' captioner and filter as one model, tied as in pre-training.

    Args:
        folder: holds both, as "captioner" and "filter".
        label_smoothing: of LM.
    """

    def __init__(self, folder: Path, *, label_smoothing: float) -> None:
        super().__init__()
        load = {"dtype": torch.float32}
        captioner = transformers.BlipForConditionalGeneration.from_pretrained(
            folder / "captioner", **load
        )
        matcher = transformers.BlipForImageTextRetrieval.from_pretrained(folder / "filter", **load)
        matcher.vision_model = captioner.vision_model
        self.decoder: Any = captioner.text_decoder
        self.decoder.label_smoothing = label_smoothing
        matcher.text_encoder.embeddings = self.decoder.bert.embeddings
        layers = zip(
            matcher.text_encoder.encoder.layer, self.decoder.bert.encoder.layer, strict=True
        )
        for own, shared in layers:
            own.crossattention = shared.crossattention
            own.intermediate, own.output = shared.intermediate, shared.output
        self.towers = Towers(matcher)
        self.itm_head = matcher.itm_head
        self.temp = nn.Parameter(torch.tensor(0.07))


class PlainTraining:
    """Takes steps of pre-training.

    Args:
        model: changed in place; on its device.
        config: ids of the special tokens.
        tokenizer: of the texts.
        past: what the queue holds at the start.
        learning: see `Learning`.
        choose: draws the hard negatives.
    """

    def __init__(
        self,
        model: PlainBlip,
        *,
        config: BlipConfig,
        tokenizer: Tokenizer,
        past: Past,
        learning: Learning,
        choose: Choose,
    ) -> None:
        self._model = model
        self._slow = copy.deepcopy(model.towers).requires_grad_(False)
        self._config = config
        self._tokenizer = tokenizer
        self._device = model.temp.device
        self._image_queue = past["queue.image_vectors"].to(self._device)
        self._text_queue = past["queue.text_vectors"].to(self._device)
        self._learning = learning
        self._choose = choose
        self._num_steps = 0
        self._adamw = torch.optim.AdamW(
            model.parameters(),
            lr=learning.learning_rate,
            weight_decay=learning.weight_decay,
            fused=True if self._device.type == "cuda" else None,
        )

    def step(self, batch: TextImageBatch) -> Losses:
        """Take a step."""
        self._model.train()
        encoded = self._tokenizer.encode(
            batch.texts,
            first="cls",
            max_tokens=self._learning.max_tokens,
            pad_to=self._learning.max_tokens,
        )
        ids, mask = encoded.ids.to(self._device), encoded.mask.to(self._device)
        pixels = normalise(batch.images.to(self._device))
        self._move_slow()
        with torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._learning.autocast == "bfloat16"
        ):
            losses = self._losses(pixels, ids, mask)
        self._adamw.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._adamw.step()
        self._num_steps += 1
        return dict(zip(("lm", "itc", "itm"), losses.tolist(), strict=True))

    @torch.no_grad()
    def _move_slow(self) -> None:
        self._model.temp.clamp_(0.001, 0.5)
        fast = self._model.towers.parameters()
        for slow, learnt in zip(self._slow.parameters(), fast, strict=True):
            slow.lerp_(learnt, 1 - self._learning.momentum)

    def _losses(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        embeds = self._model.towers.image_embeds(pixels)
        to_text, to_image, itc = self._contrast(pixels, embeds, ids, mask)
        wrong_text = self._choose(to_text, step=self._num_steps, side=0)
        wrong_image = self._choose(to_image, step=self._num_steps, side=1)
        read = _first(ids, self._config.enc_token_id)
        match = self._itm_logits(read, mask, embeds)
        no_match = self._itm_logits(
            torch.cat([read[wrong_text], read]),
            torch.cat([mask[wrong_text], mask]),
            torch.cat([embeds, embeds[wrong_image]]),
        )
        labels = torch.cat([ids.new_ones(len(match)), ids.new_zeros(len(no_match))])
        itm = F.cross_entropy(torch.cat([match, no_match]).float(), labels)
        return torch.stack([self._lm(ids, mask, embeds), itc, itm])

    def _contrast(
        self, pixels: Tensor, embeds: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Contrast images and texts: similarities within the batch, (B, B) twice, and the loss."""
        images, texts = self._model.towers.vectors(embeds, ids, mask)
        with torch.no_grad():
            slow = self._slow.vectors(self._slow.image_embeds(pixels), ids, mask)
        slow_images, slow_texts = (vectors.float() for vectors in slow)
        all_images = torch.cat([slow_images, self._image_queue])
        all_texts = torch.cat([slow_texts, self._text_queue])
        self._image_queue = self._pushed(self._image_queue, slow_images)
        self._text_queue = self._pushed(self._text_queue, slow_texts)
        to_text, text_loss = self._side(images, slow_images, all_texts)
        to_image, image_loss = self._side(texts, slow_texts, all_images)
        return to_text, to_image, (text_loss + image_loss) / 2

    def _pushed(self, queue: Tensor, vectors: Tensor) -> Tensor:
        return torch.cat([queue, vectors])[-self._learning.queue_size :]

    def _side(self, fast: Tensor, slow: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        similarity = fast @ candidates.T / self._model.temp  # (B, N)
        with torch.no_grad():
            belief = (slow @ candidates.T / self._model.temp).softmax(dim=1)
            ramp = min(1.0, self._num_steps / self._learning.num_ramp_steps)
            weight = ramp * self._learning.soft_weight
            targets = weight * belief
            targets.diagonal().add_(1 - weight)
        loss = -(F.log_softmax(similarity, dim=1) * targets).sum(dim=1).mean()
        return similarity[:, : len(fast)].detach(), loss

    def _itm_logits(self, ids: Tensor, mask: Tensor, embeds: Tensor) -> Tensor:
        read = self._model.towers.encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=embeds
        )
        logits: Tensor = self._model.itm_head(read.last_hidden_state[:, 0])
        return logits

    def _lm(self, ids: Tensor, mask: Tensor, embeds: Tensor) -> Tensor:
        loss: Tensor = self._model.decoder(
            input_ids=_first(ids, self._config.bos_token_id),
            attention_mask=mask,
            encoder_hidden_states=embeds,
            labels=ids.masked_fill(~mask, -100),
        ).loss
        return loss


def _first(ids: Tensor, token_id: int) -> Tensor:
    ids = ids.clone()
    ids[:, 0] = token_id
    return ids


def drawn(similarity: Tensor, *, step: int, side: int) -> Tensor:
    """Draw a wrong partner of each row, the likelier the more alike; `Choose`."""
    weights = similarity.float().softmax(dim=1) + 1e-4
    return torch.multinomial(weights.fill_diagonal_(0), 1).squeeze(1)
