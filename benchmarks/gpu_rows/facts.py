"""What the machine can do at most: product, copy, and launching kernels."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator

import torch
import transformers

from benchmarks.gpu_rows.bench import Bench
from benchmarks.gpu_rows.rows import Figures, Job

NUM_LAUNCHES = 2_000


def jobs(bench: Bench) -> Iterator[Job]:
    """Three rows."""
    yield Job(group="facts", name="machine", run=lambda: machine(bench))
    yield Job(group="facts", name="ceilings", run=lambda: ceilings(bench))
    yield Job(group="facts", name="launch", run=lambda: launch(bench), needs_gpu=True)


def machine(bench: Bench) -> Figures:
    """Names and versions."""
    figures = {
        "processor": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
    if not (bench.on_gpu and torch.cuda.is_available()):
        return {"device": bench.device} | figures
    found = torch.cuda.get_device_properties(0)
    return {
        "device": f"{found.name}, {found.total_memory / 2**30:.0f} GiB",
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": str(found.multi_processor_count),
        "driver": _driver(),
        "CUDA of torch": str(torch.version.cuda),
        **figures,
    }


def ceilings(bench: Bench) -> Figures:
    """The two rates that bound everything."""
    source = torch.randn(bench.scale.copy_bytes // 4, device=bench.device)
    copy = torch.empty_like(source)
    times = [bench.seconds(lambda: copy.copy_(source)) for _ in range(13)][3:]
    moved = 2 * bench.scale.copy_bytes / statistics.median(times)
    side = bench.scale.gemm_side
    return {
        f"product of {side} x {side} {bench.dtype_name}": f"{bench.peak_tflops():.3g} TFLOP/s",
        "copy, bytes read and written": f"{moved / 1e9:,.0f} GB/s",
    }


def launch(bench: Bench) -> Figures:
    """What a kernel costs the host that does nothing but launch it."""
    one = torch.zeros(1, device=bench.device)
    one.add_(1)
    bench.synchronize()
    start = time.perf_counter()
    for _ in range(NUM_LAUNCHES):
        one.add_(1)
    on_host = time.perf_counter() - start
    bench.synchronize()
    return {"host time of a kernel launch": f"{on_host / NUM_LAUNCHES * 1e6:.1f} us"}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
