"""The three trainings of BLIP as sessions: taken step by step, saved, and gone on with elsewhere.

    PretrainSession    ITC + ITM + LM on a whole Blip       (arXiv:2201.12086, sec. 3.2)
    CaptionerSession   LM with a prompt on a BlipCaptioner  (sec. 3.3)
    MatcherSession     ITC + ITM on a BlipMatcher           (sec. 3.3)

With many processes each has a session of its own and calls it with its share of every batch.
Everything drawn in a step is keyed by seed, step and process, so a session that goes on from a
state does what the first would have done: to the last bit on the same machine and number of
threads, and up to dropout on another number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.engine import Engine
from capfilt_blip.train.objectives import CaptionerObjective, PairObjective
from capfilt_blip.train.settings import (
    CaptionerSettings,
    EngineSettings,
    MatcherSettings,
    PretrainSettings,
    StepMetrics,
)
from capfilt_blip.train.world import World

ALONE = World()
PLAIN = EngineSettings()


class Session(Protocol):
    """A training that is under way."""

    def step(self, batch: TextImageBatch) -> StepMetrics:
        """Take one optimizer step on this process's share of a batch.

        Raises:
            TrainingError: a loss or the gradient is not finite; the weights are as before.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Copy all that the next step depends on, but the settings and the batch.

        The same in every process: learnt weights, AdamW's means, slow weights, queue, counters.

        Returns:
            Contiguous CPU tensors that share no memory, by name: "model.*", "adamw.*", "slow.*",
            "queue.*", "temperature", "steps", "samples".
        """
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state; each process loads it.

        Raises:
            StateError: names, types or shapes are not those of this training; nothing is changed.
        """
        ...


class PretrainSession:
    """Teaches a BLIP to contrast, to match and to write, on pairs that are believed true.

    Args:
        model: changed in place.
        tokenizer: the model's.
        settings: what is learnt.
        engine: how it is computed.
        world: the processes that share each batch.
    """

    def __init__(
        self,
        model: Blip,
        *,
        tokenizer: Tokenizer,
        settings: PretrainSettings,
        engine: EngineSettings = PLAIN,
        world: World = ALONE,
    ) -> None:
        world.share(model.parameters())
        objective = pretrain_objective(model, tokenizer=tokenizer, settings=settings, world=world)
        self._engine = Engine(
            model,
            objective,
            optimizer=settings.optimizer,
            settings=engine,
            world=world,
            seed=settings.seed,
        )

    def step(self, batch: TextImageBatch) -> StepMetrics:
        """Take one step, as `Session.step` says."""
        return self._engine.step(batch)

    def state(self) -> dict[str, Tensor]:
        """Copy what the next step depends on, as `Session.state` says."""
        return self._engine.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, as `Session.load_state` says."""
        self._engine.load_state(state)


class CaptionerSession:
    """Teaches a captioner to continue the prompt; arguments as of `PretrainSession`."""

    def __init__(
        self,
        model: BlipCaptioner,
        *,
        tokenizer: Tokenizer,
        settings: CaptionerSettings,
        engine: EngineSettings = PLAIN,
        world: World = ALONE,
    ) -> None:
        world.share(model.parameters())
        self._engine = Engine(
            model,
            CaptionerObjective(model, tokenizer=tokenizer, settings=settings),
            optimizer=settings.optimizer,
            settings=engine,
            world=world,
            seed=settings.seed,
        )

    def step(self, batch: TextImageBatch) -> StepMetrics:
        """Take one step, as `Session.step` says."""
        return self._engine.step(batch)

    def state(self) -> dict[str, Tensor]:
        """Copy what the next step depends on, as `Session.state` says."""
        return self._engine.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, as `Session.load_state` says."""
        self._engine.load_state(state)


class MatcherSession:
    """Teaches a matcher to tell true pairs from false; arguments as of `PretrainSession`."""

    def __init__(
        self,
        model: BlipMatcher,
        *,
        tokenizer: Tokenizer,
        settings: MatcherSettings,
        engine: EngineSettings = PLAIN,
        world: World = ALONE,
    ) -> None:
        world.share(model.parameters())
        start = torch.tensor(settings.temperature, device=model.itm_head.weight.device)
        temperature = nn.Parameter(start)
        objective = PairObjective(
            model,
            captioner=None,
            temperature=temperature,
            tokenizer=tokenizer,
            settings=settings,
            world=world,
        )
        self._engine = Engine(
            model,
            objective,
            optimizer=settings.optimizer,
            settings=engine,
            world=world,
            seed=settings.seed,
        )

    def step(self, batch: TextImageBatch) -> StepMetrics:
        """Take one step, as `Session.step` says."""
        return self._engine.step(batch)

    def state(self) -> dict[str, Tensor]:
        """Copy what the next step depends on, as `Session.state` says."""
        return self._engine.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, as `Session.load_state` says."""
        self._engine.load_state(state)


def pretrain_objective(
    model: Blip, *, tokenizer: Tokenizer, settings: PretrainSettings, world: World
) -> PairObjective:
    """ITC, ITM and LM on the whole model (arXiv:2201.12086, sec. 3.2)."""
    return PairObjective(
        model.matching(),
        captioner=model.captioning(),
        temperature=model.temp,
        tokenizer=tokenizer,
        settings=settings,
        world=world,
    )
