"""Alt texts of the kinds that pages carry: some true, most of the others no help to a learner."""

from __future__ import annotations

import random
from enum import StrEnum

from capfilt.miniature.grammar import corrupt, describe
from capfilt.miniature.truth import is_true
from capfilt.miniature.world import COLOURS, KINDS, Scene, Thing, sample_scene


class AltKind(StrEnum):
    """Where an alt text comes from."""

    TRUE = "true"
    OTHER_IMAGE = "other_image"
    WRONG_ATTRIBUTE = "wrong_attribute"
    BOILERPLATE = "boilerplate"
    FILE_NAME = "file_name"
    KEYWORD_SPAM = "keyword_spam"
    OTHER_SCRIPT = "other_script"
    MARKUP = "markup"
    EMPTY = "empty"
    MISSING = "missing"


_FIXED = {
    AltKind.BOILERPLATE: (
        "click to enlarge",
        "image may be subject to copyright",
        "photo",
        "share on social media",
        "logo",
        "placeholder",
        "next slide",
        "sign up for our newsletter",
    ),
    AltKind.OTHER_SCRIPT: (
        "красная звезда на белом фоне",
        "синий круг слева",
        "红色的星星",
        "白色背景上的两个圆",
        "نجمة حمراء كبيرة",
        "πράσινο τρίγωνο",
        "青い四角と黄色い丸",
        "노란 별 두 개",
    ),
    AltKind.EMPTY: ("", " "),
}
_WITH_BLANKS = {
    AltKind.FILE_NAME: (
        "IMG_{number:04}.JPG",
        "DSC{number:05}",
        "{colour}-{kind}-{number}.png",
        "{kind}_final_v2.webp",
    ),
    AltKind.MARKUP: (
        '<img src="/{kind}-{number}.jpg" border=0>',
        "&lt;b&gt;{kind}&lt;/b&gt;&nbsp;&raquo; more",
        "{{{{ product.title | default('{kind}') }}}}",
    ),
}
_SPAM = ("buy", "cheap", "hd", "wallpaper", "free", "download", "best", "2024", "shapes", "sale")


def alt_text(kind: AltKind, scene: Scene, rng: random.Random) -> str | None:
    """Write an alt text of a kind for a picture of `scene`; None is a page without one.

    Only those of kind `TRUE` are true of the scene.
    """
    if kind is AltKind.MISSING:
        return None
    if kind in _FIXED:
        return rng.choice(_FIXED[kind])
    if kind in _WITH_BLANKS:
        return _filled_in(rng.choice(_WITH_BLANKS[kind]), rng.choice(scene.things), rng)
    if kind is AltKind.KEYWORD_SPAM:
        return _spam(rng.choice(scene.things), rng)
    return _dressed(_statement(kind, scene, rng), rng)


def _statement(kind: AltKind, scene: Scene, rng: random.Random) -> str:
    if kind is AltKind.TRUE:
        return describe(scene, rng)
    return corrupt(scene, rng) if kind is AltKind.WRONG_ATTRIBUTE else _of_another(scene, rng)


def _of_another(scene: Scene, rng: random.Random) -> str:
    while True:
        text = describe(sample_scene(rng), rng)
        if not is_true(text, scene):
            return text


def _filled_in(blanks: str, thing: Thing, rng: random.Random) -> str:
    return blanks.format(colour=thing.colour, kind=thing.kind, number=rng.randrange(10_000))


def _spam(thing: Thing, rng: random.Random) -> str:
    shown = (f"{thing.colour} {thing.kind}", rng.choice(COLOURS), rng.choice(KINDS))
    return " ".join(rng.sample((*shown, *_SPAM), 8))


def _dressed(text: str, rng: random.Random) -> str:
    """Write the same statement as another author would: none of this changes what it says."""
    if rng.random() < 0.15:
        text = rng.choice(("a picture of ", "a photo of ")) + text
    if rng.random() < 0.3:
        text = text.capitalize()
    return text + "." if rng.random() < 0.2 else text
