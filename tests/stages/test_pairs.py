"""Pairs: which texts belong to which image, and which of them are set aside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.io.tar import write_tar
from capfilt.stages.pairs import (
    MAX_OPEN_SHARDS,
    FoundText,
    ListedPairs,
    held_out_split,
    human_texts,
    list_pairs,
    published_texts,
    read_pairs,
)


@pytest.mark.parametrize(
    ("texts", "field", "found"),
    [
        ({"txt": b"a cat"}, None, ["a cat"]),
        ({"txt": b" \n"}, None, []),
        ({"json": b'{"caption": "a cat"}'}, None, ["a cat"]),
        ({"json": b'{"caption": ["a cat", "", "a pet"]}'}, None, ["a cat", "a pet"]),
        ({"json": b'{"meta": {"texts": ["a", "b"]}}'}, "meta.texts", ["a", "b"]),
        ({"json": b'{"meta": {"texts": ["a", "b"]}}'}, "meta.texts.1", ["b"]),
        ({}, None, []),
    ],
)
def test_all_texts_people_wrote_are_found(
    texts: Mapping[str, bytes], field: str | None, found: list[str]
) -> None:
    assert human_texts(texts, text_field=field) == [(text, "human") for text in found]


def test_all_published_texts_are_found_with_who_wrote_them() -> None:
    texts = [{"text": "a", "text_source": "web"}, {"text": "b", "text_source": "synthetic"}]
    fields = json.dumps({"texts": texts, "url": None}).encode()
    assert published_texts({"txt": b"a", "json": fields}) == [("a", "web"), ("b", "synthetic")]


def texts_of_anything(texts: Mapping[str, bytes]) -> list[FoundText]:
    return [(text.decode(), "human") for text in texts.values()]


@pytest.fixture
def many_shards(tmp_path: Path) -> list[str]:
    """300 shards of a pair each."""
    urls = [str(tmp_path / f"{number:05d}.tar") for number in range(300)]
    for number, url in enumerate(urls):
        Path(url).write_bytes(write_tar([("a.jpg", b"%d" % number), ("a.txt", b"a")]))
    return urls


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_open_files_do_not_grow_with_the_shards(many_shards: list[str]) -> None:
    before = num_open_files()
    pairs = read_pairs(list_pairs(many_shards, texts_of_anything, max_text_bytes=10))
    assert num_open_files() <= before + 1
    assert [pair.image.payload for pair in pairs] == [b"%d" % i for i in range(300)]
    assert num_open_files() <= before + MAX_OPEN_SHARDS


def test_images_of_a_shard_that_lies_elsewhere_are_read_where_they_are() -> None:
    url = "memory://pairs-tests/a.tar"
    fsspec.filesystem("memory").pipe_file(
        "/pairs-tests/a.tar",
        write_tar([("a.jpg", b"1"), ("a.txt", b"x"), ("b.jpg", b"22"), ("b.txt", b"y")]),
    )
    pairs = read_pairs(list_pairs([url], texts_of_anything, max_text_bytes=10))
    assert [(pair.image.payload, pair.text) for pair in pairs] == [(b"1", "x"), (b"22", "y")]


def test_a_text_too_long_for_any_caption_is_cut(tmp_path: Path) -> None:
    tar = tmp_path / "long.tar"
    tar.write_bytes(write_tar([("a.jpg", b"1"), ("a.txt", b"x" * 100)]))
    [pair] = read_pairs(list_pairs([str(tar)], texts_of_anything, max_text_bytes=10))
    assert pair.text == "x" * 10


def listed(folder: Path, *, num_samples: int = 20) -> ListedPairs:
    """Samples of two texts each."""
    members = [
        member
        for i in range(num_samples)
        for member in ((f"{i}.jpg", b"%d" % i), (f"{i}.json", b'{"caption": ["a", "b"]}'))
    ]
    folder.mkdir()
    (folder / "human.tar").write_bytes(write_tar(members))
    return list_pairs(
        [str(folder / "human.tar")], lambda t: human_texts(t, text_field=None), max_text_bytes=99
    )


def images_of(pairs: ListedPairs) -> list[bytes]:
    return [pair.image.payload for pair in read_pairs(pairs)]


def test_samples_are_held_out_with_all_their_texts_and_nothing_is_in_both(tmp_path: Path) -> None:
    pairs = listed(tmp_path / "a")
    learnt, aside = (images_of(part) for part in held_out_split(pairs, num_pairs=5, seed=0))
    assert len(aside) == 6
    assert all(aside.count(image) == 2 for image in aside)
    assert sorted(learnt + aside) == sorted(images_of(pairs))
    assert not set(learnt) & set(aside)


def test_the_same_samples_are_held_out_wherever_they_lie(tmp_path: Path) -> None:
    first, second = (
        images_of(held_out_split(listed(tmp_path / name), num_pairs=6, seed=0)[1])
        for name in ("here", "there")
    )
    assert first == second
    other = held_out_split(listed(tmp_path / "again"), num_pairs=6, seed=1)[1]
    assert images_of(other) != first


def write_shard(url: str, images: Sequence[bytes]) -> None:
    """A shard with a sample, of one text, for each of some images."""
    with fsspec.open(url, "wb") as file:
        if url.endswith(".parquet"):
            columns = {"image": images, "caption": ["a"] * len(images)}
            pq.write_table(pa.table(columns), file, row_group_size=10)
            return
        pairs = [((f"{i}.jpg", image), (f"{i}.txt", b"a")) for i, image in enumerate(images)]
        file.write(write_tar(member for pair in pairs for member in pair))


@pytest.mark.parametrize("name", ["a.tar", "memory://held-out/a.tar", "a.parquet"])
def test_an_image_that_many_samples_show_is_held_out_with_all_of_them(
    tmp_path: Path, name: str
) -> None:
    urls = [name.replace("a.", f"{part}.") for part in ("first", "second")]
    urls = [url if ":" in url else str(tmp_path / url) for url in urls]
    for url in urls:
        write_shard(url, [b"%d" % (number % 10) for number in range(25)])
    texts_of = partial(human_texts, text_field=None)
    pairs = list_pairs(urls, texts_of, max_text_bytes=99, text_column="caption")
    learnt, aside = (images_of(part) for part in held_out_split(pairs, num_pairs=7, seed=0))
    assert 7 <= len(aside) <= 12
    assert len(learnt) + len(aside) == 50
    assert not set(learnt) & set(aside)


def test_nothing_is_held_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    learnt, aside = held_out_split(listed(tmp_path / "a"), num_pairs=0, seed=0)
    assert (len(learnt.places), len(aside.places)) == (40, 0)
