from __future__ import annotations

import hashlib
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from capfilt.errors import StorageError
from capfilt.io.inputs import (
    UrlList,
    contents_digest,
    expand_pattern,
    file_digest,
    pattern_digest,
    pattern_stamp,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (0, 1, 2, 10):
        (tmp_path / f"{number}.tar").write_bytes(b"x" * number)
    return tmp_path


def names(pattern: str) -> list[str]:
    return [shard.url.rsplit("/", 1)[-1] for shard in expand_pattern(pattern)]


def test_braces_name_shards_in_their_own_order(folder: Path) -> None:
    assert names(f"{folder}/{{2..0}}.tar") == ["2.tar", "1.tar", "0.tar"]
    assert names(f"{folder}/{{10,2}}.tar") == ["10.tar", "2.tar"]


def test_a_star_names_shards_in_order_of_name(folder: Path) -> None:
    assert names(f"{folder}/*.tar") == ["0.tar", "1.tar", "10.tar", "2.tar"]


def test_shards_have_their_sizes_and_keep_the_kind_of_url_they_came_with(folder: Path) -> None:
    [plain] = expand_pattern(f"{folder}/10.tar")
    [url] = expand_pattern(f"file://{folder}/1*.tar")[1:]
    assert (plain.url, plain.num_bytes) == (f"{folder}/10.tar", 10)
    assert (url.url, url.num_bytes) == (f"file://{folder}/10.tar", 10)


def test_shards_may_lie_in_any_store() -> None:
    with fsspec.open("memory://web/7.tar", "wb") as file:
        file.write(b"seven")
    assert [(s.url, s.num_bytes) for s in expand_pattern("memory://web/*.tar")] == [
        ("memory:///web/7.tar", 5)
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{folder}/{{0..4}}.tar", r"2 of 5 shards do not exist: \S+/3\.tar, \S+/4\.tar$"),
        ("{folder}/{{20..99}}.tar", r"80 of 80 shards .*/24\.tar, \.\.\.$"),
        ("{folder}/*.zip", r"\*\.zip"),
        ("{folder}/{{0..4.tar", "a brace has no partner"),
        ("{folder}", r"is a folder; name its shards, such as \S+/\*\.tar$"),
        ("nowhere://x.tar", "cannot be read: .*nowhere"),
    ],
)
def test_a_pattern_that_names_no_shards_is_explained(
    folder: Path, pattern: str, message: str
) -> None:
    with pytest.raises(StorageError, match=message):
        expand_pattern(pattern.format(folder=folder))


def test_the_digest_of_a_pattern_counts_names_but_neither_folder_nor_size(folder: Path) -> None:
    before = pattern_digest(f"{folder}/{{0..2}}.tar")
    (folder / "moved").mkdir()
    for number in range(3):
        (folder / f"{number}.tar").rename(folder / "moved" / f"{number}.tar")
    assert pattern_digest(f"{folder}/moved/{{0..2}}.tar") == before
    assert pattern_digest(f"{folder}/moved/{{2..0}}.tar") != before
    (folder / "moved" / "2.tar").write_bytes(b"fetched again, and longer")
    assert pattern_digest(f"{folder}/moved/{{0..2}}.tar") == before
    assert pattern_digest(f"{folder}/moved/{{0..1}}.tar") != before


def test_the_digest_of_a_file_is_its_sha256(folder: Path) -> None:
    assert file_digest(f"{folder}/10.tar") == hashlib.sha256(b"x" * 10).hexdigest()
    with pytest.raises(StorageError, match=r"none\.csv: cannot be read: No such file"):
        file_digest(f"{folder}/none.csv")


def url_list(path: Path, content: bytes | None = None) -> UrlList:
    if content is not None:
        path.write_bytes(content)
    return UrlList(url=str(path), url_column="url", text_column="alt")


def test_rows_of_a_csv_are_taken_as_written(tmp_path: Path) -> None:
    content = b'url,n,alt\nu0,1,007\nu1,2,1.0\nu2,3,"two\nlines"\nu3,4,\nu4,5,NA\n'
    rows = url_list(tmp_path / "a.csv", content)
    assert rows.num_rows() == 5
    assert rows.rows(0, 5).to_pydict() == {
        "url": ["u0", "u1", "u2", "u3", "u4"], "text": ["007", "1.0", "two\nlines", None, "NA"]
    }  # fmt: skip


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, 5), (3, 4), (0, 99), (7, 9), (10, 12)])
def test_a_slice_of_a_parquet_file_runs_across_row_groups(
    tmp_path: Path, start: int, stop: int
) -> None:
    urls = [f"u{i}" for i in range(10)]
    table = pa.table({"alt": [None, *"bcdefghij"], "url": urls})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    rows = url_list(tmp_path / "a.parquet").rows(start, stop).to_pydict()
    assert rows["url"] == urls[start:stop]
    assert rows["text"] == table["alt"].to_pylist()[start:stop]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"url,caption\nu,t\n",
            r"no column 'alt'; set download\.text_column to one of url, caption",
        ),
        ("a.csv", b"url,alt\nu,caf\xe9\n", "not a readable URL list"),
        ("a.parquet", b"PAR1 and no more", "not a readable URL list"),
        ("a.csv", None, "cannot be read: No such file"),
    ],
)
def test_a_url_list_that_cannot_be_read_is_explained(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    with pytest.raises(StorageError, match=message):
        url_list(tmp_path / name, content).num_rows()


def test_a_url_list_whose_texts_are_no_texts_is_explained(tmp_path: Path) -> None:
    table = pa.table({"url": ["u"], "alt": [["a", "b"]]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(StorageError, match=r"a\.parquet: not a readable URL list: .*list"):
        url_list(tmp_path / "a.parquet").rows(0, 1)


def test_a_url_list_with_a_damaged_row_group_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    urls = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(5000)]
    pa.parquet.write_table(pa.table({"url": urls, "alt": urls}), path)
    content = bytearray(path.read_bytes())
    content[4:3000] = b"\xff" * 2996
    path.write_bytes(content)
    assert url_list(path).num_rows() == 5000
    with pytest.raises(StorageError, match=r"a\.parquet: not a readable URL list: "):
        url_list(path).rows(0, 10)


def test_the_digest_of_contents_counts_what_is_in_the_shards_and_not_where_they_are(
    folder: Path,
) -> None:
    before = contents_digest(f"{folder}/{{1..2}}.tar")
    (folder / "moved").mkdir()
    for number in (1, 2):
        (folder / f"{number}.tar").rename(folder / "moved" / f"{number}.tar")
    assert contents_digest(f"{folder}/moved/{{1..2}}.tar") == before
    (folder / "moved" / "2.tar").write_bytes(b"xy")
    assert contents_digest(f"{folder}/moved/{{1..2}}.tar") != before


def test_the_stamp_of_shards_changes_when_one_is_written(folder: Path) -> None:
    before = pattern_stamp(f"{folder}/{{1..2}}.tar")
    assert pattern_stamp(f"{folder}/{{1..2}}.tar") == before
    os.utime(folder / "2.tar", (0, 0))
    assert pattern_stamp(f"{folder}/{{1..2}}.tar") != before
