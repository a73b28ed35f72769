from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import save_model
from capfilt_blip.int8 import Int8LanguageModelHead, Int8Linear, check_products, quantise
from capfilt_blip.tasks.captioner import Captioner
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tokenizer import Tokenizer

Pixels = NDArray[np.uint8]
KEYS = [f"sample-{i}" for i in range(9)]
PAIRS = [["a red circle", "two blue squares"], ["a large yellow star"], []] * 3


@pytest.fixture
def linear() -> nn.Linear:
    return nn.Linear(96, 200)


def rounded(linear: nn.Linear) -> Int8Linear:
    return Int8Linear(linear.weight, linear.bias)


def test_a_product_is_what_rounding_by_hand_gives() -> None:
    weight = torch.tensor(
        [[1.27, -0.64], [0.0, 2.54]]
    )  # 127 and -64 hundredths; 0 and 127 fiftieths
    hidden = torch.tensor([[12.7, 3.04]])  # 127 and 30.4 tenths, so 30
    out = Int8Linear(weight, torch.tensor([0.5, -1.0]))(hidden)
    by_hand = [(127 * 127 - 64 * 30) * 0.01 * 0.1 + 0.5, 127 * 30 * 0.02 * 0.1 - 1]
    assert out[0].tolist() == pytest.approx(by_hand, rel=1e-6)


def test_rounding_costs_about_a_percent(linear: nn.Linear) -> None:
    hidden = torch.randn(50, 96)
    exact = linear(hidden)
    error = (rounded(linear)(hidden) - exact).norm() / exact.norm()
    assert 0 < error < 0.015  # 1 / 127 of the largest, over the root of 3, for each factor


@torch.inference_mode()
@pytest.mark.parametrize("num_rows", [1, 7, 513, 1030])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_batch(
    linear: nn.Linear, num_rows: int, num_threads: int
) -> None:
    hidden, mates = torch.randn(num_rows, 96), torch.randn(40, 96) * 100
    plain = rounded(linear)(hidden)
    torch.set_num_threads(num_threads)  # the fixture of all tests here puts it back
    among_others = rounded(linear)(torch.cat([mates, hidden, mates]))
    assert torch.equal(among_others[40 : 40 + num_rows], plain)


def test_rows_of_zeros_are_the_bias_and_numbers_that_overflowed_stay_so(linear: nn.Linear) -> None:
    hidden = torch.zeros(2, 96)
    hidden[1, 3] = torch.inf
    zeros, overflowed = rounded(linear)(hidden)
    assert torch.equal(zeros, linear.bias)
    assert not overflowed.isfinite().any()


def test_layers_are_rounded_and_what_decides_alone_is_not(matcher: BlipMatcher) -> None:
    quantise(matcher)
    left = {name for name, child in matcher.named_modules() if isinstance(child, nn.Linear)}
    assert left == {"vision_proj", "text_proj", "itm_head"}
    assert isinstance(matcher.vision.layers[0].mlp.up, Int8Linear)
    assert isinstance(matcher.text_encoder.layers[0].cross_attention.heads.key, Int8Linear)


def test_the_head_is_rounded_and_words_are_looked_up_as_they_were(captioner: BlipCaptioner) -> None:
    before = copy.deepcopy(captioner)
    quantise(captioner)
    words = captioner.text_decoder.embeddings.words.weight
    assert torch.equal(words, before.text_decoder.embeddings.words.weight)
    hidden = torch.randn(6, words.shape[1])
    assert isinstance(captioner.lm_head, Int8LanguageModelHead)
    exact, found = before.token_logits(hidden), captioner.token_logits(hidden)
    assert 0 < (found - exact).norm() / exact.norm() < 0.03


def test_a_model_that_is_rounded_already_stays_as_it_is(captioner: BlipCaptioner) -> None:
    once = copy.deepcopy(quantise(captioner)).state_dict()
    twice = quantise(captioner).state_dict()
    assert all(torch.equal(once[name], twice[name]) for name in once | twice)


def test_captions_in_int8_do_not_depend_on_neighbours(
    captioner: BlipCaptioner, tokenizer: Tokenizer, images: Pixels
) -> None:
    writer = Captioner(captioner, tokenizer, dtype="int8")
    plain = writer.caption(images, keys=KEYS, batch_size=4)
    mates = np.concatenate([255 - images[:3], images[4:5]])
    [alone] = writer.caption(images[4, None], keys=[KEYS[4]], batch_size=4)
    among_others = writer.caption(mates, keys=["x", "y", "z", KEYS[4]], batch_size=4)
    assert alone == among_others[3] == plain[4]


def test_scores_in_int8_do_not_depend_on_neighbours(
    matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels
) -> None:
    filter_ = Matcher(matcher, tokenizer, dtype="int8")
    plain = filter_.score(images, PAIRS, batch_size=4)
    backwards = filter_.score(images[::-1].copy(), PAIRS[::-1], batch_size=4)
    assert backwards[::-1] == plain


def test_scores_in_int8_are_near_those_in_float32(
    matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels, tmp_path: Path
) -> None:
    save_model(tmp_path, model=matcher, tokenizer=tokenizer)
    exact, found = (
        Matcher.from_pretrained(tmp_path, dtype=dtype).score(images, PAIRS)
        for dtype in ("float32", "int8")
    )
    for field, bound in (("itm_prob", 0.05), ("itc_cos", 0.05), ("image_vector", 0.05)):
        numbers = [[x for s in scores for x in getattr(s, field)] for scores in (exact, found)]
        assert numbers[0] != numbers[1]
        assert numbers[1] == pytest.approx(numbers[0], abs=bound)


def test_a_captioner_of_half_precision_is_read_into_int8(
    captioner: BlipCaptioner, tokenizer: Tokenizer, images: Pixels, tmp_path: Path
) -> None:
    save_model(tmp_path, model=captioner, tokenizer=tokenizer, dtype=torch.float16)
    read = Captioner.from_pretrained(tmp_path, dtype="int8")
    given = Captioner(captioner.half(), tokenizer, dtype="int8")
    assert read.greedy(images[:2]) == given.greedy(images[:2])


def test_int8_is_refused_away_from_the_cpu(captioner: BlipCaptioner, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="dtype is 'int8', which is for CPUs; device is 'meta'"):
        Captioner(captioner, tokenizer, device="meta", dtype="int8")


def test_a_cpu_that_cuts_products_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_16_bits(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return (left.int() @ right.int()).clamp(-(2**15), 2**15 - 1)

    check_products()
    monkeypatch.setattr(torch, "_int_mm", in_16_bits)
    with pytest.raises(ValueError, match="cannot multiply 8-bit numbers exactly on this CPU"):
        check_products()
    monkeypatch.delattr(torch, "_int_mm")
    with pytest.raises(ValueError, match="use 'float32'"):
        check_products()


@torch.inference_mode()
@pytest.mark.parametrize("num_queries", [1, 1000])
def test_attention_in_int8_reads_images_with_and_without_keys_and_values(
    captioner: BlipCaptioner, num_queries: int
) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    ids = torch.randint(5, 100, (2, 6))
    mask = torch.ones_like(ids, dtype=torch.bool)
    logits = []
    for model in (copy.deepcopy(captioner), quantise(captioner)):
        memory = model.text_decoder.memory_for(model.vision(pixels), num_queries=num_queries)
        logits.append(model.lm_logits(ids, mask, memory))
    assert 0 < (logits[1] - logits[0]).norm() / logits[0].norm() < 0.2
