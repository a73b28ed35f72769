"""Recipes as YAML text: read strictly, and with settings laid over them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import yaml

from capfilt.errors import RecipeError


def parse_yaml(text: str) -> object:
    """Read plain data from YAML; a key that is there twice is an error, not a silent choice.

    Raises:
        ValueError: it is not YAML; says where.
    """
    try:
        return _StrictLoader(text).get_single_data()
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{err.problem}") from err
    except yaml.YAMLError as err:
        raise ValueError(" ".join(str(err).split())) from err


def apply_overrides(
    source: str, values: Mapping[str, object], overrides: Sequence[str]
) -> dict[str, object]:
    """A copy of a recipe's data with `section.key=value` settings laid over it.

    Args:
        source: the recipe's path, for messages.
        values: the data.
        overrides: the settings; each value is read as YAML.

    Raises:
        RecipeError: a setting has no `=`, its value is not YAML, or its path runs through a value.
    """
    merged = dict(values)
    problems = [problem for o in overrides if (problem := _override(merged, o)) is not None]
    if problems:
        raise RecipeError(source, problems)
    return merged


def _override(values: dict[str, object], override: str) -> str | None:
    """Apply one setting; says what is wrong with it."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        return f"--set {override}: write section.key=value"
    try:
        value = parse_yaml(text)
    except ValueError as err:
        return f"--set {override}: the value is not YAML: {err}"
    if not _assign(values, path.split("."), value):
        return f"--set {override}: {path.rpartition('.')[0]} is not a section"
    return None


def _assign(values: dict[str, object], path: list[str], value: object) -> bool:
    head, *rest = path
    if not rest:
        values[head] = value
        return True
    inner = {} if values.get(head) is None else values[head]
    if not isinstance(inner, dict):
        return False
    values[head] = inner = dict(inner)
    return _assign(inner, rest, value)


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
