"""Captioning and scoring beside transformers, from pixels on the device to answers on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu_rows.bench import Bench
from benchmarks.gpu_rows.rows import NO_TARGET, Comparison, Job, Target
from benchmarks.peers import NUM_TOKENS, CaptionPair, ScorePair, random_texts
from capfilt_blip.config import BlipConfig
from capfilt_blip.flops import (
    caption_flops,
    image_flops,
    itm_flops,
    memory_flops,
    reading_flops,
)

NUM_CHECKED = 4
"""Images whose answers are compared."""
NUM_TEXTS = 2
NUM_DRAWN = 10


def jobs(bench: Bench) -> Iterator[Job]:
    """Rows of the base model, then those of the large one."""
    base, large = bench.scale.base, bench.scale.large
    yield Job(
        group="caption",
        name="caption, 1 greedy caption an image",
        run=lambda: caption(bench, base, target=Target(ratio=2.5, rate=2_600)),
    )
    yield Job(
        group="caption",
        name=f"caption, {NUM_DRAWN} drawn captions an image",
        run=lambda: caption_drawn(bench, base, target=Target(rate=25_000)),
    )
    yield Job(
        group="score",
        name=f"score, {NUM_TEXTS} texts an image",
        run=lambda: score(bench, base, target=Target(ratio=5, rate=3_300)),
    )
    yield Job(
        group="large",
        name="ViT-L: caption, 1 greedy caption an image",
        run=lambda: caption(bench, large, target=NO_TARGET),
    )
    yield Job(
        group="large",
        name=f"ViT-L: score, {NUM_TEXTS} texts an image",
        run=lambda: score(bench, large, target=NO_TARGET),
    )
    yield Job(
        group="large",
        name="ViT-L: both models in turn",
        run=lambda: both(bench, large, target=Target(ratio=3, rate=600)),
    )


@torch.inference_mode()
def caption(bench: Bench, size: str, *, target: Target) -> Comparison:
    """One caption of each image."""
    pair, pixels = bench.captioners(size, bench.dtype), pixels_of(bench, size)
    answers = greedy_agreement(bench, size)
    found = bench.compare(
        lambda count: pair.greedy(pixels[:count]),
        lambda count: pair.their_greedy(pixels[:count]),
        gflops=caption_gflops(pair.ours.config, 1),
        target=target,
    )
    return dataclasses.replace(found, answers=answers)


@torch.inference_mode()
def caption_drawn(bench: Bench, size: str, *, target: Target) -> Comparison:
    """Several drawn captions of each image."""
    pair, pixels = bench.captioners(size, bench.dtype), pixels_of(bench, size)
    answers = logprob_agreement(bench, size)
    found = bench.compare(
        lambda count: pair.drawn(pixels[:count], num_captions=NUM_DRAWN),
        lambda count: pair.their_drawn(pixels[:count], num_captions=NUM_DRAWN).cpu(),
        unit="captions",
        per_image=NUM_DRAWN,
        gflops=caption_gflops(pair.ours.config, NUM_DRAWN),
        target=target,
    )
    return dataclasses.replace(found, answers=answers)


@torch.inference_mode()
def score(bench: Bench, size: str, *, target: Target) -> Comparison:
    """ITM of two texts of each image."""
    pair, pixels = bench.matchers(size, bench.dtype), pixels_of(bench, size)
    ids = texts_of(bench, pair, len(pixels))
    answers = itm_agreement(bench, size)
    found = bench.compare(
        lambda count: pair.itm(pixels[:count], ids[: count * NUM_TEXTS]),
        lambda count: pair.their_itm(pixels[:count], ids[: count * NUM_TEXTS]),
        gflops=score_gflops(pair.ours.config, NUM_TEXTS),
        target=target,
    )
    return dataclasses.replace(found, answers=answers)


@torch.inference_mode()
def both(bench: Bench, size: str, *, target: Target) -> Comparison:
    """A caption of each image, then ITM of two texts: both stages, each encoding the image."""
    writers, judges = bench.captioners(size, bench.dtype), bench.matchers(size, bench.dtype)
    pixels = pixels_of(bench, size)
    ids = texts_of(bench, judges, len(pixels))

    def ours(count: int) -> None:
        writers.greedy(pixels[:count])
        judges.itm(pixels[:count], ids[: count * NUM_TEXTS])

    def theirs(count: int) -> None:
        writers.their_greedy(pixels[:count])
        judges.their_itm(pixels[:count], ids[: count * NUM_TEXTS])

    config = writers.ours.config
    gflops = caption_gflops(config, 1) + score_gflops(config, NUM_TEXTS)
    found = bench.compare(ours, theirs, gflops=gflops, target=target)
    return dataclasses.replace(found, answers="as of the rows of each")


def caption_gflops(config: BlipConfig, num_captions: int) -> float:
    """What captions of one image need, in 10**9 operations."""
    lengths = [NUM_TOKENS] * num_captions
    reading = reading_flops(config, num_queries=1 + sum(lengths))
    return (
        image_flops(config.vision)
        + reading
        + caption_flops(config, prompt_tokens=1, new_tokens=lengths)
    ) / 1e9


def score_gflops(config: BlipConfig, num_texts: int) -> float:
    """What ITM of one image's texts needs, in 10**9 operations."""
    image = image_flops(config.vision) + memory_flops(config)
    return (image + num_texts * itm_flops(config, num_tokens=NUM_TOKENS)) / 1e9


def pixels_of(bench: Bench, size: str) -> Tensor:
    """Images of a model's size."""
    config, _ = bench.config(size)
    return bench.pixels(config.vision.image_size_px)


def texts_of(bench: Bench, pair: ScorePair, num_images: int) -> Tensor:
    """Texts of images, on the device."""
    return random_texts(pair.ours.config, num_images * NUM_TEXTS).to(bench.device)


def greedy_agreement(bench: Bench, size: str) -> str:
    """Compare greedy tokens in float32, where they must be alike, and in the dtype.

    Raises:
        ValueError: they are not alike in float32.
    """

    def alike(pair: CaptionPair, dtype: torch.dtype) -> float:
        pixels = pixels_of(bench, size)[:NUM_CHECKED].to(dtype)
        return float((pair.greedy(pixels) == pair.their_greedy(pixels)).double().mean())

    exact = alike(bench.captioners(size, torch.float32), torch.float32)
    # Not all: two logits may be equal but for the last bit, and then the rest of a caption parts.
    if exact < 0.95:
        raise ValueError(f"only {exact:.1%} of the greedy tokens agree in float32")
    rounded = alike(bench.captioners(size, bench.dtype), bench.dtype)
    return f"tokens equal: {exact:.1%} float32, {rounded:.1%} {bench.dtype_name}"


def logprob_agreement(bench: Bench, size: str) -> str:
    """Let transformers judge the captions we drew, in float32 and in the dtype.

    Raises:
        ValueError: in float32 it finds them more or less likely than we do.
    """

    def apart(dtype: torch.dtype) -> float:
        pair = bench.captioners(size, dtype)
        pixels = pixels_of(bench, size)[:NUM_CHECKED].to(dtype)
        drawn = pair.drawn(pixels, num_captions=2)
        judged = pair.their_logprobs(pixels, drawn.token_ids)
        return float((judged - drawn.logprobs).abs().max())

    exact = apart(torch.float32)
    if not exact < 1e-2:  # of a sum over 20 tokens, about -200
        raise ValueError(f"log-probabilities differ by {exact} in float32")
    rounded = apart(bench.dtype)
    return f"log-probability within {exact:.0e} float32, {rounded:.0e} {bench.dtype_name}"


def itm_agreement(bench: Bench, size: str) -> str:
    """Compare ITM probabilities in float32 and in the dtype.

    Raises:
        ValueError: they differ in float32.
    """

    def apart(dtype: torch.dtype) -> float:
        pair = bench.matchers(size, dtype)
        pixels = pixels_of(bench, size)[:NUM_CHECKED].to(dtype)
        ids = texts_of(bench, pair, NUM_CHECKED)
        return float((pair.itm(pixels, ids) - pair.their_itm(pixels, ids)).abs().max())

    exact = apart(torch.float32)
    if not exact < 1e-4:
        raise ValueError(f"ITM probabilities differ by {exact} in float32")
    return f"ITM within {exact:.0e} float32, {apart(bench.dtype):.0e} {bench.dtype_name}"
