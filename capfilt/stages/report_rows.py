"""The rows the report shows whole: samples with their texts, duplicates, dropped rows, training.

Whom to show has been decided (`report_scores`) or is decided here from columns; only the shards
that hold such rows are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from capfilt.io.parquet import from_bytes, records_from
from capfilt.records import (
    Caption,
    Download,
    Group,
    Sample,
    Score,
    TextSource,
    TrainStep,
    Verdict,
)
from capfilt.stages.report_scores import PICKS, Pick, Yardstick
from capfilt.stages.tables import Tables

EXAMPLES = 3
SHOWN_GROUPS = 4
SHOWN_MEMBERS = 4

EXAMPLE_COLUMNS: dict[str, tuple[type, str]] = {
    "download": (Download, "url"),
    "index": (Sample, "source_key"),
    "caption": (Caption, "key"),
    "score": (Score, "key"),
}
"""Stages whose dropped rows are shown as they are: the row type, and the column that names one."""

GROUP_COLUMNS = ["key", "shard", "representative", "similarity", "kept", "reason"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A removed image of a group of near-duplicates."""

    key: str
    shard: int
    similarity: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateGroup:
    """A kept image and some of those it stands for, the least alike first."""

    representative: str
    shard: int  # of the representative
    num_members: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedText:
    """A text with its scores and its verdict, as far as they are there."""

    text: str | None
    text_source: TextSource
    text_index: int
    itm_prob: float | None = None
    itc_cos: float | None = None
    kept: bool | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A sample and all its texts."""

    sample: Sample
    texts: tuple[JudgedText, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row that was dropped: what it is, and what is known of the reason."""

    what: str
    detail: str | None


def fit_of(text: JudgedText, yardstick: Yardstick) -> float | None:
    """How well a text fits, along the yardstick."""
    return text.itm_prob if yardstick.column == "itm_prob" else text.itc_cos


def first_samples(tables: Tables) -> tuple[Pick, ...]:
    """Readable samples of the first shard indexed, for a round without scores."""
    for shard in sorted(tables.committed("index")):
        rows = from_bytes(tables.of("index").read(shard), Sample, ["key", "reason"])
        keys = rows["key"].filter(rows["reason"].is_null())[:PICKS].to_pylist()
        return tuple(Pick(0.0, key, shard) for key in keys)
    return ()


def largest_groups(tables: Tables) -> tuple[DuplicateGroup, ...]:
    """The largest groups of near-duplicates of a round."""
    groups: list[DuplicateGroup] = []
    for shard in sorted(tables.committed("dedup")):
        rows = from_bytes(tables.of("dedup").read(shard), Group, GROUP_COLUMNS)
        groups += _groups_of_shard(shard, rows)
        groups = sorted(groups, key=lambda g: (-g.num_members, g.representative))[:SHOWN_GROUPS]
    return tuple(groups)


def _groups_of_shard(shard: int, rows: pa.Table) -> Iterator[DuplicateGroup]:
    members = rows.filter(pc.and_(pc.invert(rows["kept"]), rows["representative"].is_valid()))
    sizes = members.group_by("representative", use_threads=False).aggregate([("key", "count")])
    sizes = sizes.sort_by([("key_count", "descending"), ("representative", "ascending")])
    for group in sizes.slice(0, SHOWN_GROUPS).to_pylist():
        own = members.filter(pc.equal(members["representative"], group["representative"]))
        own = own.sort_by([("similarity", "ascending"), ("key", "ascending")])
        yield DuplicateGroup(
            representative=group["representative"],
            shard=shard,
            num_members=group["key_count"],
            members=tuple(
                Member(
                    key=row["key"],
                    shard=row["shard"],
                    similarity=row["similarity"],
                    reason=row["reason"],
                )
                for row in own.slice(0, SHOWN_MEMBERS).to_pylist()
            ),
        )


def look_up(tables: Tables, shard: int, keys: Iterable[str]) -> dict[str, Seen]:
    """Samples of a shard with all their texts, by key.

    Args:
        tables: of the round.
        shard: the samples' own.
        keys: whom to look for.
    """
    wanted = pa.array(sorted(set(keys)), pa.string())
    rows = from_bytes(tables.of("index").read(shard), Sample)
    samples = records_from(rows.filter(pc.is_in(rows["key"], value_set=wanted)), Sample)
    texts: dict[str, list[JudgedText]] = {sample.key: [] for sample in samples}
    if tables.of("score").find(shard) is not None:
        for key, text in _judged_texts(tables, shard, wanted):
            texts[key].append(text)
    else:
        for key, text in _unjudged_texts(tables, shard, samples):
            texts[key].append(text)
    return {s.key: Seen(sample=s, texts=tuple(texts[s.key])) for s in samples}


def _judged_texts(tables: Tables, shard: int, wanted: pa.Array) -> Iterator[tuple[str, JudgedText]]:
    rows = from_bytes(tables.of("score").read(shard), Score)
    chosen = pc.is_in(rows["key"], value_set=wanted)
    scores = records_from(rows.filter(chosen), Score)
    verdicts: Sequence[Verdict | None] = [None] * len(scores)
    if tables.of("select").find(shard) is not None:
        judged = from_bytes(tables.of("select").read(shard), Verdict)
        verdicts = records_from(judged.filter(chosen), Verdict)
    for score, verdict in zip(scores, verdicts, strict=True):
        yield (
            score.key,
            JudgedText(
                text=score.text,
                text_source=score.text_source,
                text_index=score.text_index,
                itm_prob=score.itm_prob,
                itc_cos=score.itc_cos,
                kept=None if verdict is None else verdict.kept,
                reason=score.reason if verdict is None else verdict.reason,
            ),
        )


def _unjudged_texts(
    tables: Tables, shard: int, samples: Sequence[Sample]
) -> Iterator[tuple[str, JudgedText]]:
    for sample in samples:
        yield sample.key, JudgedText(text=sample.web_text, text_source="web", text_index=0)
    if tables.of("caption").find(shard) is None:
        return
    rows = from_bytes(tables.of("caption").read(shard), Caption)
    wanted = pa.array([sample.key for sample in samples], pa.string())
    for row in records_from(rows.filter(pc.is_in(rows["key"], value_set=wanted)), Caption):
        yield (
            row.key,
            JudgedText(
                text=row.text, text_source="synthetic", text_index=row.text_index, reason=row.reason
            ),
        )


def examples(tables: Tables, stage: str) -> dict[str, list[Example]]:
    """Some rows a stage dropped, by reason; only shards that hold such rows are read."""
    record_type, name = EXAMPLE_COLUMNS[stage]
    found: dict[str, list[Example]] = {}
    for shard, commit in sorted(tables.committed(stage).items()):
        short = [r for r in sorted(commit.dropped) if len(found.get(r, ())) < EXAMPLES]
        if not short:
            continue
        rows = from_bytes(tables.of(stage).read(shard), record_type, [name, "reason", "detail"])
        for reason in short:
            dropped = rows.filter(pc.fill_null(pc.equal(rows["reason"], reason), False))
            shown = found.setdefault(reason, [])
            missing = dropped.slice(0, EXAMPLES - len(shown)).to_pylist()
            shown += [Example(what=row[name], detail=row["detail"]) for row in missing]
    return found


def train_steps(tables: Tables) -> list[TrainStep]:
    """The logged steps of a round's training; none if it has not trained."""
    if not tables.has("train") or tables.of("train").find(0) is None:
        return []
    return records_from(from_bytes(tables.of("train").read(0), TrainStep), TrainStep)
