"""The captured decoding loop asks nothing of the host, and writes what the plain loop writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capfilt_blip.attention import Memory
from capfilt_blip.blip import BlipCaptioner
from capfilt_blip.config import BlipConfig, TextConfig, VisionConfig
from capfilt_blip.decode import Generated, Limits, Writing, generate_sampled
from capfilt_blip.graphs import CapturedWriting, copied, tensors_of
from capfilt_blip.sampling import Sampling, sample_from_likeliest

CONFIG = BlipConfig(
    vision=VisionConfig(
        image_size_px=32, patch_size_px=8, width=32, depth=1, num_heads=2, mlp_width=64
    ),
    text=TextConfig(
        vocab_size=30_524, width=32, depth=2, num_heads=2, mlp_width=64, image_width=32
    ),
)
LIMITS = Limits(min_new_tokens=2, max_new_tokens=6, repetition_penalty=1.1)
SAMPLING = Sampling(top_p=0.5, top_k=50, temperature=0.7)
PROMPT = [5, 6, 7]


class HostTensors(TorchDispatchMode):
    """Names the operations that touch a tensor of the host; one that reads a value raises."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = op(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        if any(tensor.is_cpu for tensor in tensors):
            self.found.append(str(op))
        return out


@pytest.mark.parametrize("num_queries", [18, 300])
@torch.inference_mode()
def test_what_is_captured_touches_no_tensor_of_the_host(num_queries: int) -> None:
    # The meta device stands for the GPU: a copy from or to the host cannot be captured.
    with torch.device("meta"):
        model = BlipCaptioner(CONFIG).eval()
        memory = model.text_decoder.memory_for(torch.empty(2, 17, 32), num_queries=num_queries)
        keys = torch.empty(4, dtype=torch.int64)
    writing = Writing(model, memory, PROMPT, num_texts=4, limits=LIMITS)

    def draw(logits: Tensor, step: int) -> Tensor:
        return sample_from_likeliest(logits, row_keys=keys, step=step, sampling=SAMPLING)[0]

    with HostTensors() as host:
        writing.begin()
        for step in range(3):
            writing.write(step, draw)
    assert host.found == []


@pytest.mark.parametrize("num_queries", [18, 300])
def test_a_copied_memory_shares_what_the_memory_shares_and_nothing_with_it(
    num_queries: int,
) -> None:
    decoder = BlipCaptioner(CONFIG).eval().text_decoder
    memory = decoder.memory_for(torch.randn(2, 17, 32), num_queries=num_queries)
    own = copied(memory)
    theirs = {tensor.data_ptr() for tensor in tensors_of(memory)}
    assert len(tensors_of(own)) == len(tensors_of(memory))
    assert not theirs & {tensor.data_ptr() for tensor in tensors_of(own)}
    pairs = zip(tensors_of(own), tensors_of(memory), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def on_gpu(device: str) -> tuple[BlipCaptioner, Iterator[Memory]]:
    """A model, and memories of two images each, all unlike."""
    torch.manual_seed(0)
    model = BlipCaptioner(CONFIG).eval().to(device)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    decoder = model.text_decoder
    embeds = (torch.randn(2, 17, 32, device=device) for _ in range(9))
    return model, (decoder.memory_for(some, num_queries=18) for some in embeds)


def drawn(writing: CapturedWriting, memory: Memory, *, prompt_ids: list[int]) -> Generated:
    return writing.sampled(
        memory, prompt_ids=prompt_ids, row_keys=[1, 2, 3, 4], limits=LIMITS, sampling=SAMPLING
    )


def check_writes_what_the_plain_loop_writes(device: str) -> None:
    with torch.inference_mode():
        model, memories = on_gpu(device)
        writing = CapturedWriting(model)
        for _ in range(3):
            memory = next(memories)
            plain = generate_sampled(
                model, memory, prompt_ids=PROMPT, row_keys=[1, 2, 3, 4], limits=LIMITS,
                sampling=SAMPLING,
            )  # fmt: skip
            assert torch.equal(drawn(writing, memory, prompt_ids=PROMPT).token_ids, plain.token_ids)


@pytest.mark.gpu
def test_a_captured_loop_writes_what_the_plain_loop_writes() -> None:
    check_writes_what_the_plain_loop_writes("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_a_loop_is_captured_on_the_device_of_its_model() -> None:
    check_writes_what_the_plain_loop_writes("cuda:1")


@pytest.mark.gpu
def test_memory_may_be_pinned_while_a_loop_is_captured() -> None:
    done = threading.Event()

    def pin() -> None:
        while not done.is_set():
            torch.empty(2**20, dtype=torch.uint8, pin_memory=True)

    pinning = threading.Thread(target=pin)
    pinning.start()
    try:
        check_writes_what_the_plain_loop_writes("cuda")
    finally:
        done.set()
        pinning.join()


@pytest.mark.gpu
def test_ever_new_prompts_do_not_fill_the_device() -> None:
    with torch.inference_mode():
        model, memories = on_gpu("cuda")
        writing, memory = CapturedWriting(model), next(memories)
        filled = []
        for length in range(1, 13):
            drawn(writing, memory, prompt_ids=[5] * length)
            filled.append(torch.cuda.memory_allocated())
    assert filled[-1] < 1.2 * filled[5]
