"""Parts of files read in any order, from wherever they lie.

`open_shard` copies a shard that lies elsewhere: right for a stage that reads all of it, in order.
Training meets the images of all shards in any order, so it asks for a range at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import fsspec

from capfilt.errors import ShardError
from capfilt.io.shards import open_shard


class Ranges(Protocol):
    """A file that is read by position, by several threads if need be."""

    def read(self, *, offset: int, num_bytes: int) -> bytes:
        """The bytes at a place.

        Raises:
            ShardError: they cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRanges:
    """A file of an fsspec file system; each read is a request of its own."""

    url: str
    filesystem: fsspec.AbstractFileSystem
    path: str

    def read(self, *, offset: int, num_bytes: int) -> bytes:
        """The bytes at a place.

        Raises:
            ShardError: the store does not answer, or the file is gone.
        """
        try:
            found = self.filesystem.cat_file(self.path, start=offset, end=offset + num_bytes)
        except (OSError, ValueError) as err:
            raise ShardError(f"{self.url}: cannot be read: {err}") from err
        return bytes(found)


def open_ranges(url: str) -> Ranges:
    """Open a file by path or fsspec URL; a local one stays open until nobody holds it.

    Raises:
        ShardError: a local file does not exist, or the kind of storage is not known.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as err:
        raise ShardError(f"{url}: cannot be read: {err}") from err
    protocol = filesystem.protocol
    if "file" in ((protocol,) if isinstance(protocol, str) else protocol):
        return open_shard(url)
    return RemoteRanges(url=url, filesystem=filesystem, path=path)
