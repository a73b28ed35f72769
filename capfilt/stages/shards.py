"""What all per-shard stages share: commits read back as reports, and reports summed to a funnel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from capfilt.config import PoolSection, WorkersSection
from capfilt.errors import AccountingError, ShardError
from capfilt.io.commits import Commit, Table
from capfilt.pool import AnyJob, Pool, Resources, ShardReport
from capfilt.stages.events import noted
from capfilt.stages.plans import STAGES
from capfilt.stages.tables import Tables

MAX_NAMED = 3
"""Failed shards named in one message; all of them are in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Funnel:
    """Where a stage's rows went: rows in = kept + dropped by reason."""

    stage: str
    round: int
    unit: str
    shards: int
    rows_in: int
    kept: int
    dropped: Mapping[str, int]

    @property
    def remainder(self) -> int:
        """Rows neither kept nor dropped for a reason; anything but 0 is a defect."""
        return self.rows_in - self.kept - sum(self.dropped.values())


def funnel_of(stage: str, commits: Iterable[Commit], *, round_: int) -> Funnel:
    """Sum a stage's commits.

    Raises:
        AccountingError: rows were lost or invented.
    """
    commits = list(commits)
    dropped: Counter[str] = Counter()
    for commit in commits:
        dropped.update(commit.dropped)
    funnel = Funnel(
        stage=stage,
        round=round_,
        unit=STAGES[stage].unit,
        shards=len(commits),
        rows_in=sum(c.rows_in for c in commits),
        kept=sum(c.kept for c in commits),
        dropped=dict(sorted(dropped.items())),
    )
    if funnel.remainder:
        raise AccountingError(
            f"round {round_}, {stage}: {funnel.rows_in} rows in, {funnel.kept} kept, "
            f"{sum(dropped.values())} dropped: {funnel.remainder} unaccounted for"
        )
    return funnel


def report_of(stage: str, commit: Commit, *, already: bool = False) -> ShardReport:
    """A commit as the report a pool passes on."""
    return ShardReport(
        stage=stage,
        shard=commit.shard,
        rows_in=commit.rows_in,
        kept=commit.kept,
        dropped=commit.dropped,
        already=already,
    )


def reports_of(stage: str, table: Table) -> dict[int, ShardReport]:
    """Reports of the shards a table already holds."""
    return {
        shard: report_of(stage, commit, already=True) for shard, commit in table.commits().items()
    }


def run_jobs(
    jobs: Sequence[AnyJob], shards: int, *, tables: Tables, pool: Pool
) -> dict[str, Funnel]:
    """Take all shards through a chain of jobs and sum up what became of them, by stage.

    Raises:
        ShardError: some shards failed; all others are committed.
    """
    reports = noted(pool.run(jobs, range(shards)), tables)
    failed = [r for r in reports if r.error is not None]
    if failed:
        lines = [f"  {r.stage}, shard {r.shard}: {r.error}" for r in failed[:MAX_NAMED]]
        more = f"\n  and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
        raise ShardError(
            f"{len(failed)} of {shards} shards failed; the others are done, and the same "
            "command tries these again:\n" + "\n".join(lines) + more
        )
    return {
        job.stage: funnel_of(job.stage, tables.committed(job.stage).values(), round_=tables.round)
        for job in jobs
    }


def drop_counts(reasons: Iterable[str | None]) -> dict[str, int]:
    """Rows per reason; rows without one are not counted."""
    return dict(sorted(Counter(r for r in reasons if r is not None).items()))


def reason_counts(reasons: pa.ChunkedArray) -> dict[str, int]:
    """Rows per reason, of a column of reasons; nulls are not counted."""
    counts = pc.value_counts(pc.drop_null(reasons)).to_pylist()
    return dict(sorted((count["values"], count["counts"]) for count in counts))


def resources_of(pool: PoolSection, workers: WorkersSection) -> Resources:
    """What a pool must reserve for a stage."""
    return Resources(
        num_workers=workers.workers,
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        shard_timeout_s=pool.shard_timeout_s,
    )


def undivided_resources_of(pool: PoolSection, workers: WorkersSection) -> Resources:
    """The same for a stage that takes a shard whole: no row of it can be left out."""
    return replace(resources_of(pool, workers), divisible=False)


def round_resources_of(pool: PoolSection, workers: WorkersSection) -> Resources:
    """The same for a stage that takes a whole round at once: for days if it must."""
    return replace(undivided_resources_of(pool, workers), shard_timeout_s=math.inf)
