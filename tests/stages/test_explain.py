"""Explain: a sample is found by any of its names, and nothing said of it is left out."""

from __future__ import annotations

import pytest

from capfilt.io.parquet import from_bytes
from capfilt.records import Group, PublishedSample, Sample, Score
from capfilt.stages import explain
from capfilt.stages.explain import find_lost, find_samples, not_found, passport
from tests.small_run import SmallRun, rows_of


@pytest.fixture(scope="module")
def tables(small_run: SmallRun):
    return small_run.tables()


@pytest.fixture(scope="module")
def samples(tables) -> dict[str, Sample]:
    return {sample.source_key: sample for sample in rows_of(tables, "index", Sample)}


def test_a_sample_without_a_url_is_found_by_its_source_key(tables, samples):
    assert samples["good-0"].url is None
    assert find_samples(tables, "good-0") == [samples["good-0"]]


def test_a_sample_is_found_by_its_url(tables, samples):
    assert find_samples(tables, "http://web.example/28") == [samples["json"]]


def test_a_sample_is_found_by_its_key_and_the_keys_beginning(tables, samples):
    key = samples["cmyk"].key
    assert find_samples(tables, key) == [samples["cmyk"]]
    assert find_samples(tables, key[:6]) == [samples["cmyk"]]
    assert find_samples(tables, key[:8].upper()) == [samples["cmyk"]]


def test_five_digits_of_a_key_are_too_few(tables, samples):
    assert find_samples(tables, samples["cmyk"].key[:5]) == []


def test_samples_of_one_name_are_all_found(tables):
    found = find_samples(tables, "same-name")
    assert [sample.source_key for sample in found] == ["same-name", "same-name"]
    assert len({sample.key for sample in found}) == 2


def test_the_part_of_a_name_is_not_a_name(tables):
    assert find_samples(tables, "good") == []


def test_a_run_without_download_has_lost_no_url(tables):
    assert find_lost(tables, "http://web.example/28") == []


def test_a_name_nobody_has_is_quoted(tables):
    assert str(not_found(tables, "nobody")).startswith("'nobody': no sample has this key")


def test_a_good_sample_has_a_row_of_every_stage(tables, samples):
    found = passport(tables, samples["good-0"])
    key = samples["good-0"].key
    assert [(c.key, c.text_index) for c in found.captions] == [(key, 0)]
    assert [s.text_source for s in found.scores] == ["web", "synthetic"]
    assert found.scores[0].text == "a red circle 0"
    assert all(verdict.kept for verdict in found.verdicts)
    assert found.group is not None
    assert found.group.kept
    assert found.represents == ()
    assert found.published_in is not None
    assert list(found.plans) == ["index", "caption", "score", "select", "dedup", "publish"]


def test_it_says_in_which_file_a_sample_is_published(tables, samples):
    for name in ("good-0", "json"):
        path = passport(tables, samples[name]).published_in
        shard = samples[name].shard
        assert path is not None
        assert f"/{shard:05d}-" in path
        published = rows_of(tables, "publish", PublishedSample)
        assert samples[name].key in {row.key for row in published}


def test_a_duplicate_names_who_stands_for_it_and_is_not_published(tables, samples):
    """The two lie in different shards."""
    copy, original = samples["copy"], samples["original"]
    assert copy.shard != original.shard
    found = passport(tables, copy)
    assert found.group is not None
    assert (found.group.reason, found.group.representative) == ("duplicate_exact", original.key)
    assert found.published_in is None
    assert passport(tables, original).represents == (copy.key,)


def test_a_sample_that_cannot_be_read_stops_at_the_index(tables, samples):
    found = passport(tables, samples["cut"])
    assert found.sample.reason == "image_unreadable"
    assert (found.captions, found.scores, found.verdicts) == ((), (), ())
    assert found.group is None
    assert found.published_in is None


def test_all_scores_and_groups_are_in_some_passport(tables, samples):
    passports = [passport(tables, sample) for sample in samples.values()]
    shown = {(s.key, s.text_source, s.text_index) for p in passports for s in p.scores}
    same_name = find_samples(tables, "same-name")
    others = {s.key for s in same_name} - {samples["same-name"].key}
    written = rows_of(tables, "score", Score)
    assert shown == {(s.key, s.text_source, s.text_index) for s in written if s.key not in others}
    grouped = {p.sample.key for p in passports if p.group is not None}
    assert grouped == {g.key for g in rows_of(tables, "dedup", Group) if g.key not in others}


def test_stages_not_yet_done_have_left_nothing(small_run, tmp_path):
    run = small_run.copied_to(tmp_path / "run", without=("verdicts", "groups", "dataset"))
    tables = run.tables()
    [sample] = find_samples(tables, "good-0")
    found = passport(tables, sample)
    assert len(found.scores) == 2
    assert (found.verdicts, found.group, found.published_in) == ((), None, None)


def test_no_published_image_is_read(tables, samples, monkeypatch):
    asked = []

    def reading(payload, record_type, columns=None):
        asked.append((record_type, columns))
        return from_bytes(payload, record_type, columns)

    monkeypatch.setattr(explain, "from_bytes", reading)
    assert passport(tables, samples["good-0"]).published_in is not None
    assert [columns for kind, columns in asked if kind is PublishedSample] == [["key"]]
