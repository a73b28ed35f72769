"""A training that works learns a small set by heart."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from capfilt_blip.blip import Blip
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.optimizer import CosineSchedule, OptimizerSettings
from capfilt_blip.transforms import normalise
from tests.blip.train.lessons import TOKENIZER, batch, blip, pretraining

TEXTS = ["red wall", "green sea", "old blue wall", "white sea", "small", "large red", "round", "a"]
NUM_STEPS = 240


def itc_scores(model: Blip, images: Tensor) -> Tensor:
    """(8, 8) cosines, images against texts."""
    matcher, texts = model.matching(), TOKENIZER.encode(TEXTS, first="cls", max_tokens=30)
    vectors = matcher.image_vectors(model.vision(normalise(images)))
    return vectors @ matcher.text_vectors(texts.ids, texts.mask).T


def itm_scores(model: Blip, images: Tensor) -> Tensor:
    """(8, 8) logits of "match", images against texts."""
    matcher = model.matching()
    texts = TOKENIZER.encode(TEXTS * len(images), first="enc", max_tokens=30)
    memory = matcher.text_encoder.project_memory(model.vision(normalise(images)))
    logits = matcher.itm_logits(texts.ids, texts.mask, memory)
    return (logits[:, 1] - logits[:, 0]).view(len(images), len(TEXTS))


def recalls(scores: Iterable[Tensor]) -> list[float]:
    """Recall at 1 of texts, then of images, for each table of scores."""
    own = torch.arange(len(TEXTS))
    return [float((table.argmax(dim) == own).float().mean()) for table in scores for dim in (1, 0)]


@pytest.mark.slow
def test_a_small_set_is_learnt_to_full_recall() -> None:
    model = blip(dropout=0.0, drop_path=0.0)
    small_set = TextImageBatch(images=batch(0).images, texts=TEXTS, image_ids=TEXTS)
    schedule = CosineSchedule(peak=3e-3, num_steps=NUM_STEPS, num_warmup_steps=10)
    training = pretraining(
        model, optimizer=OptimizerSettings(learning_rate=schedule, max_grad_norm=1.0)
    )
    metrics = [training.step(small_set) for _ in range(NUM_STEPS)]
    model.eval()
    with torch.no_grad():
        found = recalls([itc_scores(model, small_set.images), itm_scores(model, small_set.images)])
    assert found == [1.0] * 4
    assert metrics[-1].itm_accuracy == 1.0
