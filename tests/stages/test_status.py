"""Status: told by commits alone, whatever else is out of reach."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from capfilt.errors import StorageError
from capfilt.stages.plans import STAGES
from capfilt.stages.status import open_rounds, run_status, training_lines
from tests.small_run import SmallRun, training

IN_A_ROUND = [stage for stage in STAGES if stage not in ("download", "train")]


def test_a_run_that_is_done_is_done_at_every_stage(small_run):
    statuses = run_status(small_run.recipe())
    assert [status.funnel.stage for status in statuses] == IN_A_ROUND
    assert all(status.done for status in statuses)
    assert all(status.funnel.shards == status.shards_total == 2 for status in statuses)


def test_a_run_that_has_not_begun_is_done_at_none_and_stays_unmade(small_run, tmp_path):
    run = SmallRun(folder=tmp_path / "run", web=small_run.web, models=small_run.models)
    statuses = run_status(run.recipe())
    assert [status.funnel.stage for status in statuses] == IN_A_ROUND
    assert not any(status.done for status in statuses)
    assert all((s.funnel.rows_in, s.shards_total) == (0, 2) for s in statuses)
    assert not run.folder.exists()


def test_a_stage_of_which_a_shard_is_missing_is_not_done(small_run, tmp_path):
    run = small_run.copied_to(tmp_path / "run")
    [commit] = (run.folder / "round-000" / "scores").rglob("_commits/00001*")
    commit.unlink()
    status = {s.funnel.stage: s for s in run_status(run.recipe())}
    assert not status["score"].done
    assert (status["score"].funnel.shards, status["score"].shards_total) == (1, 2)
    assert status["caption"].done


def test_what_is_dropped_is_told_by_reason(small_run):
    funnels = {status.funnel.stage: status.funnel for status in run_status(small_run.recipe())}
    assert funnels["index"].rows_in == 24
    assert funnels["index"].kept == 19
    assert funnels["index"].dropped == {
        "image_missing": 2, "image_too_large": 1, "image_too_small": 1, "image_unreadable": 1,
    }  # fmt: skip
    assert all(funnel.remainder == 0 for funnel in funnels.values())


def test_folders_are_where_the_tables_are(small_run):
    for status in run_status(small_run.recipe()):
        assert (Path(status.folder) / "plan.json").is_file()


def test_changed_settings_have_a_status_of_their_own(small_run):
    statuses = run_status(small_run.recipe(select={"min_itm_prob": 0.9}))
    done = {status.funnel.stage: status.done for status in statuses}
    assert done["score"]
    assert not done["select"]
    assert not done["publish"]


def test_a_run_can_be_looked_at_without_its_web(small_run, tmp_path):
    shard = small_run.web / "00001.tar"
    hidden = shutil.move(shard, tmp_path)
    try:
        statuses = run_status(small_run.recipe())
    finally:
        shutil.move(hidden, shard)
    assert all(status.done for status in statuses)


def test_a_web_out_of_reach_is_shown_by_its_pattern(small_run, tmp_path):
    run = SmallRun(folder=tmp_path / "run", web=tmp_path / "none", models=small_run.models)
    statuses = run_status(run.recipe())
    assert {(status.funnel.shards, status.shards_total) for status in statuses} == {(0, 2)}


def test_a_web_that_only_a_listing_could_count_is_an_error(small_run, tmp_path):
    run = SmallRun(folder=tmp_path / "run", web=tmp_path, models=small_run.models)
    with pytest.raises(StorageError, match="1 of 1 shards do not exist"):
        run_status(run.recipe(input={"shards": f"{tmp_path}/none/*.tar"}))


def test_training_is_one_shard_of_the_round(small_run):
    recipe = small_run.recipe(train=training(small_run.web))
    train = run_status(recipe)[-1]
    assert (train.funnel.stage, train.shards_total, train.done) == ("train", 1, False)


def test_a_training_under_way_says_what_it_would_go_on_from(small_run, tmp_path):
    run = small_run.copied_to(tmp_path / "run")
    recipe = run.recipe(train=training(run.web))
    assert training_lines(recipe) == []
    for name in ("pretrain/step-00000024", "captioner/step-00000002", "captioner/step-00000012"):
        path = Path(run.tables(train=training(run.web)).of("train").store.url) / "_progress" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".safetensors").touch()
    assert training_lines(recipe) == ["round 0: train is in phase captioner, on record to step 12"]


def test_a_round_that_waits_for_models_is_not_told(small_run):
    recipe = small_run.recipe(train=training(small_run.web), rounds=3)
    assert [tables.round for tables in open_rounds(recipe)] == [0]
    assert {status.funnel.round for status in run_status(recipe)} == {0}
