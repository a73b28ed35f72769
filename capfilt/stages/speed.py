"""Speed: how fast the workers of a stage are, summed from the events of a run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from capfilt.meter import Effort, Memory
from capfilt.stages.events import ShardEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What one worker did, or all workers of a stage together."""

    worker: str  # host:pid, or how many there were
    num_images: int
    busy_s: float  # of all workers, added
    waiting_s: float  # of that, for pixels
    wall_s: float  # from the first shard to the last, without the time between two attempts
    busy_images_per_s: float | None  # of one worker at work, on average
    wall_images_per_s: float | None  # of all of them, whatever they did
    achieved_flops_per_s: float | None  # of one worker, on average, waiting included
    peak_flops_per_s: float | None  # the same
    peak_labels: tuple[str, ...]  # of which devices, and whether it is published or measured
    memory: Memory  # the most one worker has held

    @property
    def waiting_share(self) -> float | None:
        """Part of the working time in which there were no pixels, in [0, 1]."""
        return _ratio(self.waiting_s, self.busy_s)

    @property
    def mfu(self) -> float | None:
        """Model FLOP utilization: achieved over peak (PaLM, arXiv:2204.02311, sec. 4.1)."""
        if self.achieved_flops_per_s is None or self.peak_flops_per_s is None:
            return None
        return _ratio(self.achieved_flops_per_s, self.peak_flops_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpeed:
    """A stage's workers, the last one seen first, and all of them together."""

    total: Speed
    workers: tuple[Speed, ...]


def stage_speed(events: Iterable[ShardEvent]) -> StageSpeed | None:
    """Sum the events of one table; None if there are none.

    Args:
        events: of one stage under one plan, all attempts.
    """
    by_worker: dict[str, list[ShardEvent]] = {}
    for event in sorted(events, key=lambda event: event.effort.ended_s, reverse=True):
        by_worker.setdefault(event.effort.worker, []).append(event)
    if not by_worker:
        return None
    workers = tuple(_speed(worker, found) for worker, found in by_worker.items())
    if len(workers) == 1:
        return StageSpeed(total=workers[0], workers=workers)
    together = [event for found in by_worker.values() for event in found]
    return StageSpeed(total=_speed(f"all {len(workers)}", together), workers=workers)


def _speed(worker: str, events: Sequence[ShardEvent]) -> Speed:
    efforts = [event.effort for event in events]
    num_images, busy_s = sum(e.num_images for e in efforts), sum(e.busy_s for e in efforts)
    wall_s = _wall_s(events)
    return Speed(
        worker=worker,
        num_images=num_images,
        busy_s=busy_s,
        waiting_s=sum(e.waiting_s for e in efforts),
        wall_s=wall_s,
        busy_images_per_s=_ratio(num_images, busy_s),
        wall_images_per_s=_ratio(num_images, wall_s),
        achieved_flops_per_s=_achieved(efforts),
        peak_flops_per_s=_peak(efforts),
        peak_labels=tuple(sorted({e.peak.label for e in efforts if e.peak is not None})),
        memory=_most([e.memory for e in efforts]),
    )


def _wall_s(events: Iterable[ShardEvent]) -> float:
    """Time from the first shard's begin to the last one's end, attempt by attempt."""
    spans: dict[Hashable, tuple[float, float]] = {}
    for event in events:
        began, ended = event.effort.began_s, event.effort.ended_s
        first, last = spans.get(event.attempt, (began, ended))
        spans[event.attempt] = (min(first, began), max(last, ended))
    return sum(last - first for first, last in spans.values())


def _achieved(efforts: Iterable[Effort]) -> float | None:
    counted = [(e.flops, e.busy_s) for e in efforts if e.flops is not None]
    return _ratio(sum(flops for flops, _ in counted), sum(seconds for _, seconds in counted))


def _peak(efforts: Iterable[Effort]) -> float | None:
    known = [(e.peak.flops_per_s, e.busy_s) for e in efforts if e.peak and e.flops is not None]
    return _ratio(sum(rate * seconds for rate, seconds in known), sum(s for _, s in known))


def _most(memories: Iterable[Memory]) -> Memory:
    found = list(memories)
    return Memory(
        host_bytes=max((m.host_bytes for m in found if m.host_bytes is not None), default=None),
        gpu_bytes=max((m.gpu_bytes for m in found if m.gpu_bytes is not None), default=None),
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
