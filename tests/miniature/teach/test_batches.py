from __future__ import annotations

import random

import pytest

from capfilt.miniature.teach.batches import Style, filter_batches, true_batches, true_pairs
from capfilt.miniature.teach.lessons import Lessons, _group
from capfilt.miniature.truth import is_true
from capfilt.miniature.world import Cell, Thing, scene_of

np = pytest.importorskip("numpy")


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    groups = [_group("test", number, 63) for number in range(16)]
    return Lessons(
        scenes=[scene for scenes, _ in groups for scene in scenes],
        pixels=np.concatenate([pixels for _, pixels in groups]),
    )


def test_a_text_describes_the_picture_beside_it(lessons: Lessons) -> None:
    style = Style(full_share=0.5)
    [batch] = true_batches(lessons, num_batches=1, style=style, rng=random.Random(0))
    scene_of_pixels = {
        pixels.tobytes(): scene
        for pixels, scene in zip(lessons.pixels, lessons.scenes, strict=True)
    }
    for image, text in zip(batch.images, batch.texts, strict=True):
        assert is_true(text, scene_of_pixels[image.numpy().tobytes()]) is True


def test_captions_keep_to_the_words_allowed(lessons: Lessons) -> None:
    style = Style(full_share=0.0, max_words=9)
    [batch] = true_batches(lessons, num_batches=1, style=style, rng=random.Random(0))
    assert max(len(text.split()) for text in batch.texts) <= 9


def test_filter_batches_know_all_that_is_true_in_them(lessons: Lessons) -> None:
    style = Style(full_share=0.25)
    [batch] = filter_batches(lessons, num_batches=1, style=style, rng=random.Random(0))
    assert batch.known_matches is not None
    assert batch.known_matches.diagonal().all() and not batch.known_matches.all()
    assert len(batch.distractors) == 1


def test_true_pairs_are_scene_by_text() -> None:
    star = Thing(size="small", colour="red", kind="star", cell=Cell(row=0, column=0))
    scenes = [
        scene_of(background=background, things=[star], seed=0) for background in ("white", "pink")
    ]
    texts = ["a red star on a white background", "a red star"]
    assert true_pairs(scenes, texts).tolist() == [[True, True], [False, True]]
