"""The report's charts: lengths are in proportion, and nothing a chart needs is missing."""

from __future__ import annotations

import re

import numpy as np
import pytest

from capfilt.config import SelectSection
from capfilt.records import TrainStep
from capfilt.stages.report_charts import (
    MAX_POINTS,
    averaged,
    funnel_bar,
    histogram,
    last_losses,
    loss_curves,
    score_bar,
)
from capfilt.stages.report_scores import BINS, DROPPED, KEPT, SOURCES, Yardstick, yardstick_of


def itm_from(bound: float) -> Yardstick:
    return yardstick_of(SelectSection(min_itm_prob=bound), has_itm_prob=True)


def widths(bar: str) -> list[float]:
    return [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', bar)]


def step(number: int, **losses: float | None) -> TrainStep:
    nothing: dict[str, float | None] = {"itc_loss": None, "itm_loss": None, "lm_loss": None}
    return TrainStep(
        phase="pretrain", step=number, loss=1.0, itm_accuracy=None, learning_rate=0.1,
        num_samples=number, **(nothing | losses),
    )  # fmt: skip


def test_a_bar_is_as_long_as_its_rows_and_shared_out_by_reason() -> None:
    assert widths(funnel_bar(50, [("a", 20), ("b", 10)], full=160)) == [312.5, 125.0, 62.5]


def test_one_row_of_a_million_is_seen() -> None:
    assert widths(funnel_bar(999_999, [("a", 1)], full=10**6))[1] == 3


def test_a_bar_of_nothing_is_empty() -> None:
    assert widths(funnel_bar(0, [], full=0)) == []


def test_the_names_of_reasons_are_escaped() -> None:
    assert "<b>" not in funnel_bar(1, [("<b>", 1)], full=2)


def test_bins_stand_as_high_as_the_root_of_their_texts() -> None:
    counts = np.zeros((3, BINS), np.int64)
    counts[KEPT, 30], counts[DROPPED, 2], counts[KEPT, 2] = 100, 15, 10
    chart = histogram(counts, yardstick=itm_from(0.5), source="web")
    heights = {name: float(height) for name, height in
               re.findall(r'class="(o\d)"[^>]* height="([\d.]+)"', chart)}  # fmt: skip
    full = float(re.findall(r'height="([\d.]+)"', chart)[-1])
    assert heights["o0"] == pytest.approx(full * (25 / 100) ** 0.5 * 15 / 25, abs=0.01)
    assert "0.05 to 0.075: 10 kept, 15 dropped" in chart


def test_a_histogram_of_nothing_still_shows_its_axis_and_threshold() -> None:
    chart = histogram(np.zeros((3, BINS), np.int64), yardstick=itm_from(0.25), source="web")
    assert "kept from 0.25" in chart
    assert ">0.75<" in chart


def test_a_chart_of_cosines_has_their_scale_and_no_line_if_none_is_asked_for() -> None:
    cosine = yardstick_of(SelectSection(min_itc_cos=0.28), has_itm_prob=False)
    counts = np.zeros((3, BINS), np.int64)
    counts[KEPT, 24] = 7
    web, synthetic = (histogram(counts, yardstick=cosine, source=source) for source in SOURCES)
    assert "kept from 0.28" in web
    assert "kept from" not in synthetic
    assert "0.28 to 0.3: 7 kept" in web
    assert 'aria-label="web texts by cosine of image and text (ITC)"' in web


def test_a_score_beyond_the_scale_is_shown_at_its_end() -> None:
    cosine = yardstick_of(SelectSection(min_itc_cos=0.2), has_itm_prob=False)
    assert 'class="level" x="0" y="2" width="100.00"' in score_bar(
        0.9, yardstick=cosine, source="web"
    )
    assert 'class="tick" x="49.50"' in score_bar(-1.0, yardstick=cosine, source="web")
    assert "tick" not in score_bar(0.1, yardstick=cosine, source="synthetic")


def test_a_loss_that_a_phase_does_not_have_has_no_curve() -> None:
    steps = [step(0, lm_loss=4.0), step(10, lm_loss=2.0)]
    chart = loss_curves(steps, phase="captioner")
    assert chart.count("<polyline") == 1
    assert "step 10<" in chart
    assert last_losses(steps) == {"lm_loss": 2.0}


@pytest.mark.parametrize("loss", [0.0, float("nan"), float("inf"), None, 1e-9, 1e9])
def test_any_loss_can_be_drawn(loss: float | None) -> None:
    chart = loss_curves([step(0, lm_loss=loss)], phase="captioner")
    assert "nan" not in chart
    assert "inf" not in chart


def test_a_long_training_becomes_few_points_of_means() -> None:
    points = averaged([(i, float(i % 2)) for i in range(1000)])
    assert len(points) <= MAX_POINTS
    assert points[0] == (2.0, 0.4)  # of steps 0 to 4
    assert averaged([(0, None), (1, 3.0)]) == [(1.0, 3.0)]
