"""What is in which plan: the fields that can change a byte, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from capfilt.config import Recipe, Section, check_recipe
from capfilt.stages.plans import STAGES, Digests, stage_plans

DIGESTS = Digests(web="web", captioner="captioner", filter="filter", human="human")
RECIPE = check_recipe(
    "test",
    {
        "run": "run",
        "download": {"urls": "urls.parquet"},
        "caption": {"model": "captioner"},
        "score": {"model": "filter"},
        "train": {"human": "human.tar", "held_out_pairs": 10},
    },
)
FIRST_STAGE = {"input": "index"}  # of sections that are not named like their stage
ONLY_NAMES = {
    *("input.shards", "download.urls", "caption.model", "score.model"),
    *("train.human", "train.tokenizer", "train.start"),
}
"""Fields that say where something is; its content's digest is in the plan instead."""
WITHOUT_EFFECT: dict[str, object] = {
    "download.threads": 1,
    "input.damaged_shards": "salvage",
    "train.tensorboard": True,
    "train.checkpoint_minutes": 1,
    "train.checkpoint_steps": 7,
    "train.checkpoints_kept": 1,
}
"""Fields under which a shard that is committed at all has the same bytes."""
OTHER_VALUES: dict[str, object] = {
    "download.allowed_hosts": ["localhost:80"],
    "caption.top_k": 50,
    "caption.image_size_px": 448,
    "caption.repetition_penalty": 1.1,
    "caption.dtype": "bfloat16",
    "caption.decode": "fast",
    "score.dtype": "bfloat16",
    "score.decode": "fast",
    "score.cascade": {"itc_cos_drop": 0.2, "itc_cos_keep": 0.4},
    "select.policy": "best",
    "select.min_itc_cos": 0.1,
    "select.min_itc_cos_synthetic": 0.1,
    "train.size": "tiny",
    "train.decode": "fast",
    "train.schedule": "step",
    "train.finetune_image_size_px": 384,
    "train.held_out_every": 500,
    "train.mixing": {"human": 2},
    "train.autocast": "bfloat16",
    "train.max_grad_norm": 1.0,
    "train.recompute_layers": 4,
}
SECTIONS = ("input", "download", "index", "caption", "score", "select", "dedup", "publish", "train")
FIELDS = [
    f"{section}.{field}"
    for section in SECTIONS
    for field in getattr(RECIPE, section).__class__.model_fields
    if f"{section}.{field}" not in {*ONLY_NAMES, *WITHOUT_EFFECT}
]


def changed(field: str) -> Recipe:
    """The recipe with another value in one field."""
    section, _, name = field.partition(".")
    value = OTHER_VALUES.get(field, _another(getattr(getattr(RECIPE, section), name)))
    return with_values(section, {name: value})


def _another(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value
    return value / 2 if isinstance(value, float) else "other"


def with_values(section: str, fields: dict[str, object]) -> Recipe:
    values = RECIPE.model_dump()
    values[section] = {**values[section], **fields}
    return check_recipe("test", values)


def changed_stages(
    recipe: Recipe, digests: Digests = DIGESTS, *, round_number: int = 0
) -> set[str]:
    before = stage_plans(RECIPE, 0, DIGESTS)
    after = stage_plans(recipe, round_number, digests)
    return {stage for stage in STAGES if before[stage].digest != after[stage].digest}


def from_on(first: str) -> set[str]:
    """A stage and all below it."""
    stages = list(STAGES)
    return set(stages[stages.index(first) :])


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_changes_the_plans_of_its_stage_and_of_those_below(field: str) -> None:
    section = field.partition(".")[0]
    assert changed_stages(changed(field)) == from_on(FIRST_STAGE.get(section, section))


@pytest.mark.parametrize("stage", ["caption", "score", "train"])
def test_exact_decoding_is_not_named_so_that_older_runs_keep_their_plans(stage: str) -> None:
    options = stage_plans(RECIPE, 0, DIGESTS)[stage].options
    assert "decode" not in options
    assert stage_plans(changed(f"{stage}.decode"), 0, DIGESTS)[stage].options["decode"] == "fast"


@pytest.mark.parametrize("field", sorted(ONLY_NAMES - {"input.shards"}))
def test_a_name_alone_changes_no_plan(field: str) -> None:
    section, _, name = field.partition(".")
    assert changed_stages(with_values(section, {name: "elsewhere"})) == set()


@pytest.mark.parametrize("field", WITHOUT_EFFECT)
def test_what_changes_no_committed_shard_changes_no_plan(field: str) -> None:
    section, _, name = field.partition(".")
    assert changed_stages(with_values(section, {name: WITHOUT_EFFECT[field]})) == set()


def test_the_place_of_the_shards_changes_no_plan() -> None:
    def plans(shards: str) -> object:
        values = RECIPE.model_dump()
        values["download"]["urls"] = None
        values["input"]["shards"] = shards
        return stage_plans(check_recipe("test", values), 0, DIGESTS)

    assert plans("here/{0..9}.tar") == plans("there/{0..9}.tar")


@pytest.mark.parametrize(
    "values",
    [
        {"run": "elsewhere"},
        {"rounds": 7},
        {"on_changed_settings": "recompute"},
        {"pool": {"kind": "local", "device": "cuda", "decode_processes": 7, "shard_timeout_s": 9,
                  "caption": {"workers": 8, "gpus": 0.5, "threads": 3}}},
    ],
)  # fmt: skip
def test_where_and_how_the_work_is_done_changes_no_plan(values: dict[str, object]) -> None:
    assert changed_stages(check_recipe("test", {**RECIPE.model_dump(), **values})) == set()


def test_the_seed_changes_what_is_sampled_and_all_below() -> None:
    recipe = check_recipe("test", {**RECIPE.model_dump(), "seed": 1})
    assert changed_stages(recipe) == from_on("caption")
    assert stage_plans(recipe, 0, DIGESTS)["train"].options["seed"] == 1


@pytest.mark.parametrize(
    ("role", "first"),
    [("web", "download"), ("captioner", "caption"), ("filter", "score"), ("human", "train"),
     ("tokenizer", "train"), ("start", "train"), ("captioner_type", "caption"),
     ("filter_type", "score")],
)  # fmt: skip
def test_other_content_under_a_name_changes_the_plans_of_its_readers(role: str, first: str) -> None:
    assert changed_stages(RECIPE, replace(DIGESTS, **{role: "other"})) == from_on(first)


def test_a_later_round_shares_download_and_index_with_the_first() -> None:
    assert changed_stages(RECIPE, round_number=1) == from_on("caption")
    assert stage_plans(RECIPE, 3, DIGESTS)["index"].round == 0


def test_a_default_written_out_changes_no_plan() -> None:
    written_out = yaml.safe_load(yaml.safe_dump(RECIPE.model_dump(mode="json")))
    assert changed_stages(check_recipe("test", written_out)) == set()


def test_stages_without_anything_to_do_have_no_plan() -> None:
    values = RECIPE.model_dump()
    values["download"]["urls"] = values["train"]["human"] = None
    values["input"]["shards"] = "web.tar"
    plans = stage_plans(check_recipe("test", values), 0, DIGESTS)
    assert list(plans) == ["index", "caption", "score", "select", "dedup", "publish"]


def test_every_section_of_the_recipe_is_accounted_for() -> None:
    sections = {name for name, value in RECIPE if isinstance(value, Section)}
    assert sections == {*SECTIONS, "guard", "pool"}  # these two change no byte of a table


def test_the_seed_is_in_the_plan_of_scores_only_if_an_audit_is_drawn_by_it() -> None:
    assert "score" not in changed_itself(RECIPE)
    cascade = {"cascade": {"itc_cos_drop": 0.2, "itc_cos_keep": 0.4}}
    assert "score" in changed_itself(with_values("score", cascade))


def changed_itself(recipe: Recipe) -> set[str]:
    """The stages whose own options another seed changes."""
    other = check_recipe("test", {**recipe.model_dump(), "seed": recipe.seed + 1})
    before, after = (stage_plans(r, 0, DIGESTS) for r in (recipe, other))
    return {stage for stage in before if before[stage].options != after[stage].options}
