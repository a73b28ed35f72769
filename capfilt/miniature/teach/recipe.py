"""The recipe: how long and how fast the parts of the training go, and the parts themselves.

The two finetunings run side by side in processes of their own, on fixed numbers of threads, so that
the same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from capfilt.miniature.teach.batches import Style, filter_batches, true_batches
from capfilt.miniature.teach.lessons import Lessons, corpus, make_lessons
from capfilt.miniature.teach.sight import SIDE_PX, new_blip, teach_sight
from capfilt.miniature.teach.vectors import teach_vectors
from capfilt_blip.blip import BlipMatcher
from capfilt_blip.checkpoint import load_blip, save_model
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.captioner import captioner_finetuning
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.optimizer import CosineSchedule, OptimizerSettings
from capfilt_blip.train.pretraining import matcher_finetuning
from capfilt_blip.train.settings import CaptionerSettings, MatcherSettings, StepMetrics

logger = logging.getLogger(__name__)

_MAX_TOKENS = 35  # what `Matcher` reads, special tokens included
_MAX_CAPTION_WORDS = 19  # of a caption that fits into the default of 20 new tokens, [SEP] included
_NUM_PROMPT_TOKENS = 3
_NUM_NEGATIVES = 3  # per true pair: a hard text, a hard picture, a distractor
_LOG_EVERY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how fast; the defaults made the shipped weights."""

    num_groups: int = 12_000
    """Groups of four pictures to learn from."""
    num_sight_steps: int = 1_200
    num_first_steps: int = 900
    """Captioning of pictures with one thing, fully described: where is what?"""
    num_captioning_steps: int = 2_000
    """Captioning of all pictures."""
    num_captioner_steps: int = 1_200
    num_first_filter_steps: int = 500
    """ITC and ITM of pictures with one thing."""
    num_filter_steps: int = 1_600
    """ITC and ITM of all pictures."""
    num_last_filter_steps: int = 1_500
    """The same, most texts being full descriptions."""
    num_vector_steps: int = 6_000
    """Image vectors, for dedup."""
    peak_learning_rate: float = 7e-4
    """Of all but sight; at twice as much the text side did not learn to look at the picture."""


def teach(out_dir: Path, *, seed: int = 0, plan: Plan | None = None) -> None:
    """Train captioner and filter and write them to `captioner/` and `filter/`, as float16.

    Args:
        out_dir: made if it does not exist. `blip/` in it is the model before finetuning.
        seed: of lessons, weights and order.
        plan: how long and how fast.
    """
    plan = plan or Plan()
    out_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    lessons = make_lessons(str(seed), num_groups=plan.num_groups, side_px=SIDE_PX)
    _pretrain(lessons, out_dir, seed=seed, plan=plan)
    context = get_context("spawn")
    parts = [
        context.Process(target=part, args=(lessons, out_dir, seed, plan))
        for part in (_teach_captioner, _teach_filter)
    ]
    for process in parts:
        process.start()
    for process in parts:
        process.join()
        assert process.exitcode == 0, f"a finetuning ended with exit code {process.exitcode}"


def log_to_stderr() -> None:
    """Show the progress of the training, in this process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


def _pretrain(lessons: Lessons, out_dir: Path, *, seed: int, plan: Plan) -> None:
    """Teach a new BLIP to see and to caption, and write it to `blip/`."""
    rng = random.Random(f"pretrain/{seed}")
    tokenizer = Tokenizer.train(corpus(lessons, rng), vocab_size=256)
    model = new_blip(tokenizer, seed=seed)
    teach_sight(model.vision, lessons, num_steps=plan.num_sight_steps, rng=rng)
    parts = (
        (Style(max_things=1, full_share=1.0), plan.num_first_steps),
        (Style(full_share=0.5), plan.num_captioning_steps),
    )
    for style, num_steps in parts:
        settings = CaptionerSettings(
            optimizer=_optimizer(plan, num_steps),
            prompt="",
            max_tokens=_MAX_TOKENS,
            label_smoothing=0.0,
            seed=seed,
        )
        batches = true_batches(lessons, num_batches=num_steps, style=style, rng=rng)
        captioner = model.captioning()
        engine = captioner_finetuning(captioner, tokenizer=tokenizer, settings=settings)
        _log(engine.run(batches), what=f"captioning, {style}")
    save_model(out_dir / "blip", model=model, tokenizer=tokenizer)


def _teach_captioner(lessons: Lessons, out_dir: Path, seed: int, plan: Plan) -> None:
    """Finetune a captioner on short human texts."""
    _in_new_process(num_threads=1)
    model, tokenizer = load_blip(out_dir / "blip")
    captioner = model.captioner()
    num_steps = plan.num_captioner_steps
    settings = CaptionerSettings(
        optimizer=_optimizer(plan, num_steps),
        max_tokens=_MAX_TOKENS + _NUM_PROMPT_TOKENS,
        # Smoothing keeps a tenth of the mass for wrong words, and the nucleus would let some in.
        label_smoothing=0.0,
        seed=seed,
    )
    batches = true_batches(
        lessons,
        num_batches=num_steps,
        style=Style(full_share=0.0, max_words=_MAX_CAPTION_WORDS),
        rng=random.Random(f"captioner/{seed}"),
    )
    engine = captioner_finetuning(captioner, tokenizer=tokenizer, settings=settings)
    _log(engine.run(batches), what="captioner")
    save_model(out_dir / "captioner", model=captioner, tokenizer=tokenizer, dtype=torch.float16)


def _teach_filter(lessons: Lessons, out_dir: Path, seed: int, plan: Plan) -> None:
    """Finetune a matcher on siblings, and on texts that are known to be false."""
    _in_new_process(num_threads=2)
    model, tokenizer = load_blip(out_dir / "blip")
    # The encoder's own self-attention is untrained; the decoder's has learnt to read.
    decoder_state = model.text_decoder.state_dict()
    model.text_encoder.load_state_dict(decoder_state)
    matcher = model.matcher()
    rng = random.Random(f"filter/{seed}")
    parts = (
        (Style(max_things=1, full_share=0.6), plan.num_first_filter_steps),
        (Style(full_share=0.25), plan.num_filter_steps),
        # Only a full description says of each thing where it is, so only these make ITC, and with
        # it the image vectors, tell pictures apart in which one thing has moved.
        (Style(full_share=0.6), plan.num_last_filter_steps),
    )
    for style, num_steps in parts:
        settings = MatcherSettings(
            optimizer=_optimizer(plan, num_steps),
            # Within the batch alone: its siblings are the hardest negatives there are.
            contrast=ContrastSettings(momentum=None),
            max_tokens=_MAX_TOKENS,
            seed=seed,
        )
        batches = filter_batches(lessons, num_batches=num_steps, style=style, rng=rng)
        engine = matcher_finetuning(matcher, tokenizer=tokenizer, settings=settings)
        _log(engine.run(batches), what=f"filter, {style}")
    teach_vectors(matcher, lessons, tokenizer=tokenizer, num_steps=plan.num_vector_steps, rng=rng)
    _correct_prior(matcher)
    save_model(out_dir / "filter", model=matcher, tokenizer=tokenizer, dtype=torch.float16)


def _correct_prior(matcher: BlipMatcher) -> None:
    """Move the ITM head from the prior of its training to the one of its use, in place.

    It was trained with one match in four pairs, and about half of what it will judge is true: the
    odds of a match are three times as high (Saerens et al. 2002, Neural Computation 14(1)).
    """
    with torch.no_grad():
        matcher.itm_head.bias[1] += math.log(_NUM_NEGATIVES)


def _optimizer(plan: Plan, num_steps: int) -> OptimizerSettings:
    schedule = CosineSchedule(
        peak=plan.peak_learning_rate, num_steps=num_steps, num_warmup_steps=50, least=2e-5
    )
    return OptimizerSettings(learning_rate=schedule, max_grad_norm=1.0)


def _in_new_process(*, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    log_to_stderr()


def _log(metrics: Iterable[StepMetrics], *, what: str) -> None:
    """Drive a training to its end; one line per hundred steps."""
    window: list[StepMetrics] = []
    for step in metrics:
        window.append(step)
        if len(window) == _LOG_EVERY:
            logger.info("%s, step %d: %s", what, step.step + 1, _means(window))
            window.clear()


def _means(window: Sequence[StepMetrics]) -> str:
    names = ("lm_loss", "itc_loss", "itm_loss", "itm_accuracy")
    columns = {name: [getattr(step, name) for step in window] for name in names}
    return ", ".join(
        f"{name} {sum(values) / len(values):.3f}"
        for name, values in columns.items()
        if None not in values
    )
