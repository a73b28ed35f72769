"""Score: the filter's opinion of every text of every image, recorded before anything is dropped.

Each readable image brings its web text and its synthetic texts; they share one pass of the image
encoder. A text that cannot be scored (missing, blank) has a row too, with the reason. The image's
unit vector is the second file of the table: `dedup` compares images by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from capfilt.config import Recipe
from capfilt.io.commits import NewFile, Table
from capfilt.io.images import ImageDecoder, check_decoding
from capfilt.io.models import local_model
from capfilt.io.parquet import from_bytes, records_from, table_from, to_bytes
from capfilt.io.shards import open_shard
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport
from capfilt.records import Caption, ImageVector, Reason, Sample, Score
from capfilt.stages.cascade import cascade_of, check_cascade, log_audit
from capfilt.stages.images import readable_samples, source_image
from capfilt.stages.index import image_limits
from capfilt.stages.select import check_policy
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
from capfilt.workers.gauges import worker_meter
from capfilt.workers.kinds import check_dtype, check_filter
from capfilt.workers.score import (
    ImageToScore,
    ScoredImage,
    ScoreWorker,
    TextToScore,
    load_scorer,
    unscored,
)

STAGE = "score"


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Score all captioned shards."""
    shards = web_shards(recipe, tables).count
    tables.require("caption", shards)
    tables = tune(recipe, tables, pool, stages=(STAGE,))
    funnel = run_jobs([job(recipe, tables)], shards, tables=tables, pool=pool)[STAGE]
    log_audit(recipe, tables)
    return funnel


def job(recipe: Recipe, tables: Tables) -> ScoreJob:
    """The stage's work on one shard.

    Raises:
        CheckpointError: the model is no filter.
        MissingDependencyError: score.decode needs a package that is not installed.
        CapfiltError: `select` or the cascade would ask for a number that this one does not give.
    """
    model = tables.sources["filter"]
    check_cascade(recipe.score, model)
    check_filter(model.name, model.model_type)
    check_dtype(model.name, model.model_type, recipe.score.dtype)
    check_decoding(recipe.score.decode, asked_by="score.decode")
    check_policy(recipe.select, model)
    return ScoreJob(
        recipe=recipe,
        model=model.name,
        shards=web_shards(recipe, tables),
        samples=tables.of("index"),
        captions=tables.of("caption"),
        batch_images=batch_images_of(tables.plans[STAGE]),
        table=tables.begin(STAGE, recompute=recipe.on_changed_settings == "recompute"),
    )


def texts_of(sample: Sample, captions: Iterable[Caption]) -> tuple[TextToScore, ...]:
    """All texts of an image: the web's first, then the captioner's.

    A missing web text and a failed caption stay in the list, with their reason: they are rows of
    the score table like any other.
    """
    web = TextToScore(
        text=sample.web_text,
        text_source="web",
        text_index=0,
        logprob=None,
        reason=_blank_reason(sample.web_text),
    )
    synthetic = (
        TextToScore(
            text=caption.text,
            text_source="synthetic",
            text_index=caption.text_index,
            logprob=caption.logprob,
            reason=caption.reason or _blank_reason(caption.text),
        )
        for caption in captions
    )
    return (web, *synthetic)


def _blank_reason(text: str | None) -> str | None:
    if text is None:
        return Reason.TEXT_MISSING
    return Reason.TEXT_EMPTY if not text.strip() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob:
    """Scoring of one shard."""

    recipe: Recipe
    model: str
    shards: WebShards
    samples: Table
    captions: Table
    table: Table
    batch_images: int

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What each worker needs."""
        return resources_of(self.recipe.pool, self.recipe.pool.score)

    def committed(self) -> Mapping[int, ShardReport]:
        """Shards scored by an earlier run."""
        return reports_of(STAGE, self.table)

    def build_worker(self) -> ScoreWorker:
        """Load the filter and start the decoding processes."""
        pool, options = self.recipe.pool, self.recipe.score
        scorer = load_scorer(
            local_model(self.model),
            device=pool.device,
            dtype=options.dtype,
            num_threads=pool.score.threads,
        )
        decoder = ImageDecoder(
            image_limits(self.recipe),
            num_processes=pool.decode_processes,
            decoding=options.decode,
        )
        meter = worker_meter(
            STAGE, device=pool.device, dtype=options.dtype, decoder=decoder, trace=pool.trace
        )
        return ScoreWorker(
            scorer,
            decoder,
            batch_images=self.batch_images,
            cascade=cascade_of(self.recipe),
            device=pool.device,
            meter=meter,
        )

    def fetch(self, shard: int) -> Fetched[ImageToScore]:
        """The readable images of the shard with all their texts."""
        captions = records_from(from_bytes(self.captions.read(shard), Caption), Caption)
        by_key = {key: tuple(rows) for key, rows in groupby(captions, lambda row: row.key)}
        file = open_shard(self.shards.locate(shard))
        return Fetched(
            inputs=[
                ImageToScore(
                    key=sample.key,
                    read_image=partial(source_image, file, sample),
                    texts=texts_of(sample, by_key[sample.key]),
                )
                for sample in readable_samples(self.samples, shard)
            ]
        )

    def quarantine(self, rejected: ImageToScore, why: Quarantine) -> ScoredImage:
        """What stands for an image no worker survives."""
        return unscored(rejected, why.reason, why.detail)

    def commit(
        self, shard: int, fetched: Fetched[ImageToScore], outputs: Sequence[ScoredImage]
    ) -> ShardReport:
        """Write the shard's scores and image vectors, in order of key."""
        scores = [score for image in outputs for score in image.scores]
        vectors = [image.vector for image in outputs if image.vector is not None]
        files = [
            NewFile(
                role="rows",
                folder="",
                suffix=".parquet",
                payload=to_bytes(table_from(scores, Score)),
                rows=len(scores),
            ),
            NewFile(
                role="vectors",
                folder="",
                suffix=".vectors.parquet",
                payload=to_bytes(table_from(vectors, ImageVector)),
                rows=len(vectors),
            ),
        ]
        commit = self.table.commit(
            shard,
            files,
            rows_in=len(scores),
            kept=sum(score.reason is None for score in scores),
            dropped=drop_counts(score.reason for score in scores),
        )
        return report_of(STAGE, commit)
