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

from capfilt.config import Recipe
from capfilt.errors import CapfiltError, CheckpointError, PlanError, StorageError
from capfilt.io.commits import Commit, Table
from capfilt.io.inputs import file_digest, pattern_digest
from capfilt.io.models import local_model, model_digest
from capfilt.io.storage import Store
from capfilt.lineage import Plan, canonical_json, plan_differences
from capfilt.stages.plans import STAGES, Digests, stage_plans


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Something read from outside: its name now, and the digest of its content."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The tables of one round. Make it with `open_tables`."""

    store: Store  # the run's folder
    round: int
    plans: Mapping[str, Plan]  # by stage
    sources: Mapping[str, Source]  # what the round reads from outside its tables

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
            self._refuse_other_plans(stage, described)
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
            raise CapfiltError(
                f"{self.store.url}: round {self.round}, {stage}: {len(missing)} of {shards} "
                f"shards are not done yet (first: {missing[0]}); run `capfilt {stage}` first"
            )
        return commits

    def folder(self, stage: str) -> Store:
        """The folder of a stage's table; each plan has a folder of its own in it."""
        plan = self.plans[stage]
        return self.store.child(f"round-{plan.round:03d}", STAGES[stage].table)

    def _record_sources(self, plan: Plan) -> None:
        """Note where a stage's sources are; those of other stages stay as they were noted."""
        read = {role: s for role, s in self.sources.items() if s.digest in plan.inputs.values()}
        known = _recorded_sources(self.store, self.round)
        self.store.put(_sources_file(self.round), _sources_json({**known, **read}))

    def _refuse_other_plans(self, stage: str, described: Mapping[str, object]) -> None:
        folder = self.folder(stage)
        for name in folder.names():
            if name == self.plans[stage].folder or not folder.names(f"{name}/_commits"):
                continue  # a plan under which nothing was committed has cost nothing
            changes = plan_differences(json.loads(folder.read(f"{name}/plan.json")), described)
            raise PlanError(
                f"{folder.url}: {stage} ran here with other settings:\n"
                + "\n".join(f"  {line}" for line in changes)
                + "\nGo back to those settings, choose another `run` folder, or set "
                "on_changed_settings: recompute to do this stage again beside the old results"
            )


def open_tables(recipe: Recipe, round_number: int) -> Tables:
    """The tables of a round, with the plans its recipe, inputs and models imply.

    Raises:
        CheckpointError: a model of the round cannot be found and this run never used it.
        StorageError: the same of an input file.
        CapfiltError: the round before this one has not trained its models.
    """
    store = Store.at_url(recipe.run)
    sources = _find_sources(recipe, store, round_number)
    digests = Digests(**{role: source.digest for role, source in sources.items()})
    plans = stage_plans(recipe, round_number, digests)
    return Tables(store=store, round=round_number, plans=plans, sources=sources)


def _find_sources(recipe: Recipe, store: Store, round_number: int) -> dict[str, Source]:
    """What the round reads, digested now; or, if it is out of reach, as this run once found it."""
    captioner, filter_ = _round_models(recipe, store, round_number)
    wanted: dict[str, tuple[str, Callable[[str], str]]] = {
        "captioner": (captioner, _model_digest),
        "filter": (filter_, _model_digest),
    }
    if recipe.download.urls is not None:
        wanted["web"] = (recipe.download.urls, file_digest)
    elif recipe.input.shards is not None:
        wanted["web"] = (recipe.input.shards, pattern_digest)
    if recipe.train.human is not None:
        wanted["human"] = (recipe.train.human, pattern_digest)
        for role, model in (("tokenizer", recipe.train.tokenizer), ("start", recipe.train.start)):
            if model is not None:
                wanted[role] = (model, _model_digest)
    recorded = _recorded_sources(store, round_number)
    return {
        role: _find(name, digest, recorded.get(role)) for role, (name, digest) in wanted.items()
    }


def _find(name: str, digest: Callable[[str], str], recorded: Source | None) -> Source:
    try:
        return Source(name=name, digest=digest(name))
    except (CheckpointError, StorageError):
        # Deciding again needs no model: a laptop may select over what a cluster has scored.
        if recorded is not None and recorded.name == name:
            return recorded
        raise


def _round_models(recipe: Recipe, store: Store, round_number: int) -> tuple[str, str]:
    """Captioner and filter of a round: the recipe's, then what the round before trained."""
    if round_number == 0:
        return recipe.caption.model, recipe.score.model
    before = open_tables(recipe, round_number - 1)
    if not before.has("train"):
        raise CapfiltError(
            f"round {round_number} needs models trained in round {round_number - 1}; "
            "set train.human to the shards of human pairs"
        )
    before.require("train", 1)
    trained = before.folder("train").child(before.plans["train"].folder)
    return trained.child("captioner").url, trained.child("filter").url


def _model_digest(name: str) -> str:
    return model_digest(local_model(name))


def _sources_file(round_number: int) -> str:
    return f"inputs/round-{round_number:03d}.json"


def _sources_json(sources: Mapping[str, Source]) -> bytes:
    plain = {role: {"name": s.name, "digest": s.digest} for role, s in sources.items()}
    return (canonical_json(plain) + "\n").encode()


def _recorded_sources(store: Store, round_number: int) -> dict[str, Source]:
    if not store.exists(_sources_file(round_number)):
        return {}
    plain = json.loads(store.read(_sources_file(round_number)))
    return {role: Source(name=s["name"], digest=s["digest"]) for role, s in plain.items()}
