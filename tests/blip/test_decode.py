from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capfilt_blip.blip import BlipCaptioner
from capfilt_blip.decode import Generated, Limits, generate_greedy, generate_sampled
from capfilt_blip.sampling import Sampling

PROMPT = [0, 5, 6]  # the first id is replaced by [DEC]
SEP = 3


def embeds(count: int = 3) -> Tensor:
    return torch.randn(count, 17, 64)


def prompt_of(captioner: BlipCaptioner) -> list[int]:
    return [captioner.config.bos_token_id, *PROMPT[1:]]


def sampled(captioner: BlipCaptioner, images: Tensor, **limits: float) -> Generated:
    return generate_sampled(
        captioner,
        captioner.text_decoder.project_memory(images),
        prompt_ids=prompt_of(captioner),
        row_keys=range(2 * len(images)),
        limits=Limits(**{"max_new_tokens": 8, **limits}),
        sampling=Sampling(),
    )


@torch.no_grad()
def test_greedy_equals_reading_the_whole_text_again_for_each_token(
    captioner: BlipCaptioner,
) -> None:
    images = embeds()
    limits = Limits(min_new_tokens=0, max_new_tokens=6)
    kv = captioner.text_decoder.project_memory(images)
    found = generate_greedy(captioner, kv, prompt_ids=prompt_of(captioner), limits=limits)
    ids = torch.tensor(prompt_of(captioner)).repeat(3, 1)
    for _ in range(6):
        logits = captioner.lm_logits(ids, torch.ones_like(ids, dtype=torch.bool), kv)[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    for row, count in enumerate(found.num_tokens):
        assert torch.equal(found.token_ids[row, :count], ids[row, 3 : 3 + count])


@torch.no_grad()
def test_a_logprob_is_that_of_the_unchanged_model(captioner: BlipCaptioner) -> None:
    images = embeds()
    captioner.lm_head.bias.data[SEP] += 5
    found = sampled(captioner, images, repetition_penalty=1.5, max_new_tokens=20)
    assert found.num_tokens.unique().numel() > 1  # some caption ended before another
    kv = captioner.text_decoder.project_memory(images)
    ids = torch.cat([torch.tensor(prompt_of(captioner)).repeat(6, 1), found.token_ids], 1)
    logits = captioner.lm_logits(ids, torch.ones_like(ids, dtype=torch.bool), kv)
    of_tokens = logits.log_softmax(-1)[:, 2:-1].gather(2, found.token_ids[:, :, None])[:, :, 0]
    for row, count in enumerate(found.num_tokens):
        assert found.logprobs[row].item() == pytest.approx(
            of_tokens[row, :count].sum().item(), rel=1e-4
        )


def test_after_sep_there_is_only_padding(captioner: BlipCaptioner) -> None:
    captioner.lm_head.bias.data[SEP] = captioner.lm_head.bias.data.max() + 4
    found = sampled(captioner, embeds())
    for ids, count in zip(found.token_ids, found.num_tokens, strict=True):
        assert not ids[count:].any()
        assert SEP not in ids[: count - 1]


@pytest.mark.parametrize("least", [0, 1, 4])
def test_a_caption_has_at_least_the_tokens_asked_for(captioner: BlipCaptioner, least: int) -> None:
    captioner.lm_head.bias.data[SEP] = 1e4
    found = sampled(captioner, embeds(), min_new_tokens=least)
    assert found.num_tokens.tolist() == [least + 1] * 6


def test_a_caption_has_at_most_the_tokens_asked_for(captioner: BlipCaptioner) -> None:
    captioner.lm_head.bias.data[SEP] = -1e4
    assert sampled(captioner, embeds(), max_new_tokens=5).num_tokens.tolist() == [5] * 6


def test_the_loop_ends_when_all_captions_have(captioner: BlipCaptioner) -> None:
    captioner.lm_head.bias.data[SEP] = 1e4
    assert sampled(captioner, embeds()).token_ids.shape == (6, 2)


def test_a_high_repetition_penalty_repeats_no_token(captioner: BlipCaptioner) -> None:
    captioner.lm_head.bias.data[:] = 50  # all logits positive: a penalty divides them
    limits = Limits(max_new_tokens=8, repetition_penalty=1e6)
    prompt = prompt_of(captioner)
    memory = captioner.text_decoder.project_memory(embeds())
    found = generate_greedy(captioner, memory, prompt_ids=prompt, limits=limits)
    for ids, count in zip(found.token_ids, found.num_tokens, strict=True):
        used = prompt + ids[:count].tolist()
        assert len(set(used)) == len(used)


def test_a_text_longer_than_the_positions_is_refused(captioner: BlipCaptioner) -> None:
    with pytest.raises(ValueError, match="make 73 tokens; this model has positions for 64"):
        sampled(captioner, embeds(), max_new_tokens=70)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"min_new_tokens": 5, "max_new_tokens": 5}, "min_new_tokens is 5 and max_new_tokens is 5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0"),
    ],
)
def test_impossible_limits_are_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Limits(**wrong)
