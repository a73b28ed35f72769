from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from capfilt_blip.boxes import (
    NUM_BINS,
    BoxTokens,
    from_bins,
    giou,
    iou,
    score_boxes,
    to_bins,
    to_centres,
    to_corners,
)
from capfilt_blip.tokenizer import Tokenizer


def box(*sides: float) -> Tensor:
    return torch.tensor([sides])


# Two boxes, their IoU and their GIoU, computed by hand.
PAIRS = [
    ((0.0, 0.0, 0.4, 0.4), (0.0, 0.0, 0.4, 0.4), 1.0, 1.0),
    # 0.04 shared of 0.28; the box around is 0.36 and wastes 0.08 of it.
    ((0.0, 0.0, 0.4, 0.4), (0.2, 0.2, 0.6, 0.6), 1 / 7, 1 / 7 - 2 / 9),
    # One in the other: nothing is wasted.
    ((0.0, 0.0, 0.4, 0.4), (0.1, 0.1, 0.3, 0.3), 0.25, 0.25),
    # Apart: 0.08 of the 0.2 around them is theirs.
    ((0.0, 0.0, 0.2, 0.2), (0.8, 0.0, 1.0, 0.2), 0.0, -0.6),
    # Side by side: they touch and share nothing.
    ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), 0.0, 0.0),
    # A point, and a point on a box.
    ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0.0, 0.0),
    ((0.5, 0.5, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0), 0.0, 0.0),
]


@pytest.mark.parametrize(("one", "other", "expected_iou", "expected_giou"), PAIRS)
def test_overlap_is_what_the_hand_computes(
    one: tuple[float, ...], other: tuple[float, ...], expected_iou: float, expected_giou: float
) -> None:
    for boxes in ((box(*one), box(*other)), (box(*other), box(*one))):
        assert iou(*boxes).item() == pytest.approx(expected_iou, abs=1e-6)
        assert giou(*boxes).item() == pytest.approx(expected_giou, abs=1e-6)


def test_giou_draws_boxes_together_that_do_not_meet() -> None:
    found = box(0.1, 0.1, 0.2, 0.2).requires_grad_()
    gradient = torch.autograd.grad(giou(found, box(0.6, 0.1, 0.8, 0.2)).sum(), found)[0]
    assert gradient[0, 2] > 0  # its right side has to move to the right


def test_centre_and_corners_are_each_others_inverse() -> None:
    corners = box(0.1, 0.2, 0.5, 0.8)
    torch.testing.assert_close(to_centres(corners), box(0.3, 0.5, 0.4, 0.6))
    torch.testing.assert_close(to_corners(to_centres(corners)), corners)


def test_a_box_is_rounded_to_the_nearest_bins() -> None:
    # Centre 192.4/640 and 192.6/640, width 128.4/640, height 0.
    sides = [128.2 / 640, 192.6 / 640, 256.6 / 640, 192.6 / 640]
    assert to_bins(box(*sides)).tolist() == [[192, 193, 128, 0]]


def test_every_bin_comes_back_as_itself() -> None:
    bins = torch.arange(NUM_BINS)
    # A box of height h has its centre at least h / 2 from the edge; nothing is cut off.
    middle, half = torch.full_like(bins, 320), (bins - 320).abs()
    written = torch.stack([bins, middle, 2 * (320 - half), bins], dim=1)
    assert torch.equal(to_bins(from_bins(written)), written)


def test_rounding_moves_a_side_by_less_than_a_bin() -> None:
    low = torch.rand(1000, 2)
    boxes = torch.cat([low, low + (1 - low) * torch.rand(1000, 2)], dim=1)
    # Half a bin in the centre, half of half a bin in the size.
    assert (from_bins(to_bins(boxes)) - boxes).abs().max() <= 0.75 / 640 + 1e-6


def test_what_reaches_out_of_the_image_is_cut_off() -> None:
    assert from_bins(torch.tensor([[0, 640, 320, 64]])).tolist() == [
        pytest.approx([0.0, 0.95, 0.25, 1.0])
    ]


def test_the_bound_of_iou_counts_as_right() -> None:
    true = torch.tensor([[0.0, 0.0, 0.5, 0.5]] * 4)
    halves = [[0.0, 0.0, 0.5, 0.25], [0.0, 0.0, 0.5, 0.24], [0.0, 0.0, 0.5, 0.5], [0.6] * 4]
    score = score_boxes(torch.tensor(halves), true)
    assert (score.accuracy, score.num_boxes) == (0.5, 4)
    assert score.mean_iou == pytest.approx((0.5 + 0.48 + 1 + 0) / 4)


def test_no_boxes_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 4\) were found and \(0, 4\) are true"):
        score_boxes(torch.zeros(0, 4), torch.zeros(0, 4))
    with pytest.raises(ValueError, match=r"shape \(2, 4\) were found and \(3, 4\) are true"):
        score_boxes(torch.zeros(2, 4), torch.zeros(3, 4))


def test_berts_vocabulary_has_the_ids_of_mmpretrain() -> None:
    # The layout of bert-base-uncased: 99 unused, five special, the other unused tokens, words.
    tokens = ["[PAD]", *[f"[unused{n}]" for n in range(99)], "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [*[f"[unused{n}]" for n in range(99, 994)], "!"]
    found = BoxTokens.of(Tokenizer({token: index for index, token in enumerate(tokens)}))
    assert found.start_id == 344
    assert found.bin_ids.tolist() == list(range(345, 986))


def test_ids_are_found_by_name_wherever_they_are(box_tokenizer: Tokenizer) -> None:
    found = BoxTokens.of(box_tokenizer)
    assert found.start_id == box_tokenizer.token_id("[unused339]")
    assert int(found.bin_ids[320]) == box_tokenizer.token_id("[unused660]")


def test_a_vocabulary_without_box_tokens_is_an_error_that_says_so(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        ValueError,
        match=r"has no '\[unused339\]'; boxes are written with the tokens \[unused339\] to "
        r"\[unused980\], which the vocabulary of bert-base-uncased has",
    ):
        BoxTokens.of(tokenizer)


def test_a_text_cannot_name_a_box_token(box_tokenizer: Tokenizer) -> None:
    encoded = box_tokenizer.encode(["[unused400]"], first="cls", max_tokens=9)
    found = BoxTokens.of(box_tokenizer)
    assert not set(encoded.ids[0].tolist()) & {found.start_id, *found.bin_ids.tolist()}


def test_iou_is_finite_and_in_its_range_for_any_boxes() -> None:
    bins = torch.randint(0, NUM_BINS, (2, 500, 4))
    boxes, others = from_bins(bins[0]), from_bins(bins[1])
    for measured, least in ((iou(boxes, others), 0), (giou(boxes, others), -1)):
        assert least - 1e-5 <= measured.min() and measured.max() <= 1 + 1e-5
        assert math.isfinite(measured.sum())
