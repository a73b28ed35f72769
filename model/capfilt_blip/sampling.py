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

# So many of the likeliest tokens hold the nucleus of nearly every step; else all are sorted. It
# changes the time, never the result.
_NUM_LIKELIEST = 256


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
    scaled = logits.float() / sampling.temperature
    if sampling.top_k:
        scaled = _only_top_k(scaled, sampling.top_k)
    token_ids, kept = nucleus(scaled, top_p=sampling.top_p)
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
    probabilities = logits.softmax(-1)
    limit = int(top_p * 2**_PROBABILITY_BITS)
    if num_tokens > _NUM_LIKELIEST:
        likeliest, token_ids = probabilities.topk(_NUM_LIKELIEST, dim=-1)
        quantised, token_ids = _ranked(likeliest, token_ids)
        # Which of several equal tokens topk leaves out is its own affair, so the nucleus has to be
        # full without those that equal the last.
        above = quantised.masked_fill(quantised == quantised[:, -1:], 0).sum(-1)
        if bool((above >= limit).all()):
            return token_ids, quantised.cumsum(-1) - quantised < limit
    every_id = torch.arange(num_tokens, device=logits.device).expand_as(probabilities)
    quantised, token_ids = _ranked(probabilities, every_id)
    return token_ids, quantised.cumsum(-1) - quantised < limit


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
    least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
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
