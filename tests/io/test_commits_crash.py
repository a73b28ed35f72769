"""Table.commit dies at every file operation, and the next try ends as if nothing had happened.

The process dies by `Dying`, which from one operation on lets no other happen: what is on disk then
is what a killed process leaves. `violations` tells what a reader or a retry would see wrong; the
harness itself is tried on writers that are broken on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from capfilt.errors import CapfiltError
from capfilt.io import files
from capfilt.io.commits import Commit, NewFile, Table
from capfilt.io.files import LocalFiles
from capfilt.io.storage import Store

OPERATIONS = ("open", "write", "fsync", "close", "link", "replace", "unlink", "mkdir")
PLAN = "a" * 64
NEW_FILES = (
    NewFile(role="rows", folder="", suffix=".parquet", payload=b"rows" * 99, rows=10),
    NewFile(role="vectors", folder="vectors", suffix=".parquet", payload=b"v" * 321, rows=10),
)


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "os", Dying(10**9))


class Killed(BaseException):
    """The process is dead."""


class Dying:
    """os, until the n-th file operation; a write that kills is half done."""

    def __init__(self, operations_left: int) -> None:
        self.left = operations_left

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        return self._dying(name, real) if name in OPERATIONS else real

    def _dying(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def operate(*args: object, **kwargs: object) -> object:
            self.left -= 1
            if self.left >= 0:
                # A killed process loses nothing that was written: no need to wait for the disk.
                return None if name == "fsync" else real(*args, **kwargs)
            if name == "write" and self.left == -1:
                handle, rest = args
                os.write(handle, rest[: len(rest) // 2])  # type: ignore[arg-type, index]
            if name == "close":  # as the system does for a dead process
                real(*args)
            raise Killed

        return operate


def sound_table(folder: Path) -> Table:
    return Table(Store.at_url(str(folder / "run")), stage="index", round=0, plan=PLAN)


def commit(table: Table) -> Commit:
    return table.commit(3, NEW_FILES, rows_in=12, kept=10, dropped={"bad": 2})


def tree(folder: Path) -> dict[str, bytes]:
    """All files but temporary ones."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if "_tmp" not in p.parts}


def num_operations(folder: Path, make: Callable[[Path], Table]) -> int:
    dying = Dying(10**6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", dying)
        commit(make(folder))
    return 10**6 - dying.left


def crash(folder: Path, make: Callable[[Path], Table], *, at: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", Dying(at))
        with suppress(Killed):  # a try that finds most of the work done may end before
            commit(make(folder))


def violations(
    folder: Path, make: Callable[[Path], Table], schedules: Iterable[tuple[int, ...]]
) -> Iterator[str]:
    """What is wrong after crashing at each operation of a schedule, one crash per try."""
    whole = folder / "whole"
    done = commit(make(whole))
    for number, schedule in enumerate(schedules):
        here = folder / str(number)
        try:
            for at in schedule:
                crash(here, make, at=at)
                if make(here).commits() not in ({}, {3: done}):
                    yield f"{schedule}: a reader saw something else than nothing or all"
            if commit(make(here)) != done or tree(here) != tree(whole):
                yield f"{schedule}: the retry ended with other bytes"
        except CapfiltError as error:
            yield f"{schedule}: {error}"


def every_operation(folder: Path, make: Callable[[Path], Table]) -> list[tuple[int, ...]]:
    return [(at,) for at in range(num_operations(folder / "count", make))]


def test_a_crash_at_any_operation_is_repaired_by_trying_again(tmp_path: Path) -> None:
    schedules = every_operation(tmp_path, sound_table)
    assert len(schedules) > 40
    crash(tmp_path / "first", sound_table, at=len(schedules) - 2)
    assert tree(tmp_path / "first") == tree(tmp_path / "count")  # so the schedules reach the end
    assert list(violations(tmp_path, sound_table, schedules)) == []


@pytest.mark.slow
def test_two_crashes_in_a_row_are_repaired_too(tmp_path: Path) -> None:
    last = num_operations(tmp_path / "count", sound_table)
    schedules = [(first, second) for first in range(0, last, 3) for second in range(0, last, 3)]
    assert list(violations(tmp_path, sound_table, schedules)) == []


def test_readers_see_nothing_until_the_commit_file_and_all_after_it(tmp_path: Path) -> None:
    table = sound_table(tmp_path)
    dying = Dying(10**6)
    seen_at_link = []

    def watched_link(temporary: Path, target: Path) -> None:
        seen_at_link.append(list(sound_table(tmp_path).commits()))
        os.link(temporary, target)

    dying.link = watched_link  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", dying)
        commit(table)
    assert seen_at_link == [[], [], []]
    assert list(table.commits()) == [3]


def test_what_a_killed_process_leaves_is_out_of_sight(tmp_path: Path) -> None:
    num_left = 0
    for (at,) in every_operation(tmp_path, sound_table):
        crash(tmp_path / str(at), sound_table, at=at)
        assert "_tmp" not in sound_table(tmp_path / str(at)).store.names()
        num_left += any((tmp_path / str(at)).rglob("_tmp/*"))
    assert num_left > 3


class CommitFirst(Table):
    """Broken: the commit is there before the data."""

    __slots__ = ()

    def commit(self, shard: int, files: Sequence[NewFile], **counts: Any) -> Commit:
        elsewhere = Table(Store.at_url("memory://elsewhere"), stage="index", round=0, plan=PLAN)
        self._put_commit(elsewhere.commit(shard, files, **counts))
        return Table.commit(self, shard, files, **counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlace(LocalFiles):
    """Broken: files grow under their own names."""

    def create(self, path: str, payload: bytes) -> None:
        target = self.root / path
        self._make_folder(target.parent)
        files._write_durably(target, payload)


def commit_first(folder: Path) -> Table:
    return CommitFirst(sound_table(folder).store, stage="index", round=0, plan=PLAN)


def in_place(folder: Path) -> Table:
    store = Store(root_url=str(folder / "run"), files=InPlace(root=folder / "run"))
    return Table(store, stage="index", round=0, plan=PLAN)


@pytest.mark.parametrize("make", [commit_first, in_place])
def test_the_harness_finds_writers_that_are_broken(
    tmp_path: Path, make: Callable[[Path], Table]
) -> None:
    assert any(violations(tmp_path, make, every_operation(tmp_path, make)))
