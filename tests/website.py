"""A web server on an address that stands for the public Internet: pages are functions, requests are counted."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tessera.fetching import Fetcher

#: The one address that the fetcher of the tests may reach; 127.0.0.1 is as private as any.
PUBLIC = "127.0.0.2"


def fetcher_of_tests() -> Fetcher:
    """Return a fetcher that may reach the sites of the tests, and nothing else that is not public."""
    return Fetcher(max_bytes=2**25, allowed_networks=(ipaddress.ip_network(f"{PUBLIC}/32"),))


@dataclass
class Site:
    """A web server on the public address. `pages` maps a path to what answers it."""

    port: int
    pages: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def url(self, path: str = "/") -> str:
        return f"http://{PUBLIC}:{self.port}{path}"

    def serve(self, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        """Let `path` answer with `body`; a header may replace the right Content-Length."""

        def answer(request: Any) -> None:
            request.send_response(status)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                request.send_header(name.replace("_", "-"), value)
            request.end_headers()
            with contextlib.suppress(OSError):
                request.wfile.write(body)

        self.pages[path] = answer
        return self.url(path)

    def redirect(self, path: str, to: str) -> str:
        return self.serve(path, b"", 302, Location=to)


def make_site(tls: ssl.SSLContext | None = None) -> tuple[Site, http.server.ThreadingHTTPServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        #: What came with the request.
        body = b""

        def do_GET(self) -> None:
            site.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            site.pages[self.path.partition("?")[0]](self)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass

    try:
        server = Quiet((PUBLIC, 0), Handler)
    except OSError:
        pytest.skip(f"{PUBLIC} is no address of this machine (macOS: ifconfig lo0 alias {PUBLIC})")
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    site = Site(server.server_address[1])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return site, server


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve a site while the block runs."""
    site, server = make_site(tls)
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
