from __future__ import annotations

import pytest

from capfilt_blip.tasks.asked import check_lists


def test_a_text_that_stands_for_a_list_is_named() -> None:
    with pytest.raises(ValueError) as caught:
        check_lists([["a star"], "a cat"], range(2), what="texts", each="image")
    assert str(caught.value) == (
        "texts[1] is the text 'a cat'; texts holds a list for each image, such as ['a cat']"
    )


def test_lists_and_images_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="1 lists of questions were given for 2 videos"):
        check_lists([["why"]], range(2), what="questions", each="video")


def test_lists_of_any_length_will_do() -> None:
    check_lists([[], ("a", "b")], range(2), what="texts", each="image")
