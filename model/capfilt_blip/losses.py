"""The three losses of BLIP: contrast (ITC), matching (ITM) and language modelling (LM).

All are functions of tensors that the models have already computed, so that one process or many,
with momentum or without, use the same lines (arXiv:2201.12086, sec. 3.2). Each is a mean. Where
several processes, or several parts of a batch, have a share of it, the mean's divisor is given:
then the shares sum to the loss of the whole.

    B batch, N candidates (of this process or of all and, behind them, the queue), E shared width,
    L text tokens, V vocabulary.
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


def known_pairs(
    image_ids: Tensor, text_ids: Tensor, *, all_image_ids: Tensor, all_text_ids: Tensor
) -> Tensor:
    """Find the pairs that are true without looking: same image, or same text.

    Args:
        image_ids: (B,) int64, equal for equal images.
        text_ids: (B,) int64, equal for equal texts.
        all_image_ids: (N,) int64 of the candidates.
        all_text_ids: (N,) int64 of the candidates.

    Returns:
        (B, N) bool, True where text n also belongs to image b, and image n to text b.
    """
    same_image = image_ids[:, None] == all_image_ids
    same_text = text_ids[:, None] == all_text_ids
    return same_image | same_text


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


def itc_loss(similarity: Tensor, targets: Tensor, *, num_rows: Tensor | None = None) -> Tensor:
    """Cross-entropy of one side of the contrast; BLIP takes the mean of both sides.

    Args:
        similarity: (B, N) cosines of this side's vectors with all candidates, over the temperature.
        targets: (B, N), rows sum to 1, from `itc_targets`.
        num_rows: scalar, the mean's divisor; None is B.

    Returns:
        Scalar, the mean over the batch.
    """
    total = -(similarity.log_softmax(dim=1) * targets).sum()
    return total / (len(similarity) if num_rows is None else num_rows)


def hard_negatives(similarity: Tensor, known: Tensor, *, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one wrong partner for each row, the likelier the more alike ITC finds the two.

    Nothing here waits for the device.

    Args:
        similarity: (B, N) cosines over the temperature, row b against candidate n.
        known: (B, N) bool, True where b and n do match; such a pair is never drawn.
        draws: (B,) float64, uniform in [0, 1); what is drawn depends on nothing else.

    Returns:
        (B,) int64 candidate drawn for each row, and (B,) bool, False where a row has no wrong
        partner (then its candidate means nothing).
    """
    weights = similarity.detach().double().softmax(dim=1)
    # 1e-4 as in the original: a row that is sure of its own pair leaves nothing for the others.
    heaped = (weights + 1e-4).masked_fill(known, 0.0).cumsum(dim=1)
    wanted = draws[:, None] * heaped[:, -1:]
    # To the right of equals: a candidate of weight 0 adds nothing to the heap, and is passed over.
    drawn = torch.searchsorted(heaped, wanted, right=True).squeeze(1)
    # Without a wrong partner, or with a similarity that is not a number, it is past the end.
    return drawn.clamp(max=known.shape[1] - 1), has_wrong_partner(known)


def has_wrong_partner(known: Tensor) -> Tensor:
    """Say for each row of (B, N) known pairs whether a wrong one is left, (B,) bool."""
    return ~known.all(dim=1)


def itm_loss(
    logits: Tensor,
    is_match: Tensor,
    *,
    used: Tensor | None = None,
    num_pairs: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the matching head.

    Args:
        logits: (B, 2), index 1 is "match".
        is_match: (B,) bool.
        used: (B,) bool, False where a pair is not learnt; None learns all.
        num_pairs: scalar, the mean's divisor; None is the number of pairs that are learnt.

    Returns:
        Scalar, the mean over the pairs.
    """
    used = torch.ones_like(is_match) if used is None else used
    per_pair = F.cross_entropy(logits.float(), is_match.long(), reduction="none")
    return (per_pair * used).sum() / (used.sum() if num_pairs is None else num_pairs)


def lm_loss(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    *,
    num_prompt_tokens: int = 0,
    label_smoothing: float = 0.1,
    num_tokens: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each next token.

    Args:
        logits: (B, L, V); position l predicts token l + 1.
        token_ids: (B, L) int64, [DEC] first.
        mask: (B, L) bool, True where a token is real; padding is not learnt.
        num_prompt_tokens: leading tokens, [DEC] included, that are given and so not learnt.
        label_smoothing: mass spread over the vocabulary, in [0, 1); BLIP's is 0.1.
        num_tokens: scalar, the mean's divisor; None is `num_learnt_tokens`.

    Returns:
        Scalar, the mean over all learnt tokens.
    """
    labels = token_ids.masked_fill(~mask, -100)
    labels[:, :num_prompt_tokens] = -100
    total = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        labels[:, 1:].flatten(),
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    if num_tokens is None:
        num_tokens = num_learnt_tokens(mask, num_prompt_tokens=num_prompt_tokens)
    return total / num_tokens


def num_learnt_tokens(mask: Tensor, *, num_prompt_tokens: int = 0) -> Tensor:
    """Count the tokens that `lm_loss` learns, a scalar; the first token is never learnt."""
    return mask[:, max(1, num_prompt_tokens) :].sum()
