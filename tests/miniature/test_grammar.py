import random

from capfilt.miniature.grammar import corrupt, describe, full_description, say
from capfilt.miniature.truth import is_true, parse
from capfilt.miniature.world import Cell, Scene, Thing, sample_scene, scene_of


def scenes(num: int) -> list[Scene]:
    rng = random.Random("scenes")
    return [sample_scene(rng) for _ in range(num)]


def thing(look: str, row: int, column: int) -> Thing:
    size, colour, kind = look.split()
    return Thing(size=size, colour=colour, kind=kind, cell=Cell(row=row, column=column))


def test_every_description_is_true():
    rng = random.Random(0)
    assert all(is_true(describe(scene, rng), scene) is True for scene in scenes(1000))


def test_every_corrupted_description_is_a_false_statement():
    rng = random.Random(0)
    assert all(is_true(corrupt(scene, rng), scene) is False for scene in scenes(1000))


def test_every_full_description_is_true():
    rng = random.Random(0)
    assert all(is_true(full_description(scene, rng), scene) is True for scene in scenes(300))


def test_the_parser_reads_back_what_was_said():
    rng = random.Random(0)
    for scene in scenes(500):
        for text in (describe(scene, rng), corrupt(scene, rng)):
            statement = parse(text)
            assert statement is not None and say(statement) == text


def test_a_corrupted_description_differs_from_the_true_one_in_few_words():
    for seed, scene in enumerate(scenes(300)):
        true = describe(scene, random.Random(seed)).split()
        false = corrupt(scene, random.Random(seed)).split()
        # At most a number, its plural, and the two words of a place; a changed article is one more.
        assert len(set(true) ^ set(false)) <= 5


def test_a_full_description_names_every_attribute_of_every_thing():
    scene = scene_of(
        background="grey",
        things=(thing("large orange cross", 0, 1), thing("small blue star", 1, 1)),
        seed=0,
    )
    cross, star = "a large orange cross at the top middle", "a small blue star in the middle"
    texts = {full_description(scene, random.Random(seed)) for seed in range(20)}
    assert texts == {
        f"{cross} and {star} on a grey background",
        f"{star} and {cross} on a grey background",
    }


def test_like_things_are_counted_and_their_places_listed():
    pair = (thing("small red cross", 0, 0), thing("small red cross", 2, 1))
    scene = scene_of(background="pink", things=pair, seed=0)
    assert full_description(scene, random.Random(0)) == (
        "two small red crosses at the top left and the bottom middle on a pink background"
    )


def test_orange_things_take_an():
    scene = scene_of(background="pink", things=(thing("small orange star", 0, 0),), seed=0)
    texts = [describe(scene, random.Random(seed)) for seed in range(60)]
    assert any("an orange star" in text for text in texts)
    assert not any("a orange" in text for text in texts)


def test_every_form_of_caption_is_written():
    rng = random.Random(0)
    texts = [describe(scene, rng) for scene in scenes(300)]
    for sign in (
        " left of ",
        " above ",
        " and a ",
        "two ",
        "three ",
        " background",
        "in the middle",
    ):
        assert any(sign in text for text in texts), sign


def test_the_same_generator_writes_the_same_caption():
    [scene] = scenes(1)
    assert describe(scene, random.Random(7)) == describe(scene, random.Random(7))
