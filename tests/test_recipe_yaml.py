from __future__ import annotations

import pytest

from capfilt.errors import RecipeError
from capfilt.recipe_yaml import apply_overrides, parse_yaml

VALUES = {"run": "r", "select": {"policy": "both"}, "index": None}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("run: r\nrun: s\n", "line 2, column 1: 'run' is there twice"),
        ("index:\n  a: 1\n  a: 2\n", "line 3, column 3: 'a' is there twice"),
        ("run: [", "line 1, column 7: expected the node content, but found '<stream end>'"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("\trun: r", "line 1, column 1: found character '\\t' that cannot start any token"),
        ("x: !!python/object:os.system 1", "line 1, column 4: could not determine a constructor"),
        ("run: \x07", "unacceptable character"),
        ("? [a, b]\n: c\n", "line 1, column 3: found unhashable key"),
    ],
)
def test_what_is_no_recipe_is_told_by_line_and_column(text, problem):
    with pytest.raises(ValueError) as caught:
        parse_yaml(text)
    assert problem in str(caught.value)


def test_a_value_may_be_any_yaml():
    settings = ["select.min=0.9", "select.names=[a, b]", "select.x=null", "run=s3://a=b"]
    merged = apply_overrides("r.yaml", VALUES, settings)
    assert merged["select"] == {"policy": "both", "min": 0.9, "names": ["a", "b"], "x": None}
    assert merged["run"] == "s3://a=b"


def test_overrides_make_sections_that_are_empty_or_missing():
    merged = apply_overrides("r.yaml", VALUES, ["index.a=1", "pool.download.workers=2"])
    assert merged["index"] == {"a": 1}
    assert merged["pool"] == {"download": {"workers": 2}}


def test_the_last_override_of_a_field_counts():
    assert apply_overrides("r.yaml", VALUES, ["run=a", "run=b"])["run"] == "b"


def test_overrides_leave_the_data_they_are_laid_over_alone():
    apply_overrides("r.yaml", VALUES, ["select.policy=best", "index.a=1"])
    assert VALUES == {"run": "r", "select": {"policy": "both"}, "index": None}


def test_all_wrong_overrides_are_told_together():
    settings = ["seed", "=1", "run.x=1", "select.policy=[", "seed=0"]
    with pytest.raises(RecipeError) as caught:
        apply_overrides("r.yaml", VALUES, settings)
    assert str(caught.value).splitlines() == [
        "r.yaml: 4 problems",
        "  --set seed: write section.key=value",
        "  --set =1: write section.key=value",
        "  --set run.x=1: run is not a section",
        "  --set select.policy=[: the value is not YAML: line 1, column 2: expected the node "
        "content, but found '<stream end>'",
    ]
