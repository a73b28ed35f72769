"""Status: how far a run has come, read from its commits alone, and how fast, from its events."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from capfilt.config import Recipe
from capfilt.errors import StorageError
from capfilt.io.storage import Store
from capfilt.records import PHASES
from capfilt.stages.events import ShardEvent, read_events
from capfilt.stages.plans import PROGRESS_FOLDER, STAGES
from capfilt.stages.shards import Funnel, funnel_of
from capfilt.stages.sources import web_shards
from capfilt.stages.speed import StageSpeed, stage_speed
from capfilt.stages.tables import Tables, open_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage of one round."""

    funnel: Funnel
    shards_total: int  # of the input; where that is out of reach, those any stage has seen
    folder: str  # URL of the table
    speed: StageSpeed | None = None  # of stages whose workers are measured, as far as it was noted

    @property
    def done(self) -> bool:
        """Whether every shard is committed."""
        return self.funnel.shards >= self.shards_total


def run_status(recipe: Recipe) -> list[StageStatus]:
    """The stages of every round that can begin, in order; round 0 always can."""
    events = read_events(Store.at_url(recipe.run))
    return [s for tables in open_rounds(recipe) for s in round_status(recipe, tables, events)]


def open_rounds(recipe: Recipe) -> list[Tables]:
    """The tables of every round that can begin: a round waits for the models of the one before."""
    return list(_rounds(recipe))


def tuned_lines(recipe: Recipe) -> list[str]:
    """A line on each batch size the run found for itself, of every round that can begin."""
    return [tuned.describe() for tables in open_rounds(recipe) for tuned in tables.tuned.values()]


def elsewhere_lines(recipe: Recipe) -> list[str]:
    """A line on results that exist under other settings only, of every round that can begin."""
    found = (tables.elsewhere() for tables in open_rounds(recipe))
    return list(dict.fromkeys(line for line in found if line is not None))


def training_lines(recipe: Recipe) -> list[str]:
    """A line on each training that has begun and is not done: what it would go on from."""
    rounds = (tables for tables in open_rounds(recipe) if tables.has("train"))
    found = (_training_line(tables) for tables in rounds if not tables.committed("train"))
    return [line for line in found if line is not None]


def round_status(
    recipe: Recipe, tables: Tables, events: Sequence[ShardEvent] = ()
) -> list[StageStatus]:
    """The stages a round has, in the order of the loop.

    Args:
        recipe: the run.
        tables: the round.
        events: of the whole run.
    """
    shards = _count_shards(recipe, tables)
    return [
        StageStatus(
            funnel=funnel_of(stage, tables.committed(stage).values(), round_=tables.round),
            shards_total=1 if stage == "train" else shards,
            folder=tables.of(stage).store.url,
            speed=stage_speed(e for e in events if _made(e, tables, stage)),
        )
        for stage in stages_of(tables)
    ]


def stages_of(tables: Tables) -> list[str]:
    """The stages that are done in this round; the web is downloaded and indexed in round 0 only."""
    return [s for s in STAGES if tables.has(s) and tables.plans[s].round == tables.round]


def _training_line(tables: Tables) -> str | None:
    """The last phase with a record says it all: those before it are finished."""
    folder = tables.of("train").store.child(PROGRESS_FOLDER)
    for phase in reversed(PHASES):
        numbers = (re.search(r"\d+", name) for name in folder.names(phase))
        steps = [int(number[0]) for number in numbers if number]
        if steps:
            at = f"phase {phase}, on record to step {max(steps)}"
            return f"round {tables.round}: train is in {at}"
    return None


def _made(event: ShardEvent, tables: Tables, stage: str) -> bool:
    """Whether the event is of the very table, not of one with other settings."""
    plan = tables.plans[stage]
    return (event.round, event.stage, event.plan) == (plan.round, stage, plan.folder)


def _rounds(recipe: Recipe) -> Iterator[Tables]:
    for number in range(recipe.rounds):
        tables = open_tables(recipe, number)
        yield tables
        if not (tables.has("train") and tables.committed("train")):
            return


def _count_shards(recipe: Recipe, tables: Tables) -> int:
    try:
        return web_shards(recipe, tables).count
    except StorageError:
        # Its plans were found all the same, so the run has seen its input: see `open_tables`.
        shards = [s for stage in stages_of(tables) for s in tables.committed(stage)]
        return max(shards, default=-1) + 1
