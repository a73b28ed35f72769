from __future__ import annotations

from math import isfinite, sqrt
from pathlib import Path

import pytest

from capfilt.pool import Quarantine
from capfilt.records import Caption, ImageVector, Reason, Sample, Score
from capfilt.stages import score
from capfilt.stages.score import texts_of
from tests.small_run import SmallRun, rows_of


def sample(web_text: str | None) -> Sample:
    nothing = dict.fromkeys(
        ("url", "image_member", "image_offset", "num_bytes", "image_sha256", "image_format",
         "width_px", "height_px", "phash", "reason", "detail")
    )  # fmt: skip
    return Sample(key="k", source_key="s", shard=0, web_text=web_text, **nothing)


def caption(index: int, text: str | None, reason: str | None = None) -> Caption:
    return Caption(
        key="k", text_index=index, text=text, logprob=-1.5, num_tokens=2, reason=reason, detail=None
    )


def test_the_web_text_goes_before_the_captions() -> None:
    texts = texts_of(sample("w"), [caption(0, "a"), caption(1, "b")])
    assert [(t.text, t.text_source, t.text_index, t.logprob, t.reason) for t in texts] == [
        ("w", "web", 0, None, None),
        ("a", "synthetic", 0, -1.5, None),
        ("b", "synthetic", 1, -1.5, None),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "text_missing"), ("", "text_empty"), (" \n\t\u3000", "text_empty"), ("猫", None)],
)
def test_a_text_that_says_nothing_has_a_reason(text: str | None, reason: str | None) -> None:
    web, synthetic = texts_of(sample(text), [caption(0, text)])
    assert (web.reason, synthetic.reason) == (reason, reason)


def test_a_failed_caption_stays_with_the_captioner_s_reason() -> None:
    _, failed = texts_of(sample("w"), [caption(0, None, Reason.KILLED_WORKER)])
    assert (failed.text, failed.reason) == (None, "killed_worker")


@pytest.fixture(scope="module")
def scores(small_run: SmallRun) -> list[Score]:
    return rows_of(small_run.tables(), "score", Score)


def test_every_text_of_every_readable_image_has_a_row(
    small_run: SmallRun, scores: list[Score]
) -> None:
    captions = rows_of(small_run.tables(), "caption", Caption)
    assert [(s.key, s.text_source) for s in scores] == [
        (c.key, source) for c in captions for source in ("web", "synthetic")
    ]
    assert [s.text for s in scores if s.text_source == "synthetic"] == [c.text for c in captions]


def test_scores_are_in_their_ranges_or_have_a_reason(scores: list[Score]) -> None:
    unscored = {s.reason: s.text for s in scores if s.itm_prob is None}
    assert unscored == {"text_missing": None, "text_empty": " \n\t "}
    for row in scores:
        if row.itm_prob is not None and row.itc_cos is not None:
            assert 0 <= row.itm_prob <= 1
            assert -1 <= row.itc_cos <= 1
            assert row.reason is None


def test_long_and_foreign_texts_are_scored_with_their_whole_length(
    small_run: SmallRun, scores: list[Score]
) -> None:
    keys = {s.key: s.source_key for s in rows_of(small_run.tables(), "index", Sample)}
    web = {keys[s.key]: s for s in scores if s.text_source == "web"}
    assert (web["LOUD"].num_tokens or 0) > 35
    assert web["v1.2/Ünï ключ 猫"].itm_prob is not None


def test_every_readable_image_has_a_unit_vector(small_run: SmallRun) -> None:
    vectors = rows_of(small_run.tables(), "score", ImageVector, "vectors")
    captions = rows_of(small_run.tables(), "caption", Caption)
    assert [v.key for v in vectors] == [c.key for c in captions]
    for vector in vectors:
        assert all(map(isfinite, vector.vector))
        assert sqrt(sum(x * x for x in vector.vector)) == pytest.approx(1, abs=1e-5)


def test_copies_of_an_image_have_equal_vectors_in_any_batch(small_run: SmallRun) -> None:
    keys = {s.key: s.source_key for s in rows_of(small_run.tables(), "index", Sample)}
    vectors = rows_of(small_run.tables(), "score", ImageVector, "vectors")
    of = {keys[v.key]: v.vector for v in vectors}
    assert of["original"] == of["copy"]
    assert of["original"] != of["good-0"]


def test_what_stands_for_an_image_that_kills_its_worker_keeps_the_texts(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    job = score.job(run.recipe(), run.tables())
    rejected = job.fetch(0).inputs[0]
    stand_in = job.quarantine(rejected, Quarantine(reason=Reason.KILLED_WORKER, detail="signal 9"))
    assert [(s.text, s.reason, s.detail) for s in stand_in.scores] == [
        (text.text, "killed_worker", "signal 9") for text in rejected.texts
    ]
    assert stand_in.vector is None
