"""The whole loop: every row accounted for, and the same bytes however the run went."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError, Stopped
from capfilt.local_pool import LocalPool
from capfilt.records import Caption
from capfilt.stages.loop import bootstrap
from capfilt.stages.plans import STAGES
from capfilt.stages.shards import Funnel, funnel_of
from capfilt.stages.tables import open_tables
from tests.small_run import (
    NUM_SHARDS,
    BackwardsPool,
    IdlePool,
    SmallRun,
    StoppingPool,
    files_of,
    finished,
    planted_shards,
    rows_of,
    small_recipe,
    training,
)

CHAIN = ("index", "caption", "score", "select")


@pytest.fixture(scope="module")
def funnels(small_run: SmallRun) -> dict[str, Funnel]:
    tables = small_run.tables()
    return {
        stage: funnel_of(stage, tables.committed(stage).values(), round_=0)
        for stage in tables.plans
    }


def test_every_row_is_kept_or_dropped_for_a_reason(funnels: dict[str, Funnel]) -> None:
    for funnel in funnels.values():
        assert funnel.rows_in == funnel.kept + sum(funnel.dropped.values())
        assert funnel.shards == NUM_SHARDS


def test_what_a_stage_keeps_is_what_the_next_one_gets(funnels: dict[str, Funnel]) -> None:
    planted = Counter(sample.reason for shard in planted_shards() for sample in shard)
    readable = planted.pop(None)
    index, caption, score, select, dedup, publish = funnels.values()
    assert (index.rows_in, index.dropped) == (24, planted)
    assert index.kept == readable == caption.rows_in == dedup.rows_in
    assert score.rows_in == 2 * caption.rows_in == select.rows_in
    assert score.dropped == {"text_empty": 1, "text_missing": 1} == select.dropped
    assert dedup.kept == publish.rows_in == publish.kept == 17


def test_the_same_run_elsewhere_and_in_another_order_gives_the_same_bytes(
    small_run: SmallRun, tmp_path: Path
) -> None:
    again = replace(small_run, folder=tmp_path / "elsewhere")
    funnels = finished(again, BackwardsPool())
    assert [f.stage for f in funnels] == [*CHAIN, "dedup", "publish"]
    assert results(again) == results(small_run)


def test_a_run_in_memory_publishes_the_same_files(small_run: SmallRun) -> None:
    recipe = small_recipe("memory://small-run", web=small_run.web, models=small_run.models)
    list(bootstrap(recipe, LocalPool(), rounds=1))
    in_memory, on_disk = (
        tables.of("publish").store for tables in (open_tables(recipe, 0), small_run.tables())
    )
    for name in ("manifest.json", "funnel.json", "README.md"):
        assert in_memory.read(name) == on_disk.read(name)


def results(run: SmallRun) -> dict[str, bytes]:
    """All tables of round 0, and what was published of them."""
    return files_of(run.folder / "round-000")


@pytest.mark.parametrize("reports", [3, 9])  # of 11: within the chain, within publish
def test_a_stopped_run_ends_with_the_same_bytes(
    small_run: SmallRun, tmp_path: Path, reports: int
) -> None:
    run = replace(small_run, folder=tmp_path / "run")
    with pytest.raises(Stopped):
        finished(run, StoppingPool(after=reports))
    finished(run)
    assert results(run) == results(small_run)


@pytest.mark.parametrize("stage", [*CHAIN, "dedup", "publish"])
def test_a_lost_commit_is_made_again(small_run: SmallRun, tmp_path: Path, stage: str) -> None:
    run = small_run.copied_to(tmp_path / "run")
    [folder] = (run.folder / "round-000" / STAGES[stage].table).iterdir()
    (folder / "_commits" / "00001.json").unlink()
    finished(run)
    assert results(run) == results(small_run)


def test_a_later_round_works_with_the_models_of_the_one_before(two_rounds: SmallRun) -> None:
    sections = {"rounds": 2, "train": training(two_rounds.web)}
    first, second = (two_rounds.tables(number, **sections) for number in range(2))
    trained = first.of("train").store.url
    assert second.sources["captioner"].name == f"{trained}/captioner"
    assert second.sources["filter"].name == f"{trained}/filter"
    assert first.plans["index"] == second.plans["index"]
    for stage in ("caption", "score", "select", "dedup", "publish", "train"):
        assert first.plans[stage].digest != second.plans[stage].digest
        assert second.of(stage).store.url.startswith(f"{two_rounds.folder}/round-001/")


def test_a_later_round_writes_other_captions_of_the_same_images(two_rounds: SmallRun) -> None:
    sections = {"rounds": 2, "train": training(two_rounds.web)}
    first, second = (
        rows_of(two_rounds.tables(number, **sections), "caption", Caption) for number in range(2)
    )
    assert [c.key for c in first] == [c.key for c in second]
    assert [c.text for c in first] != [c.text for c in second]


def test_a_later_round_trains_from_scratch(two_rounds: SmallRun) -> None:
    second = two_rounds.tables(1, rounds=2, train=training(two_rounds.web))
    assert set(second.plans["train"].inputs) == {"publish", "human"}


def test_a_later_round_can_go_on_from_what_the_one_before_trained(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    train = {**training(run.web), "continue_from_previous": True}
    finished(run, rounds=2, train=train)
    first, second = (run.tables(number, rounds=2, train=train) for number in range(2))
    assert second.sources["continued"].name == f"{first.of('train').store.url}/blip"
    assert "continued" not in first.plans["train"].inputs
    assert second.plans["train"].inputs["continued"] == second.sources["continued"].digest
    assert second.committed("train")


def test_going_through_a_finished_run_again_changes_nothing(
    two_rounds: SmallRun, tmp_path: Path
) -> None:
    run = two_rounds.copied_to(tmp_path / "run")
    before = files_of(run.folder)
    finished(run, train=training(run.web))
    assert files_of(run.folder) == before


COLLAPSED = {"min_captions": 1, "max_commonest_caption_share": 0.0}
"""A guard that finds every round collapsed: some caption is always the commonest."""


def test_a_collapsed_round_is_not_trained_on_and_its_tables_stay(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    with pytest.raises(CapfiltError, match=r"run: round 0 is not trained on: the commonest"):
        finished(run, rounds=2, train=training(run.web), guard=COLLAPSED)
    assert results(run) == results(small_run)


def test_a_run_that_goes_on_stops_at_the_same_place_for_the_same_reason(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["groups", "dataset", "round.json"])
    lines = []
    for pool in (LocalPool(), IdlePool()):
        with pytest.raises(CapfiltError) as caught:
            finished(run, pool, train=training(run.web), guard=COLLAPSED)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert (run.folder / "round-000" / "round.json").exists()


def test_a_round_that_nobody_trains_on_is_not_stopped(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copied_to(tmp_path / "run")
    assert [f.stage for f in finished(run, guard=COLLAPSED)] == [*CHAIN, "dedup", "publish"]


def test_a_later_round_is_compared_with_the_one_before(
    two_rounds: SmallRun, tmp_path: Path
) -> None:
    run = two_rounds.copied_to(tmp_path / "run")
    sections = {"train": training(run.web), "guard": {"min_captions": 1}}
    first = run.folder / "round-000" / "round.json"
    report = json.loads(first.read_text())
    report["captions"] |= {"vocabulary": 90_000, "words_seen_once": 0}
    first.write_text(json.dumps(report))
    with pytest.raises(CapfiltError, match=r"round 1 .* the vocabulary fell from 90,000 to"):
        finished(run, rounds=2, **sections)


def test_a_second_round_needs_training(small_run: SmallRun) -> None:
    with pytest.raises(CapfiltError, match=r"round 1 needs models trained in round 0; set train"):
        list(bootstrap(small_run.recipe(), LocalPool(), rounds=2))


def test_a_second_round_waits_for_the_first(small_run: SmallRun) -> None:
    with pytest.raises(CapfiltError, match=r"train: 1 of 1 shards .* run `capfilt train` first"):
        small_run.tables(1, train=training(small_run.web))
