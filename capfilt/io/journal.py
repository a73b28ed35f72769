"""Journal: what a training measures, a line of JSON at a time.

    {"time_s": 1765432100.2, "phase": "pretrain", "step": 1200, "loss": 5.12, "itc_loss": 2.31}

Lines are only added, so a training that is resumed goes on in the same file; of a step that is
there twice the later line holds. What a killed writer left half written is a line of its own.
A number that is none (nan, inf) is null, for JSON has no such numbers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


class Journal(Protocol):
    """Where the figures of a training go: `JsonLines` is one, `tensorboard.EventFile` another."""

    def write(
        self, *, step: int, values: Mapping[str, float], texts: Mapping[str, Sequence[str]]
    ) -> None:
        """Note numbers and lines of text, by name, that belong to a step."""
        ...

    def close(self) -> None:
        """Note no more."""
        ...


class JsonLines:
    """Adds lines to a file.

    Args:
        path: of the file; its folder is made.
        phase: noted in every line.

    Raises:
        OSError: the file cannot be made or read.
    """

    def __init__(self, path: Path, *, phase: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._phase = phase
        if _is_cut(path):
            self._put(b"\n")

    def write(
        self, *, step: int, values: Mapping[str, float], texts: Mapping[str, Sequence[str]]
    ) -> None:
        """See `Journal`.

        Raises:
            OSError: it cannot be written.
        """
        row = {
            "time_s": round(time.time(), 3),
            "phase": self._phase,
            "step": step,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
            **{name: list(lines) for name, lines in texts.items()},
        }
        self._put(json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        """See `Journal`."""
        self._file.close()

    def _put(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()  # what is in a buffer dies with the process


def _is_cut(path: Path) -> bool:
    """Whether the last line has no end."""
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            return False
        file.seek(-1, 2)
        return file.read() != b"\n"
