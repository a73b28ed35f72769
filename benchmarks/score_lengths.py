"""What padding texts to their own length saves in scoring, at full size.

python benchmarks/score_lengths.py [--images 4] [--tokens 12] [--repeats 4] [--json FILE]

ViT-B at 384 px with random weights, two texts an image. Beside today's `Matcher` stands what it did
before: both texts of each image in one pass, padded to 35 tokens. The two take turns; one thread,
time of that thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.flops import image_flops, itc_flops, itm_flops, memory_flops
from capfilt_blip.tasks.match_rows import MAX_TEXT_TOKENS, TEXT_LENGTHS
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise

TEXTS_PER_IMAGE = 2
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # each a token of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Fastest runs of a batch; the ratio is of padded to bucketed."""

    bucketed_s: float
    padded_s: float
    image_alone_s: float  # the image encoder, in both
    ratio: float
    median_ratio: float
    text_ratio: float  # with the image encoder left out
    largest_difference: float  # of ITM probabilities
    bucketed_gflop: float  # of an image and its texts
    padded_gflop: float


@torch.inference_mode()
def padded_scores(
    model: BlipMatcher, tokenizer: Tokenizer, pixels: Tensor, texts: list[str]
) -> tuple[list[float], list[float]]:
    """ITM probabilities and cosines, all texts padded to MAX_TEXT_TOKENS and in one pass."""
    embeds = model.vision(normalise(pixels))
    vectors = model.image_vectors(embeds)
    memory = model.text_encoder.project_memory(embeds)
    read = tokenizer.encode(texts, first="enc", max_tokens=MAX_TEXT_TOKENS, pad_to=MAX_TEXT_TOKENS)
    itm = model.itm_logits(read.ids, read.mask, memory).softmax(-1)[:, 1]
    lone = read.ids.clone()
    lone[:, 0] = tokenizer.cls_id
    cosines = model.text_vectors(lone, read.mask) * vectors.repeat_interleave(TEXTS_PER_IMAGE, 0)
    return itm.tolist(), cosines.sum(-1).tolist()


def gflop(config: BlipConfig, length: int) -> float:
    """Of one image and its texts, each padded to a length."""
    text = itm_flops(config, num_tokens=length) + itc_flops(config, num_tokens=length)
    total = image_flops(config.vision) + memory_flops(config) + TEXTS_PER_IMAGE * text
    return total / 1e9


def measure(*, num_images: int, num_tokens: int, repeats: int) -> Result:
    """Time both in turns; the first turn warms up and is dropped."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([], vocab_size=200)
    model = BlipMatcher(BlipConfig.base()).eval()
    matcher = Matcher(model, tokenizer)
    shape = (num_images, 384, 384, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    texts = [
        " ".join(LETTERS[(i + j) % 26] for j in range(num_tokens - 2))
        for i in range(num_images * TEXTS_PER_IMAGE)
    ]
    lists = [texts[i : i + TEXTS_PER_IMAGE] for i in range(0, len(texts), TEXTS_PER_IMAGE)]
    times: dict[str, list[float]] = {"bucketed": [], "padded": [], "image": []}
    for _ in range(repeats + 1):
        began = time.thread_time()
        found = matcher.score(pixels, lists, batch_size=num_images)
        after_bucketed = time.thread_time()
        before, _ = padded_scores(model, tokenizer, torch.from_numpy(pixels), texts)
        after_padded = time.thread_time()
        with torch.inference_mode():
            model.vision(normalise(torch.from_numpy(pixels)))
        times["image"].append(time.thread_time() - after_padded)
        times["bucketed"].append(after_bucketed - began)
        times["padded"].append(after_padded - after_bucketed)
    ours, theirs, image = (times[name][1:] for name in ("bucketed", "padded", "image"))
    now = [itm_prob or 0.0 for score in found for itm_prob in score.itm_prob]
    length = next(length for length in TEXT_LENGTHS if length >= num_tokens)
    return Result(
        bucketed_s=min(ours),
        padded_s=min(theirs),
        image_alone_s=min(image),
        ratio=min(theirs) / min(ours),
        median_ratio=statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        text_ratio=(min(theirs) - min(image)) / (min(ours) - min(image)),
        largest_difference=max(abs(a - b) for a, b in zip(now, before, strict=True)),
        bucketed_gflop=gflop(model.config, length),
        padded_gflop=gflop(model.config, MAX_TEXT_TOKENS),
    )


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(num_images=options.images, num_tokens=options.tokens, repeats=options.repeats)
    for name, value in asdict(result).items():
        print(f"{name:20} {value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
