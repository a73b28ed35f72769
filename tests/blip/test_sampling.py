from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor

from capfilt_blip.sampling import (
    Sampling,
    _top,
    gumbel,
    nucleus,
    row_key,
    sample,
    sample_from_likeliest,
)

MASK = 2**64 - 1


def slow_mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def slow_gumbel(key: int, *, step: int, token_id: int) -> float:
    """The definition in Python's whole numbers, which know no overflow."""
    gamma = 0x9E3779B97F4A7C15
    row = slow_mix(key + gamma * (step + 1) & MASK)
    uniform = ((slow_mix(row + gamma * (token_id + 1) & MASK) >> 40) + 0.5) / 2**24
    return -math.log(-math.log(uniform))


def keys(count: int) -> Tensor:
    return torch.tensor(
        [row_key(seed=0, round_=0, key=str(i), caption_index=0) for i in range(count)]
    )


def test_a_row_key_is_a_hash_of_its_four_fields_with_their_lengths() -> None:
    message = b"".join(len(f).to_bytes(4, "little") + f for f in (b"7", b"1", b"ab", b"0"))
    digest = hashlib.blake2b(message, digest_size=8, person=b"capfilt-rng-v1").digest()
    expected = int.from_bytes(digest, "little", signed=True)
    assert row_key(seed=7, round_=1, key="ab", caption_index=0) == expected


def test_fields_of_a_row_key_do_not_run_into_each_other() -> None:
    assert row_key(seed=1, round_=23, key="4", caption_index=5) != row_key(
        seed=12, round_=3, key="4", caption_index=5
    )


# Golden: computed once with slow_gumbel. A change of these numbers changes every dataset ever made.
@pytest.mark.parametrize(
    ("key", "number", "noise"),
    [
        ("0", 3_769_499_556_674_554_010, [1.102231, -0.671343, 1.278377]),
        (
            "00000000000000000000000000000001",
            5_242_645_110_065_255_687,
            [1.911378, 0.738152, -0.343395],
        ),
        ("é", -7_496_871_584_336_918_569, [0.427352, 1.081565, -0.074733]),
    ],
)
def test_keys_and_noise_are_the_golden_ones(key: str, number: int, noise: list[float]) -> None:
    assert row_key(seed=0, round_=0, key=key, caption_index=0) == number
    ids = torch.tensor([0, 101, 30523])
    found = gumbel(torch.tensor([number]), step=3, token_ids=ids)[0].tolist()
    assert found == pytest.approx(noise, abs=1e-6)


def test_noise_is_what_whole_numbers_without_overflow_give() -> None:
    numbers = keys(5)
    found = gumbel(numbers, step=19, token_ids=torch.arange(40))
    expected = [[slow_gumbel(k, step=19, token_id=t) for t in range(40)] for k in numbers.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_noise_has_the_mean_and_variance_of_a_gumbel_distribution() -> None:
    noise = gumbel(keys(20), step=0, token_ids=torch.arange(30_000)).double()
    assert noise.mean().item() == pytest.approx(0.577216, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)


def test_noise_of_neighbouring_keys_steps_and_tokens_is_not_correlated() -> None:
    ids = torch.arange(100_000)
    base = gumbel(torch.tensor([1]), step=0, token_ids=ids)[0]
    key = gumbel(torch.tensor([2]), step=0, token_ids=ids)[0]
    step = gumbel(torch.tensor([1]), step=1, token_ids=ids)[0]
    token = gumbel(torch.tensor([1]), step=0, token_ids=ids + 1)[0]
    correlation = torch.corrcoef(torch.stack([base, key, step, token]))
    assert (correlation - torch.eye(4)).abs().max() < 0.02


def test_the_largest_hash_gives_finite_noise() -> None:
    # The top 24 bits of this hash are all ones (found by search): a uniform of 1 in float32.
    noise = gumbel(torch.tensor([0]), step=0, token_ids=torch.tensor([26_683_238])).item()
    assert noise == pytest.approx(-math.log(-math.log((2**24 - 0.5) / 2**24)), abs=1e-4)


def slow_nucleus(row: Tensor, top_p: float) -> set[int]:
    order = sorted(range(len(row)), key=lambda i: (-row[i].item(), i))
    probabilities, kept, total = row.double().softmax(-1), set(), 0.0
    for token_id in order:
        if total >= top_p:
            break
        kept.add(token_id)
        total += probabilities[token_id].item()
    return kept


@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_the_nucleus_is_that_of_the_slow_definition(scale: float, top_p: float) -> None:
    logits = torch.randn(4, 700) * scale
    token_ids, kept = nucleus(logits, top_p=top_p)
    for row in range(4):
        assert set(token_ids[row][kept[row]].tolist()) == slow_nucleus(logits[row], top_p)


def test_equal_logits_are_ranked_by_token_id() -> None:
    token_ids, kept = nucleus(torch.zeros(1, 8), top_p=0.5)
    assert token_ids[0][kept[0]].tolist() == [0, 1, 2, 3]


def test_more_equal_logits_than_the_short_list_holds_are_ranked_by_token_id() -> None:
    token_ids, kept = nucleus(torch.zeros(1, 700), top_p=0.2999)
    assert token_ids[0][kept[0]].tolist() == list(range(210))


def test_the_likeliest_token_is_always_in_the_nucleus() -> None:
    token_ids, kept = nucleus(torch.tensor([[0.0, 9.0, 0.0]]), top_p=0.01)
    assert token_ids[0][kept[0]].tolist() == [1]


def test_a_row_that_needs_all_tokens_does_not_change_the_others() -> None:
    peaked, flat = torch.randn(1, 2000) * 6, torch.zeros(1, 2000)
    sampling = Sampling(top_p=0.9)
    alone = sample(peaked, row_keys=keys(1), step=0, sampling=sampling)
    together = sample(torch.cat([peaked, flat]), row_keys=keys(2), step=0, sampling=sampling)
    assert alone[0] == together[0]


def test_tokens_are_drawn_with_the_probabilities_of_the_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(40_000, 4)
    drawn = sample(logits, row_keys=torch.arange(40_000), step=0, sampling=Sampling(top_p=1.0))
    expected = probabilities * 40_000
    chi_square = ((drawn.bincount(minlength=4) - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 3 degrees of freedom: one in a thousand is above


def test_tokens_outside_of_nucleus_and_top_k_are_never_drawn() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(2_000, 4)
    by_p = sample(logits, row_keys=torch.arange(2_000), step=0, sampling=Sampling(top_p=0.65))
    by_k = sample(logits, row_keys=torch.arange(2_000), step=0, sampling=Sampling(top_p=1, top_k=3))
    assert (set(by_p.tolist()), set(by_k.tolist())) == ({0, 1}, {0, 1, 2})


def test_a_low_temperature_draws_the_likeliest() -> None:
    logits = torch.randn(50, 100)
    drawn = sample(logits, row_keys=keys(50), step=0, sampling=Sampling(temperature=1e-3))
    assert torch.equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k is -1; it must be 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
    ],
)
def test_an_impossible_distribution_is_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sampling(**wrong)


def test_the_largest_of_long_rows_are_those_of_topk() -> None:
    values = torch.randn(3, 3_005)
    found, places = _top(values, 20)
    expected = values.topk(20, dim=-1)
    assert torch.equal(found, expected.values)
    assert torch.equal(places, expected.indices)


def test_the_largest_may_all_lie_in_one_group_or_behind_the_last() -> None:
    num_groups = 3_005 // 16
    one_group = torch.arange(16) * num_groups + 5
    behind = torch.arange(16 * num_groups, 3_005)
    for places in (one_group, behind):
        values = torch.zeros(1, 3_005)
        values[0, places] = torch.arange(1.0, len(places) + 1)
        assert _top(values, len(places))[1][0].flip(0).tolist() == places.tolist()


@pytest.mark.parametrize("num_equal", [63, 64, 65, 512, 600])
def test_a_nucleus_that_ends_among_equals_takes_the_lowest_ids(num_equal: int) -> None:
    logits = torch.full((1, 20_000), -30.0)
    logits[0, 7 : 7 + num_equal] = 5.0
    token_ids, kept = nucleus(logits, top_p=0.5)
    assert sorted(token_ids[0][kept[0]].tolist()) == [*range(7, 7 + math.ceil(num_equal / 2))]


def test_a_draw_from_the_likeliest_is_exact_where_it_says_so() -> None:
    # From flat rows, whose nuclei are larger than the list, to peaked ones.
    scales = torch.linspace(0.1, 8, 40)[:, None]
    logits, row_keys = torch.randn(40, 4_000) * scales, keys(40)
    exact = sample(logits, row_keys=row_keys, step=2, sampling=Sampling())
    drawn, is_exact = sample_from_likeliest(logits, row_keys=row_keys, step=2, sampling=Sampling())
    assert torch.equal(drawn[is_exact], exact[is_exact])
    assert is_exact[-1] and not is_exact[0]


def test_a_draw_after_top_k_alone_is_exact() -> None:
    # There is no nucleus; the 50 rounded probabilities add up to a little less or more than 1.
    logits, row_keys = torch.randn(64, 30_524), keys(64)
    sampling = Sampling(top_p=1.0, top_k=50)
    drawn, is_exact = sample_from_likeliest(logits, row_keys=row_keys, step=0, sampling=sampling)
    assert is_exact.all()
    assert torch.equal(drawn, sample(logits, row_keys=row_keys, step=0, sampling=sampling))
    every_id = logits.masked_fill(logits < logits.topk(50).values[:, -1:], -torch.inf)
    noise = gumbel(row_keys, step=0, token_ids=torch.arange(30_524))
    assert torch.equal(drawn, (every_id + noise).argmax(-1))
