"""The three trainings of BLIP, each a generator of metrics that the caller drives.

The model is changed in place, one step per batch; training ends when the batches end, and leaves
the model in eval mode. Everything drawn here comes from `seed`, so the same batches on the same
machine give the same weights. What has to be saved and gone on with is a session: see `session`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.session import (
    CaptionerSession,
    MatcherSession,
    PretrainSession,
    Session,
)
from capfilt_blip.train.settings import (
    CaptionerSettings,
    MatcherSettings,
    PretrainSettings,
    StepMetrics,
)

__all__ = [
    "CaptionerSettings",
    "MatcherSettings",
    "PretrainSettings",
    "StepMetrics",
    "finetune_captioner",
    "finetune_matcher",
    "pretrain",
]


def pretrain(
    model: Blip,
    batches: Iterable[TextImageBatch],
    *,
    tokenizer: Tokenizer,
    settings: PretrainSettings,
) -> Iterator[StepMetrics]:
    """Teach a BLIP to contrast, to match and to write, on pairs that are believed true.

    Args:
        model: changed in place.
        batches: one step each.
        tokenizer: the model's.
        settings: see `PretrainSettings`.

    Yields:
        One row of metrics per batch, after its step.
    """
    yield from _run(PretrainSession(model, tokenizer=tokenizer, settings=settings), batches, model)


def finetune_captioner(
    model: BlipCaptioner,
    batches: Iterable[TextImageBatch],
    *,
    tokenizer: Tokenizer,
    settings: CaptionerSettings,
) -> Iterator[StepMetrics]:
    """Teach a captioner to continue the prompt; arguments and yields as of `pretrain`."""
    yield from _run(CaptionerSession(model, tokenizer=tokenizer, settings=settings), batches, model)


def finetune_matcher(
    model: BlipMatcher,
    batches: Iterable[TextImageBatch],
    *,
    tokenizer: Tokenizer,
    settings: MatcherSettings,
) -> Iterator[StepMetrics]:
    """Teach a matcher to tell true pairs from false; arguments and yields as of `pretrain`."""
    yield from _run(MatcherSession(model, tokenizer=tokenizer, settings=settings), batches, model)


def _run(
    session: Session, batches: Iterable[TextImageBatch], model: nn.Module
) -> Iterator[StepMetrics]:
    for batch in batches:
        yield session.step(batch)
    model.eval()
