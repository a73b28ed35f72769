"""Where bytes live: a folder behind a URL, with writes that are whole, exclusive and durable.

What callers rely on: a file is there whole or not at all, two writers of one name get one winner,
and what was acknowledged survives a power cut. How that is done for each kind of storage is in
`files`; here it gets names, checks and readable errors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from capfilt.errors import StorageError
from capfilt.io.files import Files, LocalFiles, MemoryFiles

RETRY = "look into that, then run the same command again"
CURES = {
    errno.ENOSPC: "free some disk space, then run the same command again",
    errno.EDQUOT: "raise the quota or free some space, then run the same command again",
    errno.EFBIG: "raise the file size limit (ulimit -f), then run the same command again",
    errno.EIO: "check the disk, then run the same command again",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions, and that the file system can make hard links",
    errno.EOPNOTSUPP: "use a file system that can make hard links",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EISDIR: "a file was expected and this is a folder; check the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "use shorter names",
}


class OccupiedError(StorageError, FileExistsError):
    """The name is taken by a file with other bytes."""


class MissingError(StorageError, FileNotFoundError):
    """There is no such file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A folder behind a URL. Small and picklable: it may travel to workers.

    Paths are relative to the folder, with `/` between the parts. A missing file is a
    `MissingError`, any other failure a `StorageError`; both say where, what, and what to do.
    """

    root_url: str
    files: Files
    folder: str = ""  # below the root

    @classmethod
    def at_url(cls, url: str, **options: object) -> Store:
        """The store at a URL: a path, file:// or memory://. Nothing is created yet.

        Raises:
            StorageError: the kind of storage, or an option of it, is not known.
        """
        if options:
            raise StorageError(
                f"{url}: storage options {sorted(options)} were given; this kind takes none"
            )
        scheme, rest = _split_scheme(url)
        match scheme:
            case "" | "file" | "local":
                root = Path(os.path.abspath(os.path.expanduser(rest)))
                return cls(root_url=str(root).rstrip("/"), files=LocalFiles(root=root))
            case "memory":
                root_url = "memory://" + rest.strip("/")
                return cls(root_url=root_url, files=MemoryFiles(root="/" + rest.strip("/")))
        raise StorageError(
            f"{url}: storage of kind {scheme!r} is not supported; "
            "use a local path, a file:// URL, or mount the bucket as a folder"
        )

    @property
    def url(self) -> str:
        """URL of the folder, for messages and for `at_url`."""
        return "/".join(part for part in (self.root_url, self.folder) if part) or "/"

    def child(self, *parts: str) -> Store:
        """The folder below this one; it need not exist."""
        return replace(self, folder=self._path("/".join(parts)))

    def read(self, path: str) -> bytes:
        """All bytes of a file."""
        with self._explained(path, "cannot read"):
            return self.files.read(self._path(path))

    def read_range(self, path: str, *, start: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `start` on.

        Raises:
            StorageError: the file ends before that, or cannot be read.
        """
        with self._explained(path, f"cannot read {length:,} bytes from byte {start:,}"):
            found = self.files.read_range(self._path(path), start=start, length=length)
        if len(found) != length:
            raise StorageError(
                f"{self.url}/{path}: {length:,} bytes were expected from byte {start:,} and "
                f"{len(found):,} are there; the file was cut or changed, restore it"
            )
        return found

    def open(self, path: str) -> BinaryIO:
        """A seekable stream of the file's bytes, read only; the caller closes it."""
        with self._explained(path, "cannot open"):
            return self.files.open(self._path(path))

    def local_path(self, path: str = "") -> Path | None:
        """Where other programs find the file; None if it is not in a file system."""
        return self.files.local_path(self._path(path))

    def exists(self, path: str) -> bool:
        """Whether there is a file of that name."""
        try:
            self.size(path)
        except MissingError:
            return False
        return True

    def size(self, path: str) -> int:
        """Length of a file in bytes."""
        with self._explained(path, "cannot find the size"):
            return self.files.size(self._path(path))

    def names(self, path: str = "") -> list[str]:
        """Sorted names in a folder, for people and for hints.

        A listing may be stale in some stores: what is true of a run is told by its commits.
        """
        with self._explained(path, "cannot list"):
            return sorted(self.files.names(self._path(path)))

    def put_new(self, path: str, payload: bytes) -> None:
        """Create a file: whole, durable, and only if the name is free.

        The same bytes under that name are fine: they are ours, of an earlier try.

        Raises:
            OccupiedError: other bytes have the name (it is a FileExistsError too).
            StorageError: nothing was created, for instance since the disk is full.
        """
        with self._explained(path, f"cannot write {len(payload):,} bytes"):
            try:
                self.files.create(self._path(path), payload)
            except FileExistsError as error:
                if self.files.read(self._path(path)) != payload:
                    raise OccupiedError(
                        f"{self.url}/{path}: exists already with other bytes; it is kept"
                    ) from error

    def put(self, path: str, payload: bytes) -> None:
        """Write a file, whole and durable, in place of what had the name.

        For status and events only: results are never overwritten.
        """
        with self._explained(path, f"cannot write {len(payload):,} bytes"):
            self.files.replace(self._path(path), payload)

    def remove(self, path: str) -> None:
        """Remove a file, and folders that are empty then; one that is gone already is fine.

        For what is no result, such as the progress of a training that is over.
        """
        with self._explained(path, "cannot remove"), suppress(FileNotFoundError):
            self.files.remove(self._path(path))

    def _path(self, path: str) -> str:
        parts = [part for part in path.split("/") if part]
        if path.startswith("/") or ".." in parts or "." in parts or "\0" in path:
            raise StorageError(f"{self.url}: path {path!r} leaves the folder; use a path below it")
        return "/".join([part for part in (self.folder,) if part] + parts)

    @contextmanager
    def _explained(self, path: str, what: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            number = error.errno or (errno.ENOENT if missing else errno.EIO)
            line = f"{self.url}/{path}: {what}: {os.strerror(number)}; {CURES.get(number, RETRY)}"
            raise (MissingError if missing else StorageError)(line) from error


def _split_scheme(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    return (scheme.lower(), rest) if separator else ("", url)
