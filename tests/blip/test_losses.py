from __future__ import annotations

import math

import pytest
import torch

from capfilt_blip import losses
from capfilt_blip.train.stuck import StuckWatch, prior_entropy


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_hard_targets_make_itc_plain_cross_entropy() -> None:
    similarity = torch.randn(4, 4, generator=generator())
    targets = losses.itc_targets(similarity, torch.eye(4, dtype=torch.bool), soft_weight=0)
    expected = torch.nn.functional.cross_entropy(similarity, torch.arange(4))
    assert torch.allclose(losses.itc_loss(similarity, targets), expected)


def test_positives_share_the_hard_mass_evenly() -> None:
    positives = torch.tensor([[True, False, True, False]])
    targets = losses.itc_targets(torch.zeros(1, 4), positives, soft_weight=0)
    assert targets.tolist() == [[0.5, 0, 0.5, 0]]


def test_soft_weight_mixes_in_the_beliefs() -> None:
    positives = torch.tensor([[True, False]])
    targets = losses.itc_targets(torch.zeros(1, 2), positives, soft_weight=0.4)
    assert torch.allclose(targets, torch.tensor([[0.8, 0.2]]))


def test_no_gradient_flows_through_targets() -> None:
    similarity = torch.zeros(2, 2, requires_grad=True)
    targets = losses.itc_targets(similarity, torch.eye(2, dtype=torch.bool), soft_weight=0.4)
    assert not targets.requires_grad


def test_known_pairs_are_same_image_or_same_text() -> None:
    known = losses.known_pairs(torch.tensor([1, 1, 2]), torch.tensor([7, 8, 7]))
    assert known.tolist() == [[True, True, True], [True, True, False], [True, False, True]]


def test_a_known_pair_is_never_a_negative() -> None:
    similarity = torch.full((3, 3), -50.0).fill_diagonal_(50)
    similarity[0, 1] = 50
    known = torch.eye(3, dtype=torch.bool)
    known[0, 1] = True
    for _ in range(50):
        drawn, found = losses.hard_negatives(similarity, known, generator=generator())
        assert drawn[0] == 2 and drawn[1] != 1 and found.all()


def test_the_more_alike_wrong_partner_is_drawn_more_often() -> None:
    similarity = torch.tensor([[0.0, 3.0, 0.0]]).repeat(3000, 1)
    known = torch.zeros(3000, 3, dtype=torch.bool)
    known[:, 0] = True
    drawn, _ = losses.hard_negatives(similarity, known, generator=generator())
    expected = math.exp(3) / (math.exp(3) + 1)
    assert abs(float((drawn == 1).float().mean()) - expected) < 0.02


def test_a_row_without_a_wrong_partner_says_so() -> None:
    known = torch.ones(2, 2, dtype=torch.bool)
    _, found = losses.hard_negatives(torch.zeros(2, 2), known, generator=generator())
    assert found.tolist() == [False, False]


def test_lm_learns_neither_prompt_nor_padding() -> None:
    ids = torch.tensor([[9, 5, 6, 7, 3, 0, 0]])
    mask = ids != 0
    logits = torch.randn(1, 7, 10, generator=generator())
    found = losses.lm_loss(logits, ids, mask, num_prompt_tokens=3, label_smoothing=0)
    by_hand = -(logits[0, 2].log_softmax(0)[7] + logits[0, 3].log_softmax(0)[3]) / 2
    assert torch.allclose(found, by_hand)


def test_lm_label_smoothing_spreads_a_tenth_over_the_vocabulary() -> None:
    ids, mask = torch.tensor([[9, 5]]), torch.ones(1, 2, dtype=torch.bool)
    logits = torch.randn(1, 2, 10, generator=generator())
    log_probs = logits[0, 0].log_softmax(0)
    by_hand = -(0.9 * log_probs[5] + 0.1 * log_probs.mean())
    assert torch.allclose(losses.lm_loss(logits, ids, mask), by_hand)


def test_temperature_is_kept_in_its_bounds() -> None:
    temperatures = [torch.nn.Parameter(torch.tensor(value)) for value in (-1.0, 0.07, 9.0)]
    for temperature in temperatures:
        losses.clamp_temperature(temperature)
    assert [round(float(t.detach()), 4) for t in temperatures] == [0.001, 0.07, 0.5]


def test_prior_entropy_of_one_match_in_three_is_the_known_dead_point() -> None:
    assert round(prior_entropy(num_negatives=2), 4) == 0.6365


def test_a_stuck_itm_head_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    watch = StuckWatch(window=10)
    warned = [watch.saw(0.637, step=step) for step in range(10)]
    assert warned == [False] * 9 + [True]
    assert "ignores image and text" in caplog.text


def test_a_learning_itm_head_is_not_warned_about() -> None:
    watch = StuckWatch(window=10)
    assert not any(watch.saw(0.6, step=step) for step in range(30))
