"""Publish: what goes out is what came in, with its texts, its lineage and its sums."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.local_pool import LocalPool
from capfilt.records import (
    Group,
    PublishedSample,
    PublishedText,
    Sample,
    Score,
    Verdict,
)
from capfilt.stages import publish
from capfilt.stages.publish import choose, kept_texts
from tests.small_run import SmallRun, files_of, flip_last_byte, planted_shards, rows_of


@pytest.fixture(scope="module")
def published(small_run: SmallRun) -> dict[str, PublishedSample]:
    """What the small run published, by source key (one of the two of the same name)."""
    rows = rows_of(small_run.tables(), "publish", PublishedSample)
    return {row.source_key: row for row in rows}


def text(words: str, key: str = "a") -> PublishedText:
    return PublishedText(
        text=words, text_source="web", text_index=0, itm_prob=0.5, itc_cos=0.5, logprob=None,
        from_key=key,
    )  # fmt: skip


def group(key: str, representative: str | None, *texts: PublishedText) -> Group:
    return Group(
        key=key, shard=0, representative=representative, similarity=None,
        kept=key == representative, reason=None, texts=texts,
    )  # fmt: skip


@pytest.fixture
def sample(small_run: SmallRun) -> Sample:
    return replace(rows_of(small_run.tables(), "index", Sample)[0], key="a")


def test_a_sample_adopts_the_texts_of_its_duplicates_once(sample: Sample) -> None:
    own = {"a": [text("own")]}
    groups = [
        group("a", "a"),
        group("b", "a", text("other", "b"), text("own", "b")),
        group("c", "a", text("other", "c")),
        group("d", None),
    ]
    [chosen] = choose([sample, replace(sample, key="b")], groups, own)
    assert [(t.text, t.from_key) for t in chosen.texts] == [("own", "a"), ("other", "b")]
    assert chosen.num_duplicates == 2


def test_samples_of_other_shards_are_not_chosen_here(sample: Sample) -> None:
    assert choose([sample], [group("b", "z", text("t", "b"))], {}) == []


def score(key: str, source: str, index: int) -> Score:
    return Score(
        key=key, text_source=source, text_index=index, text=f"{key}{index}", logprob=-1.0,  # type: ignore[arg-type]
        itm_prob=0.5, itc_cos=0.25, num_tokens=1, reason=None, detail=None,
    )  # fmt: skip


def verdict(score: Score, *, kept: bool) -> Verdict:
    return Verdict(
        key=score.key, text_source=score.text_source, text_index=score.text_index, kept=kept,
        reason=None,
    )  # fmt: skip


def test_kept_texts_come_in_the_order_they_were_scored() -> None:
    scores = [score("a", "web", 0), score("a", "synthetic", 0), score("a", "synthetic", 1),
              score("b", "web", 0)]  # fmt: skip
    kept = (True, False, True, False)
    texts = kept_texts(scores, [verdict(s, kept=k) for s, k in zip(scores, kept, strict=True)])
    assert {key: [t.text for t in rows] for key, rows in texts.items()} == {"a": ["a0", "a1"]}


def test_verdicts_of_other_texts_are_noticed() -> None:
    swapped = [verdict(score("a", "synthetic", 0), kept=True)]
    with pytest.raises(AssertionError, match="is not what"):
        kept_texts([score("a", "web", 0)], swapped)


def test_original_bytes_go_out_as_they_came_in(small_run: SmallRun) -> None:
    planted = {hashlib.sha256(p.image[1]).hexdigest() for row in planted_shards() for p in row
               if p.image is not None and p.reason is None}  # fmt: skip
    rows = rows_of(small_run.tables(), "publish", PublishedSample)
    found = {hashlib.sha256(row.image.bytes).hexdigest() for row in rows}
    small = next(p for p in planted_shards()[1] if p.name == "shown-small")
    assert small.image is not None
    assert found == planted - {hashlib.sha256(small.image[1]).hexdigest()}
    assert all(hashlib.sha256(r.image.bytes).hexdigest() == r.image_sha256 for r in rows)


def test_an_image_is_named_by_its_key_and_what_it_is(published: dict[str, PublishedSample]) -> None:
    suffixes = {name: row.image.path.removeprefix(row.key) for name, row in published.items()}
    assert suffixes["LOUD"] == suffixes["cmyk"] == ".jpg"
    assert (suffixes["deep"], suffixes["moving"]) == (".png", ".gif")


def test_every_published_sample_has_its_texts_and_where_they_came_from(
    published: dict[str, PublishedSample],
) -> None:
    row = published["v1.2/Ünï ключ 猫"]
    assert [(t.text_source, t.from_key) for t in row.texts] == [
        ("web", row.key), ("synthetic", row.key)
    ]  # fmt: skip
    assert row.texts[0].text == "дом и море 猫 🙂"
    assert row.texts[0].logprob is None
    assert row.texts[1].logprob is not None


def test_a_sample_without_web_text_goes_out_with_its_caption(
    published: dict[str, PublishedSample],
) -> None:
    for name in ("no-text", "blank-text"):
        assert [t.text_source for t in published[name].texts] == ["synthetic"]


def test_a_duplicate_s_web_text_is_published_once_with_its_representative(
    small_run: SmallRun, published: dict[str, PublishedSample]
) -> None:
    keys = {s.source_key: s.key for s in rows_of(small_run.tables(), "index", Sample)}
    large = published["shown-large"]
    assert [(t.text_source, t.from_key) for t in large.texts] == [
        ("web", keys["shown-large"]),
        ("synthetic", keys["shown-large"]),
        ("web", keys["shown-small"]),
    ]
    assert large.num_duplicates == 1
    texts = [t.text for row in published.values() for t in row.texts]
    assert texts.count("a star, seen from afar") == 1
    assert texts.count("a square in blue") == texts.count("a blue square") == 1


def test_the_tar_holds_the_same_samples_as_the_parquet_file(small_run: SmallRun) -> None:
    rows = rows_of(small_run.tables(), "publish", PublishedSample)
    table = small_run.tables().of("publish")
    files = {}
    for commit in table.commits().values():
        with tarfile.open(table.store.local_path(commit.file("tar").path)) as tar:
            files |= {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    assert len(files) == 3 * len(rows)
    for row in rows:
        fields = json.loads(files[f"{row.key}.json"])
        assert files[row.image.path] == row.image.bytes
        assert files[f"{row.key}.txt"].decode() == row.texts[0].text
        assert [t["text"] for t in fields["texts"]] == [t.text for t in row.texts]
        assert (fields["source_key"], fields["url"]) == (row.source_key, row.url)


def test_the_manifest_lists_every_file_with_its_digest(small_run: SmallRun) -> None:
    folder = Path(small_run.tables().of("publish").store.url)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == 17
    listed = {f["path"]: f["sha256"] for f in manifest["files"]}
    stored = {n: hashlib.sha256(b).hexdigest() for n, b in files_of(folder).items()}
    data = {n: digest for n, digest in stored.items() if n.endswith((".parquet", ".tar"))}
    assert listed == data


def test_tars_are_left_out_on_request(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["dataset"])
    without = {"publish": {"webdataset": False}}
    publish.run(run.recipe(**without), run.tables(**without), LocalPool())
    assert not list((run.folder / "round-000" / "dataset").rglob("*.tar"))


def test_an_image_that_changed_before_publishing_is_counted_not_published(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["dataset"]).with_own_web(tmp_path / "web")
    changed = next(s for s in rows_of(run.tables(), "index", Sample) if s.source_key == "good-2")
    flip_last_byte(run, changed)
    funnel = publish.run(run.recipe(), run.tables(), LocalPool())
    assert (funnel.rows_in, funnel.kept, funnel.dropped) == (17, 16, {"bytes_changed": 1})
    assert changed.key not in {r.key for r in rows_of(run.tables(), "publish", PublishedSample)}
