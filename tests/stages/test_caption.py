from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.errors import CheckpointError
from capfilt.local_pool import LocalPool
from capfilt.records import Caption, Sample
from capfilt.stages import caption, index
from capfilt.stages.caption import tally
from capfilt.workers.caption import failed_caption
from tests.small_run import SmallRun, flip_last_byte, rows_of

GOOD = replace(failed_caption("a", "", None), text="a cat", reason=None)


def test_images_are_tallied_not_captions() -> None:
    failed = failed_caption("b", "bytes_changed", None)
    assert tally([[GOOD, GOOD], [failed], [GOOD]]) == (2, {"bytes_changed": 1})
    assert tally([]) == (0, {})


def test_every_readable_image_has_its_captions(small_run: SmallRun) -> None:
    samples = rows_of(small_run.tables(), "index", Sample)
    captions = rows_of(small_run.tables(), "caption", Caption)
    assert [c.key for c in captions] == [s.key for s in samples if s.reason is None]
    assert {c.reason for c in captions} == {None}
    assert all(c.text and c.num_tokens and c.logprob is not None for c in captions)
    assert len({c.text for c in captions}) > 10


@pytest.fixture
def indexed(small_run: SmallRun, tmp_path: Path) -> SmallRun:
    """A run that is indexed and no more."""
    return small_run.copied_to(
        tmp_path / "run", without=["captions", "scores", "verdicts", "groups", "dataset"]
    )


def test_several_captions_of_an_image_are_numbered(indexed: SmallRun) -> None:
    several = {"caption": {"num_captions": 3}}
    tables = indexed.tables(**several)
    funnel = caption.run(indexed.recipe(**several), tables, LocalPool())
    rows = rows_of(tables, "caption", Caption)
    assert (funnel.rows_in, funnel.unit, len(rows)) == (19, "image", 57)
    assert [row.text_index for row in rows] == [0, 1, 2] * 19


def test_the_first_caption_does_not_depend_on_how_many_follow(
    small_run: SmallRun, indexed: SmallRun
) -> None:
    several = {"caption": {"num_captions": 2}}
    caption.run(indexed.recipe(**several), indexed.tables(**several), LocalPool())
    rows = rows_of(indexed.tables(**several), "caption", Caption)
    alone = rows_of(small_run.tables(), "caption", Caption)
    assert [row.text for row in rows if row.text_index == 0] == [row.text for row in alone]


def test_another_seed_writes_other_captions(small_run: SmallRun, indexed: SmallRun) -> None:
    caption.run(indexed.recipe(seed=1), indexed.tables(seed=1), LocalPool())
    other = rows_of(indexed.tables(seed=1), "caption", Caption)
    assert [c.text for c in other] != [
        c.text for c in rows_of(small_run.tables(), "caption", Caption)
    ]


def test_an_image_that_changed_after_indexing_is_a_row_with_a_reason(
    small_run: SmallRun, indexed: SmallRun, tmp_path: Path
) -> None:
    run = indexed.with_own_web(tmp_path / "web")
    changed = next(s for s in rows_of(run.tables(), "index", Sample) if s.source_key == "good-1")
    flip_last_byte(run, changed)
    funnel = caption.run(run.recipe(), run.tables(), LocalPool())
    assert funnel.dropped == {"bytes_changed": 1}
    rows = {c.key: c for c in rows_of(run.tables(), "caption", Caption)}
    assert rows[changed.key].detail == "the shard no longer holds the image indexed"
    others = [c for c in rows_of(small_run.tables(), "caption", Caption) if c.key != changed.key]
    assert [rows[c.key] for c in others] == others


def test_a_filter_is_no_captioner(indexed: SmallRun) -> None:
    wrong = {"caption": {"model": str(indexed.models / "filter")}}
    with pytest.raises(CheckpointError, match=r"and caption\.model names it as the captioner"):
        caption.run(indexed.recipe(**wrong), indexed.tables(**wrong), LocalPool())


def test_captioning_waits_for_the_index(small_run: SmallRun, tmp_path: Path) -> None:
    run = replace(small_run, folder=tmp_path / "new")
    with pytest.raises(Exception, match=r"2 of 2 shards .* run `capfilt index` first"):
        caption.run(run.recipe(), run.tables(), LocalPool())
    index.run(run.recipe(), run.tables(), LocalPool())
    assert run.tables().require("index", 2).keys() == {0, 1}
