"""An OpenAI-compatible endpoint that computes: it decides by words, and cuts and joins texts.

What it is asked is read from the prompt as a model would read it: words in quotation marks in the task are those
that a document must hold; "in capitals" asks for that; otherwise an answer is the beginning of a text.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

KEY = "sk-of-the-tests"


@dataclass
class Endpoint:
    """The endpoint's URL, what it was sent, and what it does next instead of answering well.

    `statuses` are given, one for each call, before it answers; `spoil` may replace the text of a reply.
    """

    url: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    statuses: list[int | dict[str, Any]] = field(default_factory=list)
    retry_after: str | None = None
    spoil: Callable[[dict[str, Any], str], str] | None = None
    delay_s: float = 0.0
    #: Most calls that were under way at once.
    most: int = 0
    _under_way: list[int] = field(default_factory=lambda: [0])

    def reset(self) -> None:
        self.calls.clear()
        self.keys.clear()
        self.statuses.clear()
        self.retry_after = self.spoil = None
        self.delay_s, self.most, self._under_way = 0.0, 0, [0]

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """What stood in the user's messages."""
        return [json.loads(call["messages"][-1]["content"]) for call in self.calls]


def answered(prompt: dict[str, Any]) -> Any:
    """Return the reply to a prompt, in the form that its schema asks for."""
    task, data = prompt["task"], prompt["data"]
    if "results" in prompt["reply_schema"]["properties"]:
        item = prompt["reply_schema"]["properties"]["results"]["items"]["properties"]["answer"]
        return {"results": [{"id": one["id"], "answer": _one(task, one, item)} for one in data]}
    if "queries" in prompt["reply_schema"]["properties"]:
        words = re.findall(r"\w+", data["query"])
        return {"queries": [" ".join(reversed(words)), f"{data['query']} explained", data["query"].upper()]}
    if set(prompt["reply_schema"]["properties"]) == {"text"}:
        return {"text": task.upper()}
    texts = [document["text"] for document in data["documents"]]
    return {"summary": " | ".join(text.partition(".")[0] for text in texts)}


def _one(task: str, document: dict[str, Any], item: dict[str, Any]) -> Any:
    text = " ".join(str(value) for name, value in sorted(document.items()) if name != "id")
    if "keep" in item.get("properties", {}):
        wanted = re.findall(r'"([^"]+)"', task)
        missing = [word for word in wanted if word.lower() not in text.lower()]
        return {"keep": not missing, "reason": f"lacks {missing}" if missing else "holds what is asked for"}
    if "label" in item.get("properties", {}):
        label = "About " + " ".join(document["terms"][:2])
        said = {"label": label, "summary": document["documents"][0], "keywords": document["terms"][:3]}
        return {name: said[name] for name in item["required"]}
    if item.get("type") == "object":
        return {name: len(text.split()) for name in item.get("required", ())}
    return text.upper() if "in capitals" in task else text[:40]


@contextlib.contextmanager
def serving() -> Iterator[Endpoint]:
    """Serve an endpoint while the block runs."""
    endpoint = Endpoint()
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                under_way = endpoint._under_way
                under_way[0] += 1
                endpoint.most = max(endpoint.most, under_way[0])
                endpoint.calls.append(body)
                endpoint.keys.append(self.headers["Authorization"])
                wrong = endpoint.statuses.pop(0) if endpoint.statuses else None
            time.sleep(endpoint.delay_s)
            with lock:
                under_way[0] -= 1
            self._answer(body, wrong)

        def _answer(self, body: dict[str, Any], wrong: int | dict[str, Any] | None) -> None:
            if self.path != "/v1/chat/completions":
                self._send(404, {"error": {"message": "no such route"}})
            elif self.headers["Authorization"] is None:
                self._send(401, {"error": {"message": "no key"}})
            elif wrong is not None:
                told = wrong if isinstance(wrong, dict) else {"message": f"told to answer {wrong}"}
                self._send(400 if isinstance(wrong, dict) else wrong, {"error": told})
            else:
                text = json.dumps(answered(json.loads(body["messages"][-1]["content"])))
                if endpoint.spoil is not None:
                    text = endpoint.spoil(body, text)
                size = len(body["messages"][-1]["content"]) + len(text)
                message = {"role": "assistant", "content": text}
                usage = {"total_tokens": size // 4}
                self._send(200, {"choices": [{"index": 0, "message": message}], "usage": usage})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if endpoint.retry_after is not None:
                self.send_header("Retry-After", endpoint.retry_after)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
