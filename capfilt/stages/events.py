"""Events: what shards took, noted beside the tables, since it differs from run to run.

    <run>/events/<attempt>-0000.jsonl    one JSON object per shard of a stage that is measured

An attempt is one call of a command. No result is read from here and no plan holds it; a file that
is missing, cut or of another version costs its lines and nothing else. Storage that cannot append
is why a file is written anew each time, and why a new one is begun after a thousand lines.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError

from capfilt.errors import StorageError
from capfilt.io.storage import Store
from capfilt.meter import Effort
from capfilt.pool import ShardReport
from capfilt.stages.tables import Tables

log = logging.getLogger(__name__)

FOLDER = "events"
LINES_PER_FILE = 1_000
WRITE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEvent:
    """What a worker spent on one shard of one table."""

    attempt: str
    round: int
    stage: str
    plan: str  # folder of the plan the table has
    shard: int
    effort: Effort


EVENT = TypeAdapter(ShardEvent)


class EventLog:
    """Writes the events of one attempt. If it cannot, it says so once: no run fails for this.

    Args:
        store: the run's folder.
        attempt: unique name of the attempt.
        clock: seconds that never go back.
    """

    def __init__(
        self, store: Store, *, attempt: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = store.child(FOLDER)
        self._attempt = attempt
        self._clock = clock
        self._lines: list[bytes] = []
        self._num_files = 0
        self._written = 0  # of the lines
        self._write_at_s = clock()
        self._failed = False

    def note(self, event: ShardEvent) -> None:
        """Add an event. It is on disk ten seconds later if others follow, else at the end."""
        self._lines.append(EVENT.dump_json(event) + b"\n")
        full = len(self._lines) == LINES_PER_FILE
        if full or self._clock() >= self._write_at_s:
            self.write()
        if full:
            self._lines, self._written = [], 0
            self._num_files += 1

    def write(self) -> None:
        """Write what is not written yet."""
        self._write_at_s = self._clock() + WRITE_EVERY_S
        if self._failed or self._written == len(self._lines):
            return
        try:
            name = f"{self._attempt}-{self._num_files:04d}.jsonl"
            self._folder.put(name, b"".join(self._lines))
        except StorageError as err:
            self._failed = True
            log.warning("the speed of this run is not noted: %s", err)
        self._written = len(self._lines)


def noted(reports: Iterable[ShardReport], tables: Tables) -> Iterator[ShardReport]:
    """Hand reports on, and note what their shards took."""
    attempt = new_attempt()
    events = EventLog(tables.store, attempt=attempt)
    try:
        for report in reports:
            if report.effort is not None:
                events.note(_event_of(report, report.effort, tables, attempt))
            yield report
    finally:
        events.write()


def new_attempt() -> str:
    """A name that sorts by time and that no other attempt has."""
    began = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    return f"{began}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def read_events(store: Store) -> list[ShardEvent]:
    """All events of a run that can be read, in the order in which they were noted."""
    folder = store.child(FOLDER)
    try:
        names = [name for name in folder.names() if name.endswith(".jsonl")]
    except StorageError:
        return []
    return [event for name in names for event in _read(folder, name)]


def _read(folder: Store, name: str) -> Iterator[ShardEvent]:
    try:
        lines = folder.read(name).splitlines()
    except StorageError:
        return
    for line in lines:
        try:
            yield EVENT.validate_json(line)
        except ValidationError:
            continue  # cut, or of another version


def _event_of(report: ShardReport, effort: Effort, tables: Tables, attempt: str) -> ShardEvent:
    return ShardEvent(
        attempt=attempt,
        round=tables.round,
        stage=report.stage,
        plan=tables.plans[report.stage].folder,
        shard=report.shard,
        effort=effort,
    )
