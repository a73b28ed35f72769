from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from capfilt_blip.attention import MultiHead, SelfHeads
from capfilt_blip.blip import Blip
from capfilt_blip.config import BlipConfig
from capfilt_blip.text import TextStack
from capfilt_blip.vqa import BlipVqa


def three_maps(
    heads: MultiHead | SelfHeads, tokens: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(heads, MultiHead):
        return heads.query(tokens), heads.key(memory), heads.value(memory)
    query, key, value = heads.qkv(tokens).chunk(3, -1)
    return query, key, value


def slow_heads(
    heads: MultiHead | SelfHeads, tokens: Tensor, memory: Tensor, visible: Tensor
) -> Tensor:
    """One head after the other, of one text: tokens (L, D), memory (M, Dm), visible (L, M)."""
    size = heads.out.in_features // heads.num_heads
    query, key, value = three_maps(heads, tokens, memory)
    parts = []
    for head in range(heads.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / size**0.5
        parts.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value[:, part])
    return heads.out(torch.cat(parts, -1))


def slow_read(stack: TextStack, ids: Tensor, memory: Tensor, *, causal: bool) -> Tensor:
    """One text without padding, (L,); what it reads, (M, Dm)."""
    hidden = stack.embeddings(ids[None])[0]
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool)
    all_of_it = torch.ones(len(ids), len(memory), dtype=torch.bool)
    for layer in stack.layers:
        own, cross = layer.self_attention, layer.cross_attention
        mixed = slow_heads(own.heads, hidden, hidden, seen.tril() if causal else seen)
        hidden = own.norm(hidden + mixed)
        hidden = cross.norm(hidden + slow_heads(cross.heads, hidden, memory, all_of_it))
        hidden = layer.feed_forward(hidden)
    return hidden


def texts(first: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 60, mask.shape)
    ids[:, 0] = first
    return ids.masked_fill(~mask, 0), mask


def wide(config: BlipConfig) -> BlipConfig:
    """A config whose image tokens are wider than its text tokens, as in the large BLIP."""
    vision = dataclasses.replace(config.vision, width=96, num_heads=3)
    text = dataclasses.replace(config.text, image_width=96)
    return dataclasses.replace(config, vision=vision, text=text)


@torch.no_grad()
def test_logits_are_those_of_a_slow_version(vqa: BlipVqa) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    questions, question_mask = texts(vqa.config.enc_token_id, [6, 3, 4, 9])
    answers, mask = texts(vqa.config.bos_token_id, [3, 5, 2, 4, 5, 3, 2, 2])
    memory = vqa.text_encoder.project_memory(vqa.vision(pixels))
    found = vqa.lm_logits(answers, mask, vqa.read_questions(questions, question_mask, memory))
    for b in range(8):
        question = questions[b // 2][question_mask[b // 2]]
        image = vqa.vision(pixels[b // 4][None])[0]
        read = slow_read(vqa.text_encoder, question, image, causal=False)
        hidden = slow_read(vqa.text_decoder, answers[b][mask[b]], read, causal=True)
        torch.testing.assert_close(
            found[b][mask[b]], vqa.token_logits(hidden), atol=1e-3, rtol=1e-3
        )


@torch.no_grad()
def test_padding_of_a_question_changes_no_answer(vqa: BlipVqa) -> None:
    memory = vqa.text_encoder.project_memory(torch.randn(1, 17, 64))
    ids, mask = texts(vqa.config.enc_token_id, [5])
    answers, answer_mask = texts(vqa.config.bos_token_id, [4])
    exact = vqa.lm_logits(answers, answer_mask, vqa.read_questions(ids, mask, memory))
    padded = torch.cat([ids, torch.randint(5, 60, (1, 30))], 1)
    read = vqa.read_questions(padded, torch.arange(35)[None] < 5, memory)
    found = vqa.lm_logits(answers, answer_mask, read)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rows_fit_a_question_to_any_number_of_answers(vqa: BlipVqa) -> None:
    memory = vqa.text_encoder.project_memory(torch.randn(2, 17, 64))
    read = vqa.read_questions(*texts(vqa.config.enc_token_id, [5, 3]), memory)
    ids, mask = texts(vqa.config.bos_token_id, [4, 4, 4])
    found = vqa.lm_logits(ids, mask, read.rows(torch.tensor([0, 1, 1])))
    for answer, question in enumerate([0, 1, 1]):
        alone = vqa.lm_logits(ids[answer, None], mask[:1], read.rows(torch.tensor([question])))
        torch.testing.assert_close(found[answer, None], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_decoder_sees_the_image_through_the_question_only(vqa: BlipVqa) -> None:
    ids, mask = texts(vqa.config.enc_token_id, [5])
    one, two = (vqa.text_encoder.project_memory(torch.randn(1, 17, 64)) for _ in range(2))
    assert vqa.read_questions(ids, mask, one).layers[0][0].shape[2] == 5
    reads = [vqa.read_questions(ids, mask, memory).layers[0][0] for memory in (one, two)]
    assert not torch.allclose(reads[0], reads[1], atol=0.01)


def test_the_base_model_has_the_size_of_the_original() -> None:
    with torch.device("meta"):
        model = BlipVqa(BlipConfig.base().at_image_size(480))
    # mmpretrain's count for the original's checkpoint (configs/blip/metafile.yml).
    assert sum(p.numel() for p in model.parameters()) == 361_478_972


def test_a_start_from_pre_training_unties_encoder_and_decoder(blip: Blip) -> None:
    model = BlipVqa.from_blip(blip, image_size_px=32)
    assert count(model) == count(BlipVqa(blip.config))  # nothing is shared
    for part, source in (
        (model.text_encoder, blip.text_encoder),
        (model.text_decoder, blip.text_decoder),
        (model.lm_head, blip.lm_head),
        (model.vision, blip.vision),
    ):
        assert equal(part, source)
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in blip.parameters()
    }


def test_a_start_from_pre_training_takes_larger_images_and_drops_paths(blip: Blip) -> None:
    model = BlipVqa.from_blip(blip, image_size_px=48)
    assert model.vision(torch.randn(1, 3, 48, 48)).shape == (1, 37, 64)
    assert model.config.vision.drop_path == 0.1
    assert [layer.drop_path for layer in model.vision.layers] == [0, 0.1]
    assert (blip.config.vision.image_size_px, blip.vision.positions.shape[1]) == (32, 17)


def test_the_usual_start_is_at_480_px() -> None:
    config = BlipConfig.tiny(vocab_size=100, width=32, text_depth=1)
    assert BlipVqa.from_blip(Blip(config)).config.vision.image_size_px == 480


def test_what_read_wider_image_tokens_starts_anew_and_says_so(
    config: BlipConfig, caplog: pytest.LogCaptureFixture
) -> None:
    blip = Blip(wide(config))
    model = BlipVqa.from_blip(blip, image_size_px=32)
    assert "start anew in all 2 layers: they read questions, 64 wide" in caplog.text
    new = {
        f"layers.{layer}.cross_attention.heads.{part}.{kind}"
        for layer in range(2)
        for part in ("key", "value")
        for kind in ("weight", "bias")
    }
    taken = dict(blip.text_decoder.named_parameters())
    for name, parameter in model.text_decoder.named_parameters():
        assert name in new or torch.equal(parameter, taken[name])
    weight = model.text_decoder.layers[1].cross_attention.heads.key.weight
    assert weight.shape == (64, 64) and 0.015 < weight.std() < 0.025  # BERT's first weights
    assert model.text_decoder.config == BlipVqa(blip.config).text_decoder.config
    assert equal(model.text_encoder, blip.text_encoder)


def test_nothing_is_said_where_all_is_taken_over(
    blip: Blip, caplog: pytest.LogCaptureFixture
) -> None:
    BlipVqa.from_blip(blip, image_size_px=32)
    assert caplog.text == ""


def test_a_model_with_wider_image_tokens_answers(config: BlipConfig) -> None:
    model = BlipVqa.from_blip(Blip(wide(config)), image_size_px=32).eval()
    memory = model.text_encoder.project_memory(model.vision(torch.randn(1, 3, 32, 32)))
    read = model.read_questions(*texts(model.config.enc_token_id, [5]), memory)
    logits = model.lm_logits(*texts(model.config.bos_token_id, [3]), read)
    assert logits.shape == (1, 3, config.text.vocab_size)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def equal(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.named_parameters(), two.named_parameters(), strict=True)
    return all(a == b and torch.equal(p, q) for (a, p), (b, q) in pairs)
