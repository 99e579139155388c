"""A receiver of webhooks on the address that stands for the public Internet; it keeps what it was sent."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.website import PUBLIC


@dataclass(frozen=True)
class Call:
    """One request, with the names of its headers in small letters."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def is_signed_with(self, secret: str) -> bool:
        """Check the signature as the Standard Webhooks specification says."""
        identifier, at = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        key = base64.b64decode(secret.removeprefix("whsec_"))
        digest = hmac.new(key, f"{identifier}.{at}.".encode() + self.body, hashlib.sha256).digest()
        return self.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


@dataclass
class Receiver:
    """Answers 200, or what `answers` has for a path: a status with headers, or a function that does it."""

    port: int
    answers: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def url(self, path: str = "/") -> str:
        return f"http://{PUBLIC}:{self.port}{path}"

    def answer(self, path: str, *statuses: int, **headers: str) -> str:
        """Let `path` answer with each of `statuses` in turn and then with the last; return its URL."""
        left = list(statuses)

        def respond(request: Any) -> None:
            request.send_response(left.pop(0) if len(left) > 1 else left[0])
            for name, value in {"Content_Length": "0", **headers}.items():
                request.send_header(name.replace("_", "-"), value)
            request.end_headers()

        self.answers[path] = respond
        return self.url(path)

    def at(self, path: str) -> list[Call]:
        """Return what came for `path` so far."""
        with self.changed:
            return [call for call in self.calls if call.path.partition("?")[0] == path]

    def wait(self, path: str, count: int = 1, timeout_s: float = 60) -> list[Call]:
        """Return what came for `path` when it is at least `count`."""
        with self.changed:
            came = self.changed.wait_for(lambda: len(self.at(path)) >= count, timeout_s)
        assert came, f"{len(self.at(path))} of {count} at {path} after {timeout_s} s"
        return self.at(path)


def hanging(released: threading.Event) -> Callable[[Any], None]:
    """Return what answers nothing until `released` is set, and then ends the connection."""

    def hang(_request: Any) -> None:
        released.wait(100)

    return hang


@contextlib.contextmanager
def receiving(address: str = PUBLIC) -> Iterator[Receiver]:
    """Receive while the block runs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:
                return  # its sender was killed in the middle of it: nothing has been received
            call = Call(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            with receiver.changed:
                receiver.calls.append(call)
                receiver.changed.notify_all()
            path = self.path.partition("?")[0]
            if path not in receiver.answers:
                receiver.answer(path, 200)
            receiver.answers[path](self)

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            pass

    try:
        server = Quiet((address, 0), Handler)
    except OSError:
        pytest.skip(f"{address} is no address of this machine (macOS: ifconfig lo0 alias {address})")
    receiver = Receiver(server.server_address[1])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
