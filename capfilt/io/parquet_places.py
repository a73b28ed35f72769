"""Where the values of a bytes column lie in a Parquet file, so that each can be read alone.

pyarrow decodes a whole column chunk for one value and does not say where its values lie: 48 ms and
40 MB for one published image of 100 kB, against 0.1 ms by its place. Uncompressed
plain values lie one after the other behind their lengths, like the members of a tar; only the page
headers between them must be read (Thrift's compact protocol; apache/parquet-format,
parquet.thrift). Chunks of any other kind are left to pyarrow, a row group at a time.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import ShardError
from capfilt.io.shards import ShardFile

MAX_GROUP_BYTES = 2**30
"""Of values that pyarrow reads at once; an Arrow array has room for twice as many."""

REWRITE = (
    "write the images with compression='none' and use_dictionary=False and no row without one, "
    "or in row groups of 10, or as tars"
)
"""What to do about images that cannot be read alone."""

HEADER_BYTES = 32 * 1024
"""More than a page header has with its smallest and largest value, of 4 KiB at most in pyarrow."""

LENGTH_BYTES = 4
"""Before each plain value, and before the levels of a version 1 page (Encodings.md)."""

BOOLS, INTS, BINARY, STRUCT = (1, 2), (4, 5, 6), 8, 12
"""Types of fields in Thrift's compact protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A range of a file that is a value, or the row of a row group that pyarrow reads it from."""

    offset: int
    num_bytes: int  # of the value, or of all values of its row group
    row_group: int | None = None  # None: the range is the value
    row: int | None = None  # in the row group


def value_places(file: ShardFile, parquet: pq.ParquetFile, path: str) -> Iterator[Place | None]:
    """Find the values of a column, row by row; None where one is null.

    Args:
        file: the Parquet file, to read lengths from.
        parquet: the same, opened.
        path: of a column of bytes, or of a bytes field in a column of structs.

    Raises:
        ShardError: a row group that only pyarrow can read has more than `MAX_GROUP_BYTES`.
        ValueError: the file is damaged.
        pa.ArrowException: the same.
        OSError: the same.
    """
    position = [parquet.schema.column(i).path for i in range(len(parquet.schema))].index(path)
    has_levels = parquet.schema.column(position).max_definition_level > 0
    for group in range(parquet.num_row_groups):
        chunk = parquet.metadata.row_group(group).column(position)
        has_nulls = chunk.statistics is None or chunk.statistics.null_count != 0  # or may have
        is_stored = chunk.compression == "UNCOMPRESSED" and {*chunk.encodings} <= {"PLAIN", "RLE"}
        if is_stored and not has_nulls:
            yield from _plain_places(file, chunk, has_levels=has_levels)
            continue
        offset, num_bytes = chunk.data_page_offset, chunk.total_uncompressed_size
        if num_bytes > MAX_GROUP_BYTES:
            raise ShardError(f"{file.url}: a row group has {num_bytes / 1e9:.1f} GB; {REWRITE}")
        nulls = group_values(parquet, group, path).is_null().to_pylist() if has_nulls else ()
        missing = {row for row, is_null in enumerate(nulls) if is_null}
        for row in range(chunk.num_values):
            place = Place(offset=offset, num_bytes=num_bytes, row_group=group, row=row)
            yield None if row in missing else place


def group_values(parquet: pq.ParquetFile, group: int, path: str) -> pa.ChunkedArray:
    """Read the values of a column in one row group; raises as pyarrow does."""
    return parquet.read_row_group(group, columns=[path], use_threads=False).flatten()[path]


def _plain_places(
    file: ShardFile, chunk: pq.ColumnChunkMetaData, *, has_levels: bool
) -> Iterator[Place]:
    stop, left = chunk.data_page_offset, chunk.num_values
    while left > 0:
        num_values, start, stop = _page(file, stop, has_levels=has_levels)
        for _ in range(min(num_values, left)):
            num_bytes = _length(file, start)
            yield Place(offset=start + LENGTH_BYTES, num_bytes=num_bytes)
            start += LENGTH_BYTES + num_bytes
        left -= num_values
        if start != stop or left < 0:
            raise ValueError("a page has more or fewer values than its header says")


def _page(file: ShardFile, offset: int, *, has_levels: bool) -> tuple[int, int, int]:
    """The number of values of a page, where they begin, and where it ends."""
    header = io.BytesIO(file.read(offset=offset, num_bytes=HEADER_BYTES))
    try:
        fields = dict(_fields(header))
        body = offset + header.tell()
        stop = body + fields[3,]
        if (8, 1) in fields:  # version 2: the lengths of its levels stand in the header
            num_values, levels = fields[8, 1], fields[8, 5] + fields[8, 6]
        else:
            num_values = fields[5, 1]
            levels = LENGTH_BYTES + _length(file, body) if has_levels else 0
    except (LookupError, OverflowError, RecursionError) as err:
        raise ValueError(f"no page of values at byte {offset}") from err
    if not body + levels <= stop <= file.num_bytes:
        raise ValueError(f"the page at byte {offset} has no end")
    return num_values, body + levels, stop


def _length(file: ShardFile, offset: int) -> int:
    return int.from_bytes(file.read(offset=offset, num_bytes=LENGTH_BYTES), "little")


def _fields(header: io.BytesIO, *outer: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """The numbers in a Thrift struct by the ids of their fields, those of inner structs too."""
    number = 0
    while first := header.read(1)[0]:
        step, kind = divmod(first, 16)
        number = number + step if step else _zigzag(header)
        if kind in INTS:
            yield (*outer, number), _zigzag(header)
        elif kind == STRUCT:
            yield from _fields(header, *outer, number)
        elif kind == BINARY:
            header.read(_varint(header))
        elif kind not in BOOLS:
            raise LookupError(f"no field of a page header is of type {kind}")


def _zigzag(header: io.BytesIO) -> int:
    number = _varint(header)
    return (number >> 1) ^ -(number & 1)


def _varint(header: io.BytesIO) -> int:
    byte = header.read(1)[0]
    return byte if byte < 128 else byte & 127 | _varint(header) << 7
