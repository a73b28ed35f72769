"""Turn hostile image bytes into pixels, without ever decoding them in this process.

    decoder = ImageDecoder(ImageLimits(), num_processes=2)
    decoder.inspect(images)            # -> Inspected or Refused per image
    decoder.pixels(images, side_px=384)  # -> (384, 384, 3) uint8 or Refused per image
    decoder.fill(places, images, orders)  # the same into given arrays, changed at random
    decoder.close()

Images are decoded by child processes (`decode_child.py`). A child that runs out of time, out of
memory or into a fault of a C library dies; its image is refused, the images around it keep their
results, and a new child takes its place.
"""

from __future__ import annotations

import select
import signal
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self, cast

import numpy as np
import numpy.typing as npt

from capfilt.config import Decoding
from capfilt.errors import CapfiltError
from capfilt.io.decode_process import Answer, DecodeProcess, Task
from capfilt.io.decode_program import ChildPart, check_decoding
from capfilt.io.decode_wire import Fit, ImageLimits, Inspected, Refused, Resampling, refuse
from capfilt.records import Reason

__all__ = [
    "SQUASH",
    "Fit",
    "ImageDecoder",
    "ImageLimits",
    "Inspected",
    "Refused",
    "Resampling",
    "check_decoding",
]

SQUASH = Fit()
"""Both sides scaled to the square's, bicubic, as BLIP's evaluation does."""

_MAX_DEATHS = 2
"""A child may die of something else (a full machine, a stray kill), so an image is tried again."""

_MAX_FAILED_STARTS = 3


class ImageDecoder:
    """A few child processes that decode images. For one thread at a time; not picklable.

    Args:
        limits: what an image may ask of the machine.
        num_processes: children, each on one core. They start with the first images.
        decoding: how squares are made: exactly, or faster (`squares.py`).
        part: code of another layer that the children run; `fill` needs it.

    Raises:
        MissingDependencyError: that way of decoding needs a package that is not installed.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        num_processes: int = 1,
        decoding: Decoding = "exact",
        part: ChildPart | None = None,
    ) -> None:
        check_decoding(decoding, asked_by="decoding")
        assert num_processes >= 1, f"num_processes is {num_processes}"
        self._limits = limits
        self._decoding = decoding
        self._part = part
        self._num_processes = num_processes
        self._processes: list[DecodeProcess] = []
        self._failed_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The child processes that run now."""
        return [process.pid for process in self._processes]

    def inspect(self, images: Sequence[bytes]) -> list[Inspected | Refused]:
        """Decode images whole and say what they are.

        Args:
            images: encoded, as found.

        Returns:
            One answer per image, in the same order.

        Raises:
            CapfiltError: no child process can be started.
        """
        tasks = [Task(position, image, None, SQUASH) for position, image in enumerate(images)]
        return cast("list[Inspected | Refused]", self._decode(tasks))

    def pixels(
        self, images: Sequence[bytes], *, side_px: int, fit: Fit = SQUASH
    ) -> list[npt.NDArray[np.uint8] | Refused]:
        """Decode images and bring them into squares.

        Args:
            images: encoded, as found.
            side_px: of the squares.
            fit: how; as it stands, both sides are scaled and nothing is cropped.

        Returns:
            One answer per image, in the same order: (side_px, side_px, 3) uint8 RGB, or a refusal.

        Raises:
            CapfiltError: no child process can be started.
        """
        places = np.empty((len(images), side_px, side_px, 3), np.uint8)
        tasks = [
            Task(position, image, place, fit)
            for position, (image, place) in enumerate(zip(images, places, strict=True))
        ]
        return cast("list[npt.NDArray[np.uint8] | Refused]", self._decode(tasks))

    def fill(
        self,
        places: Sequence[npt.NDArray[np.uint8]],
        images: Sequence[bytes],
        orders: Sequence[bytes],
    ) -> list[Refused | None]:
        """Decode images, each changed as its order says, to where they are wanted.

        Args:
            places: one contiguous (S, S, 3) uint8 per image, for RGB; that of a refused image holds
                anything afterwards.
            images: encoded, as found.
            orders: one per image, as the children's part reads them.

        Returns:
            A refusal, or None for success, per image, in the same order.

        Raises:
            CapfiltError: no child process can be started.
        """
        assert self._part is not None, "the children have no part that reads orders"
        tasks = [
            Task(position, image, place, SQUASH, order)
            for position, (place, image, order) in enumerate(
                zip(places, images, orders, strict=True)
            )
        ]
        answers = self._decode(tasks)
        return [answer if isinstance(answer, Refused) else None for answer in answers]

    def close(self) -> None:
        """End the child processes. The decoder can still be used: they start again."""
        for process in self._processes:
            process.kill()
        self._processes.clear()

    # A child that answers with the other operation's kind is killed (`decode_wire.is_expected`), so
    # the casts above hold.
    def _decode(self, tasks: Sequence[Task]) -> list[Answer]:
        self._failed_starts = 0
        answers: dict[int, Answer] = {}
        waiting: deque[Task] = deque()
        for task in tasks:
            if len(task.image) > self._limits.max_bytes:
                answers[task.position] = _too_many_bytes(len(task.image), self._limits)
            else:
                waiting.append(task)
        try:
            while len(answers) < len(tasks):
                self._take_turn(waiting, answers)
        except BaseException:
            self.close()  # or the answers on their way would meet the next call's images
            raise
        return [answers[position] for position in range(len(tasks))]

    def _take_turn(self, waiting: deque[Task], answers: dict[int, Answer]) -> None:
        while len(self._processes) < self._num_processes:
            process = DecodeProcess(self._limits, decoding=self._decoding, part=self._part)
            self._processes.append(process)
        for depth in (1, 2):  # one image in work and one on its way; but first, one for each child
            for process in self._processes:
                process.hand_out(waiting, max_in_flight=depth)
        _wait_for_any(self._processes)
        for process in list(self._processes):
            answers.update((task.position, answer) for task, answer in process.collect())
            if process.ended or process.overdue():
                self._bury(process, waiting, answers)
            elif process.worn_out:
                process.kill()
                self._processes.remove(process)

    def _bury(
        self, process: DecodeProcess, waiting: deque[Task], answers: dict[int, Answer]
    ) -> None:
        """Replace a dead or silent child; blame the image it was at, and only that one."""
        overdue = not process.ended
        exit_code, last_words = process.kill()
        self._processes.remove(process)
        unanswered = list(process.in_flight)
        if not process.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise CapfiltError(
                    f"image decoder: {self._failed_starts} child processes in a row ended before "
                    f"their first image, the last with code {exit_code}: {last_words!r}"
                )
        elif unanswered:
            self._failed_starts = 0
            culprit = unanswered[0]
            culprit.deaths += 1
            verdict = _verdict(culprit, exit_code, overdue=overdue, limits=self._limits)
            if verdict is not None:
                answers[culprit.position] = verdict
                unanswered = unanswered[1:]
        waiting.extendleft(reversed(unanswered))


def _verdict(task: Task, exit_code: int, *, overdue: bool, limits: ImageLimits) -> Refused | None:
    """Refuse the image a child died at, or None if it deserves another try."""
    if exit_code == -signal.SIGPROF:
        return refuse(Reason.DECODE_TIMEOUT, f"needs more than {limits.timeout_s:g} s of CPU time")
    if task.deaths < _MAX_DEATHS:
        return None
    if overdue:
        return refuse(Reason.DECODE_TIMEOUT, f"no answer from the decoder, {task.deaths} times")
    return refuse(Reason.DECODE_CRASHED, f"ended the decoder, {task.deaths} times")


def _too_many_bytes(num_bytes: int, limits: ImageLimits) -> Refused:
    found = f"image has {num_bytes} bytes; {limits.max_bytes} are allowed"
    return refuse(Reason.IMAGE_BYTES_TOO_MANY, found)


def _wait_for_any(processes: Sequence[DecodeProcess]) -> None:
    """Sleep until a child can be read from or written to, or is due to be killed."""
    poll = select.poll()
    for process in processes:
        process.register(poll)
    due_s = min((process.seconds_left() for process in processes), default=0.0)
    poll.poll(max(0.0, due_s) * 1000)
