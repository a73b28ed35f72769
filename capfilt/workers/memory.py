"""Memory of a worker: how much there is, how much it fills, and what to say when it runs out."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch

from capfilt.batch_size import gib
from capfilt.errors import CapfiltError
from capfilt.suspects import ran_out_of_memory

PROC = Path("/proc/self")
CGROUPS = Path("/sys/fs/cgroup")

_ASKED = re.compile(r"tried to allocate ([\d.]+ (?:[KMGT]iB|bytes))", re.IGNORECASE)


class WorkerMemory(Protocol):
    """Reads the memory that this process fills where its model computes."""

    def available_bytes(self) -> int:
        """What it could fill if it had no other workers beside it."""
        ...

    def filled_bytes(self) -> int:
        """What it fills now."""
        ...

    def restart(self) -> None:
        """Forget the peak."""
        ...

    def peak_bytes(self) -> int:
        """The most it filled since the last restart."""
        ...


def memory_of(device: str) -> WorkerMemory:
    """The memory of a device: `cuda`, `cuda:1`, or anything else for the machine's own memory."""
    return CudaMemory(device) if device.startswith("cuda") else MachineMemory()


class CudaMemory:
    """Memory of a GPU, as torch's allocator counts it.

    Args:
        device: which.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def available_bytes(self) -> int:
        """What is free, and what this process holds already."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return free + torch.cuda.memory_reserved(self._device)

    def filled_bytes(self) -> int:
        """Bytes of live tensors."""
        return torch.cuda.memory_allocated(self._device)

    def restart(self) -> None:
        """Forget the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """The most bytes of tensors alive at once."""
        return torch.cuda.max_memory_allocated(self._device)


class MachineMemory:
    """Memory of the machine: what the process has in it (its resident set), libraries included."""

    def available_bytes(self) -> int:
        """All of the machine's, or what its control group leaves to this process."""
        return machine_memory_bytes()

    def filled_bytes(self) -> int:
        """The resident set now."""
        return resident_bytes()

    def restart(self) -> None:
        """Forget the peak, where the system can; elsewhere it is that of the whole process."""
        try:
            (PROC / "clear_refs").write_text("5")  # man 5 proc: resets VmHWM
        except OSError:
            return

    def peak_bytes(self) -> int:
        """The largest resident set."""
        return peak_resident_bytes()


def resident_bytes() -> int:
    """Bytes of this process that are in memory now; its peak where the system does not say."""
    return _status_bytes("VmRSS") or _peak_by_getrusage()


def peak_resident_bytes() -> int:
    """The most bytes of this process that were in memory at once."""
    return _status_bytes("VmHWM") or _peak_by_getrusage()


def _status_bytes(field: str) -> int | None:
    """A field of /proc/self/status, which is in kB; None without one."""
    try:
        text = (PROC / "status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _peak_by_getrusage() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def num_cpus() -> int:
    """CPUs of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory_bytes() -> int:
    """Memory this process may fill: the machine's, or less if a control group says so."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        membership = (PROC / "cgroup").read_text()
    except OSError:
        return installed
    return min([installed, *cgroup_limits_bytes(CGROUPS, membership)])


def cgroup_limits_bytes(root: Path, membership: str) -> list[int]:
    """The memory limits of a process's control group and of all groups around it.

    Args:
        root: where the groups are mounted.
        membership: content of /proc/self/cgroup. In a container the path in it may be one of the
            host; then the container's own group is at the root.
    """
    limits: list[int] = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = root, "memory.max"  # version 2
        elif "memory" in controllers.split(","):
            mount, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        limits += [limit for group in (own, *own.parents)
                   if (limit := _limit(mount / group / name)) is not None]  # fmt: skip
    return limits


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # version 2 says `max` for none


@contextmanager
def shortage_explained(stage: str, *, batch_images: int, device: str) -> Iterator[None]:
    """Say in one line that a batch did not fit, and what to set.

    Args:
        stage: whose batch it is.
        batch_images: its size.
        device: where it was computed.

    Raises:
        CapfiltError: memory ran out within.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise CapfiltError(
            shortage_line(
                stage,
                batch_images=batch_images,
                where="the GPU" if device.startswith("cuda") else "the machine",
                details=[*_asked(error), _in_use(device)],
            )
        ) from error


def shortage_line(stage: str, *, batch_images: int, where: str, details: list[str]) -> str:
    """The line for a batch that did not fit."""
    cure = (
        f"set {stage}.batch_images: {batch_images // 2}, or auto if it is a number now"
        if batch_images > 2
        else "use a smaller model, fewer workers on it, or one with more memory"
    )
    return (
        f"{stage}: {where} ran out of memory with {stage}.batch_images {batch_images} "
        f"({', '.join(details)}); {cure}"
    )


def _asked(error: Exception) -> list[str]:
    asked = _ASKED.search(str(error))
    return [f"{asked[1]} more were asked for"] if asked else []


def _in_use(device: str) -> str:
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(torch.device(device))
        return f"{gib(total - free).removesuffix(' GiB')} of {gib(total)} in use"
    filled = gib(resident_bytes()).removesuffix(" GiB")
    return f"the worker has {filled} of {gib(machine_memory_bytes())}"
