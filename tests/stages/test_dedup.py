"""Dedup: who stands for whom, and whose texts move. The rule itself is tested in tests/dedup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from capfilt.dedup.leader import Duplicates
from capfilt.io.parquet import from_bytes, records_from, table_from
from capfilt.local_pool import LocalPool
from capfilt.records import Group, PublishedText, Sample, Score, TextSource, Verdict
from capfilt.stages import dedup
from capfilt.stages.dedup import (
    attached_texts,
    best_kept_fit,
    group_columns,
    joined_vectors,
    split_by_shard,
    with_texts,
)
from tests.small_run import SmallRun, finished, flip_last_byte, rows_of


def score(key: str, source: TextSource, index: int, itm_prob: float | None) -> Score:
    return Score(
        key=key, text_source=source, text_index=index, text=f"{key} {source} {index}",
        logprob=None, itm_prob=itm_prob, itc_cos=itm_prob, num_tokens=3, reason=None, detail=None,
    )  # fmt: skip


def tables(*rows: tuple[Score, bool]) -> tuple[pa.Table, pa.Table]:
    """Scores, and verdicts of the same texts."""
    verdicts = [
        Verdict(
            key=score.key,
            text_source=score.text_source,
            text_index=score.text_index,
            kept=kept,
            reason=None,
        )
        for score, kept in rows
    ]
    return table_from([s for s, _ in rows], Score), table_from(verdicts, Verdict)


def published(text: Score) -> PublishedText:
    assert text.text is not None
    assert text.itm_prob is not None
    return PublishedText(
        text=text.text, text_source=text.text_source, text_index=text.text_index,
        itm_prob=text.itm_prob, itc_cos=text.itm_prob, logprob=None, from_key=text.key,
    )  # fmt: skip


def test_the_best_kept_text_speaks_for_an_image() -> None:
    best = best_kept_fit(
        *tables(
            (score("a", "web", 0, 0.5), True),
            (score("a", "synthetic", 0, 0.75), True),
            (score("a", "synthetic", 1, 1.0), False),
            (score("b", "web", 0, 1.0), False),
            (score("c", "web", 0, 0.25), True),
        )
    )
    assert best.to_pydict() == {"key": ["a", "c"], "text_fit": [0.75, 0.25]}


def test_where_there_is_no_probability_the_cosine_speaks() -> None:
    scores = [
        replace(score("a", "web", 0, None), itc_cos=-0.25),
        replace(score("a", "synthetic", 0, None), itc_cos=-0.5),
    ]
    best = best_kept_fit(*tables(*((row, True) for row in scores)))
    assert best.to_pydict() == {"key": ["a"], "text_fit": [-0.25]}


def test_without_a_kept_text_nothing_speaks() -> None:
    assert best_kept_fit(*tables((score("a", "web", 0, 0.5), False))).num_rows == 0


def test_only_kept_web_texts_of_those_who_go_are_attached() -> None:
    stays, goes, goes_too = (score(key, "web", 0, 0.5) for key in "abd")
    rows = tables(
        (stays, True),
        (goes, True),
        (score("b", "synthetic", 0, 0.5), True),
        (score("c", "web", 0, 0.5), False),
        (goes_too, True),
    )
    attached = attached_texts(*rows, pa.array(["d", "c", "b"]))
    assert attached["key"].to_pylist() == ["b", "d"]
    groups = with_texts(group_rows("b", "d"), attached)
    assert [g.texts for g in records_from(groups, Group)] == [
        (published(goes),), (published(goes_too),)
    ]  # fmt: skip


@pytest.mark.parametrize("movers", [[], ["z"]])
def test_nobody_goes_and_nothing_is_attached(movers: Sequence[str]) -> None:
    rows = tables((score("a", "web", 0, 0.5), True))
    attached = attached_texts(*rows, pa.array(movers, pa.string()))
    assert attached.num_rows == 0
    [group] = records_from(with_texts(group_rows("a"), attached), Group)
    assert group.texts == ()


def group_rows(*keys: str) -> pa.Table:
    images = image_rows(keys, [0] * len(keys))
    everyone = np.arange(len(keys))
    alone = Duplicates(
        representative=everyone, tier=np.zeros(len(keys), np.int8),
        similarity=np.ones(len(keys), np.float32),
    )  # fmt: skip
    return group_columns(images, np.ones(len(keys), bool), alone)


def image_rows(keys: Sequence[str], shards: Sequence[int]) -> pa.Table:
    return pa.table({"key": pa.array(keys), "shard": pa.array(shards, pa.int32())})


def test_every_image_has_a_row_that_lies_with_its_representative() -> None:
    images = image_rows(["d", "c", "b", "a"], [0, 1, 2, 2])
    has_text = np.array([True, False, True, True])
    found = Duplicates(  # of d, b and a: d stands for a
        representative=np.array([0, 1, 0]), tier=np.array([0, 0, 2], np.int8),
        similarity=np.array([1, 1, 0.5], np.float32),
    )  # fmt: skip
    rows = with_texts(group_columns(images, has_text, found), no_texts()).to_pydict()
    assert rows["key"] == ["a", "b", "c", "d"]
    assert rows["representative"] == ["d", "b", None, "d"]
    assert rows["kept"] == [False, True, False, True]
    assert rows["reason"] == ["duplicate_perceptual", None, "no_text_kept", None]
    assert rows["similarity"] == [0.5, 1, None, 1]
    assert group_columns(images, has_text, found)["home"].to_pylist() == [0, 1, 2, 0]


def no_texts() -> pa.Table:
    return attached_texts(*tables((score("z", "web", 0, 0.5), False)), pa.array(["z"]))


def test_rows_are_dealt_to_their_shards_in_order() -> None:
    rows = pa.table({"key": list("abcde")})
    dealt = split_by_shard(rows, pa.chunked_array([[3, 0], [3, 0, 0]]), num_shards=5)
    assert [piece["key"].to_pylist() for piece in dealt] == [
        ["b", "d", "e"],
        [],
        [],
        ["a", "c"],
        [],
    ]


def test_an_empty_round_has_shards_without_rows() -> None:
    rows = pa.table({"key": pa.array([], pa.string())})
    dealt = split_by_shard(rows, pa.chunked_array([], pa.int32()), num_shards=2)
    assert [len(piece) for piece in dealt] == [0, 0]


def test_a_shard_without_any_vector_keeps_its_place() -> None:
    some = np.ones((2, 3), np.float32)
    joined = joined_vectors([np.zeros((1, 0), np.float32), some, np.zeros((0, 0), np.float32)])
    assert joined.tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert joined_vectors([np.zeros((2, 0), np.float32)]).shape == (2, 1)


@pytest.fixture(scope="module")
def names(small_run: SmallRun) -> dict[str, str]:
    """Source key by key."""
    return {s.key: s.source_key for s in rows_of(small_run.tables(), "index", Sample)}


def test_planted_duplicates_are_found_across_shards(
    small_run: SmallRun, names: dict[str, str]
) -> None:
    groups = rows_of(small_run.tables(), "dedup", Group)
    gone = {frozenset((names[g.key], names[g.representative or ""])): g.reason
            for g in groups if not g.kept}  # fmt: skip
    assert gone == {
        frozenset(("original", "copy")): "duplicate_exact",
        frozenset(("shown-large", "shown-small")): "duplicate_perceptual",
    }
    assert "shown-large" in {names[g.key] for g in groups if g.kept}
    assert sorted(g.key for g in groups) == sorted(
        s.key for s in rows_of(small_run.tables(), "index", Sample) if s.reason is None
    )


def test_a_duplicate_lies_in_the_shard_of_its_representative_with_its_web_text(
    small_run: SmallRun, names: dict[str, str]
) -> None:
    table = small_run.tables().of("dedup")
    home = records_from(from_bytes(table.read(0), Group), Group)
    [small] = [g for g in home if names[g.key] == "shown-small"]
    assert (small.shard, small.kept) == (1, False)
    assert [(t.text, t.text_source, t.from_key) for t in small.texts] == [
        ("a star, seen from afar", "web", small.key)
    ]
    assert all(not g.texts for g in home if g.kept)


def test_each_tier_can_be_turned_off(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["groups", "dataset"])
    off = {"dedup": {"exact": False, "max_phash_distance": -1}}
    funnel = dedup.run(run.recipe(**off), run.tables(**off), LocalPool())
    assert (funnel.kept, funnel.dropped) == (19, {})


def test_nothing_kept_means_nothing_compared(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["verdicts", "groups", "dataset"])
    strict = {"select": {"min_itm_prob": 1.0, "min_itm_prob_synthetic": 1.0}}
    *_, deduped, published = finished(run, **strict)
    assert (deduped.kept, deduped.dropped) == (0, {"no_text_kept": 19})
    assert (published.rows_in, published.kept) == (0, 0)


def test_a_shard_of_which_nothing_could_be_scored_takes_no_part(
    small_run: SmallRun, tmp_path: Path
) -> None:
    tables_below = ["scores", "verdicts", "groups", "dataset"]
    run = small_run.copied_to(tmp_path / "run", without=tables_below).with_own_web(tmp_path / "web")
    for sample in rows_of(run.tables(), "index", Sample):
        if sample.shard == 1 and sample.reason is None:
            flip_last_byte(run, sample)
    *_, deduped, published = finished(run)
    assert deduped.dropped == {"no_text_kept": 11}
    assert (published.rows_in, published.kept) == (8, 8)
