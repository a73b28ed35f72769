"""img2dataset itself, run as it is in production, on a page of each kind of the miniature web.

One start of img2dataset takes seconds of CPU, so everything is asked of two runs over one list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from capfilt.io.fetch import Fetch, FetchOptions, fetch_shard, source_key
from capfilt.miniature.hostile import Hostile
from capfilt.miniature.pages import Behaviour, MiniWeb, Page
from capfilt.miniature.server import serve
from capfilt.miniature.web import build_web, url_list

pytestmark = pytest.mark.slow

TIMEOUT_S = 2.0
TOO_SLOW_S = 6.0  # a slow page takes a tenth of it
SHARD = 7


@dataclass(frozen=True)
class Fetched:
    """The pages of a list, and what became of them in two runs."""

    pages: Sequence[Page]
    first: Sequence[Fetch]
    second: Sequence[Fetch]


def page_of_each_kind() -> list[Page]:
    """A page of every behaviour and one of every hostile body, the slow ones first."""
    kinds: dict[Behaviour | Hostile, Page] = {}
    for page in build_web(0, num_pages=300).pages:
        kinds.setdefault(page.hostile or page.behaviour, page)
    assert set(kinds) == {*Behaviour, *Hostile}
    slow = (Behaviour.TOO_SLOW, Behaviour.SLOW)
    chosen = sorted(kinds.values(), key=lambda page: page.behaviour not in slow)
    targets = {page.target for page in chosen}
    return chosen + [page for page in build_web(0, num_pages=300).pages if page.path in targets]


@pytest.fixture(scope="module")
def fetched() -> Iterator[Fetched]:
    pages = page_of_each_kind()
    web = MiniWeb(pages=tuple(pages))
    with serve(web, too_slow_s=TOO_SLOW_S) as base_url:
        options = FetchOptions(
            urls_per_shard=100,
            timeout_s=TIMEOUT_S,
            retries=0,
            max_bytes=1_000_000,
            threads=8,
            allowed_hosts=(base_url.removeprefix("http://"),),
            user_agent_token="capfilt",
        )
        urls = [*url_list(web, base_url), (None, "a text without a picture")]
        yield Fetched(
            pages=pages,
            first=fetch_shard(SHARD, urls, options),
            second=fetch_shard(SHARD, urls, options),
        )


def test_each_page_has_the_outcome_it_must_have(fetched):
    wrong = [
        (page.behaviour, fetch.reason, fetch.detail)
        for page, fetch in zip(fetched.pages, fetched.first, strict=False)
        # What is wrong with a body is for the index to find; an empty one may be lost here.
        if fetch.reason not in (page.expected or (None,))
        and not (page.hostile and fetch.reason is None)
    ]
    assert wrong == []


def test_bytes_are_kept_as_they_are_served(fetched):
    read = [
        (page, fetch.payload)
        for page, fetch in zip(fetched.pages, fetched.first, strict=False)
        if fetch.reason is None
    ]
    assert len(read) >= 10
    assert all(payload == page.body() for page, payload in read)


def test_results_stand_in_the_order_of_the_list(fetched):
    """The slowest pages are the first of the list: in order of arrival they would be the last."""
    names = [fetch.source_key for fetch in fetched.first]
    assert names == [source_key(SHARD, row) for row in range(len(fetched.pages) + 1)]


def test_a_row_without_a_url_is_refused_and_says_so(fetched):
    assert fetched.first[-1].reason == "url_refused"


def test_fetching_again_gives_the_same(fetched):
    assert fetched.first == fetched.second
