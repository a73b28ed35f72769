"""The report's small pieces of HTML: texts that are not ours, thumbnails, cards, and words.

Everything shown was written by strangers, so every piece of text passes `plain` or `said`, and
nothing else does.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from urllib.parse import urlsplit

from capfilt.records import Reason, TextSource
from capfilt.stages.report_charts import score_bar
from capfilt.stages.report_rows import JudgedText, Seen, fit_of
from capfilt.stages.report_scores import Yardstick

MAX_SHOWN_CHARS = 300
KEY_DIGITS = 12
JOINERS = "\u200c\u200d"  # they shape letters and emoji, and hide nothing

REASON_WORDS: Mapping[str, str] = {
    Reason.URL_REFUSED: "an address that must not be fetched",
    Reason.HTTP_ERROR: "the server answered with an error",
    Reason.FETCH_TIMEOUT: "the server took too long",
    Reason.FETCH_FAILED: "the connection failed, or the body was not acceptable",
    Reason.OPTED_OUT: "the site asks not to be used for training",
    Reason.IMAGE_MISSING: "the sample has no image",
    Reason.IMAGE_UNREADABLE: "broken, cut, or no format that is decoded",
    Reason.IMAGE_TOO_LARGE: "sides or pixels past the limit",
    Reason.IMAGE_TOO_SMALL: "too small to be a picture",
    Reason.IMAGE_BYTES_TOO_MANY: "the file is past the limit",
    Reason.DECODE_TIMEOUT: "decoding took too long",
    Reason.DECODE_CRASHED: "decoding ended the process that tried",
    Reason.SHARD_DAMAGED: "the shard breaks here; what follows is lost",
    Reason.KILLED_WORKER: "the worker died of this row, twice",
    Reason.WORKER_ERROR: "the worker failed on this row, twice",
    Reason.BYTES_CHANGED: "the image is not the one that was indexed",
    Reason.TEXT_MISSING: "the image came without a text",
    Reason.TEXT_EMPTY: "the text is blank",
    Reason.SCORE_NOT_FINITE: "the filter's number is no number",
    Reason.TEXT_TOO_LONG: "longer than the policy allows",
    Reason.ITM_BELOW_MIN: "the filter does not see the text in the image",
    Reason.ITC_CLEARLY_LOW: "image and text vectors are so far apart that ITM was not asked",
    Reason.ITC_BELOW_MIN: "image and text vectors are too far apart",
    Reason.NOT_BEST: "another text of the image fits better",
    Reason.WEB_PREFERRED: "the web text passed, so the caption is not needed",
    Reason.NO_TEXT_KEPT: "no text of the image was kept",
    Reason.DUPLICATE_EXACT: "the same bytes as an image that stays",
    Reason.DUPLICATE_PERCEPTUAL: "looks the same as an image that stays",
    Reason.DUPLICATE_EMBEDDING: "shows the same as an image that stays",
    Reason.HELD_OUT: "the next models are measured on it, so they do not learn from it",
}
"""What each reason means, for a reader who has not read the code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A sample with its thumbnail, or why there is none."""

    seen: Seen
    jpeg: bytes | None
    trouble: str = ""


def plain(value: object) -> str:
    """Any value as text that is nothing but text."""
    return said(str(value), most=10_000)


def said(text: str, *, most: int = MAX_SHOWN_CHARS) -> str:
    """A stranger's text, shortened, with what would hide or reorder letters made visible."""
    shown = "".join(map(_character, text[:most]))
    if len(text) <= most:
        return shown
    return f'{shown}… <span class="soft">({len(text):,} characters)</span>'


def _character(char: str) -> str:
    if char in "\t\n\r":
        return " "
    hides = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    if hides and char not in JOINERS:
        return f'<span class="hidden-char">U+{ord(char):04X}</span>'
    return escape(char)


def without_query(url: str) -> str:
    """A URL without the parts that may hold secrets: user, password, query, fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].partition("#")[0]
    if not parts.scheme or not parts.netloc:
        return url.partition("?")[0].partition("#")[0]
    more = "?…" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{more}"


def thumbnail(picture: Picture | None) -> str:
    """A picture's thumbnail, or a box that says why there is none."""
    if picture is None or picture.jpeg is None:
        trouble = "no image" if picture is None else picture.trouble
        return f'<div class="thumb">{plain(trouble)}</div>'
    encoded = base64.b64encode(picture.jpeg).decode("ascii")
    key = escape(picture.seen.sample.key[:KEY_DIGITS])
    return (
        f'<div class="thumb"><img src="data:image/jpeg;base64,{encoded}" '
        f'alt="image {key}" decoding="async"></div>'
    )


def image_card(picture: Picture, *, yardstick: Yardstick) -> str:
    """An image with all its texts."""
    texts = "".join(text_block(text, yardstick=yardstick) for text in picture.seen.texts)
    return _card(picture, texts)


def text_card(picture: Picture, text: tuple[str, int], *, yardstick: Yardstick) -> str:
    """An image with one of its texts, its score shown to four digits."""
    chosen = [t for t in picture.seen.texts if (t.text_source, t.text_index) == text]
    blocks = (text_block(t, yardstick=yardstick, digits=4) for t in chosen)
    return _card(picture, "".join(blocks))


def _card(picture: Picture, body: str) -> str:
    key = plain(picture.seen.sample.key[:KEY_DIGITS])
    return (
        f'<article class="card">{thumbnail(picture)}'
        f'<div class="body">{body}<div class="key">{key}</div></div></article>'
    )


def text_block(text: JudgedText, *, yardstick: Yardstick, digits: int = 3) -> str:
    """A text, who wrote it, what the filter thinks of it, and its verdict."""
    source: TextSource = "web" if text.text_source == "web" else "synthetic"
    words = '<span class="soft">no text</span>' if text.text is None else said(text.text)
    facts = [f'<span class="from">{"web" if source == "web" else "caption"}</span>']
    fit = fit_of(text, yardstick)
    if fit is not None:
        facts.append(score_bar(fit, yardstick=yardstick, source=source))
        facts.append(f"<span>{yardstick.name} {fit:.{digits}f}</span>")
    facts.append(_mark(text))
    dropped = " no" if text.kept is False else ""
    return (
        f'<div class="text {source}{dropped}"><span class="said" dir="auto">{words}</span>'
        f'<span class="meta">{"".join(facts)}</span></div>'
    )


def _mark(text: JudgedText) -> str:
    if text.kept:
        return '<span class="mark yes">✓ kept</span>'
    if text.reason is not None:
        return f'<span class="mark not">✗ {plain(text.reason)}</span>'
    return ""
