"""The whole loop: every stage in order, round after round, skipping what is committed.

Index, caption, score and select run as one chain: a shard goes to the filter as soon as it is
captioned, so captioner and filter work at the same time. Download, dedup, publish and train wait
for all shards of what they read. A round that is published is measured (`round_report`), and one
that has collapsed is not trained on (`collapse`).
"""

from __future__ import annotations

from collections.abc import Iterator

from capfilt.config import Recipe
from capfilt.pool import Pool
from capfilt.stages import caption, dedup, download, index, publish, score, select, train
from capfilt.stages.cascade import log_audit
from capfilt.stages.collapse import check_round
from capfilt.stages.round_report import RoundReport, record_round, round_report
from capfilt.stages.shards import Funnel, run_jobs
from capfilt.stages.sources import web_shards
from capfilt.stages.tables import Tables, open_tables
from capfilt.stages.tuning import tune

CHAIN = (index, caption, score, select)


def bootstrap(recipe: Recipe, pool: Pool, *, rounds: int) -> Iterator[Funnel]:
    """Run rounds of captioning, filtering and training.

    Args:
        recipe: the run.
        pool: where the work is done.
        rounds: how many; a round after the first uses the models the one before it trained.

    Yields:
        The funnel of each stage as it is done.
    """
    for number in range(rounds):
        yield from run_round(recipe, open_tables(recipe, number), pool)


def run_round(recipe: Recipe, tables: Tables, pool: Pool) -> Iterator[Funnel]:
    """One round: the funnel of each of its stages, as it is done."""
    if tables.has("train"):
        train.check_tokenizer(recipe, tables)  # now, rather than after days of captioning
    if tables.has("download"):
        yield download.run(recipe, tables, pool)
    tables = tune(recipe, tables, pool)
    chain = [stage.job(recipe, tables) for stage in CHAIN]
    funnels = run_jobs(chain, web_shards(recipe, tables).count, tables=tables, pool=pool)
    log_audit(recipe, tables)
    yield from (funnels[stage.STAGE] for stage in CHAIN)
    yield dedup.run(recipe, tables, pool)
    yield publish.run(recipe, tables, pool)
    report = record_round(recipe, tables)
    if tables.has("train"):
        before = None if tables.round == 0 else _round_before(recipe, tables)
        check_round(report, before, recipe.guard, where=tables.store.url)
        yield train.run(recipe, tables, pool)
        record_round(recipe, tables)


def _round_before(recipe: Recipe, tables: Tables) -> RoundReport | None:
    return round_report(recipe, open_tables(recipe, tables.round - 1))
