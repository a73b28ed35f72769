"""A new recipe as text a person can read: every field with its meaning and its default.

Fields that must be chosen are set; all others stand as comments with their default, so that the
file documents itself and a later default is taken unless someone chose otherwise.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

import yaml
from pydantic import BaseModel

from capfilt.config import Recipe

WIDTH = 96
HEADING = """A capfilt recipe. A line such as `#seed: 0` shows a default: remove its '#' and change
the value to set it; `# ` with a space begins an explanation."""


def recipe_text(chosen: Mapping[str, object]) -> str:
    """The text of a recipe.

    Args:
        chosen: values to set, nested as in the YAML.
    """
    lines = [f"# {line}" for line in _wrapped(HEADING, WIDTH - 2)]
    return "\n".join([*lines, "", *_section(Recipe, chosen, indent=0)]) + "\n"


def _section(model: type[BaseModel], chosen: Mapping[str, object], *, indent: int) -> Iterator[str]:
    pad = " " * indent
    for name, field in model.model_fields.items():
        value = chosen.get(name)
        inner = field.annotation
        for line in _wrapped(field.description or "", WIDTH - indent - 2):
            yield f"{pad}# {line}"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            assert value is None or isinstance(value, Mapping)
            yield f"{pad}{name}:"
            yield from _section(inner, value or {}, indent=indent + 2)
        elif name in chosen:
            yield f"{pad}{name}: {_scalar(value)}"
        else:
            yield f"{pad}#{name}: {_scalar(field.get_default(call_default_factory=True))}"
        if indent == 0:
            yield ""


def _scalar(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    dumped = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    return dumped.removesuffix("\n").removesuffix("\n...").strip()


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width)
