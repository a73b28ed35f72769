"""Opens the watcher of a phase, with what is known of the phase's speed, and sets its alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from capfilt.config import TrainSection
from capfilt.meter import Peak
from capfilt.records import Phase
from capfilt.workers.gauges import peak_of
from capfilt.workers.trainer_engines import num_ramp_steps
from capfilt.workers.trainer_pairs import TrainingPair
from capfilt.workers.watch import Watcher, WatchOptions
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.alarms import Alarms
from capfilt_blip.train.cost import captioner_flops, matcher_flops, pretrain_flops
from capfilt_blip.train.diverging import DivergenceWatch

MAX_TOKENS = 30
"""Of a text, as pre-training cuts it (salesforce/BLIP, models/blip_pretrain.py)."""

TEXTS_MEASURED = 256
"""Texts, spread over all, whose mean length is taken for that of all."""

FLOPS_OF = {"pretrain": pretrain_flops, "captioner": captioner_flops, "filter": matcher_flops}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """Watches one phase after the other.

    Args:
        folder: of the journals; None keeps none.
        options: the recipe's.
        tokenizer: of the models.
        device: of a model.
        num_devices: how many train together.
    """

    folder: Path | None
    options: TrainSection
    tokenizer: Tokenizer
    device: str
    num_devices: int

    def open(
        self,
        phase: Phase,
        model: Blip | BlipCaptioner | BlipMatcher,
        pairs: Sequence[TrainingPair],
    ) -> Watcher:
        """Begin to watch a phase.

        Args:
            phase: the phase.
            model: what it trains.
            pairs: those of the phase; how long their texts are says what a pair costs.
        """
        options, peak = self.options, self._peak()
        num_steps = options.pretrain_steps if phase == "pretrain" else options.finetune_steps
        watch = WatchOptions(
            phase=phase,
            num_steps=num_steps,
            log_every=options.log_every,
            tensorboard=options.tensorboard,
            flops_per_sample=None if peak is None else self._flops(phase, model.config, pairs),
            peak=peak,
        )
        return Watcher(self.folder, watch)

    def alarms(self, phase: Phase) -> Alarms:
        """The alarms of a phase that begins."""
        options = self.options
        if phase == "captioner":
            return Alarms()
        settling = options.queue_size // options.batch_size + num_ramp_steps(options, phase)
        return Alarms(divergence=DivergenceWatch(num_settling_steps=settling))

    def _flops(self, phase: Phase, config: BlipConfig, pairs: Sequence[TrainingPair]) -> float:
        texts = [pairs[row].text for row in range(0, len(pairs), -(-len(pairs) // TEXTS_MEASURED))]
        mask = self.tokenizer.encode(texts, first="dec", max_tokens=MAX_TOKENS).mask
        num_tokens = round(fmean(mask.sum(dim=1).tolist()))
        return float(FLOPS_OF[phase](config, num_tokens=num_tokens))

    def _peak(self) -> Peak | None:
        """Of all devices; None on CPUs, where nobody asks for a share of it."""
        device = torch.device(self.device)
        if device.type != "cuda":
            return None
        autocast = self.options.autocast == "bfloat16"
        peak = peak_of(device, torch.bfloat16 if autocast else torch.float32)
        return Peak(flops_per_s=peak.flops_per_s * self.num_devices, label=peak.label)
