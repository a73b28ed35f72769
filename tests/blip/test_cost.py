"""What captioning and scoring cost, in operations counted: free of noise, and true of every device.

ViT-B at 384 px. The bounds leave about 1 % over what must be computed: the image 111.0 GFLOP, its
keys and values 16.3, a token 0.27. For the same work transformers 5.23 takes 198 and 263.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig


def giga_flops(work: Callable[[], object]) -> float:
    # As plain products: the counter knows no fused attention. Without memory: nothing is computed.
    with (
        torch.device("meta"),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        work()
    return float(counter.get_total_flops()) / 1e9


def four_captions_of_twenty_tokens() -> None:
    model = BlipCaptioner(BlipConfig.base()).eval()
    decoder = model.text_decoder
    memory = decoder.project_memory(model.vision(torch.empty(1, 3, 384, 384)))
    hidden, cache = decoder.read_prompt([0] * 4, num_texts=4, num_tokens=24, memory=memory)
    for position in range(4, 23):
        model.token_logits(hidden)
        ids = torch.zeros(4, 1, dtype=torch.int64)
        hidden = decoder.step(ids, position=position, cache=cache, memory=memory)
    model.token_logits(hidden)


def two_texts_of_twenty_tokens() -> None:
    model = BlipMatcher(BlipConfig.base()).eval()
    memory = model.text_encoder.project_memory(model.vision(torch.empty(1, 3, 384, 384)))
    ids = torch.zeros(2, 20, dtype=torch.int64)
    model.itm_logits(ids, torch.ones_like(ids, dtype=torch.bool), memory)


@pytest.mark.parametrize(
    ("work", "least", "most"),
    [(four_captions_of_twenty_tokens, 147, 150), (two_texts_of_twenty_tokens, 134, 137)],
)
def test_the_work_is_little_more_than_must_be_done(
    work: Callable[[], object], least: float, most: float
) -> None:
    assert least < giga_flops(work) <= most
