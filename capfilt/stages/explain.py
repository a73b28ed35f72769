"""Explain: one sample's passport, its rows in every table of a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import pyarrow.compute as pc

from capfilt.errors import CapfiltError
from capfilt.io.commits import Table
from capfilt.io.parquet import from_bytes, records_from
from capfilt.records import Caption, Download, Group, PublishedSample, Sample, Score, Verdict
from capfilt.stages.plans import STAGES
from capfilt.stages.tables import Tables

RowT = TypeVar("RowT")

MIN_PREFIX = 6
"""A key may be given by its first digits; fewer than this would match by accident."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passport:
    """Everything a round knows of one sample; a stage not yet done has left nothing."""

    sample: Sample
    captions: tuple[Caption, ...]
    scores: tuple[Score, ...]
    verdicts: tuple[Verdict, ...]
    group: Group | None
    represents: tuple[str, ...]  # keys of the images it stands for
    published_in: str | None  # URL of the Parquet file
    plans: dict[str, str]  # stage -> plan digest


def find_samples(tables: Tables, name: str) -> list[Sample]:
    """The samples a user may mean: by key or its beginning, source key, or URL."""
    table = tables.of("index")
    return [s for shard in tables.committed("index") for s in _matching(table, shard, name)]


def find_lost(tables: Tables, name: str) -> list[Download]:
    """URLs that gave no image, and so no sample: by source key or URL."""
    if not tables.has("download"):
        return []
    table = tables.of("download")
    rows = [
        row
        for shard in tables.committed("download")
        for column in ("source_key", "url")
        for row in _rows(table, shard, Download, column, name)
    ]
    return [row for row in rows if row.reason is not None]


def not_found(tables: Tables, name: str) -> CapfiltError:
    """What to tell a user whose name nothing has."""
    if not tables.committed("index"):
        found = tables.elsewhere(last="index") or "nothing is indexed yet; run `capfilt index`"
        return CapfiltError(f"{tables.store.url}: {found}")
    return CapfiltError(
        f"{name!r}: no sample has this key, source key or URL; "
        f"keys are 32 hex digits, of which the first {MIN_PREFIX} are enough"
    )


def passport(tables: Tables, sample: Sample) -> Passport:
    """Collect what every table of a round says of a sample."""
    key, shard = sample.key, sample.shard
    home, group = _group(tables, key)
    members = _rows(tables.of("dedup"), home, Group, "representative", key)
    return Passport(
        sample=sample,
        captions=tuple(_rows(tables.of("caption"), shard, Caption, "key", key)),
        scores=tuple(_rows(tables.of("score"), shard, Score, "key", key)),
        verdicts=tuple(_rows(tables.of("select"), shard, Verdict, "key", key)),
        group=group,
        represents=tuple(member.key for member in members if member.key != key),
        published_in=_published_file(tables, home, key),
        plans={stage: plan.digest for stage, plan in tables.plans.items() if stage in STAGES},
    )


def _matching(table: Table, shard: int, name: str) -> list[Sample]:
    rows = from_bytes(table.read(shard), Sample)
    matches = pc.or_(
        pc.equal(rows["source_key"], name), pc.fill_null(pc.equal(rows["url"], name), False)
    )
    if len(name) >= MIN_PREFIX:
        matches = pc.or_(matches, pc.starts_with(rows["key"], pattern=name.lower()))
    return records_from(rows.filter(matches), Sample)


def _rows(
    table: Table, shard: int | None, record_type: type[RowT], column: str, value: str
) -> list[RowT]:
    if shard is None or table.find(shard) is None:
        return []
    rows = from_bytes(table.read(shard), record_type)
    matching = rows.filter(pc.fill_null(pc.equal(rows[column], value), False))
    return records_from(matching, record_type)


def _group(tables: Tables, key: str) -> tuple[int | None, Group | None]:
    """The group row of a sample and the shard it lies in: its representative's."""
    for shard in tables.committed("dedup"):
        for group in _rows(tables.of("dedup"), shard, Group, "key", key):
            return shard, group
    return None, None


def _published_file(tables: Tables, shard: int | None, key: str) -> str | None:
    table = tables.of("publish")
    if shard is None or (commit := table.find(shard)) is None:
        return None
    keys = from_bytes(table.read(shard), PublishedSample, ["key"])["key"]  # not the images
    return f"{table.store.url}/{commit.file().path}" if key in keys.to_pylist() else None
