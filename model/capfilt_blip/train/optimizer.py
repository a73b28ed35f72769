"""Learning rates over time, the step that applies them, and AdamW's memory as named tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

Schedule: TypeAlias = Callable[[int], float]
"""Step number, from 0, to learning rate."""

DECAY = 0.9
"""Of the rate with each epoch, as in salesforce/BLIP, configs/pretrain.yaml; the paper says 0.85
(arXiv:2201.12086, sec. 4.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineSchedule:
    """Linear warm-up, then half a cosine down to the least rate.

    Raises:
        ValueError: the least rate is above the peak.
    """

    peak: float
    num_steps: int
    num_warmup_steps: int = 0
    least: float = 0.0
    """0 as in BLIP's finetunings (arXiv:2201.12086, appendix A)."""

    def __post_init__(self) -> None:
        _refuse_rising(peak=self.peak, least=self.least)

    def __call__(self, step: int) -> float:
        """Give the learning rate of a step."""
        if step < self.num_warmup_steps:
            return _warmup(step, self.num_warmup_steps, peak=self.peak, least=self.least)
        left = max(1, self.num_steps - self.num_warmup_steps)
        done = min(1.0, (step - self.num_warmup_steps) / left)
        return self.least + (self.peak - self.least) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, slots=True, kw_only=True)
class DecaySchedule:
    """Linear warm-up within the first epoch, then nine tenths with each: salesforce/BLIP, utils.py.

    As there, the second epoch has nine tenths of the peak, however far the warm-up has come, and a
    rate stays as it is for an epoch.

    Raises:
        ValueError: the least rate is above the peak.
    """

    peak: float
    steps_per_epoch: int
    num_warmup_steps: int = 0
    least: float = 0.0

    def __post_init__(self) -> None:
        _refuse_rising(peak=self.peak, least=self.least)

    def __call__(self, step: int) -> float:
        """Give the learning rate of a step."""
        epoch = step // self.steps_per_epoch
        if epoch == 0 and step < self.num_warmup_steps:
            return _warmup(step, self.num_warmup_steps, peak=self.peak, least=self.least)
        return max(self.least, self.peak * DECAY**epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW as BLIP uses it: one group, so that weight decay touches every parameter."""

    learning_rate: Schedule
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = None
    """Longest gradient, L2 over all parameters; None does not clip, as the original."""


class Optimizer:
    """Applies gradients at the learning rate of the step.

    Args:
        parameters: what learns, all on one device; a parameter that is shared counts once.
        settings: see `OptimizerSettings`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> None:
        self._settings = settings
        self._parameters = list(dict.fromkeys(parameters))
        self._adamw = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate(0),
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            # One kernel for all weights, where launching kernels is what takes the time.
            fused=True if self._parameters[0].is_cuda else None,
        )

    def step(self, loss: Tensor, *, step: int) -> tuple[float, float]:
        """Go one step down the gradient of a loss.

        Returns:
            The learning rate used, and the length of the gradient before it was clipped.
        """
        self.forget_gradient()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.clip_gradient()
        return self.apply_gradient(step=step), float(norm)

    def forget_gradient(self) -> None:
        """Start a new gradient."""
        self._adamw.zero_grad(set_to_none=True)

    def clip_gradient(self) -> Tensor:
        """Shorten the gradient to the longest allowed.

        Returns:
            Its length before, a scalar.
        """
        limit = self._settings.max_grad_norm
        if limit is not None:
            return nn.utils.clip_grad_norm_(self._parameters, limit)
        return nn.utils.get_total_norm(
            [weight.grad for weight in self._parameters if weight.grad is not None]
        )

    def apply_gradient(self, *, step: int) -> float:
        """Change the weights, and give the learning rate used."""
        learning_rate = self._settings.learning_rate(step)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        return learning_rate

    def moments(self, names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Give what AdamW remembers of its parameters: two running means, and how many steps.

        Args:
            names: of all parameters.

        Returns:
            "exp_avg.NAME" and "exp_avg_sq.NAME" of the parameter's shape, and "step.NAME", a
            scalar; zeros before the first step. They are AdamW's own tensors, not copies.
        """
        found = dict[str, Tensor]()
        for name, weight in names.items():
            moments = self._adamw.state.get(weight, {})
            found[f"exp_avg.{name}"] = moments.get("exp_avg", torch.zeros_like(weight))
            found[f"exp_avg_sq.{name}"] = moments.get("exp_avg_sq", torch.zeros_like(weight))
            found[f"step.{name}"] = moments.get("step", torch.tensor(0.0))
        return found

    def load_moments(
        self, names: Mapping[str, nn.Parameter], moments: Mapping[str, Tensor]
    ) -> None:
        """Take over what `moments` gave, as copies."""
        name_of = {weight: name for name, weight in names.items()}
        state = {
            number: {
                kind: moments[f"{kind}.{name_of[weight]}"].clone()
                for kind in ("exp_avg", "exp_avg_sq", "step")
            }
            for number, weight in enumerate(self._parameters)
        }
        groups = self._adamw.state_dict()["param_groups"]
        self._adamw.load_state_dict({"state": state, "param_groups": groups})


def _refuse_rising(*, peak: float, least: float) -> None:
    if least > peak:
        raise ValueError(
            f"the least learning rate is {least:g}, above the peak of {peak:g}; lower the least"
        )


def _warmup(step: int, num_steps: int, *, peak: float, least: float) -> float:
    return least + (peak - least) * (step + 1) / num_steps
