"""Batch sizes that a run finds for itself: recorded once, and plain numbers in its plans."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from capfilt.batch_size import Budget, Trial
from capfilt.config import Recipe
from capfilt.errors import CapfiltError, StorageError
from capfilt.io.storage import Store
from capfilt.local_pool import LocalPool
from capfilt.pool import AnyJob, ShardReport, failed_report
from capfilt.records import Caption
from capfilt.runtime.actor import ShardActor
from capfilt.stages import caption, score
from capfilt.stages.loop import bootstrap
from capfilt.stages.status import run_status, tuned_lines
from capfilt.stages.tables import open_tables
from capfilt.stages.tuned import Tuned, record, recorded_sizes, settings_of
from capfilt.stages.tuning import ProbeJob, conclude, tune
from capfilt.suspects import Run
from capfilt.workers.probe import Measured
from tests.small_run import SmallRun, files_of, finished, rows_of

GIB = 2**30
AUTO = {"caption": {"batch_images": "auto"}, "score": {"batch_images": "auto"}}
BUDGET = Budget(available_bytes=10 * GIB, share=0.8, workers=1)


def trial(size: int, *, seconds: float, gib: float) -> Trial:
    return Trial(batch_images=size, seconds=seconds, memory_bytes=int(gib * GIB))


MEASURED = Measured(
    budget=BUDGET,
    trials=(
        trial(2, seconds=0.02, gib=1.0),  # 100 images/s
        trial(4, seconds=0.02, gib=1.2),  # 200
        trial(8, seconds=0.0392, gib=1.6),  # 204
    ),
    ended="larger batches are no faster",
)


def tuned_for(recipe: Recipe, run: SmallRun, stage: str, size: int = 4) -> Tuned:
    role = {"caption": "captioner", "score": "filter"}[stage]
    digest = open_tables(recipe, 0).sources[role].digest
    settings = settings_of(recipe, stage, model=digest)
    found = conclude(MEASURED, stage=stage, settings=settings, device="cpu")
    trials = (*found.trials, trial(size, seconds=0.02, gib=1.2))
    return dataclasses.replace(found, batch_images=size, trials=trials)


@pytest.fixture
def run(small_run: SmallRun, tmp_path: Path) -> SmallRun:
    """A run that has not begun."""
    return dataclasses.replace(small_run, folder=tmp_path / "run")


@pytest.fixture
def store(run: SmallRun) -> Store:
    return Store.at_url(str(run.folder))


class NoPool(LocalPool):
    """A pool for what needs no work."""

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        raise AssertionError("a probe was run")


def test_plans_of_a_tuned_run_are_those_of_a_run_where_the_user_wrote_the_number(run, store):
    recipe = run.recipe(**AUTO)
    record(store, tuned_for(recipe, run, "caption", size=32))
    record(store, tuned_for(recipe, run, "score", size=8))
    written = run.recipe(caption={"batch_images": 32}, score={"batch_images": 8})
    assert open_tables(recipe, 0).plans == open_tables(written, 0).plans


def test_what_is_on_record_is_not_measured_again_whatever_the_device(run, store):
    recipe = run.recipe(**AUTO)
    for stage in ("caption", "score"):
        record(store, tuned_for(recipe, run, stage))
    elsewhere = run.recipe(**AUTO, pool={"device": "cuda", "memory_share": 0.1})
    tables = tune(elsewhere, open_tables(elsewhere, 0), NoPool())
    assert tables.plans["caption"].options["batch_images"] == 4


def test_numbers_in_the_recipe_are_not_measured(run):
    recipe = run.recipe()
    assert tune(recipe, open_tables(recipe, 0), NoPool()).plans == open_tables(recipe, 0).plans


def test_of_two_drivers_the_first_wins_and_the_second_reads_its_size(run, store):
    recipe = run.recipe(**AUTO)
    record(store, tuned_for(recipe, run, "caption", size=4))
    record(store, tuned_for(recipe, run, "caption", size=8))
    assert open_tables(recipe, 0).tuned["caption"].batch_images == 4


def test_another_shape_of_work_is_another_record(run, store):
    record(store, tuned_for(run.recipe(**AUTO), run, "caption"))
    more = run.recipe(caption={"batch_images": "auto", "num_captions": 10})
    other_policy = run.recipe(caption={"batch_images": "auto", "top_p": 0.5})
    assert "caption" not in open_tables(more, 0).tuned
    assert "caption" in open_tables(other_policy, 0).tuned


def test_a_size_that_fits_and_is_nearly_the_fastest_is_concluded(run):
    found = conclude(MEASURED, stage="caption", settings={}, device="cpu")
    assert found.batch_images == 4  # 200 images/s are within 3 % of 204
    assert found.describe() == "caption: 4 images per batch (tuned: 200 images/s, 1.2 of 8.0 GiB)"


def test_a_record_gives_back_what_was_measured(run, store):
    recipe = run.recipe(**AUTO)
    found = tuned_for(recipe, run, "score")
    record(store, found)
    digest = open_tables(recipe, 0).sources["filter"].digest
    assert recorded_sizes(recipe, store, {"captioner": "", "filter": digest}) == {"score": found}


def test_where_nothing_fits_the_error_says_what_to_set():
    measured = Measured(budget=BUDGET, trials=(trial(2, seconds=1, gib=9.1),), ended="")
    with pytest.raises(CapfiltError) as caught:
        conclude(measured, stage="caption", settings={}, device="cuda")
    assert str(caught.value) == (
        "caption: no batch size fits: 2 images take 9.1 GiB, and a worker has 8.0 GiB (0.8 of "
        "10.0 GiB, for 1 worker); raise pool.memory_share, lower pool.caption.workers, or set "
        "caption.batch_images to a number"
    )


def test_a_model_that_does_not_fit_at_all_stops_the_run_before_it_begins(run):
    recipe = run.recipe(**AUTO, pool={"memory_share": 0.001})
    with pytest.raises(CapfiltError, match="caption: no batch size fits: 2 images take"):
        list(bootstrap(recipe, LocalPool(), rounds=1))
    assert open_tables(recipe, 0).tuned == {}


class FailingPool(LocalPool):
    """A pool whose workers die."""

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        yield failed_report(chain[0].stage, 0, "failed twice; last: the worker process died")


def test_a_probe_that_fails_says_what_to_set(run):
    recipe = run.recipe(**AUTO)
    with pytest.raises(CapfiltError) as caught:
        tune(recipe, open_tables(recipe, 0), FailingPool())
    assert str(caught.value) == (
        "caption: the probe for batch_images: auto did not end: failed twice; last: the worker "
        "process died; set caption.batch_images to a number, such as 16"
    )


def test_a_probe_travels_to_an_actor_and_puts_its_size_on_record(run, store):
    recipe = run.recipe(**AUTO)
    source = open_tables(recipe, 0).sources["filter"]
    job = ProbeJob(stage="score", recipe=recipe, round=0, store=store, model=source.name,
                   digest=source.digest)  # fmt: skip
    actor = ShardActor(pickle.loads(pickle.dumps(job)))
    assert actor.build() is None
    outcome = actor.carry_out(0, Run(shard=0))
    assert isinstance(outcome, ShardReport)
    assert open_tables(recipe, 0).tuned["score"].batch_images >= 2


@pytest.mark.parametrize(
    "damage", [lambda text: "{}", lambda text: text.replace('_images":', '_images":7', 1)]
)
def test_a_damaged_record_is_not_guessed_at(run, store, damage):
    recipe = run.recipe(**AUTO)
    record(store, tuned_for(recipe, run, "caption"))
    [file] = (run.folder / "tuning").iterdir()
    file.write_text(damage(file.read_text()))
    with pytest.raises(StorageError, match="cannot be understood; restore it, or set the"):
        open_tables(recipe, 0)


def test_before_a_size_is_found_a_run_has_done_nothing_and_says_so(run):
    recipe = run.recipe(**AUTO)
    assert not any(status.funnel.shards for status in run_status(recipe))
    assert tuned_lines(recipe) == []
    assert not run.folder.exists()


@pytest.fixture(scope="module")
def tuned_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The small run with both sizes found by a real probe."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    run = dataclasses.replace(small_run, folder=folder)
    finished(run, **AUTO)
    return run


@pytest.mark.slow
def test_a_run_that_tunes_itself_makes_the_bytes_of_a_run_with_its_numbers(
    tuned_run: SmallRun, tmp_path: Path
) -> None:
    tuned = open_tables(tuned_run.recipe(**AUTO), 0).tuned
    numbers = {stage: {"batch_images": found.batch_images} for stage, found in tuned.items()}
    assert set(numbers) == {"caption", "score"}
    plain = dataclasses.replace(tuned_run, folder=tmp_path / "plain")
    finished(plain, **numbers)
    assert files_of(tuned_run.folder / "round-000") == files_of(plain.folder / "round-000")


@pytest.mark.slow
def test_a_tuned_run_has_the_texts_of_the_run_with_other_sizes(
    tuned_run: SmallRun, small_run: SmallRun
) -> None:
    def texts(run: SmallRun, **sections: object) -> list[tuple[str, str | None]]:
        rows = rows_of(run.tables(**sections), "caption", Caption)
        return [(row.key, row.text) for row in rows]

    assert texts(tuned_run, **AUTO) == texts(small_run)


@pytest.mark.slow
def test_a_tuned_run_goes_on_without_another_probe_and_tells_its_sizes(
    tuned_run: SmallRun, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tuned_run.recipe(**AUTO)
    caplog.set_level(logging.INFO, logger="capfilt.stages.tuning")
    before = {path: path.read_bytes() for path in (tuned_run.folder / "tuning").iterdir()}
    finished(tuned_run, **AUTO)
    assert {path: path.read_bytes() for path in (tuned_run.folder / "tuning").iterdir()} == before
    assert caplog.messages == tuned_lines(recipe)
    sizes = [found.batch_images for found in open_tables(recipe, 0).tuned.values()]
    assert [line.split(" images")[0] for line in caplog.messages] == [
        f"caption: {sizes[0]}", f"score: {sizes[1]}",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_stage_that_runs_alone_tunes_itself_too(tuned_run: SmallRun, tmp_path: Path) -> None:
    run = tuned_run.copied_to(tmp_path / "run", without=["tuning", "captions", "scores"])
    recipe = run.recipe(**AUTO)
    caption.run(recipe, open_tables(recipe, 0), LocalPool())
    score.run(recipe, open_tables(recipe, 0), LocalPool())
    assert [s.done for s in run_status(recipe) if s.funnel.stage in AUTO] == [True, True]


@pytest.mark.slow
def test_the_record_explains_the_choice(tuned_run: SmallRun) -> None:
    for file in (tuned_run.folder / "tuning").iterdir():
        found = json.loads(file.read_text())
        sizes = [row["batch_images"] for row in found["trials"]]
        assert sizes == [2**i for i in range(1, len(sizes) + 1)]
        assert found["batch_images"] in sizes
        assert found["ended"]
