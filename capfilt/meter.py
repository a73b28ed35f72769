"""What a worker's time goes into: measured beside the work, never part of a result.

with meter.working(num_inputs=12):
    for batch in meter.awaited(batches):       # the time in which there were no pixels
        with meter.span("caption", images=5):  # a span of the trace, if one is written
            ...
        meter.add(num_images=5, flops=6e11)
effort = meter.take()                          # since the last time it was asked
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

BatchT = TypeVar("BatchT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most a device can do, and whose word that is."""

    flops_per_s: float
    label: str  # such as "NVIDIA H200 bfloat16, published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The most a worker has held so far."""

    host_bytes: int | None = None  # resident, of its process and its decoding processes
    gpu_bytes: int | None = None  # allocated by torch; null without a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a worker spent on one shard. It differs from run to run, so no table holds it."""

    worker: str  # host:pid
    began_s: float  # UTC, since 1970
    ended_s: float
    busy_s: float  # in the worker's hands; waiting for pixels is in
    waiting_s: float  # for pixels
    num_images: int  # that the model saw
    flops: float | None  # that its answers need; null by a model that does not count
    peak: Peak | None
    memory: Memory


class Spans(Protocol):
    """Where spans of time go: `io.trace.TraceFile` is one."""

    def add(self, name: str, *, began_s: float, ended_s: float, counts: dict[str, int]) -> None:
        """Note a span of the thread that calls; times are of `time.perf_counter`."""
        ...

    def close(self) -> None:
        """Note no more."""
        ...


@dataclass(slots=True)
class _Counts:
    """What was counted since the last time it was taken."""

    began_s: float | None = None
    busy_s: float = 0.0
    waiting_s: float = 0.0
    num_images: int = 0
    flops: float | None = None


class Meter:
    """Adds up one worker's time, images and operations.

    Args:
        worker: its name.
        peak: of its device; None leaves the share of the peak out.
        memory: tells the most it has held.
        spans: the trace, if one is written.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        *,
        worker: str = "",
        peak: Peak | None = None,
        memory: Callable[[], Memory] = Memory,
        spans: Spans | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._worker = worker
        self._peak = peak
        self._memory = memory
        self._spans = spans
        self._clock = clock
        self._counts = _Counts()

    @contextmanager
    def working(self, *, num_inputs: int) -> Iterator[None]:
        """Count the block as the worker's time."""
        self._counts.began_s = self._counts.began_s or time.time()
        began = self._clock()
        try:
            with self.span("work", inputs=num_inputs):
                yield
        finally:
            self._counts.busy_s += self._clock() - began

    def awaited(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """Hand on what comes, and count the time until it came."""
        coming = iter(batches)
        while True:
            began = self._clock()
            with self.span("wait for pixels"):
                batch = next(coming, None)
            self._counts.waiting_s += self._clock() - began
            if batch is None:
                return
            yield batch

    @contextmanager
    def span(self, name: str, **counts: int) -> Iterator[None]:
        """Show the block in the trace. Any thread may call it.

        Args:
            name: of what is done.
            **counts: numbers shown with it.
        """
        began = self._clock()
        try:
            yield
        finally:
            if self._spans is not None:
                self._spans.add(name, began_s=began, ended_s=self._clock(), counts=counts)

    def add(self, *, num_images: int, flops: float | None) -> None:
        """Count images that the model saw, and the operations its answers needed."""
        self._counts.num_images += num_images
        if flops is not None:
            self._counts.flops = (self._counts.flops or 0.0) + flops

    def take(self) -> Effort:
        """What was counted since the last call."""
        counts, self._counts = self._counts, _Counts()
        now = time.time()
        return Effort(
            worker=self._worker,
            began_s=counts.began_s or now,
            ended_s=now,
            busy_s=counts.busy_s,
            waiting_s=counts.waiting_s,
            num_images=counts.num_images,
            flops=counts.flops,
            peak=self._peak,
            memory=self._memory(),
        )

    def close(self) -> None:
        """End the trace."""
        if self._spans is not None:
            self._spans.close()


@runtime_checkable
class Metered(Protocol):
    """A worker that has a meter."""

    @property
    def meter(self) -> Meter:
        """Its meter."""
        ...


def effort_of(worker: object) -> Effort | None:
    """What a worker spent since the last call; None by one without a meter."""
    return worker.meter.take() if isinstance(worker, Metered) else None


@contextmanager
def span_of(worker: object, name: str) -> Iterator[None]:
    """Show the block in the trace of a worker, if it has one."""
    if not isinstance(worker, Metered):
        yield
        return
    with worker.meter.span(name):
        yield
