"""A client with as little client as can be: one kept-alive connection, JSON by orjson, status checked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import orjson


class Wire:
    """One connection to the server that `client` speaks to, with its headers and `headers`."""

    def __init__(self, client: httpx.Client, **headers: str) -> None:
        self._address = (client.base_url.host, client.base_url.port or 80)
        self._socket = socket.create_connection(self._address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = {"Host": self._address[0], **headers}
        if "authorization" in client.headers:
            lines["Authorization"] = client.headers["authorization"]
        self._head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())

    def post(self, path: str, body: Any, method: str = "POST") -> Any:
        """Send `body` as JSON and return the parsed answer."""
        return orjson.loads(self._exchange(self.request(path, body, method)))

    def request(self, path: str, body: Any, method: str = "POST") -> bytes:
        """Return what is sent for `body` as JSON."""
        data = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        head = (
            f"{method} {path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        ).encode()
        return head + data

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self._socket.fileno()

    def send(self, request: bytes) -> None:
        """Send a whole request without waiting for its answer; `receive` reads that."""
        self._socket.sendall(request)

    def receive(self) -> bytes:
        """Return the body of the answer to what was sent. Raises `RuntimeError` for any but a 2xx."""
        return self._answer()

    def get(self, path: str) -> bytes:
        """Return the body that `path` answers."""
        return self._exchange(f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode())

    def close(self) -> None:
        self._socket.close()

    def _exchange(self, request: bytes) -> bytes:
        self._socket.sendall(request)
        return self._answer()

    def _answer(self) -> bytes:
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._some()
        head, _, body = received.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        parts, size = [body], len(body)
        while size < length:
            parts.append(self._some())
            size += len(parts[-1])
        if not head.startswith(b"HTTP/1.1 20"):
            raise RuntimeError(f"{head.split(b' ', 2)[1].decode()}: {b''.join(parts)[:500].decode()}")
        return b"".join(parts)

    def _some(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data


def in_parallel(connections: int, wire: Callable[[], Wire], work: Iterable[Callable[[Wire], Any]]) -> None:
    """Do all of `work` over several connections at once; the first error is raised."""
    pending, lock, errors = iter(work), threading.Lock(), []

    def run() -> None:
        connection = wire()
        try:
            while not errors:
                with lock:
                    job = next(pending, None)
                if job is None:
                    return
                job(connection)
        except Exception as error:  # noqa: BLE001  whatever it was, it belongs to who started this
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
