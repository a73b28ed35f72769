"""The three losses of BLIP: contrast (ITC), matching (ITM) and language modelling (LM).

All are functions of tensors that the models have already computed, so that one process or many,
with momentum or without, use the same lines (arXiv:2201.12086, sec. 3.2).

    B batch, N candidates (the batch and, behind it, the queue), E shared width, L text tokens,
    V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5


def clamp_temperature(temperature: Tensor) -> None:
    """Keep the learnt ITC temperature in [0.001, 0.5], in place, as the original does each step."""
    with torch.no_grad():
        temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)


def known_pairs(image_ids: Tensor, text_ids: Tensor) -> Tensor:
    """Find the pairs of a batch that are true without looking: same image, or same text.

    Args:
        image_ids: (B,) int64, equal for equal images.
        text_ids: (B,) int64, equal for equal texts.

    Returns:
        (B, B) bool, True where text j also belongs to image i; the diagonal is True.
    """
    same_image = image_ids[:, None] == image_ids[None, :]
    same_text = text_ids[:, None] == text_ids[None, :]
    return same_image | same_text


def cross_pairs(ids: Tensor, queue_ids: Tensor) -> Tensor:
    """Find the queue's pairs of the same image, or of the same text, as those of the batch.

    Args:
        ids: (B,) int64.
        queue_ids: (Q,) int64.

    Returns:
        (B, Q) bool.
    """
    return ids[:, None] == queue_ids[None, :]


def itc_targets(similarity: Tensor, positives: Tensor, *, soft_weight: float) -> Tensor:
    """Mix hard targets with what the momentum encoders believe (ALBEF, arXiv:2107.07651, eq. 6).

    Args:
        similarity: (B, N) cosines of the momentum encoders over the temperature.
        positives: (B, N) bool, at least one True in each row; these share the hard mass evenly.
        soft_weight: share of the momentum encoders' own distribution, in [0, 1].

    Returns:
        (B, N) float, rows sum to 1; no gradient flows through it.
    """
    with torch.no_grad():
        hard = positives / positives.sum(dim=1, keepdim=True)
        return soft_weight * similarity.softmax(dim=1) + (1 - soft_weight) * hard


def itc_loss(similarity: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of one side of the contrast; BLIP takes the mean of both sides.

    Args:
        similarity: (B, N) cosines of this side's vectors with all candidates, over the temperature.
        targets: (B, N), rows sum to 1, from `itc_targets`.

    Returns:
        Scalar, the mean over the batch.
    """
    return -(similarity.log_softmax(dim=1) * targets).sum(dim=1).mean()


def hard_negatives(
    similarity: Tensor, known: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw one wrong partner for each row, the likelier the more alike ITC finds the two.

    Args:
        similarity: (B, B) cosines over the temperature, row i against column j.
        known: (B, B) bool, True where i and j do match; such a pair is never drawn.
        generator: on the CPU, so that the draw is the same on every device.

    Returns:
        (B,) int64 column drawn for each row, and (B,) bool, False where a row has no wrong partner
        (then its column means nothing).
    """
    weights = similarity.detach().float().softmax(dim=1).cpu()
    known = known.cpu()
    # 1e-4 as in the original: a row that is sure of its own pair leaves nothing for the others.
    weights = (weights + 1e-4).masked_fill(known, 0.0)
    found = ~known.all(dim=1)
    weights[~found] = 1.0
    drawn = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    return drawn.to(similarity.device), found.to(similarity.device)


def itm_loss(logits: Tensor, is_match: Tensor) -> Tensor:
    """Cross-entropy of the matching head.

    Args:
        logits: (B, 2), index 1 is "match".
        is_match: (B,) bool.

    Returns:
        Scalar, the mean over the pairs.
    """
    return F.cross_entropy(logits.float(), is_match.long())


def lm_loss(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    *,
    num_prompt_tokens: int = 0,
    label_smoothing: float = 0.1,
) -> Tensor:
    """Cross-entropy of each next token.

    Args:
        logits: (B, L, V); position l predicts token l + 1.
        token_ids: (B, L) int64, [DEC] first.
        mask: (B, L) bool, True where a token is real; padding is not learnt.
        num_prompt_tokens: leading tokens, [DEC] included, that are given and so not learnt.
        label_smoothing: mass spread over the vocabulary, in [0, 1); BLIP's is 0.1.

    Returns:
        Scalar, the mean over all learnt tokens.
    """
    labels = token_ids.masked_fill(~mask, -100)
    labels[:, :num_prompt_tokens] = -100
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        labels[:, 1:].flatten(),
        label_smoothing=label_smoothing,
    )
