from __future__ import annotations

from capfilt.pool import ShardReport
from capfilt.route import Route


def report(stage: str, shard: int) -> ShardReport:
    return ShardReport(stage=stage, shard=shard, rows_in=1, kept=1, dropped={})


def test_a_new_shard_waits_for_the_first_job():
    route = Route([{}, {}])
    assert route.arrive(5, 0) == []
    assert [list(queue) for queue in route.waiting] == [[5], []]


def test_a_committed_shard_passes_to_the_next_job_and_says_so():
    route = Route([{5: report("first", 5)}, {}])
    [passed] = route.arrive(5, 0)
    assert (passed.stage, passed.already) == ("first", True)
    assert [list(queue) for queue in route.waiting] == [[], [5]]


def test_a_shard_committed_everywhere_waits_nowhere():
    route = Route([{5: report("first", 5)}, {5: report("second", 5)}])
    assert [passed.stage for passed in route.arrive(5, 0)] == ["first", "second"]
    assert not any(route.waiting)


def test_a_shard_that_only_a_later_job_committed_is_still_worked_on():
    route = Route([{}, {5: report("second", 5)}])
    assert route.arrive(5, 0) == []
    assert [passed.stage for passed in route.arrive(5, 1)] == ["second"]
