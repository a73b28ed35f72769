"""TensorBoard's event file: the journal of a training as curves; the one home of tensorboardX.

tensorboardX (the extra `tensorboard`; MIT, 0.7 MB and protobuf) writes the files and nothing else:
the viewer, `tensorboard --logdir <run>/events/train`, may be installed somewhere else. Its own
SummaryWriter writes from a thread behind a queue of ten: when the disk is full the thread ends, and
the training waits for ever at the eleventh event. Here each event is written at once,
and what a killed training had not yet flushed is in the JSON lines.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from capfilt.errors import MissingDependencyError

try:
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter
except ImportError:
    RecordWriter = None

FLUSH_EVERY_S = 10.0
"""Flushing waits for the disk; the viewer looks every 30 seconds."""

VERSION = "brain.Event:2"
"""What every event file says of itself in its first record."""


class EventFile:
    """Writes a new event file; TensorBoard joins those of one folder to one curve.

    Args:
        folder: of the file; it is made.

    Raises:
        MissingDependencyError: tensorboardX is not installed.
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        if RecordWriter is None:
            raise MissingDependencyError(
                "TensorBoard's files were asked for and need tensorboardX: "
                "pip install 'capfilt[tensorboard]'"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._file = RecordWriter(str(folder / _new_name()))
        self._put(Event(wall_time=time.time(), file_version=VERSION))
        self._flushed_s = time.monotonic()

    def write(
        self, *, step: int, values: Mapping[str, float], texts: Mapping[str, Sequence[str]]
    ) -> None:
        """See `journal.Journal`. Lines are shown as they are: indented, they are no Markdown.

        Raises:
            OSError: it cannot be written.
        """
        found = [summary.scalar(name, value) for name, value in values.items()]
        for name, lines in texts.items():
            found.append(summary.text(name, "\n".join(f"    {line}" for line in lines)))
        for one in found:
            self._put(Event(wall_time=time.time(), step=step, summary=one))
        if time.monotonic() - self._flushed_s >= FLUSH_EVERY_S:
            self._file.flush()
            self._flushed_s = time.monotonic()

    def close(self) -> None:
        """See `journal.Journal`."""
        self._file.close()

    def _put(self, event: Event) -> None:
        self._file.write(event.SerializeToString())


def _new_name() -> str:
    """A name that TensorBoard knows by its begin, sorts by time, and no other file has."""
    host, own = socket.gethostname(), f"{os.getpid()}.{secrets.token_hex(4)}"
    return f"events.out.tfevents.{time.time():.0f}.{host}.{own}"
