from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from capfilt.errors import CapfiltError
from capfilt.workers.memory import (
    CudaMemory,
    MachineMemory,
    cgroup_limits_bytes,
    machine_memory_bytes,
    memory_of,
    shortage_explained,
    shortage_line,
)

MB = 2**20


def test_the_peak_holds_what_was_filled_and_given_back_until_a_restart():
    memory = MachineMemory()
    memory.restart()
    before = memory.peak_bytes()
    np.ones(64 * MB, np.uint8)  # gone at once
    assert 60 * MB < memory.peak_bytes() - before < 80 * MB
    memory.restart()
    assert memory.peak_bytes() - before < 20 * MB


def test_the_machine_has_more_than_this_process_fills():
    assert MachineMemory().filled_bytes() < machine_memory_bytes()


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def test_a_control_group_of_version_2_is_bound_by_those_around_it(tmp_path: Path):
    write(tmp_path, "memory.max", "max")
    write(tmp_path, "slice/memory.max", "4096")
    write(tmp_path, "slice/job/memory.max", "8192")
    assert cgroup_limits_bytes(tmp_path, "0::/slice/job\n") == [8192, 4096]


def test_a_control_group_of_version_1_is_read_from_its_memory_mount(tmp_path: Path):
    write(tmp_path, "memory/job/memory.limit_in_bytes", "4096")
    membership = "5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/a:b\n0::/\n"
    assert cgroup_limits_bytes(tmp_path, membership) == [4096]


def test_in_a_container_the_own_group_is_found_at_the_root(tmp_path: Path):
    write(tmp_path, "memory.max", "4096")
    assert cgroup_limits_bytes(tmp_path, "0::/only/the/host/knows\n") == [4096]


def test_a_batch_that_does_not_fit_says_where_what_and_what_to_set():
    with (
        pytest.raises(CapfiltError) as caught,
        shortage_explained("caption", batch_images=64, device="cpu"),
    ):
        torch.empty(10**13)
    line = str(caught.value)
    assert line.startswith(
        "caption: the machine ran out of memory with caption.batch_images 64 "
        "(40000000000000 bytes more were asked for, the worker has "
    )
    assert line.endswith("; set caption.batch_images: 32, or auto if it is a number now")


def test_the_line_about_a_gpu_is_one_line():
    details = ["20.00 GiB more were asked for", "23.1 of 24.0 GiB in use"]
    assert shortage_line("score", batch_images=128, where="the GPU", details=details) == (
        "score: the GPU ran out of memory with score.batch_images 128 (20.00 GiB more were asked "
        "for, 23.1 of 24.0 GiB in use); set score.batch_images: 64, or auto if it is a number now"
    )


def test_where_even_two_images_do_not_fit_no_smaller_batch_is_advised():
    line = shortage_line("score", batch_images=2, where="the GPU", details=["full"])
    assert line.endswith("use a smaller model, fewer workers on it, or one with more memory")


def test_other_errors_pass_as_they_are():
    with (
        pytest.raises(ValueError, match="is bad"),
        shortage_explained("caption", batch_images=64, device="cpu"),
    ):
        raise ValueError("row 0 is bad")


@pytest.mark.gpu
def test_a_gpus_peak_holds_what_was_filled_and_given_back():
    memory = memory_of("cuda")
    assert isinstance(memory, CudaMemory)
    memory.restart()
    before = memory.filled_bytes()
    torch.ones(64 * MB, dtype=torch.uint8, device="cuda")
    assert memory.peak_bytes() - before == 64 * MB
    assert memory.filled_bytes() == before
    assert memory.available_bytes() > 64 * MB


@pytest.mark.gpu
def test_a_gpu_that_is_full_says_how_full():
    with (
        pytest.raises(CapfiltError, match=r"the GPU ran out of memory .* GiB in use\); set"),
        shortage_explained("caption", batch_images=64, device="cuda"),
    ):
        torch.empty(10**13, device="cuda")
