from __future__ import annotations

import pytest

from capfilt.workers.watch_text import (
    held_out_lines,
    place_text,
    rate_text,
    sample_line,
    short_power,
    step_line,
    time_text,
)
from capfilt_blip.evaluate.heldout import CaptionSample, HeldOut
from capfilt_blip.tasks.recall import Recalls

ALL = {
    "loss": 5.12, "itc_loss": 2.31, "itm_loss": 0.41, "lm_loss": 2.4, "itm_accuracy": 0.934,
    "learning_rate": 2.9e-4, "temperature": 0.0613, "grad_norm": 1.9, "samples_per_s": 812.4,
    "mfu": 0.341, "eta_s": 7_800.0,
}  # fmt: skip


def test_a_line_has_everything_that_is_measured():
    assert step_line(place_text("pretrain", 1199, num_steps=10_000), values=ALL) == (
        "pretrain step  1,200/10,000  loss  5.120 (itc 2.310 itm 0.410 lm 2.400)  itm right  93%  "
        "lr 2.9e-4  T 0.061  grad  1.90  812 pairs/s  MFU 34.1%  eta 2 h 10 min"
    )


def test_what_is_not_measured_is_left_out():
    values = {"loss": 2.4, "lm_loss": 2.4, "learning_rate": 1e-5, "grad_norm": 0.5}
    assert step_line(place_text("captioner", 0, num_steps=None), values=values) == (
        "captioner step 1  loss  2.400  lr 1.0e-5  grad  0.50"
    )


def test_lines_of_one_training_stand_below_each_other():
    lines = [step_line(place_text("p", step, num_steps=10_000), values=ALL | {"loss": loss})
             for step, loss in ((0, 14.1), (10, 9.5), (9_990, 2.0))]  # fmt: skip
    assert len({line.index("lr") for line in lines}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3_599, "1 h 0 min"), (7_800, "2 h 10 min"),
     (86_399, "1 d 0 h"), (273_600, "3 d 4 h")],
)  # fmt: skip
def test_a_time_to_go_has_two_units(seconds: float, text: str):
    assert time_text(seconds) == text


def test_numbers_are_short():
    assert [short_power(value) for value in (3e-4, 0.0, 1e-10, 0.05)] == [
        "3.0e-4", "0.0e0", "1.0e-10", "5.0e-2",
    ]  # fmt: skip
    assert [rate_text(rate) for rate in (2, 3.254, 99.9, 812.4, 12_345)] == [
        "2.00", "3.25", "99.9", "812", "12,345",
    ]  # fmt: skip


def test_held_out_measures_come_with_captions():
    found = HeldOut(
        itc=Recalls(texts=(0.4, 0.7, 0.8), images=(0.3, 0.6, 0.75)),
        itm=Recalls(texts=(0.5, 0.7, 0.8), images=(0.45, 0.6, 0.75)),
        cider_d=0.8437,
        captions=tuple(CaptionSample(text=f"{i}", references=("a star",)) for i in range(6)),
    )
    place = place_text("pretrain", 1999, num_steps=9000)
    by_itm, by_itc, cider, *samples = held_out_lines(place, found=found)
    assert by_itm == (
        "pretrain step 2,000/9,000  held out: ITM recall at 1/5/10 of texts 50.0/70.0/80.0 %, "
        "of images 45.0/60.0/75.0 %"
    )
    assert by_itc.endswith(
        "ITC recall at 1/5/10 of texts 40.0/70.0/80.0 %, of images 30.0/60.0/75.0 %"
    )
    assert cider == "pretrain step 2,000/9,000  held out: CIDEr-D 0.844"
    assert samples == [f"  '{i}' where a person wrote 'a star'" for i in range(4)]


def test_a_sample_cannot_act_on_the_terminal():
    sample = CaptionSample(text="a \x1b[2J star", references=("one\nmore \u202eline",))
    assert sample_line(sample) == r"'a \x1b[2J star' where a person wrote 'one\nmore \u202eline'"
    assert sample_line(CaptionSample(text="a", references=())) == "'a'"
