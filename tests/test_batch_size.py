from __future__ import annotations

import pytest

from capfilt.batch_size import Budget, Trial, choose, why_stop, workers_sharing

GIB = 2**30
PLENTY = 1000 * GIB


def trials(*speeds: float, gib_each: float = 0.1, loaded_gib: float = 1.0) -> list[Trial]:
    """Trials of 2, 4, 8 ... images at these speeds in images/s; memory grows with the size."""
    return [
        Trial(
            batch_images=2 ** (i + 1),
            seconds=2 ** (i + 1) / speed,
            memory_bytes=int((loaded_gib + gib_each * 2 ** (i + 1)) * GIB),
        )
        for i, speed in enumerate(speeds)
    ]


def exhausted(size: int) -> Trial:
    return Trial(batch_images=size, seconds=None, memory_bytes=None)


def chosen(measured: list[Trial], *, budget_bytes: int = PLENTY) -> int | None:
    trial = choose(measured, budget_bytes=budget_bytes)
    return trial and trial.batch_images


def test_speed_that_grows_to_the_end_chooses_the_largest_size():
    assert chosen(trials(100, 190, 350, 600)) == 16


def test_of_sizes_within_3_percent_of_the_best_the_smallest_is_chosen():
    assert chosen(trials(100, 196, 197, 200)) == 4
    assert chosen(trials(100, 193, 197, 200)) == 8  # 193 is below 194


def test_noise_that_lifts_a_large_size_a_little_does_not_choose_it():
    assert chosen(trials(100, 103.5, 102, 104, 99)) == 4


def test_a_size_over_the_budget_is_not_chosen_however_fast():
    # 1.0 + 0.1 * 8 = 1.8 GiB fits into 2 GiB; 16 images take 2.6.
    assert chosen(trials(100, 150, 200, 400), budget_bytes=2 * GIB) == 8


def test_a_size_that_ran_out_of_memory_is_not_chosen_and_spoils_no_other():
    assert chosen([*trials(100, 200), exhausted(8)]) == 4


@pytest.mark.parametrize("measured", [[], [exhausted(2)], trials(100, loaded_gib=2000)])
def test_nothing_is_chosen_where_nothing_fits(measured: list[Trial]):
    assert chosen(measured) is None


def stopped(measured: list[Trial], *, budget_bytes: int = PLENTY) -> str | None:
    return why_stop(measured, budget_bytes=budget_bytes, loaded_bytes=GIB)


def test_trials_go_on_while_speed_grows():
    assert stopped([]) is None
    assert stopped(trials(100)) is None
    assert stopped(trials(100, 190, 350)) is None


def test_one_size_without_a_gain_is_forgiven_and_two_are_not():
    assert stopped(trials(100, 101)) is None
    assert stopped(trials(100, 101, 180)) is None
    assert stopped(trials(100, 101, 102)) == "larger batches are no faster"


def test_trials_end_when_memory_runs_out():
    assert stopped([*trials(100), exhausted(4)]) == "memory ran out at 4"


def test_trials_end_before_a_size_that_would_be_over_the_budget():
    # With 1.0 GiB loaded, 8 images take 1.8 and so 16 take at most 2.6.
    assert stopped(trials(1, 2, 4), budget_bytes=int(2.7 * GIB)) is None
    assert stopped(trials(1, 2, 4), budget_bytes=int(2.5 * GIB)) == (
        "16 would be over the memory budget"
    )
    assert stopped(trials(1, 2, 4), budget_bytes=int(1.7 * GIB)) == ("8 are over the memory budget")


def test_trials_end_before_a_batch_that_would_take_long():
    assert stopped(trials(0.4)) is None  # 2 images in 5 s, so 4 in 10 s
    assert stopped(trials(0.39)) == "4 would take more than 10 s"


def test_trials_end_at_the_largest_size():
    assert stopped(trials(*(2.0**i * 1000 for i in range(10)))) == "1024 is the largest size tried"


@pytest.mark.parametrize(
    ("total", "each", "capacity", "sharing"),
    [
        (2, 0.5, 1, 2),  # captioner and filter on one GPU
        (16, 0.25, 1, 4),  # sixteen workers, four to a GPU
        (8, 1, 1, 1),
        (8, 2, 1, 1),  # a worker with two GPUs shares none
        (8, 0, 1, 8),  # nothing is reserved: all may be on one
        (100, 4, 64, 16),
    ],
)
def test_workers_share_what_their_reservations_let_them(
    total: int, each: float, capacity: float, sharing: int
):
    assert workers_sharing(total, each=each, capacity=capacity) == sharing


def test_a_budget_is_a_share_among_workers_and_says_so():
    budget = Budget(available_bytes=24 * GIB, share=0.75, workers=2)
    assert budget.worker_bytes == 9 * GIB
    assert budget.describe() == "0.75 of 24.0 GiB, for 2 workers"
