"""P11: GET a namespace with its key checked, beside a bare FastAPI route on the same kind of server.

Floor: at least 0.5 times the requests a second of the bare route. Record: 0.7 times.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.p1_create_namespace import PAGE
from bench.servers import tessera

ROUNDS = 7
REQUESTS = 1500

#: A route that does nothing but answer JSON of about the same size, on uvicorn as Tessera runs it.
BARE = """
import socket, uvicorn
from fastapi import FastAPI
app = FastAPI()
ANSWER = {"namespace": "x" * 2500}
@app.get("/v1/bare")
def bare():
    return ANSWER
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(64)
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([listener])
"""


def main() -> None:
    """Print the ratio of requests a second, both sides interleaved, on one connection."""
    bare = subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE, text=True)
    try:
        assert bare.stdout is not None
        port = int(bare.stdout.readline())
        with tempfile.TemporaryDirectory() as folder, tessera(Path(folder) / "tessera") as client:
            made = client.post("/v1/namespaces", json={"namespace_name": "bench", **PAGE}).raise_for_status()
            path = f"/v1/namespaces/{made.json()['namespace_id']}"
            theirs = _Connection("127.0.0.1", port, "/v1/bare", "")
            ours = _Connection(
                client.base_url.host, client.base_url.port or 80, path, client.headers["Authorization"]
            )
            for connection in (ours, theirs):
                connection.rate(300)
            ratios, rates = [], []
            for _ in range(ROUNDS):
                mine = ours.rate(REQUESTS)
                rates.append(mine)
                ratios.append(mine / theirs.rate(REQUESTS))
            print(
                f"P11 GET namespace {statistics.median(rates):.0f} requests/s on one connection; "
                f"{statistics.median(ratios):.2f}x a bare FastAPI route "
                f"(rounds {min(ratios):.2f} to {max(ratios):.2f}; floor 0.5, record 0.7)"
            )
    finally:
        bare.terminate()
        bare.wait(10)


class _Connection:
    """One kept-alive connection that sends the same request again and again, with as little client as can be."""

    def __init__(self, host: str, port: int, path: str, authorization: str) -> None:
        self._socket = socket.create_connection((host, port))
        header = f"Authorization: {authorization}\r\n" if authorization else ""
        self._request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{header}\r\n".encode()

    def rate(self, requests: int) -> float:
        """Return requests a second over `requests` of them."""
        began = time.perf_counter()
        for _ in range(requests):
            self._once()
        return requests / (time.perf_counter() - began)

    def _once(self) -> None:
        self._socket.sendall(self._request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._socket.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(received.decode(errors="replace"))
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        while len(body) < length:
            body += self._socket.recv(65536)
