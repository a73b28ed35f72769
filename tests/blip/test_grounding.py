from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from capfilt_blip.blip import Blip
from capfilt_blip.boxes import BoxTokens
from capfilt_blip.config import BlipConfig
from capfilt_blip.grounding import BlipGrounding, write_boxes
from capfilt_blip.text import TextStack
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise

Pixels = NDArray[np.uint8]
PHRASES = ["a red circle", "two small green triangles left of a star", "", "star"]


@pytest.fixture
def tokens(box_tokenizer: Tokenizer) -> BoxTokens:
    return BoxTokens.of(box_tokenizer)


def slow_attention(query: Tensor, memory: Tensor, heads: torch.nn.Module) -> Tensor:
    """One head after the other, every token visible."""
    size = query.shape[-1] // heads.num_heads
    if hasattr(heads, "qkv"):
        maps = heads.qkv(query).chunk(3, -1)
    else:
        maps = heads.query(query), heads.key(memory), heads.value(memory)
    parts = zip(*(part.split(size, -1) for part in maps), strict=True)
    mixed = [(q @ k.mT / size**0.5).softmax(-1) @ v for q, k, v in parts]
    out: Tensor = heads.out(torch.cat(mixed, -1))
    return out


def slow_read(hidden: Tensor, stack: TextStack, *, memory: Tensor | None) -> Tensor:
    for layer in stack.layers:
        own = layer.self_attention
        hidden = own.norm(hidden + slow_attention(hidden, hidden, own.heads))
        if memory is not None:
            cross = layer.cross_attention
            hidden = cross.norm(hidden + slow_attention(hidden, memory, cross.heads))
        hidden = layer.feed_forward(hidden)
    return hidden


def encode(tokenizer: Tokenizer, phrases: list[str], *, pad_to: int = 0) -> tuple[Tensor, Tensor]:
    batch = tokenizer.encode(phrases, first="cls", max_tokens=20, pad_to=pad_to)
    return batch.ids, batch.mask


def test_the_size_is_that_of_mmpretrain() -> None:
    with torch.device("meta"):
        model = BlipGrounding(BlipConfig.base())
    assert sum(parameter.numel() for parameter in model.parameters()) == 498_488_636


@torch.no_grad()
def test_reading_is_what_a_slow_version_does(
    grounding: BlipGrounding, box_tokenizer: Tokenizer, images: Pixels
) -> None:
    ids, mask = encode(box_tokenizer, PHRASES[:1])
    embeds = grounding.vision(normalise(torch.from_numpy(images[:1])))
    alone = slow_read(grounding.text_encoder.embeddings(ids), grounding.text_encoder, memory=None)
    fused = slow_read(alone, grounding.multimodal_encoder, memory=embeds)
    both = torch.cat([embeds, fused], dim=1)  # image first
    memory = grounding.read_phrases(
        ids, mask, grounding.see(normalise(torch.from_numpy(images[:1])))
    )
    expected = grounding.text_decoder.project_memory(both)
    for kv, expected_kv in zip(memory.layers, expected.layers, strict=True):
        torch.testing.assert_close(kv, expected_kv, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_of_a_phrase_changes_nothing(
    grounding: BlipGrounding, box_tokenizer: Tokenizer, tokens: BoxTokens, images: Pixels
) -> None:
    seen = grounding.see(normalise(torch.from_numpy(images[:4])))
    bins = torch.randint(0, 641, (4, 4))
    exact = grounding.read_phrases(*encode(box_tokenizer, PHRASES), seen)
    padded = grounding.read_phrases(*encode(box_tokenizer, PHRASES, pad_to=20), seen)
    torch.testing.assert_close(
        grounding.bin_logits(bins, padded, tokens=tokens),
        grounding.bin_logits(bins, exact, tokens=tokens),
        atol=1e-4,
        rtol=1e-4,
    )


@torch.no_grad()
def test_phrases_of_one_image_are_read_as_if_each_had_its_own(
    grounding: BlipGrounding, box_tokenizer: Tokenizer, images: Pixels
) -> None:
    ids, mask = encode(box_tokenizer, PHRASES)
    pixels = normalise(torch.from_numpy(images[:2]))
    shared = grounding.read_phrases(ids, mask, grounding.see(pixels))
    apart = grounding.read_phrases(ids, mask, grounding.see(pixels.repeat_interleave(2, dim=0)))
    assert shared.mask is not None and apart.mask is not None
    assert torch.equal(shared.mask, apart.mask)
    for kv, expected_kv in zip(shared.layers, apart.layers, strict=True):
        torch.testing.assert_close(kv, expected_kv, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_box_is_written_as_without_a_cache(
    grounding: BlipGrounding, box_tokenizer: Tokenizer, tokens: BoxTokens, images: Pixels
) -> None:
    seen = grounding.see(normalise(torch.from_numpy(images[:4])))
    memory = grounding.read_phrases(*encode(box_tokenizer, PHRASES), seen)
    bins, logprobs = write_boxes(grounding, memory, tokens=tokens)
    ids = torch.full((4, 1), tokens.start_id)
    total = torch.zeros(4)
    for place in range(4):
        hidden = grounding.text_decoder.decode(ids, torch.ones_like(ids, dtype=torch.bool), memory)
        scores = grounding.token_logits(hidden[:, -1])[:, tokens.bin_ids].log_softmax(-1)
        best, chosen = scores.max(-1)
        assert torch.equal(chosen, bins[:, place])
        total += best
        ids = torch.cat([ids, tokens.bin_ids[chosen, None]], dim=1)
    torch.testing.assert_close(logprobs, total, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_bin_is_predicted_from_those_before_it(
    grounding: BlipGrounding, box_tokenizer: Tokenizer, tokens: BoxTokens, images: Pixels
) -> None:
    seen = grounding.see(normalise(torch.from_numpy(images[:1])))
    memory = grounding.read_phrases(*encode(box_tokenizer, PHRASES[:1]), seen)
    one, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 9, 10]])
    before, after = (grounding.bin_logits(bins, memory, tokens=tokens) for bins in (one, other))
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3] - after[:, 3]).abs().max() > 0.01


@torch.no_grad()
def test_phrase_and_image_both_matter(
    grounding: BlipGrounding, box_tokenizer: Tokenizer, tokens: BoxTokens, images: Pixels
) -> None:
    ids, mask = encode(box_tokenizer, [PHRASES[0], PHRASES[1], PHRASES[0]])
    seen = grounding.see(normalise(torch.from_numpy(images[[0, 0, 1]])))
    memory = grounding.read_phrases(ids, mask, seen)
    first, other_phrase, other_image = grounding.bin_logits(
        torch.zeros(3, 4, dtype=torch.int64), memory, tokens=tokens
    )
    assert (first - other_phrase).abs().max() > 0.01
    assert (first - other_image).abs().max() > 0.01


def test_a_start_from_pre_training_copies_encoder_and_decoder(blip: Blip) -> None:
    model = BlipGrounding.from_blip(blip, image_size_px=32)
    pairs = [
        (model.vision, blip.vision),
        (model.text_encoder, blip.text_encoder),
        (model.multimodal_encoder, blip.text_encoder),
        (model.text_decoder, blip.text_decoder),
        (model.lm_head, blip.lm_head),
    ]
    for part, source in pairs:
        for (name, copy), (_, original) in zip(
            part.named_parameters(), source.named_parameters(), strict=True
        ):
            assert torch.equal(copy, original), name
    assert not {id(p) for p in model.parameters()} & {id(p) for p in blip.parameters()}
    counted = sum(parameter.numel() for part, _ in pairs for parameter in part.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == counted  # nothing shared


def test_a_start_from_pre_training_may_take_larger_images(blip: Blip) -> None:
    model = BlipGrounding.from_blip(blip, image_size_px=48)
    assert model.config.vision.image_size_px == 48
    assert model.vision.config == model.config.vision
    assert model.see(torch.randn(2, 3, 48, 48)).for_boxes.layers[0][0].shape[2] == 37
    assert blip.vision.positions.shape[1] == 17


def test_images_and_texts_of_different_width_are_refused(config: BlipConfig) -> None:
    text = dataclasses.replace(config.text, width=32)
    with pytest.raises(ValueError, match="image tokens are 64 wide and text tokens 32"):
        BlipGrounding(dataclasses.replace(config, text=text))
