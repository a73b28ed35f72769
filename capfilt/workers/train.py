"""The train stage's worker: pre-trains a BLIP and finetunes a captioner and a filter from it.

One process, one device. Pairs come in an order that is a permutation keyed by (seed, epoch), their
images decoded one batch ahead in processes that may be killed.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

import capfilt_blip.checkpoint
from capfilt.config import TrainSection
from capfilt.errors import CapfiltError, CheckpointError
from capfilt.io.images import ImageDecoder, Refused
from capfilt.io.rows import LazyRows
from capfilt.records import TrainStep
from capfilt.workers.batches import DecodedBatch, SourceImage, decoded_batches
from capfilt.workers.order import EpochOrder
from capfilt_blip.blip import Blip
from capfilt_blip.checkpoint import load_captioner, save_blip, save_captioner, save_matcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.loop import (
    CaptionerSettings,
    MatcherSettings,
    PretrainSettings,
    StepMetrics,
    finetune_captioner,
    finetune_matcher,
    pretrain,
)
from capfilt_blip.train.optimizer import CosineSchedule, OptimizerSettings
from capfilt_blip.transforms import random_resized_crops

log = logging.getLogger(__name__)

Phase = Literal["pretrain", "captioner", "filter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPair:
    """An image and one text of it."""

    image: SourceImage
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """All pairs of a training; rows are read as they are needed."""

    web: Sequence[TrainingPair]  # published: web and synthetic texts
    human: Sequence[TrainingPair]
    lost: Mapping[str, int] = field(default_factory=dict)  # samples that are no pair, by reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The models as files, and how the training went."""

    files: tuple[tuple[str, str, bytes], ...]  # folder (blip, captioner, filter), name, content
    steps: tuple[TrainStep, ...]
    lost: Mapping[str, int] = field(default_factory=dict)  # pairs met and not read, by reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Model directories that training starts with."""

    tokenizer: Path
    start: Path | None  # a captioner, for its architecture and its vision encoder


class TrainWorker:
    """Trains the models of the next round.

    Args:
        options: sizes, steps and rates.
        given: model directories that training starts with.
        decoder: decoding processes; closed with the worker.
        seed: of order, initialisation, crops and dropout.
        device: of the model.
    """

    def __init__(
        self, options: TrainSection, given: Given, decoder: ImageDecoder, *, seed: int, device: str
    ) -> None:
        self._options = options
        self._tokenizer = Tokenizer.from_dir(given.tokenizer)
        self._start = given.start
        self._decoder = decoder
        self._seed = seed
        self._device = device
        self._lost = dict[tuple[str, str], str]()  # reason by image and text
        torch.set_num_threads(options.num_threads)

    def __call__(self, inputs: Sequence[TrainingSet]) -> list[Trained]:
        """One set of models per training set."""
        return [self._train(pairs) for pairs in inputs]

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()

    def _train(self, pairs: TrainingSet) -> Trained:
        options, steps = self._options, list[TrainStep]()
        self._lost.clear()
        torch.manual_seed(self._seed)
        model = self._new_blip().to(self._device)
        everything = _joined(pairs.web, pairs.human)
        steps += self._logged("pretrain", self._pretrain(model, everything))
        size = options.finetune_image_size_px
        captioner = model.captioner(image_size_px=size)
        steps += self._logged("captioner", finetune_captioner(
            captioner, self._finetuning_batches(pairs.human), tokenizer=self._tokenizer,
            settings=CaptionerSettings(optimizer=self._finetuning_optimizer(), seed=self._seed),
        ))  # fmt: skip
        matcher = model.matcher(image_size_px=size)
        steps += self._logged("filter", finetune_matcher(
            matcher, self._finetuning_batches(pairs.human), tokenizer=self._tokenizer,
            settings=MatcherSettings(
                optimizer=self._finetuning_optimizer(), contrast=self._contrast(), seed=self._seed
            ),
        ))  # fmt: skip
        files = [
            *_saved("blip", lambda to: save_blip(to, model=model, tokenizer=self._tokenizer)),
            *_saved("captioner", lambda to: save_captioner(
                to, model=captioner, tokenizer=self._tokenizer)),
            *_saved("filter", lambda to: save_matcher(
                to, model=matcher, tokenizer=self._tokenizer)),
        ]  # fmt: skip
        lost = Counter(self._lost.values())
        return Trained(files=tuple(files), steps=tuple(steps), lost=lost)

    def _new_blip(self) -> Blip:
        """An untrained BLIP, seeing as the model it starts from does, if there is one."""
        if self._start is None:
            return Blip(_architecture(self._options, self._tokenizer))
        try:
            before, _ = load_captioner(self._start)
        except capfilt_blip.checkpoint.CheckpointError as err:
            raise CheckpointError(f"train.start: {err}") from err
        if before.config.text.vocab_size != self._tokenizer.vocab_size:
            raise CheckpointError(
                f"train.start: {self._start} knows {before.config.text.vocab_size} tokens and the "
                f"tokenizer {self._tokenizer.vocab_size}; set train.tokenizer to the same model"
            )
        untrained = Blip(before.config)
        untrained.vision = before.vision
        sized = untrained.captioner(image_size_px=self._options.image_size_px)
        model = Blip(sized.config)
        model.vision.load_state_dict(sized.vision.state_dict())
        return model

    def _pretrain(self, model: Blip, pairs: Sequence[TrainingPair]) -> Iterator[StepMetrics]:
        options = self._options
        schedule = CosineSchedule(
            peak=options.learning_rate,
            num_steps=options.pretrain_steps,
            num_warmup_steps=min(options.warmup_steps, options.pretrain_steps // 2),
        )
        return pretrain(
            model,
            self._batches(
                pairs,
                num_steps=options.pretrain_steps,
                side_px=options.image_size_px,
                min_area=options.min_crop_area,
            ),
            tokenizer=self._tokenizer,
            settings=PretrainSettings(
                optimizer=self._optimizer(schedule), contrast=self._contrast(), seed=self._seed
            ),
        )

    def _finetuning_batches(self, pairs: Sequence[TrainingPair]) -> Iterator[TextImageBatch]:
        options = self._options
        return self._batches(
            pairs,
            num_steps=options.finetune_steps,
            side_px=options.finetune_image_size_px or options.image_size_px,
            min_area=options.finetune_min_crop_area,
        )

    def _batches(
        self, pairs: Sequence[TrainingPair], *, num_steps: int, side_px: int, min_area: float
    ) -> Iterator[TextImageBatch]:
        generator = torch.Generator().manual_seed(self._seed)
        order = EpochOrder(num_rows=len(pairs), seed=self._seed)
        ordered = LazyRows(range(num_steps * self._options.batch_size), lambda i: pairs[order(i)])
        for batch in decoded_batches(
            ordered,
            lambda pair: pair.image,
            self._decoder,
            batch_images=self._options.batch_size,
            side_px=side_px,
        ):
            rows, pixels = batch.readable()
            self._lost.update(_refused(batch))
            if len(rows) < 2:
                raise CapfiltError(_undecoded(batch))
            images = torch.from_numpy(pixels)
            if min_area < 1 or self._options.flip_probability > 0:
                images = random_resized_crops(
                    images,
                    generator=generator,
                    min_area=min_area,
                    flip_probability=self._options.flip_probability,
                )
            yield TextImageBatch(
                images=images,
                texts=[row.text for row in rows],
                image_ids=[row.image.key for row in rows],
            )

    def _contrast(self) -> ContrastSettings:
        return ContrastSettings(
            queue_size=self._options.queue_size, num_ramp_steps=self._options.ramp_steps
        )

    def _optimizer(self, schedule: CosineSchedule) -> OptimizerSettings:
        return OptimizerSettings(learning_rate=schedule, weight_decay=self._options.weight_decay)

    def _finetuning_optimizer(self) -> OptimizerSettings:
        options = self._options
        return self._optimizer(
            CosineSchedule(peak=options.finetune_learning_rate, num_steps=options.finetune_steps)
        )

    def _logged(self, phase: Phase, metrics: Iterator[StepMetrics]) -> Iterator[TrainStep]:
        last: TrainStep | None = None
        for step in metrics:
            last = _row(phase, step)
            if step.step % self._options.log_every == 0:
                log.info("%s step %d: loss %.4f", phase, step.step, step.loss)
                yield last
                last = None
        if last is not None:
            yield last


def _refused(batch: DecodedBatch[TrainingPair]) -> Iterator[tuple[tuple[str, str], str]]:
    for row, seen in zip(batch.inputs, batch.pixels, strict=True):
        if isinstance(seen, Refused):
            yield (row.image.key, row.text), seen.reason


def _undecoded(batch: DecodedBatch[TrainingPair]) -> str:
    pairs = zip(batch.inputs, batch.pixels, strict=True)
    key, why = next((row.image.key, seen) for row, seen in pairs if isinstance(seen, Refused))
    return (
        f"training: too few of a batch of {len(batch.inputs)} images can be decoded, at least 2 "
        f"are needed; the first that cannot: {key}: {why.reason} ({why.detail})"
    )


def _joined(
    first: Sequence[TrainingPair], second: Sequence[TrainingPair]
) -> Sequence[TrainingPair]:
    both = range(len(first) + len(second))
    return LazyRows(both, lambda i: first[i] if i < len(first) else second[i - len(first)])


def _architecture(options: TrainSection, tokenizer: Tokenizer) -> BlipConfig:
    match options.size:
        case "tiny":
            return BlipConfig.tiny(
                vocab_size=tokenizer.vocab_size, image_size_px=options.image_size_px
            )
        case "base":
            return BlipConfig.base().at_image_size(options.image_size_px)
        case "large":
            return BlipConfig.large().at_image_size(options.image_size_px)


def _saved(folder: str, save: Callable[[Path], None]) -> Iterator[tuple[str, str, bytes]]:
    with tempfile.TemporaryDirectory(prefix="capfilt-model-") as scratch:
        save(Path(scratch))
        for path in sorted(Path(scratch).iterdir()):
            yield folder, path.name, path.read_bytes()


def _row(phase: Phase, step: StepMetrics) -> TrainStep:
    return TrainStep(
        phase=phase,
        step=step.step,
        loss=step.loss,
        itc_loss=step.itc_loss,
        itm_loss=step.itm_loss,
        lm_loss=step.lm_loss,
        itm_accuracy=step.itm_accuracy,
        learning_rate=step.learning_rate,
        num_samples=step.num_samples,
    )
