"""Sampling in the `generate()` of transformers that depends on a caption's key and nothing else.

`generate()` draws from torch's global generator, so a caption would depend on its batch mates and
on how often it was tried. Here a logits processor does the drawing, with the noise of
`capfilt_blip.sampling`, and leaves one token to choose from; the loop around it is greedy.

Letters: B rows, L tokens so far, T generated tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessor

from capfilt_blip.decode import Limits, penalised
from capfilt_blip.sampling import Sampling, sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The texts of a batch, on the CPU."""

    token_ids: list[list[int]]
    """Of each row, up to its end token, which is in."""
    logprobs: list[float]
    """Log-probability of these tokens under the model as it is."""


class KeyedSampler(LogitsProcessor):  # type: ignore[misc]  # mypy does not look into transformers
    """Draws the next token of each row, and records what was drawn.

    Args:
        row_keys: B numbers, of `sampling.row_key`.
        end_ids: tokens that end a text.
        limits: on the texts.
        sampling: the distribution that tokens are drawn from.
        device: of the logits.
    """

    def __init__(
        self,
        row_keys: Sequence[int],
        *,
        end_ids: Sequence[int],
        limits: Limits,
        sampling: Sampling,
        device: torch.device,
    ) -> None:
        self._row_keys = torch.tensor(row_keys, dtype=torch.int64, device=device)
        self._end_ids = torch.tensor(end_ids, dtype=torch.int64, device=device)
        self._limits = limits
        self._sampling = sampling
        self._unfinished = torch.ones(len(row_keys), dtype=torch.bool, device=device)
        self._num_tokens = torch.zeros(len(row_keys), dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(len(row_keys), device=device)
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw a token for each row.

        Args:
            input_ids: (B, L) int64, prompt and text so far.
            scores: (B, V) float32, the model's own logits.

        Returns:
            (B, V) float32, 0 for the drawn token and -inf for all others.
        """
        step = len(self._steps)
        allowed = self._penalised(input_ids, scores)
        if step < self._limits.min_new_tokens:
            allowed[:, self._end_ids] = -torch.inf
        drawn = sample(allowed, row_keys=self._row_keys, step=step, sampling=self._sampling)
        logprob = scores.gather(1, drawn[:, None])[:, 0] - scores.logsumexp(-1)
        # A finished row goes on in the batch, so that its shape stays; what it draws is not kept.
        self._logprobs += logprob.masked_fill(~self._unfinished, 0)
        self._num_tokens += self._unfinished
        self._unfinished &= ~torch.isin(drawn, self._end_ids)
        self._steps.append(drawn)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0)

    def drawn(self) -> Drawn:
        """What was drawn since the beginning."""
        rows = torch.stack(self._steps, dim=1).tolist()
        counts = self._num_tokens.tolist()
        return Drawn(
            token_ids=[row[:count] for row, count in zip(rows, counts, strict=True)],
            logprobs=self._logprobs.tolist(),
        )

    def _penalised(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # A model may mark the image's place by a token it cannot write: one column more is its.
        spare = F.pad(scores, (0, 1))
        seen = input_ids.clamp(max=scores.shape[1])
        return penalised(spare, seen, penalty=self._limits.repetition_penalty)[:, :-1]
