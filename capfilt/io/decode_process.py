"""One child process of `images.ImageDecoder`, seen from its parent: start, feed, listen, kill.

Nothing here blocks. Both pipes are non-blocking; up to two images are under way, so that one is
copied while the other is decoded, and the oldest of them is the one the child is at.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfilt.config import Decoding
from capfilt.io.decode_program import ChildPart, child_command, child_environment
from capfilt.io.decode_wire import (
    ANSWER,
    REQUEST,
    Fit,
    ImageLimits,
    Inspected,
    Kind,
    Operation,
    Refused,
    is_expected,
    unpack_small,
)

MAX_IMAGES_PER_CHILD = 10_000
"""A child is replaced after this many, so that memory lost in C libraries cannot add up."""

_START_TIMEOUT_S = 60.0  # importing Pillow takes 0.15 s, minutes on a cold network file system
_PATIENCE = 5  # wall seconds per CPU second allowed: a child that waits for a core is not at fault
_PIPE_BYTES = 2**20  # Linux gives a pipe 64 KiB, a 384 px answer has 432

Answer = Inspected | Refused | npt.NDArray[np.uint8]


@dataclass(slots=True)
class Task:
    """One image on its way through the children."""

    position: int  # in the call's list
    image: bytes
    place: npt.NDArray[np.uint8] | None  # (S, S, 3), for the pixels asked for; None to inspect
    fit: Fit  # into that square
    order: bytes = b""  # for the child's part of another layer
    deaths: int = 0  # of children that were at this image

    @property
    def side_px(self) -> int | None:
        """S, if pixels are asked for."""
        return None if self.place is None else len(self.place)


class DecodeProcess:
    """A running child.

    Args:
        limits: what an image may ask of the child.
        decoding: how it makes squares.
        part: code of another layer that it runs.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        decoding: Decoding = "exact",
        part: ChildPart | None = None,
    ) -> None:
        self.ready = False
        """Whether it has started: what goes wrong before is not an image's fault."""
        self.ended = False
        """Whether it has closed its output, or sent what no honest child sends."""
        self.in_flight: deque[Task] = deque()
        """Images handed out and not answered; the child is at the first."""
        self._limits = limits
        self._handed_out = 0
        self._outbox: deque[memoryview] = deque()
        self._header: tuple[int, int] | None = None  # kind and length of the body being read
        self._frame = memoryview(bytearray(ANSWER.size))
        self._filled = 0
        self._deadline_s = time.monotonic() + _START_TIMEOUT_S
        self._process = subprocess.Popen(
            child_command(limits, decoding, part),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            cwd="/",
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._requests = self._process.stdin
        self._answers = self._process.stdout
        self._complaints = self._process.stderr  # nothing is written to it once the child is ready
        for pipe in (self._requests, self._answers):
            os.set_blocking(pipe.fileno(), False)
            _enlarge(pipe.fileno())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def worn_out(self) -> bool:
        """Whether it has decoded all the images one child may."""
        return self._handed_out >= MAX_IMAGES_PER_CHILD and not self.in_flight

    def hand_out(self, waiting: deque[Task], *, max_in_flight: int) -> None:
        """Take images from the front of the queue."""
        while (
            waiting
            and len(self.in_flight) < max_in_flight
            and self._handed_out < MAX_IMAGES_PER_CHILD
        ):
            task = waiting.popleft()
            # In one piece: each write may wake the child.
            self._outbox.append(memoryview(_header(task) + task.image))
            self.in_flight.append(task)
            self._handed_out += 1
            if self.ready and len(self.in_flight) == 1:
                self._restart_clock()
        self._send()

    def register(self, poll: select.poll) -> None:
        """Name the descriptors that something is expected of."""
        poll.register(self._answers, select.POLLIN)
        if self._outbox:
            poll.register(self._requests, select.POLLOUT)

    def seconds_left(self) -> float:
        """Until the child is overdue; an idle one never is."""
        idle = self.ready and not self.in_flight
        return 3600.0 if idle else self._deadline_s - time.monotonic()

    def overdue(self) -> bool:
        """Whether an answer should long have come."""
        return self.seconds_left() <= 0

    def collect(self) -> Iterator[tuple[Task, Answer]]:
        """Send what can be sent, then yield the answers that have come, oldest image first."""
        self._send()
        while not self.ended and self._fill():
            if self._header is None:
                self._begin_body()
            else:
                yield from self._finish_body()

    def kill(self) -> tuple[int, str]:
        """End the child at once.

        Returns:
            Its exit code (negative: of a signal), and the last line of its complaints if it never
            got ready.
        """
        self._process.kill()
        exit_code = self._process.wait()
        complaints = b"" if self.ready else self._complaints.read()
        for pipe in (self._requests, self._answers, self._complaints):
            with contextlib.suppress(OSError):
                pipe.close()
        return exit_code, complaints.decode("utf-8", "replace").strip().rpartition("\n")[2]

    def _restart_clock(self) -> None:
        self._deadline_s = time.monotonic() + _PATIENCE * self._limits.timeout_s

    def _send(self) -> None:
        while self._outbox:
            try:
                sent = os.write(self._requests.fileno(), self._outbox[0])
            except BlockingIOError:
                return
            except BrokenPipeError:  # its output will end too, and that is acted upon
                self._outbox.clear()
                return
            if sent < len(self._outbox[0]):
                self._outbox[0] = self._outbox[0][sent:]
            else:
                self._outbox.popleft()

    def _fill(self) -> bool:
        """Read on; whether the frame is complete."""
        while self._filled < len(self._frame):
            try:
                received = os.readv(self._answers.fileno(), [self._frame[self._filled :]])
            except BlockingIOError:
                return False
            if received == 0:
                self.ended = True
                return False
            self._filled += received
        return True

    def _begin_body(self) -> None:
        kind, num_bytes = ANSWER.unpack(self._frame)
        if not self.ready:
            self.ended = (kind, num_bytes) != (Kind.READY, 0)
            self.ready = not self.ended
            self._restart_clock()
            self._expect_header()
        elif self.in_flight and is_expected(kind, num_bytes, side_px=self.in_flight[0].side_px):
            self._header = (kind, num_bytes)
            place = self.in_flight[0].place
            if kind == Kind.PIXELS and place is not None:  # straight to where they are wanted
                self._frame = place.data.cast("B")
            else:
                self._frame = memoryview(bytearray(num_bytes))
            self._filled = 0
        else:
            self.ended = True

    def _finish_body(self) -> Iterator[tuple[Task, Answer]]:
        assert self._header is not None
        kind, task = Kind(self._header[0]), self.in_flight[0]
        try:
            answer = self._read_answer(kind, task)
        except ValueError:
            self.ended = True
            return
        self.in_flight.popleft()
        self._restart_clock()
        self._expect_header()
        yield task, answer

    def _read_answer(self, kind: Kind, task: Task) -> Answer:
        if kind is Kind.PIXELS:
            assert task.place is not None
            return task.place
        return unpack_small(kind, bytes(self._frame), self._limits)

    def _expect_header(self) -> None:
        self._header = None
        self._frame = memoryview(bytearray(ANSWER.size))
        self._filled = 0


def _header(task: Task) -> bytes:
    operation = Operation.INSPECT if task.side_px is None else Operation.PIXELS
    fit = (task.fit.crop_from_px or 0, task.fit.resampling)
    sizes = (len(task.order), len(task.image))
    return REQUEST.pack(operation, task.side_px or 0, *fit, *sizes) + task.order


def _enlarge(pipe: int) -> None:
    # Linux only, and a user's pipes may together have only so much; a small pipe works too.
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
