from __future__ import annotations

import pytest

from capfilt.errors import CapfiltError
from capfilt.workers.order import EpochOrder


def rows(order: EpochOrder, start: int, stop: int) -> list[int]:
    return [order(position) for position in range(start, stop)]


def test_every_epoch_meets_every_row_once_in_an_order_of_its_own() -> None:
    order = EpochOrder(num_rows=50, seed=3)
    epochs = [rows(order, start, start + 50) for start in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, list(range(50))]}) == 4


def test_a_position_says_all_there_is_to_know() -> None:
    straight = rows(EpochOrder(num_rows=7, seed=3), 0, 21)
    resumed = EpochOrder(num_rows=7, seed=3)
    assert rows(resumed, 16, 21) == straight[16:]
    assert rows(resumed, 0, 5) == straight[:5]


def test_another_seed_is_another_order() -> None:
    assert rows(EpochOrder(num_rows=50, seed=3), 0, 50) != rows(
        EpochOrder(num_rows=50, seed=4), 0, 50
    )


def test_one_row_is_too_few() -> None:
    with pytest.raises(CapfiltError, match="at least 2 pairs, and there are 1"):
        EpochOrder(num_rows=1, seed=0)
