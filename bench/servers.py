"""Servers to measure: Tessera and chromadb, each in a process of its own on a free loopback port."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
CHROMA = ROOT / ".bench-venv" / "bin" / "chroma"
#: Where its collections are, below the client's base.
CHROMA_COLLECTIONS = "/tenants/default_tenant/databases/default_database/collections"


@contextlib.contextmanager
def tessera(data: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[httpx.Client]:
    """Yield a client, with its key, of a Tessera server on `data`, started with `options` and `env` besides."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera", "up", "--data", str(data), "--port", "0", *options],
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        key = url = ""
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("API key: "):
                key = line.split()[-1]
            if line.startswith("Tessera is ready at "):
                url = line.split()[-1]
                break
        key = key or (data / "admin.key").read_text().strip()
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def chroma(data: Path) -> Iterator[httpx.Client]:
    """Yield a client of chromadb's own server on `data`, at its default tenant and database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(CHROMA), "run", "--path", str(data), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "ANONYMIZED_TELEMETRY": "False"},
    )
    try:
        base = f"http://127.0.0.1:{port}/api/v2"
        with httpx.Client(base_url=base, timeout=60) as client:
            for _ in range(300):
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/heartbeat").status_code == 200:
                        break
                time.sleep(0.1)
            else:
                raise RuntimeError("chromadb's server did not come up within 30 s")
            yield client
    finally:
        process.terminate()
        process.wait(15)
