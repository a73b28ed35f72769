"""A shard's tar, opened for reading by offset, wherever it lies.

Stages read images by the offsets `index` recorded, in any order and from several threads, so a
tar must be a real local file. One on an object store is copied once, to an unnamed temporary file
that is gone when it is closed or its process dies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import fsspec

from capfilt.errors import ShardError
from capfilt.io.tar import Member, scan_at
from capfilt.io.window import descriptor_reader

COPY_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class ShardFile:
    """An open shard. Use `open_shard`; it is closed when nobody holds it any more.

    Args:
        url: what was opened.
        descriptor: of the open file; this object's own, also when it is part of a garbage cycle
            (a failed shard's traceback), where a file object would complain of not being closed.
    """

    url: str
    descriptor: int
    _closed: bool = field(default=False, repr=False)

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return os.fstat(self.descriptor).st_size

    def members(self) -> Iterator[Member]:
        """The regular files of the tar; see `tar.scan`.

        Raises:
            TarDamage: after the last sound member, if the tar is cut or broken.
            ShardError: the disk fails.
        """
        with _explained(self.url):
            yield from scan_at(descriptor_reader(self.descriptor), end=self.num_bytes)

    def read(self, *, offset: int, num_bytes: int) -> bytes:
        """The bytes at a place; fewer if the file ends there. Thread-safe.

        Raises:
            ShardError: the disk fails; what is read is then no sample's fault.
        """
        try:  # by hand: this is called for every member, and `_explained` costs more than the read
            return os.pread(self.descriptor, num_bytes, offset)
        except OSError as err:
            raise _unreadable(self.url, err) from err

    def sha256(self) -> str:
        """SHA-256 of the whole file, as hex.

        Raises:
            ShardError: the disk fails.
        """
        digest = hashlib.sha256()
        for offset in range(0, self.num_bytes, COPY_BYTES):
            digest.update(self.read(offset=offset, num_bytes=COPY_BYTES))
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        if not self._closed:
            self._closed = True
            os.close(self.descriptor)

    def __del__(self) -> None:
        self.close()


def open_shard(url: str) -> ShardFile:
    """Open a shard by path or fsspec URL.

    Raises:
        ShardError: it does not exist or cannot be read.
    """
    with _explained(url):
        filesystem, path = fsspec.core.url_to_fs(url)
        with _open_local(path) if _is_local(filesystem) else _copy(filesystem, path) as file:
            return ShardFile(url=url, descriptor=os.dup(file.fileno()))


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError, ValueError) as err:
        raise _unreadable(url, err) from err


def _is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _open_local(path: str) -> BinaryIO:
    return Path(path).open("rb")


def _copy(filesystem: fsspec.AbstractFileSystem, path: str) -> BinaryIO:
    scratch = tempfile.TemporaryFile(prefix="capfilt-shard-")
    try:
        with filesystem.open(path, "rb") as source:
            shutil.copyfileobj(source, scratch, COPY_BYTES)
        scratch.flush()
    except BaseException:
        scratch.close()
        raise
    return scratch


def _unreadable(url: str, err: BaseException) -> ShardError:
    return ShardError(f"{url}: cannot be read: {_reason(err)}")


def _reason(err: BaseException) -> str:
    if isinstance(err, FileNotFoundError):
        return "no such file"
    return getattr(err, "strerror", None) or str(err) or type(err).__name__
