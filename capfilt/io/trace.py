"""A worker's spans of time as a file that chrome://tracing and Perfetto (ui.perfetto.dev) open.

The format is Chrome's trace events, an array of complete events (`"ph": "X"`, microseconds):
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. Each event is
written as it ends. The array is closed with the worker; both viewers also open one whose closing
bracket is missing, so the trace of a killed worker is not lost: `]` at its end makes it JSON.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

from capfilt.errors import StorageError

log = logging.getLogger(__name__)


class TraceFile:
    """Writes spans to a new file. A disk that fails later ends the trace, not the work.

    Args:
        path: of the file; its folder is made.
        process: name of the worker in the viewer.

    Raises:
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path, *, process: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("x", encoding="utf-8")
        except OSError as err:
            raise StorageError(
                f"{path}: cannot be written (pool.trace): {err.strerror or err}"
            ) from err
        self._path = path
        self._lock = threading.Lock()
        self._lanes: dict[str, int] = {}
        self._since_1970_s = time.time() - time.perf_counter()
        self._comma = "["
        self._write({"name": "process_name", "ph": "M", "args": {"name": process}}, lane=0)

    def add(self, name: str, *, began_s: float, ended_s: float, counts: dict[str, int]) -> None:
        """Write a span of the thread that calls; see `meter.Spans`."""
        # Both ends are rounded down, so that spans in each other stay in each other.
        began_us, ended_us = (int((self._since_1970_s + s) * 1e6) for s in (began_s, ended_s))
        span = {"name": name, "ph": "X", "ts": began_us, "dur": ended_us - began_us, "args": counts}
        with self._lock:
            self._write(span, lane=self._lane())

    def close(self) -> None:
        """Close the array and the file; what comes later is left out."""
        with self._lock:
            if not self._file.closed:
                self._put("\n]\n")
                self._file.close()

    def _lane(self) -> int:
        # By name: a thread that takes over another's part takes over its row in the viewer. Threads
        # that Python did not start, as Ray's are, it calls Dummy.
        thread = threading.current_thread().name.replace("Dummy", "call")
        if thread not in self._lanes:
            lane = self._lanes[thread] = len(self._lanes) + 1
            self._write({"name": "thread_name", "ph": "M", "args": {"name": thread}}, lane=lane)
        return self._lanes[thread]

    def _write(self, event: dict[str, object], *, lane: int) -> None:
        line = json.dumps({**event, "pid": os.getpid(), "tid": lane})
        self._put(f"{self._comma}\n{line}")
        self._comma = ","

    def _put(self, text: str) -> None:
        if self._file.closed:
            return
        try:
            self._file.write(text)
            self._file.flush()  # what is in a buffer dies with the process
        except OSError as err:
            log.warning("%s: the trace ends here: %s", self._path, err.strerror or err)
            try:
                self._file.close()
            except OSError:
                pass  # the same failure once more; the file is closed all the same
