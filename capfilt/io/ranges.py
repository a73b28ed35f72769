"""Parts of files read in any order, from wherever they lie.

`open_shard` copies a shard that lies elsewhere: right for a stage that reads all of it, in order.
Training meets the images of all shards in any order, so it asks for a range at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import fsspec

from capfilt.errors import ShardError, StoreAwayError
from capfilt.io.shards import open_shard

RETRY_AFTER_S = (1.0, 5.0, 25.0)
"""Waits before a failed read is tried again: a store that is away for half a minute ends nothing.
s3fs and gcsfs try again for some seconds by themselves; others, such as HTTP's, do not."""

PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)
"""Failures that waiting does not mend."""

log = logging.getLogger(__name__)


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
    """A file of an fsspec file system; each read is a request of its own.

    Args:
        url: what was opened.
        filesystem: where it lies.
        path: its name there.
        wait: sleeps for some seconds.
    """

    url: str
    filesystem: fsspec.AbstractFileSystem
    path: str
    wait: Callable[[float], None] = time.sleep

    def read(self, *, offset: int, num_bytes: int) -> bytes:
        """The bytes at a place.

        Raises:
            StoreAwayError: the store does not answer for half a minute.
            ShardError: the file is gone, or may not be read.
        """
        waits = iter(RETRY_AFTER_S)
        while True:
            try:
                found = self.filesystem.cat_file(self.path, start=offset, end=offset + num_bytes)
            # Those of aiohttp and gcsfs are no OSErrors.
            except Exception as err:
                why = f"{self.url}: cannot be read: {err}"
                if isinstance(err, PERMANENT):
                    raise ShardError(why) from err
                wait_s = next(waits, None)
                if wait_s is None:
                    raise StoreAwayError(why) from err
                log.warning("%s; again in %.0f s", why, wait_s)
                self.wait(wait_s)
            else:
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
