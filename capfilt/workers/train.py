"""The train stage's worker: pre-trains a BLIP and finetunes a captioner and a filter from it.

Three phases one after the other, each from wherever an earlier try left it. In a process group of
torch.distributed the workers train together: each takes its slice of every batch, and the first one
gives the models.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import capfilt_blip.checkpoint
from capfilt.config import TrainSection
from capfilt.errors import CapfiltError, CheckpointError
from capfilt.io.images import ImageDecoder
from capfilt.records import HeldOutCaption, Phase, TrainStep
from capfilt.workers.trainer_engines import Engines
from capfilt.workers.trainer_exam import Exam
from capfilt.workers.trainer_loop import LoopSettings, PhaseLoop, PhasePlan
from capfilt.workers.trainer_pairs import TrainingSet, all_pairs, human_pairs
from capfilt.workers.trainer_progress import ProgressFolder
from capfilt.workers.trainer_watch import Watching
from capfilt_blip.augment import Augmentation
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import AnyModel, load_blip, load_captioner, save_model
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.draws import key_of
from capfilt_blip.train.engine import TextImageEngine
from capfilt_blip.train.errors import StateError, TrainingError
from capfilt_blip.train.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The models as files, and how the training went."""

    files: tuple[tuple[str, str, bytes], ...]  # folder (blip, captioner, filter), name, content
    steps: tuple[TrainStep, ...]
    lost: Mapping[str, int] = field(default_factory=dict)  # pairs met and not read, by reason
    captions: tuple[HeldOutCaption, ...] = ()  # of held-out images


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Model directories that training starts with."""

    tokenizer: Path
    start: Path | None  # a captioner, for its architecture and its vision encoder
    continued: Path | None = None  # a BLIP of this very recipe, to go on from; before `start`


@dataclass(frozen=True, slots=True, kw_only=True)
class Notebook:
    """Where it is noted how a training goes."""

    progress: ProgressFolder  # what a killed one goes on from
    events: Path | None = None  # what is watched: losses, speed, captions; None keeps nothing


class TrainWorker:
    """Trains the models of the next round.

    Args:
        options: sizes, steps and rates.
        given: model directories that training starts with.
        decoder: decoding processes; closed with the worker.
        notebook: where it is noted how the training goes.
        seed: of order, initialisation, augmentation and dropout.
        device: of the model.
    """

    def __init__(
        self,
        options: TrainSection,
        given: Given,
        decoder: ImageDecoder,
        *,
        notebook: Notebook,
        seed: int,
        device: str,
    ) -> None:
        self._options = options
        self._tokenizer = Tokenizer.from_dir(given.tokenizer)
        self._start = given.start
        self._continued = given.continued
        self._decoder = decoder
        self._progress = notebook.progress
        self._events = notebook.events
        self._seed = seed
        self._device = device
        self._world = World.current()
        self._engines = Engines(options, self._tokenizer, world=self._world, seed=seed)
        torch.set_num_threads(options.num_threads)

    def __call__(self, inputs: Sequence[TrainingSet]) -> list[Trained]:
        """One set of models per training set."""
        try:
            return [self._train(pairs) for pairs in inputs]
        except (TrainingError, StateError) as err:
            raise CapfiltError(f"train: {err}") from err

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()

    def _train(self, pairs: TrainingSet) -> Trained:
        size, engines = self._options.finetune_image_size_px, self._engines
        loop = self._loop(pairs)
        torch.manual_seed(self._seed)
        model = self._new_blip().to(self._device)
        notes = [loop.run(self._pretraining(model, pairs))]
        captioner = model.captioner(image_size_px=size)
        tuning = self._finetuning(
            "captioner", captioner, lambda: engines.captioner(captioner), pairs
        )
        notes.append(loop.run(tuning))
        matcher = model.matcher(image_size_px=size)
        tuning = self._finetuning("filter", matcher, lambda: engines.matcher(matcher), pairs)
        notes.append(loop.run(tuning))
        return Trained(
            files=tuple(self._files(model, captioner, matcher)),
            steps=tuple(row for phase in notes for row in phase.steps),
            lost=Counter(self._progress.lost().values()),
            captions=tuple(caption for phase in notes for caption in phase.captions),
        )

    def _pretraining(self, model: Blip, pairs: TrainingSet) -> PhasePlan:
        options, seed = self._options, key_of("pretrain", self._seed)
        ordered = all_pairs(pairs, mixing=options.mixing, seed=seed)
        num_pairs = ordered.order.epoch_size
        return PhasePlan(
            phase="pretrain",
            model=model,
            open_engine=lambda: self._engines.pretraining(model, num_pairs=num_pairs),
            pairs=ordered,
            num_steps=options.pretrain_steps,
            side_px=options.image_size_px,
            augmentation=self._augmentation(min_area=options.min_crop_area),
            seed=seed,
        )

    def _finetuning(
        self,
        phase: Phase,
        model: BlipCaptioner | BlipMatcher,
        open_engine: Callable[[], TextImageEngine],
        pairs: TrainingSet,
    ) -> PhasePlan:
        options, seed = self._options, key_of(phase, self._seed)
        return PhasePlan(
            phase=phase,
            model=model,
            open_engine=open_engine,
            pairs=human_pairs(pairs, seed=seed),
            num_steps=options.finetune_steps,
            side_px=options.finetune_image_size_px or options.image_size_px,
            augmentation=self._augmentation(min_area=options.finetune_min_crop_area),
            seed=seed,
        )

    def _augmentation(self, *, min_area: float) -> Augmentation:
        return Augmentation(
            min_area=min_area,
            flip_probability=self._options.flip_probability,
            num_operations=self._options.num_augmentations,
        )

    def _loop(self, pairs: TrainingSet) -> PhaseLoop:
        exam = Exam(pairs.held_out, self._decoder, self._tokenizer)
        watching = Watching(
            folder=self._events,
            options=self._options,
            tokenizer=self._tokenizer,
            device=self._device,
            num_devices=self._world.size,
        )
        settings = self._loop_settings()
        return PhaseLoop(settings, self._progress, self._decoder, exam=exam, watching=watching)

    def _loop_settings(self) -> LoopSettings:
        options = self._options
        return LoopSettings(
            batch_size=options.batch_size,
            log_every=options.log_every,
            held_out_every=options.held_out_every,
            save_every=options.checkpoint_steps,
            save_after_s=60 * options.checkpoint_minutes,
            device=self._device,
            world=self._world,
        )

    def _new_blip(self) -> Blip:
        """An untrained BLIP, seeing as the model it starts from does, or the one to go on from."""
        if self._continued is not None:
            return load_blip(self._continued, image_size_px=self._options.image_size_px)[0]
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

    def _files(
        self, blip: Blip, captioner: BlipCaptioner, matcher: BlipMatcher
    ) -> Iterator[tuple[str, str, bytes]]:
        models: dict[str, AnyModel] = {"blip": blip, "captioner": captioner, "filter": matcher}
        for folder, model in models.items():
            with tempfile.TemporaryDirectory(prefix="capfilt-model-") as scratch:
                save_model(scratch, model=model, tokenizer=self._tokenizer)
                for path in sorted(Path(scratch).iterdir()):
                    yield folder, path.name, path.read_bytes()


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
