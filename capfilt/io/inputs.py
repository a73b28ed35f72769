"""What the user points at: lists of shards written as a pattern, and URL lists."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from braceexpand import braceexpand

from capfilt.errors import StorageError
from capfilt.lineage import text_digest

MAX_NAMED = 5
"""Missing shards named in one message."""

READ_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class InputShard:
    """One shard of the input."""

    url: str
    num_bytes: int
    stamp: str  # changes when the file is written: all that its store tells of it


def expand_pattern(pattern: str) -> list[InputShard]:
    """The shards a pattern names, in the order it names them; `*` sorts by name.

    Args:
        pattern: path or fsspec URL with `{00000..00099}` or `{a,b}` braces, or `*`.

    Raises:
        StorageError: nothing matches, or shards are missing or folders; names the first few.
    """
    shards, missing = [], []
    for name in _names(pattern):
        try:
            shards.extend(_matches(name))
        except FileNotFoundError:
            missing.append(name)
        except (OSError, ValueError, ImportError) as err:
            raise StorageError(f"{name}: cannot be read: {err}") from err
    if missing:
        named = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        count = len(missing) + len(shards)
        raise StorageError(f"{pattern}: {len(missing)} of {count} shards do not exist: {named}")
    return shards


def shard_urls(pattern: str) -> list[str]:
    """The shards a pattern names, whether they are there or not; only `*` looks at the store.

    Raises:
        StorageError: the braces do not match, or nothing matches `*`.
    """
    return [
        url
        for name in _names(pattern)
        for url in ([s.url for s in expand_pattern(name)] if "*" in name else [name])
    ]


def pattern_digest(pattern: str) -> str:
    """SHA-256 over the names of a pattern's shards, folders left out.

    Sizes do not count, so that a damaged shard may be fetched again; `index` records each shard's
    content, and later stages notice an image that is not the one indexed.

    Raises:
        StorageError: as `shard_urls`.
    """
    return text_digest([url.rsplit("/", 1)[-1] for url in shard_urls(pattern)])


def contents_digest(pattern: str) -> str:
    """SHA-256 over the names, folders left out, and the contents of a pattern's shards.

    Raises:
        StorageError: as `expand_pattern`, or a shard cannot be read.
    """
    shards = expand_pattern(pattern)
    return text_digest([f"{s.url.rsplit('/', 1)[-1]} {file_digest(s.url)}" for s in shards])


def pattern_stamp(pattern: str) -> str:
    """What changes when a pattern's shards do, told from their names, sizes and times alone.

    Raises:
        StorageError: as `expand_pattern`.
    """
    return text_digest([f"{shard.url} {shard.stamp}" for shard in expand_pattern(pattern)])


def file_digest(url: str) -> str:
    """SHA-256 of a file's content.

    Raises:
        StorageError: it cannot be read.
    """
    with _opened(url) as file:
        # By hand: not every remote file is one `hashlib.file_digest` takes.
        digest = hashlib.sha256()
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlList:
    """A Parquet or CSV file with one row per image.

    A Parquet file is read in row groups, only those asked for; a CSV as a whole each time, so a
    long list is better a Parquet file.
    """

    url: str
    url_column: str
    text_column: str

    def num_rows(self) -> int:
        """Rows in the file.

        Raises:
            StorageError: the file cannot be read or lacks a column.
        """
        return sum(part.stop - part.start for part in self._parts())

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows [start, stop) as columns `url` and `text`, both nullable strings.

        Raises:
            StorageError: as `num_rows`.
        """
        pieces = [
            part.read().slice(
                max(start - part.start, 0), min(stop, part.stop) - max(start, part.start)
            )
            for part in self._parts()
            if part.start < stop and start < part.stop
        ]
        return pa.concat_tables(pieces) if pieces else _NO_URLS

    def _parts(self) -> Iterator[_Part]:
        """The pieces of the file in order; each can be read while the next is not yet asked for."""
        with _opened(self.url) as file, self._explained():
            yield from self._groups(file) if self.url.endswith(".parquet") else self._csv(file)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as err:  # a damaged page is an OSError to pyarrow
            raise StorageError(f"{self.url}: not a readable URL list: {err}") from err

    def _groups(self, file: BinaryIO) -> Iterator[_Part]:
        parquet = pa.parquet.ParquetFile(file)
        self._check(parquet.schema_arrow.names)
        start = 0
        for group in range(parquet.num_row_groups):
            stop = start + parquet.metadata.row_group(group).num_rows
            yield _Part(start=start, stop=stop, read=partial(self._group, parquet, group))
            start = stop

    def _group(self, parquet: pa.parquet.ParquetFile, group: int) -> pa.Table:
        # Called by `rows`, outside of what `_parts` explains.
        with self._explained():
            return self._renamed(parquet.read_row_group(group, [self.url_column, self.text_column]))

    def _csv(self, file: BinaryIO) -> Iterator[_Part]:
        # Texts stay as they are written: a column of numbers would lose its leading zeros. An empty
        # cell is no text; one that is quoted, an empty text.
        options = pa.csv.ConvertOptions(
            column_types={self.url_column: pa.string(), self.text_column: pa.string()},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        table = pa.csv.read_csv(
            file,
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=options,
        )
        renamed = self._renamed(table)
        yield _Part(start=0, stop=renamed.num_rows, read=lambda: renamed)

    def _renamed(self, table: pa.Table) -> pa.Table:
        self._check(table.column_names)
        columns = (table[self.url_column], table[self.text_column])
        return pa.table([c.cast(pa.string()) for c in columns], schema=_NO_URLS.schema)

    def _check(self, columns: list[str]) -> None:
        for field in ("url_column", "text_column"):
            wanted = getattr(self, field)
            if wanted not in columns:
                raise StorageError(
                    f"{self.url}: has no column {wanted!r}; set download.{field} to one of "
                    f"{', '.join(columns)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Rows [start, stop) of a URL list."""

    start: int
    stop: int
    read: Callable[[], pa.Table]


_NO_URLS = pa.schema([("url", pa.string()), ("text", pa.string())]).empty_table()


def _names(pattern: str) -> list[str]:
    try:
        return list(braceexpand(pattern))
    except ValueError as err:
        raise StorageError(
            f"{pattern}: a brace has no partner; write {{00000..00099}}, or \\{{ for the letter"
        ) from err


def _matches(name: str) -> list[InputShard]:
    filesystem, path = fsspec.core.url_to_fs(name)
    paths = sorted(filesystem.glob(path)) if "*" in path else [path]
    if not paths:
        raise FileNotFoundError(name)
    return [_shard(_url(filesystem, str(p), name), filesystem.info(p)) for p in paths]


def _shard(url: str, info: Mapping[str, Any]) -> InputShard:
    if info["type"] == "directory":
        raise StorageError(f"{url}: is a folder; name its shards, such as {url.rstrip('/')}/*.tar")
    return InputShard(url=url, num_bytes=info["size"], stamp=text_digest([str(info)]))


def _url(filesystem: fsspec.AbstractFileSystem, path: str, name: str) -> str:
    return str(filesystem.unstrip_protocol(path)) if "://" in name else path


@contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    try:
        with fsspec.open(url, "rb") as file:
            yield file
    except (OSError, ValueError, ImportError) as err:
        found = getattr(err, "strerror", None) or str(err)
        raise StorageError(f"{url}: cannot be read: {found}") from err
