import random
from collections import Counter

from capfilt.miniature.grammar import full_description
from capfilt.miniature.truth import is_true
from capfilt.miniature.world import (
    Cell,
    Scene,
    Thing,
    is_legal,
    mirrored,
    sample_scene,
    scene_from_json,
    scene_of,
    scene_to_json,
    siblings,
)


def thing(row: int, column: int, *, size: str = "large", colour: str = "red") -> Thing:
    return Thing(size=size, colour=colour, kind="star", cell=Cell(row=row, column=column))


def scene(*things: Thing) -> Scene:
    return scene_of(background="white", things=things, seed=0)


def scenes(num: int) -> list[Scene]:
    rng = random.Random("scenes")
    return [sample_scene(rng) for _ in range(num)]


def test_every_sampled_scene_is_legal():
    assert all(is_legal(scene) for scene in scenes(500))


def test_every_number_of_things_and_of_like_things_is_sampled():
    looks = [[(t.size, t.colour, t.kind) for t in scene.things] for scene in scenes(500)]
    assert {len(look) for look in looks} == {1, 2, 3}
    assert {max(Counter(look).values()) for look in looks} == {1, 2, 3}


def test_large_things_side_by_side_are_not_legal():
    assert not is_legal(scene(thing(0, 0), thing(0, 1)))
    assert not is_legal(scene(thing(0, 0), thing(1, 0)))
    assert is_legal(scene(thing(0, 0), thing(1, 1)))
    assert is_legal(scene(thing(0, 0), thing(0, 1, size="small")))


def test_two_things_in_one_cell_are_not_legal():
    assert not is_legal(scene(thing(0, 0, size="small"), thing(0, 0, size="small")))


def test_a_scene_without_things_is_not_legal():
    assert not is_legal(scene())


def test_things_are_in_reading_order_however_they_are_given():
    assert scene(thing(2, 0), thing(0, 2)) == scene(thing(0, 2), thing(2, 0))


def test_siblings_are_legal_and_keep_the_seed():
    rng = random.Random(0)
    for one in scenes(200):
        for sibling in siblings(one, rng):
            assert is_legal(sibling) and sibling.seed == one.seed


def test_full_descriptions_of_a_scene_and_its_sibling_are_false_of_each_other():
    rng = random.Random(0)
    for one in scenes(200):
        for sibling in siblings(one, rng):
            assert is_true(full_description(one, rng), sibling) is False
            assert is_true(full_description(sibling, rng), one) is False


def test_mirroring_changes_columns_only_and_twice_is_nothing():
    one = scene(thing(0, 0), thing(2, 1, colour="blue"))
    assert mirrored(one) == scene(thing(0, 2), thing(2, 1, colour="blue"))
    assert mirrored(mirrored(one)) == one


def test_json_gives_the_scene_back():
    assert all(scene_from_json(scene_to_json(one)) == one for one in scenes(50))
