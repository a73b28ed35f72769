"""Events are noted beside the tables, and no harm to them is harm to a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from capfilt.io.storage import Store
from capfilt.meter import Effort, Memory, Peak
from capfilt.stages.events import LINES_PER_FILE, EventLog, ShardEvent, new_attempt, read_events
from capfilt.stages.status import run_status
from tests.small_run import IdlePool, SmallRun, files_of, finished

EFFORT = Effort(
    worker="host:1", began_s=1000.0, ended_s=1012.5, busy_s=10.0, waiting_s=2.5, num_images=40,
    flops=2e12, peak=Peak(flops_per_s=1e12, label="CPU"), memory=Memory(host_bytes=2**30),
)  # fmt: skip


def event(shard: int = 0, **changes: object) -> ShardEvent:
    plain = ShardEvent(
        attempt="a", round=0, stage="caption", plan="0123", shard=shard, effort=EFFORT
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at_url(str(tmp_path / "run"))


def test_what_was_noted_is_read_back(store: Store):
    log = EventLog(store, attempt="a")
    bare = dataclasses.replace(EFFORT, flops=None, peak=None, memory=Memory())
    events = [event(0), event(1, effort=bare)]
    for each in events:
        log.note(each)
    log.write()
    assert read_events(store) == events


def test_events_are_on_disk_while_the_run_goes_on(store: Store):
    now_s = [0.0]
    log = EventLog(store, attempt="a", clock=lambda: now_s[0])
    log.note(event(0))
    assert len(read_events(store)) == 1
    log.note(event(1))
    assert len(read_events(store)) == 1  # a write for every shard would be too many
    now_s[0] = 10.0
    log.note(event(2))
    assert len(read_events(store)) == 3


def test_a_long_run_begins_a_new_file_so_that_no_write_grows_without_end(store: Store):
    log = EventLog(store, attempt="a", clock=lambda: 0.0)
    for shard in range(LINES_PER_FILE + 1):
        log.note(event(shard))
    log.write()
    assert store.names("events") == ["a-0000.jsonl", "a-0001.jsonl"]
    assert [e.shard for e in read_events(store)] == list(range(LINES_PER_FILE + 1))


def test_two_attempts_never_share_a_file():
    assert new_attempt() != new_attempt()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe\n", b'{"attempt": 1}\n', b"[]\nnull\n"], ids=repr
)
def test_a_damaged_file_costs_its_lines_and_no_others(store: Store, damage: bytes):
    log = EventLog(store, attempt="b")
    log.note(event())
    log.write()
    store.put("events/a-0000.jsonl", damage)
    assert read_events(store) == [event()]


def test_a_file_that_was_cut_gives_the_lines_before_the_cut(store: Store):
    log = EventLog(store, attempt="a")
    log.note(event(0))
    log.note(event(1))
    log.write()
    store.put("events/a-0000.jsonl", store.read("events/a-0000.jsonl")[:-9])
    assert read_events(store) == [event(0)]


def test_a_run_without_events_has_none(store: Store):
    assert read_events(store) == []


def test_events_that_cannot_be_written_are_missed_once_and_stop_nothing(tmp_path, caplog):
    (tmp_path / "events").write_text("a file where the folder should be")
    store = Store.at_url(str(tmp_path))
    log = EventLog(store, attempt="a", clock=lambda: 0.0)
    for shard in range(3):
        log.note(event(shard))
        log.write()
    assert [m.partition(":")[0] for m in caplog.messages] == ["the speed of this run is not noted"]
    assert read_events(store) == []


def test_a_run_notes_each_shard_of_captioner_and_filter_once(small_run: SmallRun):
    events = read_events(Store.at_url(str(small_run.folder)))
    assert sorted((e.stage, e.shard) for e in events) == [
        ("caption", 0), ("caption", 1), ("score", 0), ("score", 1),
    ]  # fmt: skip
    assert all(0 <= e.effort.waiting_s <= e.effort.busy_s for e in events)
    assert sum(e.effort.num_images for e in events if e.stage == "caption") == 19
    assert all(e.effort.flops and e.effort.peak and e.effort.memory.host_bytes for e in events)


def test_a_run_that_has_nothing_to_do_notes_nothing(small_run: SmallRun, tmp_path: Path):
    run = small_run.copied_to(tmp_path / "run")
    before = files_of(run.folder)
    finished(run, IdlePool())
    assert files_of(run.folder) == before


def test_status_and_a_new_run_do_without_events(small_run: SmallRun, tmp_path: Path):
    run = small_run.copied_to(tmp_path / "run", without=["events"])
    assert all(status.speed is None for status in run_status(run.recipe()))
    finished(run, IdlePool())


def test_events_of_other_settings_are_not_counted(small_run: SmallRun):
    changed = {"caption": {"max_new_tokens": 5}}
    speeds = {s.funnel.stage: s.speed for s in run_status(small_run.recipe(**changed))}
    assert speeds["caption"] is None
    assert {s.funnel.stage for s in run_status(small_run.recipe()) if s.speed} == {
        "caption", "score",
    }  # fmt: skip
