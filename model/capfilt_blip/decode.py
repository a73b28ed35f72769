"""Writing captions: the loop from a prompt to [SEP], for all rows of a batch at once.

What is written may also be an answer: anything a decoder says about a memory.

Letters: B texts, I memories (text b is about memory b // (B / I)), D width, T tokens generated,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

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


Choose: TypeAlias = Callable[[Tensor, int], Tensor]
"""Maps (B, V) logits and the number of the step to (B,) token ids."""


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
        memory: I memories, of the writer's `text_decoder`.
        prompt_ids: what each text starts with, [DEC] first.
        limits: on the texts.
    """
    writing = Writing(writer, memory, prompt_ids, num_texts=len(memory), limits=limits)
    return _written(writing, _likeliest)


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
        memory: I memories, of the writer's `text_decoder`.
        prompt_ids: what each text starts with, [DEC] first.
        row_keys: B numbers, of `sampling.row_key`; the texts about one memory follow each other.
        limits: on the texts.
        sampling: the distribution that tokens are drawn from.
    """
    keys = torch.tensor(row_keys, dtype=torch.int64, device=memory.device)

    def draw(logits: Tensor, step: int) -> Tensor:
        return sample(logits, row_keys=keys, step=step, sampling=sampling)

    writing = Writing(writer, memory, prompt_ids, num_texts=len(row_keys), limits=limits)
    return _written(writing, draw)


def _likeliest(logits: Tensor, step: int) -> Tensor:
    return logits.argmax(-1)


@torch.inference_mode()
def _written(writing: Writing, choose: Choose) -> Generated:
    writing.begin()
    for step in range(writing.limits.max_new_tokens):
        writing.write(step, choose)
        if writing.all_ended():
            break
    return writing.generated()


class EagerWriting:
    """Writes step by step, as the host gives the orders.

    Args:
        writer: in eval mode.
    """

    def __init__(self, writer: Writer) -> None:
        self.greedy = partial(generate_greedy, writer)
        self.sampled = partial(generate_sampled, writer)


class Writing:
    """Texts in the making: what `begin` and then `write`, step by step, leave behind.

    All is on the memory's device, and nothing but `all_ended` and `generated` waits for it.

    Args:
        writer: in eval mode.
        memory: I memories, of the writer's `text_decoder`.
        prompt_ids: what each text starts with, [DEC] first.
        num_texts: B, a multiple of I.
        limits: on the texts.
    """

    def __init__(
        self,
        writer: Writer,
        memory: Memory,
        prompt_ids: Sequence[int],
        *,
        num_texts: int,
        limits: Limits,
    ) -> None:
        text = writer.config.text
        self.limits = limits
        self._writer = writer
        self._memory = memory
        self._prompt = torch.tensor(prompt_ids, device=memory.device)
        room = checked_room(
            len(prompt_ids) + limits.max_new_tokens, max_positions=text.max_positions
        )
        self._tokens = self._prompt.new_empty(num_texts, room)
        self._num_tokens = self._prompt.new_empty(num_texts)
        self._logprobs = torch.empty(num_texts, device=memory.device)
        self.unfinished = self._prompt.new_empty(num_texts, dtype=torch.bool)
        """(B,) bool, True where [SEP] is still to come."""

    def begin(self) -> None:
        """Read the prompt; what was written before is gone."""
        self._tokens.fill_(self._writer.config.pad_token_id)
        self._tokens[:, : len(self._prompt)] = self._prompt
        self._num_tokens.zero_()
        self._logprobs.zero_()
        self.unfinished.fill_(value=True)
        num_texts, room = self._tokens.shape
        self._hidden, self._cache = self._writer.text_decoder.read_prompt(
            self._prompt, num_texts=num_texts, num_tokens=room, memory=self._memory
        )

    def write(self, step: int, choose: Choose) -> None:
        """Add a token to each text that has not ended.

        Args:
            step: tokens written before; one more than at the last call.
            choose: maps (B, V) logits and the step to (B,) token ids.
        """
        config, end = self._writer.config, len(self._prompt) + step
        if step:
            self._hidden = self._writer.text_decoder.step(
                self._tokens[:, end - 1, None],
                position=end - 1,
                cache=self._cache,
                memory=self._memory,
            )
        logits = self._writer.token_logits(self._hidden).float()  # (B, V)
        chosen = choose(self._allowed(logits, step), step)
        # Finished rows stay in the batch, so that its shape, and with it each result, stays.
        self._logprobs += _logprob(logits, chosen).where(self.unfinished, 0)
        self._num_tokens += self.unfinished
        self._tokens[:, end] = chosen.where(self.unfinished, config.pad_token_id)
        self.unfinished &= chosen != config.sep_token_id

    def all_ended(self) -> bool:
        """Whether [SEP] has come in every text."""
        return not self.unfinished.any()

    def generated(self) -> Generated:
        """Return what was written."""
        num_tokens = self._num_tokens.cpu()
        longest = int(num_tokens.max()) if len(num_tokens) else 0
        start = len(self._prompt)
        return Generated(
            token_ids=self._tokens[:, start : start + longest].cpu(),
            num_tokens=num_tokens,
            logprobs=self._logprobs.cpu(),
        )

    def _allowed(self, logits: Tensor, step: int) -> Tensor:
        limits, so_far = self.limits, self._tokens[:, : len(self._prompt) + step]
        if limits.repetition_penalty != 1:
            logits = penalised(logits, so_far, penalty=limits.repetition_penalty)
        if step < limits.min_new_tokens:
            logits = logits.clone()  # the unchanged ones give the log-probability
            logits[:, self._writer.config.sep_token_id] = -torch.inf
        return logits


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
