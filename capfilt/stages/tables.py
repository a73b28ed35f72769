"""The tables of one round of one run, each under the plan it is made with.

A table lives in `<run>/round-000/<table>/<plan>/`, where `<plan>` is the first 12 digits of the
plan's digest. A new threshold is a new plan, so its verdicts stand beside the old ones, and a
table never mixes two settings. For stages that cost GPU time a second plan is refused, unless
`on_changed_settings: recompute` asks for it: a slip in a recipe must not burn a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from capfilt.config import Recipe
from capfilt.errors import CapfiltError, CheckpointError, PlanError, StorageError
from capfilt.io.commits import Commit, Table
from capfilt.io.inputs import (
    contents_digest,
    file_digest,
    pattern_digest,
    pattern_stamp,
    shard_urls,
)
from capfilt.io.models import (
    architecture_of,
    digest_of,
    local_model,
    model_digest,
    model_type_of,
)
from capfilt.io.storage import Store
from capfilt.lineage import Plan, canonical_json
from capfilt.stages.other_plans import in_a_line, other_plans, plan_changes
from capfilt.stages.plans import STAGES, Digests, stage_plans
from capfilt.stages.source_notes import Source, note_sources, noted_sources
from capfilt.stages.tuned import ROLES, Tuned, recorded_sizes, with_sizes
from capfilt.workers.kinds import check_role

Wanted = tuple[str, Callable[[str], Source]]
"""Name of a source, and what looks at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The tables of one round. Make it with `open_tables`."""

    store: Store  # the run's folder
    round: int
    plans: Mapping[str, Plan]  # by stage
    sources: Mapping[str, Source]  # what the round reads from outside its tables
    tuned: Mapping[str, Tuned]  # batch sizes the run found for itself, by stage

    def has(self, stage: str) -> bool:
        """Whether the recipe runs this stage at all."""
        return stage in self.plans

    def of(self, stage: str) -> Table:
        """The table a stage writes."""
        plan = self.plans[stage]
        return Table(
            self.folder(stage).child(plan.folder),
            stage=stage,
            round=plan.round,
            plan=plan.digest,
        )

    def begin(self, stage: str, *, recompute: bool) -> Table:
        """The table a stage is about to write, its plan on record.

        Args:
            stage: the stage's name.
            recompute: allow an expensive stage to start over beside results of other settings.

        Raises:
            PlanError: the stage ran before with other settings, and that was not cheap.
        """
        plan = self.plans[stage]
        described = plan.describe()
        if STAGES[stage].expensive and not recompute:
            self._refuse_other_plans(stage)
        self._record_sources(plan)
        self.folder(stage).child(plan.folder).put_new(
            "plan.json", (canonical_json(described) + "\n").encode()
        )
        return self.of(stage)

    def committed(self, stage: str) -> dict[int, Commit]:
        """The shards a stage has committed, by shard number."""
        return dict(self.of(stage).commits())

    def require(self, stage: str, shards: int) -> dict[int, Commit]:
        """The commits of a stage that must be complete before its readers start.

        Raises:
            CapfiltError: shards are missing; names the command that makes them.
        """
        commits = self.committed(stage)
        missing = [shard for shard in range(shards) if shard not in commits]
        if missing:
            elsewhere = self.elsewhere(last=stage)
            raise CapfiltError(
                f"{self.store.url}: round {self.round}, {stage}: {len(missing)} of {shards} "
                f"shards are not done yet (first: {missing[0]}); run `capfilt {stage}` first"
                + (f"; {elsewhere}" if elsewhere else "")
            )
        return commits

    def elsewhere(self, *, last: str | None = None) -> str | None:
        """A line on results the user may miss: the first stage that has some, but none here.

        Args:
            last: the last stage to look at; None looks at all.

        Returns:
            What differs between the settings those results have and the recipe's; None if every
            stage has begun under the recipe's settings, or under none.
        """
        stages = [stage for stage in STAGES if self.has(stage)]
        for stage in stages[: stages.index(last) + 1] if last else stages:
            begun = self.folder(stage).names(f"{self.plans[stage].folder}/_commits")
            if not begun and (others := self._other_plans(stage)):
                nearest = in_a_line(min(others.values(), key=len))
                return f"results of {stage} exist under other settings (-> now): {nearest}"
        return None

    def folder(self, stage: str) -> Store:
        """The folder of a stage's table; each plan has a folder of its own in it."""
        plan = self.plans[stage]
        return self.store.child(f"round-{plan.round:03d}", STAGES[stage].table)

    def _record_sources(self, plan: Plan) -> None:
        """Note where a stage's sources are; those of other stages stay as they were noted.

        What is long to read is noted at once, so that it is read once.
        """
        read = {role: s for role, s in self.sources.items()
                if s.digest in plan.inputs.values() or s.stamp is not None}  # fmt: skip
        known = noted_sources(self.store, self.round)
        note_sources(self.store, self.round, {**known, **read})

    def _other_plans(self, stage: str) -> dict[str, list[str]]:
        """What differs, by folder, between the recipe's plan and others with committed shards."""
        plan, folder = self.plans[stage], self.folder(stage)
        return {
            name: plan_changes(folder.child(name), plan.describe(), shards_now=self._named_shards)
            for name in other_plans(folder, own=plan.folder)
        }

    def _named_shards(self) -> list[str] | None:
        return None if self.has("download") else shard_urls(self.sources["web"].name)

    def _refuse_other_plans(self, stage: str) -> None:
        for changes in self._other_plans(stage).values():
            raise PlanError(
                f"{self.folder(stage).url}: {stage} ran here with other settings:\n"
                + "\n".join(f"  {line}" for line in changes)
                + "\nGo back to those settings, choose another `run` folder, or set "
                "on_changed_settings: recompute to do this stage again beside the old results"
            )


def open_tables(recipe: Recipe, round_number: int) -> Tables:
    """The tables of a round, with the plans its recipe, inputs and models imply.

    Raises:
        CheckpointError: a model of the round cannot be found and this run never used it.
        StorageError: the same of an input file.
        CapfiltError: the round before this one has not trained its models, or they were changed.
    """
    store = Store.at_url(recipe.run)
    return _planned(recipe, store, round_number, _find_sources(recipe, store, round_number))


def replanned(recipe: Recipe, tables: Tables) -> Tables:
    """The same tables after a batch size was put on record: plans name it from now on."""
    return _planned(recipe, tables.store, tables.round, tables.sources)


def _planned(
    recipe: Recipe, store: Store, round_number: int, sources: Mapping[str, Source]
) -> Tables:
    digests = Digests(
        **{role: source.digest for role, source in sources.items()},
        captioner_type=sources["captioner"].model_type,
        filter_type=sources["filter"].model_type,
    )
    models = {role: sources[role].digest for role in ROLES.values()}
    tuned = recorded_sizes(recipe, store, models)
    plans = stage_plans(with_sizes(recipe, tuned), round_number, digests)
    return Tables(store=store, round=round_number, plans=plans, sources=sources, tuned=tuned)


def _find_sources(recipe: Recipe, store: Store, round_number: int) -> dict[str, Source]:
    """What the round reads, digested now; or, if it is out of reach, as this run once found it."""
    recorded = noted_sources(store, round_number)
    wanted = _round_models(recipe, round_number)
    if recipe.download.urls is not None:
        wanted["web"] = (recipe.download.urls, _file)
    elif recipe.input.shards is not None:
        wanted["web"] = (recipe.input.shards, _pattern)
    if recipe.train.human is not None:
        wanted["human"] = (recipe.train.human, partial(_contents, recorded.get("human")))
        for role, model in (("tokenizer", recipe.train.tokenizer), ("start", recipe.train.start)):
            if model is not None:
                wanted[role] = (model, _model)
    return {role: _find(name, look, recorded.get(role)) for role, (name, look) in wanted.items()}


def _find(name: str, look: Callable[[str], Source], recorded: Source | None) -> Source:
    try:
        return look(name)
    except (CheckpointError, StorageError):
        # Deciding again needs no model: a laptop may select over what a cluster has scored.
        if recorded is not None and recorded.name == name:
            return recorded
        raise


def _round_models(recipe: Recipe, round_number: int) -> dict[str, Wanted]:
    """Captioner and filter of a round: the recipe's, then what the round before trained."""
    if round_number == 0:
        models = {"captioner": recipe.caption.model, "filter": recipe.score.model}
        return {role: (name, partial(_model_for, role)) for role, name in models.items()}
    before = open_tables(recipe, round_number - 1)
    if not before.has("train"):
        raise CapfiltError(
            f"round {round_number} needs models trained in round {round_number - 1}; "
            "set train.human to the shards of human pairs"
        )
    before.require("train", 1)
    folders = {"captioner": "captioner", "filter": "filter"}
    if recipe.train.continue_from_previous:
        folders["continued"] = "blip"
    return {role: _trained(before.of("train"), folder) for role, folder in folders.items()}


def _trained(table: Table, folder: str) -> Wanted:
    return table.store.child(folder).url, partial(_trained_model, table, folder)


def _trained_model(table: Table, folder: str, name: str) -> Source:
    """A model the run trained, if it is still what was committed."""
    directory = local_model(name)
    listed = json.loads(table.read(0, "models"))
    files = {p.removeprefix(f"{folder}/"): sha256 for p, sha256 in listed.items()
             if p.startswith(f"{folder}/")}  # fmt: skip
    if (digest := model_digest(directory)) != digest_of(files):
        # No CheckpointError: a model that is damaged is worse than one that is out of reach.
        raise CapfiltError(
            f"{name}: its files are not those that training wrote; restore them, or delete "
            f"_commits/00000.json in {table.store.url} and train again"
        )
    return Source(name=name, digest=digest, model_type=model_type_of(directory))


def _model(name: str) -> Source:
    directory = local_model(name)
    return Source(name=name, digest=model_digest(directory), model_type=model_type_of(directory))


def _model_for(role: str, name: str) -> Source:
    """A model a recipe names, if it is not one made for the other's work."""
    check_role(name, role, architecture_of(local_model(name)))
    return _model(name)


def _file(name: str) -> Source:
    return Source(name=name, digest=file_digest(name))


def _pattern(name: str) -> Source:
    return Source(name=name, digest=pattern_digest(name))


def _contents(recorded: Source | None, name: str) -> Source:
    """Shards by their content: no later stage would notice others, as with those of the web."""
    stamp = pattern_stamp(name)
    if recorded is not None and (recorded.name, recorded.stamp) == (name, stamp):
        return recorded
    return Source(name=name, digest=contents_digest(name), stamp=stamp)
