"""The arms: what each trains on, in steps that are kept on disk, so that a killed run goes on.

    none                 web texts and human pairs; its BLIP is the first, of which the rest is made
    filter only          web texts that the filter keeps, and human pairs
    captioner only       web texts, synthetic texts, and human pairs
    both                 web and synthetic texts that the filter keeps, and human pairs: CapFilt
    both, shared         the same, captioner and filter being one model (the paper's table 4)
    both, second round   the same, captioner and filter finetuned from the BLIP of "both"
    true texts only      web texts known to be true, and human pairs: what no filter can beat
    human only           no web at all
    random web           as many web texts as the filter keeps, drawn at random, and human pairs

Every arm's BLIP starts anew from the same weights and takes the same number of steps. So an arm
with fewer web texts meets each human pair more often; the last two arms tell what that alone does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.bootstrap_rows.exam import examined
from benchmarks.bootstrap_rows.learner import (
    Pupils,
    Start,
    Training,
    decoupled,
    pretrained,
    shared,
)
from benchmarks.bootstrap_rows.texts import RoundTexts, round_texts, synthetic_pairs, web_pairs
from benchmarks.bootstrap_rows.worlds import Album, Pairs, World, joined, pairs_of, thinned
from capfilt_blip.blip import Blip
from capfilt_blip.checkpoint import load_blip, save_model


class Arm(StrEnum):
    """What is done to the web before a BLIP trains on it."""

    NONE = "none"
    FILTER = "filter only"
    CAPTIONER = "captioner only"
    BOTH = "both"
    SHARED = "both, shared"
    SECOND = "both, second round"
    TRUE = "true texts only"
    HUMAN = "human only"
    RANDOM = "random web"


class TextStep(StrEnum):
    """What makes texts for the arms after it."""

    FIRST = "texts"
    SHARED = "texts, shared"
    SECOND = "texts, second round"


Step = Arm | TextStep

NEEDS: Mapping[Step, Step | None] = {
    Arm.NONE: None,
    TextStep.FIRST: Arm.NONE,
    Arm.BOTH: TextStep.FIRST,
    Arm.FILTER: TextStep.FIRST,
    Arm.CAPTIONER: TextStep.FIRST,
    Arm.TRUE: None,
    Arm.HUMAN: None,
    Arm.RANDOM: TextStep.FIRST,
    TextStep.SECOND: Arm.BOTH,
    Arm.SECOND: TextStep.SECOND,
    TextStep.SHARED: Arm.NONE,
    Arm.SHARED: TextStep.SHARED,
}
"""Each step, and the step whose result it reads; in the order in which they are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One arm of one seed."""

    arm: str
    seed: int
    figures: Mapping[str, float]
    """Marks of the exam."""
    noise: float
    """Share of the training texts that are not true, as it is known."""
    num_texts: int
    captions: tuple[str, ...]
    """Of the first pictures of the exam."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """All that the steps of one seed need."""

    folder: Path
    seed: int
    world: World
    start: Start
    training: Training
    num_candidates: int


def is_done(folder: Path, step: Step) -> bool:
    """Whether a step of the seed that lives in this folder has been taken."""
    return _path(folder, step).exists()


def take(step: Step, lab: Lab) -> None:
    """Take a step and write its result: a `Row` or a `RoundTexts`."""
    result = _train(step, lab) if isinstance(step, Arm) else _write_texts(step, lab)
    lab.folder.mkdir(parents=True, exist_ok=True)
    path = _path(lab.folder, step)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(asdict(result)))
    beside.rename(path)


def row_of(folder: Path, arm: Arm) -> Row:
    """Read what `take` wrote for an arm."""
    return Row(**json.loads(_path(folder, arm).read_text()))


def texts_of(folder: Path, step: TextStep) -> RoundTexts:
    """Read what `take` wrote for the texts of a round."""
    return RoundTexts(**json.loads(_path(folder, step).read_text()))


def training_set(arm: Arm, lab: Lab) -> Pairs:
    """What an arm trains on."""
    human, web = lab.world.human, lab.world.web
    if arm is Arm.NONE:
        return joined([human, web_pairs(web, None)])
    if arm is Arm.TRUE:
        return joined([human, pairs_of(_only_true(web))])
    if arm is Arm.HUMAN:
        return human
    texts = texts_of(lab.folder, _text_step(arm))
    filtered_web, synthetic = web_pairs(web, texts), synthetic_pairs(web, texts, filtered=True)
    if arm is Arm.FILTER:
        return joined([human, filtered_web])
    if arm is Arm.RANDOM:
        return joined([human, thinned(web_pairs(web, None), len(filtered_web.texts), lab.seed)])
    if arm is Arm.CAPTIONER:
        everything = synthetic_pairs(web, texts, filtered=False)
        return joined([human, web_pairs(web, None), everything])
    return joined([human, filtered_web, synthetic])


def _train(arm: Arm, lab: Lab) -> Row:
    started = time.perf_counter()
    pairs = training_set(arm, lab)
    blip = pretrained(lab.start, pairs, lab.training, seed=lab.seed)
    if arm in (Arm.NONE, Arm.BOTH):  # the next round's models are made of these
        save_model(_model_path(lab.folder, arm), model=blip, tokenizer=lab.start.tokenizer)
    marks = examined(
        blip,
        lab.world.exam,
        tokenizer=lab.start.tokenizer,
        judge=lab.world.true_in_exam,
        num_candidates=lab.num_candidates,
    )
    return Row(
        arm=arm,
        seed=lab.seed,
        figures=marks.figures,
        noise=pairs.noise,
        num_texts=len(pairs.texts),
        captions=marks.captions[:20],
        seconds=time.perf_counter() - started,
    )


def _write_texts(step: TextStep, lab: Lab) -> RoundTexts:
    finetune: Callable[..., Pupils] = shared if step is TextStep.SHARED else decoupled
    source = Arm.BOTH if step is TextStep.SECOND else Arm.NONE
    pupils = finetune(
        saved_blip(lab, source), lab.world.human, lab.training, seed=lab.seed, start=lab.start
    )
    return round_texts(
        pupils,
        lab.world.web,
        tokenizer=lab.start.tokenizer,
        judge=lab.world.true_on_web,
        seed=lab.seed,
    )


def _text_step(arm: Arm) -> TextStep:
    step = NEEDS[arm]
    assert isinstance(step, TextStep), f"{arm} trains on no texts of a captioner or a filter"
    return step


def _only_true(web: Album) -> Album:
    shown = [text if known else "" for text, known in zip(web.texts, web.is_true, strict=True)]
    return Album(pixels=web.pixels, texts=shown, is_true=web.is_true)


def saved_blip(lab: Lab, arm: Arm) -> Blip:
    """Read the BLIP of "none" or "both", of which the next round's models are made."""
    blip, _ = load_blip(_model_path(lab.folder, arm))
    return blip.to(lab.training.device)


def _model_path(folder: Path, arm: Arm) -> Path:
    return folder / f"blip, {arm}"


def _path(folder: Path, step: Step) -> Path:
    return folder / f"{step}.json"
