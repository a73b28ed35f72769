"""An experiment: the linear maps of the image encoder in 8-bit floats, on GPUs that have them.

Weights are float8_e4m3 with a scale per output; activations with one scale, which a first batch
sets. It would be kept only if decisions agree with bfloat16's in 99.5 % of cases. Random weights
say little of that: they have no outliers, and no text is plainly right or wrong. The shipped tiny
weights say nothing of speed: their maps are too small for 8-bit products to pay.

Letters: B batch, P image tokens, D width in, O width out.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu_rows.bench import Bench
from benchmarks.gpu_rows.rows import Figures, Job
from benchmarks.gpu_rows.speed import NUM_TEXTS, pixels_of, texts_of
from benchmarks.peers import CaptionPair, ScorePair
from capfilt_blip.vision import VisionTransformer

LARGEST = 448.0
"""Of float8_e4m3fn (arXiv:2209.05433, table 1)."""

Quantise = Callable[[Tensor, Tensor], Tensor]


class Float8Linear(nn.Module):
    """A linear map whose product is taken in 8 bits.

    Args:
        linear: in bfloat16.
        quantise: makes activations 8-bit.
    """

    def __init__(self, linear: nn.Linear, quantise: Quantise) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True) / LARGEST  # (O, 1)
        self.weight = (weight / scale).to(torch.float8_e4m3fn)
        self.weight_scale = scale.t().contiguous()  # (1, O)
        self.bias = linear.bias
        self.scale: Tensor | None = None  # of activations
        self._quantise = quantise

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, P, D) to (B, P, O)."""
        rows = tokens.reshape(-1, tokens.shape[-1])
        if self.scale is None:
            self.scale = rows.float().abs().amax() / LARGEST
        mixed = torch._scaled_mm(
            self._quantise(rows, self.scale),
            self.weight.t(),
            scale_a=self.scale.expand(len(rows), 1).contiguous(),
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return mixed.view(*tokens.shape[:-1], -1)


def quantised(rows: Tensor, scale: Tensor) -> Tensor:
    """Make activations 8-bit; what is larger than the first batch's largest is cut off."""
    return (rows / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def in_float8(vision: VisionTransformer, quantise: Quantise) -> VisionTransformer:
    """Return a copy of an image encoder with 8-bit linear maps."""
    replaced = copy.deepcopy(vision)
    for layer in replaced.layers:
        for block in (layer.attention, layer.mlp):
            for name, linear in list(block.named_children()):
                setattr(block, name, Float8Linear(linear, quantise))
    return replaced


def jobs(bench: Bench) -> Iterator[Job]:
    """Two ways to quantise."""
    ways: dict[str, Callable[[], Quantise]] = {
        "quantised op by op": lambda: quantised,
        "quantised by one compiled kernel": lambda: torch.compile(quantised, dynamic=False),
    }
    for name, make in ways.items():
        yield Job(
            group="fp8",
            name=f"fp8 image encoder, {name}",
            run=functools.partial(compared, bench, make),
            needs_gpu=True,
        )


@torch.inference_mode()
def compared(bench: Bench, make_quantise: Callable[[], Quantise]) -> Figures:
    """Speed of the image encoder, and how many decisions and tokens stay."""
    if torch.cuda.get_device_capability() < (8, 9):
        raise ValueError("this device has no 8-bit floats")
    writers = bench.captioners(bench.scale.base, torch.bfloat16)
    judges = bench.matchers(bench.scale.base, torch.bfloat16)
    pixels = pixels_of(bench, bench.scale.base)[: bench.scale.fixed_batch].bfloat16()
    quantise = make_quantise()
    small = in_float8(writers.ours.vision, quantise)
    rates = {}
    for name, vision in (("bfloat16", writers.ours.vision), ("fp8", small)):
        seconds = bench.seconds_if_it_fits(functools.partial(_encode, vision, pixels), len(pixels))
        assert seconds is not None, "a batch of this size does not fit"
        rates[name] = len(pixels) / seconds
    speeds = {f"image encoder, {name}": f"{rate:,.0f} images/s" for name, rate in rates.items()}
    tokens = {"greedy tokens equal": f"{_tokens_equal(writers, small, pixels):.1%}"}
    return {
        **speeds,
        **tokens,
        **_decisions(bench, judges, in_float8(judges.ours.vision, quantise)),
    }


def _encode(vision: VisionTransformer, pixels: Tensor, count: int) -> Tensor:
    tokens: Tensor = vision(pixels[:count])
    return tokens


def _tokens_equal(pair: CaptionPair, small: VisionTransformer, pixels: Tensor) -> float:
    before, whole = pair.greedy(pixels), pair.ours.vision
    try:
        pair.ours.vision = small
        return float((before == pair.greedy(pixels)).double().mean())
    finally:
        pair.ours.vision = whole


def _decisions(bench: Bench, pair: ScorePair, small: VisionTransformer) -> Figures:
    """How many texts fall on the same side of 0.5, and of the middle one's probability."""
    pixels = pixels_of(bench, bench.scale.base)[: bench.scale.fixed_batch].bfloat16()
    ids, whole = texts_of(bench, pair, len(pixels)), pair.ours.vision
    assert len(ids) == NUM_TEXTS * len(pixels)
    before = pair.itm(pixels, ids)[:, 1]
    try:
        pair.ours.vision = small
        after = pair.itm(pixels, ids)[:, 1]
    finally:
        pair.ours.vision = whole
    bounds = {"0.5": 0.5, "the median": float(before.median())}
    alike = {
        f"ITM decisions equal, bound {name}": f"{_same_side(before, after, bound):.1%}"
        for name, bound in bounds.items()
    }
    return alike | {"ITM probability within": f"{float((before - after).abs().max()):.0e}"}


def _same_side(before: Tensor, after: Tensor, bound: float) -> float:
    return float(((before > bound) == (after > bound)).double().mean())
