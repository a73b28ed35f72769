"""The `train` section of a recipe as the settings of the model's own trainings."""

from __future__ import annotations

from capfilt.config import TrainSection
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.optimizer import CosineSchedule, OptimizerSettings
from capfilt_blip.train.session import CaptionerSession, MatcherSession, PretrainSession
from capfilt_blip.train.settings import (
    CaptionerSettings,
    EngineSettings,
    MatcherSettings,
    PretrainSettings,
)
from capfilt_blip.train.world import World


class Sessions:
    """Opens the session of each phase.

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

    def pretraining(self, model: Blip) -> PretrainSession:
        """ITC, ITM and LM."""
        options = self._options
        schedule = CosineSchedule(
            peak=options.learning_rate,
            num_steps=options.pretrain_steps,
            num_warmup_steps=min(options.warmup_steps, options.pretrain_steps // 2),
        )
        settings = PretrainSettings(
            optimizer=self._optimizer(schedule), contrast=self._contrast(), seed=self._seed
        )
        return PretrainSession(
            model,
            tokenizer=self._tokenizer,
            settings=settings,
            engine=self._engine(),
            world=self._world,
        )

    def captioner(self, model: BlipCaptioner) -> CaptionerSession:
        """LM with a prompt."""
        settings = CaptionerSettings(optimizer=self._finetuning_optimizer(), seed=self._seed)
        return CaptionerSession(
            model,
            tokenizer=self._tokenizer,
            settings=settings,
            engine=self._engine(),
            world=self._world,
        )

    def matcher(self, model: BlipMatcher) -> MatcherSession:
        """ITC and ITM."""
        settings = MatcherSettings(
            optimizer=self._finetuning_optimizer(), contrast=self._contrast(), seed=self._seed
        )
        return MatcherSession(
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

    def _contrast(self) -> ContrastSettings:
        # The negatives of a pair are those of the whole batch, so that another number of workers
        # is the same training; BLIP's pre-training takes those of the pair's own process.
        return ContrastSettings(
            queue_size=self._options.queue_size,
            num_ramp_steps=self._options.ramp_steps,
            negatives="global",
        )

    def _finetuning_optimizer(self) -> OptimizerSettings:
        options = self._options
        return self._optimizer(
            CosineSchedule(peak=options.finetune_learning_rate, num_steps=options.finetune_steps)
        )

    def _optimizer(self, schedule: CosineSchedule) -> OptimizerSettings:
        return OptimizerSettings(
            learning_rate=schedule,
            weight_decay=self._options.weight_decay,
            max_grad_norm=self._options.max_grad_norm,
        )
