"""How many images a batch should hold: chosen from measured trials, as plain data in and out.

Sizes 2, 4, 8 ... are tried in turn. More images per batch are faster up to a point, and take memory
past it; so the choice is the smallest size that fits and is nearly as fast as the fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GIB = 2**30

FIRST_SIZE = 2
"""A batch of one is filled up to two."""
LARGEST_SIZE = 1024
"""Past this, filling up the last batch of a shard of some thousand images costs more than is won.
"""
LEAST_GAIN = 0.03
"""Differences in speed below this are taken for noise."""
FLAT_STEPS = 2
"""Sizes in a row without a gain, after which no larger one is tried."""
LONGEST_BATCH_S = 10.0
"""A size is not tried if one batch of it would take longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one batch size was measured to cost; both are None where memory ran out."""

    batch_images: int
    seconds: float | None  # of one batch
    memory_bytes: int | None  # of the worker at its peak, the model included

    @property
    def images_per_s(self) -> float:
        """Speed; 0 where memory ran out."""
        return self.batch_images / self.seconds if self.seconds else 0.0

    def fits(self, budget_bytes: int) -> bool:
        """Whether it stays within a worker's memory."""
        return self.memory_bytes is not None and self.memory_bytes <= budget_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The memory that one worker may fill."""

    available_bytes: int  # of the device, or of the machine if the CPU computes
    share: float  # of it that workers may fill, in (0, 1]
    workers: int  # that are on it together

    @property
    def worker_bytes(self) -> int:
        """One worker's part."""
        return int(self.available_bytes * self.share / self.workers)

    def describe(self) -> str:
        """How it comes about: `0.8 of 24.0 GiB, for 2 workers`."""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{self.share:g} of {gib(self.available_bytes)}, for {workers}"


def choose(trials: Sequence[Trial], *, budget_bytes: int) -> Trial | None:
    """Choose the smallest batch that fits and is within 3 % of the best speed of those that fit.

    Args:
        trials: measured, in any order.
        budget_bytes: what the worker may fill at its peak.

    Returns:
        The trial of that size; None if no size fits.
    """
    fitting = [trial for trial in trials if trial.fits(budget_bytes)]
    best = max((trial.images_per_s for trial in fitting), default=0.0)
    fast = [trial for trial in fitting if trial.images_per_s >= (1 - LEAST_GAIN) * best]
    return min(fast, key=lambda trial: trial.batch_images, default=None)


def why_stop(trials: Sequence[Trial], *, budget_bytes: int, loaded_bytes: int) -> str | None:
    """Say why no larger size is worth a trial; None while one is.

    Args:
        trials: measured so far, sizes doubling.
        budget_bytes: what the worker may fill at its peak.
        loaded_bytes: what it fills without a batch.
    """
    if not trials:
        return None
    last = trials[-1]
    if last.memory_bytes is None or last.seconds is None:
        return f"memory ran out at {last.batch_images}"
    if last.memory_bytes > budget_bytes:
        return f"{last.batch_images} are over the memory budget"
    # What a batch fills grows at most in proportion. To find out by trying would be dangerous
    # without a GPU: the kernel kills what takes too much.
    if 2 * last.memory_bytes - loaded_bytes > budget_bytes:
        return f"{2 * last.batch_images} would be over the memory budget"
    if 2 * last.seconds > LONGEST_BATCH_S:
        return f"{2 * last.batch_images} would take more than {LONGEST_BATCH_S:g} s"
    if last.batch_images >= LARGEST_SIZE:
        return f"{last.batch_images} is the largest size tried"
    return "larger batches are no faster" if _is_flat(trials) else None


def _is_flat(trials: Sequence[Trial]) -> bool:
    speeds = [trial.images_per_s for trial in trials]
    before, after = speeds[:-FLAT_STEPS], speeds[-FLAT_STEPS:]
    return bool(before) and max(after) < (1 + LEAST_GAIN) * max(before)


def workers_sharing(total: int, *, each: float, capacity: float) -> int:
    """How many workers share one device or machine at most.

    Args:
        total: workers there are.
        each: what one reserves of it, in GPUs or CPUs; 0 if nothing is reserved.
        capacity: what there is: 1 GPU, or the machine's CPUs.
    """
    if each <= 0:
        return total
    return max(1, min(total, int(capacity / each)))


def gib(num_bytes: int) -> str:
    """Bytes for people: `3.1 GiB`."""
    return f"{num_bytes / GIB:.1f} GiB"
