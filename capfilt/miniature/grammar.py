"""Write captions of scenes: true ones in several forms, and false ones with one attribute wrong.

Every text is one that `truth.parse` reads back as the statement it was written from. Captions are
written as people do: what fits a phrase is counted, so "a red star" is written only where one red
star is (though it is true where two are, see `truth`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from capfilt.miniature.truth import (
    NUMBERS,
    PLURALS,
    RELATIONS,
    NounPhrase,
    Statement,
    cells_of,
    holds,
    place_of,
)
from capfilt.miniature.world import BACKGROUNDS, COLOURS, KINDS, SIZES, Scene, Thing, all_cells

_SIDES = ("left", "right", "top", "bottom")
_PLACES = tuple(place_of(cell) for cell in all_cells())
_NUMBER_WORDS = {number: word for word, number in NUMBERS.items()}

_PHRASE_PROB, _PAIR_PROB, _LIST_PROB = 0.35, 0.3, 0.15  # of the forms; the rest is full
_COLOUR_PROB, _SIZE_PROB, _PLACE_PROB, _BACKGROUND_PROB = 0.9, 0.5, 0.4, 0.3  # of being mentioned


def describe(scene: Scene, rng: random.Random) -> str:
    """Write a true caption: of one thing, how two relate, several things, or everything."""
    return say(_true_statement(scene, rng))


def full_description(scene: Scene, rng: random.Random) -> str:
    """Write the caption that mentions every attribute of every thing, in any order."""
    return say(_full_statement(scene, rng))


def corrupt(scene: Scene, rng: random.Random) -> str:
    """Write a caption as `describe` does, then change one attribute so that it is false.

    Which attribute is drawn evenly among those the caption mentions and that can be made false;
    a kind always can.
    """
    statement = _true_statement(scene, rng)
    ways = [[way for way in one if not holds(way, scene)] for one in _changes(statement)]
    return say(rng.choice(rng.choice([false for false in ways if false])))


def say(statement: Statement) -> str:
    """Put a statement into words."""
    phrases = [_say_phrase(phrase) for phrase in statement.phrases]
    joint = " and " if statement.relation is None else f" {statement.relation} "
    background = f"a {statement.background} background" if statement.background else ""
    return " on ".join(part for part in (joint.join(phrases), background) if part)


def _say_phrase(phrase: NounPhrase) -> str:
    kind = PLURALS[phrase.kind] if (phrase.number or 1) > 1 else phrase.kind
    words = [word for word in (phrase.size, phrase.colour, kind) if word]
    article = "an" if words[0][0] in "aeiou" else "a"
    number = article if phrase.number is None else _NUMBER_WORDS[phrase.number]
    return " ".join([number, *words, *_say_places(phrase.places)])


def _say_places(places: tuple[str, ...]) -> Iterator[str]:
    if places:
        yield {"left": "on", "right": "on", "middle": "in"}.get(places[0], "at")
        yield " and ".join(f"the {place}" for place in places)


def _true_statement(scene: Scene, rng: random.Random) -> Statement:
    form = rng.random()
    if form >= _PHRASE_PROB + _PAIR_PROB + _LIST_PROB:
        return _full_statement(scene, rng)
    while True:
        things = rng.sample(scene.things, len(scene.things))
        if form < _PHRASE_PROB or len(things) == 1:
            statement = Statement(phrases=(_phrase_with_place(scene, things[0], rng),))
        elif form < _PHRASE_PROB + _PAIR_PROB:
            pair = tuple(_phrase(scene, thing, rng) for thing in things[:2])
            statement = Statement(phrases=pair, relation=rng.choice(RELATIONS))
        else:
            # With only a list to offer, a scene of like things would have none; so one may do.
            phrases = dict.fromkeys(_phrase(scene, thing, rng) for thing in things)
            statement = Statement(phrases=tuple(phrases))
        if rng.random() < _BACKGROUND_PROB:
            statement = replace(statement, background=scene.background)
        if holds(statement, scene):
            return statement
        form = rng.random() * (_PHRASE_PROB + _PAIR_PROB + _LIST_PROB)


def _full_statement(scene: Scene, rng: random.Random) -> Statement:
    looks = list(dict.fromkeys((t.size, t.colour, t.kind) for t in scene.things))
    phrases = []
    for size, colour, kind in rng.sample(looks, len(looks)):
        alike = _fitting(scene, size=size, colour=colour, kind=kind)
        phrase = NounPhrase(number=_number(alike), size=size, colour=colour, kind=kind)
        phrases.append(replace(phrase, places=_exact_places(alike)))
    return Statement(phrases=tuple(phrases), background=scene.background)


def _phrase(scene: Scene, thing: Thing, rng: random.Random) -> NounPhrase:
    """Name a thing, and with it all things that the mentioned attributes fit."""
    size = thing.size if rng.random() < _SIZE_PROB else None
    colour = thing.colour if rng.random() < _COLOUR_PROB else None
    alike = _fitting(scene, size=size, colour=colour, kind=thing.kind)
    return NounPhrase(number=_number(alike), size=size, colour=colour, kind=thing.kind)


def _phrase_with_place(scene: Scene, thing: Thing, rng: random.Random) -> NounPhrase:
    phrase = _phrase(scene, thing, rng)
    if rng.random() >= _PLACE_PROB:
        return phrase
    alike = _fitting(scene, size=phrase.size, colour=phrase.colour, kind=phrase.kind)
    sides = [side for side in _SIDES if all(thing.cell in cells_of(side) for thing in alike)]
    return replace(phrase, places=rng.choice([_exact_places(alike), *((side,) for side in sides)]))


def _fitting(scene: Scene, *, size: str | None, colour: str | None, kind: str) -> list[Thing]:
    return [
        thing
        for thing in scene.things
        if thing.kind == kind and size in (None, thing.size) and colour in (None, thing.colour)
    ]


def _number(alike: list[Thing]) -> int | None:
    return len(alike) if len(alike) > 1 else None


def _exact_places(alike: list[Thing]) -> tuple[str, ...]:
    return tuple(place_of(thing.cell) for thing in alike)


def _changes(statement: Statement) -> Iterator[list[Statement]]:
    """All statements with one attribute changed, one list for each attribute mentioned."""
    for i, phrase in enumerate(statement.phrases):
        for changed in _phrase_changes(phrase):
            before, after = statement.phrases[:i], statement.phrases[i + 1 :]
            yield [replace(statement, phrases=(*before, way, *after)) for way in changed]
    if statement.relation is not None:
        yield [replace(statement, relation=word) for word in RELATIONS]
    if statement.background is not None:
        yield [replace(statement, background=word) for word in BACKGROUNDS]


def _phrase_changes(phrase: NounPhrase) -> Iterator[list[NounPhrase]]:
    yield [replace(phrase, kind=word) for word in KINDS]
    if phrase.colour is not None:
        yield [replace(phrase, colour=word) for word in COLOURS]
    if phrase.size is not None:
        yield [replace(phrase, size=word) for word in SIZES]
    if not phrase.places:
        yield [replace(phrase, number=number) for number in (None, 2, 3) if number != phrase.number]
    if len(phrase.places) == 1:
        exact = phrase.places[0] in _PLACES
        yield [replace(phrase, places=(word,)) for word in (_PLACES if exact else _SIDES)]
    for i in range(len(phrase.places) if len(phrase.places) > 1 else 0):
        others = [word for word in _PLACES if word not in phrase.places]
        kept = phrase.places
        yield [replace(phrase, places=(*kept[:i], word, *kept[i + 1 :])) for word in others]
