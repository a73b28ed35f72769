"""One round's texts: what the captioner wrote, and what the filter says of them and of the web's.

P pictures of the web.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.bootstrap_rows.learner import Pupils
from benchmarks.bootstrap_rows.worlds import Album, Judge, Pairs, pairs_of
from capfilt_blip import Captioner, Matcher
from capfilt_blip.tokenizer import Tokenizer

MIN_ITM_PROB = 0.5
"""Lowest probability kept: BLIP's rule, the head says "match"."""

_BATCH = 32
_MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTexts:
    """What a captioner and a filter made of the web."""

    captions: Sequence[str]
    """P synthetic texts."""
    caption_probs: Sequence[float]
    """Of each, that it matches its picture."""
    web_probs: Sequence[float]
    """Of the P web texts; 0 where there is none."""
    captions_true: Sequence[bool] | None
    """What is known of the captions; None where nobody knows."""

    @property
    def rejected(self) -> float:
        """BLIP's noise ratio: the share of synthetic texts that the filter throws away."""
        return sum(prob < MIN_ITM_PROB for prob in self.caption_probs) / len(self.captions)


def round_texts(
    pupils: Pupils, web: Album, *, tokenizer: Tokenizer, judge: Judge | None, seed: int
) -> RoundTexts:
    """Caption each picture once by nucleus sampling (p = 0.9), and score both texts."""
    device = str(pupils.matcher.itm_head.weight.device)
    captioner = Captioner(pupils.captioner, tokenizer, device=device)
    written = captioner.caption(
        web.pixels,
        prompt=pupils.prompt,
        max_new_tokens=_MAX_NEW_TOKENS,
        seed=seed,
        batch_size=_BATCH,
    )
    captions = [row[0].text for row in written]
    matcher = Matcher(pupils.matcher, tokenizer, device=device)
    asked = [list(texts) for texts in zip(web.texts, captions, strict=True)]
    probs = [scores.itm_prob for scores in matcher.score(web.pixels, asked, batch_size=_BATCH)]
    return RoundTexts(
        captions=captions,
        caption_probs=[caption or 0.0 for _, caption in probs],
        web_probs=[
            (prob or 0.0) if text.strip() else 0.0
            for (prob, _), text in zip(probs, web.texts, strict=True)
        ],
        captions_true=None if judge is None else list(map(judge, captions, range(len(captions)))),
    )


def web_pairs(web: Album, texts: RoundTexts | None) -> Pairs:
    """The web's own texts: all of them, or those that the filter keeps."""
    kept = [True] * len(web.texts) if texts is None else _kept(texts.web_probs)
    shown = [text if keep else "" for text, keep in zip(web.texts, kept, strict=True)]
    return pairs_of(Album(pixels=web.pixels, texts=shown, is_true=web.is_true))


def synthetic_pairs(web: Album, texts: RoundTexts, *, filtered: bool) -> Pairs:
    """The captions of the web's pictures: all of them, or those that the filter keeps."""
    kept = _kept(texts.caption_probs) if filtered else [True] * len(texts.captions)
    shown = [text if keep else "" for text, keep in zip(texts.captions, kept, strict=True)]
    known = texts.captions_true or [True] * len(texts.captions)
    return pairs_of(Album(pixels=web.pixels, texts=shown, is_true=known))


def _kept(probs: Sequence[float]) -> list[bool]:
    return [prob >= MIN_ITM_PROB for prob in probs]
