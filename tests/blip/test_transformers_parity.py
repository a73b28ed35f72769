"""The same weights in transformers and here give the same numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import load_captioner, load_matcher, save_captioner, save_matcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.decode import Limits, generate_greedy
from capfilt_blip.tasks.captioner import Captioner
from capfilt_blip.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")


def texts(config: BlipConfig, *, first: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 60, (4, 7))
    ids[:, 0] = first
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 5:] = mask[3, 4:] = False
    return ids.masked_fill(~mask, config.pad_token_id), mask


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(4, 3, 32, 32)


@pytest.fixture
def hf_captioner(tmp_path: Path, captioner: BlipCaptioner, tokenizer: Tokenizer) -> Any:
    save_captioner(tmp_path, model=captioner, tokenizer=tokenizer)
    return transformers.BlipForConditionalGeneration.from_pretrained(tmp_path).eval()


@pytest.fixture
def hf_matcher(tmp_path: Path, matcher: BlipMatcher, tokenizer: Tokenizer) -> Any:
    save_matcher(tmp_path, model=matcher, tokenizer=tokenizer)
    return transformers.BlipForImageTextRetrieval.from_pretrained(tmp_path).eval()


@torch.no_grad()
def test_image_tokens_are_equal(
    hf_captioner: Any, captioner: BlipCaptioner, pixels: Tensor
) -> None:
    theirs = hf_captioner.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(captioner.vision(pixels), theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_language_model_logits_are_equal(
    hf_captioner: Any, captioner: BlipCaptioner, pixels: Tensor
) -> None:
    ids, mask = texts(captioner.config, first=captioner.config.bos_token_id)
    theirs = hf_captioner(pixel_values=pixels, input_ids=ids, attention_mask=mask.long()).logits
    ours = captioner(pixels, ids, mask)
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_greedy_token_ids_are_equal(
    hf_captioner: Any, captioner: BlipCaptioner, tokenizer: Tokenizer, pixels: Tensor
) -> None:
    # In double precision: random weights turn rounding into other tokens. With a penalty: else
    # they repeat one token for ever.
    ours, theirs = captioner.double(), hf_captioner.double()
    prompt = tokenizer.prompt_ids("a picture of ")
    asked = torch.tensor([*prompt, tokenizer.sep_id]).repeat(4, 1)
    expected = theirs.generate(
        pixel_values=pixels.double(),
        input_ids=asked,
        min_new_tokens=3,
        max_new_tokens=12,
        repetition_penalty=1.5,
    )
    limits = Limits(min_new_tokens=3, max_new_tokens=12, repetition_penalty=1.5)
    memory = ours.text_decoder.project_memory(ours.vision(pixels.double()))
    found = generate_greedy(ours, memory, prompt_ids=prompt, limits=limits).token_ids
    assert found.unique().numel() > 8  # no degenerate text
    assert torch.equal(found, expected[:, len(prompt) :])


@torch.no_grad()
def test_itm_logits_are_equal_with_cls_at_position_0(
    hf_matcher: Any, matcher: BlipMatcher, pixels: Tensor
) -> None:
    # transformers leaves [CLS] there; the ITM head was trained to read [ENC].
    ids, mask = texts(matcher.config, first=matcher.config.cls_token_id)
    theirs = hf_matcher(input_ids=ids, pixel_values=pixels, attention_mask=mask.long()).itm_score
    kv = matcher.text_encoder.project_memory(matcher.vision(pixels))
    torch.testing.assert_close(matcher.itm_logits(ids, mask, kv), theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_itc_cosines_are_equal(hf_matcher: Any, matcher: BlipMatcher, pixels: Tensor) -> None:
    ids, mask = texts(matcher.config, first=matcher.config.cls_token_id)
    theirs = hf_matcher(
        input_ids=ids, pixel_values=pixels, attention_mask=mask.long(), use_itm_head=False
    ).itm_score
    vectors = matcher.image_vectors(matcher.vision(pixels))
    ours = vectors @ matcher.text_vectors(ids, mask).T
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_transformers_saved_is_loaded(
    hf_captioner: Any, hf_matcher: Any, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    for model, load in ((hf_captioner, load_captioner), (hf_matcher, load_matcher)):
        folder = tmp_path / model.__class__.__name__
        model.save_pretrained(folder)
        tokenizer.save(folder)
        ours, _ = load(folder)
        assert torch.equal(ours.vision.norm.bias, model.vision_model.post_layernorm.bias)


@torch.no_grad()
def test_the_processor_makes_the_same_pixels_and_the_whole_path_agrees(
    hf_captioner: Any, captioner: BlipCaptioner, tokenizer: Tokenizer, tmp_path: Path, images: Any
) -> None:
    processor = transformers.BlipImageProcessor.from_pretrained(tmp_path)
    asked = torch.tensor([[*tokenizer.prompt_ids("a picture of "), tokenizer.sep_id]])
    expected = []
    for image in images[:3]:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        ids = hf_captioner.generate(pixel_values=pixels, input_ids=asked, max_new_tokens=5)
        expected.append(tokenizer.decode(ids[0, asked.shape[1] - 1 :]).strip())
    found = Captioner(copy.deepcopy(captioner), tokenizer).greedy(
        images[:3], min_new_tokens=0, max_new_tokens=5
    )
    assert [caption.text for caption in found] == expected
