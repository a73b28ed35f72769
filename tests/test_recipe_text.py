from __future__ import annotations

import re

import pytest
import yaml

from capfilt.config import Recipe, check_recipe
from capfilt.recipe_text import WIDTH, recipe_text
from capfilt.recipe_yaml import parse_yaml

CHOSEN: dict[str, object] = {
    "run": "runs/first",
    "download": {"urls": "urls.parquet"},
    "caption": {"model": "Salesforce/blip-image-captioning-base"},
    "score": {"model": "Salesforce/blip-itm-base-coco"},
}


def read(text: str) -> Recipe:
    values = parse_yaml(text)
    assert isinstance(values, dict)
    return check_recipe("recipe.yaml", values)


def with_defaults_set(text: str) -> str:
    """The text as its heading says to change it, at every line."""
    return re.sub(r"(?m)^( *)#(\w+:)", r"\1\2", text)


def test_the_text_is_the_recipe_that_was_chosen():
    assert read(recipe_text(CHOSEN)) == check_recipe("r", CHOSEN)


def test_setting_every_default_changes_nothing():
    text = recipe_text(CHOSEN)
    changed = with_defaults_set(text)
    assert changed.count("\n") == text.count("\n")
    assert len(re.findall(r"(?m)^ *#\w", text)) > 50
    assert read(changed) == read(text)


def test_every_field_has_a_line_with_its_default():
    values = parse_yaml(with_defaults_set(recipe_text(CHOSEN)))
    assert values == {**check_recipe("r", CHOSEN).model_dump(mode="json")}


def test_a_default_that_is_set_is_taken():
    text = recipe_text(CHOSEN).replace("  #min_itm_prob: 0.5", "  min_itm_prob: 0.7")
    assert read(text).select.min_itm_prob == 0.7


@pytest.mark.parametrize(
    "value",
    [
        "s3://bucket/{00000..00099}.tar",
        "{a,b}.tar",
        "*.tar",
        "a: b",
        "a #b",
        "#a",
        "yes",
        "007",
        "1e3",
        "null",
        "- a",
        "'quoted'",
        'say "hi"\\',
        "ключ 猫",
        " spaces ",
        "two\nlines",
        "x" * 300,
    ],
)
def test_any_string_survives_the_text(value):
    chosen = {**CHOSEN, "run": value, "caption": {"model": value, "prompt": value}}
    recipe = read(recipe_text(chosen))
    assert (recipe.run, recipe.caption.model, recipe.caption.prompt) == (value, value, value)


def test_explanations_are_told_from_defaults_and_fit_the_screen():
    lines = recipe_text(CHOSEN).splitlines()
    assert all(re.match(r"^ *# \S|^ *#?\w+:|^$", line) for line in lines)
    assert max(map(len, lines)) <= WIDTH


def test_the_text_is_the_same_each_time():
    assert recipe_text(CHOSEN) == recipe_text(yaml.safe_load(yaml.safe_dump(CHOSEN)))
