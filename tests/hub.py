"""A stand-in for the model hub on loopback: what huggingface_hub asks for a model's files, and nothing else."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Hub:
    """Serves `files` by repository and name; those that end in .onnx or .bin as large files, with their SHA-256.

    `damaged` are names whose bytes are other ones than the checksum that is stated.
    """

    def __init__(
        self, files: Mapping[str, Mapping[str, bytes]], damaged: frozenset[str] = frozenset()
    ) -> None:
        self.files, self.damaged = files, damaged
        self.fetched: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                for repository, known in hub.files.items():
                    if path in (f"/api/models/{repository}", f"/api/models/{repository}/revision/main"):
                        self._send(json.dumps(hub.info(repository)).encode(), {}, with_body=with_body)
                        return
                    prefix = f"/{repository}/resolve/{REVISION}/"
                    name = path.removeprefix(prefix)
                    if path.startswith(prefix) and name in known:
                        data = known[name]
                        headers = {
                            "ETag": f'"{hub.checksum(name, data)}"',
                            "X-Repo-Commit": REVISION,
                            "Content-Type": "application/octet-stream",
                        }
                        if with_body:
                            hub.fetched.append(f"{repository}/{name}")
                        sent = data[:-1] + bytes([255 - data[-1]]) if name in hub.damaged else data
                        self._send(sent, headers, with_body=with_body)
                        return
                self._send(b"{}", {}, with_body=with_body, status=404)

            def _send(
                self, body: bytes, headers: dict[str, str], *, with_body: bool, status: int = 200
            ) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def checksum(self, name: str, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest() if self.is_large(name) else git_id(data)

    @staticmethod
    def is_large(name: str) -> bool:
        return name.endswith((".onnx", ".bin"))

    def info(self, repository: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.files[repository].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_id(data)}
            if self.is_large(name):
                entry["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 134,
                }
            siblings.append(entry)
        return {
            "id": repository,
            "modelId": repository,
            "sha": REVISION,
            "private": False,
            "siblings": siblings,
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
