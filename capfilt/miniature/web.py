"""Plan a web of pictures with alt texts, much of it as careless as the real one.

Everything follows from the seed, and so the truth is known for every page: what its picture shows,
whether its alt text is true, which pages show the same picture, and which must not survive, and
why. About one page in eight fails: a broken or hostile body, an error, a slow or a false answer.
Of the rest, one in four is a copy of another's picture (see `distort`), with an alt text of its
own. Beside the copies stand pictures that a careless eye would take for copies: mirror images, and
scenes of which one thing has moved or is there once more or less. Beyond these, no two scenes have
the same colours in the same cells, as far as the world has room for it (some ten thousand pages):
a thumbnail of a circle is too much like one of a square to ask a hash which is which.

Bodies are made when they are asked for, so that planning draws nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice, zip_longest

from capfilt.miniature.alt_texts import AltKind, alt_text
from capfilt.miniature.distort import Edit, Encoding, Picture
from capfilt.miniature.hostile import Hostile, encoding_of
from capfilt.miniature.pages import Behaviour, MiniWeb, Page, reasons_of
from capfilt.miniature.world import Cell, Scene, mirrored, sample_scene, siblings

MIN_PAGES = 40
UNSERVED_URLS = ("http://192.0.2.1/private.png", "file:///etc/hostname", "ftp://192.0.2.1/a.jpg")
"""Must be refused, not fetched. 192.0.2.0/24 is kept for documentation: nobody answers there."""

# Shares of all pages.
_FAILING_SHARE, _COPY_SHARE, _MIRROR_SHARE, _SIBLING_SHARE = 0.13, 0.22, 0.03, 0.04
_REDIRECT_SHARE, _SLOW_SHARE = 0.01, 0.01
# Shares of the alt texts; of the real web it is known only that much of it is noise.
_ALT_SHARES = {
    AltKind.TRUE: 0.42,
    AltKind.OTHER_IMAGE: 0.14,
    AltKind.WRONG_ATTRIBUTE: 0.14,
    AltKind.BOILERPLATE: 0.07,
    AltKind.FILE_NAME: 0.06,
    AltKind.KEYWORD_SPAM: 0.05,
    AltKind.OTHER_SCRIPT: 0.04,
    AltKind.MARKUP: 0.03,
    AltKind.EMPTY: 0.03,
    AltKind.MISSING: 0.02,
}
_SIDES_PX = (96, 128, 160, 192, 224, 256)
_COMMON_ENCODINGS = (Encoding.JPEG,) * 5 + (Encoding.PNG,) * 2 + (Encoding.WEBP,) * 2
_RARE_ENCODINGS = tuple(encoding for encoding in Encoding if encoding not in _COMMON_ENCODINGS)
_RARE_EVERY = 10
_MAX_DRAWS = 30  # of a scene, before one is taken that is like another
_COPIES = (
    (Edit.NONE, None),  # byte for byte
    (Edit.NONE, Encoding.ROUGH_JPEG),
    (Edit.SHRUNK, Encoding.JPEG),
    (Edit.CROPPED, Encoding.JPEG),
    (Edit.WATERMARKED, Encoding.JPEG),
    (Edit.ENLARGED, Encoding.WEBP),
    (Edit.NONE, Encoding.WEBP),
)


Layout = tuple[tuple[str, Cell], ...]


def build_web(seed: int, *, num_pages: int = 400) -> MiniWeb:
    """Plan a web.

    Args:
        seed: the same seed and number give the same pages, bytes and truth.
        num_pages: at least `MIN_PAGES`; from 200 on, every kind of page occurs.
    """
    assert num_pages >= MIN_PAGES, f"{num_pages} pages have no room for all; {MIN_PAGES} have"
    rng = random.Random(f"web/{seed}")
    lookalikes = _counted(num_pages, (_COPY_SHARE, _MIRROR_SHARE, _SIBLING_SHARE, _REDIRECT_SHARE))
    num_copies, num_mirrors, num_siblings, num_redirects = lookalikes
    num_failing, num_slow = _counted(num_pages, (_FAILING_SHARE, _SLOW_SHARE))
    num_originals = num_pages - sum(lookalikes) - num_failing - num_slow
    shown: set[Layout] = set()
    originals = list(_originals(num_originals, shown, rng))
    slow = [replace(page, behaviour=Behaviour.SLOW) for page in _originals(num_slow, shown, rng)]
    sound = [
        *originals,
        *slow,
        *_copies(originals, num_copies, rng),
        *islice(_mirrors(originals, shown, rng), num_mirrors),
        *islice(_siblings(originals, shown, rng), num_siblings),
        *_redirects(originals, num_redirects, rng),
    ]
    failing = list(_failing(num_failing, rng))
    pages = [*_with_alt_texts(sound, rng), *_with_alt_texts(failing, rng)]
    rng.shuffle(pages)
    return MiniWeb(pages=tuple(pages))


def url_list(web: MiniWeb, base_url: str) -> list[tuple[str, str | None]]:
    """The list a crawler leaves: (URL, alt text) of each page, in order.

    Args:
        web: the planned web.
        base_url: of the server, without a slash at the end.
    """
    return [(page_url(page.path, base_url), page.alt_text) for page in web.pages]


def page_url(path: str, base_url: str) -> str:
    """The URL of a page, from its path in the truth table."""
    return path if ":" in path else base_url + path


def _counted(num_pages: int, shares: Sequence[float]) -> list[int]:
    return [max(1, round(share * num_pages)) for share in shares]


def _originals(num: int, shown: set[Layout], rng: random.Random) -> Iterator[Page]:
    rare_encodings = cycle(_RARE_ENCODINGS)
    for i in range(num):
        rare = i % _RARE_EVERY == _RARE_EVERY - 1
        encoding = next(rare_encodings) if rare else rng.choice(_COMMON_ENCODINGS)
        yield _page(_new_scene(shown, rng), encoding, rng)


def _new_scene(shown: set[Layout], rng: random.Random) -> Scene:
    for _ in range(_MAX_DRAWS):
        scene = sample_scene(rng)
        if _is_new(scene, shown):
            break
    return scene


def _is_new(scene: Scene, shown: set[Layout]) -> bool:
    """Whether no picture has this layout so far; from now on one has."""
    layout = tuple((thing.colour, thing.cell) for thing in scene.things)
    is_new = layout not in shown
    shown.add(layout)
    return is_new


def _page(scene: Scene, encoding: Encoding, rng: random.Random) -> Page:
    picture = Picture(drawn=scene, side_px=rng.choice(_SIDES_PX), encoding=encoding)
    path = _new_path(encoding, rng)
    return Page(path=path, picture=picture, scene=scene, group=path)


def _new_path(encoding: Encoding, rng: random.Random) -> str:
    return f"/pictures/{rng.getrandbits(48):012x}.{encoding.suffix}"


def _copies(originals: Sequence[Page], num: int, rng: random.Random) -> Iterator[Page]:
    for edit, new_encoding in islice(cycle(_COPIES), num):
        page = rng.choice(originals)
        encoding = new_encoding or page.picture.encoding
        picture = replace(page.picture, edit=edit, encoding=encoding)
        yield replace(page, path=_new_path(encoding, rng), picture=picture)


def _mirrors(originals: Sequence[Page], shown: set[Layout], rng: random.Random) -> Iterator[Page]:
    for page in rng.sample(originals, len(originals)):
        scene = mirrored(page.scene)
        if _is_new(scene, shown):  # so that no scene is its own mirror image
            path = _new_path(page.picture.encoding, rng)
            picture = replace(page.picture, edit=Edit.MIRRORED)
            yield replace(page, path=path, picture=picture, scene=scene, group=path)


def _siblings(originals: Sequence[Page], shown: set[Layout], rng: random.Random) -> Iterator[Page]:
    for page in rng.sample(originals, len(originals)):
        # One thing moved, or one more or less: more than a hash of a thumbnail could overlook.
        rearranged = [s for s in siblings(page.scene, rng) if _cells(s) != _cells(page.scene)]
        scene = replace(rng.choice(rearranged), seed=rng.getrandbits(32))
        if _is_new(scene, shown):
            yield _page(scene, page.picture.encoding, rng)


def _cells(scene: Scene) -> list[Cell]:
    return [thing.cell for thing in scene.things]


def _redirects(originals: Sequence[Page], num: int, rng: random.Random) -> Iterator[Page]:
    for page in rng.sample(originals, num):
        path = _new_path(page.picture.encoding, rng)
        yield replace(page, path=path, behaviour=Behaviour.REDIRECT, target=page.path)


def _failing(num: int, rng: random.Random) -> Iterator[Page]:
    """Pages that must be lost: hostile bodies and bad answers in turn, each kind equally often."""
    bad_answers = [behaviour for behaviour in Behaviour if reasons_of(behaviour)]
    in_turn = [kind for pair in zip_longest(Hostile, bad_answers) for kind in pair if kind]
    for i, kind in enumerate(islice(cycle(in_turn), num)):
        scene = sample_scene(rng)
        if isinstance(kind, Hostile):
            yield replace(_page(scene, encoding_of(kind), rng), hostile=kind)
            continue
        page = replace(_page(scene, Encoding.JPEG, rng), behaviour=kind)
        if kind is Behaviour.UNSERVED:
            url = f"{UNSERVED_URLS[i % len(UNSERVED_URLS)]}?{i}"
            page = replace(page, path=url, group=url)
        yield page


def _with_alt_texts(pages: Sequence[Page], rng: random.Random) -> Iterator[Page]:
    """Give each page an alt text; the kinds have their shares exactly, in random order."""
    kinds: list[AltKind] = []
    for kind, share in _ALT_SHARES.items():
        kinds += [kind] * round(share * len(pages))
    kinds += [AltKind.TRUE] * (len(pages) - len(kinds))
    rng.shuffle(kinds)
    for page, kind in zip(pages, kinds, strict=False):
        yield replace(page, alt_kind=kind, alt_text=alt_text(kind, page.scene, rng))
