"""The decoding loop as CUDA graphs: a few launches for a caption in place of thousands.

A step of the decoder is some 210 kernels, and a host needs longer to launch them than a GPU to run
them. A captured loop is one graph for each few steps; between graphs the host looks whether all
texts have ended. What it reads (memory, keys) is copied into tensors that stay in their place.

A graph cannot ask the host, so a captured draw looks at a short list of likely tokens only and
notes where that was not enough (`sampling.sample_from_likeliest`); such a batch is written again
without graphs, so that the result is always the exact one.

Letters: B texts, I memories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from capfilt_blip.attention import Memory, Source
from capfilt_blip.decode import Generated, Limits, Writer, Writing, generate_sampled
from capfilt_blip.sampling import Sampling, sample_from_likeliest

_STEPS_PER_GRAPH = 4
"""Asking whether all texts have ended makes host and GPU wait for each other."""

_WARM_UP_ROUNDS = 2
"""Libraries make their plans and buffers in the first calls; capture wants them made."""

_LOOPS_KEPT = 4
"""Each holds a copy of its memory and the room its kernels need. A run asks for one shape; whoever
asks for ever new ones, by other prompts or batch sizes, would fill the device."""


class _Shape(NamedTuple):
    """What a captured loop is good for."""

    memory: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    num_texts: int
    prompt_ids: tuple[int, ...]
    limits: Limits
    sampling: Sampling | None  # None takes the likeliest tokens


class CapturedWriting:
    """Writes as `generate_greedy` and `generate_sampled` do, with loops captured at first use.

    Args:
        writer: in eval mode, on a CUDA device; its weights may not be moved afterwards.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._loops: dict[_Shape, _CapturedLoop] = {}

    def greedy(self, memory: Memory, *, prompt_ids: Sequence[int], limits: Limits) -> Generated:
        """Write the likeliest text about each memory; see `generate_greedy`."""
        keys = torch.zeros(len(memory), dtype=torch.int64, device=memory.device)
        generated = self._run(memory, keys, prompt_ids, limits=limits, sampling=None)
        assert generated is not None, "the likeliest token is always found"
        return generated

    def sampled(
        self,
        memory: Memory,
        *,
        prompt_ids: Sequence[int],
        row_keys: Sequence[int],
        limits: Limits,
        sampling: Sampling,
    ) -> Generated:
        """Draw texts; see `generate_sampled`."""
        if sampling.top_p < 1 or sampling.top_k:  # or every draw would need the whole vocabulary
            keys = torch.tensor(row_keys, dtype=torch.int64, device=memory.device)
            generated = self._run(memory, keys, prompt_ids, limits=limits, sampling=sampling)
            if generated is not None:
                return generated
        return generate_sampled(
            self._writer,
            memory,
            prompt_ids=prompt_ids,
            row_keys=row_keys,
            limits=limits,
            sampling=sampling,
        )

    def _run(
        self,
        memory: Memory,
        keys: Tensor,
        prompt_ids: Sequence[int],
        *,
        limits: Limits,
        sampling: Sampling | None,
    ) -> Generated | None:
        tensors = tensors_of(memory)
        shape = _Shape(
            memory=tuple(tuple(tensor.shape) for tensor in tensors),
            dtype=tensors[0].dtype,
            num_texts=len(keys),
            prompt_ids=tuple(prompt_ids),
            limits=limits,
            sampling=sampling,
        )
        if shape not in self._loops:
            for oldest in list(self._loops)[: 1 - _LOOPS_KEPT]:
                del self._loops[oldest]
            self._loops[shape] = _CapturedLoop(self._writer, memory, keys, shape)
        return self._loops[shape].run(memory, keys)


class _CapturedLoop:
    """The loop for one shape.

    Args:
        writer: in eval mode.
        memory: I memories, as an example.
        keys: (B,) int64, as an example.
        shape: of both, and what is asked for.
    """

    def __init__(self, writer: Writer, memory: Memory, keys: Tensor, shape: _Shape) -> None:
        self._memory, self._keys = copied(memory), keys.clone()
        self._sampling = shape.sampling
        self._fell_short = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
        self._writing = Writing(
            writer, self._memory, shape.prompt_ids, num_texts=len(keys), limits=shape.limits
        )
        self._graphs = self._captured()

    @torch.inference_mode()
    def run(self, memory: Memory, keys: Tensor) -> Generated | None:
        """Draw texts; None if a nucleus was larger than a graph looks."""
        for own, given in zip(tensors_of(self._memory), tensors_of(memory), strict=True):
            own.copy_(given)
        self._keys.copy_(keys)
        for graph in self._graphs:
            graph.replay()
            if self._writing.all_ended():
                break
        return None if self._fell_short.any() else self._writing.generated()

    @torch.inference_mode()
    def _captured(self) -> list[torch.cuda.CUDAGraph]:
        # torch makes streams on its present device. If that is not the model's, the kernels go
        # elsewhere and the graphs stay empty: every batch would get the captions of the first.
        with torch.cuda.device(self._keys.device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch gives it no types
            side.wait_stream(torch.cuda.current_stream())  # it has yet to copy memory and keys
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_ROUNDS):
                    for step in range(self._writing.limits.max_new_tokens):
                        self._write(step)
            torch.cuda.synchronize()
            return self._captured_on(side)

    def _captured_on(self, side: torch.cuda.Stream) -> list[torch.cuda.CUDAGraph]:
        pool, graphs = torch.cuda.graph_pool_handle(), []
        steps = range(self._writing.limits.max_new_tokens)
        for start in steps[::_STEPS_PER_GRAPH]:
            graph = torch.cuda.CUDAGraph()
            # What another thread does is not captured, and must not end the capture: pinning memory
            # for the next images is among the calls that would.
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                for step in steps[start : start + _STEPS_PER_GRAPH]:
                    self._write(step)
            graphs.append(graph)
        return graphs

    def _write(self, step: int) -> None:
        if step == 0:
            self._fell_short.zero_()
            self._writing.begin()
        self._writing.write(step, self._draw)

    def _draw(self, logits: Tensor, step: int) -> Tensor:
        if self._sampling is None:
            return logits.argmax(-1)
        drawn, is_exact = sample_from_likeliest(
            logits, row_keys=self._keys, step=step, sampling=self._sampling
        )
        self._fell_short |= self._writing.unfinished & ~is_exact
        return drawn


def tensors_of(memory: Memory) -> list[Tensor]:
    """Return the tensors that a memory consists of, each once."""
    layers: list[Source] = list(memory.layers)
    found = [t for layer in layers for t in ((layer,) if isinstance(layer, Tensor) else layer)]
    if memory.mask is not None:
        found.append(memory.mask)
    return list({id(tensor): tensor for tensor in found}.values())


def copied(memory: Memory) -> Memory:
    """Return a memory of the same structure whose tensors are its own."""
    own = {id(tensor): tensor.clone() for tensor in tensors_of(memory)}
    layers: list[Source] = [
        own[id(layer)] if isinstance(layer, Tensor) else (own[id(layer[0])], own[id(layer[1])])
        for layer in memory.layers
    ]
    return Memory(layers=layers, mask=None if memory.mask is None else own[id(memory.mask)])
