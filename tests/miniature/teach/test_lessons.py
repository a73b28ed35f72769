from __future__ import annotations

import random

import numpy as np
import pytest

from capfilt.miniature.teach.lessons import GROUP_SIZE, Lessons, corpus, false_text, true_text
from capfilt.miniature.teach.lessons import _group as group_of
from capfilt.miniature.truth import is_true
from capfilt.miniature.world import sample_scene


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    groups = [group_of("test", number, 63) for number in range(12)]
    return Lessons(
        scenes=[scene for scenes, _ in groups for scene in scenes],
        pixels=np.concatenate([pixels for _, pixels in groups]),
    )


def test_a_group_is_the_same_whenever_it_is_drawn(lessons: Lessons) -> None:
    scenes, pixels = group_of("test", 7, 63)
    assert scenes == lessons.scenes[28:32] and np.array_equal(pixels, lessons.pixels[28:32])


def test_siblings_do_not_share_light_and_grain(lessons: Lessons) -> None:
    seeds = [scene.seed for scene in lessons.scenes[:GROUP_SIZE]]
    assert len(set(seeds)) == GROUP_SIZE


def test_groups_are_chosen_by_all_their_scenes(lessons: Lessons) -> None:
    for group in lessons.groups(max_things=1):
        scenes = lessons.scenes[group * GROUP_SIZE : (group + 1) * GROUP_SIZE]
        assert [len(scene.things) for scene in scenes] == [1] * GROUP_SIZE
    assert lessons.groups(max_things=3) == list(range(12))


def test_true_texts_are_true_and_false_texts_are_not() -> None:
    rng = random.Random(0)
    for _ in range(200):
        scene = sample_scene(rng)
        assert is_true(true_text(scene, rng, full_share=0.5), scene) is True
        assert is_true(false_text(scene, rng), scene) is not True


def test_false_texts_are_of_many_kinds() -> None:
    rng = random.Random(0)
    scene = sample_scene(rng)
    texts = [false_text(scene, rng) for _ in range(300)]
    statements = [is_true(text, scene) is False for text in texts]
    assert "" in texts and 0.4 < sum(statements) / 300 < 0.9


def test_corpus_holds_the_words_of_captions_and_of_noise(lessons: Lessons) -> None:
    words = {word for text in corpus(lessons, random.Random(0)) for word in text.split()}
    assert {"background", "star", "cheap", "enlarge"} <= words
