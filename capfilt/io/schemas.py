"""The tables' formats as JSON Schema, for readers who do not use Python.

Made from the dataclasses of `records`, so a change of format is a visible change of a file in
`schemas/`. What JSON cannot say, such as 32-bit numbers, stands in `format`.
"""

from __future__ import annotations

import ast
import inspect
import json
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from capfilt.io.parquet import split_optional
from capfilt.records import SCHEMA_VERSION, TABLES

JsonSchema = dict[str, object]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCALARS: Mapping[object, JsonSchema] = {
    str: {"type": "string"},
    int: {"type": "integer", "format": "int64"},
    float: {"type": "number", "format": "float64"},
    bool: {"type": "boolean"},
    bytes: {"type": "string", "contentEncoding": "base64"},
    "int32": {"type": "integer", "format": "int32"},
    "uint64": {"type": "integer", "format": "uint64", "minimum": 0},
    "float32": {"type": "number", "format": "float32"},
    "binary": {"type": "string", "contentEncoding": "base64"},
    "float32_vector": {"type": "array", "items": {"type": "number", "format": "float32"}},
}
"""Schemas by Python type, or by the marker of an `Annotated` type of `records`."""


def json_schema(record_type: type) -> JsonSchema:
    """The JSON Schema of a row: every field is required, only `X | None` ones may be null.

    Args:
        record_type: a dataclass of `records`; comments behind its fields become descriptions.
    """
    nested: dict[str, JsonSchema] = {}
    row = _object_schema(record_type, nested)
    head: JsonSchema = {
        "$schema": DIALECT,
        "$id": f"urn:capfilt:v{SCHEMA_VERSION}:{record_type.__name__}",
    }
    return head | row | ({"$defs": nested} if nested else {})


def export(folder: Path) -> list[Path]:
    """Write the schema of every table as `<table>.json`; returns the files, in table order."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table, record_type in TABLES.items():
        path = folder / f"{table}.json"
        path.write_text(json.dumps(json_schema(record_type), indent=2) + "\n", encoding="utf-8")
        written.append(path)
    return written


def _object_schema(record_type: type, nested: dict[str, JsonSchema]) -> JsonSchema:
    hints = typing.get_type_hints(record_type, include_extras=True)
    comments = _field_comments(record_type)
    properties = {
        name: _field_schema(hint, nested)
        | ({"description": comments[name]} if name in comments else {})
        for name, hint in hints.items()
    }
    return {
        "title": record_type.__name__,
        "description": inspect.cleandoc(record_type.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": list(hints),
    }


def _field_schema(hint: object, nested: dict[str, JsonSchema]) -> JsonSchema:
    inner, nullable = split_optional(hint)
    schema = _type_schema(inner, nested)
    if not nullable:
        return schema
    if set(schema) & {"$ref", "enum"}:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema | {"type": [schema["type"], "null"]}


def _type_schema(hint: object, nested: dict[str, JsonSchema]) -> JsonSchema:
    if get_origin(hint) is Annotated:
        return dict(SCALARS[get_args(hint)[1]])
    if get_origin(hint) is Literal:
        return {"type": "string", "enum": list(get_args(hint))}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _field_schema(get_args(hint)[0], nested)}
    if isinstance(hint, type) and is_dataclass(hint):
        nested[hint.__name__] = _object_schema(hint, nested)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"type": "string", "enum": [member.value for member in hint]}
    return dict(SCALARS[hint])


def _field_comments(record_type: type) -> dict[str, str]:
    """The comment behind each field that has one."""
    source = inspect.cleandoc("\n" + inspect.getsource(record_type))
    lines = source.splitlines()
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    comments = {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert node.end_lineno is not None and node.end_col_offset is not None
            behind = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            if "#" in behind:
                comments[node.target.id] = behind.partition("#")[2].strip()
    return comments
