"""How much of the time the GPU computes, as its driver sees it."""

from __future__ import annotations

import statistics
import subprocess
import threading
from types import TracebackType
from typing import Self

import torch

EVERY_S = 0.2
"""The driver itself looks back over a sixth of a second to a second."""


class BusyMeter:
    """Asks the driver again and again while something runs.

    Args:
        on_gpu: whether there is a driver to ask; else nothing is measured.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._shares: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self._on_gpu:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._on_gpu:
            self._thread.join()

    def share(self) -> float | None:
        """Mean share of the time with a kernel at work, from the first one seen to the end."""
        first = next((i for i, share in enumerate(self._shares) if share > 0), None)
        return None if first is None else statistics.mean(self._shares[first:])

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            self._shares.append(_busy_percent() / 100)


def _busy_percent() -> float:
    try:
        return float(torch.cuda.utilization())
    except (ModuleNotFoundError, RuntimeError):  # torch asks through a package that may be missing
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        return float(subprocess.run(command, capture_output=True, check=True).stdout.split()[0])
