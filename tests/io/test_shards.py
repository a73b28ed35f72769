from __future__ import annotations

import gc
import hashlib
import os
import random
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from capfilt.errors import ShardError
from capfilt.io.shards import COPY_BYTES, open_shard
from capfilt.io.tar import TarDamage, write_tar


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "00000.tar"
    path.write_bytes(bytes(range(100)))
    return path


def test_bytes_are_read_where_they_lie(path: Path) -> None:
    shard = open_shard(str(path))
    assert shard.num_bytes == 100
    assert shard.read(offset=10, num_bytes=3) == bytes([10, 11, 12])
    assert shard.read(offset=98, num_bytes=9) == bytes([98, 99])
    assert shard.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_shard_of_another_store_is_copied_without_a_trace(tmp_path: Path) -> None:
    with fsspec.open("memory://shards/1.tar", "wb") as file:
        file.write(b"tar")
    shard = open_shard("memory://shards/1.tar")
    assert shard.read(offset=0, num_bytes=9) == b"tar"
    assert os.fstat(shard.descriptor).st_nlink == 0


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("{folder}/none.tar", "no such file"),
        ("{folder}", "Is a directory"),
        ("memory://none.tar", "no such file"),
        ("nowhere://x.tar", "nowhere"),
    ],
)
def test_a_shard_that_cannot_be_read_is_named_with_the_cause(
    tmp_path: Path, url: str, why: str
) -> None:
    url = url.format(folder=tmp_path)
    with pytest.raises(ShardError, match=f"cannot be read: .*{why}") as error:
        open_shard(url)
    assert str(error.value).startswith(f"{url}: ")


def test_the_members_of_a_shard_are_found_each_time_they_are_asked_for(path: Path) -> None:
    path.write_bytes(write_tar([("a.jpg", b"image"), ("a.txt", b"text")]))
    shard = open_shard(str(path))
    for _ in range(2):
        found = {
            m.name: shard.read(offset=m.offset, num_bytes=m.num_bytes) for m in shard.members()
        }
        assert found == {"a.jpg": b"image", "a.txt": b"text"}


def test_a_shard_may_be_scanned_twice_at_once(path: Path) -> None:
    path.write_bytes(write_tar([(f"{n}.jpg", bytes(9_000)) for n in range(20)]))
    shard = open_shard(str(path))
    pairs = list(zip(shard.members(), shard.members(), strict=True))
    assert [one.name for one, _ in pairs] == [f"{n}.jpg" for n in range(20)]
    assert all(one == other for one, other in pairs)


@pytest.mark.parametrize("num_bytes", [0, 5_000, 100_000, 185_000])
def test_a_shard_cut_while_it_is_scanned_is_damage(path: Path, num_bytes: int) -> None:
    path.write_bytes(write_tar([(f"{n}.jpg", bytes(9_000)) for n in range(20)]))
    shard = open_shard(str(path))
    members = shard.members()
    next(members)
    os.truncate(path, num_bytes)
    with pytest.raises(TarDamage, match="the file was cut"):
        list(members)


def test_a_shard_cut_after_it_was_scanned_gives_fewer_bytes(path: Path) -> None:
    """A mapped file would end the process here."""
    path.write_bytes(write_tar([("a.jpg", b"j" * 50_000)]))
    shard = open_shard(str(path))
    [member] = shard.members()
    os.truncate(path, 10_000)
    assert shard.read(offset=member.offset, num_bytes=member.num_bytes) == b"j" * 9_488


def test_any_sample_is_at_hand_once_a_shard_is_scanned(path: Path) -> None:
    path.write_bytes(write_tar([(f"{n:04d}.jpg", b"%04d" % n * 2_000) for n in range(2_000)]))
    shard = open_shard(str(path))
    members, times = list(shard.members()), []
    for number in random.Random(0).sample(range(2_000), 100):
        start = time.thread_time()
        payload = shard.read(offset=members[number].offset, num_bytes=8_000)
        times.append(time.thread_time() - start)
        assert payload == b"%04d" % number * 2_000
    assert max(times) < 0.010


class CountedStore(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store of one file that counts the ranges asked of it, as S3 and HTTP would see them."""

    protocol = "counted"
    cachable = False
    payload: ClassVar[bytes] = b""
    asked: ClassVar[list[tuple[int, int]]] = []

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.payload), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> CountedFile:
        return CountedFile(self, path, mode, size=len(self.payload))


class CountedFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    def _fetch_range(self, start: int, end: int) -> bytes:
        CountedStore.asked.append((start, end))
        return CountedStore.payload[start:end]


def test_a_store_is_asked_for_large_pieces_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (("jpg", 84_000), ("txt", 40))
    files = [(f"{n:04d}.{e}", bytes(size)) for n in range(250) for e, size in parts]
    fsspec.register_implementation("counted", CountedStore, clobber=True)
    monkeypatch.setattr(CountedStore, "payload", write_tar(files))
    monkeypatch.setattr(CountedStore, "asked", [])
    shard = open_shard("counted://1.tar")
    members = list(shard.members())
    texts = [shard.read(offset=m.offset, num_bytes=m.num_bytes) for m in members[1::2]]
    assert texts == [bytes(40)] * 250
    size, asked = len(CountedStore.payload), CountedStore.asked
    assert len(asked) <= -(-size // COPY_BYTES)
    assert sum(end - start for start, end in asked) == size


def test_a_disk_that_fails_is_the_shards_error_and_no_sample_is_blamed(path: Path) -> None:
    shard = open_shard(str(path))
    os.close(shard.descriptor)
    for read in (lambda: shard.read(offset=0, num_bytes=1), lambda: list(shard.members())):
        with pytest.raises(ShardError, match=r"00000\.tar: cannot be read: Bad file descriptor"):
            read()
    shard.descriptor = os.open(path, os.O_RDONLY)  # to be closed by the shard


def test_closing_twice_is_allowed_and_closes_once(path: Path) -> None:
    shard = open_shard(str(path))
    shard.close()
    taken = os.open(path, os.O_RDONLY)  # most likely the same number
    shard.close()
    os.fstat(taken)
    os.close(taken)


def test_a_shard_nobody_holds_is_closed_without_complaint(path: Path) -> None:
    shard = open_shard(str(path))
    number = shard.descriptor
    cycle: list[object] = [shard]
    cycle.append(cycle)
    del shard, cycle
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
