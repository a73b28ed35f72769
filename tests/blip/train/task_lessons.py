"""Tiny finetunings for VQA, NLVR2 and grounding; also run as one of several processes.

python tests/blip/train/task_lessons.py KIND RANK WORLD_SIZE FOLDER    writes FOLDER/RANK.json
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from capfilt_blip.config import BlipConfig
from capfilt_blip.grounding import BlipGrounding
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.engine import Engine
from capfilt_blip.train.grounding import GroundingBatch, GroundingSettings, grounding_finetuning
from capfilt_blip.train.nlvr import NlvrBatch, NlvrSettings, nlvr_finetuning
from capfilt_blip.train.settings import PLAIN, EngineSettings
from capfilt_blip.train.vqa import VqaBatch, VqaSettings, vqa_finetuning
from capfilt_blip.train.world import ALONE, World
from capfilt_blip.vqa import BlipVqa
from tests.blip.train import lessons
from tests.blip.train.lessons import WORDS, adam

BINS = [f"[unused{number}]" for number in range(339, 981)]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *BINS]
TOKENIZER = Tokenizer({token: index for index, token in enumerate(TOKENS)})
NUM_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    model: Callable[[BlipConfig], nn.Module]
    settings: Callable[..., Any]
    finetuning: Callable[..., Engine[Any, Any]]
    batch: Callable[[int], Any]  # of a step

    def new_model(self, *, dropout: float = 0.1, drop_path: float = 0.2, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        tiny = BlipConfig.tiny(
            vocab_size=TOKENIZER.vocab_size,
            image_size_px=16,
            width=32,
            text_depth=2,
            dropout=dropout,
        )
        vision = dataclasses.replace(tiny.vision, depth=2, drop_path=drop_path)
        return self.model(dataclasses.replace(tiny, vision=vision))

    def engine(
        self,
        model: nn.Module,
        *,
        engine: EngineSettings = PLAIN,
        world: World = ALONE,
        peak: float = 1e-3,
    ) -> Engine[Any, Any]:
        settings = self.settings(optimizer=adam(peak=peak))
        return self.finetuning(
            model, tokenizer=TOKENIZER, settings=settings, engine=engine, world=world
        )


def vqa_batch(step: int) -> VqaBatch:
    """Questions with one to three answers each, of one to three words."""
    answers = [
        {" ".join(WORDS[row : row + 1 + other]): 1 / (1 + other) for other in range(1 + row % 3)}
        for row in range(6)
    ]
    return VqaBatch(
        images=noise(step, num_images=8),
        questions=sentences(step, num_texts=8),
        answers=[*answers, {"red": 1.0}, {"old": 0.2}],
    )


def nlvr_batch(step: int) -> NlvrBatch:
    left, right = noise(step, num_images=16).chunk(2)
    truth = [word in "red green blue" for word in WORDS]
    texts = sentences(step, num_texts=8)
    return NlvrBatch(left=left, right=right, sentences=texts, is_true=truth)


def grounding_batch(step: int) -> GroundingBatch:
    generator = torch.Generator().manual_seed(step)
    corners = torch.rand(8, 2, generator=generator) / 2
    boxes = torch.cat([corners, corners + 0.1 + torch.rand(8, 2, generator=generator) / 3], dim=1)
    texts = sentences(step, num_texts=8)
    return GroundingBatch(images=noise(step, num_images=8), phrases=texts, boxes=boxes)


def noise(step: int, *, num_images: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (num_images, 16, 16, 3), generator=generator, dtype=torch.uint8)


def sentences(step: int, *, num_texts: int) -> list[str]:
    """Texts of one to four words."""
    generator = torch.Generator().manual_seed(step)
    drawn = torch.randint(0, len(WORDS), (num_texts, 4), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in words[: 1 + row % 4]) for row, words in enumerate(drawn)]


TASKS = {
    "vqa": Task(model=BlipVqa, settings=VqaSettings, finetuning=vqa_finetuning, batch=vqa_batch),
    "nlvr": Task(
        model=BlipNlvr, settings=NlvrSettings, finetuning=nlvr_finetuning, batch=nlvr_batch
    ),
    "grounding": Task(
        model=BlipGrounding,
        settings=GroundingSettings,
        finetuning=grounding_finetuning,
        batch=grounding_batch,
    ),
}


def train(kind: str, world: World) -> dict[str, object]:
    """Train without dropout; other weights in each process show whether they are shared."""
    task = TASKS[kind]
    model = task.new_model(dropout=0.0, drop_path=0.0, seed=world.rank)
    engine = task.engine(model, world=world, peak=2e-5)
    metrics = [engine.step(lessons.share(task.batch(step), world)) for step in range(NUM_STEPS)]
    return lessons.told(metrics, engine.state())


if __name__ == "__main__":
    lessons.in_a_group(partial(train, sys.argv[1]), *sys.argv[2:])
