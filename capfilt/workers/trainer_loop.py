"""One phase of training from wherever it stands to its end, with its progress on record.

The same lines serve one process and several: each takes its slice of every batch, and the first one
writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capfilt.io.images import ImageDecoder
from capfilt.records import TrainStep
from capfilt.workers.order import steps_of
from capfilt.workers.trainer_batches import BatchLoader
from capfilt.workers.trainer_exam import Exam
from capfilt.workers.trainer_pairs import OrderedPairs
from capfilt.workers.trainer_progress import Notes, Phase, Progress, ProgressFolder
from capfilt.workers.trainer_watch import Watching
from capfilt.workers.watch import Watcher
from capfilt_blip.augment import Augmentation
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.train.session import Session
from capfilt_blip.train.settings import StepMetrics
from capfilt_blip.train.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePlan:
    """What is to happen in a phase."""

    phase: Phase
    model: Blip | BlipCaptioner | BlipMatcher
    open_session: Callable[[], Session]
    pairs: OrderedPairs
    num_steps: int
    side_px: int
    augmentation: Augmentation
    seed: int  # of augmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What all phases have in common."""

    batch_size: int  # of all processes together
    log_every: int  # steps between rows of `models`
    save_every: int | None  # steps between records of progress; None: by the clock alone
    save_after_s: float  # seconds between them, at most
    device: str
    world: World


class PhaseLoop:
    """Takes phases to their end.

    Args:
        settings: see `LoopSettings`.
        folder: where progress is noted.
        decoder: of training images.
        exam: what is measured when a phase is finished.
        watching: shows what the first process does.
    """

    def __init__(
        self,
        settings: LoopSettings,
        folder: ProgressFolder,
        decoder: ImageDecoder,
        *,
        exam: Exam,
        watching: Watching,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._decoder = decoder
        self._exam = exam
        self._watching = watching

    def run(self, plan: PhasePlan) -> Notes:
        """Train the plan's model, or what is left of it; it is in eval mode then.

        Returns:
            The notes of the finished phase.
        """
        found = self._folder.newest(plan.phase)
        if found is not None and found.notes.finished:
            _load_parameters(plan.model, found.tensors)
            plan.model.eval()
            return found.notes
        session, notes = plan.open_session(), Notes()
        if found is not None:
            session.load_state(found.tensors)
            notes = found.notes
            log.info("%s goes on after %d pairs", plan.phase, notes.num_samples)
        with self._watch(plan) as watch:
            notes = self._train(plan, session, notes, watch)
            plan.model.eval()
            return notes if watch is None else self._finished(plan, notes, watch)

    def _watch(self, plan: PhasePlan) -> AbstractContextManager[Watcher | None]:
        """The first process watches, and tells what was done; the others do their part."""
        if self._settings.world.rank:
            return nullcontext()
        return self._watching.open(plan.phase, plan.model, plan.pairs.rows)

    def _train(
        self, plan: PhasePlan, session: Session, notes: Notes, watch: Watcher | None
    ) -> Notes:
        settings = self._settings
        loader = self._loader(plan)
        positions = steps_of(
            first=notes.num_samples,
            stop=plan.num_steps * settings.batch_size,
            batch_size=settings.batch_size,
            world=settings.world,
        )
        saved_at = time.monotonic()
        with closing(loader.batches(positions)) as batches:
            for batch in batches:
                # Before the step: no process can be past it while this one has not told.
                self._note_lost(plan.phase, loader, notes)
                metrics = session.step(batch)
                if watch is not None:
                    watch.step(metrics)
                notes = self._noted(plan, notes, metrics)
                if self._is_due(plan, notes, saved_at=saved_at):
                    self._save(plan, notes, session.state())
                    saved_at = time.monotonic()
        return notes

    def _loader(self, plan: PhasePlan) -> BatchLoader:
        return BatchLoader(
            plan.pairs,
            self._decoder,
            side_px=plan.side_px,
            augmentation=plan.augmentation,
            seed=plan.seed,
            device=self._settings.device,
        )

    def _note_lost(self, phase: Phase, loader: BatchLoader, notes: Notes) -> None:
        lost = loader.take_lost()
        if lost:
            name = f"{notes.num_samples:012d}-{self._settings.world.rank:05d}"
            self._folder.note_lost(phase, lost, name=name)

    def _noted(self, plan: PhasePlan, notes: Notes, metrics: StepMetrics) -> Notes:
        """The notes after a step, with its row if it is one to be logged."""
        step = notes.num_samples // self._settings.batch_size
        num_samples = notes.num_samples + self._settings.batch_size
        is_last = step + 1 == plan.num_steps
        if step % self._settings.log_every and not is_last:
            return replace(notes, num_samples=num_samples)
        row = _row(plan.phase, step, metrics, num_samples=num_samples)
        return replace(notes, num_samples=num_samples, steps=(*notes.steps, row))

    def _is_due(self, plan: PhasePlan, notes: Notes, *, saved_at: float) -> bool:
        settings = self._settings
        steps = notes.num_samples // settings.batch_size
        if settings.world.rank or steps == plan.num_steps:  # the end has a record of its own
            return False
        by_steps = settings.save_every is not None and steps % settings.save_every == 0
        return by_steps or time.monotonic() - saved_at >= settings.save_after_s

    def _save(self, plan: PhasePlan, notes: Notes, tensors: Mapping[str, Tensor]) -> None:
        step = notes.num_samples // self._settings.batch_size
        self._folder.save(plan.phase, Progress(notes=notes, tensors=tensors), step=step)

    def _finished(self, plan: PhasePlan, notes: Notes, watch: Watcher) -> Notes:
        *rows, last = notes.steps
        measured = self._exam.measure(plan.model, last, phase=plan.phase)
        if measured.found is not None:
            watch.held_out(measured.found)
        notes = replace(
            notes, finished=True, steps=(*rows, measured.row), captions=measured.captions
        )
        self._save(plan, notes, dict(plan.model.named_parameters()))
        return notes


def _load_parameters(
    model: Blip | BlipCaptioner | BlipMatcher, tensors: Mapping[str, Tensor]
) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def _row(phase: Phase, step: int, metrics: StepMetrics, *, num_samples: int) -> TrainStep:
    return TrainStep(
        phase=phase,
        step=step,
        loss=metrics.loss,
        itc_loss=metrics.itc_loss,
        itm_loss=metrics.itm_loss,
        lm_loss=metrics.lm_loss,
        itm_accuracy=metrics.itm_accuracy,
        learning_rate=metrics.learning_rate,
        num_samples=num_samples,
        grad_norm=metrics.grad_norm,
        temperature=metrics.temperature,
    )
