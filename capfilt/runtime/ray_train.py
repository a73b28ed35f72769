"""Shards that several workers do together, as a group of Ray Train: training on many devices.

Each worker of the group builds the job's worker, reads the whole shard and works on it; the process
group of torch.distributed tells them apart. The first one commits. A group that loses a process is
started again, and goes on from what the job's worker has noted of its progress. At Ctrl-C Ray Train
ends the workers first.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from capfilt.errors import CapfiltError, Stopped, StoreAwayError
from capfilt.pool import AnyJob, ShardReport, read_shard

log = logging.getLogger(__name__)

MAX_RESTARTS = 8
"""Times a group is started again for one shard. A day on many machines loses a few of them; a
fault that is always there should not take a week to be told."""

WAIT_S = 6 * 3600
"""Time that workers wait for one of them, as they do for the first one while it measures and saves.
torch's own limits are 10 and 30 minutes. A worker that is gone is noticed at once all the same; the
limit is for one that hangs."""


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
            yield _done_together(job, shard)
        else:
            yield committed[shard]


def _done_together(job: AnyJob, shard: int) -> ShardReport:
    began, why = perf_counter(), ""
    for restarts in range(MAX_RESTARTS + 1):
        try:
            _run_group(job, shard)
        except TrainingFailedError as error:
            why = _refused(error)
            log.warning("%s: a worker is lost (%d of at most %d): %s", job.stage, restarts + 1,
                        MAX_RESTARTS + 1, why)  # fmt: skip
        # A worker may be lost when all is done: the others wait for nothing then.
        report = job.committed().get(shard)
        if report is not None:
            return replace(report, already=False, seconds=perf_counter() - began)
    raise CapfiltError(
        f"stage {job.stage}: its workers were lost {MAX_RESTARTS + 1} times, at last: {why}; the "
        "same command goes on from where they were"
    )


def _run_group(job: AnyJob, shard: int) -> None:
    resources = job.resources
    scaling = ScalingConfig(
        num_workers=resources.num_workers,
        use_gpu=resources.num_gpus > 0,
        resources_per_worker={"CPU": resources.num_cpus, "GPU": resources.num_gpus},
    )
    # Ray Train keeps its own notes there; ours are where the job puts them.
    with tempfile.TemporaryDirectory(prefix="capfilt-ray-train-") as scratch, _stoppable():
        TorchTrainer(
            _work,
            train_loop_config={"task": GroupTask(job=job, shard=shard)},
            torch_config=TorchConfig(timeout_s=WAIT_S),
            scaling_config=scaling,
            run_config=RunConfig(storage_path=scratch),
        ).fit()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ray Train end the workers at Ctrl-C, and go on from there.

    It then means to end this process as well, as if all were done, and keeps its handler.

    Raises:
        Stopped: the workers were ended.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise Stopped(
            "stopped on request; the same command goes on from the newest record of progress"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


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
    """Why a group is gone, if starting it again may help: a store may answer again.

    Raises:
        CapfiltError: it would not: a worker has said what is wrong.
    """
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    away = None
    for failure in failures:
        cause = getattr(failure, "cause", None) or failure.__cause__ or failure
        if isinstance(cause, StoreAwayError):
            away = str(cause)
        elif isinstance(cause, CapfiltError):
            raise CapfiltError(str(cause)) from error
    return away or str(error).strip().rpartition("\n")[2].partition(" Some common causes")[0]
