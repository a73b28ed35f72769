"""The same weights in transformers and here give the same numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from capfilt_blip.beam import Beams, generate_beams
from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import load_captioner, load_matcher, load_vqa, save_model
from capfilt_blip.config import BlipConfig
from capfilt_blip.decode import Limits, generate_greedy
from capfilt_blip.losses import lm_loss
from capfilt_blip.tasks.captioner import Captioner
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.vqa import BlipVqa

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
    save_model(tmp_path, model=captioner, tokenizer=tokenizer)
    return transformers.BlipForConditionalGeneration.from_pretrained(tmp_path).eval()


@pytest.fixture
def hf_matcher(tmp_path: Path, matcher: BlipMatcher, tokenizer: Tokenizer) -> Any:
    save_model(tmp_path, model=matcher, tokenizer=tokenizer)
    return transformers.BlipForImageTextRetrieval.from_pretrained(tmp_path).eval()


@pytest.fixture
def hf_vqa(tmp_path: Path, vqa: BlipVqa, tokenizer: Tokenizer) -> Any:
    save_model(tmp_path, model=vqa, tokenizer=tokenizer)
    return transformers.BlipForQuestionAnswering.from_pretrained(tmp_path).eval()


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
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_language_model_losses_are_equal(
    hf_captioner: Any, captioner: BlipCaptioner, pixels: Tensor, label_smoothing: float
) -> None:
    ids, mask = texts(captioner.config, first=captioner.config.bos_token_id)
    labels = ids.masked_fill(~mask, -100)  # transformers itself would learn the padding
    labels[:, :4] = -100  # ... and the prompt
    hf_captioner.text_decoder.label_smoothing = label_smoothing
    theirs = hf_captioner(
        pixel_values=pixels, input_ids=ids, attention_mask=mask.long(), labels=labels
    ).loss
    logits = captioner(pixels, ids, mask)
    ours = lm_loss(logits, ids, mask, num_prompt_tokens=4, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


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
@pytest.mark.parametrize("prompt", ["a picture of ", ""])
@pytest.mark.parametrize(
    ("beams", "limits"),
    [
        (Beams(), Limits(max_new_tokens=16)),
        (Beams(), Limits(max_new_tokens=16, repetition_penalty=1.1)),
        (Beams(length_penalty=0.0), Limits(min_new_tokens=0, max_new_tokens=9)),
        (Beams(length_penalty=2.0), Limits(min_new_tokens=3, max_new_tokens=9)),
        (Beams(num_beams=5, length_penalty=-1.0), Limits(min_new_tokens=0, max_new_tokens=12)),
    ],
)
def test_beam_token_ids_are_equal(
    hf_captioner: Any,
    captioner: BlipCaptioner,
    tokenizer: Tokenizer,
    beams: Beams,
    limits: Limits,
    prompt: str,
) -> None:
    ours, theirs = captioner.double(), hf_captioner.double()
    pixels, prompt_ids = torch.randn(8, 3, 32, 32).double(), tokenizer.prompt_ids(prompt)
    # [SEP] at the height at which some texts end soon, some late and some are cut off.
    for bias in (ours.lm_head.bias, theirs.text_decoder.cls.predictions.bias):
        bias.data[tokenizer.sep_id] = 3
    expected = theirs.generate(
        pixel_values=pixels,
        input_ids=torch.tensor([*prompt_ids, tokenizer.sep_id]).repeat(8, 1),
        num_beams=beams.num_beams,
        length_penalty=beams.length_penalty,
        min_new_tokens=limits.min_new_tokens,
        max_new_tokens=limits.max_new_tokens,
        repetition_penalty=limits.repetition_penalty,
        early_stopping=False,
    )
    memory = ours.text_decoder.project_memory(ours.vision(pixels))
    found = generate_beams(ours, memory, prompt_ids=prompt_ids, limits=limits, beams=beams)
    assert found.num_tokens.unique().numel() > 1
    for row, count in enumerate(found.num_tokens):
        texts = expected[row, len(prompt_ids) :].split(
            [count, len(expected[0]) - len(prompt_ids) - count]
        )
        assert torch.equal(found.token_ids[row, :count], texts[0])
        # transformers fills up with [SEP] where the id of [PAD] is 0.
        assert set(texts[1].tolist()) <= {tokenizer.pad_id, tokenizer.sep_id}


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
def test_a_matcher_that_reads_cls_gives_transformers_probabilities(
    hf_matcher: Any, matcher: BlipMatcher, tokenizer: Tokenizer, tmp_path: Path, images: Any
) -> None:
    words = ["a red circle", "two small triangles left of a star"]
    batch = tokenizer.encode(words, first="cls", max_tokens=35)
    processor = transformers.BlipImageProcessor.from_pretrained(tmp_path)
    theirs = hf_matcher(
        pixel_values=processor(images=list(images[:2]), return_tensors="pt")["pixel_values"],
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
    ).itm_score.softmax(-1)[:, 1]
    as_cls, as_enc = (
        Matcher.from_pretrained(tmp_path, first_token=first).match(images[:2], [[w] for w in words])
        for first in ("cls", "enc")
    )
    assert [p for [p] in as_cls] == pytest.approx(theirs.tolist(), abs=1e-5)
    assert [p for [p] in as_enc] != pytest.approx(theirs.tolist(), abs=1e-2)


@torch.no_grad()
def test_itc_cosines_are_equal(hf_matcher: Any, matcher: BlipMatcher, pixels: Tensor) -> None:
    ids, mask = texts(matcher.config, first=matcher.config.cls_token_id)
    theirs = hf_matcher(
        input_ids=ids, pixel_values=pixels, attention_mask=mask.long(), use_itm_head=False
    ).itm_score
    vectors = matcher.image_vectors(matcher.vision(pixels))
    ours = vectors @ matcher.text_vectors(ids, mask).T
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_are_equal_with_cls_at_position_0(
    hf_vqa: Any, vqa: BlipVqa, tokenizer: Tokenizer, num_beams: int
) -> None:
    # transformers leaves [CLS] there, and its decoder sees the padding of questions: so none here.
    ours, theirs, config = vqa.double(), hf_vqa.double(), vqa.config
    for bias in (ours.lm_head.bias, theirs.text_decoder.cls.predictions.bias):
        bias.data[tokenizer.sep_id] = 6
    pixels, ids = torch.randn(8, 3, 32, 32).double(), torch.randint(5, 60, (8, 7))
    ids[:, 0] = config.cls_token_id
    expected = theirs.generate(
        pixel_values=pixels,
        input_ids=ids,
        num_beams=num_beams,
        min_new_tokens=1,
        max_new_tokens=9,
        repetition_penalty=1.5,
    )[:, 1:]
    image_memory = ours.text_encoder.project_memory(ours.vision(pixels))
    questions = ours.read_questions(ids, torch.ones_like(ids, dtype=torch.bool), image_memory)
    prompt, limits = [config.bos_token_id], Limits(max_new_tokens=9, repetition_penalty=1.5)
    if num_beams == 1:
        found = generate_greedy(ours, questions, prompt_ids=prompt, limits=limits)
    else:
        found = generate_beams(ours, questions, prompt_ids=prompt, limits=limits, beams=Beams())
    assert found.num_tokens.unique().numel() > 1
    for row, count in enumerate(found.num_tokens):
        assert torch.equal(found.token_ids[row, :count], expected[row, :count])


@torch.no_grad()
def test_answer_logits_are_equal_with_cls_at_position_0(
    hf_vqa: Any, vqa: BlipVqa, pixels: Tensor
) -> None:
    ids, _ = texts(vqa.config, first=vqa.config.cls_token_id)
    answers, mask = texts(vqa.config, first=vqa.config.bos_token_id)
    hidden = hf_vqa.text_encoder(
        input_ids=ids, encoder_hidden_states=hf_vqa.vision_model(pixels).last_hidden_state
    ).last_hidden_state
    theirs = hf_vqa.text_decoder(
        input_ids=answers, attention_mask=mask.long(), encoder_hidden_states=hidden
    ).logits
    image_memory = vqa.text_encoder.project_memory(vqa.vision(pixels))
    questions = vqa.read_questions(ids, torch.ones_like(ids, dtype=torch.bool), image_memory)
    ours = vqa.lm_logits(answers, mask, questions)
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-4, atol=1e-4)


def test_what_transformers_saved_is_loaded(
    hf_captioner: Any, hf_matcher: Any, hf_vqa: Any, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    loads = (load_captioner, load_matcher, load_vqa)
    for model, load in zip((hf_captioner, hf_matcher, hf_vqa), loads, strict=True):
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
