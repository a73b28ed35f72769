from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.workers.gauges import (
    measured_flops_per_s,
    peak_memory,
    peak_of,
    published_flops_per_s,
    worker_meter,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H200", torch.bfloat16, 989.5),
        ("NVIDIA H200", torch.float32, 67.0),
        ("NVIDIA H100 80GB HBM3", torch.float16, 989.5),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756.5),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312.0),
        ("NVIDIA L4", torch.bfloat16, 121.0),
        ("NVIDIA L40S", torch.bfloat16, 362.0),
    ],
)
def test_the_peak_of_a_known_gpu_is_the_published_dense_one(
    name: str, dtype: torch.dtype, tflops: float
):
    assert published_flops_per_s(name, dtype) == tflops * 1e12


@pytest.mark.parametrize(
    "name", ["CPU", "NVIDIA GeForce RTX 4090", "NVIDIA L40", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_no_peak_is_guessed_for_another_device(name: str):
    assert published_flops_per_s(name, torch.bfloat16) is None


def test_a_measured_peak_is_what_matrix_products_reach_here():
    matrix, times_s = torch.ones(512, 512), []
    with FlopCounterMode(display=False) as counter:
        for _ in range(20):
            began = time.process_time()
            matrix @ matrix
            times_s.append((time.process_time() - began) / torch.get_num_threads())
    reached = counter.get_total_flops() / 20 / min(times_s)
    assert 0.2 < measured_flops_per_s(CPU, torch.float32) / reached < 5


def test_the_label_says_whose_word_the_peak_is():
    peak = peak_of(CPU, torch.float32)
    assert peak.label == f"CPU float32, threads: {torch.get_num_threads()}, measured"


def test_memory_is_that_of_the_process_and_its_children():
    program = "import sys; block = bytearray(50_000_000); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin and child.stdout
    child.stdout.readline()
    alone, together = (peak_memory(CPU, pids).host_bytes for pids in ([], [child.pid]))
    child.communicate(b"")
    assert alone is not None and together is not None
    assert together - alone > 50_000_000
    assert peak_memory(CPU, [child.pid]).gpu_bytes is None  # and one that has ended is no error


def test_whole_numbers_have_no_peak():
    with ImageDecoder(ImageLimits()) as decoder:
        meter = worker_meter("score", device="cpu", dtype="int8", decoder=decoder, trace=None)
    assert meter.take().peak is None


def test_each_worker_has_a_trace_of_its_own(tmp_path: Path):
    with ImageDecoder(ImageLimits()) as decoder:
        meters = [
            worker_meter("score", device="cpu", dtype="int8", decoder=decoder, trace=str(tmp_path))
            for _ in range(2)
        ]
    for meter in meters:
        with meter.span("score", images=3):
            pass
        meter.close()
    assert meters[0].take().worker == f"{socket.gethostname()}:{os.getpid()}"
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert all(file.name.startswith("score-") and file.suffix == ".json" for file in files)
    assert [[e["name"] for e in json.loads(f.read_text()) if e["ph"] == "X"] for f in files] == [
        ["score"], ["score"],
    ]  # fmt: skip
