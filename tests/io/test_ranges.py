"""Parts of files elsewhere: a store that is away for a while ends nothing."""

from __future__ import annotations

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from capfilt.errors import ShardError, StoreAwayError
from capfilt.io.ranges import RETRY_AFTER_S, RemoteRanges


class Failing(MemoryFileSystem):
    """A store that fails so many times before it answers."""

    cachable = False
    protocol = "failing"

    def __init__(self, failures: list[Exception]) -> None:
        super().__init__()
        self.failures = failures

    def cat_file(self, path: str, **place: int) -> bytes:
        if self.failures:
            raise self.failures.pop()
        found: bytes = super().cat_file(path, **place)
        return found


def ranges(failures: list[Exception], waits: list[float]) -> RemoteRanges:
    fsspec.filesystem("memory").pipe_file("/ranges/a.tar", b"0123456789")
    return RemoteRanges(
        url="failing://ranges/a.tar",
        filesystem=Failing(failures),
        path="/ranges/a.tar",
        wait=waits.append,
    )


class ClientError(Exception):
    """What some stores raise: no OSError."""


@pytest.mark.parametrize("error", [TimeoutError("slow"), ClientError("503"), OSError("reset")])
def test_a_store_that_is_away_is_asked_again(error: Exception) -> None:
    waits = list[float]()
    assert ranges([error] * 3, waits).read(offset=2, num_bytes=3) == b"234"
    assert waits == [1.0, 5.0, 25.0]


def test_a_store_that_stays_away_is_told_with_its_last_words() -> None:
    waits = list[float]()
    with pytest.raises(StoreAwayError, match=r"^failing://ranges/a\.tar: cannot be read: 503$"):
        ranges([ClientError("503")] * 9, waits).read(offset=0, num_bytes=1)
    assert waits == list(RETRY_AFTER_S)


def test_a_file_that_is_gone_is_told_at_once() -> None:
    waits = list[float]()
    with pytest.raises(ShardError, match="cannot be read: no such key"):
        ranges([FileNotFoundError("no such key")], waits).read(offset=0, num_bytes=1)
    assert waits == []
