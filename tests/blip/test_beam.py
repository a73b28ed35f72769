from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capfilt_blip.attention import Memory
from capfilt_blip.beam import Beams, generate_beams
from capfilt_blip.blip import BlipCaptioner
from capfilt_blip.decode import Generated, Limits, generate_greedy

SEP = 3


def memory_of(captioner: BlipCaptioner, num_images: int = 3) -> Memory:
    return captioner.text_decoder.project_memory(torch.randn(num_images, 17, 64))


def prompt_of(captioner: BlipCaptioner) -> list[int]:
    return [captioner.config.bos_token_id, 5, 6]


def searched(
    captioner: BlipCaptioner,
    memory: Memory,
    *,
    num_beams: int = 3,
    length_penalty: float = 1.0,
    **limits: float,
) -> Generated:
    return generate_beams(
        captioner,
        memory,
        prompt_ids=prompt_of(captioner),
        limits=Limits(**{"max_new_tokens": 8, **limits}),  # type: ignore[arg-type]
        beams=Beams(num_beams=num_beams, length_penalty=length_penalty),
    )


@torch.no_grad()
def logprobs_of(captioner: BlipCaptioner, memory: Memory, ids: Tensor) -> Tensor:
    """(B, L, V), read as whole texts."""
    logits = captioner.lm_logits(ids, torch.ones_like(ids, dtype=torch.bool), memory)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
def test_as_many_beams_as_tokens_find_the_best_of_all_texts(
    captioner: BlipCaptioner, length_penalty: float
) -> None:
    captioner.lm_head.bias.data[SEP] += 9
    memory, size = memory_of(captioner, num_images=1), captioner.config.text.vocab_size
    prompts = torch.tensor(prompt_of(captioner)).repeat(size, 1)
    every = torch.cat([prompts, torch.arange(size)[:, None]], 1)
    first, second = logprobs_of(captioner, memory, every)[:, -2:].unbind(1)
    of_two = first[0, :, None] + second  # (first token, second token)
    of_two[SEP] = -torch.inf
    found = searched(
        captioner,
        memory,
        num_beams=size,
        length_penalty=length_penalty,
        min_new_tokens=0,
        max_new_tokens=2,
    )
    if first[0, SEP] > of_two.max() / 2**length_penalty:
        expected = [SEP]
    else:
        expected = [int(of_two.argmax()) // size, int(of_two.argmax()) % size]
    assert found.token_ids[0].tolist() == expected
    assert len(expected) == (1 if length_penalty == 0 else 2)  # both branches are tried


def test_one_beam_is_greedy(captioner: BlipCaptioner) -> None:
    captioner.lm_head.bias.data[SEP] += 4
    memory, limits = memory_of(captioner), Limits(min_new_tokens=2, max_new_tokens=8)
    greedy = generate_greedy(captioner, memory, prompt_ids=prompt_of(captioner), limits=limits)
    found = searched(captioner, memory, num_beams=1, min_new_tokens=2)
    assert torch.equal(found.token_ids, greedy.token_ids)
    assert torch.equal(found.num_tokens, greedy.num_tokens)
    torch.testing.assert_close(found.logprobs, greedy.logprobs)


def test_a_logprob_is_that_of_the_unchanged_model(captioner: BlipCaptioner) -> None:
    captioner.lm_head.bias.data[SEP] += 6
    memory = memory_of(captioner, num_images=5)
    found = searched(captioner, memory, repetition_penalty=1.5, length_penalty=0.5)
    ids = torch.cat([torch.tensor(prompt_of(captioner)).repeat(5, 1), found.token_ids], 1)
    of_all = logprobs_of(captioner, memory, ids)[:, 2:-1]
    of_tokens = of_all.gather(2, found.token_ids[:, :, None])[:, :, 0]
    assert found.num_tokens.unique().numel() > 1
    for row, count in enumerate(found.num_tokens):
        expected = of_tokens[row, :count].sum().item()
        assert found.logprobs[row].item() == pytest.approx(expected, rel=1e-4)


def test_more_beams_find_a_likelier_text_here(captioner: BlipCaptioner) -> None:
    memory = memory_of(captioner, num_images=8)
    one, four = (searched(captioner, memory, num_beams=n).logprobs.sum() for n in (1, 4))
    assert four > one


def test_the_beams_of_an_image_share_its_keys_and_values(captioner: BlipCaptioner) -> None:
    memory, read = memory_of(captioner), set()
    for layer in captioner.text_decoder.layers:
        layer.cross_attention.register_forward_pre_hook(
            lambda _module, _args, kwargs: read.update(
                part.data_ptr() for part in kwargs["source"]
            ),
            with_kwargs=True,
        )
    searched(captioner, memory)
    assert read == {part.data_ptr() for kv in memory.layers for part in kv}


def test_a_text_does_not_depend_on_its_batch_mates(captioner: BlipCaptioner) -> None:
    captioner.lm_head.bias.data[SEP] += 5
    memory = memory_of(captioner, num_images=6)
    whole = searched(captioner, memory)
    order = torch.tensor([4, 0, 0, 2, 2, 1])
    mixed = searched(captioner, memory.rows(order))
    assert whole.num_tokens.unique().numel() > 1  # some go on after others have ended
    for place, image in enumerate(order):
        count = whole.num_tokens[image]
        assert mixed.num_tokens[place] == count
        assert torch.equal(mixed.token_ids[place, :count], whole.token_ids[image, :count])
        assert mixed.logprobs[place] == whole.logprobs[image]


def test_after_sep_there_is_only_padding(captioner: BlipCaptioner) -> None:
    captioner.lm_head.bias.data[SEP] += 5
    found = searched(captioner, memory_of(captioner, num_images=6))
    assert found.token_ids.shape[1] == found.num_tokens.max()
    for ids, count in zip(found.token_ids, found.num_tokens, strict=True):
        assert not ids[count:].any()
        assert SEP not in ids[: count - 1]


@pytest.mark.parametrize("least", [0, 1, 4])
def test_a_text_has_at_least_the_tokens_asked_for(captioner: BlipCaptioner, least: int) -> None:
    captioner.lm_head.bias.data[SEP] = 1e4
    found = searched(captioner, memory_of(captioner), min_new_tokens=least)
    assert found.num_tokens.tolist() == [least + 1] * 3


def test_a_text_has_at_most_the_tokens_asked_for(captioner: BlipCaptioner) -> None:
    captioner.lm_head.bias.data[SEP] = -1e4
    found = searched(captioner, memory_of(captioner), max_new_tokens=5)
    assert found.num_tokens.tolist() == [5] * 3
    assert found.token_ids.shape == (3, 5)


def test_a_high_repetition_penalty_repeats_no_token(captioner: BlipCaptioner) -> None:
    found = searched(captioner, memory_of(captioner), repetition_penalty=1e6)
    for ids, count in zip(found.token_ids, found.num_tokens, strict=True):
        used = prompt_of(captioner) + ids[:count].tolist()
        assert len(set(used)) == len(used)


def test_a_text_longer_than_the_positions_is_refused(captioner: BlipCaptioner) -> None:
    with pytest.raises(ValueError, match="make 73 tokens; this model has positions for 64"):
        searched(captioner, memory_of(captioner), max_new_tokens=70)


def test_no_beams_are_refused() -> None:
    with pytest.raises(ValueError, match="num_beams is 0; it must be 1 or more"):
        Beams(num_beams=0)
