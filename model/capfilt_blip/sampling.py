"""Random choices that depend on a key and on nothing else.

A sampled token is the argmax of logits plus Gumbel noise (the Gumbel-max trick: that argmax has
the distribution of the softmax). The noise of a token is a hash of (seed, round, sample key,
caption index, step, token id), so the order of samples, their batch mates, retries and the number
of workers change nothing. It is tied to the token id, not to a rank or to one number per step, so
that a pick also survives small changes of the other logits.

All is integer arithmetic but the last step, alike on CPU and GPU; so is the cut of the nucleus,
for sums of floats depend on their order.

Letters: B rows, V vocabulary, C candidates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

# Constants of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
# OOPSLA 2014).
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

# A probability p is held as the integer round(p * 2**40), so its error is below 1e-12.
_PROBABILITY_BITS = 40
# Token ids share an int64 with such a probability (41 bits, since p may be 1) when candidates are
# ranked, so that no two of them are equal.
_TOKEN_BITS = 20

# So many of the likeliest tokens are looked at first, then so many; if they do not hold the
# nucleus, all tokens are sorted. It changes the time, never the result.
_NUM_LIKELIEST = (64, 512)
# Tokens are searched for the likeliest in groups of so many; see `_top`.
_GROUP_SIZE = 16


def row_key(*, seed: int, round_: int, key: str, caption_index: int) -> int:
    """Hash what a caption's noise may depend on into a signed 64-bit integer."""
    digest = hashlib.blake2b(digest_size=8, person=b"capfilt-rng-v1")
    for field in (str(seed), str(round_), key, str(caption_index)):
        # With its length before it, so that ("1", "23") is not ("12", "3").
        encoded = field.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return int.from_bytes(digest.digest(), "little", signed=True)


def gumbel(row_keys: Tensor, *, step: int, token_ids: Tensor) -> Tensor:
    """Return the noise of tokens.

    Args:
        row_keys: (B,) int64, of `row_key`.
        step: how many tokens were generated before this one.
        token_ids: (B, C) or (C,) int64.

    Returns:
        (B, C) float32, standard Gumbel distributed; finite.
    """
    row_bits = _mix(row_keys + _signed(_GAMMA * (step + 1)))[:, None]
    bits = _mix(row_bits + _signed(_GAMMA) * (token_ids + 1))
    # 24 bits and a half, in (0, 1). In float32 the largest would round to 1: infinite noise.
    uniform = (_shift_right(bits, 40).double() + 0.5) * 2**-24
    return -torch.log(-torch.log(uniform)).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The distribution that tokens are drawn from: temperature, then top-k, then top-p.

    BLIP's generate() asks for p = 0.9 and, unseen, also for k = 50: transformers 4.15 put that in.
    """

    top_p: float = 0.9
    """Only the likeliest tokens that reach this probability together (arXiv:1904.09751)."""
    top_k: int = 0
    """Only so many of the likeliest tokens; 0 is all."""
    temperature: float = 1.0
    """Above 0; the logits are divided by it."""

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")


def sample(logits: Tensor, *, row_keys: Tensor, step: int, sampling: Sampling) -> Tensor:
    """Draw the next token of each row.

    Args:
        logits: (B, V), any float; -inf bans a token.
        row_keys: (B,) int64, of `row_key`.
        step: how many tokens were generated before this one.
        sampling: the distribution.

    Returns:
        (B,) int64 token ids.
    """
    scaled = _scaled(logits, sampling)
    token_ids, kept = nucleus(scaled, top_p=sampling.top_p)
    return _drawn(scaled, token_ids, kept, row_keys=row_keys, step=step)


def sample_from_likeliest(
    logits: Tensor, *, row_keys: Tensor, step: int, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Do what `sample` does without waiting for the device, from the likeliest tokens alone.

    Args:
        logits: as of `sample`.
        row_keys: as of `sample`.
        step: as of `sample`.
        sampling: the distribution.

    Returns:
        (B,) int64 token ids; and (B,) bool, True where they are those of `sample`: where the
        nucleus is known to lie among the tokens looked at.
    """
    scaled = _scaled(logits, sampling)
    token_ids, kept, is_whole = _nucleus_among(
        scaled.softmax(-1), min(_NUM_LIKELIEST[-1], scaled.shape[-1]), limit=_limit(sampling.top_p)
    )
    return _drawn(scaled, token_ids, kept, row_keys=row_keys, step=step), is_whole


def _scaled(logits: Tensor, sampling: Sampling) -> Tensor:
    scaled = logits.float()
    if sampling.temperature != 1:
        scaled = scaled / sampling.temperature
    return _only_top_k(scaled, sampling.top_k) if sampling.top_k else scaled


def _drawn(
    scaled: Tensor, token_ids: Tensor, kept: Tensor, *, row_keys: Tensor, step: int
) -> Tensor:
    noisy = scaled.gather(1, token_ids) + gumbel(row_keys, step=step, token_ids=token_ids)
    best = noisy.masked_fill(~kept, -torch.inf).argmax(-1, keepdim=True)
    return token_ids.gather(1, best)[:, 0]


def nucleus(logits: Tensor, *, top_p: float) -> tuple[Tensor, Tensor]:
    """Find the fewest of the likeliest tokens that reach a probability together.

    Args:
        logits: (B, V) float32; V is at most 2**20.
        top_p: in (0, 1].

    Returns:
        Candidates, (B, C) int64 token ids, the likeliest first, equal ones by id; and (B, C) bool,
        True where a candidate is in the nucleus. Tokens that are no candidates are not in it.
    """
    num_tokens = logits.shape[-1]
    assert num_tokens <= 2**_TOKEN_BITS, f"the vocabulary has {num_tokens} tokens"
    probabilities, limit = logits.softmax(-1), _limit(top_p)
    for count in _NUM_LIKELIEST:
        if count < num_tokens:
            token_ids, kept, is_whole = _nucleus_among(probabilities, count, limit=limit)
            if bool(is_whole.all()):
                return token_ids, kept
    return _nucleus_among(probabilities, num_tokens, limit=limit)[:2]


def _limit(top_p: float) -> int:
    return int(top_p * 2**_PROBABILITY_BITS)


def _nucleus_among(
    probabilities: Tensor, count: int, *, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Look for the nucleus among so many of the likeliest tokens.

    Args:
        probabilities: (B, V).
        count: C, at most V.
        limit: that the nucleus reaches, in units of 2**-_PROBABILITY_BITS.

    Returns:
        As of `nucleus`; and (B,) bool, True where the nucleus is certainly whole.
    """
    num_tokens = probabilities.shape[-1]
    if count == num_tokens:
        every_id = torch.arange(num_tokens, device=probabilities.device)
        quantised, token_ids = _ranked(probabilities, every_id.expand_as(probabilities))
        is_whole = torch.ones_like(quantised[:, 0], dtype=torch.bool)
    else:
        likeliest = _top(probabilities, count)
        quantised, token_ids = _ranked(*likeliest)
        # Which of several equal tokens are among the likeliest is chance, so the nucleus has to be
        # full without those that equal the last.
        above = quantised.masked_fill(quantised == quantised[:, -1:], 0).sum(-1)
        # Or nothing else can be drawn, as after top-k: rounded numbers may miss the limit.
        is_whole = (above >= limit) | (likeliest[0][:, -1] == 0)
    return token_ids, quantised.cumsum(-1) - quantised < limit, is_whole


def _top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the largest values of each row, faster than `topk` does in long rows.

    The `count` largest are among the members of the `count` groups whose largest members are
    largest: each of these groups has a member that is no less than any outside of them.

    Args:
        values: (B, V).
        count: at most V.

    Returns:
        (B, count) values, the largest first, and (B, count) int64, where they stand. Which of
        several that equal the last are left out is chance.
    """
    num_groups = values.shape[1] // _GROUP_SIZE
    if num_groups <= count:
        return values.topk(count, dim=-1)
    # A group's members lie num_groups apart, so that one pass over whole rows finds their maxima.
    whole = values[:, : num_groups * _GROUP_SIZE]
    grouped = whole.view(len(values), _GROUP_SIZE, num_groups)
    best = grouped.amax(1).topk(count, dim=-1, sorted=False).indices  # (B, count)
    firsts = torch.arange(_GROUP_SIZE, device=values.device) * num_groups
    members = (best[:, None] + firsts[:, None]).flatten(1)  # (B, _GROUP_SIZE * count)
    rest = torch.arange(num_groups * _GROUP_SIZE, values.shape[1], device=values.device)
    members = torch.cat([members, rest.expand(len(values), -1)], dim=1)
    found = values.gather(1, members).topk(count, dim=-1)
    return found.values, members.gather(1, found.indices)


def _ranked(probabilities: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Make probabilities whole numbers and sort, the likeliest first, equal ones by token id.

    Returns:
        (B, C) int64, probabilities in units of 2**-_PROBABILITY_BITS; and (B, C) int64 token ids.
    """
    quantised = (probabilities.double() * 2**_PROBABILITY_BITS).round().to(torch.int64)
    last_id = 2**_TOKEN_BITS - 1
    ranks = ((quantised << _TOKEN_BITS) + (last_id - token_ids)).sort(-1, descending=True).values
    return ranks >> _TOKEN_BITS, last_id - (ranks & last_id)


def _only_top_k(logits: Tensor, top_k: int) -> Tensor:
    least = _top(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def _mix(bits: Tensor) -> Tensor:
    """Finish splitmix64: each bit of the result depends on each bit given."""
    bits = (bits ^ _shift_right(bits, 30)) * _signed(_MIX_1)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(_MIX_2)
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    # torch shifts the sign in from the left; as unsigned numbers shift, zeros come in.
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(number: int) -> int:
    """Give the 64-bit two's complement of a number, modulo 2**64."""
    return (number + 2**63) % 2**64 - 2**63
