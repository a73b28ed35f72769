"""A guard around urllib: it fetches from the public internet only, within limits of size and time.

URL lists come from strangers. One of their URLs may name a file, a service inside the network this
program runs in, a server that drips one byte a second, a body without end. The guard knows http and
https only; it connects to public addresses only, or to hosts allowed by name, and to the very
address it has checked, so that no second answer of the resolver and no redirect leads elsewhere;
and it counts bytes and time over a whole fetch, headers and redirects included.
"""

from __future__ import annotations

import http
import http.client
import io
import ipaddress
import socket
import ssl
import string
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from capfilt.io.robots import forbids_use

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_BYTES = 65_536

REFUSED = "refused by capfilt: "
"""Begins the message of a `RefusedError`."""

OPTED_OUT = "opted out by X-Robots-Tag: "
"""Begins the message of an `OptedOutError`."""

NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address inside an IPv6 one
NOT_PUBLIC = (
    ipaddress.ip_network("192.0.0.0/24"),  # RFC 6890; older Pythons call most of it global
    ipaddress.ip_network("168.63.129.16/32"),  # in Azure, the host a virtual machine runs on
)


class RefusedError(OSError):
    """The URL or the address must not be fetched."""

    def __init__(self, why: str) -> None:
        super().__init__(REFUSED + why)


class OptedOutError(OSError):
    """The server forbids the use of what it sent."""

    def __init__(self, headers: list[str]) -> None:
        super().__init__(OPTED_OUT + "; ".join(headers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one fetch may do."""

    allowed_hosts: frozenset[str]  # host:port in lower case, [address]:port for IPv6
    max_bytes: int
    deadline_s: float  # for the whole of it
    robots: frozenset[str]  # names we go by in X-Robots-Tag, in lower case


class GuardedOpener(urllib.request.OpenerDirector):
    """Opens http and https URLs within limits; knows no files, no proxies, no cookies.

    Args:
        limits: of each fetch.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._tls = ssl.create_default_context()  # loading the certificates takes its time
        self._tls.set_alpn_protocols(["http/1.1"])

    def open(
        self,
        fullurl: str | urllib.request.Request,
        data: object = None,
        timeout: float | None = None,
    ) -> http.client.HTTPResponse:
        """Fetch a URL, following redirects.

        Raises:
            RefusedError: the URL, or one it is redirected to, must not be fetched; bare, or as the
                reason of a URLError.
            OptedOutError: an X-Robots-Tag header forbids the use.
            OSError: anything else that goes wrong.
        """
        assert data is None, "nothing is sent"
        fetch = _Fetch(
            limits=self._limits,
            tls=self._tls,
            ends_s=time.monotonic() + self._limits.deadline_s,
            timeout_s=timeout,
        )
        one_fetch = urllib.request.OpenerDirector()  # redirects stay inside it
        for handler in (
            _HTTPHandler(fetch),
            _HTTPSHandler(fetch),
            _RobotsHandler(self._limits.robots),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.UnknownHandler(),
        ):
            one_fetch.add_handler(handler)
        response = one_fetch.open(fullurl, timeout=timeout)
        assert isinstance(response, http.client.HTTPResponse)
        return response


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    An IPv4 address wrapped in IPv6 counts as what it wraps (mapped, NAT64); the tunnels of old,
    6to4 and Teredo, count as private. `is_global` alone is not enough: older Pythons call some of
    these global.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped
        if inner is not None:
            return is_public(str(inner))
        if ip.sixtofour or ip.teredo or ip.is_site_local:
            return False
    special = ip.is_multicast or ip.is_reserved or any(ip in network for network in NOT_PUBLIC)
    return ip.is_global and not special


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetch:
    """One fetch, from its first connection to the last byte after the last redirect."""

    limits: Limits
    tls: ssl.SSLContext
    ends_s: float  # of the monotonic clock
    timeout_s: float | None  # of one wait

    def wait_s(self) -> float:
        """How long the next wait for the server may take."""
        left_s = self.ends_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"timed out: not finished after {self.limits.deadline_s:g} s")
        return left_s if self.timeout_s is None else min(left_s, self.timeout_s)

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect to a host, if all the addresses it has may be reached."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as err:
            raise RefusedError(f"{host!r} is no host name") from err
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if name.lower() not in self.limits.allowed_hosts:
            for *_, address in found:
                if not is_public(str(address[0])):
                    raise RefusedError(f"{name} is {address[0]}, not a public address")
        errors: list[OSError] = []
        for family, kind, protocol, _, address in found:
            # Connected by the address that was checked: the name is not looked up again.
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.wait_s())
                connection.connect(address)
                return connection
            except OSError as err:
                connection.close()
                errors.append(err)
        raise errors[0] if errors else RefusedError(f"{name} has no address")


class _TimedReader(io.RawIOBase):
    """A socket's stream, each wait of which is cut at the deadline: one byte a second is too slow.

    Args:
        stream: of the socket.
        connection: the socket.
        fetch: what it is part of.
    """

    def __init__(self, stream: io.RawIOBase, connection: socket.socket, fetch: _Fetch) -> None:
        self._stream = stream
        self._connection = connection
        self._fetch = fetch

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._connection.settimeout(self._fetch.wait_s())
        try:
            return self._stream.readinto(buffer)
        except TimeoutError:
            self._fetch.wait_s()  # says so if it was the deadline that cut the wait
            raise

    def close(self) -> None:
        self._stream.close()
        super().close()


class _LimitedResponse(http.client.HTTPResponse):
    """A response whose headers come in time, and whose body also within the limit of bytes."""

    fetch: _Fetch

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, self.fetch))

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        chunks: list[bytes] = []
        num_bytes = 0
        while chunk := self.read1(READ_BYTES):
            chunks.append(chunk)
            num_bytes += len(chunk)
            if num_bytes > self.fetch.limits.max_bytes:
                raise OSError(f"body larger than {self.fetch.limits.max_bytes:,} bytes")
        if self.length:  # what the server announced and did not send
            raise OSError(f"body cut: {self.length:,} bytes are missing")
        return b"".join(chunks)


def _response_class(fetch: _Fetch) -> type[http.client.HTTPResponse]:
    return type("_ResponseOfFetch", (_LimitedResponse,), {"fetch": fetch})


class _HTTPConnection(http.client.HTTPConnection):
    def __init__(self, host: str, *, fetch: _Fetch, timeout: float | None = None) -> None:
        super().__init__(host, timeout=timeout)
        self._fetch = fetch
        self.response_class = _response_class(fetch)

    def connect(self) -> None:
        self.sock = self._fetch.connect(self.host, self.port)


class _HTTPSConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, fetch: _Fetch, timeout: float | None = None) -> None:
        super().__init__(host, timeout=timeout, context=fetch.tls)
        self._fetch = fetch
        self.response_class = _response_class(fetch)

    def connect(self) -> None:
        plain = self._fetch.connect(self.host, self.port)
        self.sock = self._fetch.tls.wrap_socket(plain, server_hostname=self.host)


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, fetch: _Fetch) -> None:
        super().__init__()
        self._fetch = fetch

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        return super().http_request(_checked(request))

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HTTPConnection, fetch=self._fetch), req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, fetch: _Fetch) -> None:
        super().__init__(context=fetch.tls)
        self._fetch = fetch

    def https_request(self, request: urllib.request.Request) -> urllib.request.Request:
        return super().https_request(_checked(request))

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HTTPSConnection, fetch=self._fetch), req)


class _RobotsHandler(urllib.request.BaseHandler):
    """Refuses responses that forbid their use, redirects included, before they are read."""

    def __init__(self, robots: frozenset[str]) -> None:
        self._robots = robots

    def http_response(
        self, request: urllib.request.Request, response: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        headers = response.headers.get_all("X-Robots-Tag", [])
        if response.status < http.HTTPStatus.BAD_REQUEST and forbids_use(headers, self._robots):
            response.close()
            raise OptedOutError(headers)
        return response

    https_response = http_response


def _checked(request: urllib.request.Request) -> urllib.request.Request:
    """The request, its host and path in ASCII as HTTP wants them.

    Raises:
        RefusedError: the URL holds control characters or a user name.
    """
    url = request.full_url
    if any(character < " " or character == "\x7f" for character in url):
        raise RefusedError(f"{url!r} holds control characters")
    if "@" in (request.host or ""):
        raise RefusedError(f"{url!r} holds a user name")
    if request.host and not request.host.isascii():
        try:
            request.host = request.host.encode("idna").decode("ascii")
        except UnicodeError as err:
            raise RefusedError(f"{request.host!r} is no host name") from err
    # Lists hold URLs as pages have them, with spaces and letters that a browser would escape.
    request.selector = urllib.parse.quote(request.selector, safe=string.punctuation)
    return request
