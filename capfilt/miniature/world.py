"""Scenes: what a picture of the miniature world shows.

A scene is one to three things on a plain background. Every attribute a caption can speak of is
discrete and well apart from its neighbours: a thing stands in one cell of a 3 x 3 grid, no two
things share a cell, and two large things never stand side by side, so they cannot touch. What is
not in these classes (light, grain, the last few pixels of a position) is decided by `seed` and
never changes the truth of a caption.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
KINDS = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "grey", "black", "pink")
COLUMNS = ("left", "middle", "right")
ROWS = ("top", "middle", "bottom")
MAX_THINGS = 3

_NUM_THINGS_WEIGHTS = (3, 4, 3)
_REPEAT_PROB = 0.35


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """A place in the grid: row 0 is the top, column 0 the left."""

    row: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One shape in a scene."""

    size: str
    colour: str
    kind: str
    cell: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What one picture shows. Make one with `scene_of`, which puts things in reading order."""

    background: str
    things: tuple[Thing, ...]
    seed: int  # of everything a caption cannot speak of


def scene_of(*, background: str, things: Iterable[Thing], seed: int) -> Scene:
    """Put things into reading order, so that equal scenes compare equal."""
    ordered = tuple(sorted(things, key=lambda thing: thing.cell))
    return Scene(background=background, things=ordered, seed=seed)


def is_legal(scene: Scene) -> bool:
    """Whether the things can be drawn apart from each other: own cells, large ones not adjacent."""
    cells = [thing.cell for thing in scene.things]
    large = [thing.cell for thing in scene.things if thing.size == "large"]
    touching = any(_steps(a, b) == 1 for a in large for b in large)
    return 1 <= len(cells) <= MAX_THINGS and len(set(cells)) == len(cells) and not touching


def sample_scene(rng: random.Random) -> Scene:
    """Draw a scene of one to three things, about a third of which repeat the thing before."""
    background = rng.choice(BACKGROUNDS)
    [num_things] = rng.choices(range(1, MAX_THINGS + 1), _NUM_THINGS_WEIGHTS)
    looks = [_sample_look(rng)]
    while len(looks) < num_things:
        looks.append(looks[-1] if rng.random() < _REPEAT_PROB else _sample_look(rng))
    seed = rng.getrandbits(32)
    while True:
        cells = rng.sample(all_cells(), num_things)
        things = tuple(
            Thing(size=size, colour=colour, kind=kind, cell=cell)
            for (size, colour, kind), cell in zip(looks, cells, strict=True)
        )
        scene = scene_of(background=background, things=things, seed=seed)
        if is_legal(scene):
            return scene


def siblings(scene: Scene, rng: random.Random) -> list[Scene]:
    """Draw scenes that differ from this one in one attribute, one for each attribute that can.

    Changed are, in this order: the background; the colour, kind, size and place of one thing; the
    arrangement (two unlike things change places); the number of a thing that stands there two or
    three times. The full description of each is false of the other; one thing more would not do,
    as "a red star" stays true when a second red star appears.

    Returns:
        Four to seven legal scenes, with the seed of `scene`.
    """
    picked = rng.randrange(len(scene.things))
    thing = scene.things[picked]
    free = [cell for cell in all_cells() if cell not in {t.cell for t in scene.things}]
    ways: list[list[Scene]] = [
        [replace(scene, background=word) for word in BACKGROUNDS if word != scene.background],
        [
            _with(scene, picked, replace(thing, colour=word))
            for word in _others(COLOURS, thing.colour)
        ],
        [_with(scene, picked, replace(thing, kind=word)) for word in _others(KINDS, thing.kind)],
        [_with(scene, picked, replace(thing, size=word)) for word in _others(SIZES, thing.size)],
        [_with(scene, picked, replace(thing, cell=cell)) for cell in free],
        list(_swapped(scene)),
        list(_recounted(scene, free)),
    ]
    legal = [[way for way in scenes if is_legal(way)] for scenes in ways]
    return [rng.choice(scenes) for scenes in legal if scenes]


def mirrored(scene: Scene) -> Scene:
    """The scene that the mirror image of its picture shows."""
    return scene_of(
        background=scene.background,
        things=tuple(
            replace(t, cell=Cell(row=t.cell.row, column=2 - t.cell.column)) for t in scene.things
        ),
        seed=scene.seed,
    )


def all_cells() -> list[Cell]:
    """The nine cells in reading order."""
    return [Cell(row=row, column=column) for row in range(3) for column in range(3)]


def scene_to_json(scene: Scene) -> str:
    """Write a scene as one line of JSON, for truth tables."""
    return json.dumps(asdict(scene), sort_keys=True, separators=(",", ":"))


def scene_from_json(text: str) -> Scene:
    """Read back what `scene_to_json` wrote."""
    fields = json.loads(text)
    things = tuple(Thing(**{**thing, "cell": Cell(**thing["cell"])}) for thing in fields["things"])
    return scene_of(background=fields["background"], things=things, seed=fields["seed"])


def _sample_look(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice(SIZES), rng.choice(COLOURS), rng.choice(KINDS)


def _steps(a: Cell, b: Cell) -> int:
    return abs(a.row - b.row) + abs(a.column - b.column)


def _others(words: tuple[str, ...], word: str) -> list[str]:
    return [other for other in words if other != word]


def _with(scene: Scene, position: int, thing: Thing) -> Scene:
    things = (*scene.things[:position], thing, *scene.things[position + 1 :])
    return scene_of(background=scene.background, things=things, seed=scene.seed)


def _look(thing: Thing) -> tuple[str, str, str]:
    return thing.size, thing.colour, thing.kind


def _swapped(scene: Scene) -> Iterator[Scene]:
    for i, first in enumerate(scene.things):
        for j, second in enumerate(scene.things[:i]):
            if _look(first) != _look(second):
                things = list(scene.things)
                things[i] = replace(first, cell=second.cell)
                things[j] = replace(second, cell=first.cell)
                yield scene_of(background=scene.background, things=tuple(things), seed=scene.seed)


def _recounted(scene: Scene, free: list[Cell]) -> Iterator[Scene]:
    looks = [_look(thing) for thing in scene.things]
    if len(set(looks)) != 1:
        return
    if len(looks) == 3:
        for i in range(3):
            yield replace(scene, things=scene.things[:i] + scene.things[i + 1 :])
    if len(looks) == 2:
        for cell in free:
            things = (*scene.things, replace(scene.things[0], cell=cell))
            yield scene_of(background=scene.background, things=things, seed=scene.seed)
