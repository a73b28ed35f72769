"""Download as a stage: what fetching gives becomes shards and rows. Fetching is in tests/io."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from capfilt.config import Recipe, check_recipe
from capfilt.errors import CapfiltError, ShardError
from capfilt.io.fetch import Fetch, FetchOptions, source_key
from capfilt.io.tar import group_samples, scan
from capfilt.local_pool import LocalPool
from capfilt.pool import Quarantine
from capfilt.records import Download, Reason, Sample
from capfilt.stages import download, index
from capfilt.stages.explain import find_lost, find_samples
from capfilt.stages.tables import Tables, open_tables
from capfilt.workers.fetch import UrlShard
from tests.small_run import SmallRun, planted_shards, rows_of

PICTURES = [s.image[1] for s in planted_shards()[0][:3] if s.image is not None]
PNG = b"\x89PNG\r\n\x1a\nnot really"


SERVED = {
    "http://web.example/a": PICTURES[0],
    "http://web.example/b": PICTURES[1],
    "http://web.example/c?size=1": PNG,
}


class FakeFetcher:
    """Gives a picture for each URL of `SERVED`, and loses all others."""

    def __init__(self, options: FetchOptions) -> None:
        assert options.urls_per_shard == 3

    def __call__(self, inputs: Sequence[UrlShard]) -> list[list[Fetch]]:
        return [
            [
                self._fetch(source_key(shard.shard, row), url)
                for row, (url, _) in enumerate(shard.urls)
            ]
            for shard in inputs
        ]

    def _fetch(self, key: str, url: str) -> Fetch:
        if url in SERVED:
            return Fetch(source_key=key, payload=SERVED[url], reason=None, detail=None)
        return Fetch(source_key=key, payload=None, reason="http_error", detail="HTTP Error 404")

    def close(self) -> None:
        """Nothing to give back."""


URLS = [
    ("http://web.example/a", "a cat"),
    ("http://web.example/gone", "a dog"),
    ("http://web.example/b", None),
    (None, "a text alone"),
    ("http://web.example/c?size=1", "ключ 🙂"),
]


@pytest.fixture
def recipe(tmp_path: Path, small_run: SmallRun) -> Recipe:
    table = pa.table({"link": [url for url, _ in URLS], "text": [text for _, text in URLS]})
    pa.parquet.write_table(table, tmp_path / "urls.parquet", row_group_size=2)
    return check_recipe("test", {
        "run": str(tmp_path / "run"),
        "download": {
            "urls": str(tmp_path / "urls.parquet"),
            "url_column": "link",
            "text_column": "text",
            "urls_per_shard": 3,
        },
        "caption": {"model": str(small_run.models / "captioner")},
        "score": {"model": str(small_run.models / "filter")},
        "pool": {"kind": "local"},
    })  # fmt: skip


@pytest.fixture
def tables(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Tables:
    """The tables after the download of all shards."""
    monkeypatch.setattr(download, "FetchWorker", FakeFetcher)
    tables = open_tables(recipe, 0)
    download.run(recipe, tables, LocalPool())
    return tables


def members(tables: Tables, shard: int) -> dict[str, bytes]:
    tar = tables.of("download").read(shard, "shard")
    return {m.name: tar[m.offset : m.offset + m.num_bytes] for m in scan(io.BytesIO(tar))}


def test_every_url_has_a_row_in_the_order_of_the_list(tables):
    rows = rows_of(tables, "download", Download)
    assert [(row.url, row.web_text) for row in rows] == [(url or "", text) for url, text in URLS]
    assert [row.source_key for row in rows] == [
        "00000-000000", "00000-000001", "00000-000002", "00001-000000", "00001-000001",
    ]  # fmt: skip
    assert [row.reason for row in rows] == [None, "http_error", None, "http_error", None]


def test_what_is_kept_and_lost_is_counted(tables):
    first, second = tables.committed("download").values()
    assert (first.rows_in, first.kept, first.dropped) == (3, 2, {"http_error": 1})
    assert (second.rows_in, second.kept, second.dropped) == (2, 1, {"http_error": 1})


def test_bytes_are_kept_as_served_and_digested(tables):
    row = rows_of(tables, "download", Download)[0]
    assert row.image_sha256 == hashlib.sha256(PICTURES[0]).hexdigest()
    assert row.num_bytes == len(PICTURES[0])
    assert members(tables, 0)["00000-000000.jpg"] == PICTURES[0]


def test_a_shard_holds_image_text_and_url_of_what_was_fetched(tables):
    assert list(members(tables, 0)) == [
        "00000-000000.jpg", "00000-000000.json", "00000-000000.txt",
        "00000-000002.jpg", "00000-000002.json",
    ]  # fmt: skip
    second = members(tables, 1)
    assert second["00001-000001.png"] == PNG
    assert second["00001-000001.txt"].decode() == "ключ 🙂"
    digest = hashlib.sha256(PNG).hexdigest()
    expected = {"url": "http://web.example/c?size=1", "sha256": digest}
    assert json.loads(second["00001-000001.json"]) == expected


def test_the_index_reads_what_download_wrote(recipe, tables):
    index.run(recipe, tables, LocalPool())
    samples = {sample.url: sample for sample in rows_of(tables, "index", Sample)}
    assert set(samples) == set(SERVED)
    assert samples["http://web.example/a"].web_text == "a cat"
    assert samples["http://web.example/b"].web_text is None
    assert samples["http://web.example/c?size=1"].reason == "image_unreadable"


def test_a_url_without_an_image_is_explained_by_what_was_lost(recipe, tables):
    [lost] = find_lost(tables, "http://web.example/gone")
    assert (lost.source_key, lost.reason) == ("00000-000001", "http_error")
    assert find_lost(tables, "00000-000001") == [lost]
    assert find_lost(tables, "http://web.example/a") == []
    assert find_samples(tables, "http://web.example/gone") == []


def test_a_shard_no_fetcher_survives_is_lost_row_by_row(recipe):
    job = download.job(recipe, open_tables(recipe, 0))
    [shard] = job.fetch(1).inputs
    why = Quarantine(reason=Reason.KILLED_WORKER, detail="killed twice")
    rows = job.quarantine(shard, why)
    assert [(row.source_key, row.reason) for row in rows] == [
        ("00001-000000", "killed_worker"),
        ("00001-000001", "killed_worker"),
    ]


def test_the_same_answers_give_the_same_bytes(recipe, tables, tmp_path):
    again = recipe.model_copy(update={"run": str(tmp_path / "again")})
    other = open_tables(again, 0)
    download.run(again, other, LocalPool())
    for shard in (0, 1):
        for role in ("rows", "shard"):
            assert other.of("download").read(shard, role) == tables.of("download").read(shard, role)


def test_a_shard_that_fails_leaves_the_others_done(recipe, monkeypatch):
    class Failing(FakeFetcher):
        def __call__(self, inputs: Sequence[UrlShard]) -> list[list[Fetch]]:
            if inputs[0].shard == 0:
                raise ShardError("the network seems to be down")
            return super().__call__(inputs)

    monkeypatch.setattr(download, "FetchWorker", Failing)
    tables = open_tables(recipe, 0)
    with pytest.raises(ShardError, match="1 of 2 shards failed") as caught:
        download.run(recipe, tables, LocalPool())
    assert "download, shard 0: the network seems to be down" in str(caught.value)
    assert list(tables.committed("download")) == [1]


def test_a_list_of_which_nothing_can_be_fetched_stops_the_run_with_a_way_on(recipe, monkeypatch):
    monkeypatch.setattr(download, "FetchWorker", FakeFetcher)
    monkeypatch.setattr(f"{__name__}.SERVED", {})
    tables = open_tables(recipe, 0)
    with pytest.raises(CapfiltError, match=r"none of 5 URLs .*http_error 5") as error:
        download.run(recipe, tables, LocalPool())
    [folder] = re.findall(r"remove (\S+) and run again", str(error.value))
    shutil.rmtree(folder)
    monkeypatch.undo()
    monkeypatch.setattr(download, "FetchWorker", FakeFetcher)
    assert download.run(recipe, open_tables(recipe, 0), LocalPool()).kept == 3


def test_names_in_a_shard_are_one_sample_each(tables):
    tar = tables.of("download").read(0, "shard")
    samples = group_samples(scan(io.BytesIO(tar)))
    assert [sample.source_key for sample in samples] == ["00000-000000", "00000-000002"]
