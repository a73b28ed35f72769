"""One optimizer step of any training: its parts, its processes, its numbers, and its state.

Each share of the losses is a sum over the divisors of the whole batch, so gradients are summed over
the processes, not averaged.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capfilt_blip.files.weights import some_of
from capfilt_blip.recompute import recompute_activations
from capfilt_blip.train.batches import TextImageBatch, split
from capfilt_blip.train.draws import key_of, keyed_dropout
from capfilt_blip.train.errors import StateError, TrainingError
from capfilt_blip.train.objective import B, Losses, M, Objective, Part
from capfilt_blip.train.optimizer import Optimizer, OptimizerSettings
from capfilt_blip.train.settings import EngineSettings, StepMetrics
from capfilt_blip.train.world import World
from capfilt_blip.vision import VisionTransformer


class Engine(Generic[B, M]):
    """A training that is under way: taken step by step, saved, and gone on with elsewhere.

    With many processes each has an engine of its own and calls it with its share of every batch.
    Everything drawn in a step is keyed by seed, step and process, so an engine that goes on from a
    state does what the first would have done: to the last bit on the same machine and number of
    threads, and up to dropout on another number of processes.

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
        objective: Objective[B, M],
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
        self._num_steps = 0
        self._num_samples = 0
        if settings.recomputed_layers:
            recompute_activations(model, num_layers=settings.recomputed_layers)
        if settings.compile:
            for module in (*model.modules(), *objective.vision_encoders()):
                if isinstance(module, VisionTransformer):
                    module.compile()
        self._forward: nn.Module = _Forward(self._learnt, autocast=settings.autocast)
        if world.size > 1:
            # It sends gradients while the backward pass is still computing others.
            self._forward = DistributedDataParallel(self._forward)

    def run(self, batches: Iterable[B]) -> Iterator[M]:
        """Take a step for each batch, and leave the model in eval mode.

        Yields:
            One row of metrics per batch, after its step.
        """
        for batch in batches:
            yield self.step(batch)
        self._model.eval()

    def step(self, batch: B) -> M:
        """Take one step on this process's share of a batch.

        Raises:
            TrainingError: a loss or the gradient is not finite. Weights, slow weights, queue and
                counters are those before the step; the temperature is clamped.
            ValueError: the batch has fewer rows than it is to be cut into parts.
        """
        step = self._num_steps
        self._model.train()
        self._optimizer.forget_gradient()
        parts = self._objective.prepare(
            split(batch, self._settings.accumulation_steps),
            step=step,
            num_samples=self._num_samples,
        )
        own = torch.stack([part.counts for part in parts]).sum(dim=0)
        counts = self._world.summed(own.to(self._device))
        self._objective.begin(step=step)
        key = key_of("dropout", self._seed, step, self._world.rank)
        with keyed_dropout(key, device=self._device):
            found = [self._backward(part, counts, is_last=part is parts[-1]) for part in parts]
        numbers = self._numbers(found, num_rows=counts[0])
        self._refuse_infinite(numbers)
        learning_rate = self._optimizer.apply_gradient(step=step)
        self._objective.end()
        self._num_steps += 1
        self._num_samples += round(numbers.pop("num_samples"))
        return self._objective.metrics(
            step=step, num_samples=self._num_samples, learning_rate=learning_rate, **numbers
        )

    def state(self) -> dict[str, Tensor]:
        """Copy all that the next step depends on, but the settings and the batch.

        The same in every process: learnt weights, AdamW's means, slow weights, queue, counters.

        Returns:
            Contiguous CPU tensors that share no memory, by name: "model.*", "adamw.*", "slow.*",
            "queue.*", "temperature", "steps", "samples".
        """
        counters = {
            "steps": torch.tensor(self._num_steps),
            "samples": torch.tensor(self._num_samples),
        }
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in (self._tensors() | counters).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state; each process loads it.

        Raises:
            StateError: names, types or shapes are not those of this training; nothing is changed.
        """
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

    def _backward(self, part: Part, counts: Tensor, *, is_last: bool) -> Losses:
        """Add the gradient of a part; only with the last one do processes exchange theirs."""
        waits: AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(self._forward, DistributedDataParallel) and not is_last:
            waits = self._forward.no_sync()
        with waits:
            found: Losses = self._forward(part, counts)
            # DistributedDataParallel gives the mean over the processes; shares must be summed.
            (found.total * self._world.size).backward()  # type: ignore[no-untyped-call]
        return found

    def _numbers(self, found: Sequence[Losses], *, num_rows: Tensor) -> dict[str, float]:
        """Fetch all numbers of the step, over all processes: its only wait for the device."""
        shares = [{**part.told, "loss": part.total} for part in found]
        names = list(shares[0])
        own = [torch.stack([share[name].detach() for share in shares]).sum() for name in names]
        others = {"grad_norm": self._optimizer.clip_gradient(), "num_samples": num_rows}
        if self._objective.temperature is not None:
            others["temperature"] = self._objective.temperature.detach()
        sums = self._world.summed(torch.stack(own))
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


TextImageEngine: TypeAlias = Engine[TextImageBatch, StepMetrics]
"""Of pre-training, and of the captioner's and the matcher's finetuning."""


class _Forward(nn.Module):
    """What learns, and as its forward pass the losses: the form that torch's wrapper wants."""

    def __init__(self, learnt: Mapping[str, nn.Parameter], *, autocast: str) -> None:
        super().__init__()
        self.learnt = nn.ParameterList(learnt.values())
        self._autocast = autocast == "bfloat16"

    def forward(self, part: Part, counts: Tensor) -> Losses:
        """Compute a part's share of the losses."""
        with torch.autocast(counts.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            return part.losses(counts)


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
