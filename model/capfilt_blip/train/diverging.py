"""Notices a training that has gone wrong: a loss that is no number, or that climbs and stays up."""

from __future__ import annotations

import math
from collections import deque

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


class DivergenceWatch:
    """Says once that a training diverges, and again only after it has recovered.

    ITC's loss rises by itself while its queue fills and its targets become softer. So the other
    losses are watched from the first step on, and all of them together when that is over.

    Args:
        num_settling_steps: in which ITC's loss may rise.
    """

    def __init__(self, *, num_settling_steps: int = 0) -> None:
        self._settling = num_settling_steps
        self._others, self._all = _Climb(), _Climb()
        self._said = set[str]()

    def saw(self, loss: float, *, itc_loss: float | None = None, step: int) -> str | None:
        """Take note of a step; say in one line what is wrong, if it is new.

        Args:
            loss: of the step, the sum of its parts, in nats.
            itc_loss: that part of it, if there is one.
            step: for the line.
        """
        if not math.isfinite(loss):
            return self._once("lost", f"step {step:,}: the loss is {loss}: {LOST}")
        self._others.saw(loss - (itc_loss or 0.0))
        self._settling -= 1
        if self._settling < 0:
            self._all.saw(loss)
        for name, climb in (("loss without ITC", self._others), ("loss", self._all)):
            if climb.num_steps >= PATIENCE:
                return self._once("diverging", f"step {step:,}: {climb.told_of(name)}")
        if self._others.num_steps == self._all.num_steps == 0:
            self._said.discard("diverging")
        return None

    def _once(self, what: str, line: str) -> str | None:
        if what in self._said:
            return None
        self._said.add(what)
        return line


class _Climb:
    """How far a mean has climbed above the least it was; the first step is a mean of its own."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._mean = self._least = math.inf
        self.num_steps = 0  # in a row that it was too far up

    def saw(self, loss: float) -> None:
        self._losses.append(loss)
        self._mean = sum(self._losses) / len(self._losses)
        self._least = min(self._least, self._mean)
        is_up = self._mean > max(FACTOR * self._least, self._least + MARGIN)
        self.num_steps = self.num_steps + 1 if is_up else 0

    def told_of(self, name: str) -> str:
        return (
            f"the training diverges: over {len(self._losses)} steps the {name} is {self._mean:.2f} "
            f"on average, and it was {self._least:.2f} before; {TRY}"
        )
