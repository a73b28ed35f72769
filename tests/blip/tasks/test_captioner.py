from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from capfilt_blip.blip import BlipCaptioner
from capfilt_blip.tasks.captioner import Caption, Captioner
from capfilt_blip.tokenizer import Tokenizer

Pixels = NDArray[np.uint8]
KEYS = [f"sample-{i}" for i in range(9)]


@pytest.fixture
def writer(captioner: BlipCaptioner, tokenizer: Tokenizer) -> Captioner:
    return Captioner(captioner, tokenizer)


def texts(captions: list[list[Caption]]) -> list[list[str]]:
    return [[caption.text for caption in of_image] for of_image in captions]


def test_captions_do_not_depend_on_order(writer: Captioner, images: Pixels) -> None:
    order = np.random.default_rng(3).permutation(9)
    plain = writer.caption(images, keys=KEYS, num_captions=2, batch_size=4)
    shuffled = writer.caption(
        images[order], keys=[KEYS[i] for i in order], num_captions=2, batch_size=4
    )
    assert shuffled == [plain[i] for i in order]


def test_captions_do_not_depend_on_neighbours(writer: Captioner, images: Pixels) -> None:
    plain = writer.caption(images, keys=KEYS, batch_size=4)
    alone = [writer.caption(images[i, None], keys=[KEYS[i]], batch_size=4)[0] for i in range(9)]
    among_others = writer.caption(
        np.concatenate([255 - images[:3], images[4:5]]), keys=["x", "y", "z", KEYS[4]], batch_size=4
    )
    assert alone == plain
    assert among_others[3] == plain[4]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8, 16])
def test_texts_do_not_depend_on_the_batch_size(
    writer: Captioner, images: Pixels, batch_size: int
) -> None:
    expected = writer.caption(images, keys=KEYS, num_captions=2, batch_size=4)
    found = writer.caption(images, keys=KEYS, num_captions=2, batch_size=batch_size)
    assert texts(found) == texts(expected)
    logprobs = [
        [c.logprob for of_image in captions for c in of_image] for captions in (found, expected)
    ]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)


def test_more_captions_of_an_image_leave_the_first_as_they_were(
    writer: Captioner, images: Pixels
) -> None:
    two, four = (writer.caption(images, num_captions=n) for n in (2, 4))
    assert [of_image[:2] for of_image in texts(four)] == texts(two)
    assert all(len(set(of_image)) == 4 for of_image in texts(four))


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"round_": 1}, {"keys": [f"b{i}" for i in range(9)]}]
)
def test_seed_round_and_key_each_change_the_captions(
    writer: Captioner, images: Pixels, other: dict[str, object]
) -> None:
    plain = writer.caption(images, keys=KEYS)
    changed = writer.caption(images, **{"keys": KEYS, **other})  # type: ignore[arg-type]
    assert all(a != b for a, b in zip(texts(plain), texts(changed), strict=True))


def test_the_image_steers_the_text(writer: Captioner, images: Pixels) -> None:
    plain, inverted = writer.caption(images), writer.caption(255 - images)
    assert all(a != b for a, b in zip(texts(plain), texts(inverted), strict=True))


def test_the_prompt_steers_the_text_and_is_not_in_it(writer: Captioner, images: Pixels) -> None:
    with_prompt, without = writer.caption(images), writer.caption(images, prompt="")
    assert texts(with_prompt) != texts(without)
    assert not any(text.startswith("a picture of") for [text] in texts(with_prompt))


def test_greedy_needs_no_key_and_does_not_depend_on_neighbours(
    writer: Captioner, images: Pixels
) -> None:
    together = writer.greedy(images, batch_size=4)
    assert [writer.greedy(images[i, None], batch_size=4)[0] for i in range(9)] == together
    assert len({caption.text for caption in together}) > 1


def test_arrays_tensors_and_pil_images_are_the_same(writer: Captioner, images: Pixels) -> None:
    expected = writer.caption(images)
    assert writer.caption(torch.from_numpy(images)) == expected
    assert writer.caption([Image.fromarray(image) for image in images]) == expected


def test_no_images_have_no_captions(writer: Captioner, images: Pixels) -> None:
    assert writer.caption(images[:0]) == []
    assert writer.greedy(images[:0]) == []


def test_a_lower_precision_works_and_is_deterministic(
    captioner: BlipCaptioner, tokenizer: Tokenizer, images: Pixels
) -> None:
    writer = Captioner(captioner, tokenizer, dtype="bfloat16")
    assert writer.caption(images[::-1], keys=KEYS[::-1])[::-1] == writer.caption(images, keys=KEYS)


def test_keys_and_images_must_be_as_many(writer: Captioner, images: Pixels) -> None:
    with pytest.raises(ValueError, match="2 keys were given for 9 images"):
        writer.caption(images, keys=["a", "b"])


def test_an_unknown_dtype_is_refused(captioner: BlipCaptioner, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="dtype is 'half'; it must be one of float32, bfloat16"):
        Captioner(captioner, tokenizer, dtype="half")  # type: ignore[arg-type]
