"""Beam search: the text of the highest score, sought among several that grow side by side.

The search is that of transformers 5 with early_stopping=False, and finds the same ids: it goes on
as long as a growing text could still beat the worst of the K best ended ones.

Letters: I memories (images, or questions), K beams, C candidates (2 K), N texts of any of these,
T tokens generated, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt_blip.attention import Memory
from capfilt_blip.decode import Generated, Limits, Writer, checked_room, penalised


@dataclass(frozen=True, slots=True, kw_only=True)
class Beams:
    """How many texts grow side by side, and how texts of different lengths are compared."""

    num_beams: int = 3
    """BLIP evaluates with 3 (arXiv:2201.12086, sec. 5.2; num_beams in its caption_coco.yaml)."""
    length_penalty: float = 1.0
    """A score is a sum of log-probabilities over length ** length_penalty: more favours longer
    texts, 0 compares sums. The length counts new tokens, [SEP] included, and not the prompt."""

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ValueError(f"num_beams is {self.num_beams}; it must be 1 or more")


@torch.inference_mode()
def generate_beams(
    writer: Writer, memory: Memory, *, prompt_ids: Sequence[int], limits: Limits, beams: Beams
) -> Generated:
    """Write the text about each memory that a beam search finds.

    All beams of a memory read the memory itself; of what the decoder keeps, only the texts' own
    keys and values follow the beams. The repetition penalty acts on log-probabilities, as it does
    in transformers' beam search, and not on logits as in `generate_sampled`.

    Args:
        writer: in eval mode.
        memory: I memories, of the writer's `text_decoder.project_memory`.
        prompt_ids: what each text starts with, [DEC] first.
        limits: on the texts.
        beams: the search.

    Returns:
        I texts. Their `logprobs` are sums under the model as it is: no penalty, no length.
    """
    config, decoder, start = writer.config, writer.text_decoder, len(prompt_ids)
    room = checked_room(start + limits.max_new_tokens, max_positions=config.text.max_positions)
    prompts = torch.tensor(prompt_ids, device=memory.device).expand(
        len(memory), beams.num_beams, start
    )
    growing = _first_texts(prompts, room=room, pad_id=config.pad_token_id)
    ended = dataclasses.replace(growing, scores=torch.full_like(growing.scores, -torch.inf))
    improvable = torch.ones_like(growing.scores[:, :1], dtype=torch.bool)  # (I, 1)

    hidden, cache = decoder.read_prompt(
        prompt_ids, num_texts=growing.scores.numel(), num_tokens=room, memory=memory
    )
    for end in range(start, room):
        length = end + 1 - start
        logprobs = writer.token_logits(hidden).float().log_softmax(-1)  # (I K, V)
        scores = penalised(logprobs, growing.rows(0, end), penalty=limits.repetition_penalty)
        if length <= limits.min_new_tokens:
            scores[:, config.sep_token_id] = -torch.inf
        candidates, parents = growing.grown(scores, logprobs, end=end)
        ends = (candidates.token_ids[:, :, end] == config.sep_token_id) | (end + 1 == room)

        divisor = length**beams.length_penalty
        ended = _with_ended(ended, candidates, ends & improvable, divisor=divisor)
        growing, index = candidates.only(~ends).best(beams.num_beams)
        # What can no longer improve stays so: that its batch mates go on changes nothing.
        improvable &= growing.scores[:, :1] / divisor > ended.scores[:, -1:]
        if not improvable.any():
            break
        _reorder(cache, parents.gather(1, index), end=end)
        hidden = decoder.step(growing.rows(end, end + 1), position=end, cache=cache, memory=memory)
    return _generated(ended, start=start, sep_id=config.sep_token_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """Texts of each memory."""

    token_ids: Tensor
    """(I, N, prompt and T) int64; [PAD] where nothing is written."""
    scores: Tensor
    """(I, N) float32, what the search compares; -inf where there is no text."""
    logprobs: Tensor
    """(I, N) float32, under the model as it is."""

    def rows(self, first: int, end: int) -> Tensor:
        """Return the tokens from `first` to before `end` as the decoder takes them, (I N, L)."""
        return self.token_ids[:, :, first:end].flatten(0, 1)

    def only(self, allowed: Tensor) -> _Texts:
        """Strike out the texts where (I, N) bool is False."""
        return dataclasses.replace(self, scores=self.scores.masked_fill(~allowed, -torch.inf))

    def pick(self, index: Tensor) -> _Texts:
        """Return the texts of these indices, (I, M) int64."""
        columns = index[:, :, None].expand(-1, -1, self.token_ids.shape[2])
        return _Texts(
            token_ids=self.token_ids.gather(1, columns),
            scores=self.scores.gather(1, index),
            logprobs=self.logprobs.gather(1, index),
        )

    def best(self, count: int) -> tuple[_Texts, Tensor]:
        """Return the texts of highest score, best first, and their indices, (I, count) int64."""
        index = self.scores.topk(count, dim=1).indices
        return self.pick(index), index

    def grown(self, scores: Tensor, logprobs: Tensor, *, end: int) -> tuple[_Texts, Tensor]:
        """Return the best candidates, each one of these texts and a token more.

        Args:
            scores: (I K, V) of the tokens, to be added to those of the texts.
            logprobs: (I K, V) of the tokens.
            end: length of these texts.

        Returns:
            The candidates, best first, and which text each continues, (I, C) int64.
        """
        num_memories, num_beams = self.scores.shape
        totals = (scores.view(num_memories, num_beams, -1) + self.scores[:, :, None]).flatten(1)
        # Each text ends in one way only, so 2 K candidates hold K that go on.
        best = totals.topk(2 * num_beams, dim=1)
        parents, tokens = best.indices // scores.shape[1], best.indices % scores.shape[1]
        candidates = dataclasses.replace(self.pick(parents), scores=best.values)
        candidates.token_ids[:, :, end] = tokens
        added = logprobs.view(num_memories, -1).gather(1, best.indices)
        return dataclasses.replace(candidates, logprobs=candidates.logprobs + added), parents


def _first_texts(prompts: Tensor, *, room: int, pad_id: int) -> _Texts:
    """Give prompts, (I, K, L), room to grow; only the first of each memory counts as a text."""
    num_memories, num_beams, start = prompts.shape
    token_ids = prompts.new_full((num_memories, num_beams, room), pad_id)
    token_ids[:, :, :start] = prompts
    scores = torch.full((num_memories, num_beams), -torch.inf, device=prompts.device)
    scores[:, 0] = 0
    return _Texts(token_ids=token_ids, scores=scores, logprobs=torch.zeros_like(scores))


def _with_ended(ended: _Texts, candidates: _Texts, ends: Tensor, *, divisor: float) -> _Texts:
    """Return the K best of the texts that have ended and of the K best candidates that do."""
    num_beams = ended.scores.shape[1]
    first = torch.arange(ends.shape[1], device=ends.device) < num_beams
    new = candidates.only(ends & first)
    joined = _Texts(
        token_ids=torch.cat([ended.token_ids, new.token_ids], 1),
        scores=torch.cat([ended.scores, new.scores / divisor], 1),
        logprobs=torch.cat([ended.logprobs, new.logprobs], 1),
    )
    return joined.best(num_beams)[0]


def _reorder(cache: Tensor, parents: Tensor, *, end: int) -> None:
    """Give each beam what the cache, of `TextStack.new_cache`, holds of the text it continues."""
    num_memories, num_beams = parents.shape
    first = torch.arange(0, num_memories * num_beams, num_beams, device=parents.device)
    rows = (parents + first[:, None]).flatten()
    cache[:, :, :, :, :end] = cache[:, :, rows, :, :end]


def _generated(ended: _Texts, *, start: int, sep_id: int) -> Generated:
    token_ids = ended.token_ids[:, 0, start:].cpu()
    # A text without [SEP] was cut off.
    before_sep = ((token_ids == sep_id).cumsum(1) == 0).sum(1)
    num_tokens = (before_sep + 1).clamp(max=token_ids.shape[1])
    return Generated(
        token_ids=token_ids[:, : int(num_tokens.max())] if len(token_ids) else token_ids,
        num_tokens=num_tokens,
        logprobs=ended.logprobs[:, 0].cpu(),
    )
