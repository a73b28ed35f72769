"""Publish: the images that stay, with their kept texts, as Parquet and WebDataset files.

Original bytes go out as they came in. The Parquet files follow the Hugging Face `datasets`
convention for images, so they load there, in `ray.data`, DuckDB and pandas; the tars load in
`webdataset`. When all shards are out, a manifest with digests, a dataset card and the funnel of
the round are written beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from capfilt.config import Recipe
from capfilt.io.commits import NewFile, Table
from capfilt.io.fetch import image_extension
from capfilt.io.parquet import arrow_schema, from_bytes, records_from, table_from, to_bytes
from capfilt.io.rows import LazyRows
from capfilt.io.shards import ShardFile, open_shard
from capfilt.io.tar import write_tar
from capfilt.lineage import canonical_json
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport, Worker
from capfilt.records import (
    Group,
    PublishedImage,
    PublishedSample,
    PublishedText,
    Reason,
    Sample,
    Score,
    Verdict,
)
from capfilt.stages.card import dataset_card, how_made, hub_metadata
from capfilt.stages.images import readable_samples
from capfilt.stages.shards import (
    Funnel,
    drop_counts,
    funnel_of,
    report_of,
    reports_of,
    resources_of,
    run_jobs,
)
from capfilt.stages.sources import WebShards, web_shards
from capfilt.stages.tables import Tables

STAGE = "publish"


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Publish all shards, then the manifest, the card and the funnel."""
    shards = web_shards(recipe, tables).count
    tables.require("dedup", shards)
    funnel = run_jobs([job(recipe, tables)], shards, tables=tables, pool=pool)[STAGE]
    describe(recipe, tables)
    return funnel


def job(recipe: Recipe, tables: Tables) -> PublishJob:
    """The stage's work on one shard."""
    return PublishJob(
        recipe=recipe,
        round=tables.round,
        shards=web_shards(recipe, tables),
        samples=tables.of("index"),
        scores=tables.of("score"),
        verdicts=tables.of("select"),
        groups=tables.of("dedup"),
        table=tables.begin(STAGE, recompute=True),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A sample that stays, its texts, and how many images it stands for."""

    sample: Sample
    texts: tuple[PublishedText, ...]
    num_duplicates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenImage:
    """The same, with the image's bytes as the shard now has them."""

    chosen: Chosen
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpublished:
    """A chosen sample that could not go out, and why."""

    reason: str


def kept_texts(
    scores: Sequence[Score], verdicts: Sequence[Verdict]
) -> dict[str, list[PublishedText]]:
    """The kept texts of each image, in the order they were scored: web, then synthetic.

    Args:
        scores: of a shard.
        verdicts: of the same texts in the same order.
    """
    texts: dict[str, list[PublishedText]] = {}
    for score, verdict in zip(scores, verdicts, strict=True):
        assert _name(score) == _name(verdict), f"{score} is not what {verdict} is about"
        if verdict.kept:
            texts.setdefault(score.key, []).append(_published_text(score))
    return texts


def _name(row: Score | Verdict) -> tuple[str, str, int]:
    return row.key, row.text_source, row.text_index


def choose(
    samples: Sequence[Sample], groups: Sequence[Group], own: Mapping[str, list[PublishedText]]
) -> list[Chosen]:
    """The samples of a shard that stay, each with its own texts and those it adopts.

    An adopted text that says the same as one the sample already has is not repeated.

    Args:
        samples: readable samples of the shard.
        groups: groups of the shard: those whose representative lies in it.
        own: kept texts by key.
    """
    adopted: dict[str, list[Group]] = {}
    for group in groups:
        if not group.kept and group.representative is not None:
            adopted.setdefault(group.representative, []).append(group)
    staying = {group.key for group in groups if group.kept}
    return [
        Chosen(
            sample=sample,
            texts=_without_repeats(own[sample.key], adopted.get(sample.key, [])),
            num_duplicates=len(adopted.get(sample.key, [])),
        )
        for sample in samples
        if sample.key in staying
    ]


def _without_repeats(
    own: Sequence[PublishedText], adopted: Sequence[Group]
) -> tuple[PublishedText, ...]:
    texts = list(own)
    seen = {text.text for text in own}
    for group in adopted:
        for text in group.texts:
            if text.text not in seen:
                seen.add(text.text)
                texts.append(text)
    return tuple(texts)


def _published_text(score: Score) -> PublishedText:
    assert score.text is not None
    assert score.itc_cos is not None
    return PublishedText(
        text=score.text,
        text_source=score.text_source,
        text_index=score.text_index,
        itm_prob=score.itm_prob,
        itc_cos=score.itc_cos,
        logprob=score.logprob,
        from_key=score.key,
    )


def tar_members(row: PublishedSample) -> Iterator[tuple[str, bytes]]:
    """A published sample's files: image, first text, and everything else as json."""
    fields = asdict(row)
    del fields["image"]
    yield row.image.path, row.image.bytes
    yield f"{row.key}.txt", row.texts[0].text.encode("utf-8", "replace")
    yield f"{row.key}.json", canonical_json(fields).encode()


class PublishWorker:
    """Puts published samples together.

    Args:
        round_: bootstrap round they belong to.
    """

    def __init__(self, *, round_: int) -> None:
        self._round = round_

    def __call__(self, inputs: Sequence[ChosenImage]) -> list[PublishedSample | Unpublished]:
        """One published sample per chosen image, unless its bytes are not those indexed."""
        return [self._publish(inputs[i]) for i in range(len(inputs))]

    def close(self) -> None:
        """Nothing to give back."""

    def _publish(self, image: ChosenImage) -> PublishedSample | Unpublished:
        sample = image.chosen.sample
        if hashlib.sha256(image.payload).hexdigest() != sample.image_sha256:
            return Unpublished(reason=Reason.BYTES_CHANGED)
        assert sample.width_px is not None
        assert sample.height_px is not None
        name = f"{sample.key}.{image_extension(image.payload)}"
        return PublishedSample(
            key=sample.key,
            image=PublishedImage(bytes=image.payload, path=name),
            texts=image.chosen.texts,
            width_px=sample.width_px,
            height_px=sample.height_px,
            image_sha256=sample.image_sha256,
            url=sample.url,
            source_key=sample.source_key,
            source_shard=sample.shard,
            num_duplicates=image.chosen.num_duplicates,
            round=self._round,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishJob:
    """Publishing of one shard."""

    recipe: Recipe
    round: int
    shards: WebShards
    samples: Table
    scores: Table
    verdicts: Table
    groups: Table
    table: Table

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What each worker needs."""
        return resources_of(self.recipe.pool, self.recipe.pool.publish)

    def committed(self) -> Mapping[int, ShardReport]:
        """Shards published by an earlier run."""
        return reports_of(STAGE, self.table)

    def build_worker(self) -> Worker[ChosenImage, PublishedSample | Unpublished]:
        """A worker; it needs no model."""
        return PublishWorker(round_=self.round)

    def fetch(self, shard: int) -> Fetched[ChosenImage]:
        """The samples of the shard that stay; image bytes are read one by one."""
        scores = records_from(from_bytes(self.scores.read(shard), Score), Score)
        verdicts = records_from(from_bytes(self.verdicts.read(shard), Verdict), Verdict)
        groups = records_from(from_bytes(self.groups.read(shard), Group), Group)
        chosen = choose(readable_samples(self.samples, shard), groups, kept_texts(scores, verdicts))
        file = open_shard(self.shards.locate(shard))
        return Fetched(inputs=LazyRows(chosen, lambda row: _chosen_image(file, row)))

    def quarantine(self, rejected: ChosenImage, why: Quarantine) -> Unpublished:
        """What stands for a sample no worker survives."""
        return Unpublished(reason=why.reason)

    def commit(
        self,
        shard: int,
        fetched: Fetched[ChosenImage],
        outputs: Sequence[PublishedSample | Unpublished],
    ) -> ShardReport:
        """Write the shard's Parquet file and tar, in order of key."""
        rows = [row for row in outputs if isinstance(row, PublishedSample)]
        schema = arrow_schema(PublishedSample)
        table = to_bytes(table_from(rows, PublishedSample), metadata=hub_metadata(schema))
        files = [NewFile(role="rows", folder="", suffix=".parquet", payload=table, rows=len(rows))]
        if self.recipe.publish.webdataset:
            tar = write_tar([member for row in rows for member in tar_members(row)])
            files.append(NewFile(role="tar", folder="", suffix=".tar", payload=tar, rows=len(rows)))
        commit = self.table.commit(
            shard,
            files,
            rows_in=len(outputs),
            kept=len(rows),
            dropped=drop_counts(r.reason for r in outputs if isinstance(r, Unpublished)),
        )
        return report_of(STAGE, commit)


def describe(recipe: Recipe, tables: Tables) -> None:
    """Write manifest.json, funnel.json and the dataset card beside the published files."""
    commits = tables.committed(STAGE)
    funnels = round_funnels(tables)
    manifest = {
        "plan": tables.plans[STAGE].describe(),
        "round": tables.round,
        "rows": sum(commit.kept for commit in commits.values()),
        "files": [asdict(file) for _, commit in sorted(commits.items()) for file in commit.files],
    }
    store = tables.of(STAGE).store
    store.put("manifest.json", (canonical_json(manifest) + "\n").encode())
    plain = [{**asdict(funnel), "remainder": funnel.remainder} for funnel in funnels]
    store.put("funnel.json", (canonical_json(plain) + "\n").encode())
    made = how_made(recipe, tables.sources, round_=tables.round)
    card = dataset_card(funnels, made=made, license_=recipe.publish.license)
    store.put("README.md", card.encode())


def round_funnels(tables: Tables) -> list[Funnel]:
    """The funnels of a round's stages up to publish, in the order of the loop.

    What comes later is left out, so that publishing again after training says the same.
    """
    stages = list(tables.plans)
    return [
        funnel_of(stage, tables.committed(stage).values(), round_=tables.round)
        for stage in stages[: stages.index(STAGE) + 1]
    ]


def _chosen_image(file: ShardFile, chosen: Chosen) -> ChosenImage:
    sample = chosen.sample
    assert sample.image_offset is not None
    assert sample.num_bytes is not None
    payload = file.read(offset=sample.image_offset, num_bytes=sample.num_bytes)
    return ChosenImage(chosen=chosen, payload=payload)
