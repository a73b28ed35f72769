"""Tuning: find the batch size of `caption` and `score` by a short probe, where it is `auto`.

The probe is a job like any other, so it runs where the stage's workers will: in an actor on a GPU,
or in this process. It is done once; what it finds is recorded in the run and enters the plan as a
plain number (`tuned`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from capfilt.batch_size import FIRST_SIZE, Budget, choose, gib, workers_sharing
from capfilt.config import Recipe, WorkersSection
from capfilt.errors import CapfiltError
from capfilt.io.models import local_model
from capfilt.io.storage import Store
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport
from capfilt.stages.sampling import sampling_of
from capfilt.stages.shards import undivided_resources_of
from capfilt.stages.tables import Tables, replanned
from capfilt.stages.tuned import ROLES, Setting, Tuned, is_auto, record, settings_of
from capfilt.workers.caption import load_captioner
from capfilt.workers.memory import memory_of, num_cpus
from capfilt.workers.probe import Measured, ProbeWorker, TryBatch, caption_batches, score_batches
from capfilt.workers.score import load_scorer

log = logging.getLogger(__name__)


def tune(
    recipe: Recipe, tables: Tables, pool: Pool, *, stages: Sequence[str] = tuple(ROLES)
) -> Tables:
    """Find the batch sizes that are `auto` and not known yet.

    Args:
        recipe: the run's.
        tables: of the round.
        pool: where the probe runs, one worker of it.
        stages: which stages are about to run.

    Returns:
        The tables under plans that hold the sizes.

    Raises:
        CapfiltError: no size fits, or the probe failed; says what to set.
    """
    for stage in stages:
        if is_auto(recipe, stage) and stage not in tables.tuned:
            log.info("%s: trying batch sizes (%s.batch_images: auto)", stage, stage)
            _probe(ProbeJob(stage=stage, recipe=recipe, round=tables.round, store=tables.store,
                            model=tables.sources[ROLES[stage]].name,
                            digest=tables.sources[ROLES[stage]].digest), pool)  # fmt: skip
    tables = replanned(recipe, tables)
    for tuned in (tables.tuned[stage] for stage in stages if stage in tables.tuned):
        log.info("%s", tuned.describe())
    return tables


def _probe(job: ProbeJob, pool: Pool) -> None:
    for report in pool.run([job], [0]):
        if report.error is not None:
            raise CapfiltError(
                f"{job.stage}: the probe for batch_images: auto did not end: {report.error}; "
                f"set {job.stage}.batch_images to a number, such as 16"
            )


def conclude(
    measured: Measured, *, stage: str, settings: Mapping[str, Setting], device: str
) -> Tuned:
    """Choose a size and keep what the choice rests on.

    Raises:
        CapfiltError: no size fits; says what to set.
    """
    budget = measured.budget
    chosen = choose(measured.trials, budget_bytes=budget.worker_bytes)
    if chosen is None:
        raise CapfiltError(
            f"{stage}: no batch size fits: {_shortage(measured)}, and a worker has "
            f"{gib(budget.worker_bytes)} ({budget.describe()}); raise pool.memory_share, lower "
            f"pool.{stage}.workers, or set {stage}.batch_images to a number"
        )
    return Tuned(
        stage=stage,
        settings=settings,
        batch_images=chosen.batch_images,
        device=device,
        budget=budget,
        trials=measured.trials,
        ended=measured.ended,
    )


def _shortage(measured: Measured) -> str:
    smallest = measured.trials[0]
    if smallest.memory_bytes is None:
        return f"memory ran out with {smallest.batch_images} images"
    return f"{smallest.batch_images} images take {gib(smallest.memory_bytes)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeJob:
    """The search for one stage's batch size, as a shard with one input."""

    stage: str
    recipe: Recipe
    round: int
    store: Store  # the run's folder
    model: str
    digest: str

    @property
    def resources(self) -> Resources:
        """What each of the stage's workers needs; one is enough."""
        resources = undivided_resources_of(self.recipe.pool, self._workers)
        return replace(resources, num_workers=1)

    def committed(self) -> Mapping[int, ShardReport]:
        """Nothing: it is run only while there is no record."""
        return {}

    def build_worker(self) -> ProbeWorker:
        """Load the stage's model."""
        memory = memory_of(self.recipe.pool.device)
        try_batch = self._captioning() if self.stage == "caption" else self._scoring()
        budget = Budget(
            available_bytes=memory.available_bytes(),
            share=self.recipe.pool.memory_share,
            workers=self._workers_here(),
        )
        return ProbeWorker(try_batch, memory, budget)

    def fetch(self, shard: int) -> Fetched[str]:
        """The one input: the question itself."""
        return Fetched(inputs=[self.stage])

    def quarantine(self, rejected: str, why: Quarantine) -> Measured:
        """The question cannot be left out of itself."""
        raise AssertionError("never asked for: not divisible")

    def commit(self, shard: int, fetched: Fetched[str], outputs: Sequence[Measured]) -> ShardReport:
        """Choose, and record the choice unless another driver has."""
        settings = settings_of(self.recipe, self.stage, model=self.digest)
        device = self.recipe.pool.device
        record(self.store, conclude(outputs[0], stage=self.stage, settings=settings, device=device))
        return ShardReport(stage=self.stage, shard=shard, rows_in=1, kept=1, dropped={})

    @property
    def _workers(self) -> WorkersSection:
        pool = self.recipe.pool
        return pool.caption if self.stage == "caption" else pool.score

    def _workers_here(self) -> int:
        """Workers of both stages that may share the device: captioner and filter run at once."""
        pool = self.recipe.pool
        if pool.kind == "local":
            return len(ROLES)
        total = pool.caption.workers + pool.score.workers
        if pool.device.startswith("cuda"):
            return workers_sharing(total, each=self._workers.gpus, capacity=1)
        return workers_sharing(total, each=self._workers.cpus, capacity=num_cpus())

    def _captioning(self) -> TryBatch:
        pool, options = self.recipe.pool, self.recipe.caption
        sampling = sampling_of(self.recipe, round_number=self.round, batch_images=FIRST_SIZE)
        captioner = load_captioner(
            local_model(self.model),
            device=pool.device,
            dtype=options.dtype,
            num_threads=pool.caption.threads,
            image_size_px=options.image_size_px,
            sampling=sampling,
        )
        return caption_batches(captioner, sampling)

    def _scoring(self) -> TryBatch:
        pool = self.recipe.pool
        scorer = load_scorer(
            local_model(self.model),
            device=pool.device,
            dtype=self.recipe.score.dtype,
            num_threads=pool.score.threads,
        )
        return score_batches(scorer, num_texts=1 + self.recipe.caption.num_captions)
