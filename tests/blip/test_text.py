from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt_blip.attention import Attention, Memory
from capfilt_blip.config import TextConfig
from capfilt_blip.text import LanguageModelHead, TextStack

CONFIG = TextConfig(
    vocab_size=50, width=32, depth=2, num_heads=2, mlp_width=64, max_positions=16, image_width=24
)


@pytest.fixture
def stack() -> TextStack:
    stack = TextStack(CONFIG).eval()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return stack


def texts(num_texts: int = 4, length: int = 6) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 50, (num_texts, length))
    return ids, torch.ones_like(ids, dtype=torch.bool)


def padded(ids: Tensor, mask: Tensor, *, with_id: int) -> tuple[Tensor, Tensor]:
    return F.pad(ids, (0, 3), value=with_id), F.pad(mask, (0, 3), value=False)


def test_attention_equals_torchs_own() -> None:
    ours = Attention(CONFIG, memory_width=24).eval()
    theirs = torch.nn.MultiheadAttention(32, 2, kdim=24, vdim=24, batch_first=True)
    for name in ("query", "key", "value"):
        getattr(theirs, f"{name[0]}_proj_weight").data = getattr(ours.heads, name).weight.data
    theirs.in_proj_bias.data = torch.cat(
        [getattr(ours.heads, name).bias for name in ("query", "key", "value")]
    ).data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = (
        ours.heads.out.weight.data,
        ours.heads.out.bias.data,
    )
    hidden, memory = torch.randn(3, 5, 32), torch.randn(3, 7, 24)
    expected = ours.norm(hidden + theirs(hidden, memory, memory)[0])
    torch.testing.assert_close(ours(hidden, source=ours.project(memory)), expected)


@pytest.mark.parametrize("mode", ["encode", "fuse", "decode"])
def test_padding_changes_no_output(stack: TextStack, mode: str) -> None:
    ids, mask = texts()
    image = [] if mode == "encode" else [stack.project_memory(torch.randn(4, 9, 24))]
    read = getattr(stack, mode)
    alone = read(ids, mask, *image)
    with_padding = read(*padded(ids, mask, with_id=7), *image)
    torch.testing.assert_close(with_padding[:, :6], alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["encode", "fuse", "decode"])
def test_what_stands_in_the_padding_does_not_matter(stack: TextStack, mode: str) -> None:
    ids, mask = texts()
    image = [] if mode == "encode" else [stack.project_memory(torch.randn(4, 9, 24))]
    outputs = [getattr(stack, mode)(*padded(ids, mask, with_id=i), *image)[:, :6] for i in (0, 9)]
    assert torch.equal(outputs[0], outputs[1])


def test_the_encoders_look_ahead_and_the_decoder_does_not(stack: TextStack) -> None:
    ids, mask = texts()
    other = ids.clone()
    other[:, -1] = 5 + (ids[:, -1] - 4) % 45
    image = stack.project_memory(torch.randn(4, 9, 24))
    assert not torch.equal(stack.encode(ids, mask)[:, 0], stack.encode(other, mask)[:, 0])
    assert not torch.equal(stack.fuse(ids, mask, image)[:, 0], stack.fuse(other, mask, image)[:, 0])
    before, after = stack.decode(ids, mask, image), stack.decode(other, mask, image)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


def test_only_the_unimodal_encoder_is_blind(stack: TextStack) -> None:
    ids, mask = texts()
    one, two = (stack.project_memory(torch.randn(4, 9, 24)) for _ in range(2))
    assert not torch.allclose(stack.fuse(ids, mask, one), stack.fuse(ids, mask, two))
    assert not torch.allclose(stack.decode(ids, mask, one), stack.decode(ids, mask, two))
    assert not torch.allclose(stack.fuse(ids, mask, one), stack.encode(ids, mask))


def test_texts_that_share_an_image_read_what_they_would_read_from_copies(stack: TextStack) -> None:
    ids, mask = texts(num_texts=6)
    embeds = torch.randn(2, 9, 24)
    shared = stack.fuse(ids, mask, stack.project_memory(embeds))
    copied = stack.fuse(ids, mask, stack.project_memory(embeds.repeat_interleave(3, 0)))
    torch.testing.assert_close(shared, copied)


@torch.no_grad()
@pytest.mark.parametrize("num_queries", [1, 2, 3, 20])
def test_the_place_in_the_batch_changes_no_bit_on_two_threads(num_queries: int) -> None:
    torch.set_num_threads(2)
    wide = dataclasses.replace(CONFIG, width=256, num_heads=4, image_width=256)
    attention = Attention(wide, memory_width=256).eval()
    hidden, memory = torch.randn(8, num_queries, 256), torch.randn(8, 65, 256)
    expected = attention(hidden, source=attention.project(memory))
    for _ in range(5):
        order = torch.randperm(8)
        found = attention(hidden[order], source=attention.project(memory[order]))
        assert torch.equal(found, expected[order])


@torch.no_grad()
@pytest.mark.parametrize("prompt_length", [1, 4])
def test_steps_give_what_reading_the_whole_text_gives(stack: TextStack, prompt_length: int) -> None:
    ids, mask = texts(length=7)
    image = stack.project_memory(torch.randn(2, 9, 24))
    whole = stack.decode(ids, mask, image)
    cache = stack.new_cache(num_texts=4, num_tokens=7)
    first = stack.step(ids[:, :prompt_length], position=0, cache=cache, memory=image)
    later = [
        stack.step(ids[:, i, None], position=i, cache=cache, memory=image)
        for i in range(prompt_length, 7)
    ]
    torch.testing.assert_close(torch.stack([first, *later], 1), whole[:, prompt_length - 1 :])


def test_dropout_is_for_training_only() -> None:
    stack = TextStack(dataclasses.replace(CONFIG, dropout=0.5))
    ids, mask = texts()
    stack.train()
    assert not torch.equal(stack.encode(ids, mask), stack.encode(ids, mask))
    stack.eval()
    assert torch.equal(stack.encode(ids, mask), stack.encode(ids, mask))


def test_a_twin_has_only_its_self_attention_to_itself(stack: TextStack) -> None:
    twin = stack.twin()
    own = {id(parameter) for parameter in stack.parameters()}
    not_shared = {name for name, p in twin.named_parameters() if id(p) not in own}
    assert not_shared == {name for name, _ in twin.named_parameters() if "self_attention" in name}


def test_the_language_model_head_ends_in_the_word_embeddings() -> None:
    head, words = LanguageModelHead(CONFIG), torch.randn(50, 32)
    hidden = torch.randn(3, 32)
    expected = head.norm(F.gelu(head.dense(hidden))) @ words.T + head.bias
    torch.testing.assert_close(head(hidden, words), expected)


@torch.no_grad()
def test_the_first_token_alone_is_what_the_whole_text_gives_there(stack: TextStack) -> None:
    ids, mask = texts(num_texts=6)
    mask[1, 4:] = False
    image = stack.project_memory(torch.randn(2, 9, 24))
    torch.testing.assert_close(stack.encode_first(ids, mask), stack.encode(ids, mask)[:, 0])
    torch.testing.assert_close(
        stack.fuse_first(ids, mask, image), stack.fuse(ids, mask, image)[:, 0]
    )


@torch.no_grad()
def test_a_prompt_read_once_serves_all_texts_of_an_image(stack: TextStack) -> None:
    image = stack.project_memory(torch.randn(2, 9, 24))
    hidden, cache = stack.read_prompt([7, 8, 9], num_texts=6, num_tokens=5, memory=image)
    own = stack.new_cache(num_texts=6, num_tokens=5)
    prompts = torch.tensor([[7, 8, 9]]).repeat(6, 1)
    expected = stack.step(prompts, position=0, cache=own, memory=image)
    torch.testing.assert_close(hidden, expected)
    torch.testing.assert_close(cache, own)


@torch.no_grad()
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("texts_each", [1, 3])
def test_tokens_read_as_they_are_give_what_keys_and_values_give(
    stack: TextStack, texts_each: int, with_mask: bool
) -> None:
    stack = stack.double()
    embeds = torch.randn(2, 9, 24, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[9], [5]]) if with_mask else None
    projected = stack.project_memory(embeds, mask=mask)
    folded = Memory(layers=[embeds] * len(stack.layers), mask=mask)
    ids, text_mask = texts(num_texts=2 * texts_each)
    expected = stack.decode(ids, text_mask, projected)
    torch.testing.assert_close(stack.decode(ids, text_mask, folded), expected)


def test_images_that_are_read_seldom_get_no_keys_and_values(stack: TextStack) -> None:
    embeds = torch.randn(3, 9, 24)
    seldom = stack.memory_for(embeds, num_queries=31)
    assert all(source is embeds for source in seldom.layers) and len(seldom) == 3
    assert isinstance(stack.memory_for(embeds, num_queries=32).layers[0], tuple)


@torch.no_grad()
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_tokens", [17, 65, 145])
def test_the_place_in_the_batch_changes_no_bit_of_a_folded_read(
    num_tokens: int, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    wide = dataclasses.replace(CONFIG, width=256, num_heads=4, image_width=256)
    attention = Attention(wide, memory_width=256).eval()
    hidden, tokens = torch.randn(8, 1, 256), torch.randn(8, num_tokens, 256)
    expected = attention(hidden, source=tokens)
    for _ in range(5):
        order = torch.randperm(8)
        assert torch.equal(attention(hidden[order], source=tokens[order]), expected[order])
