"""The losses of the three trainings, of this process's share of a batch.

A batch is prepared first: all processes tell each other what the means are taken over. A share's
losses are its sums over these numbers, so that shares and parts sum to the losses of the whole
batch, however unequal they are.

B rows of this process, P image tokens, L text tokens, S image side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from capfilt_blip import losses
from capfilt_blip.attention import Memory
from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.contrast import Contrast
from capfilt_blip.train.matching import Matching
from capfilt_blip.train.pairs import PairReader, Pairs, Texts
from capfilt_blip.train.settings import CaptionerSettings, MatcherSettings, PretrainSettings
from capfilt_blip.train.world import World
from capfilt_blip.transforms import normalise
from capfilt_blip.vision import VisionTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class Divisors:
    """What the means of a batch are taken over, in all processes and parts; scalars."""

    num_rows: Tensor
    num_tokens: Tensor
    num_pairs: Tensor

    @classmethod
    def of(cls, parts: Sequence[Prepared], *, world: World) -> Divisors:
        """Sum up what the parts and the processes have."""
        own = torch.stack([part.counts for part in parts]).sum(dim=0)
        num_rows, num_tokens, num_pairs = world.summed(own)
        return cls(num_rows=num_rows, num_tokens=num_tokens, num_pairs=num_pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A part of a batch, ready for its losses."""

    images: Tensor  # (B, S, S, 3) uint8
    texts: Texts  # (B, L), of LM
    counts: Tensor  # (3,) int64: rows, tokens that LM learns, pairs that ITM learns
    pairs: Pairs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Shares of the losses: scalars, those that the training has."""

    lm: Tensor | None = None
    itc: Tensor | None = None
    itm: Tensor | None = None
    itm_accuracy: Tensor | None = None

    def total(self) -> Tensor:
        """The sum: BLIP weighs all losses the same."""
        return torch.stack([x for x in (self.lm, self.itc, self.itm) if x is not None]).sum()


class Objective(Protocol):
    """A training's losses, and what they remember from step to step."""

    temperature: nn.Parameter | None
    """Of ITC, learnt; None if there is no contrast."""

    def prepare(
        self, parts: Sequence[TextImageBatch], *, step: int, num_samples: int
    ) -> list[Prepared]:
        """Read the parts of this process's share; all processes call it together."""
        ...

    def begin(self, *, step: int) -> None:
        """Do what is done once per step, before its losses."""
        ...

    def losses(self, part: Prepared, divisors: Divisors) -> Losses:
        """Compute a part's share of the losses."""
        ...

    def vision_encoders(self) -> list[VisionTransformer]:
        """Give all image encoders that are used."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Give what is remembered, by name."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        ...


class CaptionerObjective:
    """LM behind a prompt, on a captioner (arXiv:2201.12086, sec. 3.3)."""

    def __init__(
        self, model: BlipCaptioner, *, tokenizer: Tokenizer, settings: CaptionerSettings
    ) -> None:
        self.temperature: nn.Parameter | None = None
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._num_prompt_tokens = len(tokenizer.prompt_ids(settings.prompt))

    def prepare(
        self, parts: Sequence[TextImageBatch], *, step: int, num_samples: int
    ) -> list[Prepared]:
        """Tokenise texts behind the prompt."""
        return [self._prepared(part) for part in parts]

    def _prepared(self, part: TextImageBatch) -> Prepared:
        settings, device = self._settings, self._model.lm_head.bias.device
        encoded = self._tokenizer.encode(
            part.texts, first="dec", max_tokens=settings.max_tokens, prompt=settings.prompt
        )
        texts = Texts(ids=encoded.ids.to(device), mask=encoded.mask.to(device))
        num_tokens = losses.num_learnt_tokens(texts.mask, num_prompt_tokens=self._num_prompt_tokens)
        counts = torch.stack([num_tokens.new_tensor(len(part.images)), num_tokens, 0 * num_tokens])
        return Prepared(images=part.images, texts=texts, counts=counts)

    def begin(self, *, step: int) -> None:
        """Nothing is done once per step."""

    def losses(self, part: Prepared, divisors: Divisors) -> Losses:
        """LM."""
        model, settings = self._model, self._settings
        images = model.vision(normalise(part.images.to(model.lm_head.bias.device)))
        lm = _lm(
            model,
            part.texts,
            memory=model.text_decoder.project_memory(images),
            num_prompt_tokens=self._num_prompt_tokens,
            label_smoothing=settings.label_smoothing,
            num_tokens=divisors.num_tokens,
        )
        return Losses(lm=lm)

    def vision_encoders(self) -> list[VisionTransformer]:
        """The captioner's."""
        return [self._model.vision]

    def tensors(self) -> dict[str, Tensor]:
        """Nothing is remembered."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing is remembered."""


class PairObjective:
    """ITC and ITM on a matcher; with a captioner that shares its image encoder, LM too.

    Args:
        matcher: learns ITC and ITM.
        captioner: learns LM, reading the same keys and values; None leaves LM out.
        temperature: of ITC, learnt.
        tokenizer: of both.
        settings: see `PretrainSettings` and `MatcherSettings`.
        world: the processes.
    """

    def __init__(
        self,
        matcher: BlipMatcher,
        *,
        captioner: BlipCaptioner | None,
        temperature: nn.Parameter,
        tokenizer: Tokenizer,
        settings: PretrainSettings | MatcherSettings,
        world: World,
    ) -> None:
        self.temperature: nn.Parameter | None = temperature
        self._matcher = matcher
        self._captioner = captioner
        self._tokenizer = tokenizer
        self._label_smoothing = (
            settings.label_smoothing if isinstance(settings, PretrainSettings) else 0.0
        )
        self._reader = PairReader(
            tokenizer,
            max_tokens=settings.max_tokens,
            negatives=settings.contrast.negatives,
            seed=settings.seed,
            world=world,
        )
        self._contrast = Contrast(
            matcher, temperature=temperature, settings=settings.contrast, world=world
        )
        self._matching = Matching(matcher, enc_id=tokenizer.enc_id, world=world)

    def prepare(
        self, parts: Sequence[TextImageBatch], *, step: int, num_samples: int
    ) -> list[Prepared]:
        """Tokenise each text once, and find out what matches what."""
        device = self._matcher.itm_head.weight.device
        read = self._reader.read(parts, step=step, num_samples=num_samples, device=device)
        return [_with_pairs(part, pairs) for part, pairs in zip(parts, read, strict=True)]

    def begin(self, *, step: int) -> None:
        """Move the slow encoders."""
        self._contrast.begin(step=step)

    def losses(self, part: Prepared, divisors: Divisors) -> Losses:
        """ITC and ITM, and LM if there is a captioner."""
        matcher, pairs = self._matcher, part.pairs
        assert pairs is not None, "parts come from this class's prepare"
        pixels = normalise(part.images.to(matcher.itm_head.weight.device))
        image_embeds = matcher.vision(pixels)
        # Cross-attention is shared, so encoder and decoder read the same keys and values.
        memory = matcher.text_encoder.project_memory(image_embeds)
        contrasted = self._contrast.loss(
            pairs,
            cls_id=self._tokenizer.cls_id,
            pixels=pixels,
            image_embeds=image_embeds,
            num_rows=divisors.num_rows,
        )
        matched = self._matching.loss(
            pairs, contrasted, memory=memory, num_pairs=divisors.num_pairs
        )
        return Losses(
            lm=self._lm(part.texts, memory, divisors),
            itc=contrasted.loss,
            itm=matched.loss,
            itm_accuracy=matched.accuracy,
        )

    def _lm(self, texts: Texts, memory: Memory, divisors: Divisors) -> Tensor | None:
        if self._captioner is None:
            return None
        return _lm(
            self._captioner,
            Texts(ids=texts.read_as(self._tokenizer.dec_id), mask=texts.mask),
            memory=memory,
            num_prompt_tokens=0,
            label_smoothing=self._label_smoothing,
            num_tokens=divisors.num_tokens,
        )

    def vision_encoders(self) -> list[VisionTransformer]:
        """The one that learns, and the slow one."""
        return [self._matcher.vision, *self._contrast.vision_encoders()]

    def tensors(self) -> dict[str, Tensor]:
        """The slow weights and the queue."""
        return self._contrast.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over slow weights and queue."""
        self._contrast.load(tensors)


def _with_pairs(part: TextImageBatch, pairs: Pairs) -> Prepared:
    texts = Texts(ids=pairs.own.ids[0], mask=pairs.own.mask[0])
    num_tokens = losses.num_learnt_tokens(texts.mask)
    counts = [num_tokens.new_tensor(len(part.images)), num_tokens, pairs.num_itm_pairs]
    return Prepared(images=part.images, texts=texts, counts=torch.stack(counts), pairs=pairs)


def _lm(
    captioner: BlipCaptioner,
    texts: Texts,
    *,
    memory: Memory,
    num_prompt_tokens: int,
    label_smoothing: float,
    num_tokens: Tensor,
) -> Tensor:
    return losses.lm_loss(
        captioner.lm_logits(texts.ids, texts.mask, memory),
        texts.ids,
        texts.mask,
        num_prompt_tokens=num_prompt_tokens,
        label_smoothing=label_smoothing,
        num_tokens=num_tokens,
    )
