"""The guard: a trap that must stay empty, and servers that misbehave.

Every server here is on this machine. 127.0.0.0/8 is all loopback, so 127.0.0.2 can play the public
internet where a test lets it.
"""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from capfilt.io import guard
from capfilt.io.fetch import reason_of
from capfilt.io.guard import GuardedOpener, Limits, is_public
from capfilt.records import Reason

DEADLINE_S = 0.5
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = b"x" * 2000
SERVED = OK + b"Content-Length: 5\r\n\r\nimage"

Answer = Callable[[socket.socket, threading.Event], None]


def opener(*allowed_hosts: str, max_bytes: int = 1000) -> GuardedOpener:
    return GuardedOpener(
        Limits(
            allowed_hosts=frozenset(allowed_hosts),
            max_bytes=max_bytes,
            deadline_s=DEADLINE_S,
            robots=frozenset({"capfilt"}),
        )
    )


def fetch(url: str, *allowed_hosts: str, timeout_s: float = 0.3, max_bytes: int = 1000) -> bytes:
    with opener(*allowed_hosts, max_bytes=max_bytes).open(url, timeout=timeout_s) as response:
        return response.read()


def failure(url: str, *allowed_hosts: str, timeout_s: float = 0.3, max_bytes: int = 1000) -> str:
    """What a fetch that must fail says."""
    with pytest.raises((OSError, ValueError, http.client.HTTPException)) as caught:
        fetch(url, *allowed_hosts, timeout_s=timeout_s, max_bytes=max_bytes)
    if isinstance(caught.value, urllib.error.HTTPError):
        caught.value.close()
    return str(caught.value)


class Trap:
    """A port on every address of this machine that nobody may connect to."""

    def __init__(self) -> None:
        dual = socket.has_dualstack_ipv6()
        self._socket = socket.create_server(
            ("", 0),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
        )
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]

    @property
    def is_empty(self) -> bool:
        # A connection is made before its maker knows: no need to wait for it.
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return True
        connection.close()
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    trap = Trap()
    yield trap
    trap.close()


@contextmanager
def serving(
    answer: Answer, *, host: str = "127.0.0.1", requests: list[bytes] | None = None
) -> Iterator[str]:
    """Answer each connection so, and take down what it asks for; gives host:port."""
    taken = [] if requests is None else requests
    server = socket.create_server((host, 0))
    closing = threading.Event()

    def serve() -> None:
        while not closing.is_set():
            connection, _ = server.accept()
            with connection:
                if not closing.is_set():
                    try:
                        taken.append(connection.recv(65_536))
                        answer(connection, closing)
                    except OSError:
                        pass  # the client has hung up

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"{host}:{server.getsockname()[1]}"
    finally:
        closing.set()
        socket.create_connection(server.getsockname()).close()
        thread.join()
        server.close()


def sending(*payloads: bytes) -> Answer:
    """Answer the first connection with the first payload, and so on; the last is for the rest."""
    answers = itertools.chain(payloads, itertools.repeat(payloads[-1]))
    return lambda connection, closing: connection.sendall(next(answers))


def dripping(beginning: bytes, drop: bytes) -> Answer:
    """Send a drop every 20 ms, for ever."""

    def answer(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(beginning)
        while not closing.wait(0.02):
            connection.sendall(drop)

    return answer


def resolving(*answers: list[str]) -> Callable[..., list[tuple[object, ...]]]:
    """A resolver that gives these addresses at its first, second ... call."""
    remaining = iter(answers)

    def getaddrinfo(
        host: str, port: int, *args: object, **named: object
    ) -> list[tuple[object, ...]]:
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port),
            )
            for address in next(remaining)
        ]

    return getaddrinfo


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}",
        "HTTP://127.0.0.1:{port}/",
        "https://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://LOCALHOST:{port}/",
        "http://127.1:{port}/",
        "http://127.255.255.254:{port}/",
        "http://2130706433:{port}/",  # decimal
        "http://0x7f000001:{port}/",
        "http://0x7f.0x0.0x0.0x1:{port}/",
        "http://0177.0.0.1:{port}/",  # octal
        "http://017700000001:{port}/",
        "http://0:{port}/",
        "http://0.0.0.0:{port}/",
        "http://%31%32%37.0.0.1:{port}/",
        "http://\uff11\uff12\uff17.0.0.1:{port}/",  # wide digits
        "http://127\u30020\u30020\u30021:{port}/",  # ideographic full stops
        "http://[::1]:{port}/",
        "http://[::]:{port}/",
        "http://[0:0:0:0:0:0:0:1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::ffff:7f00:1]:{port}/",
        "http://[::127.0.0.1]:{port}/",
        "http://[64:ff9b::7f00:1]:{port}/",  # NAT64
        "http://[2002:7f00:1::]:{port}/",  # 6to4
        "http://[2001:0:0808:0808:0:0:80ff:fffe]:{port}/",  # Teredo, of 127.0.0.1
        "http://[fe80::1]:{port}/",
        "http://[fc00::1]:{port}/",
        "http://[fec0::1]:{port}/",
        "http://[ff02::1]:{port}/",
        "http://10.0.0.1:{port}/",
        "http://172.16.0.1:{port}/",
        "http://192.168.0.1:{port}/",
        "http://100.64.0.1:{port}/",  # carriers' own, also a metadata service at .100.200
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://192.0.0.192/opc/v1/instance/",
        "http://168.63.129.16/machine/",
        "http://198.18.0.1:{port}/",
        "http://224.0.0.1:{port}/",
        "http://255.255.255.255:{port}/",
        "http://user@127.0.0.1:{port}/",
        "http://user:secret@127.0.0.1:{port}/",
        "http://example.org@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@example.org/",
        "http://127.0.0.1:{port}/\r\nHost: example.org",
        "http://127.0.0.1:{port}/\x00",
        "http://127.0.0.1\t:{port}/",
        "http://127.0.0.1:{port}abc/",
        "http:///127.0.0.1:{port}/",
        "http:127.0.0.1:{port}",
        "http://a..b:{port}/",
        "file:///etc/hostname",
        "file://localhost/etc/hostname",
        "ftp://127.0.0.1:{port}/a.jpg",
        "gopher://127.0.0.1:{port}/",
        "data:image/png;base64,iVBORw0KGgo=",
        "javascript:alert(1)",
        "//127.0.0.1:{port}/",
        "127.0.0.1:{port}",
        "",
    ],
)
def test_nothing_is_fetched_from(url, trap):
    words = failure(url.format(port=trap.port))
    assert reason_of(words) == Reason.URL_REFUSED, words
    assert trap.is_empty


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::5db8:d70e", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("fe80::1%eth0", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::a00:1", False),  # RFC 8215: NAT64 within a network
        ("2002:5db8:d70e::1", False),
        ("2001:0:53aa:64c:0:0:a247:28f1", False),
        ("2001:db8::1", False),
        ("192.0.2.1", False),
        ("240.0.0.1", False),
    ],
)
def test_an_address_is_public(address, public):
    assert is_public(address) is public


def test_a_name_with_a_public_and_a_private_address_is_refused(trap, monkeypatch):
    both = ["93.184.215.14", "127.0.0.1"]
    monkeypatch.setattr(socket, "getaddrinfo", resolving(both, both[::-1]))
    for _ in range(2):
        words = failure(f"http://two-faced.example:{trap.port}/")
        assert "two-faced.example" in words
        assert "127.0.0.1, not a public address" in words
    assert trap.is_empty


def test_a_name_that_changes_its_address_is_looked_up_once(monkeypatch):
    """The resolver answers with a public address to the check and a private one after it."""
    monkeypatch.setattr(guard, "is_public", lambda address: address == "127.0.0.2")
    with serving(sending(SERVED), host="127.0.0.2") as server:
        port = server.rpartition(":")[2]
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", resolving(["127.0.0.2"], ["127.0.0.1"]))
            assert fetch(f"http://rebinding.example:{port}/") == b"image"


def test_the_next_address_is_tried_if_one_does_not_answer(monkeypatch):
    monkeypatch.setattr(guard, "is_public", lambda address: True)
    with serving(sending(SERVED)) as server, monkeypatch.context() as patched:
        port = server.rpartition(":")[2]
        patched.setattr(socket, "getaddrinfo", resolving(["127.0.0.3", "127.0.0.1"]))
        assert fetch(f"http://two-homes.example:{port}/") == b"image"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/",
        "http://[::1]:{port}/",
        "//127.0.0.1:{port}/",
        "https://127.0.0.1:{port}/",
        "http://user@127.0.0.1:{port}/",
        "ftp://127.0.0.1:{port}/",
        "file:///etc/hostname",
        "data:image/png;base64,iVBORw0KGgo=",
    ],
)
def test_no_redirect_leads_to(location, trap):
    answer = f"HTTP/1.1 302 Found\r\nLocation: {location.format(port=trap.port)}\r\n\r\n".encode()
    with serving(sending(answer)) as server:
        words = failure(f"http://{server}/", server)
    assert reason_of(words) == Reason.URL_REFUSED, words
    assert trap.is_empty


def test_a_redirect_to_an_allowed_page_is_followed():
    with serving(sending(b"HTTP/1.1 302 Found\r\nLocation: /b c\r\n\r\n", SERVED)) as server:
        assert fetch(f"http://{server}/a", server) == b"image"


def test_an_allowed_host_is_fetched_from_at_its_port_and_under_its_name_only(trap):
    with serving(sending(SERVED)) as server:
        assert fetch(f"http://{server}/", server) == b"image"
        port = server.rpartition(":")[2]
        for other in (f"127.0.0.1:{trap.port}", f"localhost:{port}", f"2130706433:{port}"):
            assert reason_of(failure(f"http://{other}/", server)) == Reason.URL_REFUSED
    assert trap.is_empty


def test_no_proxy_is_asked(trap, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{trap.port}")
    with serving(sending(SERVED)) as server:
        assert fetch(f"http://{server}/", server) == b"image"
    assert trap.is_empty


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a b.jpg", b"GET /a%20b.jpg HTTP/1.1"),
        ("/a%20b.jpg?q=1&w=[2]#top", b"GET /a%20b.jpg?q=1&w=[2] HTTP/1.1"),
        ("/\u00fc.jpg", b"GET /%C3%BC.jpg HTTP/1.1"),
    ],
)
def test_a_path_is_escaped_where_it_must_be(path, asked):
    requests: list[bytes] = []

    with serving(sending(SERVED), requests=requests) as server:
        fetch(f"http://{server}{path}", server)
    assert requests[0].splitlines()[0] == asked


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (sending(OK + b"Content-Length: 2000\r\n\r\n" + LARGE), "fetch_failed", "larger than"),
        (sending(OK + b"\r\n" + LARGE), "fetch_failed", "larger than 1,000 bytes"),
        (
            sending(CHUNKED + b"7d0\r\n" + LARGE + b"\r\n0\r\n\r\n"),
            "fetch_failed",
            "larger than 1,000 bytes",
        ),
        (sending(OK + b"Content-Length: 9\r\n\r\nhalf"), "fetch_failed", "5 bytes are missing"),
        (sending(CHUNKED + b"9\r\nhalf"), "fetch_failed", ""),
        (sending(b""), "fetch_failed", "closed connection"),
        (sending(b"SSH-2.0-OpenSSH_9.6\r\n"), "fetch_failed", ""),
        (sending(b"HTTP/1.1 404 x-robots-tag timed out\r\n\r\n"), "http_error", "404"),
        (sending(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), "http_error", "302"),
        (sending(OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n"), "fetch_failed", "more than 65536"),
        (sending(OK + b"X: x\r\n" * 200 + b"\r\n"), "fetch_failed", "more than 100 headers"),
        (dripping(OK + b"\r\n", b"x"), "fetch_timeout", "not finished after 0.5 s"),
        (dripping(OK + b"Content-Length: 900\r\n\r\n", b"x"), "fetch_timeout", "after 0.5 s"),
        (dripping(CHUNKED, b"1\r\nx\r\n"), "fetch_timeout", ""),
        (dripping(OK + b"X: ", b"x"), "fetch_timeout", "after 0.5 s"),
        (dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "fetch_timeout", "after 0.5 s"),
        (lambda connection, closing: closing.wait(9), "fetch_timeout", "timed out"),
    ],
    ids=[
        "announced-too-large",
        "endless",
        "chunked-too-large",
        "cut",
        "cut-chunk",
        "no-answer",
        "not-http",
        "not-found",
        "redirect-loop",
        "long-header",
        "many-headers",
        "dripping",
        "dripping-of-known-length",
        "dripping-chunks",
        "dripping-headers",
        "dripping-continue",
        "silent",
    ],
)  # fmt: skip
def test_a_bad_server_loses_its_image_in_time(answer, reason, words):
    with serving(answer) as server:
        began = time.monotonic()
        said = failure(f"http://{server}/", server)
        assert time.monotonic() - began < DEADLINE_S + 2  # left alone, most of them never end
    assert reason_of(said) == reason, said
    assert words in said


def test_a_host_that_does_not_take_the_connection_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(guard, "is_public", lambda address: True)
    with too_busy() as server:
        began = time.monotonic()
        said = failure(f"http://{server}/")
        assert time.monotonic() - began < 1.5
    assert reason_of(said) == Reason.FETCH_TIMEOUT, said


@contextmanager
def too_busy() -> Iterator[str]:
    """A port whose queue of connections is full; who sets no timeout waits there for 3 s."""
    socket.setdefaulttimeout(3)
    with ExitStack() as stack:
        stack.callback(socket.setdefaulttimeout, None)
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            queued = stack.enter_context(socket.socket())
            queued.setblocking(False)
            queued.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_the_deadline_is_for_all_redirects_together():
    """Each page takes 0.15 s to lead to the next: no wait is long, but there are ten."""
    pages = itertools.count()

    def answer(connection: socket.socket, closing: threading.Event) -> None:
        closing.wait(0.15)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /%d\r\n\r\n" % next(pages))

    with serving(answer) as server:
        said = failure(f"http://{server}/", server)
    assert reason_of(said) == Reason.FETCH_TIMEOUT, said
    assert next(pages) < 5


def test_a_body_of_the_largest_size_is_taken():
    body = b"x" * 1000
    with serving(sending(OK + b"\r\n" + body)) as server:
        assert fetch(f"http://{server}/", server) == body


@pytest.mark.parametrize("status", ["200 OK", "302 Found"])
def test_an_opt_out_is_heeded_before_anything_else(status):
    headers = "X-Robots-Tag: nofollow\r\nx-robots-tag: max-snippet:0, noai\r\nLocation: /\r\n"
    with serving(sending(f"HTTP/1.1 {status}\r\n{headers}\r\nimage".encode())) as server:
        said = failure(f"http://{server}/", server)
    assert reason_of(said) == Reason.OPTED_OUT
    assert said == "opted out by X-Robots-Tag: nofollow; max-snippet:0, noai"


def test_an_error_page_that_opts_out_is_an_error():
    page = b"HTTP/1.1 404 Not Found\r\nX-Robots-Tag: noindex\r\n\r\n"
    with serving(sending(page)) as server:
        assert reason_of(failure(f"http://{server}/", server)) == Reason.HTTP_ERROR


def test_an_opt_out_of_another_robot_is_not_ours():
    page = OK + b"X-Robots-Tag: otherbot: noai\r\nContent-Length: 5\r\n\r\nimage"
    with serving(sending(page)) as server:
        assert fetch(f"http://{server}/", server) == b"image"
