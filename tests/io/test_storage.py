"""Bytes under a URL: whole, exclusive, durable, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from capfilt.errors import StorageError
from capfilt.io import files
from capfilt.io.storage import MissingError, OccupiedError, Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store.at_url(str(tmp_path / "run"))
        return
    yield Store.at_url("memory://storage-tests/run")
    fsspec.filesystem("memory").rm("/", recursive=True)


class BrokenOs:
    """os, one of whose functions fails or misbehaves."""

    def __init__(self, **functions: object) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> object:
        return self._functions.get(name) or getattr(os, name)


def failing(number: int) -> object:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_put_can_be_read(store: Store) -> None:
    store.put_new("a/b.bin", b"0123456789")
    assert store.read("a/b.bin") == b"0123456789"
    assert store.read_range("a/b.bin", start=3, length=4) == b"3456"
    assert store.size("a/b.bin") == 10
    with store.open("a/b.bin") as stream:
        stream.seek(8)
        assert stream.read() == b"89"


def test_an_empty_file_is_a_file(store: Store) -> None:
    store.put_new("empty", b"")
    assert store.exists("empty")
    assert store.read("empty") == b""


def test_a_child_is_a_folder_below(store: Store) -> None:
    store.child("a", "b").put_new("c", b"x")
    assert store.read("a/b/c") == b"x"
    assert Store.at_url(store.child("a", "b").url).read("c") == b"x"


def test_names_are_sorted_and_temporary_files_are_not_among_them(store: Store) -> None:
    for name in ("b", "a", "c/d"):
        store.put_new(name, b"x")
    assert store.names() == ["a", "b", "c"]
    assert store.names("c") == ["d"]
    assert store.names("nowhere") == []


def test_a_folder_is_not_a_file(store: Store) -> None:
    store.put_new("folder/file", b"x")
    assert not store.exists("folder")
    assert not store.exists("nothing")


def test_putting_the_same_bytes_again_is_fine(store: Store) -> None:
    store.put_new("a", b"same")
    store.put_new("a", b"same")
    assert store.read("a") == b"same"


def test_other_bytes_never_replace_what_has_the_name(store: Store) -> None:
    store.put_new("a", b"first")
    with pytest.raises(FileExistsError, match="a: exists already with other bytes; it is kept"):
        store.put_new("a", b"second")
    assert store.read("a") == b"first"


def test_put_replaces(store: Store) -> None:
    store.put("latest", b"first")
    store.put("latest", b"second")
    assert store.read("latest") == b"second"


def test_what_is_removed_is_gone_with_the_folders_it_leaves_empty(store: Store) -> None:
    store.put("a/b/c", b"1")
    store.put("a/d", b"2")
    store.remove("a/b/c")
    store.remove("a/b/c")
    assert store.names("a") == ["d"]


def test_a_store_can_be_pickled(store: Store) -> None:
    store.put_new("a", b"x")
    assert pickle.loads(pickle.dumps(store.child("b"))) == store.child("b")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"x"


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(OccupiedError("here: taken")))
    assert isinstance(error, OccupiedError)
    assert str(error) == "here: taken"


def test_a_missing_file_is_named_with_the_cure(store: Store) -> None:
    with pytest.raises(MissingError, match=r"run/a/b: cannot read: No such file.*check the path"):
        store.read("a/b")
    assert issubclass(MissingError, StorageError)


def test_a_file_that_ends_early_is_not_read_as_less(store: Store) -> None:
    store.put_new("a", b"12345")
    with pytest.raises(StorageError, match="4 bytes were expected from byte 3 and 2 are there"):
        store.read_range("a", start=3, length=4)


@pytest.mark.parametrize("path", ["/etc/passwd", "../a", "a/../../b", "a/./b", "a\0b"])
def test_no_path_leaves_the_folder(store: Store, path: str) -> None:
    with pytest.raises(StorageError, match="leaves the folder"):
        store.put_new(path, b"x")
    with pytest.raises(StorageError, match="leaves the folder"):
        store.child(path)


def test_of_many_writers_of_one_name_one_wins(store: Store) -> None:
    barrier, lost = threading.Barrier(4), []

    def write(payload: bytes) -> None:
        for number in range(25):
            barrier.wait()
            try:
                store.put_new(f"{number}", payload)
            except OccupiedError:
                lost.append(number)

    threads = [threading.Thread(target=write, args=(bytes([i]) * 999,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lost) == [number for number in range(25) for _ in range(3)]
    assert all(len(set(store.read(f"{number}"))) == 1 for number in range(25))


def test_a_rival_that_comes_between_look_and_link_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at_url(str(tmp_path))

    def link_late(temporary: Path, target: Path) -> None:
        target.write_bytes(b"rival")
        os.link(temporary, target)

    monkeypatch.setattr(files, "os", BrokenOs(link=link_late))
    with pytest.raises(OccupiedError):
        store.put_new("a", b"ours")
    assert store.read("a") == b"rival"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_little(handle: int, rest: memoryview) -> int:
        return os.write(handle, rest[:3])

    monkeypatch.setattr(files, "os", BrokenOs(write=write_little))
    Store.at_url(str(tmp_path)).put_new("a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_full_disk_leaves_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "os", BrokenOs(write=failing(errno.ENOSPC)))
    store = Store.at_url(str(tmp_path))
    with pytest.raises(StorageError) as caught:
        store.put_new("a/b", b"x" * 12345)
    assert str(caught.value) == (
        f"{tmp_path}/a/b: cannot write 12,345 bytes: No space left on device; "
        "free some disk space, then run the same command again"
    )
    assert files_below(tmp_path) == []


def test_a_file_size_limit_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match=r"File too large; raise the file size limit"):
            Store.at_url(str(tmp_path)).put_new("a", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("function", ["open", "write", "fsync", "close", "link", "mkdir"])
def test_a_failing_disk_is_an_error_and_not_a_file(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "os", BrokenOs(**{function: failing(errno.EIO)}))
    with pytest.raises(StorageError, match="a: cannot write 4 bytes: Input/output error; check"):
        Store.at_url(str(tmp_path / "run")).put_new("a", b"1234")
    assert not (tmp_path / "run" / "a").exists()


def test_a_file_system_without_hard_links_is_named_as_the_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "os", BrokenOs(link=failing(errno.EOPNOTSUPP)))
    with pytest.raises(StorageError, match="use a file system that can make hard links"):
        Store.at_url(str(tmp_path)).put_new("a", b"x")


def test_a_folder_that_cannot_be_synced_by_nature_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(files, "os", BrokenOs(fsync=sync))
    Store.at_url(str(tmp_path)).put_new("a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_path_through_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        Store.at_url(str(tmp_path)).put_new("a/b", b"x")


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    store = Store.at_url(f"file://{tmp_path}")
    store.put_new("a", b"x")
    store.put("a", b"y")
    assert files_below(tmp_path) == ["a"]
    assert store.local_path("a") == tmp_path / "a"


def test_memory_has_no_local_path() -> None:
    assert Store.at_url("memory://x").local_path("a") is None


def test_an_unknown_kind_of_storage_is_refused_by_name() -> None:
    with pytest.raises(StorageError, match="s3://bucket/run: storage of kind 's3' is not supp"):
        Store.at_url("s3://bucket/run")


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(StorageError, match=r"options \['anon'\] were given"):
        Store.at_url("/run", anon=True)


def test_what_killed_writers_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    store = Store.at_url(str(tmp_path))
    store.put("a", b"a")
    for name, age_s in (("left-by-the-dead", 2 * files.ABANDONED_AFTER_S), ("being-written", 60)):
        path = tmp_path / "_tmp" / name
        path.write_bytes(b"a shard")
        os.utime(path, (0, path.stat().st_mtime - age_s))
    store.put_new("b", b"b")
    assert [path.name for path in (tmp_path / "_tmp").iterdir()] == ["being-written"]
