"""Tables and plans on disk: what is refused, what stands beside, what needs no model."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import capfilt
from capfilt.errors import CapfiltError, CheckpointError, PlanError, StorageError
from capfilt.lineage import plan_differences
from capfilt.local_pool import LocalPool
from capfilt.stages import caption, select
from capfilt.stages.shards import funnel_of
from capfilt.stages.tables import open_tables
from tests.small_run import IdlePool, SmallRun, files_of, finished, training

OTHER_CAPTIONER = str(Path(capfilt.__file__).parent / "miniature" / "weights" / "captioner")


def test_a_run_that_is_done_is_not_done_again(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copied_to(tmp_path / "run")
    before = files_of(run.folder)
    finished(run, IdlePool())
    assert files_of(run.folder) == before


def test_a_costly_stage_refuses_other_settings_and_shows_the_difference(
    small_run: SmallRun,
) -> None:
    changed = {"caption": {"top_p": 0.5, "prompt": "a photo of "}}
    with pytest.raises(PlanError) as refused:
        caption.job(small_run.recipe(**changed), small_run.tables(**changed))
    lines = str(refused.value).splitlines()
    assert lines[0].endswith("/round-000/captions: caption ran here with other settings:")
    assert lines[1:3] == [
        '  options.prompt: null -> "a photo of "',
        "  options.top_p: 0.9 -> 0.5",
    ]
    assert "on_changed_settings: recompute" in lines[3]


def test_settings_under_which_nothing_was_committed_may_be_changed(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["captions"])
    for sections in ({}, {"caption": {"top_p": 0.5}}):
        run.tables(**sections).begin("caption", recompute=False)
    assert len(list((run.folder / "round-000" / "captions").iterdir())) == 2


@pytest.mark.parametrize("sections", [{"seed": 1}, {"caption": {"model": OTHER_CAPTIONER}}])
def test_a_refusal_leaves_the_run_as_it_was(
    small_run: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, object],
) -> None:
    monkeypatch.chdir(small_run.models)
    run = small_run.copied_to(tmp_path / "run")
    before = files_of(run.folder)
    with pytest.raises(PlanError):
        finished(run, **sections)
    assert files_of(run.folder) == before


def test_recompute_does_a_costly_stage_again_beside_the_old_results(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    before = files_of(run.folder)
    changed = {"caption": {"max_new_tokens": 2}, "on_changed_settings": "recompute"}
    caption.run(run.recipe(**changed), run.tables(**changed), LocalPool())
    after = files_of(run.folder)
    assert {name: after[name] for name in before} == before
    assert len(list((run.folder / "round-000" / "captions").iterdir())) == 2


def test_a_new_threshold_stands_beside_the_old_one(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copied_to(tmp_path / "run")
    strict = {"select": {"min_itm_prob": 1.0, "min_itm_prob_synthetic": 1.0}}
    kept_none = select.run(run.recipe(**strict), run.tables(**strict), LocalPool())
    kept_all = select.run(run.recipe(), run.tables(), IdlePool())
    assert (kept_none.kept, kept_all.kept) == (0, 36)
    assert len(list((run.folder / "round-000" / "verdicts").iterdir())) == 2


def test_deciding_again_needs_no_model(small_run: SmallRun, tmp_path: Path) -> None:
    models = Path(shutil.copytree(small_run.models, tmp_path / "models"))
    run = replace(small_run.copied_to(tmp_path / "run", without=["captions"]), models=models)
    finished(run)  # the models have another name now, and the same content
    shutil.rmtree(models)
    lenient = {"select": {"policy": "best"}}
    funnel = select.run(run.recipe(**lenient), run.tables(**lenient), LocalPool())
    assert funnel.dropped["not_best"] > 0


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"score": {"model": "captioner"}},
            "captioner: is a captioner (BlipForConditionalGeneration), and score.model names it "
            "as the filter; caption.model takes the captioner, score.model the filter",
        ),
        (
            {"caption": {"model": "filter"}, "score": {"model": "captioner"}},
            "filter: is a filter (BlipForImageTextRetrieval), and caption.model names it as the "
            "captioner; caption.model takes the captioner, score.model the filter",
        ),
    ],
)
def test_swapped_models_are_noticed_before_anything_is_done(
    small_run: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, object],
    said: str,
) -> None:
    monkeypatch.chdir(small_run.models)
    run = replace(small_run, folder=tmp_path / "run")
    with pytest.raises(CheckpointError) as refused:
        finished(run, **sections)
    assert str(refused.value) == said
    assert not run.folder.exists()


def test_a_model_that_was_never_there_is_named(small_run: SmallRun, tmp_path: Path) -> None:
    run = replace(small_run, models=tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"none/captioner: no such directory"):
        run.tables()


def test_other_weights_under_the_same_name_are_noticed(small_run: SmallRun, tmp_path: Path) -> None:
    models = Path(shutil.copytree(small_run.models, tmp_path / "models"))
    with (models / "filter" / "model.safetensors").open("ab") as file:
        file.write(b" ")
    old, new = small_run.tables().plans, replace(small_run, models=models).tables().plans
    assert old["caption"] == new["caption"]
    [changed] = plan_differences(old["score"].describe(), new["score"].describe())
    assert changed.startswith("inputs.filter: ")


def test_other_human_pairs_under_the_same_name_are_noticed(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.with_own_web(tmp_path / "web")
    old = run.tables(train=training(run.web)).plans
    content = (run.web / "human.tar").read_bytes()
    (run.web / "human.tar").write_bytes(content.replace(b" a ", b" o ", 1))
    new = run.tables(train=training(run.web)).plans
    assert old["publish"] == new["publish"]
    [changed] = plan_differences(old["train"].describe(), new["train"].describe())
    assert changed.startswith("inputs.human: ")


def test_human_pairs_are_read_again_only_when_their_file_is_written(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run.copied_to(tmp_path / "run").with_own_web(tmp_path / "web")
    sections = {"train": training(run.web)}
    before = run.tables(**sections)
    before.begin("index", recompute=False)
    monkeypatch.setattr("capfilt.stages.tables.contents_digest", lambda name: "read again")
    assert run.tables(**sections).plans == before.plans
    os.utime(run.web / "human.tar")
    assert run.tables(**sections).sources["human"].digest == "read again"


def test_a_stage_asks_for_the_one_before_it(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["00001.json"])
    with pytest.raises(CapfiltError, match=r"score: 1 of 2 shards .*first: 1.*run `capfilt score`"):
        select.run(run.recipe(), run.tables(), LocalPool())


def test_a_missing_shard_is_named(small_run: SmallRun, tmp_path: Path) -> None:
    run = replace(small_run, folder=tmp_path / "run").with_own_web(tmp_path / "web")
    (run.web / "00001.tar").unlink()
    with pytest.raises(StorageError, match=r"1 of 2 shards do not exist: \S*/web/00001\.tar$"):
        finished(run)


def test_a_finished_run_is_decided_on_without_its_web(small_run: SmallRun, tmp_path: Path) -> None:
    run = replace(small_run.copied_to(tmp_path / "run"), web=tmp_path / "gone" / "web")
    run.web.mkdir(parents=True)
    recipe = run.recipe(select={"max_text_chars": 20})
    funnel = select.run(recipe, open_tables(recipe, 0), LocalPool())
    assert funnel.dropped["text_too_long"] > 0


def test_the_plan_is_stored_beside_its_table(small_run: SmallRun) -> None:
    tables = small_run.tables()
    for stage, plan in tables.plans.items():
        stored = json.loads(tables.of(stage).store.read("plan.json"))
        assert stored == plan.describe()
        assert tables.of(stage).store.url.endswith(f"/{plan.folder}")


def test_a_funnel_that_loses_rows_is_an_error(small_run: SmallRun) -> None:
    [first, *_] = small_run.tables().committed("index").values()
    broken = replace(first, kept=first.kept - 1)
    with pytest.raises(CapfiltError, match=r"index: .* 1 unaccounted for"):
        funnel_of("index", [broken], round_=0)
