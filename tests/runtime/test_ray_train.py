"""Training on several workers: the same models as on one, up to rounding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray.train.v2.api.exceptions import WorkerGroupError
from safetensors.torch import load_file

from capfilt.errors import CapfiltError, ShardError, StoreAwayError
from capfilt.local_pool import LocalPool
from capfilt.pool import Pool
from capfilt.records import TrainStep
from capfilt.runtime.cluster import ClusterSettings
from capfilt.runtime.ray_pool import RayPool, RaySettings
from capfilt.runtime.ray_train import _refused, run_together
from capfilt.stages import train
from tests.small_run import SmallRun, rows_of, training

# Ray warns of its own defaults.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def ray_pool() -> Iterator[RayPool]:
    settings = RaySettings(
        cluster=ClusterSettings(address="local", num_cpus=2, object_store_bytes=100_000_000)
    )
    pool = RayPool(settings, together=run_together)
    yield pool
    pool.close()


def without_dropout(models: Path, folder: Path) -> str:
    """A copy of the captioner to start from: processes draw dropout apart, so they need none."""
    shutil.copytree(models / "captioner", folder)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part |= {name: 0.0 for name in part if "dropout" in name}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


RATES = {"learning_rate": 1e-4, "finetune_learning_rate": 1e-4}
"""Low: AdamW's first steps have one length for all weights, so that what float32 rounds in a tiny
gradient grows with the rate."""


def trained(run: SmallRun, pool: Pool, *, start: str, workers: int) -> tuple[list[TrainStep], Path]:
    sections = {
        "train": {**training(run.web), "pretrain_steps": 6, "start": start, **RATES},
        "pool": {"kind": "ray", "train": {"workers": workers, "cpus": 1}},
    }
    assert train.run(run.recipe(**sections), run.tables(**sections), pool).kept == 40
    tables = run.tables(**sections)
    return rows_of(tables, "train", TrainStep), Path(tables.of("train").store.url)


def test_two_workers_train_as_one_does(
    small_run: SmallRun, tmp_path: Path, ray_pool: RayPool
) -> None:
    start = without_dropout(small_run.models, tmp_path / "start")
    (alone, models), (both, others) = (
        trained(small_run.copied_to(tmp_path / name), pool, start=start, workers=workers)
        for name, pool, workers in (("one", LocalPool(), 1), ("two", ray_pool, 2))
    )
    assert [row.num_samples for row in both] == [row.num_samples for row in alone]
    assert [row.loss for row in both] == pytest.approx([row.loss for row in alone], abs=1e-5)
    for name in ("blip", "captioner", "filter"):
        first, second = (
            load_file(place / name / "model.safetensors") for place in (models, others)
        )
        assert all(torch.allclose(first[n], second[n], atol=1e-3) for n in first)


def test_a_store_that_did_not_answer_is_asked_again_and_a_refusal_is_not() -> None:
    away, lost = (
        StoreAwayError("s3://a.tar: cannot be read: 503"),
        RuntimeError("connection closed"),
    )
    error = WorkerGroupError("1 of 2 workers is gone", {0: lost, 1: away})
    assert _refused(error) == "s3://a.tar: cannot be read: 503"
    refusal = CapfiltError("nothing to learn from")
    damaged = ShardError("a.tar: damaged at byte 0")
    with pytest.raises(CapfiltError, match=r"^a\.tar: damaged"):
        _refused(WorkerGroupError("1 of 2 workers is gone", {0: damaged}))
    with pytest.raises(CapfiltError, match=r"^nothing to learn from$"):
        _refused(WorkerGroupError("2 of 2 workers are gone", {0: away, 1: refusal}))


def test_what_a_worker_says_is_told_and_not_tried_again(
    small_run: SmallRun, tmp_path: Path, ray_pool: RayPool
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    with pytest.raises(CapfiltError, match=r"^train\.held_out_pairs sets all 6 human pairs aside"):
        sections = {
            "train": {**training(run.web), "held_out_pairs": 6},
            "pool": {"kind": "ray", "train": {"workers": 2, "cpus": 1}},
        }
        train.run(run.recipe(**sections), run.tables(**sections), ray_pool)
