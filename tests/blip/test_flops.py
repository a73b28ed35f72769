"""Operations counted from the sizes are those that torch counts in the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig, TextConfig
from capfilt_blip.flops import (
    caption_flops,
    image_flops,
    image_vector_flops,
    itc_flops,
    itm_flops,
    linear_flops,
    memory_flops,
    reading_flops,
)


def shallow(config: BlipConfig) -> BlipConfig:
    """The same widths in two layers: the counter is slow, and what layers do is alike."""
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=2),
        text=dataclasses.replace(config.text, depth=2),
    )


TINY = BlipConfig.tiny(vocab_size=120, image_size_px=32, width=32, text_depth=2)
BOTH = pytest.mark.parametrize(
    "config", [shallow(BlipConfig.base()), shallow(BlipConfig.large()), TINY]
)


def counted(work: Callable[[], object]) -> int:
    # On "meta" nothing is computed and no filler rows are added; the counter knows plain products.
    with (
        torch.device("meta"),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        work()
    return int(counter.get_total_flops())


def built(kind: type[BlipCaptioner] | type[BlipMatcher], config: BlipConfig):
    with torch.device("meta"):
        return kind(config).eval()


def pixels(config: BlipConfig) -> torch.Tensor:
    side = config.vision.image_size_px
    return torch.empty(1, 3, side, side, device="meta")


@BOTH
def test_an_image_and_its_keys_and_values_are_counted_to_the_last_operation(config: BlipConfig):
    model = built(BlipCaptioner, config)
    assert counted(lambda: model.vision(pixels(config))) == image_flops(config.vision)
    tokens = torch.empty(1, config.vision.num_tokens, config.vision.width, device="meta")
    found = counted(lambda: model.text_decoder.project_memory(tokens))
    assert found == memory_flops(config)


@BOTH
def test_captions_of_different_lengths_are_counted_to_the_last_operation(config: BlipConfig):
    def write(new_tokens: int, model: BlipCaptioner) -> None:
        tokens = torch.empty(1, config.vision.num_tokens, config.vision.width)
        memory = model.text_decoder.project_memory(tokens)
        hidden, cache = model.text_decoder.read_prompt(
            [0] * 4, num_texts=1, num_tokens=4 + new_tokens, memory=memory
        )
        for position in range(4, 3 + new_tokens):
            model.token_logits(hidden)
            ids = torch.zeros(1, 1, dtype=torch.int64)
            hidden = model.text_decoder.step(ids, position=position, cache=cache, memory=memory)
        model.token_logits(hidden)

    model = built(BlipCaptioner, config)
    prompt = caption_flops(config, prompt_tokens=4, new_tokens=[])
    shared = memory_flops(config) + prompt
    alone = [counted(lambda n=n: write(n, model)) - shared for n in (1, 2, 5)]
    assert caption_flops(config, prompt_tokens=4, new_tokens=[1, 2, 5]) == prompt + sum(alone)


@BOTH
def test_a_text_is_counted_to_the_last_operation_but_for_idle_queries(config: BlipConfig):
    model = built(BlipMatcher, config)
    ids = torch.zeros(1, 20, dtype=torch.int64, device="meta")
    mask = torch.ones_like(ids, dtype=torch.bool)
    tokens = torch.empty(1, config.vision.num_tokens, config.vision.width, device="meta")
    memory = model.text_encoder.project_memory(tokens)
    # One product gives queries, keys and values; the last layer needs the first query only.
    idle = linear_flops(19, config.text.width, config.text.width)
    itm = counted(lambda: model.itm_logits(ids, mask, memory)) - itm_flops(config, num_tokens=20)
    itc = counted(lambda: model.text_vectors(ids, mask)) - itc_flops(config, num_tokens=20)
    assert itm in (0, idle)
    assert itc in (0, idle)
    assert counted(lambda: model.image_vectors(tokens)) == image_vector_flops(config)


def test_the_paper_size_takes_the_known_operations():
    base = BlipConfig.base()
    token = caption_flops(base, prompt_tokens=4, new_tokens=[20]) - caption_flops(
        base, prompt_tokens=4, new_tokens=[19]
    )
    assert image_flops(base.vision) / 1e9 == pytest.approx(111.0, abs=0.05)
    assert memory_flops(base) / 1e9 == pytest.approx(16.3, abs=0.05)
    assert token / 1e9 == pytest.approx(0.268, abs=0.002)


def test_a_longer_vocabulary_costs_one_column_per_token_drawn():
    text = TextConfig(vocab_size=1001)
    wider = dataclasses.replace(BlipConfig.base(), text=text)
    base = dataclasses.replace(wider, text=dataclasses.replace(text, vocab_size=1000))
    drawn = [3, 4]
    difference = caption_flops(wider, prompt_tokens=2, new_tokens=drawn) - caption_flops(
        base, prompt_tokens=2, new_tokens=drawn
    )
    assert difference == 7 * 2 * 768


@pytest.mark.parametrize("config", [BlipConfig.base(), BlipConfig.tiny(vocab_size=100)])
def test_a_folded_read_is_counted_to_the_last_operation(config: BlipConfig) -> None:
    model = built(BlipCaptioner, config)
    tokens = torch.empty(1, config.vision.num_tokens, config.vision.width, device="meta")
    ids = torch.zeros(1, 3, dtype=torch.int64, device="meta")
    mask = torch.ones_like(ids, dtype=torch.bool)
    decoder = model.text_decoder
    folded = counted(lambda: decoder.decode(ids, mask, decoder.memory_for(tokens, num_queries=3)))
    memory = decoder.project_memory(tokens)
    plain = counted(lambda: decoder.decode(ids, mask, memory))
    assert folded - plain == reading_flops(config, num_queries=3)


def test_many_queries_have_keys_and_values_made_for_them() -> None:
    config = BlipConfig.base()
    assert reading_flops(config, num_queries=100) == memory_flops(config)
    assert reading_flops(config, num_queries=20) < memory_flops(config) / 2
