"""Shards of pairs: a Parquet file gives what a tar of the same samples gives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.errors import CapfiltError, ShardError
from capfilt.stages import pairs as pairs_module
from capfilt.stages.pairs import ListedPairs, human_texts, list_pairs, read_pairs

HUGGING_FACE = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": b"two", "path": "2.jpg"}]


def listed(path: Path | str, columns: dict[str, object], field: str | None = None) -> ListedPairs:
    """The pairs of human samples that are rows of a Parquet file."""
    with fsspec.open(str(path), "wb") as file:
        pq.write_table(pa.table(columns), file)
    return list_pairs(
        [str(path)],
        partial(human_texts, text_field=field),
        max_text_bytes=99,
        text_column=(field or "caption").partition(".")[0],
    )


def seen(pairs: ListedPairs) -> list[tuple[bytes, str]]:
    return [(pair.image.payload, pair.text) for pair in read_pairs(pairs)]


@pytest.mark.parametrize("images", [HUGGING_FACE, [b"one", b"two"]])
@pytest.mark.parametrize(
    ("column", "field", "texts"),
    [
        ("caption", None, ["a", "b"]),
        ("alt", "alt", ["a", "b"]),
        ("meta", "meta.en", [{"en": "a"}, {"en": "b"}]),
    ],
)
def test_images_and_texts_are_found_in_their_columns(
    tmp_path: Path, images: Sequence[object], column: str, field: str | None,
    texts: Sequence[object],
) -> None:  # fmt: skip
    pairs = listed(tmp_path / "a.parquet", {"image": images, column: texts, "other": [1, 2]}, field)
    assert seen(pairs) == [(b"one", "a"), (b"two", "b")]


def test_a_list_of_texts_is_a_pair_each_of_one_image(tmp_path: Path) -> None:
    pairs = listed(tmp_path / "a.parquet", {"image": HUGGING_FACE, "caption": [["a", "b"], ["c"]]})
    assert seen(pairs) == [(b"one", "a"), (b"one", "b"), (b"two", "c")]
    assert len({pair.image.key for pair in read_pairs(pairs)}) == 2


def test_a_file_that_lies_elsewhere_is_read_where_it_is() -> None:
    columns = {"image": HUGGING_FACE, "caption": ["a", "b"]}
    assert seen(listed("memory://pair-shards/a.parquet", columns)) == [(b"one", "a"), (b"two", "b")]


@pytest.mark.parametrize(("codec", "num_lines"), [("snappy", 1), ("none", 0)])
def test_images_that_cost_a_large_row_group_each_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, num_lines: int
) -> None:
    path = tmp_path / "a.parquet"
    images = [random.Random(i).randbytes(300_000) for i in range(8)]
    table = pa.table({"image": images, "caption": ["a"] * 8})
    pq.write_table(table, path, compression=codec, use_dictionary=False)
    pairs = list_pairs([str(path)], partial(human_texts, text_field=None), max_text_bytes=9,
                       text_column="caption")  # fmt: skip
    assert [pair.image.payload for pair in read_pairs(pairs)] == images
    told = [line for line in caplog.messages if "an image costs 2.4 MB to read; write" in line]
    assert len(told) == num_lines


def test_rows_without_an_image_or_a_text_are_counted(tmp_path: Path) -> None:
    columns = {
        "image": [{"bytes": None, "path": "elsewhere.jpg"}, None, *HUGGING_FACE, HUGGING_FACE[0]],
        "caption": ["a", "b", None, " ", "c"],
    }
    pairs = listed(tmp_path / "a.parquet", columns)
    assert pairs.lost == {"image_missing": 2, "text_missing": 2}
    assert seen(pairs) == [(b"one", "c")]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [b"1"], "alt": ["a"], "title": ["b"]},
         r"no column 'caption'; set train\.human_text_field to one of 'alt', 'title'"),
        ({"jpg": [b"1"], "caption": ["a"]}, r"are 'jpg' \(binary\), 'caption' \(string\), and"),
        ({"image": ["1.jpg"], "caption": ["a"]}, r"a column 'image' of bytes, or of structs"),
    ],
)  # fmt: skip
def test_other_columns_are_told_in_one_line(
    tmp_path: Path, columns: dict[str, object], said: str
) -> None:
    with pytest.raises(CapfiltError, match=said) as caught:
        listed(tmp_path / "a.parquet", columns)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_cut", [1, 40])
def test_a_damaged_file_is_named(tmp_path: Path, num_cut: int) -> None:
    path = tmp_path / "a.parquet"
    listed(path, {"image": HUGGING_FACE, "caption": ["a", "b"]})
    path.write_bytes(path.read_bytes()[:-num_cut])
    with pytest.raises(ShardError, match=r"a\.parquet: damaged, or no Parquet file: "):
        list_pairs([str(path)], lambda _: [], max_text_bytes=9, text_column="caption")


@pytest.mark.parametrize("payload", [bytes(2000), b""])
def test_a_file_that_changed_after_the_listing_is_told(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "a.parquet"
    pairs = read_pairs(listed(path, {"image": HUGGING_FACE, "caption": ["a", "b"]}))
    path.write_bytes(payload)
    with pytest.raises(ShardError, match=r"a\.parquet: damaged, or no Parquet file: ") as caught:
        pairs[0]
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ShardError, match=r"a\.parquet: .*No such file"):
        pairs[0]


def test_a_row_group_is_read_once_for_all_its_images(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pairs = read_pairs(listed(path, {"image": HUGGING_FACE, "caption": ["a", "b"]}))
    assert pairs[0].image.payload == b"one"
    path.unlink()
    assert pairs[1].image.payload == b"two"


def test_no_more_row_groups_are_kept_than_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    images = [bytes([i]) * 1000 for i in range(3)]
    table = pa.table({"image": images, "caption": ["a"] * 3})
    pq.write_table(table, path, use_dictionary=False, row_group_size=1)
    listing = list_pairs([str(path)], partial(human_texts, text_field=None), max_text_bytes=9,
                         text_column="caption")  # fmt: skip
    largest = max(listing.places["num_bytes"].to_pylist())
    monkeypatch.setattr(pairs_module, "MAX_GROUP_BYTES", 2 * largest)
    pairs = read_pairs(listing)
    assert [pair.image.payload for pair in pairs] == images
    path.unlink()
    assert [pairs[i].image.payload for i in (1, 2)] == images[1:]
    with pytest.raises(ShardError):
        pairs[0]
