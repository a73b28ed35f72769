from __future__ import annotations

import math

import pytest

from capfilt.lineage import Plan, canonical_json, plan_differences, sample_key, text_digest

PLAN = Plan(stage="index", round=0, options={"b": [1, 2.5], "a": None}, inputs={"shards": "00ff"})


# Each expected key is BLAKE2b over bytes spelled out by hand: four times a length of 8 bytes,
# little-endian, and the field in UTF-8.
@pytest.mark.parametrize(
    ("shard", "source_key", "occurrence", "key"),
    [
        (0, "000042", 0, "a82215b025e356c2ef0382a9e2abc9dd"),
        (17, "a.b/Ünï 猫", 3, "ed36bba32914290539532456ec3ef586"),
    ],
)
def test_sample_keys_never_change(shard: int, source_key: str, occurrence: int, key: str) -> None:
    assert sample_key("web", shard, source_key, occurrence) == key


def test_every_part_of_a_sample_s_origin_makes_another_key() -> None:
    origins = [("web", 1, "23", 0), ("web", 12, "3", 0), ("we", 1, "b23", 0), ("web", 1, "23", 1)]
    assert len({sample_key(*origin) for origin in origins}) == len(origins)


def test_a_name_that_is_no_text_has_a_key() -> None:
    assert len(sample_key("web", 0, "caf\udce9", 0)) == 32


def test_a_plan_s_digest_is_the_sha256_of_its_canonical_json() -> None:
    # sha256 of {"format":2,"inputs":{"shards":"00ff"},"options":{"a":null,"b":[1,2.5]},
    # "round":0,"stage":"index"}, on one line
    assert PLAN.digest == "7c5ee31e927ebf9f1819afc7d22bfd782ec6e130ccce1e80ef6e8efd5dd43e78"
    assert PLAN.folder == "7c5ee31e927e"


def test_the_order_in_which_options_are_given_does_not_count() -> None:
    turned = Plan(
        stage="index", round=0, options={"a": None, "b": [1, 2.5]}, inputs={"shards": "00ff"}
    )
    assert turned.digest == PLAN.digest


def test_canonical_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"x": math.nan})


def test_differences_name_the_field_and_both_values() -> None:
    old = {"options": {"top_p": 0.9, "dtype": "float32", "gone": 1}, "round": 0}
    new = {"options": {"top_p": 0.95, "dtype": "float32", "new": None}, "round": 0}
    assert plan_differences(old, new) == [
        "options.gone: 1 -> (absent)",
        "options.new: (absent) -> null",
        "options.top_p: 0.9 -> 0.95",
    ]


def test_equal_plans_have_no_differences() -> None:
    assert plan_differences(PLAN.describe(), PLAN.describe()) == []


def test_a_digest_of_lines_counts_order_and_boundaries() -> None:
    # sha256 of ["a","b"]
    expected = "0473ef2dc0d324ab659d3580c1134e9d812035905c4781fdd6d529b0c6860e13"
    assert text_digest(["a", "b"]) == expected
    assert len({text_digest(lines) for lines in (["a", "b"], ["b", "a"], ["ab"], ["a,b"])}) == 4
