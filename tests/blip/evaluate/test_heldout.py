from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.evaluate.cider import Cider
from capfilt_blip.evaluate.heldout import (
    HeldOut,
    HeldOutPairs,
    Measuring,
    itc_recalls,
    measure_held_out,
)
from capfilt_blip.tasks.captioner import Captioner
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tasks.recall import recalls
from capfilt_blip.tasks.retriever import Retriever
from capfilt_blip.tokenizer import Tokenizer

MEASURING = Measuring(num_candidates=3, num_captions=4, prompt="", batch_size=4)


@pytest.fixture
def pairs(images: NDArray[np.uint8]) -> HeldOutPairs:
    texts = [f"{colour} {kind}" for colour in ("red", "green", "blue", "small")
             for kind in ("circle", "square", "triangle")]  # fmt: skip
    return HeldOutPairs(images=images, texts=texts, image_of_text=[*range(9), 0, 0, 4])


def test_itc_recall_is_that_of_the_cosines_of_all_pairs(
    matcher: BlipMatcher, tokenizer: Tokenizer, pairs: HeldOutPairs, images: NDArray[np.uint8]
):
    cosines = Matcher(matcher, tokenizer).similarity(images, [pairs.texts] * 9)
    owners = pairs.image_of_text
    text_of = [max(range(12), key=row.__getitem__) for row in cosines]
    image_of = [max(range(9), key=lambda image: cosines[image][text]) for text in range(12)]
    found = itc_recalls(matcher, pairs, tokenizer=tokenizer, measuring=MEASURING)
    assert found.texts[0] == np.mean([owners[text] == image for image, text in enumerate(text_of)])
    assert found.images[0] == np.mean(
        [owners[text] == image for text, image in enumerate(image_of)]
    )
    assert 0 < found.images[0] <= found.images[1] < found.images[2] == 1  # of nine images


def test_itm_recall_is_that_of_the_retriever(
    matcher: BlipMatcher, tokenizer: Tokenizer, pairs: HeldOutPairs
):
    retrieved = Retriever(matcher, tokenizer).rank(
        pairs.images, pairs.texts, num_candidates=3, batch_size=4
    )
    found = measure_held_out(matcher, pairs, tokenizer=tokenizer, measuring=MEASURING)
    assert found.itm == recalls(retrieved, image_of_text=pairs.image_of_text)
    assert (found.cider_d, found.captions) == (None, ())


def test_captions_are_the_likeliest_and_scored_by_cider_d(
    captioner: BlipCaptioner, tokenizer: Tokenizer, pairs: HeldOutPairs
):
    found = measure_held_out(captioner, pairs, tokenizer=tokenizer, measuring=MEASURING)
    written = Captioner(captioner, tokenizer).greedy(pairs.images, prompt="", batch_size=4)
    assert [caption.text for caption in found.captions] == [one.text for one in written[:4]]
    assert found.captions[0].references == ("red circle", "small circle", "small square")
    scores = Cider(pairs.references()).cider_d([one.text for one in written[:4]])
    assert found.cider_d == pytest.approx(sum(scores) / 4)
    assert (found.itc, found.itm) == (None, None)


def test_a_pre_trained_model_is_measured_in_both(
    blip: Blip, tokenizer: Tokenizer, pairs: HeldOutPairs
):
    found = measure_held_out(blip, pairs, tokenizer=tokenizer, measuring=MEASURING)
    apart = [
        measure_held_out(model, pairs, tokenizer=tokenizer, measuring=MEASURING)
        for model in (blip.matcher(), blip.captioner())
    ]
    assert found == HeldOut(
        itc=apart[0].itc, itm=apart[0].itm, cider_d=apart[1].cider_d, captions=apart[1].captions
    )


def test_measuring_changes_neither_the_model_nor_what_is_drawn_later(
    blip: Blip, tokenizer: Tokenizer, pairs: HeldOutPairs
):
    blip.train()
    blip.vision.eval()
    modes = [part.training for part in blip.modules()]
    weights = {name: weight.clone() for name, weight in blip.state_dict().items()}
    places = [weight.data_ptr() for weight in blip.parameters()]
    drawn = torch.get_rng_state()
    measure_held_out(blip, pairs, tokenizer=tokenizer, measuring=MEASURING)
    assert [part.training for part in blip.modules()] == modes
    assert all(torch.equal(weights[name], weight) for name, weight in blip.state_dict().items())
    assert [weight.data_ptr() for weight in blip.parameters()] == places
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(weight.grad is None and weight.requires_grad for weight in blip.parameters())


def test_a_measurement_that_fails_leaves_the_modes_as_they_were(
    blip: Blip, tokenizer: Tokenizer, images: NDArray[np.uint8]
):
    blip.train()
    odd = HeldOutPairs(images=images, texts=["red"], image_of_text=[9])
    with pytest.raises(ValueError, match=r"image_of_text\[0\] is 9; there are 9 images"):
        measure_held_out(blip, odd, tokenizer=tokenizer, measuring=MEASURING)
    assert all(part.training for part in blip.modules())


def test_dropout_is_off_while_measuring(blip: Blip, tokenizer: Tokenizer, pairs: HeldOutPairs):
    found = [
        measure_held_out(blip.train(mode), pairs, tokenizer=tokenizer, measuring=MEASURING)
        for mode in (True, False)
    ]
    assert found[0] == found[1]
