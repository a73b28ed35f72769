from __future__ import annotations

from collections import Counter

import pytest

from capfilt.errors import CapfiltError
from capfilt.workers.order import EpochOrder, Share, steps_of
from capfilt_blip.train.world import World


def order_of(*num_rows: int, seed: int = 3) -> EpochOrder:
    return EpochOrder([Share(num_rows=number) for number in num_rows], seed=seed)


def rows(order: EpochOrder, start: int, stop: int) -> list[int]:
    return [order(position) for position in range(start, stop)]


def test_every_epoch_meets_every_row_once_in_an_order_of_its_own() -> None:
    order = order_of(30, 0, 20)
    epochs = [rows(order, start, start + 50) for start in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, list(range(50))]}) == 4


def test_a_position_says_all_there_is_to_know() -> None:
    straight = rows(order_of(7), 0, 21)
    resumed = order_of(7)
    assert rows(resumed, 16, 21) == straight[16:]
    assert rows(resumed, 0, 5) == straight[:5]


def test_another_seed_is_another_order() -> None:
    assert rows(order_of(50), 0, 50) != rows(order_of(50, seed=4), 0, 50)


def test_one_row_is_too_few() -> None:
    with pytest.raises(CapfiltError, match="at least 2 pairs, and there are 1"):
        order_of(1)


def test_a_source_of_weight_two_is_met_twice_an_epoch() -> None:
    order = EpochOrder([Share(num_rows=3), Share(num_rows=2, weight=2)], seed=0)
    assert order.epoch_size == 7
    for start in (0, 7):
        assert Counter(rows(order, start, start + 7)) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}


def test_a_source_of_weight_zero_is_never_met() -> None:
    order = EpochOrder([Share(num_rows=3, weight=0), Share(num_rows=2)], seed=0)
    assert set(rows(order, 0, 20)) == {3, 4}


def test_a_part_of_a_source_changes_until_all_of_it_was_met_alike() -> None:
    order = EpochOrder([Share(num_rows=6, weight=1 / 3), Share(num_rows=2)], seed=0)
    epochs = [rows(order, start, start + 4) for start in range(0, 12, 4)]
    assert [sum(row < 6 for row in epoch) for epoch in epochs] == [2, 2, 2]
    assert Counter(row for epoch in epochs for row in epoch if row < 6) == dict.fromkeys(
        range(6), 1
    )


def test_a_spare_row_is_of_the_epoch_and_the_same_each_time() -> None:
    order = EpochOrder([Share(num_rows=9, weight=0), Share(num_rows=9)], seed=0)
    spares = [order.spare(position, attempt=0) for position in range(40)]
    assert spares == [order.spare(position, attempt=0) for position in range(40)]
    assert set(spares) == set(range(9, 18))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_any_number_of_processes_takes_the_same_batches(size: int) -> None:
    ranks = [
        steps_of(first=12, stop=30, batch_size=6, world=World(rank=rank, size=size))
        for rank in range(size)
    ]
    batches = [[p for part in step for p in part] for step in zip(*ranks, strict=True)]
    assert batches == [list(range(start, start + 6)) for start in (12, 18, 24)]


def test_a_training_that_changes_its_processes_midway_meets_every_row_as_often() -> None:
    order = order_of(10)
    met = list[int]()
    for first, stop, size in ((0, 8, 4), (8, 20, 1), (20, 40, 2)):
        for rank in range(size):
            world = World(rank=rank, size=size)
            for step in steps_of(first=first, stop=stop, batch_size=4, world=world):
                met += [order(position) for position in step]
    assert Counter(met) == dict.fromkeys(range(10), 4)
