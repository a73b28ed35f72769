"""Finetuning for visual question answering: questions and people's answers teach a BlipVqa.

The question is read in its image, and each of its distinct answers is learnt with the weight of how
many people gave it (arXiv:2201.12086, sec. 5.3). The paper's recipe is `recipes.VQA`:

    model = BlipVqa.from_blip(blip, image_size_px=VQA.image_size_px, drop_path=VQA.drop_path)
    settings = VqaSettings(optimizer=VQA.optimizer(num_samples=num_questions))
    for metrics in vqa_finetuning(model, tokenizer=tokenizer, settings=settings).run(batches):
        ...

Letters: B questions, A answers to all of them, L text tokens, S image side in pixels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from capfilt_blip.task_losses import vqa_loss
from capfilt_blip.tasks.texts import clean_question
from capfilt_blip.tokenizer import TokenBatch, Tokenizer
from capfilt_blip.train.engine import Engine
from capfilt_blip.train.objective import Losses, PlainObjective, row_means
from capfilt_blip.train.optimizer import OptimizerSettings
from capfilt_blip.train.settings import PLAIN, EngineSettings
from capfilt_blip.train.world import ALONE, World
from capfilt_blip.transforms import normalise
from capfilt_blip.vqa import BlipVqa


@dataclass(frozen=True, slots=True, kw_only=True)
class VqaBatch:
    """B images with a question each and its answers, in the same order."""

    images: Tensor
    """(B, S, S, 3) uint8, augmented already. Mirrored images make "left" and "right" false."""
    questions: Sequence[str]
    """B questions; they are cleaned as `Answerer` cleans them."""
    answers: Sequence[Mapping[str, float]]
    """B times answer to weight, from `task_losses.distinct_answers`; an answer of Visual Genome
    has VISUAL_GENOME_WEIGHT. Each question has one or more."""

    def __post_init__(self) -> None:
        num_images = len(self.images)
        if not len(self.questions) == len(self.answers) == num_images:
            raise ValueError(
                f"{num_images} images came with {len(self.questions)} questions and "
                f"{len(self.answers)} sets of answers; they must be as many"
            )
        for question, answers in zip(self.questions, self.answers, strict=True):
            if not answers:
                raise ValueError(f"the question {question!r} has no answer to be learnt")

    def __len__(self) -> int:
        return len(self.questions)

    def rows(self, chosen: slice) -> VqaBatch:
        """Give some questions with their images and answers."""
        return VqaBatch(
            images=self.images[chosen],
            questions=self.questions[chosen],
            answers=self.answers[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VqaSettings:
    """Finetuning for answering; the defaults are the original's (models/blip_vqa.py)."""

    optimizer: OptimizerSettings
    max_question_tokens: int = 35
    """Longest question, [ENC] and [SEP] included."""
    max_answer_tokens: int = 64
    """Longest answer, [DEC] and [SEP] included. The original has no bound; VQAv2's answers are
    some words long."""
    label_smoothing: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VqaMetrics:
    """What one step of training did."""

    step: int  # from 0
    num_samples: int  # questions seen so far, this step included
    learning_rate: float
    grad_norm: float  # before clipping
    loss: float
    agreement: float
    """Mean weight of the answer that greedy decoding would write, 0 where nobody gave it: how often
    it is that of a person drawn at random."""


def vqa_finetuning(
    model: BlipVqa,
    *,
    tokenizer: Tokenizer,
    settings: VqaSettings,
    engine: EngineSettings = PLAIN,
    world: World = ALONE,
) -> Engine[VqaBatch, VqaMetrics]:
    """Teach a model to answer questions about images.

    Args:
        model: changed in place.
        tokenizer: the model's.
        settings: what is learnt.
        engine: how it is computed.
        world: the processes that share each batch.
    """
    means = partial(batch_losses, model, tokenizer=tokenizer, settings=settings)
    return Engine(
        model,
        PlainObjective(row_means(means), metrics=VqaMetrics),
        optimizer=settings.optimizer,
        settings=engine,
        world=world,
        seed=settings.seed,
    )


def batch_losses(
    model: BlipVqa, batch: VqaBatch, *, tokenizer: Tokenizer, settings: VqaSettings
) -> Losses:
    """Have a model read the questions of a batch and predict their answers.

    Args:
        model: in train or eval mode.
        batch: B questions.
        tokenizer: the model's.
        settings: lengths and smoothing.

    Returns:
        The means over the batch; `agreement`, see `VqaMetrics`, has no gradient.
    """
    device = model.lm_head.bias.device
    asked, said = _encoded(batch, tokenizer=tokenizer, settings=settings)
    memory = model.text_encoder.project_memory(model.vision(normalise(batch.images.to(device))))
    questions = model.read_questions(asked.ids.to(device), asked.mask.to(device), memory)
    owners = [row for row, answers in enumerate(batch.answers) for _ in answers]  # A
    ids, mask = said.ids.to(device), said.mask.to(device)
    logits = model.lm_logits(ids, mask, questions.rows(torch.tensor(owners, device=device)))
    of_each = [weight for answers in batch.answers for weight in answers.values()]  # A
    weights = torch.tensor(of_each, device=device)
    num_questions = len(batch.questions)
    loss = vqa_loss(
        logits,
        ids,
        mask,
        weights=weights,
        num_questions=num_questions,
        label_smoothing=settings.label_smoothing,
    )
    written = would_be_written(logits.detach(), ids, mask)
    agreement = torch.dot(weights, written.float()) / num_questions
    return Losses(total=loss, told={"agreement": agreement})


def would_be_written(logits: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
    """Tell which answers greedy decoding would write: those whose every token is the likeliest.

    Args:
        logits: (A, L, V); position l predicts token l + 1.
        token_ids: (A, L) int64.
        mask: (A, L) bool, True where a token is real.

    Returns:
        (A,) bool, True for at most one of the distinct answers to a question.
    """
    right = logits[:, :-1].argmax(-1) == token_ids[:, 1:]
    return (right | ~mask[:, 1:]).all(dim=1)


def _encoded(
    batch: VqaBatch, *, tokenizer: Tokenizer, settings: VqaSettings
) -> tuple[TokenBatch, TokenBatch]:
    """Tokenize B questions and their A answers."""
    questions = [clean_question(question) for question in batch.questions]
    return (
        tokenizer.encode(questions, first="enc", max_tokens=settings.max_question_tokens),
        tokenizer.encode(
            [answer for answers in batch.answers for answer in answers],
            first="dec",
            max_tokens=settings.max_answer_tokens,
        ),
    )
