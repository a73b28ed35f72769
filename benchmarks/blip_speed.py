"""Captioning and scoring beside transformers: the same weights and inputs, in one process.

python benchmarks/blip_speed.py [--size base|tiny] [--repeats 4] [--json FILE]

Each case runs ours and theirs in turns, checks that both give the same answer, and reports the
ratio of their time to ours: of the fastest runs, and the median and range over the turns. One
thread, time of that thread, so that a neighbour on the machine costs little. Weights are random:
they change nothing about the work, since texts are kept from ending early.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor

from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import save_captioner, save_matcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.decode import Limits, generate_greedy, generate_sampled
from capfilt_blip.sampling import Sampling, sample
from capfilt_blip.tokenizer import Tokenizer

NUM_TOKENS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Two ways to do one thing."""

    name: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    tolerance: float | None  # of the two answers; None where both draw at random


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured of a case."""

    name: str
    ours_s: float
    theirs_s: float
    ratio: float
    ratios: list[float]
    largest_difference: float | None


def measure(case: Case, *, repeats: int) -> Result:
    """Run both in turns; the first turn warms up and is dropped.

    Raises:
        ValueError: the answers differ.
    """
    difference = _difference(case)
    times = [(_seconds(case.ours), _seconds(case.theirs)) for _ in range(repeats)]
    ours, theirs = (min(column) for column in zip(*times, strict=True))
    return Result(
        name=case.name,
        ours_s=ours,
        theirs_s=theirs,
        ratio=theirs / ours,
        ratios=[b / a for a, b in times],
        largest_difference=difference,
    )


def _difference(case: Case) -> float | None:
    mine, peer = case.ours(), case.theirs()
    if case.tolerance is None:
        return None
    difference = float((mine.double() - peer.double()).abs().max())
    if not difference <= case.tolerance:
        raise ValueError(f"{case.name}: the answers differ by {difference}")
    return difference


def _seconds(work: Callable[[], Tensor]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def caption_cases(config: BlipConfig, tokenizer: Tokenizer, folder: Path) -> Iterator[Case]:
    """One caption of each of 8 images, greedily; and 10 drawn captions of one image."""
    model = BlipCaptioner(config).eval()
    save_captioner(folder, model=model, tokenizer=tokenizer)
    peer = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    side = config.vision.image_size_px
    pixels = torch.randn(8, 3, side, side)
    limits = Limits(min_new_tokens=NUM_TOKENS - 1, max_new_tokens=NUM_TOKENS)
    fixed = {"min_new_tokens": NUM_TOKENS, "max_new_tokens": NUM_TOKENS}

    def greedy() -> Tensor:
        memory = model.text_decoder.project_memory(model.vision(pixels))
        prompt = [config.bos_token_id]
        ids = generate_greedy(model, memory, prompt_ids=prompt, limits=limits).token_ids
        return ids[:, : NUM_TOKENS - 1]

    def their_greedy() -> Tensor:
        return peer.generate(pixel_values=pixels, **fixed)[:, 1:NUM_TOKENS]

    def drawn() -> Tensor:
        memory = model.text_decoder.project_memory(model.vision(pixels[:1]))
        return generate_sampled(
            model,
            memory,
            prompt_ids=[config.bos_token_id],
            row_keys=list(range(10)),
            limits=limits,
            sampling=Sampling(top_p=0.9),
        ).token_ids

    def their_drawn() -> Tensor:
        return peer.generate(
            pixel_values=pixels[:1],
            do_sample=True,
            top_p=0.9,
            top_k=0,
            num_return_sequences=10,
            **fixed,
        )

    yield Case(name="caption 8 images, 1 each", ours=greedy, theirs=their_greedy, tolerance=0.0)
    yield Case(name="caption 1 image, 10 drawn", ours=drawn, theirs=their_drawn, tolerance=None)


def score_cases(config: BlipConfig, tokenizer: Tokenizer, folder: Path) -> Iterator[Case]:
    """ITM of 4 images with 2 texts each, and of one with 11."""
    model = BlipMatcher(config).eval()
    save_matcher(folder, model=model, tokenizer=tokenizer)
    peer = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    side = config.vision.image_size_px
    for num_images, num_texts in ((4, 2), (1, 11)):
        pixels = torch.randn(num_images, 3, side, side)
        ids = torch.randint(5, config.text.vocab_size - 5, (num_images * num_texts, NUM_TOKENS))
        ids[:, 0] = config.cls_token_id  # what transformers reads

        def ours(pixels: Tensor = pixels, ids: Tensor = ids) -> Tensor:
            memory = model.text_encoder.project_memory(model.vision(pixels))
            mask = torch.ones_like(ids, dtype=torch.bool)
            return model.itm_logits(ids, mask, memory).softmax(-1)

        def theirs(pixels: Tensor = pixels, ids: Tensor = ids) -> Tensor:
            repeated = pixels.repeat_interleave(len(ids) // len(pixels), dim=0)
            scores: Tensor = peer(
                input_ids=ids, pixel_values=repeated, attention_mask=torch.ones_like(ids)
            ).itm_score
            return scores.softmax(-1)

        name = f"score {num_images} images, {num_texts} texts each"
        yield Case(name=name, ours=ours, theirs=theirs, tolerance=1e-5)


def sampler_cases() -> Iterator[Case]:
    """Drawing the next token of 8 and of 64 rows from a nucleus of 30,524 tokens."""
    warpers = transformers.LogitsProcessorList([transformers.TopPLogitsWarper(top_p=0.9)])
    for num_rows in (8, 64):
        # As peaked as a trained model's: nuclei of 2 to 30 tokens.
        logits = torch.randn(num_rows, 30_524) * 2
        logits.scatter_add_(1, torch.randint(30_524, (num_rows, 40)), torch.rand(num_rows, 40) * 16)
        keys = torch.arange(num_rows)

        def ours(logits: Tensor = logits, keys: Tensor = keys) -> Tensor:
            return sample(logits, row_keys=keys, step=0, sampling=Sampling(top_p=0.9))

        def theirs(logits: Tensor = logits) -> Tensor:
            scores = warpers(torch.zeros(len(logits), 1, dtype=torch.int64), logits)
            return torch.multinomial(scores.softmax(-1), 1)

        yield Case(name=f"draw {num_rows} tokens", ours=ours, theirs=theirs, tolerance=None)


def config_of(size: str) -> tuple[BlipConfig, Tokenizer]:
    """The sizes, and a tokenizer whose vocabulary has as many tokens."""
    config = BlipConfig.base() if size == "base" else BlipConfig.tiny(vocab_size=1_000)
    special = {"[PAD]": config.pad_token_id, "[CLS]": config.cls_token_id}
    special |= {"[SEP]": config.sep_token_id, "[UNK]": config.cls_token_id - 1}
    special |= {"[MASK]": config.sep_token_id + 1}
    special |= {"[DEC]": config.bos_token_id, "[ENC]": config.enc_token_id}
    taken = set(special.values())
    words = {f"w{i}": i for i in range(config.text.vocab_size) if i not in taken}
    return config, Tokenizer(special | words)


@torch.inference_mode()
def main() -> None:
    """Measure every case and print a table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--size", choices=["base", "tiny"], default="base")
    options.add_argument("--repeats", type=int, default=4)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config, tokenizer = config_of(chosen.size)
    results: list[Result] = []
    print(f"{'':<32} {'ours':>9} {'theirs':>9} {'ratio':>6}  median (range)    difference")
    with tempfile.TemporaryDirectory() as folder:
        for cases in (
            sampler_cases(),
            caption_cases(config, tokenizer, Path(folder) / "captioner"),
            score_cases(config, tokenizer, Path(folder) / "matcher"),
        ):
            for case in cases:
                result = measure(case, repeats=chosen.repeats)
                results.append(result)
                print(line_of(result), flush=True)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{chosen.size} size, one thread, {versions}, {platform.machine()}")
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in results], indent=1) + "\n")


def line_of(result: Result) -> str:
    """One line of the table."""
    span = f"{min(result.ratios):.2f}-{max(result.ratios):.2f}"
    difference = (
        "drawn" if result.largest_difference is None else f"{result.largest_difference:.0e}"
    )
    return (
        f"{result.name:<32} {result.ours_s * 1e3:>6.0f} ms {result.theirs_s * 1e3:>6.0f} ms "
        f"{result.ratio:>6.2f}  {statistics.median(result.ratios):.2f} ({span})    {difference}"
    )


if __name__ == "__main__":
    main()
