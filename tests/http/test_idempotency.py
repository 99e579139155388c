"""Requests with an Idempotency-Key, sent several times at once while replies are cut: one effect, one answer.

Also when the server is killed in between. The effects are counted by listing what exists.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sqlite3
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.loop import TEXT, Loop
from tests.http.oracle import listed
from tests.http.processes import Server

CLIENTS = 12


@dataclass
class Request:
    """What a client wants once, how often it sends it, and every answer that it read."""

    path: str
    key: str
    body: dict[str, Any]
    copies: int
    answers: list[tuple[int, bytes]] = field(default_factory=list)


class Sender:
    """Sends requests over connections of their own, so that each can be cut."""

    def __init__(self, server: Server, namespace_id: str, rng: random.Random) -> None:
        self._server = server
        self._namespace_id = namespace_id
        self._rng = rng
        self._lock = threading.Lock()

    def send(self, request: Request, *, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Send a request and read its answer."""
        with self._sent(request, body) as connection:
            answer = connection.getresponse()
            return answer.status, answer.read()

    def send_and_leave(self, request: Request) -> None:
        """Send a request and close the connection before anything is read, half of the time with a reset."""
        with self._sent(request, None) as connection, self._lock:
            if self._rng.random() < 0.5:
                linger = struct.pack("ii", 1, 0)
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def copy(self, request: Request) -> None:
        """Send one of the copies; what was read is noted."""
        with self._lock:
            stays = self._rng.random() < 0.6
        # A server that was killed answers nobody; what was sent may have had its effect.
        with contextlib.suppress(OSError, HTTPException):
            if stays:
                request.answers.append(self.send(request))
            else:
                self.send_and_leave(request)

    @contextlib.contextmanager
    def _sent(self, request: Request, body: dict[str, Any] | None) -> Iterator[HTTPConnection]:
        url = httpx.URL(self._server.url)
        connection = HTTPConnection(url.host, url.port or 80, timeout=60)
        try:
            connection.request(
                "POST",
                f"/v1{request.path}",
                json.dumps(request.body if body is None else body),
                {
                    "Authorization": f"Bearer {self._server.api_key}",
                    "Content-Type": "application/json",
                    "X-Namespace": self._namespace_id,
                    "Idempotency-Key": request.key,
                },
            )
            yield connection
        finally:
            connection.close()


def _requests(rng: random.Random, number: int, bucket_id: str, object_ids: list[str]) -> list[Request]:
    """Return `number` requests, a third on each of the three routes; about a tenth have the same body as another."""
    made = []
    for index in range(number):
        key, copies = f"key-{index}", rng.randint(2, 5)
        if index % 3 == 0:
            body: dict[str, Any] = {"namespace_name": f"once-{index}", "feature_extractors": [TEXT]}
            path = "/namespaces"
        elif index % 3 == 1:
            text = f"note {index if rng.random() < 0.9 else 'like others'}"
            body = {
                "blobs": [{"property": "note", "type": "text", "data": text}],
                "metadata": {"key": key},
            }
            path = f"/buckets/{bucket_id}/objects"
        else:
            body = {"object_ids": rng.sample(object_ids, 3), "metadata": {"key": key}}
            path = f"/buckets/{bucket_id}/batches"
        made.append(Request(path, key, body, copies))
    return made


@pytest.mark.parametrize(
    "number", [120, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_each_request_has_one_effect(tmp_path: Path, number: int) -> None:
    seed = int(os.environ.get("TESSERA_TEST_SEED", time.time_ns() % 2**32))
    print(f"seed {seed}; TESSERA_TEST_SEED={seed} repeats it")
    rng = random.Random(seed)
    server = Server.start(tmp_path / "data")
    try:
        with server.client() as client:
            made = client.post(
                "/v1/namespaces", json={"namespace_name": "home", "feature_extractors": [TEXT]}
            )
            loop = Loop(client, made.raise_for_status().json())
            bucket_id = loop.bucket()
            object_ids = [loop.note(bucket_id, f"before {n}") for n in range(5)]
        requests = _requests(rng, number, bucket_id, object_ids)
        copies = [request for request in requests for _ in range(request.copies)]
        # Copies of one request are sent at about the same time.
        copies = [copies[place] for place in sorted(range(len(copies)), key=lambda p: p + rng.uniform(-4, 4))]
        sender = Sender(server, loop.namespace_id, rng)
        dies_at = rng.randrange(len(copies) // 4, 3 * len(copies) // 4)
        with ThreadPoolExecutor(CLIENTS) as threads:
            under_way = [threads.submit(sender.copy, request) for request in copies[:dies_at]]
            under_way[-CLIENTS].result()
            server.kill()
            for future in under_way:
                future.result()
        server.launch_again()
        with ThreadPoolExecutor(CLIENTS) as threads:
            # A client without an answer sends again.
            rest = [r for r in copies[:dies_at] if not r.answers and rng.random() < 0.5] + copies[dies_at:]
            list(threads.map(sender.copy, rest))
            for request, answer in zip(requests, threads.map(sender.send, requests), strict=True):
                request.answers.append(answer)
            for request in requests:
                assert {status for status, _ in request.answers} == {200}, request
                assert len({body for _, body in request.answers}) == 1, request
            _check_effects(server, loop.namespace_id, bucket_id, requests, object_ids)
            changed = list(
                threads.map(lambda request: sender.send(request, body=_changed(request)), requests)
            )
        assert {status for status, _ in changed} == {409}
        read = sum(len(request.answers) for request in requests)
        print(f"{len(requests)} requests, {len(copies)} copies, {read} answers read, killed after {dies_at}")
        _check_effects(server, loop.namespace_id, bucket_id, requests, object_ids)
        _check_a_day(server, sender, rng.sample(requests, 12))
    finally:
        server.kill(group=True)


def _changed(request: Request) -> dict[str, Any]:
    if request.path == "/namespaces":
        return {**request.body, "namespace_name": f"{request.body['namespace_name']}-other"}
    return {**request.body, "metadata": {"key": "other"}}


def _check_effects(
    server: Server, namespace_id: str, bucket_id: str, requests: list[Request], others: list[str]
) -> None:
    """Each request made exactly the one thing that its answers show."""
    told = [json.loads(request.answers[0][1]) for request in requests]
    with server.client() as client:
        found = Counter(
            namespace["namespace_id"] for namespace in listed(client, namespace_id, "/v1/namespaces/list")
        )
        assert found == Counter([namespace_id, *(t["namespace_id"] for t in told if "namespace_name" in t)])
        path = f"/v1/buckets/{bucket_id}/objects/list"
        objects = Counter(item["object_id"] for item in listed(client, namespace_id, path))
        assert objects == Counter([*others, *(t["object_id"] for t in told if "object_id" in t)])
        path = f"/v1/buckets/{bucket_id}/batches/list"
        batches = Counter(item["batch_id"] for item in listed(client, namespace_id, path))
        assert batches == Counter(t["batch_id"] for t in told if "batch_id" in t)


def _check_a_day(server: Server, sender: Sender, requests: list[Request]) -> None:
    """A key stands for its request for 24 hours and is free afterwards.

    The day passes by setting back the time at which the keys were first used.
    """
    _set_back(server.data, requests, hours=23.9)
    for request in requests:
        assert sender.send(request) == request.answers[0]
    _set_back(server.data, requests, hours=24.1)
    for request in requests:
        status, body = sender.send(request, body=_changed(request))
        assert status == 200, body
        assert body != request.answers[0][1]
        # From now on the key stands for that one.
        assert sender.send(request, body=_changed(request)) == (200, body)
        assert sender.send(request)[0] == 409


def _set_back(data: Path, requests: list[Request], *, hours: float) -> None:
    with contextlib.closing(sqlite3.connect(data / "tessera.sqlite3", timeout=30)) as database, database:
        for request in requests:
            changed = database.execute(
                "UPDATE idempotency SET created_at = strftime('%Y-%m-%dT%H:%M:%f000Z', 'now', ?) WHERE key = ?",
                (f"-{int(hours * 3600)} seconds", request.key),
            ).rowcount
            assert changed == 1
