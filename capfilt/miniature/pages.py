"""One page of the miniature web: its address, alt text and picture, and the truth about them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

from capfilt.miniature.alt_texts import AltKind
from capfilt.miniature.distort import Picture, picture_bytes
from capfilt.miniature.hostile import Hostile, expected_reasons, hostile_bytes
from capfilt.miniature.truth import is_true
from capfilt.miniature.world import Scene, scene_to_json
from capfilt.records import Reason


class Behaviour(StrEnum):
    """How the server answers for a page."""

    OK = "ok"
    REDIRECT = "redirect"  # to another page
    SLOW = "slow"  # but in time
    NOT_FOUND = "not_found"
    TRUNCATED = "truncated"  # the connection closes before the promised length
    SERVER_ERROR = "server_error"
    OPTED_OUT = "opted_out"  # X-Robots-Tag: noai
    RESET = "reset"  # the connection breaks in the middle of the body
    GONE = "gone"
    TOO_SLOW = "too_slow"
    REDIRECT_LOOP = "redirect_loop"
    REDIRECT_PRIVATE = "redirect_private"  # to an address that must not be fetched
    FORBIDDEN = "forbidden"
    UNSERVED = "unserved"  # the URL itself is one that must not be fetched


_HTTP = (Reason.HTTP_ERROR,)
_EXPECTED: dict[Behaviour, tuple[Reason, ...]] = {
    Behaviour.OK: (),
    Behaviour.REDIRECT: (),
    Behaviour.SLOW: (),
    Behaviour.NOT_FOUND: _HTTP,
    Behaviour.GONE: _HTTP,
    Behaviour.FORBIDDEN: _HTTP,
    Behaviour.SERVER_ERROR: _HTTP,
    Behaviour.TRUNCATED: (Reason.FETCH_FAILED,),
    Behaviour.RESET: (Reason.FETCH_FAILED,),
    Behaviour.OPTED_OUT: (Reason.OPTED_OUT,),
    Behaviour.TOO_SLOW: (Reason.FETCH_TIMEOUT,),
    # Which of these depends on how the downloader follows redirects.
    Behaviour.REDIRECT_LOOP: (Reason.HTTP_ERROR, Reason.FETCH_FAILED),
    Behaviour.REDIRECT_PRIVATE: (Reason.URL_REFUSED, Reason.HTTP_ERROR, Reason.FETCH_FAILED),
    Behaviour.UNSERVED: (Reason.URL_REFUSED,),
}


def reasons_of(behaviour: Behaviour) -> tuple[Reason, ...]:
    """The reasons that are right for losing an image that is served so; none if it must be read."""
    return _EXPECTED[behaviour]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One address with its alt text and its picture."""

    path: str  # on the server; a whole URL if it is not served
    picture: Picture
    scene: Scene  # what the picture shows
    group: str  # path of the page whose picture this is; its own if it is no copy
    alt_kind: AltKind = AltKind.MISSING
    alt_text: str | None = None
    hostile: Hostile | None = None
    behaviour: Behaviour = Behaviour.OK
    target: str | None = None  # path, of a redirect to another page

    @property
    def expected(self) -> tuple[Reason, ...]:
        """The reasons that are right for losing the image; none if it must be read."""
        if self.hostile is not None:
            return expected_reasons(self.hostile)
        return reasons_of(self.behaviour)

    def body(self) -> bytes:
        """Make the body that is served."""
        if self.hostile is not None:
            return hostile_bytes(self.hostile, self.picture)
        return picture_bytes(self.picture)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTruth:
    """What is known about a page, in plain fields."""

    path: str
    alt_kind: str
    alt_text: str | None
    alt_is_true: bool
    scene: str  # JSON, see `world.scene_from_json`
    group: str
    edit: str
    body: str  # an `Encoding` or a `Hostile`
    behaviour: str
    expected: tuple[str, ...]  # reasons; empty if the image must be read


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniWeb:
    """All pages, in the order of the URL list."""

    pages: tuple[Page, ...]

    def truth(self) -> list[PageTruth]:
        """What is known about each page, in the same order."""
        return [_truth_of(page) for page in self.pages]


def truth_to_json(truth: list[PageTruth]) -> str:
    """Write a truth table, one page on each line of a JSON list."""
    return "[\n" + ",\n".join(json.dumps(asdict(row)) for row in truth) + "\n]\n"


def truth_from_json(text: str) -> list[PageTruth]:
    """Read back what `truth_to_json` wrote."""
    return [PageTruth(**{**row, "expected": tuple(row["expected"])}) for row in json.loads(text)]


def _truth_of(page: Page) -> PageTruth:
    return PageTruth(
        path=page.path,
        alt_kind=page.alt_kind,
        alt_text=page.alt_text,
        alt_is_true=page.alt_text is not None and is_true(page.alt_text, page.scene) is True,
        scene=scene_to_json(page.scene),
        group=page.group,
        edit=page.picture.edit,
        body=page.hostile or page.picture.encoding,
        behaviour=page.behaviour,
        expected=tuple(page.expected),
    )
