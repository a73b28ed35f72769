"""What all stages share: what is asked of a pool for them."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest

from capfilt.stages import dedup, index, select, train
from tests.small_run import SmallRun, training


def test_a_stage_that_works_on_a_whole_round_is_never_out_of_time(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    sections = {"train": training(run.web), "pool": {"shard_timeout_s": 60}}
    recipe, tables = run.recipe(**sections), run.tables(**sections)
    jobs = [stage.job(recipe, tables) for stage in (dedup, train)]
    assert [job.resources.shard_timeout_s for job in jobs] == [math.inf, math.inf]
    assert index.job(recipe, tables).resources.shard_timeout_s == 60


@pytest.mark.parametrize("stage", [select, dedup, train])
def test_a_stage_whose_one_input_is_the_whole_shard_leaves_nothing_out(
    small_run: SmallRun, tmp_path: Path, stage: ModuleType
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    sections = {"train": training(run.web)}
    job = stage.job(run.recipe(**sections), run.tables(**sections))
    assert not job.resources.divisible
