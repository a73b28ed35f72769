import pytest

from capfilt.miniature.truth import is_true, parse
from capfilt.miniature.world import Cell, Scene, Thing, scene_of


def thing(look: str, row: int, column: int) -> Thing:
    size, colour, kind = look.split()
    return Thing(size=size, colour=colour, kind=kind, cell=Cell(row=row, column=column))


def scene(*things: Thing) -> Scene:
    return scene_of(background="white", things=things, seed=0)


# A red star at the top left, another in the middle, a large blue circle at the bottom right.
THREE = scene(
    thing("small red star", 0, 0), thing("small red star", 1, 1), thing("large blue circle", 2, 2)
)


@pytest.mark.parametrize(
    "text",
    [
        "a red star",  # at least one
        "two red stars",
        "two small stars",
        "one circle",
        "a star at the top left",
        "a star on the left",  # the row does not matter
        "a star at the top",
        "a red star in the middle",
        "a large blue circle at the bottom right",
        "two red stars at the top left and the middle",
        "two red stars at the middle and the top left",
        "a red star and a red star",
        "two red stars and a blue circle",
        "two red stars left of a blue circle",
        "a blue circle right of two red stars",
        "a red star above a blue circle",
        "a blue circle below a star",
        "a red star above a red star",
        "a red star on a white background",
        "two stars and a circle on a white background",
        "a white background",
    ],
)
def test_what_is_so_is_true(text):
    assert is_true(text, THREE) is True


@pytest.mark.parametrize(
    "text",
    [
        "a green star",
        "a large star",
        "a red circle",
        "one red star",  # there are two
        "three red stars",
        "a star at the bottom",
        "a star at the middle left",  # a cell, not a column
        "a circle in the middle",
        "two stars on the left",  # one is
        "two red stars at the top left and the bottom left",
        "a circle and a circle",  # each phrase needs a thing of its own
        "two red stars and a small star",
        "a red star right of a blue circle",
        "two red stars right of a blue circle",
        "a blue circle left of a star",
        "a red star on a black background",
        "a pink background",
    ],
)
def test_what_is_not_so_is_false(text):
    assert is_true(text, THREE) is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "photo",
        "red star",
        "a red",
        "a star red",
        "a red stars",
        "two red star",
        "four red stars",
        "the red star",
        "a red star at",
        "a red star to the",
        "a red star at the left top",
        "a red star at the top left and the middle",  # two places for one star
        "two red stars on the left and the right",  # columns are no places for each
        "a red star left of",
        "a red star and",
        "a red star left of a circle left of a square",
        "a red star on a green background",
        "a red star on a white",
        "a red star a blue circle",
        "a red star.jpg",
        "a picture of",
    ],
)
def test_what_the_grammar_does_not_know_is_no_statement(text):
    assert is_true(text, THREE) is None


@pytest.mark.parametrize(
    "text",
    [
        "A Red Star, and a Blue Circle.",
        "a picture of a red star and a blue circle",
        "A photo of a red star and a blue circle.",
        "there is a red star and a blue circle",
        "  a  red star and a blue circle ",
    ],
)
def test_case_commas_full_stop_and_opening_words_say_nothing(text):
    assert parse(text) == parse("a red star and a blue circle") is not None


def test_to_the_left_of_is_left_of():
    assert parse("a star to the left of a cross") == parse("a star left of a cross") is not None


def test_things_in_one_column_are_neither_left_nor_right_of_each_other():
    column = scene(thing("small red star", 0, 1), thing("small blue cross", 2, 1))
    assert is_true("a star left of a cross", column) is False
    assert is_true("a star right of a cross", column) is False
    assert is_true("a star above a cross", column) is True


def test_things_in_one_row_are_neither_above_nor_below_each_other():
    row = scene(thing("small red star", 1, 0), thing("small blue cross", 1, 2))
    assert is_true("a star above a cross", row) is False
    assert is_true("a star below a cross", row) is False
    assert is_true("a star left of a cross", row) is True
