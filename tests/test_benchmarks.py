"""The GPU benchmark, run whole on the CPU with tiny shapes; and what it does where rows fail."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.gpu import GROUPS, TINY, jobs_of, measured
from benchmarks.gpu_rows.bench import Bench
from benchmarks.gpu_rows.fp8 import Float8Linear, quantised
from benchmarks.gpu_rows.rows import Comparison, Job, Row, markdown
from benchmarks.gpu_rows.speed import caption_gflops, score_gflops
from capfilt_blip.config import BlipConfig

ROOT = Path(__file__).resolve().parents[1]

ON_GPUS_ONLY = {
    "launch",
    "memory: caption, 1 an image",
    "memory: caption, 10 an image",
    "memory: score, 2 texts an image",
    "kernels of a decoding step",
    "fp8 image encoder, quantised op by op",
    "fp8 image encoder, quantised by one compiled kernel",
    "pre-training, ViT-L at 224 px, batch 75: memory",
}


def run_script(folder: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The rows it saved and what it printed."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model")])
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *options]
    ran = subprocess.run(
        [*command, "--json", str(folder / "rows.json"), "--table", str(folder / "table.md")],
        env=os.environ | {"PYTHONPATH": paths}, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (folder / "table.md").read_text() in ran.stdout
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())["rows"]
    return rows, ran.stdout


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("benchmark")
    return run_script(folder, "--device", "cpu", "--size", "tiny")[0]


@pytest.mark.slow
def test_every_group_has_rows_and_none_fails(rows: list[dict[str, Any]]) -> None:
    assert {row["group"] for row in rows} == set(GROUPS)
    assert [row for row in rows if row["error"] is not None] == []


@pytest.mark.slow
def test_without_a_gpu_its_rows_say_not_measured(rows: list[dict[str, Any]]) -> None:
    silent = {row["name"] for row in rows if row["outcome"] is None}
    assert silent == ON_GPUS_ONLY
    assert {row["not_measured"] for row in rows if row["outcome"] is None} == {"it needs a GPU"}


@pytest.mark.slow
def test_on_a_cpu_ours_and_theirs_give_the_same_answers(rows: list[dict[str, Any]]) -> None:
    answers = {row["name"]: row["outcome"]["answers"] for row in rows if compares(row)}
    assert answers["caption, 1 greedy caption an image"].startswith("tokens equal: 100.0% float32")
    assert "log-probability within" in answers["caption, 10 drawn captions an image"]
    assert "ITM within" in answers["score, 2 texts an image"]
    end_to_end = answers["JPEG shards to Parquet"].removeprefix("ITM of web texts within ")
    assert float(end_to_end) < 1e-4
    training = answers["pre-training, ViT-B at 224 px"].removesuffix(" float32")
    assert float(training.removeprefix("LM, ITC and ITM of two steps within ")) < 1e-4
    for row in rows:
        if row["group"] == "sameness":
            assert row["outcome"]["again"] == "8 of 8 captions same"
            assert row["outcome"]["other batch mates, same shape"] == "8 of 8 captions same"


@pytest.mark.slow
def test_comparisons_have_a_ratio_for_every_turn(rows: list[dict[str, Any]]) -> None:
    found = [row["outcome"] for row in rows if compares(row)]
    assert len(found) == 8
    assert all(len(row["ratios"]) == TINY.repeats and min(row["ratios"]) > 0 for row in found)


def compares(row: dict[str, Any]) -> bool:
    return "ratios" in (row["outcome"] or {})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(device="cpu", dtype=torch.float32, scale=TINY, folder=tmp_path)


def test_a_row_that_fails_says_why(bench: Bench) -> None:
    def run() -> dict[str, str]:
        raise RuntimeError("out of luck\nand more")

    row = measured(Job(group="facts", name="a fact", run=run), bench, left_s=1)
    assert row.error == "RuntimeError: out of luck"
    assert list(row.lines) == ["[facts] a fact: failed: RuntimeError: out of luck"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_asked_for_a_gpu_that_is_not_there_it_measures_nothing(bench: Bench) -> None:
    absent = dataclasses.replace(bench, device="cuda")
    rows = [measured(job, absent, left_s=1) for job in jobs_of(absent, GROUPS)]
    assert {row.group for row in rows} == set(GROUPS)
    assert {row.not_measured for row in rows} == {"no CUDA device is here"}


def test_no_row_begins_after_the_time_is_used_up(bench: Bench) -> None:
    row = measured(Job(group="facts", name="a fact", run=dict), bench, left_s=0)
    assert row.not_measured == "the time was used up"


def test_a_batch_too_large_for_the_memory_is_not_the_best(bench: Bench) -> None:
    def ours(count: int) -> None:
        if count > 2:
            raise torch.OutOfMemoryError("too large")

    found = bench.compare(ours, lambda count: None)
    assert list(found.ours_by_batch) == [2]
    assert found.ours_batch == 2
    assert list(found.theirs_by_batch) == [2, 4]


def test_a_comparison_prints_median_and_range_of_its_ratios() -> None:
    found = Comparison(
        unit="images", ours_per_s=3000, theirs_per_s=1000, ours_batch=64, theirs_batch=32,
        ratios=[2.5, 3.25, 3.0], ours_tflops=395.0, peak_share=0.5, answers="equal",
    )  # fmt: skip
    assert (
        "| caption | 1,000 images/s at 32 | 3,000 images/s at 64 | 3.00 (2.50-3.25) "
        "| 395 (50%) | - | equal |"
    ) in markdown([Row(group="caption", name="caption", outcome=found)])


def test_the_work_of_an_image_is_that_of_the_published_sizes() -> None:
    # The image 111.0 GFLOP, its keys and values 16.3 or folded reads 5.6, 20 tokens 5.4
    # (tests/blip/test_cost.py).
    # One caption reads the image tokens themselves; ten are worth keys and values.
    assert caption_gflops(BlipConfig.base(), 1) == pytest.approx(122, abs=0.7)
    assert caption_gflops(BlipConfig.base(), 10) > 111 + 16.3 + 10 * 19 * 0.25
    assert score_gflops(BlipConfig.base(), 2) == pytest.approx(135.5, abs=0.7)


def test_an_8_bit_product_is_near_the_whole_one() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32).bfloat16()
    tokens = torch.randn(2, 8, 64).bfloat16()
    with torch.inference_mode():
        whole, small = linear(tokens), Float8Linear(linear, quantised)(tokens)
    assert small.shape == whole.shape
    assert float((small - whole).norm() / whole.norm()) < 0.06  # e4m3 keeps 3 bits and a half
