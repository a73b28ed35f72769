"""A run that is traced: its spans are those of its events, and its results those of any run."""

from __future__ import annotations

import json

import pytest

from capfilt.io.storage import Store
from capfilt.local_pool import LocalPool
from capfilt.stages.events import read_events
from capfilt.stages.loop import bootstrap
from tests.small_run import SmallRun, files_of

Span = dict[str, object]


@pytest.fixture(scope="module")
def traced(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    folder = tmp_path_factory.mktemp("traced")
    run = SmallRun(folder=folder / "run", web=small_run.web, models=small_run.models)
    recipe = run.recipe(pool={"trace": str(folder / "trace")})
    list(bootstrap(recipe, LocalPool(), rounds=1))
    return run


def spans_of(run: SmallRun, stage: str) -> list[Span]:
    [path] = (run.folder.parent / "trace").glob(f"{stage}-*.json")
    return [event for event in json.loads(path.read_text()) if event["ph"] == "X"]


def total_s(spans: list[Span], name: str) -> float:
    return sum(span["dur"] for span in spans if span["name"] == name) / 1e6


@pytest.mark.parametrize("stage", ["caption", "score"])
def test_each_step_of_a_worker_has_its_spans(traced: SmallRun, stage: str):
    spans = spans_of(traced, stage)
    count = {name: sum(s["name"] == name for s in spans) for name in {s["name"] for s in spans}}
    batches = 5  # of 8 and 11 images, 5 of them at a time in caption and 4 in score
    expected = {
        "read": batches, "decode": batches, "wait for pixels": batches + 2, stage: batches,
        "work": 2, "commit": 2,
    }  # fmt: skip
    assert {name: count[name] for name in expected} == expected
    assert sum(s["args"]["images"] for s in spans if s["name"] == stage) == 19


@pytest.mark.parametrize("stage", ["caption", "score"])
def test_the_spans_add_up_to_the_events(traced: SmallRun, stage: str):
    spans = spans_of(traced, stage)
    events = read_events(Store.at_url(str(traced.folder)))
    efforts = [event.effort for event in events if event.stage == stage]
    assert total_s(spans, "work") == pytest.approx(sum(e.busy_s for e in efforts), abs=0.02)
    waited = sum(e.waiting_s for e in efforts)
    assert total_s(spans, "wait for pixels") == pytest.approx(waited, abs=0.02)


@pytest.mark.parametrize("stage", ["caption", "score"])
def test_the_spans_of_a_thread_lie_in_each_other_or_apart(traced: SmallRun, stage: str):
    spans = spans_of(traced, stage)
    for lane in {span["tid"] for span in spans}:
        own = sorted((s["ts"], -s["dur"]) for s in spans if s["tid"] == lane)
        ends: list[int] = []
        for began, length in own:
            while ends and ends[-1] <= began:
                ends.pop()
            assert not ends or began - length <= ends[-1]
            ends.append(began - length)


def test_measuring_changes_no_byte_of_the_results(traced: SmallRun, small_run: SmallRun):
    assert files_of(traced.folder / "round-000") == files_of(small_run.folder / "round-000")
