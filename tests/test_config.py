from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from capfilt.config import PoolSection, Recipe, SelectSection, check_recipe, load_recipe
from capfilt.errors import RecipeError

SMALLEST = {
    "run": "r",
    "input": {"shards": "{0..1}.tar"},
    "caption": {"model": "c"},
    "score": {"model": "f"},
}


def problems(values: Mapping[str, object]) -> list[str]:
    """What is wrong with SMALLEST with these values laid over it."""
    with pytest.raises(RecipeError) as caught:
        check_recipe("r.yaml", {**SMALLEST, **values})
    return caught.value.problems


def written(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_smallest_recipe_names_a_run_its_data_and_two_models():
    recipe = check_recipe("r.yaml", SMALLEST)
    assert recipe.select == SelectSection()
    for name in SMALLEST:
        with pytest.raises(RecipeError):
            check_recipe("r.yaml", {key: SMALLEST[key] for key in SMALLEST if key != name})


def test_every_problem_is_told_at_once_with_path_found_and_allowed():
    found = problems(
        {
            "seed": -1,
            "captoin": {},
            "index": [1],
            "select": {"min_itm_prob": 1.5, "policy": "bst", "polcy": "both"},
            "pool": {"download": {"workers": "many"}},
        }
    )
    assert found == [
        "seed: found -1; input should be greater than or equal to 0",
        "index: found [1]; a section of fields should be here",
        "select.policy: found 'bst'; input should be 'both', 'best' or 'web_first'",
        "select.min_itm_prob: found 1.5; input should be less than or equal to 1",
        "select.polcy: unknown field; did you mean policy? known are policy, min_itm_prob, "
        "min_itm_prob_synthetic, min_itc_cos, min_itc_cos_synthetic, max_text_chars",
        "pool.download.workers: found 'many'; input should be a valid integer, unable to parse "
        "string as an integer",
        f"captoin: unknown field; did you mean caption? known are {', '.join(Recipe.model_fields)}",
    ]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"run": None}, "run: found null; input should be a valid string"),
        ({"run": ""}, "run: found ''; string should have at least 1 character"),
        ({"caption": None}, "caption.model: missing, and it has no default"),
        ({"caption": {"model": 7}}, "caption.model: found 7; input should be a valid string"),
        ({"index": {"timeout_s": float("inf")}}, "index.timeout_s: found inf; input should be a f"),
        ({"select": {"min_itm_prob": float("nan")}}, "select.min_itm_prob: found nan; input shou"),
        ({"publish": {"webdataset": "maybe"}}, "publish.webdataset: found 'maybe'; input should"),
        ({"rounds": 0}, "rounds: found 0; input should be greater than or equal to 1"),
        ({"rounds": 2}, "recipe: rounds is 2, and the second needs models trained in the first;"),
        ({"seed": 2**63}, f"seed: found {2**63}; input should be less than {2**63}"),
        ({"pool": {"device": "tpu"}}, "pool.device: found 'tpu'; write cpu, cuda, cuda:1 or mps"),
        ({"pool": {"device": "cuda:"}}, "pool.device: found 'cuda:'; write cpu, cuda, cuda:1 or"),
        ({"min_itm_prob": 0.3}, "min_itm_prob: unknown field; did you mean select.min_itm_prob? "),
        ({"model": "m"}, "model: unknown field; did you mean caption.model or score.model? known"),
        ({"workers": 2}, "workers: unknown field; known are run, seed, rounds"),
        (
            {"select": {"itc_cos_drop": 0.1}},
            "select.itc_cos_drop: unknown field; did you mean score.cascade.itc_cos_drop? known ",
        ),
        ({1: 2}, "1: found 1; keys should be strings"),
        ({"input": {}}, "recipe: give input.shards or download.urls, one of the two; neither is"),
        ({"download": {"urls": "u"}}, "recipe: give input.shards or download.urls, one of the two"),
        ({"download": {"allowed_hosts": "a:1"}}, "download.allowed_hosts: found 'a:1'; a list sh"),
        ({"download": {"user_agent_token": "a b"}}, "download.user_agent_token: found 'a b'; st"),
        (
            {"caption": {"model": "c", "min_new_tokens": 20}},
            "caption: min_new_tokens is 20, not below max_new_tokens, 20; lower the first or ra",
        ),
        (
            {"train": {"human": "h"}, "pool": {"kind": "local", "train": {"workers": 2}}},
            "recipe: pool.train.workers is 2, and they train together only on Ray; set pool.kind",
        ),
        (
            {"train": {"human": "h"}, "pool": {"train": {"workers": 3}}},
            "recipe: train.batch_size is 64, no multiple of pool.train.workers, 3",
        ),
        (
            {"train": {"human": "h", "accumulate_steps": 33}},
            "recipe: train.accumulate_steps is 33, and a worker has 64 pairs of a batch; each part",
        ),
        (
            {"train": {"queue_size": 100}},
            "train: queue_size is 100, no multiple of batch_size, 64; 64 would be",
        ),
        (
            {"train": {"queue_size": 10}},
            "train: queue_size is 10, no multiple of batch_size, 64; 64 would be",
        ),
        (
            {"train": {"finetune_image_size_px": 390}},
            "train: finetune_image_size_px is 390, no multiple of 16, the side of a patch of the "
            "base model; 384 would be",
        ),
    ],
)
def test_a_wrong_value_is_explained(values, problem):
    [found] = problems(values)
    assert found.startswith(problem)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:15", "mps"])
def test_a_device_is_one_torch_has(device):
    assert check_recipe("r.yaml", {**SMALLEST, "pool": {"device": device}}).pool.device == device


def test_a_long_value_is_not_quoted_whole():
    [found] = problems({"run": ["x" * 1000]})
    assert len(found) < 150


@pytest.mark.parametrize("host", ["images:8080", "10.0.0.1:80", "[fd00::1]:443", "a.b-c.d:1"])
def test_an_allowed_host_is_a_host_and_a_port(host):
    recipe = check_recipe("r.yaml", {**SMALLEST, "download": {"allowed_hosts": [host]}})
    assert recipe.download.allowed_hosts == (host,)


@pytest.mark.parametrize("host", ["images", "http://images:80", "images:80/", "fd00::1:443", ":80"])
def test_an_allowed_host_that_could_never_match_is_refused(host):
    [found] = problems({"download": {"allowed_hosts": ["a:1", host]}})
    write = "write host:port, such as images.internal:8080"
    assert found == f"download.allowed_hosts: found {host!r}; {write}"


def test_an_empty_section_has_its_defaults(tmp_path):
    empty = "".join(f"{name}:\n" for name in Recipe.model_fields if name not in SMALLEST)
    sections = "\n".join(line for line in empty.splitlines() if not is_scalar(line[:-1]))
    path = written(tmp_path, yaml.safe_dump(SMALLEST) + sections)
    assert load_recipe(path) == check_recipe("r.yaml", SMALLEST)


def is_scalar(field: str) -> bool:
    annotation = Recipe.model_fields[field].annotation
    return not (isinstance(annotation, type) and issubclass(annotation, BaseModel))


def test_a_default_is_the_same_as_its_value_written_out():
    recipe = check_recipe("r.yaml", SMALLEST)
    again = check_recipe("r.yaml", recipe.model_dump())
    assert again.model_dump_json() == recipe.model_dump_json()


def test_an_override_is_checked_like_the_recipe(tmp_path):
    path = written(tmp_path, yaml.safe_dump(SMALLEST))
    assert load_recipe(path, ["select.min_itm_prob=0.9"]).select.min_itm_prob == 0.9
    assert load_recipe(path, ["train.learning_rate=3e-5"]).train.learning_rate == 3e-5
    with pytest.raises(RecipeError, match=r"select\.min_itm_prob: found 9"):
        load_recipe(path, ["select.min_itm_prob=9"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be a mapping of sections; `capfilt init` writes one"),
        ("- run", "must be a mapping of sections; `capfilt init` writes one"),
        ("run: {", "is not YAML: line 1, column 7: expected the node content"),
        ("run: a\nrun: b", "is not YAML: line 2, column 1: 'run' is there twice"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text, problem, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    [found] = caught.value.problems
    assert found.startswith(problem)
    assert str(caught.value).startswith(f"{path}: 1 problem\n  ")


def test_a_file_that_is_not_there_is_told_with_what_writes_one(tmp_path):
    with pytest.raises(RecipeError, match="no such file; `capfilt init` writes a recipe"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(str(tmp_path))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"run: caf\xe9")
    with pytest.raises(RecipeError, match="is not UTF-8 text: byte 8"):
        load_recipe(str(tmp_path / "recipe.yaml"))


def test_every_field_is_documented():
    def undocumented(model: type[BaseModel], path: str) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            missing += [] if field.description else [path + name]
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                missing += undocumented(inner, f"{path}{name}.")
        return missing

    assert undocumented(Recipe, "") == []


def test_a_recipe_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        PoolSection().kind = "local"


def test_int8_asks_for_a_cpu():
    rounded = {"score": {"model": "f", "dtype": "int8"}}
    assert check_recipe("r.yaml", {**SMALLEST, **rounded}).score.dtype == "int8"
    assert problems({**rounded, "pool": {"device": "cuda:1"}}) == [
        "recipe: score.dtype is int8, which is for CPUs, and pool.device is 'cuda:1'; "
        "set score.dtype: bfloat16, or pool.device: cpu"
    ]


def test_a_cascade_leaves_a_band_to_itm():
    cascade = {"itc_cos_drop": 0.4, "itc_cos_keep": 0.4}
    assert problems({"score": {"model": "f", "cascade": cascade}}) == [
        "score.cascade: itc_cos_drop is 0.4, not below itc_cos_keep, 0.4; between them lie the "
        "texts that ITM decides"
    ]
    assert problems({"score": {"model": "f", "cascade": {}}}) == [
        "score.cascade.itc_cos_drop: missing, and it has no default",
        "score.cascade.itc_cos_keep: missing, and it has no default",
    ]
