"""A tiny BLIP and batches of it for the tests of training; also run as one of several processes.

python tests/blip/train/lessons.py KIND CONTRAST RANK WORLD_SIZE FOLDER    writes FOLDER/RANK.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from capfilt_blip.blip import Blip
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train import pretraining as trainings
from capfilt_blip.train.batches import B, TextImageBatch
from capfilt_blip.train.captioner import captioner_finetuning
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.engine import TextImageEngine
from capfilt_blip.train.optimizer import CosineSchedule, OptimizerSettings
from capfilt_blip.train.settings import (
    PLAIN,
    CaptionerSettings,
    EngineSettings,
    MatcherSettings,
    PretrainSettings,
)
from capfilt_blip.train.world import ALONE, World

WORDS = ("red", "green", "blue", "white", "small", "large", "round", "old")
TOKENIZER = Tokenizer.train([f"a {word} wall above the sea" for word in WORDS], vocab_size=130)
CONTRAST = ContrastSettings(momentum=0.9, queue_size=12, num_ramp_steps=5)

Kind = Callable[..., TextImageEngine]


def blip(*, dropout: float = 0.1, drop_path: float = 0.2, seed: int = 0) -> Blip:
    torch.manual_seed(seed)
    tiny = BlipConfig.tiny(
        vocab_size=TOKENIZER.vocab_size, image_size_px=16, width=32, text_depth=2, dropout=dropout
    )
    vision = dataclasses.replace(tiny.vision, depth=2, drop_path=drop_path)
    return Blip(dataclasses.replace(tiny, vision=vision))


def batch(step: int, *, num_images: int = 8) -> TextImageBatch:
    """Images of noise with texts of unequal length; some images and texts come twice."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (num_images, 16, 16, 3), generator=generator, dtype=torch.uint8)
    drawn = torch.randint(0, len(WORDS), (num_images, 4), generator=generator).tolist()
    lengths = torch.randint(1, 5, (num_images,), generator=generator).tolist()
    rows = zip(drawn, lengths, strict=True)
    texts = [" ".join(WORDS[word] for word in row[:length]) for row, length in rows]
    names = [f"image {number}" for number in range(num_images - 1)]
    return TextImageBatch(images=images, texts=texts, image_ids=[*names, names[0]])


def adam(*, peak: float = 1e-3) -> OptimizerSettings:
    return OptimizerSettings(learning_rate=CosineSchedule(peak=peak, num_steps=50))


def pretraining(
    model: Blip,
    *,
    contrast: ContrastSettings = CONTRAST,
    engine: EngineSettings = PLAIN,
    world: World = ALONE,
    optimizer: OptimizerSettings | None = None,
) -> TextImageEngine:
    settings = PretrainSettings(optimizer=optimizer or adam(), contrast=contrast)
    return trainings.pretraining(
        model, tokenizer=TOKENIZER, settings=settings, engine=engine, world=world
    )


def captioning(
    model: Blip,
    *,
    contrast: ContrastSettings = CONTRAST,
    engine: EngineSettings = PLAIN,
    world: World = ALONE,
    optimizer: OptimizerSettings | None = None,
) -> TextImageEngine:
    settings = CaptionerSettings(optimizer=optimizer or adam(), prompt="a wall ")
    return captioner_finetuning(
        model.captioning(), tokenizer=TOKENIZER, settings=settings, engine=engine, world=world
    )


def matching(
    model: Blip,
    *,
    contrast: ContrastSettings = CONTRAST,
    engine: EngineSettings = PLAIN,
    world: World = ALONE,
    optimizer: OptimizerSettings | None = None,
) -> TextImageEngine:
    settings = MatcherSettings(optimizer=optimizer or adam(), contrast=contrast)
    return trainings.matcher_finetuning(
        model.matching(), tokenizer=TOKENIZER, settings=settings, engine=engine, world=world
    )


KINDS: dict[str, Kind] = {"pretrain": pretraining, "captioner": captioning, "matcher": matching}
ALL_ROWS = {
    "momentum": dataclasses.replace(CONTRAST, negatives="global"),
    "batch alone": ContrastSettings(momentum=None, negatives="global"),
    "local": CONTRAST,
}
NUM_STEPS = 50


def share(whole: B, world: World) -> B:
    """Give the first process three eighths and the second the rest: shares may be unequal."""
    if world.size == 1:
        return whole
    edge = len(whole) * 3 // 8
    return whole.rows(slice(0, edge) if world.rank == 0 else slice(edge, None))


def train(kind: str, contrast: str, world: World) -> dict[str, object]:
    """Train without dropout; other weights in each process show whether they are shared."""
    model = blip(dropout=0.0, drop_path=0.0, seed=world.rank)
    # Adam makes whole steps of gradients that are nothing but rounding, as those of key biases.
    training = KINDS[kind](
        model, contrast=ALL_ROWS[contrast], world=world, optimizer=adam(peak=2e-5)
    )
    metrics = [training.step(share(batch(step), world)) for step in range(NUM_STEPS)]
    return told(metrics, training.state())


def told(metrics: Sequence[Any], state: Mapping[str, Tensor]) -> dict[str, object]:
    """What processes compare, as JSON."""
    return {
        "metrics": [dataclasses.asdict(row) for row in metrics],
        "sums": {name: float(tensor.double().sum()) for name, tensor in state.items()},
    }


def in_a_group(
    train: Callable[[World], dict[str, object]], rank: str, size: str, folder: str
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=int(size)
    )
    found = train(World.current())
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    in_a_group(partial(train, *sys.argv[1:3]), *sys.argv[3:])
