"""What happens to a shard, and who makes it happen: the three protocols.

A stage describes its work on one shard as a `ShardJob`; a `Pool` runs it on many shards. The job
says *what*, in four steps that any process can take:

    fetch(shard)              read the shard's inputs (slow I/O; a pool may do it ahead of time)
    worker(inputs)            turn inputs into outputs, same length and order (the GPU's part)
    quarantine(input, why)    the output row for an input that cannot be worked on
    commit(shard, outputs)    write the outputs and commit the shard

and the pool says *where*: `local_pool.LocalPool` in this process, `runtime.ray_pool.RayPool` in
actors on a cluster. Both call `work_on_shard`, so a shard means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

from capfilt.errors import CapfiltError, ShardError
from capfilt.meter import Effort
from capfilt.records import Reason

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Worker(Protocol[In_contra, Out_co]):
    """Built once in the process where it runs; owns models, child processes, devices."""

    def __call__(self, inputs: Sequence[In_contra]) -> Sequence[Out_co]:
        """Work on a batch: one output per input, in the same order."""
        ...

    def close(self) -> None:
        """Give back what it holds; called once, also after an error."""
        ...


@runtime_checkable
class PreparingWorker(Worker[InputT, Out_co], Protocol[InputT, Out_co]):
    """A worker that can begin with a shard before its turn, such as by decoding its images."""

    def prepare(self, inputs: Sequence[InputT]) -> Sequence[InputT]:
        """Begin, and return at once; another thread may be in the worker's call meanwhile.

        Returns:
            The same rows, for the worker's call. They may be called with again, in part, or never.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched(Generic[InputT]):
    """A shard's inputs, ready for a worker."""

    inputs: Sequence[InputT]
    context: object = None  # whatever the job's commit needs beside the outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Rows a pool found to kill or break the worker: position among the inputs, and why."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What became of one shard at one stage. Small: it travels to the driver."""

    stage: str
    shard: int
    rows_in: int
    kept: int
    dropped: Mapping[str, int]  # reason -> rows
    already: bool = False  # committed by an earlier run; nothing was done
    seconds: float = 0.0  # of work, waiting excluded
    error: str | None = None  # the ShardError's text: nothing was committed
    effort: Effort | None = None  # what its worker spent, if that is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a pool reserves for the workers of one stage."""

    num_workers: int = 1
    num_cpus: float = 1.0  # per worker; may be a fraction
    num_gpus: float = 0.0  # per worker; may be a fraction
    shard_timeout_s: float = (
        3600.0  # a shard that takes longer is taken from its worker; may be inf
    )
    divisible: bool = True
    """Whether a shard's inputs stand alone, so that one which fails its worker can be left out."""
    together: bool = False
    """Whether all workers do each shard together, in a process group of torch.distributed."""


class ShardJob(Protocol[InputT, OutputT]):
    """One stage's work on one shard. Picklable: it travels to actors."""

    @property
    def stage(self) -> str:
        """The stage's name: `caption`, `score`, ..."""
        ...

    @property
    def resources(self) -> Resources:
        """What each of the stage's workers needs."""
        ...

    def committed(self) -> Mapping[int, ShardReport]:
        """Shards that need no work: committed by an earlier run under the same plan."""
        ...

    def build_worker(self) -> Worker[InputT, OutputT]:
        """Load models, start child processes. Called once per worker process."""
        ...

    def fetch(self, shard: int) -> Fetched[InputT]:
        """Read the inputs of a shard.

        Raises:
            ShardError: the shard cannot be read.
        """
        ...

    def quarantine(self, rejected: InputT, why: Quarantine) -> OutputT:
        """The output that stands for an input no worker survives; asked for if divisible."""
        ...

    def commit(
        self, shard: int, fetched: Fetched[InputT], outputs: Sequence[OutputT]
    ) -> ShardReport:
        """Write the outputs, one per input in the same order, and commit the shard.

        Raises:
            StorageError: nothing was committed.
            AccountingError: rows were lost or invented.
        """
        ...


AnyJob = ShardJob[Any, Any]
"""A job of a chain: what flows inside it is its own affair."""


class Pool(Protocol):
    """Runs jobs over shards."""

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        """Take every shard through a chain of jobs, each job starting as its predecessor commits.

        Yields one report per (job, shard), in any order; shards already committed yield theirs
        with `already=True`. A shard that fails yields a report with `error` and goes no further.

        Raises:
            CapfiltError: something no other shard would survive either (a full disk, other plan).
            Stopped: the process was asked to stop; everything reported so far is committed.
        """
        ...

    def close(self) -> None:
        """Give back workers and their machines."""
        ...


def read_shard(job: ShardJob[InputT, OutputT], shard: int) -> Fetched[InputT]:
    """Read a shard's inputs; a disk or store that fails meanwhile costs this shard only.

    Raises:
        ShardError: the shard cannot be read.
    """
    try:
        return job.fetch(shard)
    except OSError as err:
        raise ShardError(f"cannot be read: {err}") from err


def prepared(worker: Worker[InputT, OutputT], fetched: Fetched[InputT]) -> Fetched[InputT]:
    """Let a worker begin with a shard that it will get whole, if it is one that can."""
    if not isinstance(worker, PreparingWorker):
        return fetched
    return replace(fetched, inputs=worker.prepare(fetched.inputs))


def build_error(job: AnyJob, error: Exception) -> CapfiltError:
    """The one line for a worker that cannot be built, whatever went wrong."""
    what = f"{type(error).__name__}: {error}"
    return CapfiltError(f"stage {job.stage}: no worker could be built: {what}")


def work_on_shard(
    job: ShardJob[InputT, OutputT],
    worker: Worker[InputT, OutputT],
    fetched: Fetched[InputT],
    excluded: Mapping[int, Quarantine],
) -> list[OutputT]:
    """Outputs for all inputs of a shard: from the worker, or from quarantine for excluded ones.

    Args:
        job: the stage's job.
        worker: what `job.build_worker` made.
        fetched: what `job.fetch` read.
        excluded: positions among the inputs that the worker must not see.

    Returns:
        One output per input, in the inputs' order.
    """
    inputs = fetched.inputs
    sound = [i for i in range(len(inputs)) if i not in excluded]
    produced = worker(Subset(inputs, sound) if excluded else inputs)
    assert len(produced) == len(sound), (
        f"{job.stage}: the worker gave {len(produced)} outputs for {len(sound)} inputs"
    )
    remaining = iter(produced)
    return [
        job.quarantine(inputs[i], excluded[i]) if i in excluded else next(remaining)
        for i in range(len(inputs))
    ]


class Subset(Sequence[InputT]):
    """Some rows of a sequence, read from it as they are asked for: inputs may be made on access.

    Args:
        rows: the whole.
        positions: which of its rows, in order.
    """

    def __init__(self, rows: Sequence[InputT], positions: Sequence[int]) -> None:
        self._rows = rows
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> InputT: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[InputT]: ...
    def __getitem__(self, index: int | slice) -> InputT | Sequence[InputT]:
        if isinstance(index, slice):
            return [self._rows[position] for position in self._positions[index]]
        return self._rows[self._positions[index]]


def failed_report(stage: str, shard: int, error: str) -> ShardReport:
    """The report of a shard that could not be processed."""
    return ShardReport(stage=stage, shard=shard, rows_in=0, kept=0, dropped={}, error=error)
