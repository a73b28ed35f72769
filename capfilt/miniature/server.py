"""Serve the miniature web on this machine, with all its faults.

The server listens on 127.0.0.1 only and knows nothing but the pages of its web. A body is made for
each request, in a few milliseconds.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from capfilt.miniature.pages import Behaviour, MiniWeb, Page

_MIME_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "gif": "image/gif"}
_STATUS = {
    Behaviour.NOT_FOUND: 404,
    Behaviour.GONE: 410,
    Behaviour.FORBIDDEN: 403,
    Behaviour.SERVER_ERROR: 500,
}
_PRIVATE_URL = "http://192.0.2.1/private.png"
_SLOW_SHARE = 0.1  # of what too slow takes


@contextmanager
def serve(web: MiniWeb, *, too_slow_s: float = 10.0, ports: Sequence[int] = ()) -> Iterator[str]:
    """Serve a web while the context lasts.

    Args:
        web: the planned web.
        too_slow_s: seconds until the first byte of a page that is too slow; a downloader that is to
            lose it must give up before, but not before a tenth of it: so long take the slow pages.
        ports: to listen on, the first that is free; if none is, one that the system picks.

    Yields:
        The base URL, without a slash at the end.
    """
    with _listening(web, too_slow_s=too_slow_s, ports=ports) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


def _listening(web: MiniWeb, *, too_slow_s: float, ports: Sequence[int]) -> _Server:
    for port in ports:
        try:
            return _Server(web, too_slow_s=too_slow_s, port=port)
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                raise
    return _Server(web, too_slow_s=too_slow_s, port=0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that never hangs up must not hold us

    def __init__(self, web: MiniWeb, *, too_slow_s: float, port: int) -> None:
        self.pages = {page.path: page for page in web.pages}
        self.too_slow_s = too_slow_s
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients hang up on slow pages, and that is what those are for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path)
        if page is None:
            self._send_error(404)
        elif page.behaviour in _STATUS:
            self._send_error(_STATUS[page.behaviour])
        elif page.behaviour in (Behaviour.REDIRECT, Behaviour.REDIRECT_LOOP):
            self._redirect(page.target or page.path)
        elif page.behaviour is Behaviour.REDIRECT_PRIVATE:
            self._redirect(_PRIVATE_URL)
        else:
            self._send_page(page)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what became of a page is the downloader's to tell."""

    def _send_error(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_page(self, page: Page) -> None:
        body = page.body()
        if page.behaviour in (Behaviour.SLOW, Behaviour.TOO_SLOW):
            share = 1.0 if page.behaviour is Behaviour.TOO_SLOW else _SLOW_SHARE
            self.server.closing.wait(share * self.server.too_slow_s)
        self.send_response(200)
        self.send_header("Content-Type", _MIME_TYPES[page.path.rsplit(".", 1)[1]])
        self.send_header("Content-Length", str(len(body)))
        if page.behaviour is Behaviour.OPTED_OUT:
            self.send_header("X-Robots-Tag", "noai, noimageai")
        self.end_headers()
        if page.behaviour in (Behaviour.TRUNCATED, Behaviour.RESET):
            body = body[: len(body) // 2]
        self.wfile.write(body)
        if page.behaviour is Behaviour.RESET:
            self._reset()

    def _reset(self) -> None:
        # Lingering for 0 s makes closing send a reset in place of an orderly end.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
