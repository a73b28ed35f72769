"""Rows to Parquet bytes and back: schemas from the dataclasses, checksums on every page.

A flipped bit in a Parquet file reads as other data in 4 of 5 cases unless pages carry checksums
and the reader looks at them; here both are always so. The same table gives the same bytes, under
one version of pyarrow (it writes its version into the file). Other readers need nothing special:
version 2.6, zstd, plain lists and structs, row groups small enough to read one at a time.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import StorageError

MAX_ROW_GROUP_BYTES = 64 * 2**20  # of data in memory; readers take a row group at a time
MAX_COMBINED_BYTES = 2**30  # of data in one chunk; Arrow's offsets into bytes end at 2 GiB
ZSTD_LEVEL = 3  # part of the bytes, so part of the format; pyarrow's own default may change
MAX_FOOTER_BYTES = 256 * 2**20  # of strings in a foreign file's footer, before it is refused
MAX_FOOTER_ITEMS = 4_000_000

SCALARS: dict[object, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
    "int32": pa.int32(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "binary": pa.binary(),
    "float32_vector": pa.list_(pa.field("item", pa.float32(), nullable=False)),
}
"""Arrow types by Python type, or by the marker of an `Annotated` type of `records`."""

T = TypeVar("T")


def arrow_schema(record_type: type) -> pa.Schema:
    """The Arrow schema of a table's rows.

    Args:
        record_type: a dataclass of `records`; only `X | None` fields may hold nulls.
    """
    return pa.schema(_arrow_fields(record_type))


def table_from(records: Sequence[T], record_type: type[T]) -> pa.Table:
    """Rows as an Arrow table, in the same order.

    Raises:
        TypeError: a field holds another type than declared, or null where none is allowed.
    """
    columns = []
    for column in arrow_schema(record_type):
        values = [_plain(getattr(record, column.name)) for record in records]
        try:
            columns.append(pa.array(values, type=column.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise TypeError(f"{record_type.__name__}.{column.name}: {error}") from error
        # past 2 GiB of bytes a column comes in chunks
        chunks = columns[-1].chunks if isinstance(columns[-1], pa.ChunkedArray) else columns[-1:]
        if empty := next((name for c in chunks if (name := _forbidden_null(c, column))), None):
            raise TypeError(f"{record_type.__name__}.{column.name}: {empty} holds None")
    return pa.Table.from_arrays(columns, schema=arrow_schema(record_type))


def records_from(table: pa.Table, record_type: type[T]) -> list[T]:
    """The rows of an Arrow table, in the same order, as dataclasses.

    For few rows, or where rows are taken one by one; where they are many, work on columns.
    """
    hints = typing.get_type_hints(record_type, include_extras=True)
    columns = [
        [_typed(value, hint) for value in table.column(name).to_pylist()]
        for name, hint in hints.items()
    ]
    names = list(hints)
    return [record_type(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def to_bytes(table: pa.Table, *, metadata: Mapping[str, str] | None = None) -> bytes:
    """A table as the bytes of a Parquet file, read back once before they are given out.

    Args:
        table: rows and schema; how it is cut into chunks makes no difference.
        metadata: key-value pairs for the footer. With a `huggingface` entry every field becomes
            nullable: `datasets` compares them with its own types, which always are.
    """
    schema = _relaxed(table.schema) if metadata and "huggingface" in metadata else table.schema
    described = pa.Table.from_arrays(
        [_as_type(column, field.type) for column, field in zip(table.columns, schema, strict=True)],
        schema=schema.with_metadata(dict(sorted((metadata or {}).items())) or None),
    )
    sink = pa.BufferOutputStream()
    columns = _column_paths(described.schema)
    with pq.ParquetWriter(
        sink,
        described.schema,
        version="2.6",
        compression={path: "zstd" if packed else "none" for path, packed in columns.items()},
        compression_level={path: ZSTD_LEVEL for path, packed in columns.items() if packed},
        use_dictionary=[path for path, packed in columns.items() if packed],
        write_page_checksum=True,
        store_schema=True,
    ) as writer:
        for piece in _row_groups(described):
            writer.write_table(piece)
    payload: bytes = sink.getvalue().to_pybytes()
    file = open_parquet(pa.BufferReader(payload))
    # one row group at a time: a shard of images is not held in memory twice
    found = sum(file.read_row_group(i).num_rows for i in range(file.num_row_groups))
    assert found == table.num_rows, f"{found} rows read back, {table.num_rows} were written"
    return payload


def from_bytes(
    payload: bytes,
    record_type: type | None,
    columns: Sequence[str] | None = None,
    *,
    where: str = "Parquet bytes",
) -> pa.Table:
    """Read a Parquet file and trust nothing: page checksums, schema and values are checked.

    Args:
        payload: the whole file.
        record_type: whose schema it must have; None for any.
        columns: names to read; None reads all.
        where: what to call it in errors.

    Raises:
        StorageError: it is damaged, has another schema, or holds an extension type.
    """
    try:
        file = open_parquet(pa.BufferReader(payload))
        _check_schema(file.schema_arrow, record_type, where=where)
        if absent := set(columns or ()) - set(file.schema_arrow.names):  # pyarrow would skip them
            raise StorageError(f"{where}: has no columns {sorted(absent)}")
        table = _read(file, None if columns is None else list(columns))
        table.validate(full=True)
        if table.num_rows != file.metadata.num_rows:  # footers have no checksum of their own
            raise ValueError(f"{table.num_rows} rows, {file.metadata.num_rows} were written")
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(
            f"{where}: is damaged or not Parquet ({reason}); restore or redo it"
        ) from error
    return table


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    """Open a Parquet file; checksums are looked at, and a footer that would fill memory refused.

    Raises:
        pa.ArrowException: it is damaged or not Parquet.
        OSError: the same.
    """
    return pq.ParquetFile(
        source,
        page_checksum_verification=True,
        pre_buffer=False,
        thrift_string_size_limit=MAX_FOOTER_BYTES,
        thrift_container_size_limit=MAX_FOOTER_ITEMS,
        arrow_extensions_enabled=False,
    )


def split_optional(hint: object) -> tuple[object, bool]:
    """A type without its `| None`, and whether it had one."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    members = [member for member in get_args(hint) if member is not types.NoneType]
    assert len(members) == 1, f"a field is one type or one type and None, not {hint}"
    return members[0], True


def _read(file: pq.ParquetFile, columns: list[str] | None) -> pa.Table:
    # pyarrow reads no nested column of more than 2 GiB at once, as the images of a shard may be
    groups = range(file.num_row_groups)
    if file.metadata.num_rows == 0:
        return file.read(columns=columns, use_threads=False)
    pieces = (file.read_row_group(i, columns=columns, use_threads=False) for i in groups)
    return pa.concat_tables(pieces)


def _arrow_fields(record_type: type) -> list[pa.Field]:
    hints = typing.get_type_hints(record_type, include_extras=True)
    return [_arrow_field(name, hint) for name, hint in hints.items()]


def _arrow_field(name: str, hint: object) -> pa.Field:
    inner, nullable = split_optional(hint)
    return pa.field(name, _arrow_type(inner), nullable=nullable)


def _arrow_type(hint: object) -> pa.DataType:
    if get_origin(hint) is Annotated:
        return SCALARS[get_args(hint)[1]]
    if get_origin(hint) is Literal:
        return pa.string()
    if get_origin(hint) is tuple:
        return pa.list_(_arrow_field("item", get_args(hint)[0]))
    if isinstance(hint, type) and is_dataclass(hint):
        return pa.struct(_arrow_fields(hint))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return pa.string()
    return SCALARS[hint]


def _plain(value: object) -> object:
    """A field's value as pyarrow takes it: nested dataclasses become dicts."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return [_plain(item) for item in value]
    return value


def _forbidden_null(array: pa.Array, field: pa.Field) -> str | None:
    """Name of a field, this one or one inside, that holds a null and must not."""
    if array.null_count and not field.nullable:
        return str(field.name)
    if pa.types.is_struct(field.type):
        inner = [(array.field(i), field.type.field(i)) for i in range(field.type.num_fields)]
    elif pa.types.is_list(field.type):
        inner = [(array.flatten(), field.type.value_field)]
    else:
        inner = []
    return next((name for pair in inner if (name := _forbidden_null(*pair))), None)


def _typed(value: object, hint: object) -> object:
    """The way back of `_plain`."""
    if value is None:
        return None
    inner, _ = split_optional(hint)
    if get_origin(inner) is Annotated:
        inner = get_args(inner)[0]
    if isinstance(value, list):
        item = get_args(inner)[0]
        return tuple(value if item is float else (_typed(each, item) for each in value))
    if isinstance(value, dict) and isinstance(inner, type):
        hints = typing.get_type_hints(inner, include_extras=True)
        return inner(**{name: _typed(each, hints[name]) for name, each in value.items()})
    if isinstance(inner, type) and issubclass(inner, StrEnum):
        return inner(str(value))
    return value


def _relaxed(schema: pa.Schema) -> pa.Schema:
    """The same fields, each of them nullable, nested ones too."""
    return pa.schema([_relaxed_field(field) for field in schema])


def _relaxed_field(field: pa.Field) -> pa.Field:
    kind = field.type
    if pa.types.is_struct(kind):
        kind = pa.struct([_relaxed_field(inner) for inner in kind])
    elif pa.types.is_list(kind):
        kind = pa.list_(_relaxed_field(kind.value_field))
    return pa.field(field.name, kind)


def _column_paths(schema: pa.Schema) -> dict[str, bool]:
    """The columns of a file, and which of them are compressed: all but bytes.

    Bytes are images, compressed already; as they are, each can be read alone, by its place.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return {
        column.path: column.physical_type != "BYTE_ARRAY" or column.logical_type.type != "NONE"
        for column in (columns.column(i) for i in range(len(columns)))
    }


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


def _row_groups(table: pa.Table) -> Iterator[pa.Table]:
    if table.nbytes <= MAX_COMBINED_BYTES or table.num_rows < 2:
        table = table.combine_chunks()  # so that the cut does not depend on the chunks
    if table.nbytes <= MAX_ROW_GROUP_BYTES or table.num_rows < 2:
        yield table
        return
    half = table.num_rows // 2
    yield from _row_groups(table.slice(0, half))
    yield from _row_groups(table.slice(half))


def _check_schema(found: pa.Schema, record_type: type | None, *, where: str) -> None:
    extensions = [
        field.name for field in found if b"ARROW:extension:name" in (field.metadata or {})
    ]
    if extensions:
        raise StorageError(
            f"{where}: columns {extensions} are of extension types, which may run code; "
            "write them as plain types"
        )
    if record_type is None:
        return
    strict = arrow_schema(record_type)
    if found.equals(strict) or found.equals(_relaxed(strict)):
        return
    expected = {field.name: _spelled(field) for field in strict}
    there = {field.name: _spelled(field) for field in found}
    changed = [
        f"{name}: {there.get(name, 'absent')}, expected {expected.get(name, 'absent')}"
        for name in sorted(expected.keys() | there.keys())
        if there.get(name) != expected.get(name)
    ]
    raise StorageError(
        f"{where}: is not a table of {record_type.__name__}: {'; '.join(changed) or 'order'}; "
        "redo it with this version"
    )


def _spelled(field: pa.Field) -> str:
    return f"{field.type}" if field.nullable else f"{field.type} not null"
