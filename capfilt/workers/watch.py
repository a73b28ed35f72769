"""Watches a training: one line of log now and then, a journal as JSON lines, and TensorBoard.

<folder>/<phase>/metrics.jsonl            always
<folder>/<phase>/events.out.tfevents...   if asked for: tensorboard --logdir <folder>

options = WatchOptions(phase="pretrain", num_steps=10_000)
with Watcher(folder, options) as watcher:
    for metrics in pretraining(...).run(batches):
        watcher.step(metrics)
        if it_is_time:
            watcher.held_out(measure_held_out(...))
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from capfilt.io.journal import Journal, JsonLines
from capfilt.io.tensorboard import EventFile
from capfilt.meter import Peak
from capfilt.workers.watch_text import held_out_lines, place_text, sample_line, step_line
from capfilt_blip.evaluate.heldout import HeldOut
from capfilt_blip.tasks.recall import KS, Recalls
from capfilt_blip.train.errors import TrainingError
from capfilt_blip.train.settings import StepMetrics

log = logging.getLogger(__name__)

COUNTS = ("step", "num_samples")
"""Fields of StepMetrics that are no mean of some steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """What a training is, for those who watch it."""

    phase: str
    """pretrain, captioner, filter ...: the name of its folder and of its curves."""
    num_steps: int | None = None
    """Of the phase; the time to go is shown if it is known."""
    log_every: int = 10
    """Steps from one line to the next; a line has the means of the steps since the last, and the
    learning rate of its own."""
    tensorboard: bool = False
    """Write TensorBoard's files too; needs the extra `tensorboard`."""
    flops_per_sample: float | None = None
    """Operations a pair needs: `capfilt_blip.train.cost`. None shows no MFU."""
    peak: Peak | None = None
    """Of all devices together, `gauges.peak_of` times their number. None shows no MFU."""


class Watcher:
    """Shows and notes what a training does.

    A training never fails for it: a journal that cannot be written is given up, with one warning.
    With several processes let one of them watch. What looks wrong is for the caller to find out:
    `capfilt_blip.train.alarms`.

    Args:
        folder: of the journals, such as <run>/events/train; it is made. None keeps none.
        options: see `WatchOptions`.
        clock: seconds that never go back.

    Raises:
        MissingDependencyError: TensorBoard's files are asked for and tensorboardX is missing.
    """

    def __init__(
        self,
        folder: Path | None,
        options: WatchOptions,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._options = options
        self._journals = [] if folder is None else _opened(folder / options.phase, options)
        self._means = _Means()
        self._pace = _Pace(clock)
        self._step = 0

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, TrainingError):
            self._note({}, {"warning": [str(error)]})  # who ends the training tells it
        self.close()

    def step(self, metrics: StepMetrics) -> None:
        """Take note of a step; call it after each one."""
        self._step = metrics.step
        self._pace.saw(metrics)
        self._means.add(
            {name: v for name, v in asdict(metrics).items() if name not in COUNTS and v is not None}
        )
        last = self._options.num_steps is not None and metrics.step + 1 == self._options.num_steps
        if metrics.step % self._options.log_every == 0 or last:
            self._report(metrics)

    def warn(self, line: str) -> None:
        """Take note of what looks wrong after the last step."""
        log.warning("%s: %s", self._place(), line)
        self._note({}, {"warning": [line]})

    def held_out(self, found: HeldOut) -> None:
        """Take note of a measurement after the last step; its time is not counted as training."""
        for line in held_out_lines(self._place(), found=found):
            log.info("%s", line)
        self._note(_held_out_values(found), _held_out_texts(found))
        self._pace.pause()

    def close(self) -> None:
        """Close the journals."""
        for journal in self._journals:
            _tried(journal.close)
        self._journals = []

    def _report(self, metrics: StepMetrics) -> None:
        values = {**self._means.take(), **self._speed(metrics)}
        values["learning_rate"] = metrics.learning_rate  # that of the step: a mean is no rate of it
        log.info("%s", step_line(self._place(), values=values))
        self._note({**values, "num_samples": metrics.num_samples}, {})

    def _place(self) -> str:
        options = self._options
        return place_text(options.phase, self._step, num_steps=options.num_steps)

    def _speed(self, metrics: StepMetrics) -> dict[str, float]:
        """What can be said: nothing at the first step, whose begin was not seen."""
        options, rate = self._options, self._pace.take_samples_per_s()
        if rate is None:
            return {}
        speed = {"samples_per_s": rate}
        if options.flops_per_sample is not None and options.peak is not None:
            speed["mfu"] = rate * options.flops_per_sample / options.peak.flops_per_s
        if options.num_steps is not None:
            speed["eta_s"] = self._pace.s_per_step() * (options.num_steps - metrics.step - 1)
        return speed

    def _note(self, values: Mapping[str, float], texts: Mapping[str, Sequence[str]]) -> None:
        def note(journal: Journal) -> bool:
            return _tried(lambda: journal.write(step=self._step, values=values, texts=texts))

        noted = [journal for journal in self._journals if note(journal)]
        for journal in self._journals:
            if journal not in noted:
                with suppress(OSError):  # the same failure once more
                    journal.close()
        self._journals = noted


class _Means:
    """Means of numbers by name, since they were last taken."""

    def __init__(self) -> None:
        self._rows: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._rows[name].append(value)

    def take(self) -> dict[str, float]:
        means = {name: sum(row) / len(row) for name, row in self._rows.items()}
        self._rows.clear()
        return means


class _Pace:
    """How fast steps follow each other; what lies between a pause and the next step counts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[float, int] | None = None  # time, and pairs seen
        self._recent_s, self._recent_samples = 0.0, 0
        self._all_s, self._all_steps = 0.0, 0

    def saw(self, metrics: StepMetrics) -> None:
        now = self._clock()
        if self._last is not None:
            self._recent_s += now - self._last[0]
            self._recent_samples += metrics.num_samples - self._last[1]
            self._all_s += now - self._last[0]
            self._all_steps += 1
        self._last = now, metrics.num_samples

    def pause(self) -> None:
        """Leave out the time since the last step."""
        if self._last is not None:
            self._last = self._clock(), self._last[1]

    def take_samples_per_s(self) -> float | None:
        """Pairs a second since it was last asked; None without a time to divide by."""
        samples, seconds = self._recent_samples, self._recent_s
        self._recent_s, self._recent_samples = 0.0, 0
        return samples / seconds if seconds > 0 else None

    def s_per_step(self) -> float:
        return self._all_s / self._all_steps


def _opened(folder: Path, options: WatchOptions) -> list[Journal]:
    """The journals that can be opened; for one that cannot there is a warning."""
    found = list[Journal]()
    if options.tensorboard:
        _tried(lambda: found.append(EventFile(folder)))
    _tried(lambda: found.append(JsonLines(folder / "metrics.jsonl", phase=options.phase)))
    return found


def _tried(act: Callable[[], object]) -> bool:
    """Do what may fail for lack of disk; False, and a warning, if it does."""
    try:
        act()
    except OSError as err:
        log.warning("a journal of the training is given up, the training goes on: %s", err)
        return False
    return True


def _held_out_values(found: HeldOut) -> dict[str, float]:
    values = dict[str, float]()
    for name, recalls in (("itc", found.itc), ("itm", found.itm)):
        if recalls is not None:
            values |= _recall_values(f"held_out/{name}", recalls)
    if found.cider_d is not None:
        values["held_out/cider_d"] = found.cider_d
    return values


def _recall_values(prefix: str, found: Recalls) -> dict[str, float]:
    shares = {"text": found.texts, "image": found.images}
    return {
        f"{prefix}_{of}_r{k}": share
        for of, row in shares.items()
        for k, share in zip(KS, row, strict=True)
    }


def _held_out_texts(found: HeldOut) -> dict[str, list[str]]:
    lines = [sample_line(sample) for sample in found.captions]
    return {"held_out/captions": lines} if lines else {}
