"""The rounds side by side: what a person reads of each."""

from __future__ import annotations

from dataclasses import replace

from capfilt.stages.diversity import share_of
from capfilt.stages.report_rounds import round_rows
from capfilt.stages.round_report import PhaseFigures
from tests.stages.test_collapse import report

FIRST, SECOND = report(rejected=50), report(rejected=16, round_=1)


def test_each_figure_has_a_cell_per_round() -> None:
    rows = dict(round_rows([FIRST, SECOND]))
    assert rows["captions rejected (noise)"] == ("25.0% (50 of 200)", "8.0% (16 of 200)")
    assert {len(cells) for cells in rows.values()} == {2}


def test_a_figure_that_one_round_has_is_a_dash_in_the_other() -> None:
    phase = PhaseFigures(phase="pretrain", values={"loss": 2.5, "learning_rate": 1e-4})
    trained = replace(FIRST, training=(phase,), audit_disagreement=share_of(1, 4))
    rows = dict(round_rows([trained, SECOND]))
    assert rows["pretrain: loss"] == ("2.5", "-")
    assert rows["cascade: ITM disagrees"] == ("25.0% (1 of 4)", "-")
    assert "pretrain: learning rate" not in rows


def test_what_looked_wrong_in_training_is_cut_to_a_cell() -> None:
    line = "step 500: ITM is stuck: over 500 steps its loss is 0.6365 on average"
    phase = PhaseFigures(phase="pretrain", values={}, warnings=(line,))
    rows = dict(round_rows([replace(FIRST, training=(phase,)), SECOND]))
    assert rows["pretrain: warnings"] == ("step 500: ITM is stuck: over 500 steps i...", "-")


def test_no_round_has_no_rows() -> None:
    assert list(round_rows([])) == []
