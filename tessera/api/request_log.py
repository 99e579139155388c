"""One line to stderr for each request: time, id, method, route template, status, ms, key prefix.

Never a body, a query or a secret; the template and not the path, because paths hold users' names.
"""

from __future__ import annotations

import queue
import threading
import time
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

#: Lines that may wait when whoever reads stderr is slow; more are dropped rather than held in memory.
_WAITING = 10_000
#: Lines are written together, at the latest after this time.
_GATHER_S = 0.05


class RequestLog:
    """Writes lines from a thread of its own: a full pipe must not stop the event loop."""

    def __init__(self, stream: TextIO, form: Literal["text", "json"]) -> None:
        self._stream = stream
        self._json = form == "json"
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_lines, name="request-log", daemon=True)
        self._thread.start()

    def write(
        self, request_id: str, method: str, route: str, status: int, ms: float, key_prefix: str
    ) -> None:
        """Queue one line."""
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        if self._json:
            line = orjson.dumps(
                {
                    "time": at,
                    "request_id": request_id,
                    "method": method,
                    "route": route,
                    "status": status,
                    "ms": round(ms, 2),
                    "key": key_prefix,
                }
            ).decode()
        else:
            line = f"{at} {request_id} {method} {route} {status} {ms:.1f}ms {key_prefix}"
        if self._lines.qsize() < _WAITING:
            self._lines.put(line)

    def close(self) -> None:
        """Write what is queued, for at most a second."""
        self._lines.put(None)
        self._thread.join(timeout=1)

    def _write_lines(self) -> None:
        ending = False
        while not ending:
            lines = [self._lines.get()]
            # Waking for each line would take the interpreter's lock from the very request that is answered.
            time.sleep(_GATHER_S if lines[0] is not None else 0)
            while not self._lines.empty() and len(lines) < 1000:
                lines.append(self._lines.get())
            ending = None in lines
            try:
                self._stream.write("".join(f"{line}\n" for line in lines if line is not None))
                self._stream.flush()
            except (OSError, ValueError):
                # Nobody reads stderr any more; the server goes on.
                continue
