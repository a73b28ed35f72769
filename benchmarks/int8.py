"""What int8 on a CPU gains and what it costs: time beside transformers, and answers beside float32.

PYTHONPATH=.:model python benchmarks/int8.py [--repeats 4] [--scenes 300] [--skip-speed]

Speed: ViT-B at 384 px with random weights, ours in int8 and transformers in float32 in turns, one
thread, time of that thread. Answers: the miniature's captioner and filter, which are trained, on
scenes whose truth is known; each scene has one true and one false text.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.blip_speed import Case, measure
from benchmarks.peers import caption_pair, config_of, quiet_transformers, random_texts, score_pair
from capfilt.miniature.grammar import corrupt, describe
from capfilt.miniature.render import render
from capfilt.miniature.truth import is_true
from capfilt.miniature.world import Scene, sample_scene
from capfilt_blip.int8 import quantise
from capfilt_blip.tasks.captioner import Caption, Captioner
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tasks.placement import NumberFormat

MIN_ITM_PROB = 0.5
"""The filter's rule, as in `select.min_itm_prob`."""


def speed_cases(folder: Path) -> Iterator[Case]:
    """The captioning cases of `blip_speed`, and its first scoring case."""
    config, tokenizer = config_of("base")
    side = config.vision.image_size_px
    pixels = torch.randn(8, 3, side, side)
    captions = caption_pair(config, tokenizer, folder / "captioner")
    quantise(captions.ours)
    yield Case(
        name="caption 8 images, 1 each",
        ours=lambda: captions.greedy(pixels),
        theirs=lambda: captions.their_greedy(pixels),
        tolerance=None,
    )
    yield Case(
        name="caption 1 image, 10 drawn",
        ours=lambda: captions.drawn(pixels[:1], num_captions=10).token_ids,
        theirs=lambda: captions.their_drawn(pixels[:1], num_captions=10),
        tolerance=None,
    )
    scores = score_pair(config, tokenizer, folder / "matcher")
    quantise(scores.ours)
    ids = random_texts(config, 8)
    yield Case(
        name="score 4 images, 2 texts each",
        ours=lambda: scores.itm(pixels[:4], ids),
        theirs=lambda: scores.their_itm(pixels[:4], ids),
        tolerance=None,
    )


def print_speed(*, repeats: int) -> None:
    """Measure each case and print a row."""
    print(f"{'':<32} {'int8':>9} {'theirs':>9} {'ratio':>6}  median (range)")
    with tempfile.TemporaryDirectory() as folder:
        for case in speed_cases(Path(folder)):
            found = measure(case, repeats=repeats)
            span = f"{min(found.ratios):.2f}-{max(found.ratios):.2f}"
            print(
                f"{found.name:<32} {found.ours_s * 1e3:>6.0f} ms {found.theirs_s * 1e3:>6.0f} ms "
                f"{found.ratio:>6.2f}  {statistics.median(found.ratios):.2f} ({span})",
                flush=True,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A scene, a text that is true of it, and one that is not."""

    scene: Scene
    true_text: str
    false_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the two models say in one number format."""

    true_probs: Tensor  # (N,) ITM probability of each true text
    false_probs: Tensor  # (N,)
    captions: list[Caption]


def draw_examples(num: int) -> list[Example]:
    """Draw scenes that the models may or may not have seen, with texts made for this."""
    rng = random.Random("int8")
    scenes = [sample_scene(rng) for _ in range(num)]
    return [
        Example(scene=scene, true_text=describe(scene, rng), false_text=corrupt(scene, rng))
        for scene in scenes
    ]


def ask(weights: Path, examples: Sequence[Example], *, dtype: NumberFormat) -> Answers:
    """Let both models of the miniature look at every scene."""
    captioner = Captioner.from_pretrained(weights / "captioner", dtype=dtype)
    matcher = Matcher.from_pretrained(weights / "filter", dtype=dtype)
    probs = matcher.match(
        _pictures(examples, side_px=matcher.image_size_px),
        [[example.true_text, example.false_text] for example in examples],
    )
    true_probs, false_probs = torch.tensor(probs, dtype=torch.float64).unbind(1)
    pictures = _pictures(examples, side_px=captioner.image_size_px)
    return Answers(
        true_probs=true_probs,
        false_probs=false_probs,
        captions=captioner.greedy(pictures, max_new_tokens=40),
    )


def print_answers(examples: Sequence[Example], exact: Answers, rounded: Answers) -> None:
    """Say how far the answers in int8 are from those in float32, and from the truth."""
    before = torch.cat([exact.true_probs, exact.false_probs])
    after = torch.cat([rounded.true_probs, rounded.false_probs])
    agree = (before >= MIN_ITM_PROB) == (after >= MIN_ITM_PROB)
    apart = (before - after).abs()
    pairs = list(zip(exact.captions, rounded.captions, strict=True))
    same = sum(a.text == b.text for a, b in pairs)
    print(f"ITM decisions that agree: {int(agree.sum())} of {len(agree)}")
    print(f"ITM probabilities apart: mean {apart.mean():.4f}, largest {apart.max():.4f}")
    print(f"greedy captions that are the same: {same} of {len(pairs)}")
    for name, answers in (("float32", exact), ("int8", rounded)):
        told = zip(answers.captions, examples, strict=True)
        num_true = sum(is_true(caption.text, example.scene) is True for caption, example in told)
        under_curve = area(answers.true_probs, answers.false_probs)
        print(
            f"{name}: ITM area under the curve {under_curve:.4f}, "
            f"right decisions {_num_right(answers)} of {len(agree)}, "
            f"captions that are true {num_true} of {len(pairs)}"
        )


def area(true_probs: Tensor, false_probs: Tensor) -> float:
    """Return the chance that a true text scores above a false one; equals count half."""
    ahead = true_probs[:, None] - false_probs[None, :]
    return float((ahead > 0).double().mean() + (ahead == 0).double().mean() / 2)


def _num_right(answers: Answers) -> int:
    kept, dropped = answers.true_probs >= MIN_ITM_PROB, answers.false_probs < MIN_ITM_PROB
    return int(kept.sum() + dropped.sum())


def _pictures(examples: Sequence[Example], *, side_px: int) -> list[Image.Image]:
    return [render(example.scene, side_px=side_px) for example in examples]


@torch.inference_mode()
def main() -> None:
    """Print the speed, then the answers."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--repeats", type=int, default=4)
    options.add_argument("--scenes", type=int, default=300)
    options.add_argument("--skip-speed", action="store_true")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quiet_transformers()
    if not chosen.skip_speed:
        print_speed(repeats=chosen.repeats)
    examples = draw_examples(chosen.scenes)
    with as_file(files("capfilt.miniature") / "weights") as weights:
        exact = ask(weights, examples, dtype="float32")
        print_answers(examples, exact, ask(weights, examples, dtype="int8"))


if __name__ == "__main__":
    main()
