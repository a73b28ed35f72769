"""What a training is told, and what it tells after each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.optimizer import OptimizerSettings


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


Settings: TypeAlias = PretrainSettings | CaptionerSettings | MatcherSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How steps are computed; what is learnt stays the same but for rounding and negatives."""

    autocast: Literal["none", "bfloat16"] = "none"
    """Type of the matrix products. Weights, losses and similarities stay float32."""
    accumulation_steps: int = 1
    """Parts that a batch is cut into, one after the other, to need less memory. The gradient is
    that of the whole batch. But a part has only its own rows, and the queue of the steps before, as
    candidates of ITC, and only its own rows as hard negatives: with a contrast, fewer parts are
    better ones."""
    compile: bool = False
    """Whether the image encoders, two thirds of the work, go through torch.compile."""
    recomputed_layers: int = 0
    """Last layers of each stack that are computed again in the backward pass instead of kept; 0
    leaves the model as it is. See `recompute_activations`."""


PLAIN = EngineSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one step of training did, over all processes. A loss that is not there is None."""

    step: int  # from 0
    num_samples: int  # pairs seen so far, this step included
    learning_rate: float
    grad_norm: float  # before clipping
    loss: float
    lm_loss: float | None = None
    itc_loss: float | None = None
    itm_loss: float | None = None
    itm_accuracy: float | None = None
    temperature: float | None = None  # of ITC, that the step's losses were computed with
