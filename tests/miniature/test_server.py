import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from PIL import Image

from capfilt.miniature.pages import Behaviour, MiniWeb, Page
from capfilt.miniature.server import serve
from capfilt.miniature.web import build_web


@pytest.fixture(scope="module")
def web() -> MiniWeb:
    return build_web(0, num_pages=200)


@pytest.fixture(scope="module")
def base_url(web: MiniWeb) -> Iterator[str]:
    with serve(web, too_slow_s=2.0) as url:
        yield url


def page_of(web: MiniWeb, behaviour: Behaviour) -> Page:
    return next(page for page in web.pages if page.behaviour is behaviour and not page.hostile)


def fetch(url: str, *, timeout_s: float = 10.0) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        body: bytes = answer.read()
        return body


def test_a_sound_page_is_served_as_it_is(web, base_url):
    page = page_of(web, Behaviour.OK)
    assert fetch(base_url + page.path) == page.body()


def test_a_slow_page_is_served_in_the_end(web, base_url):
    page = page_of(web, Behaviour.SLOW)
    assert fetch(base_url + page.path) == page.body()


def test_a_redirect_ends_at_its_target(web, base_url):
    page = page_of(web, Behaviour.REDIRECT)
    target = next(other for other in web.pages if other.path == page.target)
    assert fetch(base_url + page.path) == target.body()


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        (Behaviour.NOT_FOUND, 404),
        (Behaviour.GONE, 410),
        (Behaviour.FORBIDDEN, 403),
        (Behaviour.SERVER_ERROR, 500),
        (Behaviour.REDIRECT_LOOP, 302),
    ],
)
def test_errors_have_their_status(web, base_url, behaviour, status):
    with pytest.raises(urllib.error.HTTPError) as problem:
        fetch(base_url + page_of(web, behaviour).path)
    with problem.value as answer:
        assert answer.code == status


def test_an_unknown_path_is_not_found(base_url):
    with pytest.raises(urllib.error.HTTPError) as problem:
        fetch(base_url + "/nothing.jpg")
    with problem.value as answer:
        assert answer.code == 404


def test_a_page_that_opted_out_says_so(web, base_url):
    with urllib.request.urlopen(base_url + page_of(web, Behaviour.OPTED_OUT).path) as answer:
        assert "noai" in answer.headers["X-Robots-Tag"]
        assert Image.open(io.BytesIO(answer.read())).format == "JPEG"


def test_a_truncated_answer_promises_more_than_it_gives(web, base_url):
    with pytest.raises(http.client.IncompleteRead):
        fetch(base_url + page_of(web, Behaviour.TRUNCATED).path)


def test_a_reset_connection_breaks(web, base_url):
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        fetch(base_url + page_of(web, Behaviour.RESET).path)


def test_a_redirect_to_a_private_address_is_only_a_redirect(web, base_url):
    connection = http.client.HTTPConnection(base_url.removeprefix("http://"))
    connection.request("GET", page_of(web, Behaviour.REDIRECT_PRIVATE).path)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Location"]) == (302, "http://192.0.2.1/private.png")
    connection.close()


def test_a_page_that_is_too_slow_outlasts_a_short_patience(web, base_url):
    with pytest.raises(TimeoutError):
        fetch(base_url + page_of(web, Behaviour.TOO_SLOW).path, timeout_s=0.3)


def test_the_server_closes_at_once_though_a_page_is_still_waiting(web):
    with serve(web, too_slow_s=60.0) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", page_of(web, Behaviour.TOO_SLOW).path)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    connection.close()


def test_nobody_listens_when_the_server_is_closed(web):
    with serve(web) as url:
        pass
    with pytest.raises(urllib.error.URLError):
        fetch(url + web.pages[0].path)


def test_a_port_that_is_taken_is_passed_over(web, base_url):
    taken = int(base_url.rsplit(":", 1)[1])
    with serve(web, ports=(taken,)) as url:
        assert url != base_url


def test_a_free_port_is_used_again(web):
    with serve(web) as first:
        port = int(first.rsplit(":", 1)[1])
    with serve(web, ports=(port,)) as second:
        assert second == first
