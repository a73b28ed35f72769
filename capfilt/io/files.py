"""The kinds of storage a `Store` can stand on, and how each makes a file whole and durable.

    LocalFiles     a folder of this machine, or one mounted into it
    MemoryFiles    memory://, gone with the process: tests and notebooks

Another kind is one more class with the methods of `Files`; in an object store `create` is one
conditional PUT. Failures are plain OSErrors here: `Store` says them in words.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

import fsspec

TEMPORARY_FOLDER = "_tmp"
ABANDONED_AFTER_S = 3600.0
"""Age at which a temporary file has lost its writer: it has that name for seconds, or a minute."""


class Files(Protocol):
    """What a kind of storage must do. Paths are relative, with `/`; failures are OSErrors."""

    def read(self, path: str) -> bytes:
        """All bytes of a file."""
        ...

    def read_range(self, path: str, *, start: int, length: int) -> bytes:
        """Bytes from `start`; fewer than `length` only at the file's end."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A seekable stream, read only."""
        ...

    def size(self, path: str) -> int:
        """Length of a file in bytes."""
        ...

    def names(self, path: str) -> list[str]:
        """Names in a folder, in any order; none if there is no such folder."""
        ...

    def create(self, path: str, payload: bytes) -> None:
        """Make a file whole and durable, or raise FileExistsError if the name is taken."""
        ...

    def replace(self, path: str, payload: bytes) -> None:
        """Make a file whole and durable, in place of any other of that name."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file; folders that are empty then are gone too."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Where other programs find the file, if it is in a file system."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFiles:
    """A folder of a POSIX file system."""

    root: Path

    def read(self, path: str) -> bytes:
        """All bytes of a file."""
        return (self.root / path).read_bytes()

    def read_range(self, path: str, *, start: int, length: int) -> bytes:
        """Bytes from `start`; fewer than `length` only at the file's end."""
        with open(self.root / path, "rb") as stream:
            stream.seek(start)
            return stream.read(length)

    def open(self, path: str) -> BinaryIO:
        """A seekable stream, read only."""
        return open(self.root / path, "rb")

    def size(self, path: str) -> int:
        """Length of a file in bytes."""
        if (self.root / path).is_dir():
            raise FileNotFoundError(errno.ENOENT, "this is a folder")
        return (self.root / path).stat().st_size

    def names(self, path: str) -> list[str]:
        """Names in a folder, in any order; none if there is no such folder."""
        with suppress(FileNotFoundError):
            return [name for name in os.listdir(self.root / path) if name != TEMPORARY_FOLDER]
        return []

    def create(self, path: str, payload: bytes) -> None:
        """Make a file whole and durable, or raise FileExistsError if the name is taken."""
        target = self.root / path
        self._make_folder(target.parent)
        try:
            if target.exists():
                raise FileExistsError(errno.EEXIST, "exists")
            with self._staged(payload) as temporary:
                # link fails if the name is taken; rename would overwrite without a word
                os.link(temporary, target)
        finally:
            # also when the name is taken: its maker may have died before this line
            _sync_folder(target.parent)

    def replace(self, path: str, payload: bytes) -> None:
        """Make a file whole and durable, in place of any other of that name."""
        target = self.root / path
        self._make_folder(target.parent)
        with self._staged(payload) as temporary:
            os.replace(temporary, target)
        _sync_folder(target.parent)

    def remove(self, path: str) -> None:
        """Remove a file; folders that are empty then are gone too."""
        os.unlink(self.root / path)
        with suppress(OSError):  # there are other files
            for folder in Path(path).parents[:-1]:
                os.rmdir(self.root / folder)

    def local_path(self, path: str) -> Path | None:
        """Where other programs find the file."""
        return self.root / path

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, each on disk before anything is put into it."""
        for child in (*reversed(folder.parents), folder):
            # Inside the root also for folders that exist: a dead writer may have made them.
            if self.root in child.parents or not child.exists():
                with suppress(FileExistsError):
                    os.mkdir(child)
                _sync_folder(child.parent)

    @contextmanager
    def _staged(self, payload: bytes) -> Iterator[Path]:
        """A durable file with the payload under a temporary name, gone afterwards."""
        folder = self.root / TEMPORARY_FOLDER
        with suppress(FileExistsError):
            os.mkdir(folder)
        temporary = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            _write_durably(temporary, payload)
            _remove_abandoned(folder, now=temporary.stat().st_mtime)
            yield temporary
        finally:
            with suppress(OSError):
                os.unlink(temporary)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFiles:
    """A folder of fsspec's memory:// file system, which all of this process shares."""

    root: str
    writing: ClassVar[threading.Lock] = threading.Lock()  # makes look-then-write exclusive

    def read(self, path: str) -> bytes:
        """All bytes of a file."""
        return bytes(self._system().cat_file(self._full(path)))

    def read_range(self, path: str, *, start: int, length: int) -> bytes:
        """Bytes from `start`; fewer than `length` only at the file's end."""
        return self.read(path)[start : start + length]

    def open(self, path: str) -> BinaryIO:
        """A seekable stream, read only."""
        stream: BinaryIO = self._system().open(self._full(path), "rb")
        return stream

    def size(self, path: str) -> int:
        """Length of a file in bytes."""
        return len(self.read(path))

    def names(self, path: str) -> list[str]:
        """Names in a folder, in any order; none if there is no such folder."""
        with suppress(FileNotFoundError):
            found = self._system().ls(self._full(path), detail=False)
            return [name.rsplit("/", 1)[-1] for name in found]
        return []

    def create(self, path: str, payload: bytes) -> None:
        """Make a file whole, or raise FileExistsError if the name is taken."""
        with self.writing:
            if self._system().exists(self._full(path)):
                raise FileExistsError(errno.EEXIST, "exists")
            self._system().pipe_file(self._full(path), payload)

    def replace(self, path: str, payload: bytes) -> None:
        """Make a file whole, in place of any other of that name."""
        with self.writing:
            self._system().pipe_file(self._full(path), payload)

    def remove(self, path: str) -> None:
        """Remove a file; folders are but parts of names here."""
        with self.writing:
            self._system().rm_file(self._full(path))

    def local_path(self, path: str) -> Path | None:
        """None: memory is not in a file system."""
        return None

    def _full(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}"

    def _system(self) -> fsspec.AbstractFileSystem:
        return fsspec.filesystem("memory")


def _write_durably(path: Path, payload: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        rest = memoryview(payload)
        while rest:  # a write may take fewer bytes than it was given
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_abandoned(folder: Path, *, now: float) -> None:
    """Remove what killed writers left, on whichever machine they were.

    A writer that was only stopped for so long finds its file gone, and tries again.

    Args:
        folder: of temporary files.
        now: by the clock that dates the files.
    """
    for entry in os.scandir(folder):
        with suppress(OSError):  # another writer was faster
            if now - entry.stat().st_mtime > ABANDONED_AFTER_S:
                os.unlink(entry)


def _sync_folder(folder: Path) -> None:
    """Put the folder's entries on disk: without it a new file's name may not survive."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot, and need not
            raise
    finally:
        os.close(handle)
