"""Index: every sample of a tar has a row, whatever it is."""

from __future__ import annotations

import errno
import gzip
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.errors import ShardError
from capfilt.io.tar import write_tar
from capfilt.lineage import sample_key
from capfilt.local_pool import LocalPool
from capfilt.records import Sample
from capfilt.stages import index
from capfilt.stages.index import url_of, web_text_of
from capfilt.stages.shards import funnel_of
from capfilt.workers.inspect import Inspection
from tests.small_run import SmallRun, planted_shards, rows_of


@pytest.fixture(scope="module")
def samples(small_run: SmallRun) -> list[Sample]:
    return rows_of(small_run.tables(), "index", Sample)


@pytest.mark.parametrize(
    ("texts", "field", "found"),
    [
        ({"txt": b"a cat", "json": b'{"caption": "a dog"}'}, None, "a cat"),
        ({"txt": b"a cat", "json": b'{"caption": "a dog"}'}, "caption", "a dog"),
        ({"json": b'{"caption": "a dog"}'}, None, "a dog"),
        ({"json": b'{"meta": {"alt": ["x", "y"]}}'}, "meta.alt.1", "y"),
        ({"txt": b""}, None, ""),
        ({"txt": b"caf\xe9"}, None, "caf\N{REPLACEMENT CHARACTER}"),
        ({"txt": b"a\x00b"}, None, "ab"),
        ({"json": b'{"caption": "a\\u0000b \\ud83d\\ude42 \\ude42"}'}, None, "ab 🙂 \ufffd"),
    ],
)
def test_the_web_text_is_found(texts: Mapping[str, bytes], field: str | None, found: str) -> None:
    assert web_text_of(texts, field) == found


@pytest.mark.parametrize(
    ("json_", "field"),
    [
        (b'{"caption": 7}', "caption"),
        (b'{"caption": ["a"]}', "caption.1"),
        (b'{"caption": ["a"]}', "caption.x"),
        (b'{"caption": ["a"]}', "caption.\N{SUPERSCRIPT TWO}"),
        (b'{"caption": "a"}', "caption.0"),
        (b'["a"]', "caption"),
        (b"{", "caption"),
        (b"\xff", "caption"),
        (b"[" * 100_000, "caption"),
        (b"9" * 10_000, "caption"),
    ],
)
def test_a_json_without_that_text_has_none(json_: bytes, field: str) -> None:
    assert web_text_of({"json": json_}, field) is None


def test_a_sample_without_text_members_has_no_text_and_no_url() -> None:
    assert web_text_of({}, None) is None
    assert url_of({}) is None
    assert url_of({"json": b'{"url": ["http://a"]}'}) is None


def test_every_planted_sample_has_its_row_and_its_reason(samples: list[Sample]) -> None:
    planted = Counter(
        (shard, p.name.replace(".final", ""), p.reason)
        for shard, row in enumerate(planted_shards())
        for p in row
    )
    assert Counter((s.shard, s.source_key, s.reason) for s in samples) == planted


def test_web_texts_are_kept_as_they_stand(samples: list[Sample]) -> None:
    found = {(s.source_key, s.web_text) for s in samples}
    for planted in (p for shard in planted_shards() for p in shard if p.name != "photo.final"):
        assert (planted.name, planted.web_text or planted.text) in found


def test_urls_of_a_json_are_kept(samples: list[Sample]) -> None:
    urls = {s.source_key: s.url for s in samples if s.url is not None}
    assert urls == {
        "json": "http://web.example/28", "surrogate": "http://web.example/\ufffd"
    }  # fmt: skip


def test_a_row_says_where_the_image_is_and_what_it_must_be(
    small_run: SmallRun, samples: list[Sample]
) -> None:
    tars = [(small_run.web / f"0000{i}.tar").read_bytes() for i in range(2)]
    images = {s.image_sha256: s for s in samples if s.image_sha256 is not None}
    for planted in (p for shard in planted_shards() for p in shard):
        if planted.image is None or planted.name == "photo.final":
            continue
        row = images[hashlib.sha256(planted.image[1]).hexdigest()]
        assert row.image_offset is not None
        assert row.num_bytes == len(planted.image[1])
        stored = tars[row.shard][row.image_offset : row.image_offset + row.num_bytes]
        assert hashlib.sha256(stored).hexdigest() == row.image_sha256


def test_keys_are_made_of_origin_and_occurrence(samples: list[Sample]) -> None:
    twins = {s.web_text: s.key for s in samples if s.source_key == "same-name"}
    assert twins == {
        "the first of its name": sample_key("web", 0, "same-name", 0),
        "the second of its name": sample_key("web", 0, "same-name", 1),
    }


def test_rows_lie_in_order_of_key(samples: list[Sample]) -> None:
    for shard in range(2):
        keys = [s.key for s in samples if s.shard == shard]
        assert keys == sorted(keys)


def test_unusual_images_are_readable(samples: list[Sample]) -> None:
    formats = {s.source_key: (s.image_format, s.width_px, s.height_px) for s in samples}
    assert formats["cmyk"] == ("JPEG", 48, 48)
    assert formats["deep"] == ("PNG", 48, 48)
    assert formats["moving"] == ("GIF", 48, 48)
    assert formats["LOUD"] == ("JPEG", 48, 48)


def test_a_name_whose_dots_hide_the_extension_is_explained(samples: list[Sample]) -> None:
    details = {s.source_key: s.detail for s in samples if s.reason == "image_missing"}
    assert details == {"photo": "its members are .final.jpg, .final.txt",
                       "no-image": "its members are .txt"}  # fmt: skip


def test_a_row_joins_what_the_tar_said_and_what_the_image_showed() -> None:
    found = index.Found(
        key="k", source_key="s", shard=3, image=None, extensions=("txt",), web_text="t", url="u"
    )
    row = index.sample_of(found, Inspection(reason="decode_crashed", detail="a fault"))
    assert (row.key, row.source_key, row.shard, row.web_text, row.url) == ("k", "s", 3, "t", "u")
    assert (row.image_member, row.image_offset, row.num_bytes) == (None, None, None)
    assert (row.reason, row.detail) == ("decode_crashed", "a fault")


@pytest.fixture
def cut_run(small_run: SmallRun, tmp_path: Path) -> SmallRun:
    """A run whose second tar ends within its last image."""
    run = replace(small_run, folder=tmp_path / "run").with_own_web(tmp_path / "web")
    last = planted_shards()[1][-1]
    rest = sum(len(write_tar([member])) - 1024 for member in last.members())
    tar = run.web / "00001.tar"
    tar.write_bytes(tar.read_bytes()[: -1024 - rest + 600])
    return run


def test_a_cut_tar_is_refused_and_the_others_are_done(cut_run: SmallRun) -> None:
    with pytest.raises(ShardError) as refused:
        index.run(cut_run.recipe(), cut_run.tables(), LocalPool())
    assert "1 of 2 shards failed" in str(refused.value)
    assert f"index, shard 1: {cut_run.web}/00001.tar: damaged at byte" in str(refused.value)
    assert "input.damaged_shards: salvage" in str(refused.value)
    assert list(cut_run.tables().committed("index")) == [0]


@pytest.mark.parametrize("damaged_shards", ["refuse", "salvage"])
def test_a_compressed_tar_is_not_called_damaged(
    small_run: SmallRun, tmp_path: Path, damaged_shards: str
) -> None:
    run = replace(small_run, folder=tmp_path / "run", web=tmp_path)
    (tmp_path / "00000.tar").write_bytes(gzip.compress(write_tar([("a.txt", b"a")])))
    sections = {"input": {"shards": f"{tmp_path}/00000.tar", "damaged_shards": damaged_shards}}
    with pytest.raises(ShardError) as refused:
        index.run(run.recipe(**sections), run.tables(**sections), LocalPool())
    assert str(refused.value).splitlines()[1] == (
        f"  index, shard 0: {tmp_path}/00000.tar: a compressed tar, and a plain one is needed; "
        "gunzip it"
    )


def test_a_cut_tar_is_salvaged_up_to_the_damage_when_asked_to(cut_run: SmallRun) -> None:
    with pytest.raises(ShardError, match="salvage"):
        index.run(cut_run.recipe(), cut_run.tables(), LocalPool())
    salvage = {"input": {"damaged_shards": "salvage"}}
    tables = cut_run.tables(**salvage)
    funnel = index.run(cut_run.recipe(**salvage), tables, LocalPool())
    assert (funnel.rows_in, funnel.dropped["shard_damaged"]) == (24, 1)
    [lost] = [s for s in rows_of(tables, "index", Sample) if s.reason == "shard_damaged"]
    num_bytes = (cut_run.web / "00001.tar").stat().st_size
    assert lost.detail is not None
    assert lost.detail.startswith(f"byte {num_bytes}: ")
    assert "surrogate" not in {s.source_key for s in rows_of(tables, "index", Sample)}


def test_the_digest_of_the_tar_is_in_the_commit(small_run: SmallRun) -> None:
    for shard, commit in small_run.tables().committed("index").items():
        tar = (small_run.web / f"{shard:05d}.tar").read_bytes()
        assert commit.input_sha256 == hashlib.sha256(tar).hexdigest()


def test_text_members_past_the_limit_are_cut(small_run: SmallRun, tmp_path: Path) -> None:
    run = replace(small_run, folder=tmp_path / "run").with_own_web(tmp_path / "web")
    (run.web / "00000.tar").write_bytes(write_tar([("a.txt", b"y" * 2_000_000)]))
    tables = run.tables()
    index.run(run.recipe(), tables, LocalPool())
    [row] = [s for s in rows_of(tables, "index", Sample) if s.shard == 0]
    assert row.web_text == "y" * 1_000_000


def test_a_disk_that_fails_for_a_while_blames_no_image(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(small_run, folder=tmp_path / "run")
    monkeypatch.setattr(os, "pread", failing(os.pread, times=1))
    with pytest.raises(ShardError, match=r"00000\.tar: cannot be read: Input/output error"):
        index.run(run.recipe(), run.tables(), LocalPool())
    assert index.run(run.recipe(), run.tables(), LocalPool()).dropped == (
        funnel_of("index", small_run.tables().committed("index").values(), round_=0).dropped
    )


def failing(pread: Callable[[int, int, int], bytes], *, times: int) -> Callable[..., bytes]:
    """A pread that fails at first, when it is asked for an image."""
    left = itertools.repeat(None, times)

    def read(descriptor: int, num_bytes: int, offset: int) -> bytes:
        payload = pread(descriptor, num_bytes, offset)
        if payload.startswith(b"\xff\xd8") and next(left, "none") is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return payload

    return read
