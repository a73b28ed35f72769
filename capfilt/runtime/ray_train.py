"""Shards that several workers do together, as a group of Ray Train: training on many devices.

Each worker of the group builds the job's worker, reads the whole shard and works on it; the process
group of torch.distributed tells them apart. The first one commits. A group that loses a process is
started again, and goes on from what the job's worker has noted of its progress.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from capfilt.errors import CapfiltError
from capfilt.pool import AnyJob, ShardReport, read_shard

log = logging.getLogger(__name__)

MAX_RESTARTS = 8
"""Times a group is started again for one shard. A day on many machines loses a few of them; a
fault that is always there should not take a week to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTask:
    """What every worker of a group is told."""

    job: AnyJob
    shard: int


def run_together(job: AnyJob, shards: Sequence[int]) -> Iterator[ShardReport]:
    """Have the workers of a job do one shard after the other, each shard all together.

    Raises:
        CapfiltError: a worker raised, or the group was lost too often.
    """
    committed = job.committed()
    for shard in shards:
        if shard not in committed:
            yield _done_together(GroupTask(job=job, shard=shard))
        else:
            yield committed[shard]


def _done_together(task: GroupTask) -> ShardReport:
    began = perf_counter()
    for restarts in range(MAX_RESTARTS + 1):
        try:
            _run_group(task)
        except TrainingFailedError as error:
            log.warning("the workers of %s are gone (%d): %s", task.job.stage, restarts,
                        _refused(error))  # fmt: skip
        else:
            report = task.job.committed()[task.shard]
            return replace(report, already=False, seconds=perf_counter() - began)
    raise CapfiltError(
        f"stage {task.job.stage}: its workers were lost {MAX_RESTARTS + 1} times; the same command "
        "goes on from where they were"
    )


def _run_group(task: GroupTask) -> None:
    resources = task.job.resources
    scaling = ScalingConfig(
        num_workers=resources.num_workers,
        use_gpu=resources.num_gpus > 0,
        resources_per_worker={"CPU": resources.num_cpus, "GPU": resources.num_gpus},
    )
    # Ray Train keeps its own notes there; ours are where the job puts them.
    with tempfile.TemporaryDirectory(prefix="capfilt-ray-train-") as scratch:
        TorchTrainer(
            _work,
            train_loop_config={"task": task},
            scaling_config=scaling,
            run_config=RunConfig(storage_path=scratch),
        ).fit()


def _work(config: Mapping[str, GroupTask]) -> None:
    """What a worker of the group does."""
    task = config["task"]
    worker = task.job.build_worker()
    try:
        fetched = read_shard(task.job, task.shard)
        outputs = worker(fetched.inputs)
        if ray.train.get_context().get_world_rank() == 0:
            task.job.commit(task.shard, fetched, outputs)
    finally:
        worker.close()


def _refused(error: TrainingFailedError) -> str:
    """Why a group is gone, if starting it again may help.

    Raises:
        CapfiltError: it would not: a worker has said what is wrong.
    """
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    for failure in failures:
        cause = getattr(failure, "cause", None) or failure.__cause__ or failure
        if isinstance(cause, CapfiltError):
            raise CapfiltError(str(cause)) from error
    return str(error).strip().rpartition("\n")[2]
