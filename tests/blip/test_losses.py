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


def known(image_ids: list[int], text_ids: list[int]) -> torch.Tensor:
    images, texts = torch.tensor(image_ids), torch.tensor(text_ids)
    return losses.known_pairs(images, texts, all_image_ids=images, all_text_ids=texts)


def test_known_pairs_are_same_image_or_same_text() -> None:
    found = known([1, 1, 2], [7, 8, 7])
    assert found.tolist() == [[True, True, True], [True, True, False], [True, False, True]]


def test_pairs_with_the_rows_of_others_are_known_too() -> None:
    found = losses.known_pairs(
        torch.tensor([1]),
        torch.tensor([7]),
        all_image_ids=torch.tensor([3, 1, 3]),
        all_text_ids=torch.tensor([9, 9, 7]),
    )
    assert found.tolist() == [[False, True, True]]


def uniform(num_rows: int) -> torch.Tensor:
    """Evenly spaced draws in [0, 1), ends included."""
    return torch.arange(num_rows, dtype=torch.float64) / num_rows


def test_a_known_pair_is_never_a_negative() -> None:
    similarity = torch.full((3, 3), -50.0).fill_diagonal_(50)
    similarity[0, 1] = 50
    pairs = torch.eye(3, dtype=torch.bool)
    pairs[0, 1] = True
    almost_one = torch.nextafter(torch.ones(1, dtype=torch.float64), torch.zeros(1).double())
    for draw in (*uniform(50), almost_one[0]):
        drawn, found = losses.hard_negatives(similarity, pairs, draws=draw.expand(3))
        assert drawn[0] == 2 and drawn[1] != 1 and drawn[2] != 2 and found.all()


def test_wrong_partners_are_drawn_in_proportion_to_their_weights() -> None:
    similarity = torch.tensor([[0.0, 3.0, 0.0]]).repeat(3000, 1)
    pairs = torch.zeros(3000, 3, dtype=torch.bool)
    pairs[:, 0] = True
    drawn, _ = losses.hard_negatives(similarity, pairs, draws=uniform(3000))
    whole = math.exp(3) + 2
    weights = [math.exp(3) / whole + 1e-4, 1 / whole + 1e-4]
    expected = weights[0] / sum(weights)
    assert abs(float((drawn == 1).float().mean()) - expected) <= 1 / 3000


def test_a_row_without_a_wrong_partner_says_so() -> None:
    pairs = torch.ones(2, 2, dtype=torch.bool)
    drawn, found = losses.hard_negatives(torch.zeros(2, 2), pairs, draws=uniform(2))
    assert found.tolist() == [False, False] and (drawn < 2).all()


def test_similarities_that_are_no_numbers_still_give_a_candidate() -> None:
    pairs = torch.eye(2, dtype=torch.bool)
    drawn, _ = losses.hard_negatives(torch.full((2, 2), math.nan), pairs, draws=uniform(2))
    assert (drawn >= 0).all() and (drawn < 2).all()


def test_shares_sum_to_the_loss_of_the_whole() -> None:
    ids = torch.randint(1, 10, (4, 6), generator=generator())
    mask = torch.arange(6) < torch.tensor([[6], [2], [3], [5]])
    logits = torch.randn(4, 6, 10, generator=generator())
    pairs = torch.randn(4, 2, generator=generator())
    is_match = torch.tensor([True, False, False, True])
    shares = {"lm": torch.zeros(()), "itm": torch.zeros(()), "itc": torch.zeros(())}
    for rows in (slice(0, 1), slice(1, 4)):
        shares["lm"] += losses.lm_loss(
            logits[rows], ids[rows], mask[rows], num_tokens=losses.num_learnt_tokens(mask)
        )
        shares["itm"] += losses.itm_loss(pairs[rows], is_match[rows], num_pairs=torch.tensor(4))
        targets = torch.full((4, 10), 0.1)[rows]
        shares["itc"] += losses.itc_loss(logits[rows, 0], targets, num_rows=torch.tensor(4))
    assert torch.allclose(shares["lm"], losses.lm_loss(logits, ids, mask))
    assert torch.allclose(shares["itm"], losses.itm_loss(pairs, is_match))
    assert torch.allclose(shares["itc"], losses.itc_loss(logits[:, 0], torch.full((4, 10), 0.1)))


def test_an_unused_pair_is_not_learnt() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    used = torch.tensor([True, False])
    found = losses.itm_loss(logits, torch.tensor([True, False]), used=used)
    assert found.item() == pytest.approx(math.log(1 + math.e))


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


def test_a_stuck_itm_head_is_said_once_while_it_lasts() -> None:
    watch = StuckWatch(window=10)
    losses = [0.637] * 30 + [0.5] * 10 + [0.636] * 12
    said = {step: line for step, loss in enumerate(losses) if (line := watch.saw(loss))}
    # The last five of ten are 0.637 on average with none of 0.5 left at step 49.
    assert list(said) == [9, 49]
    assert said[9].startswith("ITM is stuck: over 10 steps its loss is 0.6370 on average, and 0.63")


def test_a_learning_itm_head_is_not_warned_about() -> None:
    watch = StuckWatch(window=10)
    assert not any(watch.saw(0.6) for _ in range(30))
