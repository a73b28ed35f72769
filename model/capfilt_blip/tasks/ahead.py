"""The image encoder one batch ahead of the decoder, on a CUDA stream of its own.

Encoding is bound by what a GPU computes, decoding by what it moves and by the host that launches
it: side by side both are faster. On a CPU there is nothing to gain, and nothing is done ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from capfilt_blip.attention import Memory
from capfilt_blip.graphs import tensors_of


def one_ahead(
    batches: Iterable[Tensor], encode: Callable[[Tensor], Memory], device: torch.device
) -> Iterator[Memory]:
    """Encode batches; on a GPU the next one is begun before the present one is handed out.

    Args:
        batches: of images, (B, S, S, 3) uint8.
        encode: what to do with each, without gradients.
        device: of the model.

    Yields:
        What each batch became, in order.
    """
    if device.type != "cuda":
        for batch in batches:
            with torch.inference_mode():
                memory = encode(batch)
            yield memory
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
    waiting: tuple[Memory, torch.cuda.Event] | None = None
    for batch in batches:
        begun = _encoded_on(side, batch, encode)
        if waiting is not None:
            yield _handed_over(*waiting, device=device)
        waiting = begun
    if waiting is not None:
        yield _handed_over(*waiting, device=device)


@torch.inference_mode()
def _encoded_on(
    side: torch.cuda.Stream, batch: Tensor, encode: Callable[[Tensor], Memory]
) -> tuple[Memory, torch.cuda.Event]:
    side.wait_stream(torch.cuda.current_stream(side.device))
    with torch.cuda.stream(side):
        memory = encode(batch)
        return memory, side.record_event()


def _handed_over(memory: Memory, done: torch.cuda.Event, *, device: torch.device) -> Memory:
    present = torch.cuda.current_stream(device)
    present.wait_event(done)
    for tensor in tensors_of(memory):
        tensor.record_stream(present)  # or its memory could be given away while it is read
    return memory
