"""The exported JSON Schemas say what the code says."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from capfilt.io.parquet import arrow_schema
from capfilt.io.schemas import export, json_schema
from capfilt.records import TABLES, Group, ImageVector, PublishedSample, Sample, TrainStep, Verdict

SCHEMAS = Path(__file__).parents[2] / "schemas"


def properties(record_type: type) -> dict[str, dict[str, object]]:
    found = json_schema(record_type)["properties"]
    assert isinstance(found, dict)
    return found


def test_files_and_code_agree(tmp_path: Path) -> None:
    written = export(tmp_path)
    assert [path.name for path in written] == [f"{table}.json" for table in TABLES]
    for path in written:
        assert (SCHEMAS / path.name).read_text() == path.read_text(), "run `capfilt schemas`"
    assert sorted(path.name for path in SCHEMAS.glob("*.json")) == sorted(p.name for p in written)


@pytest.mark.parametrize("record_type", TABLES.values(), ids=TABLES.keys())
def test_every_field_is_there_and_required(record_type: type) -> None:
    names = [field.name for field in fields(record_type)]
    assert list(properties(record_type)) == names
    assert json_schema(record_type)["required"] == names


@pytest.mark.parametrize("record_type", TABLES.values(), ids=TABLES.keys())
def test_null_is_allowed_where_arrow_allows_it(record_type: type) -> None:
    for name, schema in properties(record_type).items():
        allows_null = "null" in json.dumps(schema.get("type", schema.get("anyOf", "")))
        assert allows_null == arrow_schema(record_type).field(name).nullable, name


def test_types_and_comments_become_words() -> None:
    found = properties(Sample)
    assert found["phash"] == {
        "type": ["integer", "null"],
        "format": "uint64",
        "minimum": 0,
        "description": "64-bit perceptual hash, io.images",
    }
    assert found["key"] == {"type": "string"}
    assert properties(Verdict)["kept"] == {"type": "boolean"}
    assert properties(ImageVector)["vector"] == {
        "type": "array",
        "items": {"type": "number", "format": "float32"},
    }


def test_a_choice_of_words_is_an_enum() -> None:
    assert properties(TrainStep)["phase"]["enum"] == ["pretrain", "captioner", "filter"]


def test_nested_rows_are_definitions() -> None:
    schema = json_schema(PublishedSample)
    assert schema["$defs"].keys() == {"PublishedImage", "PublishedText"}  # type: ignore[attr-defined]
    assert properties(Group)["texts"]["items"] == {"$ref": "#/$defs/PublishedText"}


def test_a_schema_says_which_rows_and_version_it_is_of() -> None:
    schema = json_schema(Group)
    assert schema["$id"] == "urn:capfilt:v1:Group"
    assert str(schema["description"]).startswith("Which image stands for this one.")


def test_the_schemas_are_valid_and_tell_rows_apart() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for record_type in TABLES.values():
        jsonschema.Draft202012Validator.check_schema(json_schema(record_type))
    check = jsonschema.Draft202012Validator(json_schema(Verdict)).is_valid
    row = {"key": "k", "text_source": "web", "text_index": 0, "kept": True, "reason": None}
    assert check(row)
    assert not check(row | {"text_source": "human"})
    assert not check(row | {"kept": None})
