"""The `train` section of a recipe as the settings of the model's own trainings."""

from __future__ import annotations

from capfilt.config import TrainSection
from capfilt.records import Phase
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.captioner import captioner_finetuning
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.engine import TextImageEngine
from capfilt_blip.train.optimizer import (
    CosineSchedule,
    DecaySchedule,
    OptimizerSettings,
    Schedule,
)
from capfilt_blip.train.pretraining import matcher_finetuning, pretraining
from capfilt_blip.train.settings import (
    CaptionerSettings,
    EngineSettings,
    MatcherSettings,
    PretrainSettings,
)
from capfilt_blip.train.world import World

LEAST_RATE = 1e-6
"""Where the warm-up of pre-training begins and its decay ends (salesforce/BLIP,
configs/pretrain.yaml); a lower peak is kept all the way."""


class Engines:
    """Opens the engine of each phase.

    Args:
        options: the recipe's.
        tokenizer: of all models.
        world: the processes that train together.
        seed: of dropout and hard negatives.
    """

    def __init__(
        self, options: TrainSection, tokenizer: Tokenizer, *, world: World, seed: int
    ) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._world = world
        self._seed = seed

    def pretraining(self, model: Blip, *, num_pairs: int) -> TextImageEngine:
        """ITC, ITM and LM.

        Args:
            model: what learns.
            num_pairs: of an epoch.
        """
        settings = PretrainSettings(
            optimizer=self._optimizer(pretrain_schedule(self._options, num_pairs=num_pairs)),
            contrast=self._contrast("pretrain"),
            seed=self._seed,
        )
        return pretraining(
            model,
            tokenizer=self._tokenizer,
            settings=settings,
            engine=self._engine(),
            world=self._world,
        )

    def captioner(self, model: BlipCaptioner) -> TextImageEngine:
        """LM with a prompt."""
        settings = CaptionerSettings(optimizer=self._finetuning_optimizer(), seed=self._seed)
        return captioner_finetuning(
            model,
            tokenizer=self._tokenizer,
            settings=settings,
            engine=self._engine(),
            world=self._world,
        )

    def matcher(self, model: BlipMatcher) -> TextImageEngine:
        """ITC and ITM."""
        settings = MatcherSettings(
            optimizer=self._finetuning_optimizer(),
            contrast=self._contrast("filter"),
            seed=self._seed,
        )
        return matcher_finetuning(
            model,
            tokenizer=self._tokenizer,
            settings=settings,
            engine=self._engine(),
            world=self._world,
        )

    def _engine(self) -> EngineSettings:
        options = self._options
        return EngineSettings(
            autocast=options.autocast,
            accumulation_steps=options.accumulate_steps,
            compile=options.compile,
            recomputed_layers=options.recompute_layers,
        )

    def _contrast(self, phase: Phase) -> ContrastSettings:
        # The negatives of a pair are those of the whole batch, so that another number of workers
        # is the same training; BLIP's pre-training takes those of the pair's own process.
        return ContrastSettings(
            queue_size=self._options.queue_size,
            num_ramp_steps=num_ramp_steps(self._options, phase),
            negatives="global",
        )

    def _finetuning_optimizer(self) -> OptimizerSettings:
        options = self._options
        schedule = CosineSchedule(
            peak=options.finetune_learning_rate, num_steps=options.finetune_steps
        )
        return self._optimizer(schedule)

    def _optimizer(self, schedule: Schedule) -> OptimizerSettings:
        return OptimizerSettings(
            learning_rate=schedule,
            weight_decay=self._options.weight_decay,
            max_grad_norm=self._options.max_grad_norm,
        )


def num_ramp_steps(options: TrainSection, phase: Phase) -> int:
    """Steps in which the weight of soft ITC targets grows in a phase.

    BLIP's retrieval finetuning, which makes the filter, takes one of its six epochs.
    """
    return options.ramp_steps if phase == "pretrain" else options.finetune_steps // 6


def pretrain_schedule(options: TrainSection, *, num_pairs: int) -> Schedule:
    """The learning rate of pre-training, whose epoch has so many pairs."""
    num_warmup_steps = min(options.warmup_steps, options.pretrain_steps // 2)
    least = min(LEAST_RATE, options.learning_rate)
    if options.schedule == "step":
        return DecaySchedule(
            peak=options.learning_rate,
            steps_per_epoch=max(1, num_pairs // options.batch_size),
            num_warmup_steps=num_warmup_steps,
            least=least,
        )
    return CosineSchedule(
        peak=options.learning_rate,
        num_steps=options.pretrain_steps,
        num_warmup_steps=num_warmup_steps,
        least=least,
    )
