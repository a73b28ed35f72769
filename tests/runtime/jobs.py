"""A job for tests: it doubles numbers, reads and commits small files, and misbehaves on request.

Shard `s` of a first job holds the rows 100*s, 100*s + 1, ...; a later job reads what its source
committed. Misbehaviour is asked for by row value, as it looks to that job's worker.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from capfilt.errors import DeterminismError, ShardError
from capfilt.pool import Fetched, Quarantine, Resources, ShardReport


@dataclass(frozen=True, kw_only=True)
class DoublingJob:
    folder: Path  # of all jobs of a test; each commits below <folder>/<stage>
    stage: str = "first"
    source: str | None = None  # the stage whose commits are read
    num_rows: int = 4
    resources: Resources = field(default_factory=lambda: Resources(num_cpus=0.5))
    on_row: Mapping[int, str] = field(
        default_factory=dict
    )  # row -> "kill", "raise", "exhaust", "exit", "hang"
    on_build: str | None = None
    unreadable: frozenset[int] = frozenset()  # shards
    wait_for: str | None = None  # a file; for jobs that wait for one

    def committed(self) -> Mapping[int, ShardReport]:
        names = sorted((self.folder / self.stage).glob("*.json"))
        return {int(path.stem): self._report(int(path.stem)) for path in names}

    def build_worker(self) -> DoublingWorker:
        misbehave(self.on_build)
        return DoublingWorker(job=self)

    def fetch(self, shard: int) -> Fetched[int]:
        if shard in self.unreadable:
            raise ShardError(f"shard {shard} is damaged")
        if self.source is None:
            return Fetched(inputs=[100 * shard + i for i in range(self.num_rows)])
        rows = json.loads((self.folder / self.source / f"{shard}.json").read_text())
        return Fetched(inputs=[row for row in rows if isinstance(row, int)])

    def quarantine(self, rejected: int, why: Quarantine) -> object:
        return [rejected, why.reason, why.detail]

    def commit(self, shard: int, fetched: Fetched[int], outputs: Sequence[object]) -> ShardReport:
        path = self.folder / self.stage / f"{shard}.json"
        path.parent.mkdir(exist_ok=True)
        payload = json.dumps(list(outputs))
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        draft.write_text(payload)
        try:
            os.link(draft, path)
        except FileExistsError:
            if path.read_text() != payload:
                raise DeterminismError(f"{path} holds other bytes") from None
        finally:
            draft.unlink()
        return self._report(shard)

    def _report(self, shard: int) -> ShardReport:
        rows = json.loads((self.folder / self.stage / f"{shard}.json").read_text())
        kept = sum(isinstance(row, int) for row in rows)
        dropped = {row[1]: 1 for row in rows if not isinstance(row, int)}
        return ShardReport(
            stage=self.stage, shard=shard, rows_in=len(rows), kept=kept, dropped=dropped
        )

    def rows(self, shard: int) -> list[object]:
        """What was committed for a shard."""
        rows: list[object] = json.loads((self.folder / self.stage / f"{shard}.json").read_text())
        return rows


class DoublingWorker:
    def __init__(self, *, job: DoublingJob) -> None:
        self.job = job
        (job.folder / "pids").mkdir(exist_ok=True)
        (job.folder / "pids" / f"{job.stage}-{os.getpid()}").touch()

    def __call__(self, inputs: Sequence[int]) -> list[int]:
        for row in inputs:
            if self.job.on_row.get(row) == "hang":
                (self.job.folder / "hanging").touch()
            misbehave(self.job.on_row.get(row), row)
        return [2 * row for row in inputs]

    def close(self) -> None:
        (self.job.folder / f"closed-{self.job.stage}").touch()


def misbehave(how: str | None, row: int = 0) -> None:
    match how:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise ValueError(f"row {row} is bad")
        case "exhaust":
            raise MemoryError
        case "exit":
            sys.exit(3)
        case "hang":
            threading.Event().wait()


def wait_for_file(path: Path, *, timeout_s: float = 60.0) -> None:
    """Return once a file exists, looking every few milliseconds."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if path.exists():
            return
        pause.wait(0.01)
    raise TimeoutError(f"{path} did not appear in {timeout_s} s")


def worker_pids(folder: Path) -> list[int]:
    """Processes in which workers of a test were built."""
    return [int(path.name.rpartition("-")[2]) for path in (folder / "pids").iterdir()]
