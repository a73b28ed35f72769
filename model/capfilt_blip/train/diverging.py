"""Notices a training that has gone wrong: a loss that is no number, or that climbs and stays up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean

FACTOR = 1.5
"""Times its least mean is what a diverged loss exceeds. One that has forgotten all is at the
entropy of single words (about 7 nats), the prior of matches (0.64) and the logarithm of the number
of candidates (11 for BLIP's queue): near 19, so it is noticed once the loss has been at 12."""

MARGIN = 0.5
"""Nats above it as well: near 0 a factor says little, as in finetuning on few pairs."""

WINDOW = 100
"""Steps averaged: single batches differ."""

PATIENCE = 100
"""Steps in a row that the mean stays up: a training may climb for a while and come down again."""

TRY = "try a lower or a longer warmed-up learning rate, or clip gradients lower"
LOST = f"the weights are lost or soon will be; {TRY}, or compute in float32"


@dataclass(slots=True, kw_only=True)
class Climb:
    """How far a mean has climbed above the least it was; the first step is a mean of its own."""

    losses: list[float] = field(default_factory=list)  # of the last steps
    least: float = math.inf  # that the mean was
    num_steps: int = 0  # in a row that it was too far up

    def saw(self, loss: float) -> None:
        """Take note of a step's loss, in nats."""
        self.losses.append(loss)
        del self.losses[:-WINDOW]
        mean = fmean(self.losses)
        self.least = min(self.least, mean)
        is_up = mean > max(FACTOR * self.least, self.least + MARGIN)
        self.num_steps = self.num_steps + 1 if is_up else 0

    def told_of(self, name: str) -> str:
        """Say how far the loss of that name has climbed."""
        return (
            f"the training diverges: over {len(self.losses)} steps the {name} is "
            f"{fmean(self.losses):.2f} on average, and it was {self.least:.2f} before; {TRY}"
        )


@dataclass(slots=True, kw_only=True)
class DivergenceWatch:
    """Says once that a training diverges, and again only after it has recovered.

    ITC's loss rises by itself while its queue fills and its targets become softer. So the other
    losses are watched from the first step on, and all of them together when that is over.
    """

    num_settling_steps: int = 0
    """Steps to come in which ITC's loss may rise."""
    others: Climb = field(default_factory=Climb)
    """Of the losses without ITC."""
    all: Climb = field(default_factory=Climb)
    said: list[str] = field(default_factory=list)

    def saw(self, loss: float, *, itc_loss: float | None = None) -> str | None:
        """Take note of a step; say in one line what is wrong, if it is new.

        Args:
            loss: of the step, the sum of its parts, in nats.
            itc_loss: that part of it, if there is one.
        """
        if not math.isfinite(loss):
            return self._once("lost", f"the loss is {loss}: {LOST}")
        self.others.saw(loss - (itc_loss or 0.0))
        self.num_settling_steps -= 1
        if self.num_settling_steps < 0:
            self.all.saw(loss)
        for name, climb in (("loss without ITC", self.others), ("loss", self.all)):
            if climb.num_steps >= PATIENCE:
                return self._once("diverging", climb.told_of(name))
        if self.others.num_steps == self.all.num_steps == 0 and "diverging" in self.said:
            self.said.remove("diverging")
        return None

    def _once(self, what: str, line: str) -> str | None:
        if what in self.said:
            return None
        self.said.append(what)
        return line
