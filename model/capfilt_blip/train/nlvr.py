"""Finetuning for NLVR2: sentences, true or false of pairs of images, teach a BlipNlvr to judge.

The paper's recipe (arXiv:2201.12086, sec. 5.4) is `recipes.NLVR`:

    model = BlipNlvr.from_blip(blip, image_size_px=NLVR.image_size_px, drop_path=NLVR.drop_path)
    settings = NlvrSettings(optimizer=NLVR.optimizer(num_samples=num_pairs))
    for metrics in nlvr_finetuning(model, tokenizer=tokenizer, settings=settings).run(batches):
        ...

Every second pair should be shown the other way round: `with_pairs_swapped`.

Letters: B pairs, S image side in pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from capfilt_blip.augment import check_keys, mirrored_text
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.task_losses import nlvr_loss
from capfilt_blip.tasks.reasoner import MAX_SENTENCE_TOKENS
from capfilt_blip.tasks.texts import clean_sentence
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.engine import Engine
from capfilt_blip.train.objective import Losses, PlainObjective, row_means
from capfilt_blip.train.optimizer import OptimizerSettings
from capfilt_blip.train.settings import PLAIN, EngineSettings
from capfilt_blip.train.world import ALONE, World
from capfilt_blip.transforms import normalise


@dataclass(frozen=True, slots=True, kw_only=True)
class NlvrBatch:
    """B pairs of images with a sentence each, in the same order."""

    left: Tensor
    """(B, S, S, 3) uint8, augmented already."""
    right: Tensor
    """(B, S, S, 3) uint8, augmented already."""
    sentences: Sequence[str]
    """B sentences; they are cleaned as `Reasoner` cleans them."""
    is_true: Sequence[bool]
    """B times whether the sentence is true of its pair."""

    def __post_init__(self) -> None:
        numbers = [len(row) for row in (self.left, self.right, self.sentences, self.is_true)]
        if len(set(numbers)) > 1:
            raise ValueError(
                "{} left images, {} right images, {} sentences and {} judgements were given; they "
                "must be as many".format(*numbers)
            )

    def __len__(self) -> int:
        return len(self.sentences)

    def rows(self, chosen: slice) -> NlvrBatch:
        """Give some pairs with their sentences."""
        return NlvrBatch(
            left=self.left[chosen],
            right=self.right[chosen],
            sentences=self.sentences[chosen],
            is_true=self.is_true[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NlvrSettings:
    """Finetuning for judging pairs."""

    optimizer: OptimizerSettings
    max_tokens: int = MAX_SENTENCE_TOKENS
    """Longest sentence, [ENC] and [SEP] included."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NlvrMetrics:
    """What one step of training did."""

    step: int  # from 0
    num_samples: int  # pairs seen so far, this step included
    learning_rate: float
    grad_norm: float  # before clipping
    loss: float
    accuracy: float  # share of the batch that was judged rightly before the step


def nlvr_finetuning(
    model: BlipNlvr,
    *,
    tokenizer: Tokenizer,
    settings: NlvrSettings,
    engine: EngineSettings = PLAIN,
    world: World = ALONE,
) -> Engine[NlvrBatch, NlvrMetrics]:
    """Teach a model to judge sentences about pairs of images.

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
        PlainObjective(row_means(means), metrics=NlvrMetrics),
        optimizer=settings.optimizer,
        settings=engine,
        world=world,
        seed=settings.seed,
    )


def batch_losses(
    model: BlipNlvr, batch: NlvrBatch, *, tokenizer: Tokenizer, settings: NlvrSettings
) -> Losses:
    """Have a model judge the sentences of a batch.

    Args:
        model: in train or eval mode.
        batch: B pairs.
        tokenizer: the model's.
        settings: the longest sentence.

    Returns:
        The means over the batch; `accuracy`, in [0, 1], has no gradient.
    """
    device = model.classifier.out.bias.device
    sentences = [clean_sentence(sentence) for sentence in batch.sentences]
    encoded = tokenizer.encode(sentences, first="enc", max_tokens=settings.max_tokens)
    left, right = (normalise(images.to(device)) for images in (batch.left, batch.right))
    logits = model(left, right, encoded.ids.to(device), encoded.mask.to(device))
    is_true = torch.tensor(batch.is_true, device=device)
    right_ones = logits.detach().argmax(1).bool() == is_true
    told = {"accuracy": right_ones.float().mean()}
    return Losses(total=nlvr_loss(logits, is_true), told=told)


def with_pairs_swapped(batch: NlvrBatch, *, keys: Sequence[str]) -> NlvrBatch:
    """Show every second pair the other way round, chosen by its key.

    "Left" and "right" change places in its sentence, as in the original
    (salesforce/BLIP: data/nlvr_dataset.py), which does not know whether they mean the two images
    or places within one.

    Args:
        batch: not changed.
        keys: B names, such as those of `augment.position_keys`.

    Raises:
        ValueError: there are not as many keys as pairs.
    """
    check_keys(keys, batch.left)
    swapped = [_is_swapped(key) for key in keys]
    where = torch.tensor(swapped, device=batch.left.device).view(-1, 1, 1, 1)
    pairs = zip(batch.sentences, swapped, strict=True)
    return dataclasses.replace(
        batch,
        left=torch.where(where, batch.right, batch.left),
        right=torch.where(where, batch.left, batch.right),
        sentences=[mirrored_text(text) if swap else text for text, swap in pairs],
    )


def _is_swapped(key: str) -> bool:
    digest = hashlib.blake2b(key.encode(), digest_size=1, person=b"capfilt-swap-v1").digest()
    return digest[0] % 2 == 1
