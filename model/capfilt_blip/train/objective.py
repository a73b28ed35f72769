"""What a training is to the engine: batches read into parts, and the losses of each part.

All processes tell each other first what the means of a batch are taken over. A share's losses are
its sums over these numbers, so that shares and parts sum to the losses of the whole batch, however
unequal they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from capfilt_blip.train.batches import Batch
from capfilt_blip.vision import VisionTransformer

B = TypeVar("B", bound=Batch)
B_contra = TypeVar("B_contra", bound=Batch, contravariant=True)
M = TypeVar("M")


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """A share of the losses; scalars."""

    total: Tensor
    """What is learnt, with gradient."""
    told: Mapping[str, Tensor]
    """What else the metrics tell, by the name of their field; it sums up as the total does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a batch, ready for its losses."""

    counts: Tensor
    """(K,) int64: rows, then whatever else the means of the training are taken over."""
    losses: Callable[[Tensor], Losses]
    """Computes the part's share from the counts of the whole batch, over all processes."""


class Objective(Protocol[B_contra, M]):
    """A training's losses, and what they remember from step to step."""

    temperature: nn.Parameter | None
    """Of ITC, learnt; None if there is no contrast."""
    metrics: Callable[..., M]
    """Makes the row of a step from numbers by name."""

    def prepare(self, parts: Sequence[B_contra], *, step: int, num_samples: int) -> list[Part]:
        """Read the parts of this process's share; all processes call it together."""
        ...

    def begin(self, *, step: int) -> None:
        """Do what is done once per step, before its losses."""
        ...

    def end(self) -> None:
        """Do what is done once per step, after the weights have changed."""
        ...

    def vision_encoders(self) -> list[VisionTransformer]:
        """Give the image encoders that are used beside the model's."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Give what is remembered, by name."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        ...


class PlainObjective(Generic[B, M]):
    """A training whose losses depend on the weights and the batch alone.

    Args:
        read: makes a part of a batch ready.
        metrics: see `Objective`.
    """

    def __init__(self, read: Callable[[B], Part], *, metrics: Callable[..., M]) -> None:
        self.temperature: nn.Parameter | None = None
        self.metrics = metrics
        self._read = read

    def prepare(self, parts: Sequence[B], *, step: int, num_samples: int) -> list[Part]:
        """Read each part by itself."""
        return [self._read(part) for part in parts]

    def begin(self, *, step: int) -> None:
        """Nothing is done once per step."""

    def end(self) -> None:
        """Nothing is done once per step."""

    def vision_encoders(self) -> list[VisionTransformer]:
        """The model's are all."""
        return []

    def tensors(self) -> dict[str, Tensor]:
        """Nothing is remembered."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing is remembered."""


def row_means(means: Callable[[B], Losses]) -> Callable[[B], Part]:
    """Read batches whose losses are means over rows, each row weighing the same.

    Args:
        means: computes the losses of some rows, as means over these.

    Returns:
        What `PlainObjective` reads with.
    """

    def read(batch: B) -> Part:
        def losses(counts: Tensor) -> Losses:
            found, weight = means(batch), len(batch) / counts[0]
            told = {name: mean * weight for name, mean in found.told.items()}
            return Losses(total=found.total * weight, told=told)

        return Part(counts=torch.tensor([len(batch)]), losses=losses)

    return read
