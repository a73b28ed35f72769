"""What captioning and scoring cost, in operations counted: free of noise, and true of every device.

ViT-B at 384 px. The bounds on arithmetic leave about 1 % over what must be computed: the image
111.0 GFLOP, its keys and values 16.3, a token 0.27. For the same work transformers 5.23 takes 198
and 263.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.decode import Limits, Writing


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


def one_caption_of_twenty_tokens() -> None:
    model = BlipCaptioner(BlipConfig.base()).eval()
    embeds = model.vision(torch.empty(1, 3, 384, 384))
    memory = model.text_decoder.memory_for(embeds, num_queries=20)
    hidden, cache = model.text_decoder.read_prompt([0], num_texts=1, num_tokens=20, memory=memory)
    for position in range(1, 20):
        model.token_logits(hidden)
        ids = torch.zeros(1, 1, dtype=torch.int64)
        hidden = model.text_decoder.step(ids, position=position, cache=cache, memory=memory)
    model.token_logits(hidden)


def test_one_caption_needs_no_keys_and_values() -> None:
    # 111.0 for the image and 0.25 a token; the folded reads are 5.6, keys and values 16.3.
    assert 120 < giga_flops(one_caption_of_twenty_tokens) <= 124


class KernelCounter(TorchDispatchMode):
    """Counts calls that compute something: no views, no empty tensors."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        makes_view = any(
            result.alias_info is not None and not result.alias_info.is_write
            for result in op._schema.returns
        )
        self.count += not makes_view and "empty" not in op._schema.name
        return op(*args, **(kwargs or {}))


def likeliest(logits: Tensor, step: int) -> Tensor:
    return logits.argmax(-1)


@torch.inference_mode()
def test_a_step_is_at_most_220_kernels() -> None:
    # transformers 5.23: 357. On the meta device, as a GPU would run it: CPUs have paths of their
    # own for a single query.
    with torch.device("meta"):
        model = BlipCaptioner(BlipConfig.base()).eval()
        memory = model.text_decoder.project_memory(torch.empty(8, 577, 768))
    writing = Writing(model, memory, [1], num_texts=8, limits=Limits())
    writing.begin()
    for step in range(2):
        writing.write(step, likeliest)
    with KernelCounter() as counter:
        writing.write(2, likeliest)
    assert 190 < counter.count <= 220
