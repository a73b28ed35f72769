import io

from PIL import Image

from capfilt.miniature.pairs import human_pairs, sibling_groups, write_human_shard
from capfilt.miniature.truth import is_true


def test_every_human_pair_is_true():
    assert all(is_true(pair.text, pair.scene) is True for pair in human_pairs("test", 300))


def test_a_pair_does_not_depend_on_how_many_are_drawn():
    assert list(human_pairs("test", 3)) == list(human_pairs("test", 30))[:3]


def test_pairs_of_other_seeds_are_other_pictures():
    seeds = [{pair.scene.seed for pair in human_pairs(name, 300)} for name in ("train", "held-out")]
    assert not seeds[0] & seeds[1]


def test_in_a_group_the_first_text_is_true_of_the_first_scene_only():
    for first, *others in sibling_groups("test", 50):
        assert is_true(first.text, first.scene) is True
        assert all(is_true(first.text, other.scene) is False for other in others)
        assert all(is_true(other.text, other.scene) is True for other in others)
        assert all(is_true(other.text, first.scene) is False for other in others)


def test_a_group_has_four_to_seven_siblings_in_the_same_light():
    groups = list(sibling_groups("test", 50))
    assert all(5 <= len(group) <= 8 for group in groups)
    assert all(len({pair.scene.seed for pair in group}) == 1 for group in groups)


def test_a_human_shard_holds_the_pairs_as_jpeg():
    shard = write_human_shard("test", 3, side_px=96)
    assert [key for key, _, _ in shard] == ["000000", "000001", "000002"]
    assert [text for _, _, text in shard] == [pair.text for pair in human_pairs("test", 3)]
    images = [Image.open(io.BytesIO(jpeg)) for _, jpeg, _ in shard]
    assert {(image.format, image.size) for image in images} == {("JPEG", (96, 96))}
