"""Boxes: as numbers, as the four tokens that grounding writes, and how well two boxes agree.

A box is x_min, y_min, x_max, y_max as fractions of its image's width and height, so it stays what
it is when the image is resized, squashed too. It is written as centre x, centre y, width and
height, each rounded to one of 641 bins, 0/640 to 640/640; a bin is a word of the vocabulary that
texts never use (mmpretrain's GroundingHead).

Letters: B boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt_blip.tokenizer import Tokenizer

NUM_BINS = 641
_FIRST_UNUSED = 340  # [unused340] is bin 0 and [unused980] bin 640, as in mmpretrain
_START = "[unused339]"
_STEPS = NUM_BINS - 1
_LEAST_AREA = 1e-9
"""Keeps a quotient of areas finite where boxes are empty; a bin's own area is 2.4e-6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxTokens:
    """The ids of the tokens that boxes are written with, in one vocabulary."""

    start_id: int
    """Comes before every box; 344 for bert-base-uncased."""
    bin_ids: Tensor
    """(641,) int64 on the CPU, one id per bin; 345 to 985 for bert-base-uncased."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> BoxTokens:
        """Look the ids up by name, [unused339] and [unused340] to [unused980].

        Raises:
            ValueError: the vocabulary lacks one of them.
        """
        names = [f"[unused{_FIRST_UNUSED + number}]" for number in range(NUM_BINS)]
        try:
            start_id, *bin_ids = [tokenizer.token_id(name) for name in (_START, *names)]
        except ValueError as error:
            raise ValueError(
                f"{error}; boxes are written with the tokens {_START} to {names[-1]}, which the "
                "vocabulary of bert-base-uncased has"
            ) from error
        return cls(start_id=start_id, bin_ids=torch.tensor(bin_ids))


def to_bins(boxes: Tensor) -> Tensor:
    """Round boxes to bins.

    To the nearest: mmpretrain cuts off, which moves every side to the left and up by half a bin,
    and a whole one where a float lies just below its bin.

    Args:
        boxes: (B, 4) float in [0, 1], x_min, y_min, x_max, y_max.

    Returns:
        (B, 4) int64 in [0, 640]: centre x, centre y, width, height.
    """
    return (to_centres(boxes) * _STEPS).round().long()


def from_bins(bins: Tensor) -> Tensor:
    """Turn bins into boxes; what reaches out of the image is cut off.

    Args:
        bins: (B, 4) int64 in [0, 640]: centre x, centre y, width, height.

    Returns:
        (B, 4) float32 in [0, 1], x_min, y_min, x_max, y_max.
    """
    return to_corners(bins.float() / _STEPS).clamp(0, 1)


def to_centres(boxes: Tensor) -> Tensor:
    """Map (..., 4) x_min, y_min, x_max, y_max to centre x, centre y, width, height."""
    low, high = boxes.chunk(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def to_corners(boxes: Tensor) -> Tensor:
    """Map (..., 4) centre x, centre y, width, height to x_min, y_min, x_max, y_max."""
    centre, size = boxes.chunk(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Measure how well boxes agree: their intersection over their union.

    Args:
        boxes: (B, 4) float, x_min, y_min, x_max, y_max.
        others: (B, 4) float; box b is held against other b.

    Returns:
        (B,) in [0, 1], 0 where both boxes are empty.
    """
    intersection, union = _overlap(boxes, others)
    return intersection / union.clamp(min=_LEAST_AREA)


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Measure as `iou` does, and take off the share of waste in the box around both.

    So boxes that do not meet are told apart, and a gradient draws them together
    (arXiv:1902.09630, alg. 1).

    Args:
        boxes: (B, 4) float, x_min, y_min, x_max, y_max.
        others: (B, 4) float; box b is held against other b.

    Returns:
        (B,) in [-1, 1].
    """
    intersection, union = _overlap(boxes, others)
    low = torch.minimum(boxes[:, :2], others[:, :2])
    high = torch.maximum(boxes[:, 2:], others[:, 2:])
    around = (high - low).prod(-1)
    waste = (around - union) / around.clamp(min=_LEAST_AREA)
    return intersection / union.clamp(min=_LEAST_AREA) - waste


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxScore:
    """How many of the boxes found are right, and how right they are on average."""

    accuracy: float
    """Share of boxes that agree well enough with the true ones."""
    mean_iou: float
    num_boxes: int


def score_boxes(found: Tensor, true: Tensor, *, min_iou: float = 0.5) -> BoxScore:
    """Judge boxes as RefCOCO does.

    Args:
        found: (B, 4) float, x_min, y_min, x_max, y_max.
        true: (B, 4) float; B is at least 1.
        min_iou: lowest IoU that counts as right, in [0, 1]; the bound counts. 0.5 is RefCOCO's.

    Raises:
        ValueError: there is no box, or not as many of both.
    """
    if found.shape != true.shape or found.shape != (len(found), 4) or not len(found):
        raise ValueError(
            f"boxes of shape {tuple(found.shape)} were found and {tuple(true.shape)} are true; "
            "both must be (B, 4), with B of 1 or more"
        )
    agreement = iou(found.float(), true.float())
    return BoxScore(
        accuracy=float((agreement >= min_iou).float().mean()),
        mean_iou=float(agreement.mean()),
        num_boxes=len(found),
    )


def _overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B,) areas: of the intersection, and of the union."""
    low = torch.maximum(boxes[:, :2], others[:, :2])
    high = torch.minimum(boxes[:, 2:], others[:, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    areas = [(box[:, 2:] - box[:, :2]).prod(-1) for box in (boxes, others)]
    return intersection, areas[0] + areas[1] - intersection
