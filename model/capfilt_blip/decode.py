"""Writing captions: the loop from a prompt to [SEP], for all rows of a batch at once.

What is written may also be an answer: anything a decoder says about a memory.

Letters: B texts, I memories (text b is about memory b // (B / I)), D width, T tokens generated,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from capfilt_blip.attention import Memory
from capfilt_blip.config import BlipConfig
from capfilt_blip.sampling import Sampling, sample
from capfilt_blip.text import TextStack


class Writer(Protocol):
    """A model that writes: `BlipCaptioner` writes captions, `BlipVqa` answers."""

    config: BlipConfig
    text_decoder: TextStack

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states of the decoder, (..., D), to logits, (..., V)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a caption may be, and how much it may repeat."""

    min_new_tokens: int = 1
    """Tokens that must come before [SEP]. The prompt does not count."""
    max_new_tokens: int = 20
    """Tokens after the prompt, [SEP] included."""
    repetition_penalty: float = 1.0
    """Weakens tokens that prompt or caption hold already (arXiv:1909.05858, sec. 4.1); 1 is off."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens < self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens} and max_new_tokens is "
                f"{self.max_new_tokens}; the first must be 0 or more, the second above it"
            )
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Captions as token ids, on the CPU."""

    token_ids: Tensor
    """(B, T) int64, without the prompt; [PAD] after [SEP]."""
    num_tokens: Tensor
    """(B,) int64: tokens generated, [SEP] included."""
    logprobs: Tensor
    """(B,) float32: log-probability of these tokens under the model as it is, before penalty,
    temperature and nucleus; a sum over tokens, not a mean."""


def generate_greedy(
    writer: Writer, memory: Memory, *, prompt_ids: Sequence[int], limits: Limits
) -> Generated:
    """Write the text about each memory that takes the likeliest token at every step.

    Args:
        writer: in eval mode.
        memory: I memories, of the writer's `text_decoder.project_memory`.
        prompt_ids: what each text starts with, [DEC] first.
        limits: on the texts.
    """
    return _generate(
        writer, memory, prompt_ids, num_texts=len(memory), limits=limits, choose=_likeliest
    )


def generate_sampled(
    writer: Writer,
    memory: Memory,
    *,
    prompt_ids: Sequence[int],
    row_keys: Sequence[int],
    limits: Limits,
    sampling: Sampling,
) -> Generated:
    """Draw texts, B / I about each memory.

    Args:
        writer: in eval mode.
        memory: I memories, of the writer's `text_decoder.project_memory`.
        prompt_ids: what each text starts with, [DEC] first.
        row_keys: B numbers, of `sampling.row_key`; the texts about one memory follow each other.
        limits: on the texts.
        sampling: the distribution that tokens are drawn from.
    """
    keys = torch.tensor(row_keys, dtype=torch.int64, device=memory.device)

    def draw(logits: Tensor, step: int) -> Tensor:
        return sample(logits, row_keys=keys, step=step, sampling=sampling)

    return _generate(
        writer, memory, prompt_ids, num_texts=len(row_keys), limits=limits, choose=draw
    )


def _likeliest(logits: Tensor, step: int) -> Tensor:
    return logits.argmax(-1)


@torch.inference_mode()
def _generate(  # one more than six, all of them handed on
    writer: Writer,
    memory: Memory,
    prompt_ids: Sequence[int],
    *,
    num_texts: int,
    limits: Limits,
    choose: Callable[[Tensor, int], Tensor],
) -> Generated:
    """Run the loop; `choose` maps (B, V) logits and the step's number to (B,) token ids."""
    config, decoder = writer.config, writer.text_decoder
    start = len(prompt_ids)
    room = checked_room(start + limits.max_new_tokens, max_positions=config.text.max_positions)
    prompt = torch.tensor(prompt_ids, device=memory.device)
    tokens = prompt.new_full((num_texts, room), config.pad_token_id)
    tokens[:, :start] = prompt
    num_tokens = prompt.new_zeros(num_texts)
    logprobs = torch.zeros(num_texts, device=memory.device)
    unfinished = prompt.new_ones(num_texts, dtype=torch.bool)

    hidden, cache = decoder.read_prompt(
        prompt_ids, num_texts=num_texts, num_tokens=room, memory=memory
    )
    for step in range(limits.max_new_tokens):
        end = start + step
        logits = writer.token_logits(hidden).float()  # (B, V)
        allowed = penalised(logits, tokens[:, :end], penalty=limits.repetition_penalty)
        if step < limits.min_new_tokens:
            allowed[:, config.sep_token_id] = -torch.inf
        chosen = choose(allowed, step)
        # Finished rows stay in the batch, so that its shape, and with it each result, stays.
        logprobs += _logprob(logits, chosen).masked_fill(~unfinished, 0)
        num_tokens += unfinished
        tokens[:, end] = chosen.where(unfinished, config.pad_token_id)
        unfinished &= chosen != config.sep_token_id
        if not unfinished.any():
            break
        hidden = decoder.step(tokens[:, end, None], position=end, cache=cache, memory=memory)
    return Generated(
        token_ids=tokens[:, start : end + 1].cpu(),
        num_tokens=num_tokens.cpu(),
        logprobs=logprobs.cpu(),
    )


def checked_room(num_tokens: int, *, max_positions: int) -> int:
    """Return the number of tokens if there are positions for them.

    Raises:
        ValueError: there are not.
    """
    if num_tokens > max_positions:
        raise ValueError(
            f"prompt and max_new_tokens make {num_tokens} tokens; this model has positions for "
            f"{max_positions}"
        )
    return num_tokens


def penalised(logits: Tensor, seen: Tensor, *, penalty: float) -> Tensor:
    """Weaken tokens that a text holds already: above 0 divided, below 0 multiplied.

    Args:
        logits: (B, V), or log-probabilities.
        seen: (B, L) int64, tokens of each text.
        penalty: above 0; 1 changes nothing.

    Returns:
        (B, V), a copy.
    """
    found = logits.gather(1, seen)
    weakened = torch.where(found < 0, found * penalty, found / penalty)
    return logits.scatter(1, seen, weakened)


def _logprob(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
