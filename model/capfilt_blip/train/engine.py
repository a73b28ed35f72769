"""One optimizer step of any training: its parts, its processes, its numbers, and its state.

Each share of the losses is a sum over the divisors of the whole batch, so gradients are summed over
the processes, not averaged.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capfilt_blip.files.weights import some_of
from capfilt_blip.recompute import recompute_activations
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.draws import key_of, keyed_dropout
from capfilt_blip.train.errors import StateError, TrainingError
from capfilt_blip.train.objectives import Divisors, Losses, Objective, Prepared
from capfilt_blip.train.optimizer import Optimizer, OptimizerSettings
from capfilt_blip.train.settings import EngineSettings, StepMetrics
from capfilt_blip.train.stuck import StuckWatch
from capfilt_blip.train.world import World

_NAMES = ("lm_loss", "itc_loss", "itm_loss", "itm_accuracy")


class Engine:
    """Takes the steps of a training.

    Args:
        model: changed in place.
        objective: of the model.
        optimizer: see `OptimizerSettings`.
        settings: see `EngineSettings`.
        world: the processes; all begin with the first one's weights.
        seed: of dropout and dropped paths.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        optimizer: OptimizerSettings,
        settings: EngineSettings,
        world: World,
        seed: int,
    ) -> None:
        self._model = model
        self._objective = objective
        self._settings = settings
        self._world = world
        self._seed = seed
        self._learnt = {f"model.{name}": weight for name, weight in model.named_parameters()}
        if "model.temp" not in self._learnt and objective.temperature is not None:
            self._learnt["temperature"] = objective.temperature
        self._device = next(model.parameters()).device
        self._optimizer = Optimizer(self._learnt.values(), optimizer)
        self._watch = StuckWatch()
        self._num_steps = 0
        self._num_samples = 0
        if settings.recomputed_layers:
            recompute_activations(model, num_layers=settings.recomputed_layers)
        if settings.compile:
            for vision in objective.vision_encoders():
                vision.compile()
        self._forward: nn.Module = _Forward(self._learnt, objective, autocast=settings.autocast)
        if world.size > 1:
            # It sends gradients while the backward pass is still computing others.
            self._forward = DistributedDataParallel(self._forward)

    def step(self, batch: TextImageBatch) -> StepMetrics:
        """Take one step on this process's share of a batch.

        Raises:
            TrainingError: a loss or the gradient is not finite; nothing learnt has changed.
        """
        step = self._num_steps
        self._model.train()
        self._optimizer.forget_gradient()
        parts = self._objective.prepare(
            batch.split(self._settings.accumulation_steps), step=step, num_samples=self._num_samples
        )
        divisors = Divisors.of(parts, world=self._world)
        self._objective.begin(step=step)
        key = key_of("dropout", self._seed, step, self._world.rank)
        with keyed_dropout(key, device=self._device):
            found = [self._backward(part, divisors, is_last=part is parts[-1]) for part in parts]
        numbers = self._numbers(found, divisors)
        self._refuse_infinite(numbers)
        learning_rate = self._optimizer.apply_gradient(step=step)
        self._num_steps += 1
        self._num_samples += round(numbers.pop("num_samples"))
        metrics = _metrics(
            numbers, step=step, num_samples=self._num_samples, learning_rate=learning_rate
        )
        self._look_out(metrics, num_negatives=2 + len(batch.distractors))
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Copy all that the next step depends on, as `Session.state` says."""
        counters = {
            "steps": torch.tensor(self._num_steps),
            "samples": torch.tensor(self._num_samples),
        }
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in (self._tensors() | counters).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, as `Session.load_state` says."""
        _refuse_other(state, self.state())
        with torch.no_grad():
            for name, weight in self._learnt.items():
                weight.copy_(state[name])
        moments = {name: state[f"adamw.{name}"] for name in self._optimizer.moments(self._learnt)}
        self._optimizer.load_moments(self._learnt, moments)
        self._objective.load(state)
        self._num_steps, self._num_samples = int(state["steps"]), int(state["samples"])

    def _tensors(self) -> dict[str, Tensor]:
        moments = self._optimizer.moments(self._learnt)
        return {
            **self._learnt,
            **{f"adamw.{name}": tensor for name, tensor in moments.items()},
            **self._objective.tensors(),
        }

    def _backward(self, part: Prepared, divisors: Divisors, *, is_last: bool) -> Losses:
        """Add the gradient of a part; only with the last one do processes exchange theirs."""
        waits: AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(self._forward, DistributedDataParallel) and not is_last:
            waits = self._forward.no_sync()
        with waits:
            found: Losses = self._forward(part, divisors)
            # DistributedDataParallel gives the mean over the processes; shares must be summed.
            (found.total() * self._world.size).backward()  # type: ignore[no-untyped-call]
        return found

    def _numbers(self, found: Sequence[Losses], divisors: Divisors) -> dict[str, float]:
        """Fetch all numbers of the step, over all processes: its only wait for the device."""
        names = [
            name for name in _NAMES if getattr(found[0], name.removesuffix("_loss")) is not None
        ]
        shares = [
            torch.stack(
                [getattr(part, name.removesuffix("_loss")).detach() for part in found]
            ).sum()
            for name in names
        ]
        others = {"grad_norm": self._optimizer.clip_gradient(), "num_samples": divisors.num_rows}
        if self._objective.temperature is not None:
            others["temperature"] = self._objective.temperature.detach()
        sums = self._world.summed(torch.stack(shares))
        rest = torch.stack([number.to(sums.dtype) for number in others.values()])
        numbers: list[float] = torch.cat([sums, rest]).tolist()
        return dict(zip([*names, *others], numbers, strict=True))

    def _refuse_infinite(self, numbers: Mapping[str, float]) -> None:
        """Raise in all processes alike, since all have the same numbers."""
        for name, number in numbers.items():
            if not math.isfinite(number):
                others = ", ".join(f"{other} {numbers[other]:.4g}" for other in numbers)
                raise TrainingError(
                    f"step {self._num_steps}: {name} is {number} ({others}); go back to a saved "
                    "state, with a lower learning rate or a max_grad_norm"
                )

    def _look_out(self, metrics: StepMetrics, *, num_negatives: int) -> None:
        if metrics.itm_loss is not None and self._world.rank == 0:
            self._watch.saw(metrics.itm_loss, step=metrics.step, num_negatives=num_negatives)


class _Forward(nn.Module):
    """What learns, and as its forward pass the losses: the form that torch's wrapper wants."""

    def __init__(
        self, learnt: Mapping[str, nn.Parameter], objective: Objective, *, autocast: str
    ) -> None:
        super().__init__()
        self.learnt = nn.ParameterList(learnt.values())
        self._objective = objective
        self._autocast = autocast == "bfloat16"

    def forward(self, part: Prepared, divisors: Divisors) -> Losses:
        """Compute a part's share of the losses."""
        device = divisors.num_rows.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._autocast):
            return self._objective.losses(part, divisors)


def _metrics(
    numbers: Mapping[str, float], *, step: int, num_samples: int, learning_rate: float
) -> StepMetrics:
    losses = [number for name, number in numbers.items() if name.endswith("_loss")]
    return StepMetrics(
        step=step,
        num_samples=num_samples,
        learning_rate=learning_rate,
        loss=sum(losses),
        **numbers,
    )


def _refuse_other(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse a state whose names, types or shapes are not those of this training."""
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    misshaped = [
        f"{name} {_kind(name, state[name])} for {_kind(name, tensor)}"
        for name, tensor in own.items()
        if name in state and _kind(name, state[name]) != _kind(name, tensor)
    ]
    found = {"lacks": missing, "does not know": unknown, "has in another shape": misshaped}
    wrong = [f"{what} {len(names)}: {some_of(names)}" for what, names in found.items() if names]
    if wrong:
        raise StateError("the state of another training: " + "; ".join(wrong))


def _kind(name: str, tensor: Tensor) -> str:
    # The queue is as long as it is full.
    shape = tuple(tensor.shape[1:] if name.startswith("queue.") else tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"
