"""A file seen through a window: short reads that lie near each other cost one read of the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

AHEAD_BYTES = 4096
"""Read at once: the headers, texts and closing padding between two images of a shard."""

ReadAt = Callable[[int, int], bytes]
"""Given a position and a number of bytes: those bytes, fewer only where the file ends."""


class Window:
    """The last piece read of a file.

    Args:
        read_at: reads the file.
    """

    def __init__(self, read_at: ReadAt) -> None:
        self._read_at = read_at
        self._held = b""
        self._start = 0

    def read(self, position: int, num_bytes: int) -> bytes:
        """The bytes at a position; fewer if the file ends there."""
        first = position - self._start
        if first < 0 or first + num_bytes > len(self._held):
            self._held = self._read_at(position, max(num_bytes, AHEAD_BYTES))
            self._start, first = position, 0
        return self._held[first : first + num_bytes]


def stream_reader(stream: BinaryIO) -> ReadAt:
    """Reads a seekable stream by position; not to be shared between threads."""

    def read_at(position: int, num_bytes: int) -> bytes:
        stream.seek(position)
        return stream.read(num_bytes)

    return read_at


def descriptor_reader(descriptor: int) -> ReadAt:
    """Reads an open file by position, whatever other threads read of it.

    The file is not mapped: should somebody cut it meanwhile, a read comes back short, where
    touching a mapped page would end the process (SIGBUS).
    """
    return lambda position, num_bytes: os.pread(descriptor, num_bytes, position)
