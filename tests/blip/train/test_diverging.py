from __future__ import annotations

import math
import random

import pytest

from capfilt_blip.train.diverging import PATIENCE, WINDOW, DivergenceWatch


def said(watch: DivergenceWatch, losses: list[float]) -> list[tuple[int, str]]:
    lines = [(step, watch.saw(loss)) for step, loss in enumerate(losses)]
    return [(step, line) for step, line in lines if line is not None]


def test_a_loss_that_stays_up_is_said_once_with_what_to_try():
    [(step, line)] = said(DivergenceWatch(), [4.0] * 200 + [8.0] * 600)
    # The mean of 100 passes 6 with the 51st step up, and has to stay there for 100 steps.
    assert step == 200 + 50 + PATIENCE - 1
    assert line == (
        "the training diverges: over 100 steps the loss without ITC is 8.00 on average, "
        "and it was 4.00 before; try a lower or a longer warmed-up learning rate, or clip "
        "gradients lower"
    )


@pytest.mark.parametrize(("low", "bound"), [(4.0, 6.0), (0.2, 0.7)])
def test_the_bound_is_half_as_much_again_and_half_a_nat_at_least(low: float, bound: float):
    assert said(DivergenceWatch(), [low] * 200 + [bound - 0.01] * 900) == []
    assert len(said(DivergenceWatch(), [low] * 200 + [bound + 0.01] * 900)) == 1


def test_a_training_that_learns_with_noise_is_left_alone():
    rng = random.Random(0)
    losses = [2 + 12 * math.exp(-step / 300) + rng.gauss(0, 1.5) for step in range(3000)]
    assert said(DivergenceWatch(), losses) == []


def test_a_bump_is_no_divergence():
    bump = [4.0] * 200 + [8.0] * PATIENCE + [4.0] * 300
    assert said(DivergenceWatch(), bump) == []


def test_it_is_said_again_after_a_recovery():
    wave = [4.0] * 200 + [9.0] * 300 + [4.0] * 300 + [9.0] * 300
    assert len(said(DivergenceWatch(), wave)) == 2


def test_itcs_loss_may_rise_while_the_queue_fills_and_no_other_may():
    filling = [1.0 + 2 * step / 400 for step in range(400)] + [3.0] * 500

    def lines(*, num_settling_steps: int, is_itc: bool) -> list[str]:
        watch = DivergenceWatch(num_settling_steps=num_settling_steps)
        told = [watch.saw(0.5 + loss, itc_loss=loss if is_itc else None) for loss in filling]
        return [line for line in told if line is not None]

    assert lines(num_settling_steps=400, is_itc=True) == []
    assert len(lines(num_settling_steps=400, is_itc=False)) == 1
    [line] = lines(num_settling_steps=0, is_itc=True)
    assert "the loss is" in line


def test_a_training_that_diverges_from_the_start_is_recognised():
    # Seen with a learning rate of 3: 5.7 at first, above 100 within 20 steps, and down to 60.
    losses = [5.7, *([110.0] * 150), *([60.0] * 100)]
    [(step, _)] = said(DivergenceWatch(), losses)
    assert step == PATIENCE


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_said_at_once_and_once(loss: float):
    [(step, line)] = said(DivergenceWatch(num_settling_steps=50), [4.0] * 3 + [loss] * 40)
    assert step == 3
    assert line.startswith(f"the loss is {loss}: the weights are lost or soon will be")
    assert "\n" not in line


def test_a_lost_loss_is_said_after_a_divergence_too():
    lines = said(DivergenceWatch(), [4.0] * 200 + [9.0] * 300 + [math.nan] * 3)
    assert [step for step, _ in lines][1:] == [500]


def test_means_hold_only_numbers():
    losses = [4.0] * WINDOW + [math.nan] + [4.0] * 60 + [math.nan] + [4.0] * 3 * WINDOW
    assert [step for step, _ in said(DivergenceWatch(), losses)] == [WINDOW]
