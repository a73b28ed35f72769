from __future__ import annotations

import json
from dataclasses import asdict

from pydantic import TypeAdapter

from capfilt_blip.train.alarms import Alarms
from capfilt_blip.train.settings import StepMetrics

# Stuck from the first step on, and after step 700 diverging too.
STEPS = [
    StepMetrics(
        step=step, num_samples=step, learning_rate=0.1, grad_norm=1.0, itm_loss=0.6365,
        loss=2.0 if step < 700 else 9.0,
    )
    for step in range(1000)
]  # fmt: skip


def said(alarms: Alarms, steps: list[StepMetrics]) -> list[tuple[int, str]]:
    return [(metrics.step, line[:21]) for metrics in steps for line in alarms.saw(metrics)]


def test_each_alarm_says_its_own():
    # The mean of 500 is there after step 499. That of 100 passes 3 with the 15th step at 9, and
    # has to stay there for 100 steps.
    expected = [(499, "ITM is stuck: over 50"), (813, "the training diverges")]
    assert said(Alarms(), STEPS) == expected


def test_alarms_that_were_saved_say_the_same_at_the_same_step():
    alarms = Alarms()
    before = said(alarms, STEPS[:760])
    saved = json.dumps(asdict(alarms))
    again = TypeAdapter(Alarms).validate_json(saved)
    assert before + said(again, STEPS[760:]) == said(Alarms(), STEPS)


def test_alarms_that_saw_nothing_can_be_saved():
    assert TypeAdapter(Alarms).validate_json(json.dumps(asdict(Alarms()))) == Alarms()
