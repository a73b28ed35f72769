from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from capfilt_blip.checkpoint import save_model
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.tasks.reasoner import Reasoner
from capfilt_blip.tasks.texts import clean_sentence
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise

Pixels = NDArray[np.uint8]
TEXTS = [
    "The left image holds two circles.",
    "a star",
    "",
    "red " * 100,
    "a; blue square",
    "a blue square",
    "two small triangles",
    "a star",
    "green",
]


@pytest.fixture
def reasoner(nlvr: BlipNlvr, tokenizer: Tokenizer) -> Reasoner:
    return Reasoner(nlvr, tokenizer)


@pytest.fixture
def right(images: Pixels) -> Pixels:
    return images[::-1].copy()


@torch.no_grad()
def test_judgements_are_those_of_one_pair_at_a_time(
    reasoner: Reasoner, nlvr: BlipNlvr, tokenizer: Tokenizer, images: Pixels, right: Pixels
) -> None:
    found = reasoner.judge(images, right, TEXTS)
    for n, text in enumerate(TEXTS):
        batch = tokenizer.encode([clean_sentence(text)], first="enc", max_tokens=64)
        pixels = (normalise(torch.from_numpy(side[n, None])) for side in (images, right))
        logits = nlvr(*pixels, batch.ids, batch.mask)
        assert found[n] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-4)


def test_judgements_differ(reasoner: Reasoner, images: Pixels, right: Pixels) -> None:
    found = reasoner.judge(images, right, ["a red circle"] * 9)
    assert len(set(found)) == 9 and max(found) - min(found) > 0.01  # else equality proves little


def test_no_judgement_depends_on_neighbours_or_order(
    reasoner: Reasoner, images: Pixels, right: Pixels
) -> None:
    plain = reasoner.judge(images, right, TEXTS)
    order = np.random.default_rng(3).permutation(9)
    shuffled = reasoner.judge(images[order], right[order], [TEXTS[i] for i in order])
    assert shuffled == [plain[i] for i in order]
    for n in range(9):
        assert reasoner.judge(images[n, None], right[n, None], [TEXTS[n]]) == [plain[n]]


def test_images_are_not_swapped(reasoner: Reasoner, images: Pixels, right: Pixels) -> None:
    one = reasoner.judge(images, right, ["a red circle"] * 9)
    assert reasoner.judge(images, right, ["a red circle"] * 9) == one
    other = reasoner.judge(right, images, ["a red circle"] * 9)
    assert other == one[::-1] != one


def test_punctuation_case_and_words_beyond_the_fortieth_say_nothing(
    reasoner: Reasoner, images: Pixels
) -> None:
    texts = ["A red; circle!", "a red circle", "red " * 41 + "star", "red " * 40]
    found = reasoner.judge(images[[0] * 4], images[[1] * 4], texts)
    assert found[0] == found[1] != found[2] == found[3]


def test_a_sentence_starts_with_enc(
    reasoner: Reasoner, nlvr: BlipNlvr, images: Pixels, right: Pixels
) -> None:
    before = reasoner.judge(images, right, TEXTS)
    nlvr.text_encoder.embeddings.words.weight.data[nlvr.config.enc_token_id] *= -1
    assert reasoner.judge(images, right, TEXTS) != before


def test_no_pairs_have_no_judgements(reasoner: Reasoner, images: Pixels) -> None:
    assert reasoner.judge(images[:0], images[:0], []) == []


def test_both_images_and_the_sentence_are_needed(reasoner: Reasoner, images: Pixels) -> None:
    with pytest.raises(ValueError, match="2 left images, 3 right images and 2 sentences"):
        reasoner.judge(images[:2], images[:3], ["a", "b"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_precision_gives_nearly_the_same(
    nlvr: BlipNlvr, tokenizer: Tokenizer, images: Pixels, right: Pixels, dtype: str
) -> None:
    full = Reasoner(nlvr, tokenizer).judge(images, right, TEXTS)
    lower = Reasoner(nlvr, tokenizer, dtype=dtype).judge(images, right, TEXTS)  # type: ignore[arg-type]
    assert lower == pytest.approx(full, abs=0.1)


def test_a_saved_model_judges_as_before(
    reasoner: Reasoner, nlvr: BlipNlvr, tokenizer: Tokenizer, images: Pixels, tmp_path: Path
) -> None:
    save_model(tmp_path, model=nlvr, tokenizer=tokenizer)
    loaded = Reasoner.from_pretrained(tmp_path)
    assert loaded.image_size_px == 32
    pair = images[:1], images[1:2], TEXTS[:1]
    assert loaded.judge(*pair) == reasoner.judge(*pair)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_nearly_the_same_whoever_is_beside(
    nlvr: BlipNlvr, tokenizer: Tokenizer, images: Pixels, right: Pixels
) -> None:
    full = Reasoner(nlvr, tokenizer).judge(images, right, TEXTS)
    on_gpu = Reasoner(nlvr, tokenizer, device="cuda")
    found = on_gpu.judge(images, right, TEXTS)
    assert found == pytest.approx(full, abs=1e-3)
    assert on_gpu.judge(images[:1], right[:1], TEXTS[:1]) == found[:1]
