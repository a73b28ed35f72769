"""The losses of the tasks that BLIP is finetuned for: answering (VQA) and judging pairs (NLVR2).

Functions of tensors that the models have already computed, as in `losses`.

    B answers or pairs, L text tokens, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

VISUAL_GENOME_WEIGHT = 0.2
"""Weight of the one answer that a question of Visual Genome has, where BLIP trains on these, too
(salesforce/BLIP: data/vqa_dataset.py)."""


def distinct_answers(answers: Sequence[str]) -> dict[str, float]:
    """Weigh each distinct answer to a question by how many people gave it.

    Args:
        answers: to one question; VQAv2 has those of ten people.

    Returns:
        Answer to weight, in the order of their first appearance; the weights sum to 1.
    """
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


def vqa_loss(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    *,
    weights: Tensor,
    num_questions: int,
    label_smoothing: float = 0.1,
) -> Tensor:
    """Cross-entropy of weighted answers: a sum over tokens, so that long answers weigh more.

    As the original, whose batches hold one question for each image (arXiv:2201.12086, sec. 5.3;
    salesforce/BLIP: models/blip_vqa.py).

    Args:
        logits: (B, L, V), from `BlipVqa.lm_logits`; position l predicts token l + 1.
        token_ids: (B, L) int64, [DEC] first.
        mask: (B, L) bool, True where a token is real; padding is not learnt.
        weights: (B,) float, from `distinct_answers`.
        num_questions: that the answers belong to; each counts the same.
        label_smoothing: mass spread over the vocabulary, in [0, 1); BLIP's is 0.1.

    Returns:
        Scalar, the sum over the answers over the number of questions.
    """
    labels = token_ids.masked_fill(~mask, -100)[:, 1:]
    per_token = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        labels.flatten(),
        label_smoothing=label_smoothing,
        reduction="none",
    )
    per_answer = per_token.view_as(labels).sum(dim=1)  # (B,)
    return torch.dot(weights.float(), per_answer) / num_questions


def nlvr_loss(logits: Tensor, is_true: Tensor) -> Tensor:
    """Cross-entropy of the judgement of sentences about pairs of images.

    Args:
        logits: (B, 2), from `BlipNlvr`, index 1 is "true".
        is_true: (B,) bool.

    Returns:
        Scalar, the mean over the pairs.
    """
    return F.cross_entropy(logits.float(), is_true.long())
