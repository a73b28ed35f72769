"""Train: a new BLIP on published and human pairs, then a captioner and a filter from it.

The paper's last step (arXiv:2201.12086, sec. 3.3): pre-train from scratch on the bootstrapped data
together with the human pairs, then finetune twice on the human pairs alone, the captioner with LM,
the filter with ITC and ITM. The two models are what the next round captions and scores with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from capfilt.config import Recipe
from capfilt.errors import CapfiltError, ShardError
from capfilt.io.commits import NewFile, Table
from capfilt.io.images import ImageDecoder
from capfilt.io.inputs import expand_pattern
from capfilt.io.models import local_model
from capfilt.io.parquet import table_from, to_bytes
from capfilt.io.rows import LazyRows
from capfilt.io.shards import ShardFile, open_shard
from capfilt.io.tar import Member, TarDamage, TarSample, group_samples, scan
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport, Worker
from capfilt.records import TrainStep
from capfilt.stages.index import IMAGE_EXTENSIONS, image_limits, web_text_of
from capfilt.stages.shards import Funnel, report_of, reports_of, resources_of, run_jobs
from capfilt.stages.sources import web_shards
from capfilt.stages.tables import Tables
from capfilt.workers.batches import SourceImage
from capfilt.workers.train import Given, Trained, TrainingPair, TrainingSet, TrainWorker

STAGE = "train"
MAX_TEXTS = 100
"""Texts of one image that are looked for."""

TextsOf = Callable[[Mapping[str, bytes]], list[str]]
"""Finds a sample's texts among its text members."""


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Train the models of the next round."""
    tables.require("publish", web_shards(recipe, tables).count)
    return run_jobs([job(recipe, tables)], 1, tables=tables, pool=pool)[STAGE]


def job(recipe: Recipe, tables: Tables) -> TrainJob:
    """The stage's work: one piece for the whole round."""
    assert recipe.train.human is not None, "only asked for by runs that train"
    published = tables.of("publish")
    commits = tables.committed("publish")
    return TrainJob(
        recipe=recipe,
        published=tuple(
            f"{published.store.url}/{commit.file('tar').path}" for commit in commits.values()
        ),
        human=tuple(shard.url for shard in expand_pattern(recipe.train.human)),
        tokenizer=recipe.train.tokenizer or tables.sources["captioner"].name,
        table=tables.begin(STAGE, recompute=recipe.on_changed_settings == "recompute"),
    )


def published_texts(texts: Mapping[str, bytes]) -> list[str]:
    """The texts of a published sample, from its json."""
    fields = json.loads(texts["json"])
    return [str(text["text"]) for text in fields["texts"]]


def human_texts(texts: Mapping[str, bytes], *, text_field: str | None) -> list[str]:
    """The text, or texts, people wrote for an image.

    Args:
        texts: the sample's text members by extension.
        text_field: as `input.text_field`; if it names a list, every string in it is a text.
    """
    one = web_text_of(texts, text_field)
    if one is not None:
        return [one] if one.strip() else []
    several = (web_text_of(texts, f"{text_field or 'caption'}.{i}") for i in range(MAX_TEXTS))
    return [text for text in several if text is not None and text.strip()]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan:
    """Where a training pair is."""

    file: ShardFile
    image: Member
    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Training after one round."""

    recipe: Recipe
    published: tuple[str, ...]  # tars
    human: tuple[str, ...]
    tokenizer: str
    table: Table

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What its one worker needs."""
        return resources_of(self.recipe.pool, self.recipe.pool.train)

    def committed(self) -> Mapping[int, ShardReport]:
        """The models, if an earlier run trained them."""
        return reports_of(STAGE, self.table)

    def build_worker(self) -> Worker[TrainingSet, Trained]:
        """Load the tokenizer and start the decoding processes."""
        pool, name = self.recipe.pool, self.recipe.train.start
        decoder = ImageDecoder(image_limits(self.recipe), num_processes=pool.decode_processes)
        start = None if name is None else local_model(name)
        return TrainWorker(
            self.recipe.train,
            Given(tokenizer=local_model(self.tokenizer), start=start),
            decoder,
            seed=self.recipe.seed,
            device=pool.device,
        )

    def fetch(self, shard: int) -> Fetched[TrainingSet]:
        """List all pairs; their images are read as training meets them."""
        human = partial(human_texts, text_field=self.recipe.train.human_text_field)
        pairs = TrainingSet(
            web=_pairs([p for url in self.published for p in _plans(url, published_texts)]),
            human=_pairs([p for url in self.human for p in _plans(url, human)]),
        )
        if not pairs.human:
            raise CapfiltError(
                f"{self.recipe.train.human}: no pair with an image and a text; "
                "look at train.human_text_field"
            )
        return Fetched(inputs=[pairs])

    def quarantine(self, rejected: TrainingSet, why: Quarantine) -> Trained:
        """A training cannot be left out of itself: its one row is its whole input."""
        raise AssertionError("one input is never bisected")

    def commit(
        self, shard: int, fetched: Fetched[TrainingSet], outputs: Sequence[Trained]
    ) -> ShardReport:
        """Write the three model folders and the metrics."""
        [pairs], [trained] = fetched.inputs, outputs
        for folder, name, payload in trained.files:
            self.table.store.put(f"{folder}/{name}", payload)
        files = [
            NewFile(
                role="rows",
                folder="",
                suffix=".parquet",
                payload=to_bytes(table_from(trained.steps, TrainStep)),
                rows=len(trained.steps),
            ),
            NewFile(
                role="models",
                folder="",
                suffix=".json",
                payload=_model_list(trained),
                rows=len(trained.files),
            ),
        ]
        rows = len(pairs.web) + len(pairs.human)
        commit = self.table.commit(shard, files, rows_in=rows, kept=rows, dropped={})
        return report_of(STAGE, commit)


def _model_list(trained: Trained) -> bytes:
    digests = {
        f"{folder}/{name}": hashlib.sha256(payload).hexdigest()
        for folder, name, payload in trained.files
    }
    return (json.dumps(digests, indent=2, sort_keys=True) + "\n").encode()


def _pairs(plans: Sequence[PairPlan]) -> Sequence[TrainingPair]:
    return LazyRows(plans, _pair)


def _pair(plan: PairPlan) -> TrainingPair:
    payload = plan.file.read(offset=plan.image.offset, num_bytes=plan.image.num_bytes)
    digest = hashlib.sha256(payload).hexdigest()
    return TrainingPair(
        image=SourceImage(key=plan.key, payload=payload, sha256=digest), text=plan.text
    )


def _plans(url: str, texts_of: TextsOf) -> Iterator[PairPlan]:
    """The pairs of a shard: one per text of each sample that has an image."""
    file = open_shard(url)
    try:
        samples = group_samples(scan(file.stream()))
    except TarDamage as err:
        raise ShardError(f"{url}: damaged at byte {err.at_byte}: {err.why}") from err
    for sample in samples:
        image = next((sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members), None)
        if image is not None:
            for text in texts_of(_text_members(file, sample)):
                key = f"{url}/{sample.source_key}/{sample.occurrence}"
                yield PairPlan(file=file, image=image, key=key, text=text)


def _text_members(file: ShardFile, sample: TarSample) -> dict[str, bytes]:
    return {
        extension: file.read(offset=member.offset, num_bytes=member.num_bytes)
        for extension, member in sample.members.items()
        if extension in ("txt", "json")
    }
