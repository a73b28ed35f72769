"""What to say of a recipe's unknown field: the one that was meant, and those there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

MAX_MEANT = 3


def known_fields(recipe: type[BaseModel], location: tuple[object, ...]) -> str:
    """Which field may have been meant, and the fields of the section the unknown one stands in.

    A name that is right in another section is told with its path: `select.min_itm_prob`.

    Args:
        recipe: the model of the whole recipe.
        location: path of the unknown field, from the recipe's top.
    """
    section, name = recipe, str(location[-1])
    for part in location[:-1]:
        inner = _section_of(section.model_fields[str(part)])
        assert inner is not None, "only a section has fields that are unknown"
        section = inner
    meant = [path for path in _paths(recipe) if path.rpartition(".")[2] == name]
    if not meant or len(meant) > MAX_MEANT:
        meant = difflib.get_close_matches(name, section.model_fields, n=1)
    hint = f"did you mean {' or '.join(meant)}? " if meant else ""
    return f"{hint}known are {', '.join(section.model_fields)}"


def _paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields that are no sections."""
    for name, field in section.model_fields.items():
        inner = _section_of(field)
        if inner is None:
            yield prefix + name
        else:
            yield from _paths(inner, f"{prefix}{name}.")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
