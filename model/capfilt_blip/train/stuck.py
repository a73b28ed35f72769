"""Notices an ITM head that learns nothing but how rare matches are.

With one match among three pairs, a head that ignores its input reaches the entropy of the prior,
0.6365 nats, and accuracy 2/3; users who trained BLIP from scratch report runs that never left it
(salesforce/BLIP issues 51, 152, 200).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean


def prior_entropy(*, num_negatives: float) -> float:
    """Give the ITM loss of a head that only knows the prior: 1 match to `num_negatives`."""
    match = 1 / (1 + num_negatives)
    return -match * math.log(match) - (1 - match) * math.log(1 - match)


@dataclass(slots=True, kw_only=True)
class StuckWatch:
    """Says once that ITM is stuck, and again only after it has moved.

    It is stuck while the mean loss of a window of steps lies at the entropy of the prior.
    """

    window: int = 500
    """Steps averaged; it is said after as many at the earliest."""
    tolerance: float = 0.01
    """Nats; how near counts as stuck."""
    losses: list[float] = field(default_factory=list)
    """Of the last steps."""
    said: bool = False

    def saw(self, itm_loss: float) -> str | None:
        """Take note of a step; say in one line what is wrong, if it is new.

        Args:
            itm_loss: mean of the step's pairs, two wrong ones to each true one, in nats.
        """
        self.losses.append(itm_loss)
        del self.losses[: -self.window]
        if len(self.losses) < self.window:
            return None
        mean, floor = fmean(self.losses), prior_entropy(num_negatives=2)
        was_said, self.said = self.said, abs(mean - floor) <= self.tolerance
        if was_said or not self.said:
            return None
        return (
            f"ITM is stuck: over {self.window} steps its loss is {mean:.4f} on average, and "
            f"{floor:.4f} is what a head reaches that ignores image and text; try a lower or a "
            "longer warmed-up learning rate, larger batches, or more steps of captioning first"
        )
