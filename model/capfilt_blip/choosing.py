"""Choosing answers from a list: the first token makes a short list, the likelihood chooses.

As in the original's evaluation on VQAv2, with a list of 3,128 answers (arXiv:2201.12086, sec. 5.3;
salesforce/BLIP: rank_answer in models/blip_vqa.py), but without the label smoothing that it leaves
on there: a score here is the log-probability of the answer.

Letters: Q questions, C candidates, K short-listed, N candidates of one pass, L text tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt_blip.attention import Memory
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.vqa import BlipVqa

_PER_PASS = 16
"""N: memory grows with it, that of (Q N, L, V) logits."""

_ROUNDING = 0.5
"""More than bfloat16 can put between two log-probabilities of one token (a logit is below 64)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Answers to choose from."""

    texts: tuple[str, ...]
    """C of them."""
    token_ids: Tensor
    """(C, L) int64, [DEC] first and [SEP] last; L is that of the longest."""
    mask: Tensor
    """(C, L) bool, True where a token is real."""

    @classmethod
    def of(cls, texts: Sequence[str], *, tokenizer: Tokenizer, model: BlipVqa) -> Candidates:
        """Tokenize answers, as they are but in lower case, onto the device of the model.

        Raises:
            ValueError: there are none, or one is longer than the model has positions for.
        """
        if not texts:
            raise ValueError("there are no candidates; a choice needs one or more")
        room = model.config.text.max_positions
        batch = tokenizer.encode(texts, first="dec", max_tokens=room)
        longest = max(range(len(texts)), key=lambda index: batch.num_tokens[index])
        if batch.num_tokens[longest] > room - 2:
            raise ValueError(
                f"candidate {longest} has {batch.num_tokens[longest]} tokens; this model has "
                f"positions for {room - 2} between [DEC] and [SEP]"
            )
        device = model.lm_head.bias.device
        return cls(texts=tuple(texts), token_ids=batch.ids.to(device), mask=batch.mask.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Some of the candidates of each question, best first; on the CPU."""

    index: Tensor
    """(Q, K) int64, places in the list of candidates."""
    logprobs: Tensor
    """(Q, K) float32, of the whole answer, [SEP] included: a sum over tokens, not a mean."""


@torch.inference_mode()
def rank_answers(
    model: BlipVqa, questions: Memory, candidates: Candidates, *, num_first: int
) -> Ranking:
    """Score the candidates whose first tokens are likeliest, and sort them.

    Where two are equal, be it at the end of the short list or in the ranking, the one that stands
    earlier among the candidates goes first.

    Args:
        model: in eval mode.
        questions: Q questions, of `BlipVqa.read_questions`.
        candidates: C of them.
        num_first: candidates to score; K is this or C, whichever is less.

    Raises:
        ValueError: num_first is below 1.
    """
    _, index = _shortlist(model, questions, candidates, num_first=num_first)
    passes = [_score(model, questions, candidates, index=now) for now in _passes(index)]
    # Sorted by place, and then by score in a way that leaves equals as they are.
    index, order = index.sort(dim=1)
    logprobs, by_score = (
        torch.cat(passes, dim=1).gather(1, order).sort(dim=1, descending=True, stable=True)
    )
    return Ranking(index=index.gather(1, by_score).cpu(), logprobs=logprobs.cpu())


@torch.inference_mode()
def best_answers(
    model: BlipVqa, questions: Memory, candidates: Candidates, *, num_first: int
) -> Ranking:
    """Find the first of `rank_answers` alone, K = 1, without scoring those that cannot win.

    No answer is likelier than its first token. So the search may end when the best answer found is
    likelier than the first tokens that are left. The arguments are those of `rank_answers`.
    """
    first, index = _shortlist(model, questions, candidates, num_first=num_first)
    best = first.new_full((len(first),), -torch.inf)
    chosen = index[:, 0]
    ceilings = first[:, ::_PER_PASS] + _ROUNDING  # (Q, number of passes)
    for now, ceiling in zip(_passes(index), ceilings.unbind(1), strict=True):
        searching = ceiling >= best
        if not searching.any():
            break
        found = _score(model, questions, candidates, index=now)
        # A question whose search has ended stays as it is, whatever its batch mates still need.
        found = found.masked_fill(~searching[:, None], -torch.inf)
        logprobs = torch.cat([best[:, None], found], dim=1)
        places = torch.cat([chosen[:, None], now], dim=1)
        best = logprobs.amax(1)
        chosen = places.masked_fill(logprobs < best[:, None], len(candidates.texts)).amin(1)
    return Ranking(index=chosen[:, None].cpu(), logprobs=best[:, None].cpu())


def _shortlist(
    model: BlipVqa, questions: Memory, candidates: Candidates, *, num_first: int
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of first tokens, (Q, K), likeliest first, and their candidates."""
    if num_first < 1:
        raise ValueError(f"num_first is {num_first}; it must be 1 or more")
    start = candidates.token_ids[:1, :1].expand(len(questions), 1)
    logits = model.lm_logits(start, torch.ones_like(start, dtype=torch.bool), questions)
    of_tokens = logits[:, 0].float().log_softmax(-1)  # (Q, V)
    of_candidates = of_tokens[:, candidates.token_ids[:, 1]]  # (Q, C)
    first, index = of_candidates.sort(dim=1, descending=True, stable=True)
    return first[:, :num_first], index[:, :num_first]


def _passes(index: Tensor) -> list[Tensor]:
    """Cut (Q, K) into (Q, N), the last one (Q, up to N)."""
    return [index[:, start : start + _PER_PASS] for start in range(0, index.shape[1], _PER_PASS)]


def _score(model: BlipVqa, questions: Memory, candidates: Candidates, *, index: Tensor) -> Tensor:
    """Return the log-probabilities of the candidates of these indices, (Q, up to N), as such."""
    missing = _PER_PASS - index.shape[1]
    # Filler, so that all passes have the same shape.
    rows = torch.cat([index, index[:, :1].expand(-1, missing)], dim=1).flatten()
    token_ids, mask = candidates.token_ids[rows], candidates.mask[rows]  # (Q N, L)
    logits = model.lm_logits(token_ids, mask, questions)[:, :-1]
    of_tokens = -F.cross_entropy(
        logits.float().flatten(0, 1), token_ids[:, 1:].flatten(), reduction="none"
    )
    logprobs = of_tokens.view(len(rows), -1).masked_fill(~mask[:, 1:], 0).sum(1)
    return logprobs.view(len(index), _PER_PASS)[:, : index.shape[1]]
