from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path

import fsspec
import pytest

from capfilt.errors import ShardError
from capfilt.io.shards import open_shard
from capfilt.io.tar import write_tar


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
