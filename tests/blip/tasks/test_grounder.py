from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from capfilt_blip.boxes import BoxTokens, from_bins
from capfilt_blip.grounding import BlipGrounding, write_boxes
from capfilt_blip.tasks.grounder import Box, Grounder
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise

Pixels = NDArray[np.uint8]
PHRASES = [
    ["a red circle", "two small triangles"],
    ["a star"],
    [],
    ["a", "star", "a blue square above", "two", "a yellow star left of a circle"],
    [""],
    ["red " * 100],
    ["a red circle", "a red circle"],
    ["a blue circle"],
    ["a", "green"],
]


@pytest.fixture
def grounder(grounding: BlipGrounding, box_tokenizer: Tokenizer) -> Grounder:
    return Grounder(grounding, box_tokenizer)


def sides(box: Box) -> list[float]:
    return [box.x_min, box.y_min, box.x_max, box.y_max]


def flat(found: list[list[Box]]) -> list[Box]:
    return [box for boxes in found for box in boxes]


@torch.no_grad()
def test_boxes_are_those_of_one_phrase_at_a_time(
    grounder: Grounder, grounding: BlipGrounding, box_tokenizer: Tokenizer, images: Pixels
) -> None:
    found = grounder.locate(images, PHRASES)
    assert [len(boxes) for boxes in found] == [len(phrases) for phrases in PHRASES]
    for image, phrases, boxes in zip(torch.from_numpy(images), PHRASES, found, strict=True):
        seen = grounding.see(normalise(image[None]))
        for phrase, box in zip(phrases, boxes, strict=True):
            encoded = box_tokenizer.encode([phrase], first="cls", max_tokens=64)
            memory = grounding.read_phrases(encoded.ids, encoded.mask, seen)
            bins, logprobs = write_boxes(grounding, memory, tokens=BoxTokens.of(box_tokenizer))
            assert sides(box) == from_bins(bins)[0].tolist()
            assert box.logprob == pytest.approx(logprobs.item(), abs=1e-3)


def test_a_box_lies_in_the_image_and_its_logprob_is_one(grounder: Grounder, images: Pixels) -> None:
    for box in flat(grounder.locate(images, PHRASES)):
        assert 0 <= box.x_min <= box.x_max <= 1 and 0 <= box.y_min <= box.y_max <= 1
        assert box.logprob < 0


def test_boxes_do_not_depend_on_order(grounder: Grounder, images: Pixels) -> None:
    order = np.random.default_rng(3).permutation(9)
    plain = grounder.locate(images, PHRASES, batch_size=4)
    shuffled = grounder.locate(images[order], [PHRASES[i] for i in order], batch_size=4)
    assert shuffled == [plain[i] for i in order]


def test_boxes_do_not_depend_on_neighbours(grounder: Grounder, images: Pixels) -> None:
    plain = grounder.locate(images, PHRASES, batch_size=4)
    for i in range(9):
        assert grounder.locate(images[i, None], [PHRASES[i]], batch_size=4) == [plain[i]]
    for place, phrase in enumerate(PHRASES[3]):
        assert grounder.locate(images[3:4], [[phrase]], batch_size=4) == [[plain[3][place]]]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_batch_size_changes_rounding_at_most(
    grounder: Grounder, images: Pixels, batch_size: int
) -> None:
    expected = grounder.locate(images, PHRASES, batch_size=4)
    found = grounder.locate(images, PHRASES, batch_size=batch_size)
    for one, two in zip(flat(found), flat(expected), strict=True):
        assert sides(one) == sides(two)
        assert one.logprob == pytest.approx(two.logprob, abs=1e-3)


def test_an_image_of_any_shape_may_be_given(grounder: Grounder, images: Pixels) -> None:
    squares = [Image.fromarray(image) for image in images]
    assert grounder.locate(squares, PHRASES) == grounder.locate(images, PHRASES)
    # A stretched image of one colour looks the same, and fractions of its sides mean the same.
    flat = [Image.new("RGB", size, "red") for size in ((32, 32), (100, 20))]
    one, two = grounder.locate(flat, [["a star"]] * 2)
    assert one == two


def test_no_images_and_no_phrases_have_no_boxes(grounder: Grounder, images: Pixels) -> None:
    assert grounder.locate(images[:0], []) == []
    assert grounder.locate(images[:2], [[], []]) == [[], []]


def test_images_and_lists_of_phrases_must_be_as_many(grounder: Grounder, images: Pixels) -> None:
    with pytest.raises(ValueError, match="1 lists of phrases were given for 9 images"):
        grounder.locate(images, [["a"]])


def test_a_vocabulary_without_box_tokens_is_refused(
    grounding: BlipGrounding, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match="boxes are written with the tokens"):
        Grounder(grounding, tokenizer)


def test_only_boxes_are_written(
    grounder: Grounder, grounding: BlipGrounding, box_tokenizer: Tokenizer, images: Pixels
) -> None:
    before = grounder.locate(images, PHRASES)
    others = torch.ones(box_tokenizer.vocab_size, dtype=torch.bool)
    others[BoxTokens.of(box_tokenizer).bin_ids] = False
    grounding.lm_head.bias.data[others] += 1000  # words are now likelier than any bin
    assert grounder.locate(images, PHRASES) == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_precision_gives_boxes_nearly_as_likely(
    grounding: BlipGrounding, box_tokenizer: Tokenizer, images: Pixels, dtype: str
) -> None:
    grounding.lm_head.norm.weight.data *= 0.1  # random weights are too sure of themselves
    full = Grounder(grounding, box_tokenizer).locate(images, PHRASES)
    grounder = Grounder(grounding, box_tokenizer, dtype=dtype)  # type: ignore[arg-type]
    for one, two in zip(flat(grounder.locate(images, PHRASES)), flat(full), strict=True):
        assert one.logprob == pytest.approx(two.logprob, abs=0.3)
