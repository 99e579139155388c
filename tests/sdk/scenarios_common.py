"""What all scenarios share: the page's literal request, the quickstart's words, and waiting."""

from __future__ import annotations

import base64
import contextlib
import http.server
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

URL = os.environ["SCENARIO_URL"]
KEY = os.environ["SCENARIO_KEY"]
MEDIA = Path(os.environ["SCENARIO_MEDIA"])

#: The request of the page "Create Namespace", word for word; a test gives it a name of its own.
PAGE_REQUEST: dict[str, Any] = {
    "namespace_name": "spotify_playlists_dev",
    "description": "This namespace contains playlists from Spotify",
    "feature_extractors": [
        {
            "feature_extractor_id": "video_extractor_1.0.0",
            "feature_extractor_name": "video_extractor",
            "version": "1.0.0",
        }
    ],
    "payload_indexes": [
        {
            "field_name": "metadata.title",
            "field_schema": {
                "lowercase": True,
                "max_token_len": 15,
                "min_token_len": 2,
                "tokenizer": "word",
                "type": "text",
            },
            "type": "text",
        },
        {
            "field_name": "metadata.description",
            "field_schema": {"is_tenant": True, "type": "keyword"},
            "type": "keyword",
        },
    ],
}

TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
WORDS_URI = "mixpeek://text_extractor@v1/bm25"
HEADPHONES = "Lightweight wireless headphones with active noise cancellation."
LAMP = "A brass desk lamp with a green glass shade."
QUESTION = "wireless headphones with noise cancelling"


def unique(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:8]}"


def until(probe: Callable[[], Any], timeout_s: float = 90.0) -> Any:
    """Return the first answer of `probe` that is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"Nothing came within {timeout_s:.0f} s.")
        time.sleep(0.1)


def media_base64(name: str) -> str:
    return base64.b64encode((MEDIA / name).read_bytes()).decode()


def data_uri(name: str) -> str:
    kind = {"mp4": "video/mp4", "png": "image/png"}[name.rsplit(".", 1)[1]]
    return f"data:{kind};base64,{media_base64(name)}"


@contextlib.contextmanager
def web_page(content: bytes) -> Iterator[str]:
    """Serve one page on the address that the server may fetch from, and yield its URL.

    On macOS that address has to be made first: ``ifconfig lo0 alias 127.0.0.2``.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.2", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.2:{server.server_address[1]}/note.txt"
    finally:
        server.shutdown()
        server.server_close()
