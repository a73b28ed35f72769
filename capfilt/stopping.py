"""Stop on request: SIGTERM and Ctrl-C become a flag that a run looks at between two shards.

A batch system gives a process some 30 s between SIGTERM and SIGKILL, so what is in flight has
`within_s` to finish; after that, or at a second signal, `Stopped` is raised wherever the process
stands. Nothing is lost either way: a shard that is not committed is made again by the next run.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from capfilt.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPING = b"\ncapfilt: stopping when what is at hand is done; Ctrl-C again stops at once\n"

_heard = threading.Event()


class StopRequest:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def raise_if_requested(self) -> None:
        """End the run between two shards.

        Raises:
            Stopped: the process was asked to stop.
        """
        if self.requested:
            raise Stopped("stopped on request; the same command goes on from here")


def is_stop_requested() -> bool:
    """Whether this process was asked to stop and still works on something.

    For work that takes far longer than the time it is given, and can save where it stands.
    """
    return _heard.is_set()


@contextmanager
def stop_on_signals(*, within_s: float = 20.0) -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request, for as long as the block runs.

    Outside the main thread, where Python allows no signal handlers, the request never comes.

    Args:
        within_s: time from the first signal to `Stopped` being raised in any case.

    Yields:
        The request, to be looked at wherever stopping is cheap.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise Stopped("stopped at once; the same command goes on from the last commit")
        request.requested = True
        _heard.set()
        if number == signal.SIGINT:
            # Not through sys.stderr: a handler may interrupt a write to it.
            with suppress(OSError):
                os.write(2, STOPPING)
        signal.setitimer(signal.ITIMER_REAL, within_s)

    handled = (*STOP_SIGNALS, signal.SIGALRM)
    previous = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield request
    finally:
        _heard.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
