"""Places in Parquet files: whatever wrote them, the bytes there are those pyarrow reads."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.errors import ShardError
from capfilt.io import parquet_places
from capfilt.io.parquet import table_from, to_bytes
from capfilt.io.parquet_places import Place, group_values, value_places
from capfilt.io.shards import ShardFile, open_shard
from capfilt.records import PublishedImage, PublishedSample

PLAIN = {"compression": "none", "use_dictionary": False}


def images() -> list[bytes | None]:
    """Some empty, some larger than a page, some there twice."""
    rng = random.Random(0)
    some = [rng.randbytes(rng.choice([0, 5, 700, 5000])) for _ in range(60)]
    return [*some, *some[:9]]


def structs(values: Sequence[bytes | None]) -> list[object]:
    return [{"bytes": value, "path": "p"} for value in values]


def written(path: Path, rows: Sequence[object], **options: object) -> str:
    """A Parquet file of several pages and two row groups."""
    pq.write_table(pa.table({"image": rows}), path, data_page_size=4000, write_batch_size=3,
                   row_group_size=50, **options)  # fmt: skip
    return str(path)


def places_in(url: str, column: str) -> list[Place | None]:
    return list(value_places(open_shard(url), pq.ParquetFile(url), column))


def values_at(url: str, places: Sequence[Place | None], column: str) -> list[bytes | None]:
    file, parquet = open_shard(url), pq.ParquetFile(url)
    groups = [group_values(parquet, i, column).to_pylist() for i in range(parquet.num_row_groups)]
    return [
        None if place is None
        else file.read(offset=place.offset, num_bytes=place.num_bytes) if place.row_group is None
        else groups[place.row_group][place.row or 0]
        for place in places
    ]  # fmt: skip


def check(url: str, column: str, expected: Sequence[bytes | None], *, alone: bool) -> None:
    """Every value is found as it was written, and is read alone or is not."""
    places = places_in(url, column)
    assert values_at(url, places, column) == expected
    assert [place is None for place in places] == [value is None for value in expected]
    assert {place.row_group is None for place in places if place} == {alone}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_plain_values_are_read_alone(tmp_path: Path, version: str) -> None:
    options = {**PLAIN, "data_page_version": version, "write_page_checksum": True}
    plain = written(tmp_path / "plain.parquet", images(), **options)
    check(plain, "image", images(), alone=True)
    nested = written(tmp_path / "nested.parquet", structs(images()), **options)
    check(nested, "image.bytes", images(), alone=True)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_column_without_levels_is_read_alone(tmp_path: Path, version: str) -> None:
    schema = pa.schema([pa.field("image", pa.binary(), nullable=False)])
    url = str(tmp_path / "a.parquet")
    values = [b"1", b"", b"333"]
    pq.write_table(pa.table({"image": values}, schema=schema), url, data_page_version=version,
                   **PLAIN)  # fmt: skip
    check(url, "image", values, alone=True)


@pytest.mark.parametrize("column", ["image", "image.bytes"])
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "snappy", "use_dictionary": False},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": True},
        {**PLAIN, "column_encoding": "DELTA_BYTE_ARRAY"},
        {**PLAIN, "write_statistics": False},  # which would say that there are no nulls
    ],
)
def test_all_others_are_read_by_row_group(
    tmp_path: Path, column: str, options: dict[str, object]
) -> None:
    rows = images() if column == "image" else structs(images())
    url = written(tmp_path / "a.parquet", rows, **options)
    check(url, column, images(), alone=False)
    groups = [(place.row_group, place.row) for place in places_in(url, column) if place]
    assert groups == [(0, row) for row in range(50)] + [(1, row) for row in range(19)]


@pytest.mark.parametrize("options", [PLAIN, {"compression": "snappy"}])
def test_nulls_are_found_and_their_row_group_is_read_whole(
    tmp_path: Path, options: dict[str, object]
) -> None:
    expected = images()
    expected[3] = expected[10] = None
    rows = structs(expected)
    rows[10] = None  # of the struct, not of its bytes
    url = written(tmp_path / "a.parquet", rows, **options)
    places = places_in(url, "image.bytes")
    assert values_at(url, places, "image.bytes") == expected
    assert [row for row, place in enumerate(places) if place is None] == [3, 10]
    assert {place.row_group for place in places[:50] if place} == {0}
    bare = written(tmp_path / "b.parquet", expected, **options)
    assert values_at(bare, places_in(bare, "image"), "image") == expected


@dataclass(slots=True)
class Counted(ShardFile):
    """A file that notes how much is read of it."""

    num_read: list[int] = field(default_factory=list)

    def read(self, *, offset: int, num_bytes: int) -> bytes:
        found = ShardFile.read(self, offset=offset, num_bytes=num_bytes)
        self.num_read.append(len(found))
        return found


def published(number: int) -> PublishedSample:
    image = PublishedImage(bytes=random.Random(number).randbytes(100_000), path=f"{number}.jpg")
    return PublishedSample(
        key=f"{number:032x}", image=image, texts=(), width_px=1, height_px=1, image_sha256="",
        url=None, source_key="", source_shard=0, num_duplicates=0, round=0,
    )  # fmt: skip


@pytest.mark.parametrize("metadata", [None, {"huggingface": "{}"}])
def test_published_images_are_read_alone_and_none_is_read_to_list_them(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    rows = [published(i) for i in range(30)]
    path = tmp_path / "a.parquet"
    path.write_bytes(to_bytes(table_from(rows, PublishedSample), metadata=metadata))
    check(str(path), "image.bytes", [row.image.bytes for row in rows], alone=True)
    file = Counted(url=str(path), descriptor=os.open(path, os.O_RDONLY))
    list(value_places(file, pq.ParquetFile(path), "image.bytes"))
    assert sum(file.num_read) < 50_000  # of 3 MB


def test_a_row_group_too_large_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_places, "MAX_GROUP_BYTES", 1000)
    packed = written(tmp_path / "a.parquet", images(), compression="snappy")
    with pytest.raises(ShardError, match=r"a\.parquet: a row group has 0\.0 GB; write the images"):
        places_in(packed, "image")
    assert places_in(written(tmp_path / "b.parquet", images(), **PLAIN), "image")


@pytest.mark.parametrize("number", [2, 9])
def test_a_length_that_does_not_end_with_the_page_is_noticed(tmp_path: Path, number: int) -> None:
    url = written(tmp_path / "a.parquet", [b"abc", b"xyz"], **PLAIN)
    payload = Path(url).read_bytes()
    Path(url).write_bytes(payload.replace(b"\3\0\0\0xyz", bytes([number]) + b"\0\0\0xyz"))
    with pytest.raises(ValueError, match="a page has more or fewer values than its header says"):
        places_in(url, "image")


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"", "no page of values at byte"),  # the file ends there
        (b"\0", "no page of values at byte"),  # no fields
        (b"\x13\1\0", "no page of values at byte"),  # a field of type byte
        (b"\x1c" * 9000, "no page of values at byte"),  # structs in structs
        (b"\x15" + b"\xff" * 9000, "no page of values at byte"),  # a number without an end
        (b"\x35\x28\x2c\x15\x02\0\0" + b"\1\0\0\0" * 9, "has more or fewer values"),
        (b"\x35\x7e\x2c\x15\x02\0\0", "has no end"),
    ],
)
def test_what_is_no_page_is_noticed(tmp_path: Path, header: bytes, why: str) -> None:
    url = written(tmp_path / "a.parquet", [b"abc", b"xyz"], **PLAIN)
    parquet = pq.ParquetFile(pa.BufferReader(Path(url).read_bytes()))
    start = parquet.metadata.row_group(0).column(0).data_page_offset
    Path(url).write_bytes(Path(url).read_bytes()[:start] + header)
    with pytest.raises(ValueError, match=why):
        list(value_places(open_shard(url), parquet, "image"))
