"""A new recipe as text a person can read: every field with its meaning and its default.

Fields that must be chosen are set; all others stand as comments with their default, so that the
file documents itself and a later default is taken unless someone chose otherwise.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from capfilt.config import Recipe

WIDTH = 96
HEADING = """A capfilt recipe. A line such as `#seed: 0` shows a default: remove its '#' and change
the value to set it; `# ` with a space begins an explanation."""


def recipe_text(chosen: Mapping[str, object]) -> str:
    """The text of a recipe.

    Args:
        chosen: values to set, nested as in the YAML.
    """
    parts = [[f"# {line}" for line in _wrapped(HEADING, WIDTH - 2)]]
    for name in Recipe.model_fields:
        parts.append(list(_field(Recipe, name, chosen, indent=0, told=set())))
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _field(
    model: type[BaseModel], name: str, chosen: Mapping[str, object], *, indent: int, told: set[str]
) -> Iterator[str]:
    """The lines of a field, and of those below it if it is a section.

    Args:
        model: the section the field is in.
        name: the field's.
        chosen: values to set in the section.
        indent: of the section's fields.
        told: explanations given above, not to be repeated for each of eight like sections.
    """
    pad, field, value = " " * indent, model.model_fields[name], chosen.get(name)
    section = _section_of(field)
    explanation = section.__doc__ if section and not indent else field.description
    if explanation and explanation not in told:
        yield from (f"{pad}# {line}" for line in _wrapped(explanation, WIDTH - indent - 2))
        told.add(explanation)
    if section:
        assert value is None or isinstance(value, Mapping)
        yield f"{pad}{name}:"
        for part in section.model_fields:
            yield from _field(section, part, value or {}, indent=indent + 2, told=told)
    elif name in chosen:
        yield f"{pad}{name}: {_scalar(value)}"
    else:
        yield f"{pad}#{name}: {_scalar(field.get_default(call_default_factory=True))}"


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _scalar(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    dumped = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    return dumped.removesuffix("\n").removesuffix("\n...").strip()


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width)
