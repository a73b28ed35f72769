"""Other plans: what a refusal and a hint say of results under other settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError, PlanError
from capfilt.local_pool import LocalPool
from capfilt.stages import index, select
from capfilt.stages.other_plans import in_a_line, shard_changes
from tests.small_run import SmallRun


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (["0", "1"], ["0", "1", "2", "3"], "2 added (first: 2)"),
        (["0", "1"], ["1"], "1 removed (first: 0)"),
        (["0", "1"], ["1", "2"], "1 added (first: 2), 1 removed (first: 0)"),
        (["s3://a/0", "s3://b/0"], ["c/0"], "1 removed (first: 0)"),
        (["0", "1"], ["1", "0"], "the same 2 in another order"),
    ],
)
def test_two_lists_of_shards_differ_by_name(before: list[str], now: list[str], said: str) -> None:
    assert shard_changes(before, now) == said


def test_a_line_names_three_differences_and_shortens_digests() -> None:
    line = f'inputs.index: "{"a" * 64}" -> "{"b" * 64}"'
    assert in_a_line([line]) == f'inputs.index: "{"a" * 12}" -> "{"b" * 12}"'
    assert in_a_line(list("abcde")) == "a, b, c and 2 more"


def test_a_shard_that_came_to_the_pattern_is_named_in_the_refusal(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.with_own_web(tmp_path / "web")
    shutil.copy(run.web / "00001.tar", run.web / "00002.tar")
    wider = {"input": {"shards": f"{run.web}/0*.tar"}}
    with pytest.raises(PlanError) as refused:
        index.job(run.recipe(**wider), run.tables(**wider))
    assert str(refused.value).splitlines()[1] == "  input.shards: 1 added (first: 00002.tar)"


def test_a_run_without_a_list_of_its_shards_is_refused_by_digest(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["shards.json"])
    fewer = {"input": {"shards": f"{run.web}/00000.tar"}}
    with pytest.raises(PlanError, match=r'  inputs\.shards: "[0-9a-f]{64}" -> '):
        index.job(run.recipe(**fewer), run.tables(**fewer))


def test_the_first_stage_that_has_results_elsewhere_only_is_told(small_run: SmallRun) -> None:
    tables = small_run.tables(caption={"top_p": 0.5}, dedup={"exact": False})
    said = "results of caption exist under other settings (-> now): options.top_p: 0.9 -> 0.5"
    assert tables.elsewhere() == said
    assert tables.elsewhere(last="index") is None
    assert small_run.tables().elsewhere() is None


def test_what_was_never_made_is_nowhere(small_run: SmallRun, tmp_path: Path) -> None:
    run = SmallRun(folder=tmp_path / "run", web=small_run.web, models=small_run.models)
    assert run.tables().elsewhere() is None


def test_a_stage_before_its_time_tells_where_the_results_are(small_run: SmallRun) -> None:
    changed = {"score": {"batch_images": 8}}
    with pytest.raises(CapfiltError) as refused:
        select.run(small_run.recipe(**changed), small_run.tables(**changed), LocalPool())
    assert str(refused.value).endswith(
        "run `capfilt score` first; results of score exist under other settings (-> now): "
        "options.batch_images: 4 -> 8"
    )
