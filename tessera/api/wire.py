"""Below the application: what arrives on a connection before there is a request, and what is wrong with it.

The HTTP server would answer a malformed request with a line of text, take a head of any length and wait for
its end for ever. Here such a request gets the same error body as any other, and its connection is closed.
"""

from __future__ import annotations

import asyncio
import http
import secrets

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tessera.api import problems
from tessera.api.request_log import RequestLog
from tessera.config import Settings
from tessera.errors import BadRequestError, HeadersTooLargeError, RequestTimeoutError, TesseraError

#: The parser's own limit.
_LONGEST_URL = 2**16 - 1
#: After a refusal the rest of what is being sent is taken, this much and this long.
_DISCARDED_BYTES = 2**20
_LINGER_S = 2.0


def protocol(settings: Settings, log: RequestLog | None = None) -> type[asyncio.Protocol]:
    """Return the protocol that serves one connection, with the limits of `settings`; refusals go to `log`.

    Bounds: a head has `max_header_bytes` (and what one more read brings), and `request_timeout_s` to arrive.
    """

    class Wire(HttpToolsProtocol):
        _in_head = False
        _head_bytes = 0
        _parsed_bytes = 0
        #: Set once the connection was refused: what came since then, unread.
        _discarded: int | None = None
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._discarded is not None:
                self._discarded += len(data)
                if self._discarded > _DISCARDED_BYTES:
                    self.transport.close()
                return
            self._unset_keepalive_if_required()
            if self._in_head:
                self._head_bytes += len(data)
            cycle = self._last_cycle()
            if cycle is not None and cycle.response_complete:
                self._expect_head()
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserCallbackError:
                limit = min(settings.max_header_bytes, _LONGEST_URL)
                self._refuse(
                    head_too_large(len(self.url), limit)
                    if len(self.url) > limit
                    else BadRequestError("The request line must name a path, as in: GET /v1/health HTTP/1.1.")
                )
            except httptools.HttpParserError as error:
                self._refuse(BadRequestError(f"This is not a valid HTTP/1.1 request: {error}."))
            except httptools.HttpParserUpgrade:
                self._unsupported_upgrade_warning()
            else:
                size = max(self._head_bytes, self._parsed_bytes)
                if self._in_head and size > settings.max_header_bytes:
                    self._refuse(head_too_large(size, settings.max_header_bytes))

        def on_message_begin(self) -> None:
            super().on_message_begin()
            # What came in the same read may belong to the request before it: of that only what is parsed counts.
            self._in_head, self._head_bytes, self._parsed_bytes = True, 0, 0
            self._expect_head()

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            self._parsed_bytes += len(name) + len(value)

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._stop_timer()
            super().on_headers_complete()

        def _expect_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(settings.request_timeout_s, self._head_is_late)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _head_is_late(self) -> None:
            self._head_timer = None
            if self._in_head:
                limit_s = settings.request_timeout_s
                self._refuse(
                    RequestTimeoutError(f"The head of the request was not complete within {limit_s:g} s.")
                )
            else:
                # A connection on which nothing was asked.
                self.transport.close()

        def _refuse(self, error: TesseraError) -> None:
            self._stop_timer()
            cycle = self._last_cycle()
            # Half of an answer is out already: all that is left is to end the connection.
            if cycle is None or cycle.response_complete or not cycle.response_started:
                self._tell(error)
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
            # A client that is still sending would not see an answer to which the connection is closed at once.
            self._discarded = 0
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._head_timer = self.loop.call_later(_LINGER_S, self.transport.close)

        def _last_cycle(self) -> RequestResponseCycle | None:
            return self.cycle

        def _tell(self, error: TesseraError) -> None:
            request_id = f"req_{secrets.token_hex(8)}"
            status, body, more = problems.answer(error, request_id)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                (b"x-request-id", request_id.encode()),
                *more,
            ]
            line = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n".encode()
            head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(line + head + b"\r\n" + body)
            if log is not None:
                log.write(request_id, "-", "-", status, 0.0, "-")

    return Wire


def head_too_large(size: int, limit: int) -> HeadersTooLargeError:
    """Return the error for a head of `size` bytes (so far)."""
    return HeadersTooLargeError(
        f"The head of the request has {size} bytes; this server takes {limit} (setting max_header_bytes). Send "
        "long values in the body.",
        details={"max_header_bytes": limit},
    )
