"""Train the tiny BLIP that is shipped with the miniature web, and measure it.

    python -m capfilt.miniature.teach OUT_DIR             train; writes OUT_DIR/{captioner,filter}
    python -m capfilt.miniature.teach --measure OUT_DIR   measure what is there on held-out scenes

The recipe is BLIP's in small, shortened for two CPU cores: first captioning alone, of pictures
with one thing and then of all, then a captioner and a filter are finetuned apart (LM; ITC and ITM).
Two things are not BLIP's, because pictures and texts are made here and truth is known: the filter
also sees one text per picture that is known to be false (`TextImageBatch.distractors`), and no pair
that happens to be true is ever used as a negative (`known_matches`).

This is the only file of the miniature that needs torch. Finetunings run in two processes, each on
one thread, so that the same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from capfilt.miniature.exam import Marks, marks, questions
from capfilt.miniature.lessons import (
    GROUP_SIZE,
    Lessons,
    corpus,
    false_text,
    make_lessons,
    true_text,
)
from capfilt.miniature.truth import holds, parse
from capfilt.miniature.world import BACKGROUNDS, COLOURS, KINDS, SIZES, Scene
from capfilt_blip import Captioner, Matcher
from capfilt_blip.blip import Blip
from capfilt_blip.checkpoint import load_blip, save_blip, save_captioner, save_matcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.loop import (
    CaptionerSettings,
    MatcherSettings,
    StepMetrics,
    finetune_captioner,
    finetune_matcher,
)
from capfilt_blip.train.optimizer import CosineSchedule, Optimizer, OptimizerSettings
from capfilt_blip.transforms import normalise
from capfilt_blip.vision import VisionTransformer

logger = logging.getLogger(__name__)

SIDE_PX = 63
"""Of the images the model reads; three patches of 21 px a side, one for each cell of the grid."""

_GROUPS_PER_BATCH = 16
_LOG_EVERY = 100
_CELL_WORDS = (COLOURS, KINDS, SIZES)
_MIN_ITM_PROB = 0.5
_MAX_TOKENS = 35  # what `Matcher` reads, special tokens included
_MAX_CAPTION_TOKENS = 19  # of a caption that fits into the default of 20 new tokens, [SEP] included


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how fast each part of the training goes."""

    num_groups: int = 12_000
    num_sight_steps: int = 800
    """Vision alone, from labels."""
    num_first_steps: int = 900
    """Captioning of pictures with one thing, fully described: where is what?"""
    num_captioning_steps: int = 2_000
    """Captioning of all pictures."""
    num_captioner_steps: int = 1_200
    num_filter_steps: int = 2_200
    peak_learning_rate: float = 7e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """Which pictures are shown, and how their texts are written."""

    full_share: float
    max_things: int = 3
    max_words: int = 1000


def teach(out_dir: Path, *, seed: int = 0, plan: Plan | None = None) -> None:
    """Train captioner and filter and write them to `captioner/` and `filter/`, as float16.

    Args:
        out_dir: made if it does not exist. `blip/` in it is the model before finetuning.
        seed: of lessons, weights and order.
        plan: how long; the default is what the shipped weights were made with.
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


def _pretrain(lessons: Lessons, out_dir: Path, *, seed: int, plan: Plan) -> None:
    """Teach a new BLIP to caption, and write it to `blip/`."""
    rng = random.Random(f"pretrain/{seed}")
    tokenizer = Tokenizer.train(corpus(lessons, rng), vocab_size=256)
    model = _new_blip(tokenizer, seed=seed)
    _teach_sight(model.vision, lessons, rng, plan=plan)
    parts = (
        (_Style(max_things=1, full_share=1.0), plan.num_first_steps),
        (_Style(full_share=0.5), plan.num_captioning_steps),
    )
    for style, num_steps in parts:
        batches = _true_batches(lessons, rng, num_steps, style=style)
        settings = CaptionerSettings(
            optimizer=_optimizer(plan, num_steps),
            prompt="",
            max_tokens=_MAX_TOKENS,
            label_smoothing=0.0,
            seed=seed,
        )
        _log(
            finetune_captioner(model.captioning(), batches, tokenizer=tokenizer, settings=settings),
            what=f"captioning, up to {style.max_things} things",
        )
        save_blip(out_dir / "blip", model=model, tokenizer=tokenizer)


def _teach_sight(
    vision: VisionTransformer, lessons: Lessons, rng: random.Random, *, plan: Plan
) -> None:
    """Start the vision transformer from labels, as BLIP starts its own from a supervised DeiT.

    Each patch token says what stands in its cell, the class token says the background; the heads
    that read them are thrown away (arXiv:2201.12086, sec. 4.1; arXiv:2012.12877).
    """
    cells, backgrounds = _labels(lessons.scenes)
    width = vision.config.width
    heads = nn.ModuleList(nn.Linear(width, 1 + len(words)) for words in _CELL_WORDS)
    background_head = nn.Linear(width, len(BACKGROUNDS))
    parameters = [*vision.parameters(), *heads.parameters(), *background_head.parameters()]
    optimizer = Optimizer(parameters, _optimizer(plan, plan.num_sight_steps, peak=1.5e-3))
    for step in range(plan.num_sight_steps):
        numbers = rng.sample(range(len(lessons.scenes)), 128)
        tokens = vision(normalise(torch.from_numpy(lessons.pixels[numbers])))  # (B, P, D)
        loss = F.cross_entropy(background_head(tokens[:, 0]), backgrounds[numbers])
        for attribute, head in enumerate(heads):
            logits = head(tokens[:, 1:]).flatten(0, 1)  # (B * 9, words)
            loss = loss + F.cross_entropy(logits, cells[numbers, :, attribute].flatten())
        optimizer.step(loss, step=step)
        if (step + 1) % _LOG_EVERY == 0:
            logger.info("sight, step %d: loss %.3f", step + 1, float(loss.detach()))


def _labels(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 9, 3) int64 colour, kind and size of each cell, 0 where it is empty; (N,) background."""
    cells = torch.zeros(len(scenes), 9, len(_CELL_WORDS), dtype=torch.int64)
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            look = (thing.colour, thing.kind, thing.size)
            label = [1 + words.index(word) for words, word in zip(_CELL_WORDS, look, strict=True)]
            cells[number, 3 * thing.cell.row + thing.cell.column] = torch.tensor(label)
    return cells, torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])


def _teach_captioner(lessons: Lessons, out_dir: Path, seed: int, plan: Plan) -> None:
    """Finetune a captioner on short human texts."""
    _in_new_process(num_threads=1)
    model, tokenizer = load_blip(out_dir / "blip")
    captioner = model.captioner()
    rng = random.Random(f"captioner/{seed}")
    settings = CaptionerSettings(
        optimizer=_optimizer(plan, plan.num_captioner_steps),
        max_tokens=_MAX_TOKENS + 3,
        # Smoothing keeps a tenth of the mass for wrong words, and the nucleus would let some in.
        label_smoothing=0.0,
        seed=seed,
    )
    style = _Style(full_share=0.0, max_words=_MAX_CAPTION_TOKENS)
    batches = _true_batches(lessons, rng, plan.num_captioner_steps, style=style)
    metrics = finetune_captioner(captioner, batches, tokenizer=tokenizer, settings=settings)
    _log(metrics, what="captioner")
    save_captioner(out_dir / "captioner", model=captioner, tokenizer=tokenizer, dtype=torch.float16)


def _teach_filter(lessons: Lessons, out_dir: Path, seed: int, plan: Plan) -> None:
    """Finetune a matcher on siblings, and on texts that are known to be false."""
    _in_new_process(num_threads=2)
    model, tokenizer = load_blip(out_dir / "blip")
    matcher = model.matcher()
    rng = random.Random(f"filter/{seed}")
    settings = MatcherSettings(
        optimizer=_optimizer(plan, plan.num_filter_steps),
        # Within the batch alone: slow encoders would take a third of the time.
        contrast=ContrastSettings(momentum=None),
        max_tokens=_MAX_TOKENS,
        seed=seed,
    )
    batches = _filter_batches(lessons, rng, plan.num_filter_steps)
    _log(finetune_matcher(matcher, batches, tokenizer=tokenizer, settings=settings), what="filter")
    save_matcher(out_dir / "filter", model=matcher, tokenizer=tokenizer, dtype=torch.float16)


def _new_blip(tokenizer: Tokenizer, *, seed: int) -> Blip:
    """Make an untrained BLIP of width 96 whose patches are the cells of the grid.

    BERT's standard deviation of 0.02 is for a width of 768. At width 96 it makes every branch
    almost silent, and position embeddings as small are lost among the patches: measured, a vision
    transformer so made learnt no place in 400 steps, and with the values below 99 % of them in 300.
    """
    torch.manual_seed(seed)
    tiny = BlipConfig.tiny(vocab_size=tokenizer.vocab_size, width=96, text_depth=3, dropout=0.0)
    vision = dataclasses.replace(tiny.vision, image_size_px=SIDE_PX, patch_size_px=SIDE_PX // 3)
    model = Blip(dataclasses.replace(tiny, vision=vision))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02 * math.sqrt(768 / 96))
    nn.init.normal_(model.vision.positions, std=0.5)
    return model


def _true_batches(
    lessons: Lessons, rng: random.Random, num_batches: int, *, style: _Style
) -> Iterator[TextImageBatch]:
    """Draw batches of whole groups with a true text of each picture."""
    groups = lessons.groups(max_things=style.max_things)
    for _ in range(num_batches):
        numbers = _picture_numbers(rng.sample(groups, _GROUPS_PER_BATCH))
        texts = [_text(lessons.scenes[number], rng, style=style) for number in numbers]
        yield TextImageBatch(images=torch.from_numpy(lessons.pixels[numbers]), texts=texts)


def _filter_batches(
    lessons: Lessons, rng: random.Random, num_batches: int
) -> Iterator[TextImageBatch]:
    """Draw batches as above, with a false text of each picture and what else is true in them."""
    groups = lessons.groups(max_things=3)
    for _ in range(num_batches):
        numbers = _picture_numbers(rng.sample(groups, _GROUPS_PER_BATCH))
        scenes = [lessons.scenes[number] for number in numbers]
        texts = [_text(scene, rng, style=_Style(full_share=0.25)) for scene in scenes]
        yield TextImageBatch(
            images=torch.from_numpy(lessons.pixels[numbers]),
            texts=texts,
            known_matches=_true_pairs(scenes, texts),
            distractors=[[false_text(scene, rng) for scene in scenes]],
        )


def _text(scene: Scene, rng: random.Random, *, style: _Style) -> str:
    while True:
        text = true_text(scene, rng, full_share=style.full_share)
        if len(text.split()) <= style.max_words:
            return text


def _picture_numbers(groups: Sequence[int]) -> list[int]:
    return [group * GROUP_SIZE + place for group in groups for place in range(GROUP_SIZE)]


def _true_pairs(scenes: Sequence[Scene], texts: Sequence[str]) -> torch.Tensor:
    """(B, B) bool, True where text j is true of scene i."""
    statements = [parse(text) for text in texts]
    rows = [[s is not None and holds(s, scene) for s in statements] for scene in scenes]
    return torch.tensor(rows)


def _optimizer(plan: Plan, num_steps: int, *, peak: float | None = None) -> OptimizerSettings:
    schedule = CosineSchedule(
        peak=peak or plan.peak_learning_rate, num_steps=num_steps, num_warmup_steps=50, least=2e-5
    )
    return OptimizerSettings(learning_rate=schedule, max_grad_norm=1.0)


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


def measure(directory: Path, *, num_questions: int = 2000) -> Marks:
    """Let the models in `directory` sit the exam: scenes, texts and pictures they never saw."""
    captioner = Captioner.from_pretrained(directory / "captioner")
    matcher = Matcher.from_pretrained(directory / "filter")
    asked = questions("held-out", num_questions)
    images = [question.image for question in asked]
    captions = [row[0].text for row in captioner.caption(images, top_p=0.9, batch_size=32)]
    both = [[question.text, caption] for question, caption in zip(asked, captions, strict=True)]
    probs = matcher.match(images, both)
    return marks(
        asked,
        kept=[alt >= _MIN_ITM_PROB for alt, _ in probs],
        captions=captions,
        captions_kept=[caption >= _MIN_ITM_PROB for _, caption in probs],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or measure: see the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m capfilt.miniature.teach")
    parser.add_argument("directory", type=Path, help="holds captioner/ and filter/")
    parser.add_argument("--measure", action="store_true", help="measure, do not train")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    _log_to_stderr()
    if not options.measure:
        teach(options.directory, seed=options.seed)
    _report(measure(options.directory))


def _report(found: Marks) -> None:
    logger.info("filter at itm_prob >= %.1f: %s", _MIN_ITM_PROB, found.filter)
    logger.info(
        "precision %.3f, recall %.3f", found.filter.precision or 0, found.filter.recall or 0
    )
    for kind, share in found.right_by_kind.items():
        logger.info("judged right, %s: %.3f", kind, share)
    logger.info("true captions: %.3f", found.captions.share or 0)
    logger.info("true captions of those kept: %.3f", found.captions_kept.share or 0)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


def _in_new_process(*, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    _log_to_stderr()


if __name__ == "__main__":
    main()
