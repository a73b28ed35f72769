"""The meter of a worker: its name, its memory, and the peak of its device.

The peak is the dense one that NVIDIA publishes for the device and dtype (the data sheets of A100,
H100, H200, L4 and L40S; where a sheet gives the figure "with sparsity", half of it). For any other
device it is measured when the worker is built, by the same product of matrices again and again. A
share of a published peak and one of a measured peak are not to be compared; each says which it is.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from capfilt.config import DType
from capfilt.io.images import ImageDecoder
from capfilt.io.trace import TraceFile
from capfilt.meter import Memory, Meter, Peak
from capfilt.workers.memory import peak_resident_bytes

PUBLISHED_TFLOPS: Sequence[tuple[str, float, float]] = (
    ("H200 NVL", 835.5, 60.0),
    ("H200", 989.5, 67.0),
    ("H100 PCIe", 756.5, 51.0),
    ("H100 NVL", 835.5, 60.0),
    ("H100", 989.5, 67.0),
    ("A100", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
    ("L4", 121.0, 30.3),
)
"""Part of torch's name of the device, dense peak of bfloat16 and float16, peak of float32 (without
TF32, which capfilt leaves off). The first that fits is taken."""

MEASURING_S = 0.1
SIDE = {"cpu": 512, "cuda": 8192}
"""Of the square matrices: large enough to keep the device busy, small enough for a few rounds."""


def worker_meter(
    stage: str, *, device: str, dtype: DType, decoder: ImageDecoder, trace: str | None
) -> Meter:
    """The meter of a worker on this machine.

    Args:
        stage: what the worker does; part of the trace's name.
        device: of its model.
        dtype: of its model. CPU threads are those that torch is set to.
        decoder: whose processes count as its memory.
        trace: folder of the trace; None writes none.

    Raises:
        StorageError: the trace cannot be written.
    """
    place, kind = torch.device(device), getattr(torch, dtype)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    began = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    return Meter(
        worker=worker,
        # The peak of whole numbers is another thing: the operations counted are of floating point.
        peak=peak_of(place, kind) if kind.is_floating_point else None,
        memory=lambda: peak_memory(place, decoder.pids),
        spans=None
        if trace is None
        else TraceFile(
            Path(trace).expanduser() / f"{stage}-{began}-{worker.replace(':', '-')}.json",
            process=f"{stage} {worker}",
        ),
    )


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The most operations a second of a device: published if it is known, else measured now."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    kind = str(dtype).removeprefix("torch.")
    published = published_flops_per_s(name, dtype)
    if published is not None:
        return Peak(flops_per_s=published, label=f"{name} {kind}, published")
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    measured = measured_flops_per_s(device, dtype)
    return Peak(flops_per_s=measured, label=f"{name} {kind}{threads}, measured")


def published_flops_per_s(device_name: str, dtype: torch.dtype) -> float | None:
    """The published dense peak of a device, by torch's name of it; None if it is not listed."""
    if " MIG " in device_name:  # a slice of the device
        return None
    for part, half, single in PUBLISHED_TFLOPS:
        if re.search(rf" {part}\b", device_name):
            return 1e12 * (single if dtype == torch.float32 else half)
    return None


def measured_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a product of square matrices within a tenth of a second, at least twice."""
    side = SIDE.get(device.type, SIDE["cpu"])
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    torch.matmul(matrix, matrix)  # the first one loads kernels
    until, times_s = time.perf_counter() + MEASURING_S, list[float]()
    while len(times_s) < 2 or time.perf_counter() < until:
        began = _now_s(device)
        torch.matmul(matrix, matrix)
        times_s.append(_now_s(device) - began)
    return 2 * side**3 / min(times_s)


def _now_s(device: torch.device) -> float:
    """A clock that runs while the device works; on a CPU it stops while others have the cores."""
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device, children: Sequence[int]) -> Memory:
    """The most this process and its children have held, each at its own time, and the GPU's share.

    Args:
        device: of the model.
        children: process ids; one that has ended counts nothing.
    """
    own_bytes = peak_resident_bytes()
    on_gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Memory(host_bytes=own_bytes + sum(map(_peak_bytes, children)), gpu_bytes=on_gpu)


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else 0
