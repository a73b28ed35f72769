"""The three trainings of BLIP, each a generator of metrics that the caller drives.

    pretrain             ITC + ITM + LM on a whole Blip       (arXiv:2201.12086, sec. 3.2)
    finetune_captioner   LM with a prompt on a BlipCaptioner  (sec. 3.3)
    finetune_matcher     ITC + ITM on a BlipMatcher           (sec. 3.3)

The model is changed in place, one step per batch; training ends when the batches end. Everything
drawn here comes from `seed`, so the same batches on the same machine give the same weights.

    B batch, S image side in pixels, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from capfilt_blip import losses
from capfilt_blip.attention import Memory
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.tokenizer import TokenBatch, Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.contrast import Contrast, ContrastLoss, ContrastSettings
from capfilt_blip.train.optimizer import Optimizer, OptimizerSettings
from capfilt_blip.train.stuck import StuckWatch
from capfilt_blip.transforms import normalise


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSettings:
    """Pre-training; the three losses weigh the same."""

    optimizer: OptimizerSettings
    contrast: ContrastSettings = field(default_factory=ContrastSettings)
    max_tokens: int = 30
    label_smoothing: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionerSettings:
    """Finetuning of the captioner."""

    optimizer: OptimizerSettings
    prompt: str = "a picture of "
    """Put before each text and not learnt; captioning has to start from the same."""
    max_tokens: int = 40
    label_smoothing: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MatcherSettings:
    """Finetuning of the matcher, the filter of CapFilt."""

    optimizer: OptimizerSettings
    contrast: ContrastSettings = field(default_factory=ContrastSettings)
    temperature: float = 0.07
    """ITC temperature to start from; learnt, but no part of the finetuned model."""
    max_tokens: int = 35
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one step of training did. A loss that this training has not is None."""

    step: int  # from 0
    num_samples: int  # pairs seen so far, this step included
    learning_rate: float
    grad_norm: float  # before clipping
    loss: float
    lm_loss: float | None = None
    itc_loss: float | None = None
    itm_loss: float | None = None
    itm_accuracy: float | None = None


def pretrain(
    model: Blip,
    batches: Iterable[TextImageBatch],
    *,
    tokenizer: Tokenizer,
    settings: PretrainSettings,
) -> Iterator[StepMetrics]:
    """Teach a BLIP to contrast, to match and to write, on pairs that are believed true.

    Args:
        model: changed in place.
        batches: one step each.
        tokenizer: the model's.
        settings: see `PretrainSettings`.

    Yields:
        One row of metrics per batch, after its step.
    """
    captioner, matcher = model.captioning(), model.matching()
    contrast = _contrast(matcher, temperature=model.temp, tokenizer=tokenizer, settings=settings)

    def losses_of(batch: TextImageBatch) -> _Losses:
        pixels = normalise(batch.images.to(model.temp.device))
        image_embeds = model.vision(pixels)
        # Cross-attention is shared, so encoder and decoder read the same keys and values.
        memory = model.text_decoder.project_memory(image_embeds)
        encoded = tokenizer.encode(batch.texts, first="dec", max_tokens=settings.max_tokens)
        lm = _lm(captioner, encoded, memory, label_smoothing=settings.label_smoothing)
        found = contrast.loss(batch, pixels=pixels, image_embeds=image_embeds, memory=memory)
        return _Losses(lm=lm, contrast=found)

    modules = [model, captioner, matcher]
    yield from _run(modules, batches, losses_of, settings=settings)


def finetune_captioner(
    model: BlipCaptioner,
    batches: Iterable[TextImageBatch],
    *,
    tokenizer: Tokenizer,
    settings: CaptionerSettings,
) -> Iterator[StepMetrics]:
    """Teach a captioner to continue the prompt; arguments and yields as of `pretrain`."""
    num_prompt_tokens = len(tokenizer.prompt_ids(settings.prompt))

    def losses_of(batch: TextImageBatch) -> _Losses:
        pixels = normalise(batch.images.to(model.lm_head.bias.device))
        memory = model.text_decoder.project_memory(model.vision(pixels))
        encoded = tokenizer.encode(
            batch.texts, first="dec", max_tokens=settings.max_tokens, prompt=settings.prompt
        )
        lm = _lm(
            model,
            encoded,
            memory,
            num_prompt_tokens=num_prompt_tokens,
            label_smoothing=settings.label_smoothing,
        )
        return _Losses(lm=lm)

    yield from _run([model], batches, losses_of, settings=settings)


def finetune_matcher(
    model: BlipMatcher,
    batches: Iterable[TextImageBatch],
    *,
    tokenizer: Tokenizer,
    settings: MatcherSettings,
) -> Iterator[StepMetrics]:
    """Teach a matcher to tell true pairs from false; arguments and yields as of `pretrain`."""
    device = model.itm_head.weight.device
    temperature = nn.Parameter(torch.tensor(settings.temperature, device=device))
    contrast = _contrast(model, temperature=temperature, tokenizer=tokenizer, settings=settings)

    def losses_of(batch: TextImageBatch) -> _Losses:
        pixels = normalise(batch.images.to(device))
        image_embeds = model.vision(pixels)
        memory = model.text_encoder.project_memory(image_embeds)
        found = contrast.loss(batch, pixels=pixels, image_embeds=image_embeds, memory=memory)
        return _Losses(contrast=found)

    yield from _run([model], batches, losses_of, settings=settings, extra=[temperature])


Settings: TypeAlias = PretrainSettings | CaptionerSettings | MatcherSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Losses:
    """The losses of one batch, those that the training has."""

    lm: Tensor | None = None
    contrast: ContrastLoss | None = None

    def total(self) -> Tensor:
        """The sum: BLIP weighs all losses the same."""
        parts = [] if self.lm is None else [self.lm]
        if self.contrast is not None:
            parts += [self.contrast.itc, self.contrast.itm]
        return torch.stack(parts).sum()


def _run(
    modules: Sequence[nn.Module],
    batches: Iterable[TextImageBatch],
    losses_of: Callable[[TextImageBatch], _Losses],
    *,
    settings: Settings,
    extra: Sequence[nn.Parameter] = (),
) -> Iterator[StepMetrics]:
    """Take one step per batch. The first of the modules holds all parameters but the extra."""
    for module in modules:
        module.train()
    torch.manual_seed(settings.seed)  # dropout draws from torch's global generator
    optimizer = Optimizer([*modules[0].parameters(), *extra], settings.optimizer)
    watch = StuckWatch()
    num_samples = 0
    for step, batch in enumerate(batches):
        found = losses_of(batch)
        loss = found.total()
        learning_rate, grad_norm = optimizer.step(loss, step=step)
        num_samples += len(batch.images)
        itc, itm, accuracy = _parts(found.contrast)
        if itm is not None:
            watch.saw(itm, step=step, num_negatives=2 + len(batch.distractors))
        yield StepMetrics(
            step=step,
            num_samples=num_samples,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            loss=float(loss.detach()),
            lm_loss=None if found.lm is None else float(found.lm.detach()),
            itc_loss=itc,
            itm_loss=itm,
            itm_accuracy=accuracy,
        )
    for module in modules:
        module.eval()


def _parts(found: ContrastLoss | None) -> tuple[float | None, float | None, float | None]:
    if found is None:
        return None, None, None
    return float(found.itc.detach()), float(found.itm.detach()), found.itm_accuracy


def _contrast(
    matcher: BlipMatcher,
    *,
    temperature: nn.Parameter,
    tokenizer: Tokenizer,
    settings: PretrainSettings | MatcherSettings,
) -> Contrast:
    return Contrast(
        matcher,
        temperature=temperature,
        tokenizer=tokenizer,
        settings=settings.contrast,
        max_tokens=settings.max_tokens,
        generator=torch.Generator().manual_seed(settings.seed),
    )


def _lm(
    captioner: BlipCaptioner,
    encoded: TokenBatch,
    memory: Memory,
    *,
    num_prompt_tokens: int = 0,
    label_smoothing: float,
) -> Tensor:
    device = memory.device
    ids, mask = encoded.ids.to(device), encoded.mask.to(device)
    return losses.lm_loss(
        captioner.lm_logits(ids, mask, memory),
        ids,
        mask,
        num_prompt_tokens=num_prompt_tokens,
        label_smoothing=label_smoothing,
    )
