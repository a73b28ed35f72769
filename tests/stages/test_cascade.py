from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pytest

from capfilt.config import ScoreSection, SelectSection
from capfilt.errors import CapfiltError
from capfilt.io.parquet import table_from
from capfilt.records import DecidedBy, Score, TextSource, Verdict
from capfilt.stages.cascade import Audit, audit, audit_of, check_cascade, wilson_interval
from capfilt.stages.report import write_report
from capfilt.stages.source_notes import Source
from tests.small_run import SmallRun, finished, rows_of

POLICY = SelectSection(min_itm_prob=0.5, min_itm_prob_synthetic=0.8)


def texts(*rows: tuple[TextSource, DecidedBy | None, float | None]) -> pa.Table:
    """Scores of (source, who decided, ITM probability)."""
    return table_from(
        [
            Score(
                key="k", text_source=source, text_index=index, text="t", logprob=None,
                itm_prob=itm_prob, itc_cos=0.3, num_tokens=1, reason=None, detail=None,
                decided_by=by, audited=by in ("itc_low", "itc_high") and itm_prob is not None,
            )
            for index, (source, by, itm_prob) in enumerate(rows)
        ],
        Score,
    )  # fmt: skip


def test_texts_are_counted_by_who_decided_them() -> None:
    found = audit_of(
        texts(("web", "itm", 0.2), ("web", "itc_low", None), ("synthetic", "itc_low", None),
              ("web", "itc_high", None), ("web", None, None)),
        POLICY,
    )  # fmt: skip
    assert found == Audit(itc_low=2, itc_high=1, itm=1, audited=0, disagreed=0)
    assert found.total == 4


def test_itm_disagrees_at_the_threshold_of_the_text_s_source() -> None:
    audited = texts(
        ("web", "itc_low", 0.5),  # ITM would keep it
        ("web", "itc_low", 0.49),
        ("web", "itc_high", 0.49),  # ITM would drop it
        ("web", "itc_high", 0.5),
        ("synthetic", "itc_low", 0.7),
        ("synthetic", "itc_high", 0.7),  # ITM would drop it
    )
    assert audit_of(audited, POLICY) == Audit(itc_low=3, itc_high=3, audited=6, disagreed=3)


def test_where_no_probability_is_asked_for_nothing_is_disagreed_on() -> None:
    policy = SelectSection(min_itm_prob=None)
    audited = texts(("web", "itc_low", 1.0), ("web", "itc_high", 0.0))
    assert audit_of(audited, policy) == Audit(itc_low=1, itc_high=1, audited=2)


def test_no_text_is_no_count() -> None:
    assert audit_of(texts(), POLICY) == Audit()


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # As R's prop.test(count, total, correct = FALSE) gives them.
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (1, 100, 0.0018, 0.0545),
     (0, 0, 0.0, 1.0)],
)  # fmt: skip
def test_the_interval_is_wilson_s(count: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)


def test_an_audit_reads_as_a_sentence() -> None:
    assert str(Audit(itc_low=1200, itc_high=300, itm=500, audited=10, disagreed=5)) == (
        "ITC decided 1,500 of 2,000 texts (75.0%): 1,200 low, 300 high; of 10 of them put to ITM "
        "all the same, it disagrees on 5 (50.0%; 95 % interval 23.7% to 76.3%)"
    )


@pytest.mark.parametrize("model_type", ["clip", "siglip"])
def test_a_filter_without_itm_refuses_a_cascade(model_type: str) -> None:
    score = ScoreSection.model_validate(
        {"model": "m", "cascade": {"itc_cos_drop": 0.1, "itc_cos_keep": 0.2}}
    )
    source = Source(name="some/filter", digest="0", model_type=model_type)
    with pytest.raises(CapfiltError, match=f"some/filter: a filter of type '{model_type}' has no"):
        check_cascade(score, source)
    check_cascade(score.model_copy(update={"cascade": None}), source)


@pytest.fixture(scope="module")
def cascade(small_run: SmallRun) -> dict[str, object]:
    """Thresholds with a third of the small web's cosines on each side, and an audit of half."""
    cosines = sorted(
        s.itc_cos for s in rows_of(small_run.tables(), "score", Score) if s.itc_cos is not None
    )
    third = len(cosines) // 3
    return {
        "on_changed_settings": "recompute",
        "score": {
            "cascade": {
                "itc_cos_drop": cosines[third], "itc_cos_keep": cosines[-third], "audit_share": 0.5
            }
        },
        "select": {"min_itm_prob": 0.5, "min_itm_prob_synthetic": 0.5},
    }  # fmt: skip


@pytest.fixture(scope="module")
def cascaded(
    small_run: SmallRun, cascade: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> SmallRun:
    run = small_run.copied_to(tmp_path_factory.mktemp("cascaded") / "run")
    finished(run, **cascade)
    return run


def test_a_run_with_a_cascade_scores_less_and_otherwise_the_same(
    small_run: SmallRun, cascaded: SmallRun, cascade: dict[str, object]
) -> None:
    whole = rows_of(small_run.tables(), "score", Score)
    found = rows_of(cascaded.tables(**cascade), "score", Score)
    for before, after in zip(whole, found, strict=True):
        assert (after.key, after.itc_cos, after.reason) == (
            before.key,
            before.itc_cos,
            before.reason,
        )
        if after.decided_by is not None:
            computed = after.decided_by == "itm" or after.audited
            assert after.itm_prob == (before.itm_prob if computed else None)
    counted = audit(cascaded.tables(**cascade), POLICY)
    assert min(counted.itc_low, counted.itc_high, counted.itm, counted.audited) > 0
    assert counted.total == sum(row.itc_cos is not None for row in whole)


def test_verdicts_follow_the_cascade(cascaded: SmallRun, cascade: dict[str, object]) -> None:
    tables = cascaded.tables(**cascade)
    by = {(s.key, s.text_source): s.decided_by for s in rows_of(tables, "score", Score)}
    verdicts = rows_of(tables, "select", Verdict)
    for verdict in verdicts:
        decided = by[verdict.key, verdict.text_source]
        assert (verdict.reason == "itc_clearly_low") == (decided == "itc_low")
        assert verdict.kept or decided != "itc_high"


def test_the_log_and_the_report_say_how_far_itc_and_itm_agree(
    cascaded: SmallRun, cascade: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counted = audit(cascaded.tables(**cascade), POLICY)
    said = str(counted).partition(";")[0]  # up to what depends on the policy
    with caplog.at_level(logging.INFO, logger="capfilt.stages.cascade"):
        finished(cascaded, **cascade)
    assert any(said in message for message in caplog.messages)
    write_report(cascaded.recipe(**cascade), tmp_path / "report.html")
    assert said in (tmp_path / "report.html").read_text(encoding="utf-8")
