"""The samples of a shard that training learns from, out of a tar or a Parquet file.

A row of a Parquet file is a sample: column `image` holds its bytes, as Hugging Face's `datasets`
stores them or plainly, and the column its texts are in is read as the json of a tar's sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import CapfiltError, ShardError
from capfilt.io.parquet import open_parquet
from capfilt.io.parquet_places import Place, group_values, value_places
from capfilt.io.shards import ShardFile, open_shard
from capfilt.io.tar import TarDamage, group_samples
from capfilt.stages.index import IMAGE_EXTENSIONS

IMAGE_COLUMN = "image"
"""Of a Parquet file: bytes, or structs with a field `bytes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSample:
    """One sample of a shard."""

    name: str  # unique in the shard
    texts: Mapping[str, bytes]  # text members by extension
    image: Place | None


def samples_of(url: str, *, text_column: str, max_text_bytes: int) -> Iterator[FoundSample]:
    """The samples of a shard; its name says what it is.

    Args:
        url: ends in .parquet, or is a tar.
        text_column: of a Parquet file.
        max_text_bytes: of a .txt or .json member of a tar; a longer one is cut.

    Raises:
        ShardError: the shard is damaged or cannot be read.
        CapfiltError: a Parquet file has other columns.
    """
    file = open_shard(url)
    if url.endswith(".parquet"):
        return _of_parquet(file, text_column)
    return _of_tar(file, max_text_bytes=max_text_bytes)


def row_group_images(url: str, row_group: int) -> pa.ChunkedArray:
    """All images of a row group, for those that do not lie in the file as they are.

    Raises:
        ShardError: the file is damaged, or was changed since its samples were listed.
    """
    with _explained(url), fsspec.open(url, "rb") as stream:
        parquet = open_parquet(pa.PythonFile(stream, mode="r"))
        return group_values(parquet, row_group, _image_path(parquet.schema_arrow, url))


def _of_tar(file: ShardFile, *, max_text_bytes: int) -> Iterator[FoundSample]:
    try:
        samples = group_samples(file.members())
    except TarDamage as err:
        raise ShardError(f"{file.url}: damaged at byte {err.at_byte}: {err.why}") from err
    for sample in samples:
        texts = {
            extension: file.read(
                offset=member.offset, num_bytes=min(member.num_bytes, max_text_bytes)
            )
            for extension, member in sample.members.items()
            if extension in ("txt", "json")
        }
        image = next((sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members), None)
        yield FoundSample(
            name=f"{sample.source_key}/{sample.occurrence}",
            texts=texts,
            image=None if image is None else Place(offset=image.offset, num_bytes=image.num_bytes),
        )


def _of_parquet(file: ShardFile, text_column: str) -> Iterator[FoundSample]:
    with _explained(file.url), os.fdopen(os.dup(file.descriptor), "rb") as stream:
        parquet = open_parquet(pa.PythonFile(stream))
        path = _image_path(parquet.schema_arrow, file.url)
        _check_text_column(parquet.schema_arrow, text_column, file.url)
        members = _text_members(parquet, text_column)
        places = value_places(file, parquet, path)
        for row, (texts, image) in enumerate(zip(members, places, strict=True)):
            yield FoundSample(name=str(row), texts=texts, image=image)


def _text_members(parquet: pq.ParquetFile, column: str) -> Iterator[Mapping[str, bytes]]:
    for batch in parquet.iter_batches(columns=[column], use_threads=False):
        for value in batch.column(0):
            # What json does not know, such as bytes, is no text.
            row = json.dumps({column: value.as_py()}, default=lambda _: None)
            yield {"json": row.encode()}


def _image_path(schema: pa.Schema, url: str) -> str:
    """The path of the column that holds the images' bytes."""
    kind = schema.field(IMAGE_COLUMN).type if IMAGE_COLUMN in schema.names else pa.null()
    if _is_bytes(kind):
        return IMAGE_COLUMN
    if pa.types.is_struct(kind) and any(f.name == "bytes" and _is_bytes(f.type) for f in kind):
        return f"{IMAGE_COLUMN}.bytes"
    raise CapfiltError(
        f"{url}: its columns are {', '.join(f'{f.name!r} ({f.type})' for f in schema)}, and "
        f"training reads images from a column {IMAGE_COLUMN!r} of bytes, or of structs with a "
        "field 'bytes'; name the column so, or set train.human to tars"
    )


def _check_text_column(schema: pa.Schema, column: str, url: str) -> None:
    if column not in schema.names:
        others = [name for name in schema.names if name != IMAGE_COLUMN]
        raise CapfiltError(
            f"{url}: has no column {column!r}; set train.human_text_field to one of "
            f"{', '.join(map(repr, others))}"
        )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as err:
        if isinstance(err, ShardError):
            raise
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise ShardError(f"{url}: damaged, or no Parquet file: {reason}") from err
