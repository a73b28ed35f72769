"""Decide whether a caption is true of a scene.

A statement is a list of noun phrases, at most one relation between two of them, and at most one
background. What they mean:

- "a red star": at least one red star is there. "one", "two", "three" are exact: "two red stars" is
  false of three. What a phrase does not mention (size, place ...) may be anything.
- "on the left", "on the right", "at the top", "at the bottom": in that column or row of the grid.
  "at the top left", "at the middle left", "in the middle" ...: in exactly that cell.
- "two red stars at the top left and the middle right": there are exactly two red stars, and these
  are their cells.
- Each phrase speaks of its own things: "a red star and a red star" needs two of them, "two red
  stars and a small star" a third star.
- "two red stars left of a blue circle": each star is in a column left of the circle's, in any row.
- Things that are not mentioned may be there. So a caption is true if all it says is so.

The parser forgives what says nothing: case, commas, a full stop, and "a picture of", "a photo of",
"there is", "there are" in front. Any other text is no statement, and so not true.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from capfilt.miniature.world import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    KINDS,
    ROWS,
    SIZES,
    Cell,
    Scene,
    Thing,
    all_cells,
)

NUMBERS = {"one": 1, "two": 2, "three": 3}
PLURALS = {kind: kind + ("es" if kind.endswith("s") else "s") for kind in KINDS}
RELATIONS = ("left of", "right of", "above", "below")

_PREFIXES = (("a", "picture", "of"), ("a", "photo", "of"), ("there", "is"), ("there", "are"))
_SINGULARS = {plural: kind for kind, plural in PLURALS.items()} | {kind: kind for kind in KINDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class NounPhrase:
    """Some things of a scene, as a caption names them."""

    number: int | None  # exact; None is "a", at least one
    size: str | None
    colour: str | None
    kind: str
    places: tuple[str, ...] = ()  # "left" or "top" for a column or row, "top left" for a cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a caption says."""

    phrases: tuple[NounPhrase, ...]
    relation: str | None = None  # of the first phrase's things to the second's
    background: str | None = None


def is_true(text: str, scene: Scene) -> bool | None:
    """Decide whether a caption is true of a scene; None if it is no statement about scenes."""
    statement = parse(text)
    return None if statement is None else holds(statement, scene)


def holds(statement: Statement, scene: Scene) -> bool:
    """Decide whether all a statement says is so."""
    if statement.background not in (None, scene.background):
        return False
    choices = [list(_witnesses(phrase, scene)) for phrase in statement.phrases]
    return any(
        _are_apart(chosen) and _are_related(chosen, statement.relation)
        for chosen in itertools.product(*choices)
    )


def parse(text: str) -> Statement | None:
    """Read a caption; None if it is not a statement of the grammar."""
    words = text.lower().strip().removesuffix(".").replace(",", " ").split()
    for prefix in _PREFIXES:
        if tuple(words[: len(prefix)]) == prefix:
            words = words[len(prefix) :]
            break
    try:
        return _Reader(words).statement()
    except _NotGrammar:
        return None


def place_of(cell: Cell) -> str:
    """The place words of exactly one cell: "top left", ..., "middle"."""
    row, column = ROWS[cell.row], COLUMNS[cell.column]
    return "middle" if row == column else f"{row} {column}"


def cells_of(place: str) -> list[Cell]:
    """The cells that place words speak of: three for a row or column, else one."""
    exact = [cell for cell in all_cells() if place_of(cell) == place]
    return exact or [
        cell for cell in all_cells() if place in (ROWS[cell.row], COLUMNS[cell.column])
    ]


def _witnesses(phrase: NounPhrase, scene: Scene) -> Iterator[tuple[Thing, ...]]:
    """The things a phrase may speak of: each that fits for "a", all that fit for a number."""
    alike = [thing for thing in scene.things if _looks_like(thing, phrase)]
    if len(phrase.places) > 1:
        named = sorted(cell for place in phrase.places for cell in cells_of(place))
        fitting = alike if sorted(thing.cell for thing in alike) == named else []
    else:
        fitting = [thing for thing in alike if _stands_at(thing, phrase.places)]
    if phrase.number is None:
        yield from ((thing,) for thing in fitting)
    elif len(fitting) == phrase.number:
        yield tuple(fitting)


def _looks_like(thing: Thing, phrase: NounPhrase) -> bool:
    return (
        thing.kind == phrase.kind
        and phrase.colour in (None, thing.colour)
        and phrase.size in (None, thing.size)
    )


def _stands_at(thing: Thing, places: tuple[str, ...]) -> bool:
    return all(thing.cell in cells_of(place) for place in places)


def _are_apart(chosen: tuple[tuple[Thing, ...], ...]) -> bool:
    cells = [thing.cell for things in chosen for thing in things]
    return len(set(cells)) == len(cells)


def _are_related(chosen: tuple[tuple[Thing, ...], ...], relation: str | None) -> bool:
    if relation is None:
        return True
    firsts, seconds = chosen
    return all(_is_related(a.cell, b.cell, relation) for a in firsts for b in seconds)


def _is_related(a: Cell, b: Cell, relation: str) -> bool:
    return {
        "left of": a.column < b.column,
        "right of": a.column > b.column,
        "above": a.row < b.row,
        "below": a.row > b.row,
    }[relation]


class _NotGrammar(Exception):
    """The words are not a statement."""


class _Reader:
    """Reads words from left to right, one method per part of a statement."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._at = 0

    def statement(self) -> Statement:
        """The whole caption: nothing may be left over."""
        background = self._background()
        phrases: list[NounPhrase] = []
        relation = None
        if background is None:
            phrases.append(self._phrase())
            relation = self._relation()
            if relation is not None:
                phrases.append(self._phrase())
            while relation is None and self._take("and"):
                phrases.append(self._phrase())
            background = self._background("on")
        if self._at != len(self._words):
            raise _NotGrammar
        return Statement(phrases=tuple(phrases), relation=relation, background=background)

    def _phrase(self) -> NounPhrase:
        article = self._any_of("a", "an", *NUMBERS)
        if article is None:
            raise _NotGrammar
        number = NUMBERS.get(article)
        size, colour = self._any_of(*SIZES), self._any_of(*COLOURS)
        kind = self._any_of(*(PLURALS.values() if (number or 1) > 1 else KINDS))
        if kind is None:
            raise _NotGrammar
        places = tuple(self._places())
        if len(places) > 1 and (number != len(places) or any(len(cells_of(p)) > 1 for p in places)):
            raise _NotGrammar
        return NounPhrase(
            number=number, size=size, colour=colour, kind=_SINGULARS[kind], places=places
        )

    def _places(self) -> Iterator[str]:
        if not (self._take("on", "the") or self._take("at", "the") or self._take("in", "the")):
            return
        yield self._place()
        while self._take("and", "the"):
            yield self._place()

    def _place(self) -> str:
        row, column = self._any_of(*ROWS), self._any_of(*COLUMNS)
        words = [word for word in (row, column) if word is not None]
        if not words or words == ["middle", "middle"]:
            raise _NotGrammar
        return " ".join(words)

    def _relation(self) -> str | None:
        for relation in RELATIONS:
            if self._take(*relation.split()) or self._take("to", "the", *relation.split()):
                return relation
        return None

    def _background(self, *before: str) -> str | None:
        start = self._at
        if self._take(*before, "a") or self._take(*before, "an"):
            word = self._any_of(*BACKGROUNDS)
            if word is not None and self._take("background"):
                return word
        self._at = start
        return None

    def _take(self, *words: str) -> bool:
        fits = tuple(self._words[self._at : self._at + len(words)]) == words
        self._at += len(words) if fits else 0
        return fits

    def _any_of(self, *words: str) -> str | None:
        if self._at == len(self._words) or self._words[self._at] not in words:
            return None
        self._at += 1
        return self._words[self._at - 1]
