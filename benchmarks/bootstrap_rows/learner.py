"""The trainings of the experiment: pre-training, and the finetunings on human pairs.

All arms start from the same weights, take the same number of steps and see batches of one size.
As in BLIP, the image encoder has learnt from labels before (the paper's from ImageNet's, ours from
the labels of other scenes), and the text side has not (the paper's is BERT).

S image side in pixels.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.bootstrap_rows.worlds import Pairs
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.captioner import captioner_finetuning
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.optimizer import CosineSchedule, OptimizerSettings
from capfilt_blip.train.pretraining import matcher_finetuning, pretraining
from capfilt_blip.train.settings import CaptionerSettings, MatcherSettings, PretrainSettings

MAX_TOKENS = 35
_NUM_PROMPT_TOKENS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long and how fast; one for all arms."""

    num_steps: int
    """Of pre-training."""
    batch_size: int = 32
    """Pairs in a step, of all trainings."""
    peak_learning_rate: float = 1e-3
    num_captioner_steps: int = 150
    """On human pairs."""
    num_filter_steps: int = 120
    """On human pairs; the shared model of table 4 takes as many, for both tasks at once."""
    finetuning_rate: float = 5e-4
    queue_size: int = 512
    label_smoothing: float = 0.0
    """BLIP's 0.1 is spread over 30,524 words; over 182 it would put wrong ones into the nucleus."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where every training of an experiment starts."""

    blip: Blip
    tokenizer: Tokenizer

    def copy(self, device: str) -> Blip:
        """The weights, to be trained."""
        return copy.deepcopy(self.blip).to(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pupils:
    """A captioner and a filter, with the prompt that the captioner continues."""

    captioner: BlipCaptioner
    matcher: BlipMatcher
    prompt: str


def pretrained(start: Start, pairs: Pairs, training: Training, *, seed: int) -> Blip:
    """Train a BLIP from the start on some pairs."""
    blip = start.copy(training.device)
    batches = batches_of(pairs, training, num_steps=training.num_steps, seed=f"pretrain/{seed}")
    settings = _pretraining(training, seed)
    _drive(pretraining(blip, tokenizer=start.tokenizer, settings=settings).run(batches))
    return blip


def decoupled(blip: Blip, human: Pairs, training: Training, *, seed: int, start: Start) -> Pupils:
    """Finetune captioner and filter apart on human pairs, as CapFilt does."""
    captioner, matcher = blip.captioner(), blip.matcher()
    for_captions = CaptionerSettings(
        optimizer=_optimizer(training.finetuning_rate, training.num_captioner_steps),
        max_tokens=MAX_TOKENS + _NUM_PROMPT_TOKENS,
        label_smoothing=training.label_smoothing,
        seed=seed,
    )
    batches = batches_of(
        human, training, num_steps=training.num_captioner_steps, seed=f"captioner/{seed}"
    )
    tuning = captioner_finetuning(captioner, tokenizer=start.tokenizer, settings=for_captions)
    _drive(tuning.run(batches))
    for_filter = MatcherSettings(
        optimizer=_optimizer(training.finetuning_rate, training.num_filter_steps),
        contrast=_contrast(training, num_steps=training.num_filter_steps),
        max_tokens=MAX_TOKENS,
        seed=seed,
    )
    batches = batches_of(
        human, training, num_steps=training.num_filter_steps, seed=f"filter/{seed}"
    )
    _drive(matcher_finetuning(matcher, tokenizer=start.tokenizer, settings=for_filter).run(batches))
    return Pupils(captioner=captioner, matcher=matcher, prompt=for_captions.prompt)


def shared(blip: Blip, human: Pairs, training: Training, *, seed: int, start: Start) -> Pupils:
    """Finetune one model for both tasks, its weights shared as in pre-training (table 4)."""
    both = copy.deepcopy(blip)
    batches = batches_of(
        human, training, num_steps=training.num_filter_steps, seed=f"shared/{seed}"
    )
    settings = PretrainSettings(
        optimizer=_optimizer(training.finetuning_rate, training.num_filter_steps),
        contrast=_contrast(training, num_steps=training.num_filter_steps),
        max_tokens=MAX_TOKENS,
        label_smoothing=training.label_smoothing,
        seed=seed,
    )
    _drive(pretraining(both, tokenizer=start.tokenizer, settings=settings).run(batches))
    return Pupils(captioner=both.captioning(), matcher=both.matching(), prompt="")


def _pretraining(training: Training, seed: int) -> PretrainSettings:
    return PretrainSettings(
        optimizer=_optimizer(training.peak_learning_rate, training.num_steps),
        contrast=_contrast(training, num_steps=training.num_steps),
        max_tokens=MAX_TOKENS,
        label_smoothing=training.label_smoothing,
        seed=seed,
    )


def _optimizer(peak: float, num_steps: int) -> OptimizerSettings:
    schedule = CosineSchedule(
        peak=peak, num_steps=num_steps, num_warmup_steps=num_steps // 20, least=peak / 50
    )
    return OptimizerSettings(learning_rate=schedule, max_grad_norm=1.0)


def _contrast(training: Training, *, num_steps: int) -> ContrastSettings:
    """BLIP's, with a queue and a ramp for a small world: a tenth of the steps, as two of twenty."""
    return ContrastSettings(queue_size=training.queue_size, num_ramp_steps=num_steps // 10)


def batches_of(
    pairs: Pairs, training: Training, *, num_steps: int, seed: str
) -> Iterator[TextImageBatch]:
    """Yield batches, epoch after epoch, each in its own order; a rest goes into the next epoch."""
    rng = random.Random(seed)
    waiting: deque[int] = deque()
    for _ in range(num_steps):
        while len(waiting) < training.batch_size:
            waiting.extend(rng.sample(range(len(pairs.texts)), len(pairs.texts)))
        rows = [waiting.popleft() for _ in range(training.batch_size)]
        images = [pairs.image_of[row] for row in rows]
        yield TextImageBatch(
            images=pairs.pixels[images],
            texts=[pairs.texts[row] for row in rows],
            image_ids=[str(image) for image in images],
        )


def _drive(metrics: Iterator[object]) -> None:
    """Take all steps of a training."""
    deque(metrics, maxlen=0)
