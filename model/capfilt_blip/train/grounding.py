"""Finetuning for visual grounding: phrases and their boxes teach a BlipGrounding to write boxes.

mmpretrain's recipe for RefCOCO (configs/blip/blip-base_8xb16_refcoco.py): AdamW at 1.5e-5 with a
weight decay of 0.02, half a cosine down to 0, 120 epochs in batches of 128, images of 384 px:

    schedule = CosineSchedule(peak=1.5e-5, num_steps=num_steps, least=0.0)
    settings = GroundingSettings(
        optimizer=OptimizerSettings(learning_rate=schedule, weight_decay=0.02)
    )
    for metrics in grounding_finetuning(model, tokenizer=tokenizer, settings=settings).run(batches):
        ...

Letters: B batch, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt_blip.boxes import (
    NUM_BINS,
    BoxTokens,
    from_bins,
    giou,
    iou,
    to_bins,
    to_centres,
    to_corners,
)
from capfilt_blip.grounding import BlipGrounding
from capfilt_blip.text import TextLayer
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.engine import Engine
from capfilt_blip.train.objective import Losses, PlainObjective, row_means
from capfilt_blip.train.optimizer import OptimizerSettings
from capfilt_blip.train.settings import PLAIN, EngineSettings
from capfilt_blip.train.world import ALONE, World
from capfilt_blip.transforms import normalise


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingBatch:
    """B images with a phrase and its box each, in the same order."""

    images: Tensor
    """(B, S, S, 3) uint8, augmented already. Mirrored images make "left" and "right" false."""
    phrases: Sequence[str]
    """B phrases; phrase b means something in image b."""
    boxes: Tensor
    """(B, 4) float: x_min, y_min, x_max, y_max as fractions of the image's sides, in [0, 1]."""

    def __post_init__(self) -> None:
        num_images = len(self.images)
        if len(self.phrases) != num_images or self.boxes.shape != (num_images, 4):
            raise ValueError(
                f"{num_images} images came with {len(self.phrases)} phrases and boxes of shape "
                f"{tuple(self.boxes.shape)}; ({num_images}, 4) is needed"
            )
        for box in self.boxes.tolist():
            x_min, y_min, x_max, y_max = box
            if not (0 <= x_min < x_max <= 1 and 0 <= y_min < y_max <= 1):
                raise ValueError(
                    f"a box is {box}; x_min, y_min, x_max, y_max must be fractions of the image's "
                    "sides, in [0, 1], each minimum below its maximum"
                )

    def __len__(self) -> int:
        return len(self.phrases)

    def rows(self, chosen: slice) -> GroundingBatch:
        """Give some phrases with their images and boxes."""
        return GroundingBatch(
            images=self.images[chosen], phrases=self.phrases[chosen], boxes=self.boxes[chosen]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingSettings:
    """Finetuning for grounding."""

    optimizer: OptimizerSettings
    max_tokens: int = 64
    """Longest phrase, [CLS] and [SEP] included."""
    l1_weight: float = 5.0
    """Of the distance between boxes, against 1 for the tokens; DETR's (arXiv:2005.12872, A.4)."""
    giou_weight: float = 2.0
    """Of the lack of overlap; DETR's."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingMetrics:
    """What one step of training did."""

    step: int  # from 0
    num_samples: int  # phrases seen so far, this step included
    learning_rate: float
    grad_norm: float  # before clipping
    loss: float
    token_loss: float
    l1_loss: float
    giou_loss: float
    mean_iou: float  # of the likeliest bins, each given the true ones before it


def grounding_finetuning(
    model: BlipGrounding,
    *,
    tokenizer: Tokenizer,
    settings: GroundingSettings,
    engine: EngineSettings = PLAIN,
    world: World = ALONE,
) -> Engine[GroundingBatch, GroundingMetrics]:
    """Teach a model to write the box of a phrase.

    Args:
        model: changed in place.
        tokenizer: the model's, with the tokens of boxes.
        settings: what is learnt.
        engine: how it is computed.
        world: the processes that share each batch.

    Raises:
        ValueError: the vocabulary cannot write boxes.
    """
    tokens = BoxTokens.of(tokenizer)
    _set_idle_aside(model)

    def means(batch: GroundingBatch) -> Losses:
        found = batch_loss(model, batch, tokenizer=tokenizer, tokens=tokens, settings=settings)
        told = {"token_loss": found.token, "l1_loss": found.l1, "giou_loss": found.giou}
        return Losses(total=found.total, told={**told, "mean_iou": found.mean_iou})

    return Engine(
        model,
        PlainObjective(row_means(means), metrics=GroundingMetrics),
        optimizer=settings.optimizer,
        settings=engine,
        world=world,
        seed=settings.seed,
    )


def _set_idle_aside(model: BlipGrounding) -> None:
    """Mark the weights that play no part: processes would wait for each other's gradients of them.

    The phrase's encoder sees no image, and the next one reads what that encoder says, not words.
    """
    model.multimodal_encoder.embeddings.requires_grad_(False)
    for layer in model.text_encoder.layers:
        cast(TextLayer, layer).cross_attention.requires_grad_(False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingLoss:
    """The parts of a batch's loss, each a scalar and a mean over the batch."""

    total: Tensor
    token: Tensor
    """Cross-entropy of the four tokens among the 641 bins."""
    l1: Tensor
    """Distance of the expected box from the true one, summed over centre and size."""
    giou: Tensor
    """1 - GIoU of the expected box and the true one, in [0, 2]."""
    mean_iou: Tensor
    """Of the likeliest boxes, without a gradient."""


def batch_loss(
    model: BlipGrounding,
    batch: GroundingBatch,
    *,
    tokenizer: Tokenizer,
    tokens: BoxTokens,
    settings: GroundingSettings,
) -> GroundingLoss:
    """Have a model read the phrases of a batch in their images and predict their boxes.

    Args:
        model: in train or eval mode.
        batch: B phrases.
        tokenizer: the model's.
        tokens: that it writes boxes with.
        settings: the longest phrase, and the weights of the losses.
    """
    device = model.lm_head.bias.device
    encoded = tokenizer.encode(batch.phrases, first="cls", max_tokens=settings.max_tokens)
    images = model.see(normalise(batch.images.to(device)))
    memory = model.read_phrases(encoded.ids.to(device), encoded.mask.to(device), images)
    boxes = batch.boxes.to(device).float()
    return grounding_loss(
        model.bin_logits(to_bins(boxes), memory, tokens=tokens),
        boxes,
        l1_weight=settings.l1_weight,
        giou_weight=settings.giou_weight,
    )


def grounding_loss(
    bin_logits: Tensor, boxes: Tensor, *, l1_weight: float = 5.0, giou_weight: float = 2.0
) -> GroundingLoss:
    """Hold written boxes against true ones: as words, and as boxes.

    To a cross-entropy the bin next to the true one is as wrong as the farthest. So the expected
    box, the mean over the bins, is held against the true one too; unlike the likeliest box it has a
    gradient (arXiv:1711.08229, eq. 2). Distance and overlap, and their weights, are those of DETR
    (arXiv:2005.12872, sec. 3.1). mmpretrain weighs the cross-entropy by both, but where no gradient
    is kept, so that a plain mean is what trains it.

    Args:
        bin_logits: (B, 4, 641) of centre x, centre y, width, height.
        boxes: (B, 4) float in [0, 1], x_min, y_min, x_max, y_max.
        l1_weight: of the distance.
        giou_weight: of the lack of overlap.
    """
    bin_logits = bin_logits.float()
    token = F.cross_entropy(bin_logits.flatten(0, 1), to_bins(boxes).flatten())
    places = torch.linspace(0, 1, NUM_BINS, device=boxes.device)
    # No matrix product: autocast would compute it in bfloat16, to a 256th of the image at best.
    expected = (bin_logits.softmax(-1) * places).sum(-1)  # (B, 4)
    l1 = (expected - to_centres(boxes)).abs().sum(-1).mean()
    no_overlap = (1 - giou(to_corners(expected), boxes)).mean()
    likeliest = from_bins(bin_logits.argmax(-1))
    return GroundingLoss(
        total=token + l1_weight * l1 + giou_weight * no_overlap,
        token=token,
        l1=l1,
        giou=no_overlap,
        mean_iou=iou(likeliest, boxes).mean(),
    )
