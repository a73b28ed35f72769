"""The judge, with cases computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from capfilt.config import SelectSection
from capfilt.errors import CapfiltError
from capfilt.io.parquet import arrow_schema, records_from, table_from
from capfilt.records import DecidedBy, Score, TextSource, Verdict
from capfilt.stages.select import Policy, Thresholds, check_policy, judge
from capfilt.stages.source_notes import Source


def score(
    key: str = "a",
    source: TextSource = "web",
    index: int = 0,
    *,
    itm: float | None = 0.9,
    itc: float | None = 0.3,
    text: str | None = "a cat",
    reason: str | None = None,
    by: DecidedBy | None = None,
) -> Score:
    return Score(
        key=key,
        text_source=source,
        text_index=index,
        text=text,
        logprob=None,
        itm_prob=itm,
        itc_cos=itc,
        num_tokens=2,
        reason=reason,
        detail=None,
        decided_by=by,
        audited=itm is not None and by in ("itc_low", "itc_high"),
    )


def reasons(
    *scores: Score,
    policy: Policy = "both",
    web: Thresholds = Thresholds(),  # noqa: B008  # frozen
    synthetic: Thresholds = Thresholds(),  # noqa: B008
    max_text_chars: int = 100,
) -> list[str | None]:
    table = judge(
        table_from(scores, Score),
        policy=policy,
        web=web,
        synthetic=synthetic,
        max_text_chars=max_text_chars,
    )
    verdicts = records_from(table, Verdict)
    assert [(v.key, v.text_source, v.text_index) for v in verdicts] == [
        (s.key, s.text_source, s.text_index) for s in scores
    ]
    assert [v.kept for v in verdicts] == [v.reason is None for v in verdicts]
    return [v.reason for v in verdicts]


def test_text_at_the_itm_threshold_is_kept_and_just_below_is_not() -> None:
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert reasons(score(itm=0.5), score("b", itm=below)) == [None, "itm_below_min"]


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_threshold_that_float32_cannot_hold_still_counts_as_reached(bound: float) -> None:
    assert reasons(score(itm=bound), web=Thresholds(min_itm_prob=bound)) == [None]


def test_a_probability_the_filter_does_not_give_is_wanting_only_if_it_is_asked_for() -> None:
    cosine_alone = Thresholds(min_itm_prob=None, min_itc_cos=0.25)
    texts = score("a", itm=None, itc=0.25), score("b", itm=None, itc=0.24)
    assert reasons(*texts, web=cosine_alone) == [None, "itc_below_min"]
    assert reasons(*texts) == ["score_not_finite"] * 2


def test_a_probability_that_is_no_number_is_wanting_even_if_nothing_is_asked() -> None:
    nothing = Thresholds(min_itm_prob=None)
    assert reasons(score(itm=math.nan), web=nothing) == ["score_not_finite"]


def test_without_probabilities_the_best_text_has_the_highest_cosine() -> None:
    found = reasons(
        score("a", "web", itm=None, itc=-0.5),
        score("a", "synthetic", 0, itm=None, itc=-0.25),
        score("a", "synthetic", 1, itm=None, itc=-0.75),
        score("b", "web", itm=None, itc=-0.0),
        score("b", "synthetic", itm=None, itc=0.0),
        score("c", "web", itm=None, itc=-0.01),
        score("c", "synthetic", itm=None, itc=0.01),
        policy="best",
        web=Thresholds(min_itm_prob=None),
        synthetic=Thresholds(min_itm_prob=None),
    )
    not_best = "not_best"
    assert found == [not_best, None, not_best, None, not_best, not_best, None]


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({}, r"clips/one: a filter of type 'clip' gives cosines and no match probability; "
             r"set select\.min_itm_prob: null and select\.min_itm_prob_synthetic: null, and "
             r"select\.min_itc_cos and select\.min_itc_cos_synthetic to the lowest cosine kept"),
        ({"min_itm_prob": None}, r"set select\.min_itm_prob_synthetic: null, and select\.min_itc"),
    ],
)  # fmt: skip
def test_a_policy_that_asks_a_clip_for_probabilities_is_refused(
    policy: dict[str, float | None], told: str
) -> None:
    clip = Source(name="clips/one", digest="0", model_type="clip")
    with pytest.raises(CapfiltError, match=told):
        check_policy(SelectSection.model_validate(policy), clip)
    check_policy(SelectSection.model_validate(policy), replace(clip, model_type="siglip"))


def test_a_policy_that_asks_nothing_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    clip = Source(name="clips/one", digest="0", model_type="clip")
    nothing = SelectSection(min_itm_prob=None, min_itm_prob_synthetic=None)
    check_policy(nothing.model_copy(update={"min_itc_cos": 0.2}), clip)
    assert caplog.messages == []
    check_policy(nothing, clip)
    assert caplog.messages[0].startswith("select asks nothing of the texts: set select.min_itc_cos")


def test_what_a_cascade_had_itc_decide_stands_for_the_itm_threshold() -> None:
    found = reasons(
        score("a", itm=None, by="itc_low"),
        score("b", itm=None, by="itc_high"),
        score("c", itm=0.5, by="itm"),
        score("d", itm=0.4, by="itm"),
    )
    assert found == ["itc_clearly_low", None, None, "itm_below_min"]


def test_an_audit_changes_no_verdict() -> None:
    low, high = score("a", itm=0.9, by="itc_low"), score("b", itm=0.1, by="itc_high")
    assert reasons(low, high) == ["itc_clearly_low", None]


def test_a_cascade_s_verdict_counts_only_where_itm_is_asked_for() -> None:
    texts = score("a", itm=None, by="itc_low"), score("b", itm=0.1, by="itm")
    assert reasons(*texts, web=Thresholds(min_itm_prob=None)) == [None, None]


def test_a_text_that_itc_finds_clearly_high_may_still_be_asked_for_more() -> None:
    text = score("a", itm=None, itc=0.5, by="itc_high")
    assert reasons(text, web=Thresholds(min_itc_cos=0.6)) == ["itc_below_min"]


def test_the_best_text_of_a_cascade_has_the_highest_cosine() -> None:
    found = reasons(
        score("a", "web", itm=0.99, itc=0.3, by="itm"),
        score("a", "synthetic", itm=None, itc=0.45, by="itc_high"),
        policy="best",
    )
    assert found == ["not_best", None]


def test_each_source_has_its_own_thresholds() -> None:
    found = reasons(
        score("a", "web", itm=0.6, itc=0.2),
        score("a", "synthetic", itm=0.6, itc=0.2),
        web=Thresholds(min_itm_prob=0.7),
        synthetic=Thresholds(min_itm_prob=0.6, min_itc_cos=0.25),
    )
    assert found == ["itm_below_min", "itc_below_min"]


def test_text_at_the_itc_threshold_is_kept() -> None:
    web = Thresholds(min_itc_cos=0.3)
    assert reasons(score(itc=0.3), score("b", itc=0.29), web=web) == [None, "itc_below_min"]


def test_itc_is_not_asked_for_without_a_threshold() -> None:
    assert reasons(score(itc=-1.0)) == [None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_score_that_is_not_finite_is_its_own_reason(bad: float | None) -> None:
    for nothing_asked in (Thresholds(min_itm_prob=0.0), Thresholds(min_itm_prob=1.0)):
        found = reasons(score(itm=bad), score("b", itc=bad), web=nothing_asked)
        assert found == ["score_not_finite", "score_not_finite"]


def test_row_with_a_reason_keeps_it_whatever_else_is_wrong() -> None:
    bad = score(itm=None, itc=None, text=None, reason="killed_worker")
    assert reasons(bad, score("b", reason="text_empty")) == ["killed_worker", "text_empty"]


def test_missing_text_is_a_reason() -> None:
    assert reasons(score(text=None)) == ["text_missing"]


def test_text_length_counts_code_points_and_its_bound_is_kept() -> None:
    found = reasons(score(text="猫" * 5), score("b", text="猫" * 6), max_text_chars=5)
    assert found == [None, "text_too_long"]


def test_length_goes_before_itm_and_itm_before_itc() -> None:
    web = Thresholds(min_itm_prob=0.5, min_itc_cos=0.5)
    found = reasons(
        score(itm=0.1, itc=0.1, text="x" * 9), score("b", itm=0.1, itc=0.1), web=web,
        max_text_chars=8,
    )  # fmt: skip
    assert found == ["text_too_long", "itm_below_min"]


def test_best_keeps_the_highest_itm_of_each_image() -> None:
    found = reasons(
        score("a", "web", itm=0.6),
        score("a", "synthetic", 0, itm=0.8),
        score("a", "synthetic", 1, itm=0.7),
        score("b", "web", itm=0.55),
        policy="best",
    )
    assert found == ["not_best", None, "not_best", None]


def test_best_prefers_web_then_the_lower_index_at_a_tie() -> None:
    tie = [score("a", "synthetic", 1), score("a", "synthetic", 0), score("a", "web", 0)]
    assert reasons(*tie, policy="best") == ["not_best", "not_best", None]
    assert reasons(*tie[:2], policy="best") == ["not_best", None]


def test_best_at_a_probability_of_zero_ignores_its_sign() -> None:
    zeros = [score("a", "synthetic", itm=-0.0), score("a", "web", itm=0.0)]
    lenient = Thresholds(min_itm_prob=0.0)
    found = reasons(*zeros, policy="best", web=lenient, synthetic=lenient)
    assert found == ["not_best", None]


def test_best_looks_only_at_texts_that_passed() -> None:
    found = reasons(
        score("a", "web", itm=0.99, text="x" * 11),
        score("a", "synthetic", itm=0.6),
        score("b", "web", itm=0.4),
        policy="best",
        max_text_chars=10,
    )
    assert found == ["text_too_long", None, "itm_below_min"]


def test_web_first_drops_synthetic_texts_where_the_web_text_passed() -> None:
    found = reasons(
        score("a", "synthetic", 0, itm=0.99), score("a", "synthetic", 1, itm=0.1),
        score("a", "web", itm=0.6), policy="web_first",
    )  # fmt: skip
    assert found == ["web_preferred", "itm_below_min", None]


def test_web_first_keeps_every_passing_synthetic_text_where_the_web_text_failed() -> None:
    found = reasons(
        score("a", "web", itm=0.4), score("a", "synthetic", 0), score("a", "synthetic", 1),
        policy="web_first",
    )  # fmt: skip
    assert found == ["itm_below_min", None, None]


@pytest.mark.parametrize("policy", ["best", "web_first"])
def test_texts_of_an_image_need_not_be_adjacent(policy: Policy) -> None:
    web_a, web_b = score("a", itm=0.95), score("b", itm=0.4)
    synthetic_a, synthetic_b = score("a", "synthetic"), score("b", "synthetic")
    found = reasons(synthetic_a, synthetic_b, web_a, web_b, policy=policy)
    rival = "not_best" if policy == "best" else "web_preferred"
    assert found == [rival, None, None, "itm_below_min"]


@pytest.mark.parametrize("policy", ["both", "best", "web_first"])
def test_empty_table_gives_no_verdicts(policy: Policy) -> None:
    assert reasons(policy=policy) == []


@pytest.mark.parametrize("policy", ["both", "best", "web_first"])
def test_single_row_is_judged(policy: Policy) -> None:
    assert reasons(score(), policy=policy) == [None]


@pytest.mark.parametrize("policy", ["both", "best", "web_first"])
def test_order_of_rows_and_chunks_changes_no_verdict(policy: Policy) -> None:
    random = np.random.default_rng(0)
    kinds: list[tuple[TextSource, int]] = [("web", 0), ("synthetic", 0), ("synthetic", 1)]
    rows = [
        score(f"{image}", source, index, itm=float(random.random()))
        for image in range(100)
        for source, index in kinds
    ]
    expected = dict(zip(rows, reasons(*rows, policy=policy), strict=True))
    table = table_from(rows, Score)
    order = random.permutation(len(rows))
    pieces = [table.take(order[start : start + 7]) for start in range(0, len(rows), 7)]
    verdicts = judge(
        pa.concat_tables(pieces), policy=policy, web=Thresholds(), synthetic=Thresholds(),
        max_text_chars=9,
    )  # fmt: skip
    assert verdicts["reason"].to_pylist() == [expected[rows[row]] for row in order]


def test_hostile_floats_are_never_kept() -> None:
    bad = [math.nan, math.inf, -math.inf, 5e-324, -0.0, 0.0, 1e-45, -1.0]
    rows = [score(str(i), itm=value) for i, value in enumerate(bad)]
    assert None not in reasons(*rows)


def test_verdicts_have_the_schema_of_their_record() -> None:
    table = judge(
        table_from([score()], Score), policy="best", web=Thresholds(), synthetic=Thresholds(),
        max_text_chars=9,
    )  # fmt: skip
    assert table.schema.equals(arrow_schema(Verdict))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_threshold_that_is_not_a_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"min_itm_prob is (nan|inf); a threshold is a finite"):
        Thresholds(min_itm_prob=bad)
