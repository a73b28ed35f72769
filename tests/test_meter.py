"""A meter adds up what it is told, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from capfilt.meter import Memory, Meter, Peak, effort_of, span_of


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def move(self, seconds: float) -> None:
        self.now_s += seconds


class ListedSpans:
    """Spans in a list."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float, float, dict[str, int]]] = []
        self.closed = False

    def add(self, name: str, *, began_s: float, ended_s: float, counts: dict[str, int]) -> None:
        self.found.append((name, began_s, ended_s, counts))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def slow_batches(clock: HandClock, *waits_s: float) -> Iterator[float]:
    for wait_s in waits_s:
        clock.move(wait_s)
        yield wait_s


def work(meter: Meter, clock: HandClock) -> None:
    with meter.working(num_inputs=4):
        for _ in meter.awaited(slow_batches(clock, 3.0, 0.5)):
            with meter.span("caption", images=2):
                clock.move(10.0)
            meter.add(num_images=2, flops=5e9)


def test_waiting_is_a_part_of_the_working_time(clock: HandClock):
    meter = Meter(clock=clock)
    work(meter, clock)
    effort = meter.take()
    assert (effort.busy_s, effort.waiting_s) == (23.5, 3.5)
    assert (effort.num_images, effort.flops) == (4, 1e10)


def test_what_was_taken_is_not_counted_again(clock: HandClock):
    meter = Meter(clock=clock)
    work(meter, clock)
    meter.take()
    effort = meter.take()
    assert (effort.busy_s, effort.waiting_s, effort.num_images, effort.flops) == (0, 0, 0, None)


def test_a_model_that_counts_no_operations_has_none(clock: HandClock):
    meter = Meter(clock=clock)
    meter.add(num_images=2, flops=None)
    assert meter.take().flops is None


def test_work_that_fails_took_its_time_all_the_same(clock: HandClock):
    meter = Meter(clock=clock)
    with pytest.raises(ValueError, match="bad"), meter.working(num_inputs=1):
        clock.move(2.0)
        raise ValueError("bad")
    assert meter.take().busy_s == 2.0


def test_the_effort_says_who_with_what_and_when(clock: HandClock):
    peak, memory = Peak(flops_per_s=1e12, label="CPU"), Memory(host_bytes=7)
    meter = Meter(worker="host:1", peak=peak, memory=lambda: memory, clock=clock)
    work(meter, clock)
    effort = meter.take()
    assert (effort.worker, effort.peak, effort.memory) == ("host:1", peak, memory)
    assert effort.began_s <= effort.ended_s


def test_spans_of_the_trace_lie_in_each_other_and_add_up(clock: HandClock):
    spans = ListedSpans()
    meter = Meter(spans=spans, clock=clock)
    work(meter, clock)
    effort = meter.take()
    [whole] = [span for span in spans.found if span[0] == "work"]
    waits = [span for span in spans.found if span[0] == "wait for pixels"]
    assert whole == ("work", 100.0, 123.5, {"inputs": 4})
    assert sum(ended - began for _, began, ended, _ in waits) == effort.waiting_s
    assert all(whole[1] <= began <= ended <= whole[2] for _, began, ended, _ in spans.found)
    assert [s for s in spans.found if s[0] == "caption"][1] == (
        "caption",
        113.5,
        123.5,
        {"images": 2},
    )


class Measured:
    def __init__(self, meter: Meter) -> None:
        self.meter = meter


def test_a_worker_without_a_meter_has_no_effort_and_no_spans(clock: HandClock):
    spans = ListedSpans()
    assert effort_of(object()) is None
    with span_of(object(), "commit"):
        pass
    worker = Measured(Meter(spans=spans, clock=clock))
    with span_of(worker, "commit"):
        clock.move(1.0)
    assert spans.found == [("commit", 100.0, 101.0, {})]
    assert effort_of(worker) is not None


def test_closing_ends_the_trace(clock: HandClock):
    spans = ListedSpans()
    Meter(spans=spans).close()
    assert spans.closed
