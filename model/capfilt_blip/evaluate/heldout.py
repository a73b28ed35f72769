"""Measures a model on pairs it does not learn from, during training and after.

Nothing of the model is changed, and nothing is drawn: a training that is measured gives the same
weights as one that is not.

Letters: N images, S image side in pixels, T texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import get_args

import torch
from torch import Tensor, nn

from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.evaluate.cider import Cider
from capfilt_blip.tasks.captioner import PROMPT, Captioner
from capfilt_blip.tasks.features import FeatureExtractor
from capfilt_blip.tasks.placement import Dtype
from capfilt_blip.tasks.recall import KS, Recalls, recalls
from capfilt_blip.tasks.reranker import Hits, Retrieved
from capfilt_blip.tasks.retriever import Retriever
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import Images

TEXTS_AT_ONCE = 256
"""Texts whose hidden states are held: 28 MB in the width of ViT-B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutPairs:
    """Images and what people wrote of them."""

    images: Images
    """N images: (N, S, S, 3) uint8, S that of the model, or PIL images."""
    texts: Sequence[str]
    """T texts."""
    image_of_text: Sequence[int]
    """T places, each of the image that a text describes. Every image has one text or more."""

    def references(self) -> list[list[str]]:
        """List the texts of each image."""
        found: list[list[str]] = [[] for _ in range(len(self.images))]
        for text, image in zip(self.texts, self.image_of_text, strict=True):
            found[image].append(text)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How much is measured."""

    num_candidates: int = 16
    """Nearest by ITC that ITM ranks for each query; BLIP takes 128 or 256. Cost: one text pass with
    cross-attention for each, of N + T queries."""
    num_captions: int = 64
    """Images that are captioned, the first ones."""
    prompt: str = PROMPT
    """What captions continue; that of finetuning, and none ("") in pre-training."""
    batch_size: int = 8
    """Images in one pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSample:
    """A caption the model wrote, and what people wrote of the same image."""

    text: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What was measured; what the model cannot do is None or empty."""

    itc: Recalls | None = None
    """By the cosine alone, among all."""
    itm: Recalls | None = None
    """The nearest by cosine, ranked by ITM: how BLIP is evaluated (arXiv:2201.12086, sec. 5.1)."""
    cider_d: float | None = None
    """Mean CIDEr-D of the captions, in [0, 10]; papers print 100 times that."""
    captions: tuple[CaptionSample, ...] = ()
    """Greedy: the likeliest token at every step."""


def measure_held_out(
    model: Blip | BlipCaptioner | BlipMatcher,
    pairs: HeldOutPairs,
    *,
    tokenizer: Tokenizer,
    measuring: Measuring,
) -> HeldOut:
    """Measure what a model can do: retrieval, captions, or both.

    It computes in the dtype of the weights, or in that of a surrounding `torch.autocast`.

    Args:
        model: in any mode; it is left in that mode.
        pairs: held out, two images at least.
        tokenizer: the model's.
        measuring: how much.

    Raises:
        ValueError: the pairs are not what they should be.
    """
    with evaluating(model):
        itc, itm = (None, None)
        if not isinstance(model, BlipCaptioner):
            matcher = model.matching() if isinstance(model, Blip) else model
            itc = itc_recalls(matcher, pairs, tokenizer=tokenizer, measuring=measuring)
            itm = itm_recalls(matcher, pairs, tokenizer=tokenizer, measuring=measuring)
        if isinstance(model, BlipMatcher):
            return HeldOut(itc=itc, itm=itm)
        captioner = model.captioning() if isinstance(model, Blip) else model
        captions = _captions(captioner, pairs, tokenizer=tokenizer, measuring=measuring)
        scores = Cider(pairs.references()).cider_d([caption.text for caption in captions])
        return HeldOut(
            itc=itc, itm=itm, cider_d=fmean(scores) if scores else None, captions=captions
        )


def itm_recalls(
    model: BlipMatcher, pairs: HeldOutPairs, *, tokenizer: Tokenizer, measuring: Measuring
) -> Recalls:
    """Measure recall where ITM ranks the candidates; arguments as of `measure_held_out`."""
    device, dtype = _place(model)
    retriever = Retriever(model, tokenizer, device=device, dtype=dtype)
    retrieved = retriever.rank(
        pairs.images,
        pairs.texts,
        num_candidates=measuring.num_candidates,
        batch_size=measuring.batch_size,
    )
    return recalls(retrieved, image_of_text=pairs.image_of_text)


def itc_recalls(
    model: BlipMatcher, pairs: HeldOutPairs, *, tokenizer: Tokenizer, measuring: Measuring
) -> Recalls:
    """Measure recall by the cosines alone; arguments as of `measure_held_out`."""
    device, dtype = _place(model)
    extractor = FeatureExtractor(model, tokenizer, device=device, dtype=dtype)
    images = extractor.image_vectors(pairs.images, batch_size=measuring.batch_size)
    starts = range(0, len(pairs.texts), TEXTS_AT_ONCE)
    texts = torch.cat(
        [extractor.text_vectors(pairs.texts[start : start + TEXTS_AT_ONCE]) for start in starts]
    )
    cosines = images @ texts.T  # (N, T)
    retrieved = Retrieved(texts=_first(cosines), images=_first(cosines.T))
    return recalls(retrieved, image_of_text=pairs.image_of_text)


def _first(cosines: Tensor) -> Hits:
    """Order the nearest of each row; of equal ones the lower place comes first."""
    best = cosines.sort(dim=1, descending=True, stable=True)
    return Hits(indices=best.indices[:, : max(KS)], scores=best.values[:, : max(KS)])


def _captions(
    model: BlipCaptioner, pairs: HeldOutPairs, *, tokenizer: Tokenizer, measuring: Measuring
) -> tuple[CaptionSample, ...]:
    device, dtype = _place(model)
    captioner = Captioner(model, tokenizer, device=device, dtype=dtype)
    images = pairs.images[: measuring.num_captions]
    written = captioner.greedy(images, prompt=measuring.prompt, batch_size=measuring.batch_size)
    return tuple(
        CaptionSample(text=caption.text, references=tuple(texts))
        for caption, texts in zip(written, pairs.references(), strict=False)
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode for the block; each part returns to the mode it was in."""
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _place(model: nn.Module) -> tuple[torch.device, Dtype]:
    """Where a model is and in what: asking for the same moves nothing."""
    weight = next(model.parameters())
    name = str(weight.dtype).removeprefix("torch.")
    [dtype] = [known for known in get_args(Dtype) if known == name]
    return weight.device, dtype
