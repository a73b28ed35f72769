"""The report's look at scores: which texts and images are worth a look, and how many there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from capfilt.config import SelectSection
from capfilt.io.parquet import arrow_schema
from capfilt.records import Reason, Score, Verdict
from capfilt.stages.report_scores import (
    DROPPED,
    KEPT,
    PICKS,
    PICKS_BY_REASON,
    SCORE_COLUMNS,
    UNJUDGED,
    TextView,
    Yardstick,
    empty_view,
    joined,
    view_of_shard,
    yardstick_of,
)

POLICY = SelectSection(min_itm_prob=0.5, min_itm_prob_synthetic=0.25)
BY_ITM = yardstick_of(POLICY, has_itm_prob=True)


def view(
    *rows: tuple[str, str, float | None, bool | None, str | None],
    shard: int = 0,
    yardstick: Yardstick = BY_ITM,
) -> TextView:
    """The view of texts given as image, source, score, kept or not, reason."""
    scores = [
        {"key": key, "text_source": source, "text_index": 0, yardstick.column: fit,
         "reason": reason if fit is None else None}
        for key, source, fit, _, reason in rows
    ]  # fmt: skip
    verdicts = [
        {"key": key, "text_source": source, "text_index": 0, "kept": kept, "reason": reason}
        for key, source, _, kept, reason in rows
    ]
    schema = pa.schema([arrow_schema(Score).field(name) for name in SCORE_COLUMNS])
    judged = all(kept is not None for *_, kept, _ in rows)
    return view_of_shard(
        shard,
        pa.Table.from_pylist(scores, schema=schema),
        pa.Table.from_pylist(verdicts, schema=arrow_schema(Verdict)) if judged else None,
        yardstick,
    )


def test_a_text_at_the_threshold_lies_above_it_and_the_nearest_come_first() -> None:
    found = view(
        ("a", "web", 0.9, True, None),
        ("b", "web", 0.5, True, None),
        ("c", "web", 0.49, False, "itm_below_min"),
        ("d", "web", 0.1, False, "itm_below_min"),
        ("e", "synthetic", 0.26, True, None),
    )
    assert [pick.key for pick in found.above] == ["b", "e", "a"]
    assert [pick.key for pick in found.below] == ["c", "d"]
    assert found.above[1].text == ("synthetic", 0)


def test_texts_are_counted_by_source_outcome_and_probability() -> None:
    found = view(
        ("a", "web", 1.0, True, None),
        ("a", "synthetic", 0.0, False, "itm_below_min"),
        ("b", "web", None, False, "text_missing"),
        ("b", "synthetic", 0.5, False, "not_best"),
    )
    assert found.totals[0].tolist() == [1, 1, 0]  # dropped, kept, not judged
    assert found.totals[1].tolist() == [2, 0, 0]
    assert found.histogram.sum() == 3  # a text without a score is in no bin
    assert found.histogram[0, KEPT, 39] == 1
    assert found.histogram[1, DROPPED, 0] == found.histogram[1, DROPPED, 20] == 1


@pytest.mark.parametrize(
    ("asked", "has_itm_prob", "column"),
    [
        ({}, True, "itm_prob"),
        ({"min_itc_cos": 0.2}, True, "itm_prob"),
        ({"min_itm_prob": None, "min_itm_prob_synthetic": None}, True, "itm_prob"),
        ({"min_itm_prob": None, "min_itm_prob_synthetic": None, "min_itc_cos": 0.2}, True,
         "itc_cos"),
        ({"min_itm_prob": None, "min_itm_prob_synthetic": None}, False, "itc_cos"),
    ],
)  # fmt: skip
def test_texts_are_shown_by_the_probability_unless_the_cosine_decides(
    asked: dict[str, float | None], has_itm_prob: bool, column: str
) -> None:
    policy = SelectSection.model_validate(asked)
    assert yardstick_of(policy, has_itm_prob=has_itm_prob).column == column


def test_cosines_are_binned_along_their_own_scale() -> None:
    by_cosine = yardstick_of(SelectSection(min_itc_cos=0.2), has_itm_prob=False)
    found = view(
        ("a", "web", 0.21, True, None),
        ("b", "web", -0.9, False, "itc_below_min"),
        ("c", "synthetic", 0.5, True, None),
        yardstick=by_cosine,
    )
    assert found.histogram[0, KEPT, 20] == 1  # 0.20 to 0.22 of -0.2 to 0.6
    assert found.histogram[0, DROPPED, 0] == 1
    assert [pick.key for pick in found.above] == ["a"]  # nothing is asked of synthetic texts
    assert [pick.key for pick in found.below] == ["b"]


def test_a_text_without_a_score_is_near_no_threshold() -> None:
    found = view(("a", "web", None, False, "text_missing"))
    assert (found.above, found.below, found.lost) == ((), (), ())


def test_an_image_is_lost_if_none_of_its_texts_is_kept() -> None:
    found = view(
        ("a", "web", 0.1, False, "itm_below_min"),
        ("a", "synthetic", 0.2, False, "itm_below_min"),
        ("b", "web", 0.1, False, "itm_below_min"),
        ("b", "synthetic", 0.9, True, None),
        ("c", "web", 0.4, False, "itm_below_min"),
    )
    assert [pick.key for pick in found.lost] == ["c", "a"]  # the best-scored first
    assert [pick.key for pick in found.sample] == ["b"]


def test_a_caption_replaces_a_web_text_only_if_that_one_was_dropped() -> None:
    found = view(
        ("a", "web", 0.4, False, "itm_below_min"),
        ("a", "synthetic", 0.5, True, None),
        ("b", "web", 0.6, True, None),
        ("b", "synthetic", 0.9, True, None),
        ("c", "web", 0.1, False, "itm_below_min"),
        ("c", "synthetic", 0.8, True, None),
    )
    assert [pick.key for pick in found.replaced] == ["c", "a"]  # the largest gain first


def test_each_reason_of_select_has_its_best_scored_texts() -> None:
    rows = [(f"{i}", "web", i / 10, False, "itm_below_min") for i in range(5)]
    found = dict(view(*rows, ("9", "web", None, False, "text_missing")).by_reason)
    assert set(found) == {Reason.ITM_BELOW_MIN}  # the other came with its reason
    assert [pick.key for pick in found["itm_below_min"]] == ["4", "3", "2"]


def test_texts_not_judged_yet_are_neither_kept_nor_lost() -> None:
    found = view(("a", "web", 0.1, None, None), ("b", "web", 0.9, None, None))
    assert found.totals[0].tolist() == [0, 0, 2]
    assert found.histogram[0, UNJUDGED].sum() == 2
    assert found.lost == ()
    assert [pick.key for pick in found.sample] == ["a", "b"]


def test_verdicts_of_other_rows_are_noticed() -> None:
    scores = pa.table({"key": ["a"], "text_source": ["web"], "text_index": pa.array([0], "int32"),
                       "itm_prob": pa.array([0.5], "float32"),
                       "itc_cos": pa.array([0.5], "float32"),
                       "reason": pa.array([None], "string")})  # fmt: skip
    verdicts = pa.table({"key": ["b"], "kept": [True], "reason": pa.array([None], "string")})
    with pytest.raises(AssertionError, match="shard 4: verdicts are of other rows"):
        view_of_shard(4, scores, verdicts, BY_ITM)


def test_shards_joined_in_any_order_give_the_same_few_picks() -> None:
    probabilities = np.random.default_rng(0).random(60).round(2)
    shards = [
        view(
            *(
                (f"{n}{i:02d}", "web", float(p), bool(p >= 0.5), None if p >= 0.5 else "x")
                for i, p in enumerate(probabilities[20 * n : 20 * n + 20])
            ),
            shard=n,
        )
        for n in range(3)
    ]
    forth = joined(joined(shards[0], shards[1]), shards[2])
    back = joined(joined(joined(shards[2], empty_view()), shards[1]), shards[0])
    picks = [replace(v, histogram=np.zeros(0), totals=np.zeros(0)) for v in (forth, back)]
    for name in ("above", "below", "lost", "sample", "by_reason"):
        assert getattr(picks[0], name) == getattr(picks[1], name)
    assert forth.totals.sum() == 60
    assert len(forth.above) == len(forth.below) == PICKS
    assert [len(found) for _, found in forth.by_reason] == [PICKS_BY_REASON]
    nearest = sorted(p for p in probabilities if p >= 0.5)[:PICKS]
    assert [pick.rank for pick in forth.above] == pytest.approx([p - 0.5 for p in nearest])
