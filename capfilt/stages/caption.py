"""Caption: sample synthetic texts for every readable image (CapFilt's captioner, sec. 3.3).

Sampling noise is keyed by (seed, round, sample, caption, step, token), so a caption does not
depend on which images shared its batch, on the worker that drew it, or on how often it was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capfilt.config import Recipe
from capfilt.io.commits import NewFile, Table
from capfilt.io.images import ImageDecoder, check_decoding
from capfilt.io.models import local_model
from capfilt.io.parquet import table_from, to_bytes
from capfilt.io.rows import LazyRows
from capfilt.io.shards import open_shard
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport
from capfilt.records import Caption
from capfilt.stages.images import readable_samples, source_image
from capfilt.stages.index import image_limits
from capfilt.stages.sampling import sampling_of
from capfilt.stages.shards import (
    Funnel,
    drop_counts,
    report_of,
    reports_of,
    resources_of,
    run_jobs,
)
from capfilt.stages.sources import WebShards, web_shards
from capfilt.stages.tables import Tables
from capfilt.stages.tuned import batch_images_of
from capfilt.stages.tuning import tune
from capfilt.workers.batches import SourceImage
from capfilt.workers.caption import (
    CaptionWorker,
    check_captioner,
    failed_caption,
    load_captioner,
)
from capfilt.workers.gauges import worker_meter
from capfilt.workers.kinds import check_dtype

STAGE = "caption"


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Caption all indexed shards."""
    shards = web_shards(recipe, tables).count
    tables.require("index", shards)
    tables = tune(recipe, tables, pool, stages=(STAGE,))
    return run_jobs([job(recipe, tables)], shards, tables=tables, pool=pool)[STAGE]


def job(recipe: Recipe, tables: Tables) -> CaptionJob:
    """The stage's work on one shard.

    Raises:
        CheckpointError: the model is no captioner.
        MissingDependencyError: caption.decode needs a package that is not installed.
    """
    model = tables.sources["captioner"]
    check_captioner(model.name, model.model_type, prompt=recipe.caption.prompt)
    check_dtype(model.name, model.model_type, recipe.caption.dtype)
    check_decoding(recipe.caption.decode, asked_by="caption.decode")
    return CaptionJob(
        recipe=recipe,
        round=tables.round,
        model=model.name,
        shards=web_shards(recipe, tables),
        samples=tables.of("index"),
        batch_images=batch_images_of(tables.plans[STAGE]),
        table=tables.begin(STAGE, recompute=recipe.on_changed_settings == "recompute"),
    )


def tally(rows: Sequence[Sequence[Caption]]) -> tuple[int, dict[str, int]]:
    """Images captioned, and images that were not, by reason.

    Args:
        rows: the caption rows of each image.
    """
    failed = [captions[0].reason for captions in rows if captions[0].reason is not None]
    return len(rows) - len(failed), drop_counts(failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionJob:
    """Captioning of one shard."""

    recipe: Recipe
    round: int
    model: str
    shards: WebShards
    samples: Table
    table: Table
    batch_images: int

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What each worker needs."""
        return resources_of(self.recipe.pool, self.recipe.pool.caption)

    def committed(self) -> Mapping[int, ShardReport]:
        """Shards captioned by an earlier run."""
        return reports_of(STAGE, self.table)

    def build_worker(self) -> CaptionWorker:
        """Load the captioner and start the decoding processes."""
        pool, options = self.recipe.pool, self.recipe.caption
        sampling = sampling_of(self.recipe, round_number=self.round, batch_images=self.batch_images)
        captioner = load_captioner(
            local_model(self.model),
            device=pool.device,
            dtype=options.dtype,
            num_threads=pool.caption.threads,
            image_size_px=options.image_size_px,
            sampling=sampling,
        )
        decoder = ImageDecoder(
            image_limits(self.recipe),
            num_processes=pool.decode_processes,
            decoding=options.decode,
        )
        meter = worker_meter(
            STAGE, device=pool.device, dtype=options.dtype, decoder=decoder, trace=pool.trace
        )
        return CaptionWorker(captioner, decoder, sampling, device=pool.device, meter=meter)

    def fetch(self, shard: int) -> Fetched[SourceImage]:
        """The readable images of the shard, read as the worker asks for them."""
        samples = readable_samples(self.samples, shard)
        file = open_shard(self.shards.locate(shard))
        return Fetched(inputs=LazyRows(samples, lambda sample: source_image(file, sample)))

    def quarantine(self, rejected: SourceImage, why: Quarantine) -> list[Caption]:
        """The row of an image no worker survives."""
        return [failed_caption(rejected.key, why.reason, why.detail)]

    def commit(
        self, shard: int, fetched: Fetched[SourceImage], outputs: Sequence[list[Caption]]
    ) -> ShardReport:
        """Write the shard's captions, in order of key."""
        rows = [caption for captions in outputs for caption in captions]
        payload = to_bytes(table_from(rows, Caption))
        kept, dropped = tally(outputs)
        commit = self.table.commit(
            shard,
            [NewFile(role="rows", folder="", suffix=".parquet", payload=payload, rows=len(rows))],
            rows_in=len(fetched.inputs),
            kept=kept,
            dropped=dropped,
        )
        return report_of(STAGE, commit)
