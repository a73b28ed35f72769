"""The rows the report shows: what is read to find them."""

from __future__ import annotations

import pytest

from capfilt.io.storage import Store
from capfilt.records import Sample
from capfilt.stages.report_rows import look_up
from tests.small_run import SmallRun, rows_of


def test_to_look_up_a_sample_reads_its_shard_alone(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = small_run.tables()
    sample = next(s for s in rows_of(tables, "index", Sample) if s.shard == 1 and s.reason is None)
    read, before = list[str](), Store.read
    monkeypatch.setattr(Store, "read", lambda *a: (read.append(a[1]), before(*a))[1])
    assert look_up(tables, 1, [sample.key])[sample.key].texts
    assert {name.removeprefix("_commits/")[:5] for name in read} == {"00001"}
