from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from capfilt_blip.augment import position_keys
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.tasks.reasoner import Reasoner
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.nlvr import (
    NlvrBatch,
    NlvrMetrics,
    NlvrSettings,
    batch_losses,
    nlvr_finetuning,
    with_pairs_swapped,
)
from capfilt_blip.train.optimizer import CosineSchedule, OptimizerSettings
from capfilt_blip.transforms import normalise

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30)}


def plain(colour: str) -> Tensor:
    return torch.from_numpy(np.full((32, 32, 3), COLOURS[colour], dtype=np.uint8))


def batch() -> NlvrBatch:
    """Each pair of two colours, once with a true sentence and once with a false one."""
    left, right, sentences, is_true = [], [], [], []
    for one in COLOURS:
        for other in COLOURS:
            for said in ("the same", "two"):
                left.append(plain(one))
                right.append(plain(other))
                sentences.append(f"{said} colour; left and right.")
                is_true.append((one == other) == (said == "the same"))
    return NlvrBatch(
        left=torch.stack(left), right=torch.stack(right), sentences=sentences, is_true=is_true
    )


def settings(*, peak: float = 1e-4, num_steps: int = 10) -> NlvrSettings:
    schedule = CosineSchedule(peak=peak, num_steps=num_steps, num_warmup_steps=5)
    return NlvrSettings(optimizer=OptimizerSettings(learning_rate=schedule, max_grad_norm=1.0))


def run(
    model: BlipNlvr, tokenizer: Tokenizer, batches: Sequence[NlvrBatch], *, peak: float = 1e-4
) -> Iterator[NlvrMetrics]:
    chosen = settings(peak=peak, num_steps=len(batches))
    return nlvr_finetuning(model, tokenizer=tokenizer, settings=chosen).run(batches)


def without_dropout(model: BlipNlvr) -> BlipNlvr:
    text = dataclasses.replace(model.config.text, dropout=0.0)
    plain_model = BlipNlvr(dataclasses.replace(model.config, text=text))
    plain_model.load_state_dict(model.state_dict())
    return plain_model


@torch.no_grad()
def test_the_loss_is_the_mean_surprise_of_each_pair_alone(
    nlvr: BlipNlvr, tokenizer: Tokenizer
) -> None:
    now, surprises, right_ones = batch(), [], 0
    for row, sentence in enumerate(now.sentences):
        cleaned = sentence.replace(";", " ").replace(".", "")
        text = tokenizer.encode([cleaned], first="enc", max_tokens=64)
        pair = (normalise(images[row : row + 1]) for images in (now.left, now.right))
        log_probs = nlvr(*pair, text.ids, text.mask).log_softmax(-1)[0]
        surprises.append(-log_probs[int(now.is_true[row])].item())
        right_ones += int(log_probs.argmax()) == now.is_true[row]
    found = batch_losses(nlvr, now, tokenizer=tokenizer, settings=settings())
    assert found.total.item() == pytest.approx(np.mean(surprises), rel=1e-4)
    assert found.told["accuracy"].item() == pytest.approx(right_ones / 8)


def test_a_gradient_reaches_every_weight(nlvr: BlipNlvr, tokenizer: Tokenizer) -> None:
    found = batch_losses(nlvr, batch(), tokenizer=tokenizer, settings=settings())
    found.total.backward()  # type: ignore[no-untyped-call]
    idle = {name for name, p in nlvr.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == set()


def test_the_same_batches_give_the_same_weights(nlvr: BlipNlvr, tokenizer: Tokenizer) -> None:
    start = {name: weight.clone() for name, weight in nlvr.state_dict().items()}
    first = list(run(nlvr, tokenizer, [batch()] * 3))
    weights = {name: weight.clone() for name, weight in nlvr.state_dict().items()}
    nlvr.load_state_dict(start)
    torch.manual_seed(7)
    assert list(run(nlvr, tokenizer, [batch()] * 3)) == first
    assert all(torch.equal(weights[name], weight) for name, weight in nlvr.state_dict().items())


def test_each_step_tells_what_it_did(nlvr: BlipNlvr, tokenizer: Tokenizer) -> None:
    model = without_dropout(nlvr)
    expected = batch_losses(model, batch(), tokenizer=tokenizer, settings=settings())
    metrics = list(run(model, tokenizer, [batch()] * 3))
    assert [row.step for row in metrics] == [0, 1, 2]
    assert [row.num_samples for row in metrics] == [8, 16, 24]
    assert metrics[0].loss == pytest.approx(expected.total.item(), rel=1e-6)
    assert all(row.grad_norm > 0 for row in metrics) and not model.training


def test_half_of_the_pairs_are_shown_the_other_way_round() -> None:
    red, green = (plain(colour).expand(300, -1, -1, -1) for colour in COLOURS)
    sentences, is_true = ["Red is left of the dog."] * 300, [True] * 300
    now = NlvrBatch(left=red, right=green, sentences=sentences, is_true=is_true)
    found = with_pairs_swapped(now, keys=position_keys(range(300), seed=0))
    swapped = (found.left == green).all((1, 2, 3))
    assert torch.equal((found.right == red).all((1, 2, 3)), swapped)
    assert ((found.left == red).all((1, 2, 3)) == ~swapped).all()
    assert 115 < swapped.sum() < 185  # four standard deviations of 8.7
    told = ["Red is right of the dog." == sentence for sentence in found.sentences]
    assert told == swapped.tolist() and found.is_true == is_true


def test_a_swap_depends_on_the_key_alone() -> None:
    keys = position_keys(range(8), seed=1)
    together = with_pairs_swapped(batch(), keys=keys)
    for row, key in enumerate(keys):
        one = NlvrBatch(
            left=batch().left[row : row + 1],
            right=batch().right[row : row + 1],
            sentences=[batch().sentences[row]],
            is_true=[True],
        )
        alone = with_pairs_swapped(one, keys=[key])
        assert torch.equal(alone.left[0], together.left[row])
        assert alone.sentences == [together.sentences[row]]


def test_as_many_of_everything_are_needed() -> None:
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    words = "2 left images, 1 right images, 2 sentences and 2 judgements were given"
    with pytest.raises(ValueError, match=words):
        NlvrBatch(left=images, right=images[:1], sentences=["a"] * 2, is_true=[True] * 2)


@pytest.mark.slow
def test_a_small_set_is_learnt_by_heart(nlvr: BlipNlvr, tokenizer: Tokenizer) -> None:
    model = without_dropout(nlvr)
    for weight in (weight for weight in model.parameters() if weight.ndim > 1):
        torch.nn.init.normal_(weight, std=0.1)
    rows = list(run(model, tokenizer, [batch()] * 80, peak=3e-3))
    now = batch()
    found = Reasoner(model, tokenizer).judge(now.left, now.right, now.sentences)
    assert [probability > 0.5 for probability in found] == list(now.is_true)
    assert rows[-1].accuracy == 1
