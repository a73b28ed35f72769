from __future__ import annotations

from capfilt.io.rows import LazyRows


def test_rows_are_read_when_they_are_asked_for_and_not_kept() -> None:
    read: list[int] = []

    def row(plan: int) -> str:
        read.append(plan)
        return str(plan)

    rows = LazyRows([1, 2, 3], row)
    assert (len(rows), read) == (3, [])
    assert rows[-1] == "3"
    assert rows[:2] == ["1", "2"]
    assert list(rows) == ["1", "2", "3"]
    assert read == [3, 1, 2, 1, 2, 3]
