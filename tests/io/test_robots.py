"""X-Robots-Tag, form by form; the directives are those search engines document, and noai."""

from __future__ import annotations

import pytest

from capfilt.io.robots import forbids_use

ROBOTS = ("capfilt", "img2dataset")


@pytest.mark.parametrize(
    "header",
    [
        "noai",
        "NoAI",
        "noimageai",
        "noindex",
        "noimageindex",
        "none",
        " noai ",
        "nofollow, noai",
        "nofollow,noai",
        "noai,",
        "max-snippet:0, noai",
        "max-snippet: 0, noai",
        "noai, max-image-preview: none",
        "max-image-preview:large, max-video-preview:-1, noimageai",
        "unavailable_after: 25 Jun 2031 15:00:00 PST, noai",
        "unavailable_after: Wed, 25 Jun 2031 15:00:00 GMT, noai",
        "unavailable_after: 2031-06-25T15:00:00, noai",
        "capfilt: noai",
        "CapFilt: NOAI",
        "img2dataset: noindex",
        "*: noai",
        "capfilt: nofollow, noai",
        "capfilt: max-snippet: 0, noai",
        "otherbot: nofollow, capfilt: noai",
        "noindex, otherbot: nofollow",
        "otherbot: noindex, *: noai",
    ],
)
def test_use_is_forbidden_by(header):
    assert forbids_use([header], ROBOTS)


@pytest.mark.parametrize(
    "header",
    [
        "",
        ",",
        "all",
        "nofollow",
        "noarchive, nosnippet, notranslate",
        "max-image-preview: none",
        "max-image-preview:none",
        "otherbot: noai",
        "otherbot: noindex, nofollow",
        "otherbot: max-snippet: 0, noai",
        "capfilt: nofollow, otherbot: noai",
        "nofollow, otherbot: noindex, nofollow",
        "capfilt-news: noai",
        "noairplanes",
        "unavailable_after: Wed, 25 Jun 2031 15:00:00 GMT",
        "unavailable_after: 25 Jun 2031 15:00:00 PST, otherbot: noai",
    ],
)
def test_use_is_allowed_by(header):
    assert not forbids_use([header], ROBOTS)


def test_one_header_of_several_is_enough():
    assert forbids_use(["nofollow", "otherbot: noindex", "noai"], ROBOTS)


def test_a_robot_named_in_one_header_does_not_reach_into_the_next():
    assert forbids_use(["otherbot: nofollow", "noai"], ROBOTS)
    assert not forbids_use(["otherbot: nofollow", "nofollow"], ROBOTS)


def test_no_header_allows():
    assert not forbids_use([], ROBOTS)
