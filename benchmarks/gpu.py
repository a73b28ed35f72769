"""Everything that is to be known on a GPU, in one run: a table, and JSON after every row.

    python benchmarks/gpu.py [--only GROUP ...] [--budget-s 480] [--json FILE] [--table FILE]
    python benchmarks/gpu.py --device cpu --size tiny      all of it in a minute, to try the script

It needs no Ray and no network: weights are random, images are made, files go to a temporary folder.
Each row stands alone: one that fails prints why, and the others go on. Groups:

    facts      the device, its ceilings, what a kernel launch costs
    caption    captions beside transformers, each side at its best batch size
    score      ITM beside transformers
    large      the same with ViT-L
    pipeline   JPEG shards to committed Parquet beside a plain script over transformers
    sameness   same key, same caption: repeats, batch mates, batch shapes
    memory     of the GPU, by batch size
    decoding   a step of the decoding loop
    fp8        the image encoder in 8-bit floats
    training   pre-training beside a plain loop over transformers' modules; memory of ViT-L
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu_rows.bench import Bench, Scale
from benchmarks.gpu_rows.facts import machine
from benchmarks.gpu_rows.rows import Job, Row, markdown
from benchmarks.peers import quiet_transformers

MODULES = (
    "facts", "speed", "pipeline", "sameness", "memory", "decoding", "fp8", "training",
)  # fmt: skip
GROUPS = (
    "facts", "caption", "score", "large", "pipeline", "sameness", "memory", "decoding", "fp8",
    "training",
)  # fmt: skip
CORES = os.cpu_count() or 1

FULL = Scale(
    base="base", large="large", batch_sizes=(8, 16, 32, 64, 128, 256, 512), fixed_batch=256,
    gemm_side=8192, copy_bytes=2**32, repeats=5, longest_s=4.0, num_shards=8,
    images_per_shard=1024, decode_processes=max(1, CORES - 2),
)  # fmt: skip
TINY = Scale(
    base="tiny", large="small", batch_sizes=(2, 4), fixed_batch=4,
    gemm_side=128, copy_bytes=2**20, repeats=2, longest_s=2.0, num_shards=3,
    images_per_shard=8, decode_processes=1,
)  # fmt: skip


def main() -> None:
    """Measure the rows that were asked for."""
    chosen = _options().parse_args()
    deadline = time.perf_counter() + chosen.budget_s
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the plain pipeline forks
    quiet_transformers()
    if chosen.size == "tiny":
        torch.set_num_threads(1)  # threads that meet after every tiny product cost more than it
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(chosen, Path(folder))
        for job in jobs_of(bench, chosen.only):
            row = measured(job, bench, left_s=deadline - time.perf_counter())
            rows.append(row)
            print("\n".join(row.lines), flush=True)
            if chosen.json:
                save(rows, chosen.json, bench)
        table = f"{headline(bench)}\n\n{markdown(rows)}"
    print(f"\n{table}", end="")
    if chosen.table:
        chosen.table.write_text(table)


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--device", default="cuda")
    options.add_argument("--size", choices=["full", "tiny"], default="full")
    options.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    options.add_argument("--budget-s", type=float, default=480.0, help="no row starts after it")
    options.add_argument("--json", type=Path)
    options.add_argument("--table", type=Path)
    return options


def _bench(chosen: argparse.Namespace, folder: Path) -> Bench:
    dtype = torch.bfloat16 if chosen.device.startswith("cuda") else torch.float32
    scale = FULL if chosen.size == "full" else TINY
    return Bench(device=chosen.device, dtype=dtype, scale=scale, folder=folder)


def jobs_of(bench: Bench, groups: Sequence[str]) -> Iterator[Job]:
    """The rows of some groups; of a module that cannot be imported, one row that says why."""
    for name in MODULES:
        try:
            module = importlib.import_module(f"benchmarks.gpu_rows.{name}")
        except ImportError as error:
            yield _unimportable(name, error)
            continue
        yield from (job for job in module.jobs(bench) if job.group in groups)


def _unimportable(name: str, error: ImportError) -> Job:
    def run() -> dict[str, str]:
        raise error

    return Job(group=name, name=name, run=run)


def measured(job: Job, bench: Bench, *, left_s: float) -> Row:
    """Run a job, whatever comes of it.

    Args:
        job: the row.
        bench: where.
        left_s: seconds before which it must begin.
    """
    if job.needs_gpu and not bench.on_gpu:
        return Row(group=job.group, name=job.name, not_measured="it needs a GPU")
    if bench.on_gpu and not torch.cuda.is_available():
        return Row(group=job.group, name=job.name, not_measured="no CUDA device is here")
    if left_s <= 0:
        return Row(group=job.group, name=job.name, not_measured="the time was used up")
    start = time.perf_counter()
    try:
        outcome = job.run()
    except Exception as error:  # the other rows are wanted all the same
        first = (str(error).splitlines() or [""])[0]
        why = f"{type(error).__name__}: {first}"
        return Row(group=job.group, name=job.name, error=why, seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    return Row(group=job.group, name=job.name, outcome=outcome, seconds=seconds)


def save(rows: Sequence[Row], path: Path, bench: Bench) -> None:
    """Write all rows so far."""
    values = {"measured": headline(bench), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(values, indent=1, default=str) + "\n")


def headline(bench: Bench) -> str:
    """The machine, what ran on it, and the day."""
    facts = machine(bench)
    size = "" if bench.scale is FULL else ", tiny shapes: not a measurement"
    return (
        f"Measured {datetime.date.today()} on {facts['device']} ({facts['processor']}), "
        f"{bench.dtype_name}, torch {facts['torch']}, transformers {facts['transformers']}{size}."
    )


if __name__ == "__main__":
    main()
