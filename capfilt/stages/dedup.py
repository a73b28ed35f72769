"""Dedup: near-duplicate images become one, and their web texts go to the one that stays.

Images are compared by their bytes, by perceptual hash, and by the filter's image vectors; see
`dedup.leader` for the rule. Only images with a kept text take part. The whole round is one piece
of work, streamed shard by shard into columns; its rows are committed by the shard of the
*representative*, so that publishing a shard reads no other one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.config import DedupSection, Recipe
from capfilt.dedup.index import limit_threads
from capfilt.dedup.leader import Duplicates, find_duplicates
from capfilt.io.commits import NewFile, Table
from capfilt.io.parquet import arrow_schema, from_bytes, to_bytes
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport, Worker
from capfilt.records import Group, ImageVector, PublishedText, Reason, Sample, Score, Verdict
from capfilt.stages.select import text_fit
from capfilt.stages.shards import Funnel, funnel_of, reason_counts, round_resources_of, run_jobs
from capfilt.stages.sources import web_shards
from capfilt.stages.tables import Tables

STAGE = "dedup"
SAMPLE_COLUMNS = ["key", "shard", "image_sha256", "phash", "width_px", "height_px"]
FIT_COLUMNS = ["key", "itm_prob", "itc_cos", "decided_by"]

Vectors = npt.NDArray[np.float32]


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Find the duplicates of a whole round."""
    shards = web_shards(recipe, tables).count
    tables.require("select", shards)
    run_jobs([job(recipe, tables)], 1, tables=tables, pool=pool)
    return funnel_of(STAGE, tables.committed(STAGE).values(), round_=tables.round)


def job(recipe: Recipe, tables: Tables) -> DedupJob:
    """The stage's work: one piece for the whole round."""
    return DedupJob(
        recipe=recipe,
        num_shards=web_shards(recipe, tables).count,
        samples=tables.of("index"),
        scores=tables.of("score"),
        verdicts=tables.of("select"),
        table=tables.begin(STAGE, recompute=True),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundImages:
    """The readable images of a round, as columns.

    Args:
        images: `SAMPLE_COLUMNS` and `text_fit`, the highest of the image's kept texts; null if no
            text of it is kept.
        vectors: (N, E) float32 unit vectors in the same order; zeros where there is none.
    """

    images: pa.Table
    vectors: Vectors


class DedupWorker:
    """Compares the images of a round.

    Args:
        options: thresholds.
        num_threads: CPU threads of the search; the result does not depend on it.
    """

    def __init__(self, options: DedupSection, *, num_threads: int) -> None:
        self._options = options
        limit_threads(num_threads)

    def __call__(self, inputs: Sequence[RoundImages]) -> list[pa.Table]:
        """The groups of each round, without texts; see `group_columns`."""
        return [self._groups(row) for row in inputs]

    def close(self) -> None:
        """Nothing to give back."""

    def _groups(self, row: RoundImages) -> pa.Table:
        has_text = row.images["text_fit"].is_valid().to_numpy()
        found = find_duplicates(
            row.images.filter(pa.array(has_text)),
            row.vectors[has_text],
            exact=self._options.exact,
            max_phash_distance=self._options.max_phash_distance,
            min_cosine_perceptual=self._options.min_cosine_perceptual,
            min_cosine=self._options.min_cosine,
            max_phash_distance_embedding=self._options.max_phash_distance_embedding,
        )
        return group_columns(row.images, has_text, found)


def group_columns(images: pa.Table, has_text: npt.NDArray[np.bool_], found: Duplicates) -> pa.Table:
    """One row per image: who stands for it, and the shard of that one.

    Args:
        images: all readable images of the round.
        has_text: which of them have a kept text.
        found: the answer for those that have, in the same order.

    Returns:
        The columns of `records.Group` without `texts`, and `home`, the representative's shard.
    """
    with_text = np.flatnonzero(has_text)
    standing_for = np.arange(len(images))
    standing_for[with_text] = with_text[found.representative]
    similarity = np.ones(len(images), np.float32)
    similarity[with_text] = found.similarity
    reasons = np.full(len(images), str(Reason.NO_TEXT_KEPT), object)
    reasons[with_text] = found.reasons().to_numpy(zero_copy_only=False)
    kept = np.zeros(len(images), bool)
    kept[with_text] = found.kept
    no_text = pa.array(~has_text)
    # Of tens of millions of images the keys are more than the 2 GiB a plain string column holds.
    keys = images["key"].cast(pa.large_string())
    representative = keys.take(pa.array(standing_for))
    return pa.table(
        {
            "key": keys,
            "shard": images["shard"],
            "representative": pc.if_else(no_text, pa.scalar(None, keys.type), representative),
            "similarity": pc.if_else(no_text, pa.scalar(None, pa.float32()), pa.array(similarity)),
            "kept": pa.array(kept),
            "reason": pa.array(reasons, pa.string()),
            "home": images["shard"].take(pa.array(standing_for)),
        }
    )


def best_kept_fit(scores: pa.Table, verdicts: pa.Table) -> pa.Table:
    """Per key with a kept text, how well the best one fits: columns `key`, `text_fit`.

    Args:
        scores: `FIT_COLUMNS` of a shard.
        verdicts: `kept`, in the same order.
    """
    fits = pa.table({"key": scores["key"], "text_fit": text_fit(scores)})
    kept = fits.filter(verdicts["kept"])
    best = kept.group_by("key", use_threads=False).aggregate([("text_fit", "max")])
    return best.select(["key", "text_fit_max"]).rename_columns(["key", "text_fit"])


def attached_texts(scores: pa.Table, verdicts: pa.Table, movers: pa.Array) -> pa.Table:
    """The kept web texts of images that do not stay: columns `key`, `texts`.

    Args:
        scores: columns of `records.Score`, rows of one image adjacent.
        verdicts: `kept`, in the same order.
        movers: keys of the images.
    """
    moving = pc.and_(verdicts["kept"], pc.equal(scores["text_source"], "web"))
    moving = pc.and_(moving, pc.is_in(scores["key"], value_set=movers))
    rows = scores.filter(moving).combine_chunks()
    keys = rows["key"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.concatenate([[len(keys) > 0], keys[1:] != keys[:-1]])[: len(keys)])
    texts = pa.ListArray.from_arrays(
        pa.array(np.append(starts, len(keys)), pa.int32()), published_texts(rows),
        type=arrow_schema(Group).field("texts").type,
    )  # fmt: skip
    return pa.table({"key": rows["key"].take(pa.array(starts)), "texts": texts})


def published_texts(rows: pa.Table) -> pa.StructArray:
    """Rows of `records.Score` as `records.PublishedText` structs."""
    fields = list(arrow_schema(PublishedText))
    source = {"from_key": "key"}
    columns = [rows[source.get(field.name, field.name)].combine_chunks() for field in fields]
    return pa.StructArray.from_arrays(columns, fields=fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupJob:
    """Dedup of one round."""

    recipe: Recipe
    num_shards: int
    samples: Table
    scores: Table
    verdicts: Table
    table: Table

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What its one worker needs."""
        return round_resources_of(self.recipe.pool, self.recipe.pool.dedup)

    def committed(self) -> Mapping[int, ShardReport]:
        """The round's one piece of work, if all its shards are there."""
        commits = self.table.commits()
        if len(commits) < self.num_shards:
            return {}
        return {0: self._report(already=True)}

    def build_worker(self) -> Worker[RoundImages, pa.Table]:
        """A worker; FAISS is loaded with this module."""
        return DedupWorker(self.recipe.dedup, num_threads=self.recipe.pool.dedup.threads)

    def fetch(self, shard: int) -> Fetched[RoundImages]:
        """The round's readable images and their vectors, shard by shard into columns."""
        pieces = [self._shard_images(number) for number in range(self.num_shards)]
        images = pa.concat_tables([piece.images for piece in pieces])
        vectors = joined_vectors([piece.vectors for piece in pieces])
        return Fetched(inputs=[RoundImages(images=images.combine_chunks(), vectors=vectors)])

    def quarantine(self, rejected: RoundImages, why: Quarantine) -> pa.Table:
        """A round cannot be left out of itself: its one row is its whole input."""
        raise AssertionError("never asked for: not divisible")

    def commit(
        self, shard: int, fetched: Fetched[RoundImages], outputs: Sequence[pa.Table]
    ) -> ShardReport:
        """Write each representative's shard of groups."""
        [groups] = outputs
        texts = pa.concat_tables(self._moving_texts(groups))
        sharing = zip(
            split_by_shard(groups, groups["home"], num_shards=self.num_shards),
            split_by_shard(texts, homes_of(texts, groups), num_shards=self.num_shards),
            strict=True,
        )
        for home, (members, theirs) in enumerate(sharing):
            self._commit_shard(home, with_texts(members, theirs))
        return self._report(already=False)

    def _commit_shard(self, shard: int, rows: pa.Table) -> None:
        dropped = reason_counts(rows["reason"])
        payload = to_bytes(rows)
        self.table.commit(
            shard,
            [NewFile(role="rows", folder="", suffix=".parquet", payload=payload, rows=len(rows))],
            rows_in=len(rows),
            kept=len(rows) - sum(dropped.values()),
            dropped=dropped,
        )

    def _report(self, *, already: bool) -> ShardReport:
        total = funnel_of(STAGE, self.table.commits().values(), round_=self.table.round)
        return ShardReport(
            stage=STAGE,
            shard=0,
            rows_in=total.rows_in,
            kept=total.kept,
            dropped=total.dropped,
            already=already,
        )

    def _shard_images(self, shard: int) -> RoundImages:
        samples = from_bytes(self.samples.read(shard), Sample, [*SAMPLE_COLUMNS, "reason"])
        samples = samples.filter(samples["reason"].is_null()).select(SAMPLE_COLUMNS)
        best = best_kept_fit(*self._judged(shard, FIT_COLUMNS))
        place = pc.index_in(samples["key"], value_set=best["key"])
        best_fit = best["text_fit"].take(place)
        stored = from_bytes(self.scores.read(shard, "vectors"), ImageVector)
        return RoundImages(
            images=samples.append_column("text_fit", best_fit),
            vectors=_aligned(stored, samples["key"]),
        )

    def _moving_texts(self, groups: pa.Table) -> Iterator[pa.Table]:
        is_duplicate = pc.and_(pc.invert(groups["kept"]), groups["representative"].is_valid())
        duplicates = groups.filter(is_duplicate)
        movers = split_by_shard(duplicates, duplicates["shard"], num_shards=self.num_shards)
        for shard, rows in enumerate(movers):
            scores, verdicts = self._judged(shard, None)
            keys = rows["key"].cast(pa.string()).combine_chunks()
            yield attached_texts(scores, verdicts, keys)

    def _judged(self, shard: int, columns: list[str] | None) -> tuple[pa.Table, pa.Table]:
        scores = from_bytes(self.scores.read(shard), Score, columns)
        return scores, from_bytes(self.verdicts.read(shard), Verdict, ["kept"])


def split_by_shard(
    rows: pa.Table, shards: pa.ChunkedArray, *, num_shards: int
) -> Iterator[pa.Table]:
    """The rows of each shard from 0 on, in the order they have; sorted once, for all shards.

    Args:
        rows: of any kind.
        shards: of each row, from 0 to below num_shards.
        num_shards: how many there are.
    """
    numbers = shards.to_numpy()
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(num_shards + 1))
    ordered = rows.take(pa.array(order))
    for start, stop in pairwise(bounds.tolist()):
        yield ordered.slice(start, stop - start)


def homes_of(texts: pa.Table, groups: pa.Table) -> pa.ChunkedArray:
    """The shards that the texts of duplicates move to.

    Args:
        texts: `key` of the duplicates.
        groups: the result of `group_columns`.
    """
    keys = texts["key"].cast(groups["key"].type)
    return groups["home"].take(pc.index_in(keys, value_set=groups["key"]))


def with_texts(members: pa.Table, texts: pa.Table) -> pa.Table:
    """Rows of `records.Group`, in order of key: members joined with the texts they bring.

    Args:
        members: the result of `group_columns`, or a part of it.
        texts: columns `key` and `texts`.
    """
    schema = arrow_schema(Group)
    none = pa.array([[]], schema.field("texts").type)
    choices = pa.chunked_array([*texts["texts"].chunks, none], none.type)
    keys = members["key"].cast(pa.string())
    place = pc.fill_null(pc.index_in(keys, value_set=texts["key"]), len(texts))
    columns = {name: members[name] for name in schema.names if name != "texts"}
    columns["texts"] = choices.take(place)
    rows = pa.table([columns[name].cast(schema.field(name).type) for name in schema.names],
                    schema=schema)  # fmt: skip
    return rows.sort_by("key").combine_chunks()


def joined_vectors(pieces: Sequence[Vectors]) -> Vectors:
    """The vectors of all shards below each other: (sum of N, E) float32.

    Args:
        pieces: (N, E) per shard; (N, 0) for a shard of which no image has a vector.
    """
    widths = {piece.shape[1] for piece in pieces if piece.shape[1]} or {1}
    assert len(widths) == 1, f"image vectors of several widths: {sorted(widths)}"
    [width] = widths
    return np.concatenate(
        [p if p.shape[1] else np.zeros((len(p), width), np.float32) for p in pieces]
    )


def _aligned(stored: pa.Table, keys: pa.ChunkedArray) -> Vectors:
    """(N, E) float32 vectors in the order of keys; zeros for a key that has none."""
    lists = stored["vector"].combine_chunks()
    width = len(lists[0]) if len(lists) else 0
    flat = lists.flatten().to_numpy().reshape(len(lists), width).astype(np.float32)
    padded = np.concatenate([flat, np.zeros((1, width), np.float32)])
    place = pc.fill_null(pc.index_in(keys, value_set=stored["key"]), len(lists))
    vectors: Vectors = padded[place.to_numpy()]
    return vectors
