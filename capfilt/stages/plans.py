"""The plan of every stage, all in one place, so that what can change a byte can be audited here.

A plan holds the stage's own options and, as `inputs`, the digests of what it reads. Sections of
the recipe go in whole, less the fields that are only names (a model's path) and with the digest of
what they name instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capfilt.config import Recipe, Section
from capfilt.lineage import Plan, PlanValue


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """What the rest of the program must know about a stage."""

    table: str
    unit: str  # what its rows in are
    expensive: bool  # refuses to start over because a setting changed


STAGES: dict[str, StageFacts] = {
    "download": StageFacts(table="downloads", unit="url", expensive=True),
    "index": StageFacts(table="samples", unit="sample", expensive=True),
    "caption": StageFacts(table="captions", unit="image", expensive=True),
    "score": StageFacts(table="scores", unit="text", expensive=True),
    "select": StageFacts(table="verdicts", unit="text", expensive=False),
    "dedup": StageFacts(table="groups", unit="image", expensive=False),
    "publish": StageFacts(table="dataset", unit="image", expensive=False),
    "train": StageFacts(table="models", unit="pair", expensive=True),
}
"""The stages in the order of the loop."""


PROGRESS_FOLDER = "_progress"
"""Beside a table's commits: how far the training is, in a folder for each phase."""

PROGRESS_FIELDS = ("tensorboard", "checkpoint_minutes", "checkpoint_steps", "checkpoints_kept")
"""How training notes how far it is; that changes no byte of what it leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """Digests of what a round reads from outside the run."""

    web: str  # of the URL list, or of the input shards' names
    captioner: str
    filter: str
    captioner_type: str | None = None  # of its config.json: decides which code runs it
    filter_type: str | None = None
    human: str | None = None  # of the human shards' names and contents
    tokenizer: str | None = None  # of its directory; null if it is the captioner's
    start: str | None = None  # of the model training starts from
    continued: str | None = None  # of the model a later round goes on from


def stage_plans(recipe: Recipe, round_number: int, digests: Digests) -> dict[str, Plan]:
    """The plan of every stage of one round, by stage name; stages that do not run have none."""
    plans: dict[str, Plan] = {}

    def add(stage: str, options: Mapping[str, PlanValue], *, round_: int = round_number,
            **inputs: str | None) -> None:  # fmt: skip
        plans[stage] = Plan(
            stage=stage,
            round=round_,
            options=options,
            inputs={name: digest for name, digest in inputs.items() if digest is not None},
        )

    def digest(stage: str) -> str:
        return plans[stage].digest

    # The web is downloaded and indexed once, in round 0, whatever the round that reads it.
    if recipe.download.urls is not None:
        add("download", _options(recipe.download, "urls", "threads"), round_=0, urls=digests.web)
    shards = digest("download") if "download" in plans else digests.web
    # A damaged tar is refused or salvaged: no shard gives other bytes under the other setting.
    index = {**_options(recipe.index), **_options(recipe.input, "shards", "damaged_shards")}
    add("index", index, round_=0, shards=shards)
    caption = {**_options(recipe.caption, "model"), "model_type": digests.captioner_type}
    add("caption", {**caption, "seed": recipe.seed}, index=digest("index"),
        captioner=digests.captioner)  # fmt: skip
    score = {**_options(recipe.score, "model"), "model_type": digests.filter_type}
    if recipe.score.cascade is not None:
        score["seed"] = recipe.seed  # of the audit
    add("score", score, caption=digest("caption"), filter=digests.filter)
    add("select", _options(recipe.select), score=digest("score"))
    add("dedup", _options(recipe.dedup), select=digest("select"))
    add("publish", _options(recipe.publish), dedup=digest("dedup"))
    if recipe.train.human is not None:
        train = {**_options(recipe.train, "human", "tokenizer", "start", *PROGRESS_FIELDS),
                 "seed": recipe.seed}  # fmt: skip
        add("train", train, publish=digest("publish"), human=digests.human,
            tokenizer=digests.tokenizer,
            start=digests.start, continued=digests.continued)  # fmt: skip
    return plans


def _options(section: Section, *names_only: str) -> dict[str, PlanValue]:
    options: dict[str, PlanValue] = section.model_dump(mode="json")
    if options.get("decode") == "exact":  # what was done before there was a choice: plans stay
        del options["decode"]
    return {name: value for name, value in options.items() if name not in names_only}
