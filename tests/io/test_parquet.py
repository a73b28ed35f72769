"""Rows to Parquet and back: types, nulls, checksums, determinism, and what other tools read."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.errors import StorageError
from capfilt.io import parquet
from capfilt.io.parquet import arrow_schema, from_bytes, records_from, table_from, to_bytes
from capfilt.records import (
    TABLES,
    Group,
    ImageVector,
    PublishedImage,
    PublishedSample,
    PublishedText,
    Reason,
    Sample,
    Score,
    Verdict,
)


def score(index: int, **changes: object) -> Score:
    made = Score(
        key=f"{index:032x}", text_source="web", text_index=index, text=f"text {index}",
        logprob=None, itm_prob=0.5, itc_cos=-0.25, num_tokens=3, reason=None, detail=None,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def published(num_texts: int) -> PublishedSample:
    text = PublishedText(
        text="a cat 🐈", text_source="synthetic", text_index=0, itm_prob=0.75, itc_cos=0.5,
        logprob=-3.5, from_key="k",
    )  # fmt: skip
    return PublishedSample(
        key="k", image=PublishedImage(bytes=b"\x89PNG\0", path="k.png"), texts=(text,) * num_texts,
        width_px=1, height_px=2, image_sha256="s", url=None, source_key="a/b", source_shard=3,
        num_duplicates=0, round=1,
    )  # fmt: skip


def round_trip(rows: Sequence[object], record_type: type) -> list[object]:
    payload = to_bytes(table_from(rows, record_type))
    return records_from(from_bytes(payload, record_type), record_type)


@pytest.mark.parametrize("record_type", TABLES.values(), ids=TABLES.keys())
def test_every_table_has_a_schema_and_can_be_empty(record_type: type) -> None:
    assert round_trip([], record_type) == []
    read = from_bytes(to_bytes(table_from([], record_type)), record_type)
    assert read.schema.equals(arrow_schema(record_type))


def test_rows_come_back_as_they_were() -> None:
    rows = [score(0), score(1, reason=Reason.TEXT_EMPTY, itm_prob=None, text="")]
    assert round_trip(rows, Score) == rows


def test_nested_rows_come_back_as_they_were() -> None:
    rows = [published(n) for n in (0, 2, 1)]
    assert round_trip(rows, PublishedSample) == rows
    [group] = round_trip(
        [
            Group(
                key="k", shard=1, representative=None, similarity=None, kept=False,
                reason="no_text_kept", texts=published(1).texts,
            )
        ],
        Group,
    )  # fmt: skip
    assert group.texts == published(1).texts  # type: ignore[attr-defined]


def test_vectors_are_float32_lists() -> None:
    rows = [ImageVector(key=str(i), vector=(0.5, -0.25, float(i))) for i in range(3)]
    assert round_trip(rows, ImageVector) == rows
    assert str(arrow_schema(ImageVector).field("vector").type) == "list<item: float not null>"


def test_markers_choose_the_width_of_numbers() -> None:
    schema = arrow_schema(Sample)
    assert schema.field("shard").type == pa.int32()
    assert schema.field("phash").type == pa.uint64()
    assert schema.field("num_bytes").type == pa.int64()
    assert arrow_schema(Score).field("itm_prob").type == pa.float32()


def test_only_optional_fields_are_nullable() -> None:
    schema = arrow_schema(Score)
    required = ["key", "text_source", "text_index", "audited"]
    assert [f.name for f in schema if not f.nullable] == required


def test_an_enum_is_stored_by_value_and_comes_back() -> None:
    class Colour(StrEnum):
        RED = "red"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Thing:
        colour: Colour
        other: Colour | None

    Thing.__annotations__.update(colour=Colour, other=Colour | None)
    rows = [Thing(colour=Colour.RED, other=None)]
    assert table_from(rows, Thing)["colour"].to_pylist() == ["red"]
    assert round_trip(rows, Thing) == rows


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.none() | st.floats(width=32, allow_nan=False),
            st.integers(-(2**31), 2**31 - 1),
        ),
        max_size=5,
    )
)
def test_any_text_and_number_survives(values: list[tuple[str, float | None, int]]) -> None:
    rows = [
        score(0, text=text, itm_prob=number, text_index=index) for text, number, index in values
    ]
    assert round_trip(rows, Score) == rows


def test_numbers_that_are_not_finite_survive() -> None:
    found = [
        row.itm_prob  # type: ignore[attr-defined]
        for row in round_trip([score(0, itm_prob=x) for x in (math.nan, math.inf, -0.0)], Score)
    ]
    assert math.isnan(found[0])
    assert found[1] == math.inf
    assert math.copysign(1, found[2]) == -1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"key": None}, "Score.key: key holds None"),
        ({"text_index": "one"}, "Score.text_index: "),
        ({"text_index": 2**31}, "Score.text_index: "),
        ({"text": 5}, "Score.text: "),
        ({"text": "\ud800"}, "Score.text: "),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_field(
    changes: dict[str, object], named: str
) -> None:
    with pytest.raises(TypeError, match=named):
        table_from([score(0), score(1, **changes)], Score)


def test_a_null_inside_a_nested_row_is_named_by_field() -> None:
    [text] = published(1).texts
    row = replace(published(1), texts=(replace(text, itc_cos=None),))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"PublishedSample.texts: itc_cos holds None"):
        table_from([row], PublishedSample)


def test_the_same_rows_give_the_same_bytes_however_they_are_chunked() -> None:
    table = table_from([score(i) for i in range(50)], Score)
    pieces = pa.concat_tables([table.slice(0, 7), table.slice(7, 20), table.slice(27)])
    assert to_bytes(pieces) == to_bytes(table)


def test_the_order_of_metadata_does_not_matter() -> None:
    table = table_from([score(0)], Score)
    assert to_bytes(table, metadata={"a": "1", "b": "2"}) == to_bytes(
        table, metadata={"b": "2", "a": "1"}
    )
    assert to_bytes(table) != to_bytes(table, metadata={"a": "1"})


def test_row_groups_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 2000)
    table = table_from([score(i, text="x" * i) for i in range(100)], Score)
    payload = to_bytes(table)
    footer = pq.ParquetFile(io.BytesIO(payload)).metadata
    sizes = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    assert sum(sizes) == 100
    assert len(sizes) >= table.nbytes / 2000
    assert from_bytes(payload, Score).equals(table)


def test_tables_too_large_for_one_chunk_are_cut_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 2000)
    table = table_from([score(i, text="x" * i) for i in range(100)], Score)
    expected = to_bytes(table)
    monkeypatch.setattr(parquet, "MAX_COMBINED_BYTES", 4000)
    chunked = pa.concat_tables([table.slice(0, 37), table.slice(37)])
    assert to_bytes(chunked) == expected


@pytest.mark.long
def test_more_images_than_one_arrow_array_can_hold() -> None:
    image = PublishedImage(bytes=bytes(19_000_000), path="k.png")
    rows = [replace(published(1), key=str(i), image=image) for i in range(116)]
    assert sum(len(row.image.bytes) for row in rows) > 2**31
    payload = to_bytes(table_from(rows, PublishedSample))
    read = from_bytes(payload, PublishedSample, columns=["key", "image"])
    assert read["key"].to_pylist() == [row.key for row in rows]


def test_a_row_larger_than_a_row_group_is_a_row_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 10)
    rows = [score(i) for i in range(3)]
    assert round_trip(rows, Score) == rows


def test_pages_are_zstd_with_checksums() -> None:
    payload = to_bytes(table_from([score(i) for i in range(9)], Score))
    column = pq.ParquetFile(io.BytesIO(payload)).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    at = payload.index(b"\x28\xb5\x2f\xfd") + 12  # inside the first zstd frame
    damaged = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
    with pytest.raises(StorageError, match=r"CRC|crc"):
        from_bytes(damaged, Score)


def test_some_columns_can_be_read_alone() -> None:
    payload = to_bytes(table_from([score(0)], Score))
    assert from_bytes(payload, Score, columns=["text", "key"]).column_names == ["text", "key"]
    with pytest.raises(StorageError, match=r"here: has no columns \['kept'\]"):
        from_bytes(payload, None, columns=["key", "kept"], where="here")


def test_no_flipped_bit_is_read_as_other_data() -> None:
    table = table_from([score(i) for i in range(40)], Score)
    sound, rng = to_bytes(table), random.Random(0)
    num_refused = 0
    for bit in rng.sample(range(len(sound) * 8), 1000):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << (bit % 8)
        try:
            assert from_bytes(bytes(damaged), Score).equals(table)
        except StorageError:
            num_refused += 1
    assert num_refused > 500


def test_a_flipped_number_of_rows_is_refused() -> None:
    # 40 is zigzag 80 (0x50) in the footer: of the file, and of its one row group
    table = table_from([score(i) for i in range(40)], Score)
    sound = to_bytes(table)
    footer = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    for at in (i for i in range(footer, len(sound)) if sound[i] == 0x50):
        damaged = bytearray(sound)
        damaged[at] = 0x10
        try:
            assert from_bytes(bytes(damaged), Score).equals(table)
        except StorageError:
            continue


def test_every_cut_is_refused() -> None:
    sound = to_bytes(table_from([score(i) for i in range(3)], Score))
    for length in range(0, len(sound), 3):
        with pytest.raises(StorageError, match="here: is damaged or not Parquet"):
            from_bytes(sound[:length], Score, where="here")


def test_another_table_is_refused_with_what_differs() -> None:
    payload = to_bytes(table_from([score(0)], Score))
    with pytest.raises(StorageError) as caught:
        from_bytes(payload, Verdict, where="run/x.parquet")
    assert "run/x.parquet: is not a table of Verdict: " in str(caught.value)
    assert "kept: absent, expected bool not null" in str(caught.value)
    assert "itm_prob: float, expected absent" in str(caught.value)


def test_any_table_is_read_if_no_rows_are_named() -> None:
    assert from_bytes(to_bytes(pa.table({"x": [1, 2]})), None)["x"].to_pylist() == [1, 2]


def test_an_extension_type_is_refused() -> None:
    field = pa.field("x", pa.binary(), metadata={"ARROW:extension:name": "evil"})
    payload = to_bytes(pa.table([pa.array([b"1"])], schema=pa.schema([field])))
    with pytest.raises(StorageError, match=r"columns \['x'\] are of extension types"):
        from_bytes(payload, None)


def test_text_that_is_not_utf8_is_refused() -> None:
    raw = pa.array([b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": raw}), sink)
    with pytest.raises(StorageError, match="is damaged"):
        from_bytes(sink.getvalue(), None)


IMAGE_FEATURE = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}


def test_metadata_is_kept_and_fields_become_nullable_for_datasets() -> None:
    payload = to_bytes(table_from([published(1)], PublishedSample), metadata=IMAGE_FEATURE)
    schema = pq.read_schema(io.BytesIO(payload))
    assert schema.metadata[b"huggingface"].decode() == IMAGE_FEATURE["huggingface"]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("image") == pa.field("image", image)
    read = from_bytes(payload, PublishedSample)
    assert records_from(read, PublishedSample) == [published(1)]


@pytest.mark.slow
def test_datasets_sees_images() -> None:
    features = pytest.importorskip("datasets").Features
    payload = to_bytes(table_from([published(1)], PublishedSample), metadata=IMAGE_FEATURE)
    found = features.from_arrow_schema(pq.read_schema(io.BytesIO(payload)))
    assert type(found["image"]).__name__ == "Image"


def test_duckdb_reads_it(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = f"{tmp_path}/x.parquet"
    with open(path, "wb") as stream:
        stream.write(to_bytes(table_from([published(2)], PublishedSample)))
    [row] = duckdb.sql(f"select len(texts), texts[1].text, image.path from '{path}'").fetchall()
    assert row == (2, "a cat 🐈", "k.png")
