"""Read X-Robots-Tag headers: does the server forbid the use of an image?

A header is a list of directives for all robots, or for the one it names first; a name may also
stand in the middle, and holds from there on (developers.google.com, "Robots meta tag"):

    X-Robots-Tag: noai
    X-Robots-Tag: max-snippet: 0, noai
    X-Robots-Tag: otherbot: noindex, nofollow, capfilt: noimageai
    X-Robots-Tag: unavailable_after: Wed, 25 Jun 2031 15:00:00 GMT, noai
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

FORBIDDING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives that forbid training on an image or indexing it; `none` is noindex and nofollow."""

VALUED = re.compile(r"max-[a-z-]+|unavailable_after")
"""Directives that have a value, after a colon, as a robot's name has its directives."""

ROBOT_NAME = re.compile(r"\*|[a-z][a-z0-9_.-]*")
"""Unlike the beginning of a date: `25 jun 2031 15:00:00`."""


def forbids_use(headers: Iterable[str], robots: Collection[str]) -> bool:
    """Whether any of a response's X-Robots-Tag headers forbids the use of what it comes with.

    Args:
        headers: the values of all of them.
        robots: names we go by, in lower case; rules for other robots are passed over.
    """
    return any(
        directive in FORBIDDING and (robot in ("*", *robots))
        for header in headers
        for robot, directive in _directives(header.lower())
    )


def _directives(header: str) -> Iterable[tuple[str, str]]:
    """The directives of a header, each with the robot it is for; values are left out."""
    robot = "*"
    for item in header.split(","):
        name, colon, rest = (part.strip() for part in item.partition(":"))
        while colon and not VALUED.fullmatch(name) and ROBOT_NAME.fullmatch(name):
            robot = name
            name, colon, rest = (part.strip() for part in rest.partition(":"))
        yield robot, name
