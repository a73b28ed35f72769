"""Status: how far a run has come, read from its commits alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from capfilt.config import Recipe
from capfilt.errors import StorageError
from capfilt.stages.plans import STAGES
from capfilt.stages.shards import Funnel, funnel_of
from capfilt.stages.sources import web_shards
from capfilt.stages.tables import Tables, open_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage of one round."""

    funnel: Funnel
    shards_total: int  # of the input; where that is out of reach, those any stage has seen
    folder: str  # URL of the table

    @property
    def done(self) -> bool:
        """Whether every shard is committed."""
        return self.funnel.shards >= self.shards_total


def run_status(recipe: Recipe) -> list[StageStatus]:
    """The stages of every round that can begin, in order; round 0 always can."""
    return [status for tables in open_rounds(recipe) for status in round_status(recipe, tables)]


def open_rounds(recipe: Recipe) -> list[Tables]:
    """The tables of every round that can begin: a round waits for the models of the one before."""
    return list(_rounds(recipe))


def round_status(recipe: Recipe, tables: Tables) -> list[StageStatus]:
    """The stages a round has, in the order of the loop."""
    shards = _count_shards(recipe, tables)
    return [
        StageStatus(
            funnel=funnel_of(stage, tables.committed(stage).values(), round_=tables.round),
            shards_total=1 if stage == "train" else shards,
            folder=tables.of(stage).store.url,
        )
        for stage in stages_of(tables)
    ]


def stages_of(tables: Tables) -> list[str]:
    """The stages that are done in this round; the web is downloaded and indexed in round 0 only."""
    return [s for s in STAGES if tables.has(s) and tables.plans[s].round == tables.round]


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
