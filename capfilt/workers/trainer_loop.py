"""One phase of training from wherever it stands to its end, with its progress on record.

The same lines serve one process and several: each takes its slice of every batch, and the first one
writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from capfilt.errors import Stopped
from capfilt.io.images import ImageDecoder
from capfilt.records import Phase, TrainStep
from capfilt.stopping import is_stop_requested
from capfilt.workers.order import steps_of
from capfilt.workers.trainer_batches import BatchLoader
from capfilt.workers.trainer_exam import Exam, PhaseExam, captions_of, with_measures
from capfilt.workers.trainer_pairs import OrderedPairs
from capfilt.workers.trainer_progress import (
    Notes,
    Progress,
    ProgressFolder,
    agreed_progress,
)
from capfilt.workers.trainer_watch import Watching
from capfilt.workers.watch import Watcher
from capfilt_blip.augment import Augmentation
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.train.engine import TextImageEngine
from capfilt_blip.train.settings import StepMetrics
from capfilt_blip.train.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePlan:
    """What is to happen in a phase."""

    phase: Phase
    model: Blip | BlipCaptioner | BlipMatcher
    open_engine: Callable[[], TextImageEngine]
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
    held_out_every: int | None  # steps between measurements; None: at the end of a phase alone
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
        exam: what is measured now and then, and when a phase is finished.
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
        found = agreed_progress(
            self._folder,
            plan.phase,
            batch_size=self._settings.batch_size,
            world=self._settings.world,
            device=torch.device(self._settings.device),
        )
        if found is not None and found.notes.finished:
            _load_parameters(plan.model, found.tensors)
            plan.model.eval()
            return found.notes
        engine, notes = plan.open_engine(), Notes(alarms=self._watching.alarms(plan.phase))
        if found is not None:
            engine.load_state(found.tensors)
            notes = found.notes
        log.info(
            "%s: steps %d to %d, of %d pairs each; there are %d pairs",
            plan.phase,
            notes.num_samples // self._settings.batch_size + 1,
            plan.num_steps,
            self._settings.batch_size,
            len(plan.pairs.rows),
        )
        with self._watch(plan) as watch:
            notes = self._train(plan, engine, notes, watch)
        plan.model.eval()
        if watch is not None:
            notes = replace(notes, finished=True)
            self._save(plan, notes, dict(plan.model.named_parameters()))
        return notes

    def _watch(self, plan: PhasePlan) -> AbstractContextManager[Watcher | None]:
        """The first process watches, and tells what was done; the others do their part."""
        if self._settings.world.rank:
            return nullcontext()
        return self._watching.open(plan.phase, plan.model, plan.pairs.rows)

    def _train(
        self, plan: PhasePlan, engine: TextImageEngine, notes: Notes, watch: Watcher | None
    ) -> Notes:
        settings = self._settings
        exam = None if watch is None else self._exam_of(plan)
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
                metrics = engine.step(batch)
                notes = replace(notes, num_samples=notes.num_samples + settings.batch_size)
                if watch is None:
                    continue
                notes = self._told(plan, notes, metrics, watch=watch, exam=exam)
                if metrics.step + 1 == plan.num_steps:  # the end has a record of its own
                    continue
                if is_stop_requested():
                    self._stop(plan, notes, engine)
                if self._is_due(notes, saved_at=saved_at):
                    self._save(plan, notes, engine.state())
                    saved_at = time.monotonic()
        return notes

    def _stop(self, plan: PhasePlan, notes: Notes, engine: TextImageEngine) -> NoReturn:
        self._save(plan, notes, engine.state())
        step = notes.num_samples // self._settings.batch_size
        raise Stopped(
            f"{plan.phase}: stopped after step {step} of {plan.num_steps}; "
            "the same command goes on from there"
        )

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

    def _exam_of(self, plan: PhasePlan) -> PhaseExam | None:
        exam = self._exam.of(plan.phase, side_px=plan.model.config.vision.image_size_px)
        if exam is not None:
            log.info(
                "%s: measured on %d images and %d texts that are held out",
                plan.phase,
                len(exam.pairs.images),
                len(exam.pairs.texts),
            )
        return exam

    def _told(
        self,
        plan: PhasePlan,
        notes: Notes,
        metrics: StepMetrics,
        *,
        watch: Watcher,
        exam: PhaseExam | None,
    ) -> Notes:
        """Show a step, measure after it if it is time, and note what is kept of it."""
        watch.step(metrics)
        warnings = notes.alarms.saw(metrics)
        for line in warnings:
            watch.warn(line)
        row = _row(plan.phase, metrics, warnings=warnings)
        is_last = metrics.step + 1 == plan.num_steps
        if exam is not None and (is_last or _is_each(metrics, self._settings.held_out_every)):
            found = exam.measure(plan.model)
            watch.held_out(found)
            notes = replace(notes, captions=captions_of(plan.phase, found))
            row = with_measures(row, found)
        elif not (is_last or warnings or metrics.step % self._settings.log_every == 0):
            return notes
        return replace(notes, steps=(*notes.steps, row))

    def _is_due(self, notes: Notes, *, saved_at: float) -> bool:
        settings = self._settings
        steps = notes.num_samples // settings.batch_size
        by_steps = settings.save_every is not None and steps % settings.save_every == 0
        return by_steps or time.monotonic() - saved_at >= settings.save_after_s

    def _save(self, plan: PhasePlan, notes: Notes, tensors: Mapping[str, Tensor]) -> None:
        step = notes.num_samples // self._settings.batch_size
        self._folder.save(plan.phase, Progress(notes=notes, tensors=tensors), step=step)


def _is_each(metrics: StepMetrics, num_steps: int | None) -> bool:
    return num_steps is not None and (metrics.step + 1) % num_steps == 0


def _load_parameters(
    model: Blip | BlipCaptioner | BlipMatcher, tensors: Mapping[str, Tensor]
) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def _row(phase: Phase, metrics: StepMetrics, *, warnings: Sequence[str]) -> TrainStep:
    return TrainStep(
        phase=phase,
        step=metrics.step,
        loss=metrics.loss,
        itc_loss=metrics.itc_loss,
        itm_loss=metrics.itm_loss,
        lm_loss=metrics.lm_loss,
        itm_accuracy=metrics.itm_accuracy,
        learning_rate=metrics.learning_rate,
        num_samples=metrics.num_samples,
        grad_norm=metrics.grad_norm,
        temperature=metrics.temperature,
        warning="; ".join(warnings) or None,
    )
