"""Marks of a pre-trained BLIP on pictures that nobody trained on, as it is: without finetuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from benchmarks.bootstrap_rows.worlds import Exam, Judge
from capfilt_blip import Captioner, Retriever
from capfilt_blip.blip import Blip
from capfilt_blip.evaluate.cider import Cider
from capfilt_blip.tasks.recall import KS, recalls
from capfilt_blip.tokenizer import Tokenizer

_BATCH = 32
_MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What an exam showed: name to figure, each the better the higher."""

    figures: Mapping[str, float]
    captions: tuple[str, ...]
    """Of the exam's pictures, the likeliest word at each step."""


def examined(
    blip: Blip, exam: Exam, *, tokenizer: Tokenizer, judge: Judge | None, num_candidates: int
) -> Marks:
    """Retrieve and caption.

    Args:
        blip: pre-trained.
        exam: what is asked.
        tokenizer: the model's.
        judge: says which captions are true; None where nobody knows.
        num_candidates: that ITC finds and ITM reads, in both directions.
    """
    device = str(blip.temp.device)
    captioner = Captioner(blip.captioner(), tokenizer, device=device)
    written = captioner.greedy(
        exam.pixels, prompt="", max_new_tokens=_MAX_NEW_TOKENS, batch_size=_BATCH
    )
    captions = tuple(caption.text for caption in written)
    figures = _recalls(blip, exam, tokenizer=tokenizer, num_candidates=num_candidates)
    figures["CIDEr"] = fmean(Cider(exam.references).cider_d(captions))
    if judge is not None:
        flags = [judge(text, place) for place, text in enumerate(captions)]
        figures["true captions"] = sum(flags) / len(flags)
    return Marks(figures=figures, captions=captions)


def _recalls(
    blip: Blip, exam: Exam, *, tokenizer: Tokenizer, num_candidates: int
) -> dict[str, float]:
    retriever = Retriever(blip.matcher(), tokenizer, device=str(blip.temp.device))
    ranked = retriever.rank(
        exam.pixels, list(exam.texts), num_candidates=num_candidates, batch_size=_BATCH
    )
    found = recalls(ranked, image_of_text=exam.image_of_text)
    figures = {f"text recall@{k}": share for k, share in zip(KS, found.texts, strict=True)}
    images = zip(KS, found.images, strict=True)
    return figures | {f"image recall@{k}": share for k, share in images}
