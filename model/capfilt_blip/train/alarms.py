"""The alarms of a training: what looks wrong, said in a line each.

All they have seen is plain values, so it can be saved with a state and gone on with: a training
that is resumed says the same at the same step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from capfilt_blip.train.diverging import DivergenceWatch
from capfilt_blip.train.settings import StepMetrics
from capfilt_blip.train.stuck import StuckWatch


@dataclass(slots=True, kw_only=True)
class Alarms:
    """All alarms; one process looks out for all."""

    divergence: DivergenceWatch = field(default_factory=DivergenceWatch)
    stuck: StuckWatch = field(default_factory=StuckWatch)

    def saw(self, metrics: StepMetrics) -> list[str]:
        """Take note of a step; say what is wrong, if it is new: mostly nothing."""
        lines = [self.divergence.saw(metrics.loss, itc_loss=metrics.itc_loss)]
        if metrics.itm_loss is not None:
            lines.append(self.stuck.saw(metrics.itm_loss))
        return [line for line in lines if line is not None]
