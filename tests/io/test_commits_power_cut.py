"""What Table.commit acknowledged survives a power cut; what it did not is absent or whole.

`Disk` watches the file operations and knows what of them is surely on disk: the bytes of a file
after its fsync, the names in a folder after the folder's. The power may fail after any operation;
what is not sure may then be there or not. Each such state is laid out in a folder of its own and
opened again. Temporary files are left out: nobody reads them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError
from capfilt.io import files
from capfilt.io.commits import Commit, NewFile, Table
from capfilt.io.storage import Store

NEW_FILES = (
    NewFile(role="rows", folder="", suffix=".parquet", payload=b"rows" * 9, rows=10),
    NewFile(role="vectors", folder="vectors", suffix=".parquet", payload=b"v" * 32, rows=10),
)
State = dict[str, bytes]  # path -> content of each file that is left
Names = dict[str, dict[str, int | None]]  # folder -> name -> file, or None for a folder


@dataclass
class Disk:
    """os with a memory of what is on disk and what is not yet."""

    broken_sync: str = ""  # "file" or "folder": a writer that forgets this kind of fsync
    content: list[bytes] = field(default_factory=list)  # by file
    synced: dict[int, bytes] = field(default_factory=dict)
    names: Names = field(default_factory=dict)
    synced_names: Names = field(default_factory=dict)
    handles: dict[int, str] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        handle = os.open(path, flags, mode)
        self.handles[handle] = str(path)
        if flags & os.O_CREAT:
            self.content.append(b"")
            self._enter(path, len(self.content) - 1)
        return handle

    def write(self, handle: int, payload: bytes) -> int:
        written = os.write(handle, payload)
        self.content[self._file(self.handles[handle])] += bytes(payload[:written])
        self._note()
        return written

    def fsync(self, handle: int) -> None:
        path = self.handles[handle]
        kind = "folder" if os.path.isdir(path) else "file"
        if kind == "folder" and kind != self.broken_sync:
            self.synced_names[path] = dict(self.names.get(path, {}))
        if kind == "file" and kind != self.broken_sync:
            self.synced[self._file(path)] = self.content[self._file(path)]
        self._note()

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)
        self._enter(target, self._file(str(source)))

    def unlink(self, path: Path) -> None:
        os.unlink(path)
        del self.names[str(path.parent)][path.name]
        self._note()

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)
        self._enter(path, None)

    def after_power_cut(self) -> Iterator[State]:
        """Names not on disk may be there or not, in any mixture; bytes may be whole or cut."""
        unsure = [
            (folder, name)
            for folder, entries in self.names.items()
            for name in entries
            if name not in self.synced_names.get(folder, {}) and "_tmp" not in f"{folder}/{name}"
        ]
        cut = [self.synced.get(i, whole[:-1]) for i, whole in enumerate(self.content)]
        for kept in itertools.product([True, False], repeat=min(len(unsure), 5)):
            lost = {place for place, is_kept in zip(unsure, kept, strict=False) if not is_kept}
            names = {
                folder: {name: n for name, n in entries.items() if (folder, name) not in lost}
                for folder, entries in self.names.items()
            }
            yield dict(reachable(names, self.content))
            yield dict(reachable(names, cut))

    def _file(self, path: str) -> int:
        number = self.names[os.path.dirname(path)][os.path.basename(path)]
        assert number is not None
        return number

    def _enter(self, path: Path, number: int | None) -> None:
        self.names.setdefault(str(path.parent), {})[path.name] = number
        self._note()

    def _note(self) -> None:
        for state in self.after_power_cut():
            if state not in self.states:
                self.states.append(state)


def reachable(names: Names, content: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """Files in folders whose own names, up to the root, are there."""
    for folder, entries in names.items():
        above = [str(path) for path in (Path(folder), *Path(folder).parents)]
        held = [path for path in above if os.path.dirname(path) in names and path != "/"]
        if all(os.path.basename(path) in names[os.path.dirname(path)] for path in held):
            for name, number in entries.items():
                if number is not None and not folder.endswith("_tmp"):
                    yield f"{folder}/{name}", content[number]


def table_in(folder: Path) -> Table:
    return Table(Store.at_url(str(folder / "run")), stage="index", round=0, plan="a" * 64)


def commit(table: Table) -> Commit:
    return table.commit(3, NEW_FILES, rows_in=12, kept=10, dropped={"bad": 2})


def committed_on(disk: Disk, folder: Path) -> Commit:
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", disk)
        return commit(table_in(folder))


def lay_out(state: State, *, of: Path, folder: Path) -> Table:
    for path, content in state.items():
        target = folder / Path(path).relative_to(of)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return table_in(folder)


def violations(folder: Path, *, broken_sync: str = "") -> Iterator[str]:
    """What is wrong in any state that a power cut may leave, during or after a commit."""
    disk = Disk(broken_sync=broken_sync)
    done = committed_on(disk, folder / "disk")
    states = [(state, False) for state in disk.states]
    states += [(state, True) for state in disk.after_power_cut()]
    for number, (state, acknowledged) in enumerate(states):
        table = lay_out(state, of=folder / "disk", folder=folder / str(number))
        try:
            found = table.commits()
            if found != {3: done} and (acknowledged or found):
                yield f"{number}: {found} was found, acknowledged: {acknowledged}"
            if found and [table.read(3, file.role) for file in NEW_FILES] != [
                file.payload for file in NEW_FILES
            ]:
                yield f"{number}: other bytes were found"
            if commit(table) != done:
                yield f"{number}: the retry gave something else"
        except CapfiltError as error:
            yield f"{number}: {error}"


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_the_power_may_fail_at_any_moment(tmp_path: Path) -> None:
    assert list(violations(tmp_path)) == []


def test_only_four_things_can_be_on_disk(tmp_path: Path) -> None:
    disk = Disk()
    committed_on(disk, tmp_path / "disk")
    names = [sorted(Path(path).name[:6] for path in state) for state in disk.states]
    assert names == [
        [],
        ["00003-"],
        ["00003-", "00003-"],
        ["00003-", "00003-", "00003."],
    ]


def test_a_writer_that_forgets_to_sync_leaves_more(tmp_path: Path) -> None:
    disk = Disk(broken_sync="folder")
    committed_on(disk, tmp_path / "disk")
    assert len(disk.states) > 4


@pytest.mark.parametrize("broken_sync", ["file", "folder"])
def test_a_writer_that_forgets_to_sync_is_found(tmp_path: Path, broken_sync: str) -> None:
    assert any(violations(tmp_path, broken_sync=broken_sync))
