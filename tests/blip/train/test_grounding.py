from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from capfilt_blip.boxes import BoxTokens, score_boxes, to_bins
from capfilt_blip.grounding import BlipGrounding
from capfilt_blip.tasks.grounder import Grounder
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.grounding import (
    GroundingBatch,
    GroundingMetrics,
    GroundingSettings,
    grounding_finetuning,
    grounding_loss,
)
from capfilt_blip.train.optimizer import CosineSchedule, OptimizerSettings
from capfilt_blip.transforms import normalise

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 60, 220)}
BOX = torch.tensor([[0.25, 0.25, 0.5, 0.5]])


def squares(*, num_images: int) -> GroundingBatch:
    """Two squares in each image, in its left and right half; each is meant once, by its colour."""
    rng = np.random.default_rng(0)
    images, phrases, boxes = [], [], []
    for _ in range(num_images):
        image = np.full((32, 32, 3), 128, dtype=np.uint8)
        for half, colour in enumerate(rng.permutation(list(COLOURS))[:2]):
            width, height = rng.integers(6, 14, 2)
            left, top = rng.integers(0, 17 - width) + 16 * half, rng.integers(0, 33 - height)
            image[top : top + height, left : left + width] = COLOURS[colour]
            phrases.append(f"a {colour} square")
            boxes.append([left, top, left + width, top + height])
        images += [image] * 2
    return GroundingBatch(
        images=torch.from_numpy(np.stack(images)),
        phrases=phrases,
        boxes=torch.tensor(boxes, dtype=torch.float32) / 32,
    )


def sure_of(bins: Tensor) -> Tensor:
    """Logits, (1, 4, 641), that give these bins nearly all."""
    logits = torch.zeros(1, 4, 641)
    return logits.scatter(2, bins[..., None], 20.0)


def settings(*, peak: float, num_steps: int) -> GroundingSettings:
    schedule = CosineSchedule(peak=peak, num_steps=num_steps, num_warmup_steps=20)
    optimizer = OptimizerSettings(learning_rate=schedule, weight_decay=0.02, max_grad_norm=1.0)
    return GroundingSettings(optimizer=optimizer)


def run(
    model: BlipGrounding, tokenizer: Tokenizer, batches: Sequence[GroundingBatch], *, peak: float
) -> Iterator[GroundingMetrics]:
    chosen = settings(peak=peak, num_steps=len(batches))
    return grounding_finetuning(model, tokenizer=tokenizer, settings=chosen).run(batches)


def test_the_loss_is_what_the_hand_computes() -> None:
    # All bins alike: the expected box is the middle, as large as half the image.
    found = grounding_loss(torch.zeros(1, 4, 641), BOX)
    assert found.token.item() == pytest.approx(np.log(641), abs=1e-5)
    assert found.l1.item() == pytest.approx(2 * 0.125 + 2 * 0.25, abs=1e-5)
    # The true box is a quarter of the expected one, 0.25 to 0.75, and lies in it.
    assert found.giou.item() == pytest.approx(1 - 0.25, abs=1e-5)
    assert found.total.item() == pytest.approx(np.log(641) + 5 * 0.75 + 2 * 0.75, abs=1e-4)


def test_a_sure_and_right_answer_costs_nothing() -> None:
    found = grounding_loss(sure_of(to_bins(BOX)), BOX)
    assert found.total.item() == pytest.approx(0, abs=1e-4) and found.mean_iou == 1


def test_a_far_box_costs_more_than_a_near_one() -> None:
    near, far = torch.tensor([[250, 240, 160, 160]]), torch.tensor([[540, 240, 160, 160]])
    one, two = (grounding_loss(sure_of(bins), BOX) for bins in (near, far))
    assert one.token.item() == pytest.approx(two.token.item())  # both are just wrong words
    assert one.l1 < two.l1 and one.giou < two.giou and one.total < two.total
    assert one.mean_iou > two.mean_iou


def test_every_part_of_the_loss_has_a_gradient() -> None:
    logits = torch.zeros(1, 4, 641, requires_grad=True)
    found = grounding_loss(logits, BOX)
    for part in (found.token, found.l1, found.giou):
        [gradient] = torch.autograd.grad(part, logits, retain_graph=True)
        # The expected centre is too far right: its gradient takes from the last bin.
        assert gradient[0, 0, 640] > 0 and gradient.abs().sum(-1).min() > 0


def test_weights_of_zero_leave_the_tokens_alone() -> None:
    found = grounding_loss(torch.randn(1, 4, 641), BOX, l1_weight=0, giou_weight=0)
    assert found.total == found.token


def test_a_gradient_reaches_every_weight_that_plays_a_part(
    grounding: BlipGrounding, box_tokenizer: Tokenizer
) -> None:
    batch = squares(num_images=2)
    encoded = box_tokenizer.encode(batch.phrases, first="cls", max_tokens=20)
    memory = grounding.read_phrases(
        encoded.ids, encoded.mask, grounding.see(normalise(batch.images))
    )
    logits = grounding.bin_logits(to_bins(batch.boxes), memory, tokens=BoxTokens.of(box_tokenizer))
    grounding_loss(logits, batch.boxes).total.backward()
    idle = {name for name, p in grounding.named_parameters() if p.grad is None or not p.grad.any()}
    # The phrase's encoder sees no image, and the next one reads what that encoder says, not words.
    cross = {n for n, _ in grounding.text_encoder.named_parameters() if ".cross_attention." in n}
    words = {n for n, _ in grounding.multimodal_encoder.embeddings.named_parameters()}
    assert idle == {
        *(f"text_encoder.{name}" for name in cross),
        *(f"multimodal_encoder.embeddings.{name}" for name in words),
    }


def test_the_same_batches_give_the_same_weights(
    grounding: BlipGrounding, box_tokenizer: Tokenizer
) -> None:
    start = {name: weight.clone() for name, weight in grounding.state_dict().items()}
    batches = [squares(num_images=2)] * 3
    first = list(run(grounding, box_tokenizer, batches, peak=1e-4))
    weights = {name: weight.clone() for name, weight in grounding.state_dict().items()}
    grounding.load_state_dict(start)
    torch.manual_seed(7)
    assert list(run(grounding, box_tokenizer, batches, peak=1e-4)) == first
    assert all(torch.equal(weights[name], w) for name, w in grounding.state_dict().items())


def test_each_step_tells_what_it_did(grounding: BlipGrounding, box_tokenizer: Tokenizer) -> None:
    metrics = list(run(grounding, box_tokenizer, [squares(num_images=2)] * 3, peak=1e-4))
    assert [row.step for row in metrics] == [0, 1, 2]
    assert [row.num_samples for row in metrics] == [4, 8, 12]
    assert not grounding.training
    for row in metrics:
        parts = row.token_loss + 5 * row.l1_loss + 2 * row.giou_loss
        assert row.loss == pytest.approx(parts, rel=1e-5) and row.grad_norm > 0


def test_a_vocabulary_without_box_tokens_is_refused(
    grounding: BlipGrounding, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match="boxes are written with the tokens"):
        next(run(grounding, tokenizer, [squares(num_images=1)], peak=1e-4))


@pytest.mark.parametrize(
    "box", [[0.5, 0.1, 0.4, 0.2], [0.1, 0.1, 1.1, 0.2], [10, 10, 20, 20], [0.1, 0.1, 0.1, 0.2]]
)
def test_a_box_that_is_none_is_refused(box: list[float]) -> None:
    with pytest.raises(ValueError, match=r"a box is .* must be fractions of the image's sides"):
        GroundingBatch(
            images=torch.zeros(1, 32, 32, 3, dtype=torch.uint8),
            phrases=["a"],
            boxes=torch.tensor([box]),
        )


def test_images_phrases_and_boxes_must_be_as_many() -> None:
    with pytest.raises(
        ValueError, match=r"2 images came with 1 phrases and boxes of shape \(2, 4\)"
    ):
        GroundingBatch(images=torch.zeros(2, 32, 32, 3), phrases=["a"], boxes=BOX.repeat(2, 1))


@pytest.mark.slow
def test_a_small_set_is_learnt_by_heart(grounding: BlipGrounding, box_tokenizer: Tokenizer) -> None:
    batch = squares(num_images=4)
    text = dataclasses.replace(grounding.config.text, dropout=0.0)
    model = BlipGrounding(dataclasses.replace(grounding.config, text=text))
    for weight in (weight for weight in model.parameters() if weight.ndim > 1):
        # The initial 0.02 is for a width of 768; 64 would learn for minutes.
        torch.nn.init.normal_(weight, std=0.1)
    for _ in run(model, box_tokenizer, [batch] * 150, peak=3e-3):
        pass
    found = Grounder(model, box_tokenizer).locate(batch.images, [[p] for p in batch.phrases])
    boxes = [[box.x_min, box.y_min, box.x_max, box.y_max] for [box] in found]
    score = score_boxes(torch.tensor(boxes), batch.boxes)
    assert score.accuracy == 1  # IoU of 0.5 and more, for all of them
