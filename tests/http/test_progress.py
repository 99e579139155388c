"""Progress: told while it goes on, to any number of watchers, never backwards, and nothing left when they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gated import GATED, install
from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import ROOT, Server

EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def gated_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("gated")
    server = Server.start(folder / "data", environment=install(folder / "site"))
    yield server
    server.kill(group=True)


class Waiting:
    """A batch of which two rows are done and two wait: they end when `go_on` is called, one of them failed."""

    def __init__(self, client: httpx.Client, folder: Path) -> None:
        made = client.post(
            "/v1/namespaces",
            json={
                "namespace_name": f"progress_{time.monotonic_ns()}",
                "feature_extractors": [GATED, PASSTHROUGH],
            },
        )
        self.loop = loop = Loop(client, made.json())
        self.gate = folder / "gate"
        bucket = loop.bucket()
        loop.collection(bucket)
        loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
        ids = [loop.note(bucket, f"wait:{self.gate} a"), loop.note(bucket, "bad:x")]
        batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": ids})
        self.path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
        self.task_id = str(loop.post(f"{self.path}/submit")["task_id"])

    def go_on(self) -> None:
        self.gate.touch()


@pytest.fixture
def waiting(gated_server: Server, tmp_path: Path) -> Iterator[Waiting]:
    with gated_server.client() as client:
        made = Waiting(client, tmp_path)
        yield made
        made.go_on()
        made.loop.wait(made.task_id)


def events(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and data of each event of a stream."""
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


@contextlib.contextmanager
def stream(client: httpx.Client, task_id: str, **headers: str) -> Iterator[httpx.Response]:
    with client.stream("GET", f"/v1/tasks/{task_id}", headers={**EVENTS, **headers}) as answer:
        yield answer


@pytest.mark.operation("GET", "/v1/tasks/{task_id}", 200)
def test_a_stream_goes_from_the_first_row_to_the_finished_task(waiting: Waiting) -> None:
    client = waiting.loop.client
    seen: list[dict[str, Any]] = []
    is_held = True
    with stream(client, waiting.task_id) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        told_events = events(answer)
        for name, data in told_events:
            if name == "task":
                task = data
                break
            assert name == "progress" and data["task_id"] == waiting.task_id
            seen.append(data)
            if data["done"] == 2 and is_held:
                told = client.get(f"/v1/tasks/{waiting.task_id}").json()["additional_data"]["progress"]
                assert (told["stage"], told["done"], told["total"], told["failed"]) == ("extract", 2, 4, 0)
                waiting.go_on()
                is_held = False
        assert list(told_events) == [], "the task is the last event"
    assert (task["status"], task["task_id"]) == ("COMPLETED_WITH_ERRORS", waiting.task_id)
    assert task == client.get(f"/v1/tasks/{waiting.task_id}").json()
    last = task["additional_data"]["progress"]
    assert (last["stage"], last["done"], last["total"], last["failed"]) == ("done", 4, 4, 1)
    assert (last["percent"], last["remaining_s"]) == (100.0, 0.0)
    assert task["additional_data"]["percent"] == 100.0, "said in two places, it is the same"
    assert seen, "who watches from the beginning sees it go on"
    for earlier, later in zip(seen, [*seen[1:], last], strict=True):
        assert earlier["done"] <= later["done"] and earlier["percent"] <= later["percent"]
    assert all(event["percent"] < 100 and event["status"] in ("PENDING", "IN_PROGRESS") for event in seen)


def test_a_finished_task_is_told_once_and_a_browser_is_sent_home(waiting: Waiting) -> None:
    client = waiting.loop.client
    waiting.go_on()
    waiting.loop.wait(waiting.task_id)
    with stream(client, waiting.task_id) as answer:
        assert [name for name, _ in events(answer)] == ["task"]
    again = client.get(f"/v1/tasks/{waiting.task_id}", headers={**EVENTS, "Last-Event-ID": "end"})
    assert (again.status_code, again.content) == (204, b"")
    for accept in ("*/*", "application/json", "application/json, text/event-stream"):
        plain = client.get(f"/v1/tasks/{waiting.task_id}", headers={"Accept": accept})
        assert plain.json()["status"] == "COMPLETED_WITH_ERRORS"
    missing = client.get("/v1/tasks/tsk_absent", headers=EVENTS)
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "NotFoundError")


def test_watchers_that_leave_are_forgotten(gated_server: Server, waiting: Waiting) -> None:
    """A stream ends when its client is gone, not when its task ends: its line in the log is written then."""
    ids = [f"watcher-{time.monotonic_ns()}-{number}" for number in range(40)]
    sockets = [watch(gated_server, waiting.task_id, request_id) for request_id in ids]
    assert not [request_id for request_id in ids if request_id in gated_server.log], "all forty are open"
    with stream(waiting.loop.client, waiting.task_id) as answer:
        for one in sockets:
            one.close()
        deadline = time.monotonic() + 30
        while [request_id for request_id in ids if request_id not in gated_server.log]:
            assert time.monotonic() < deadline, "streams outlive their clients"
            time.sleep(0.05)
        waiting.go_on()
        assert [name for name, _ in events(answer)][-1] == "task", "the one that stayed sees the end"


def watch(server: Server, task_id: str, request_id: str) -> socket.socket:
    """Open a stream and read its first event."""
    connection = socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0), timeout=30)
    head = f"GET /v1/tasks/{task_id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.api_key}\r\n"
    head += f"X-Request-ID: {request_id}\r\nAccept: text/event-stream\r\n\r\n"
    connection.sendall(head.encode())
    received = b""
    while b"event: progress" not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return connection


def test_a_revoked_key_sees_no_further_event(gated_server: Server, waiting: Waiting) -> None:
    client = waiting.loop.client
    email = client.get("/v1/organizations/users").json()["results"][0]["email"]
    keys = f"/v1/organizations/users/{email}/api-keys"
    name = f"watcher {time.monotonic_ns()}"
    key = client.post(keys, json={"name": name, "permissions": ["read"]}).json()["key"]
    with gated_server.client(key=key) as watcher, stream(watcher, waiting.task_id) as answer:
        told = events(answer)
        assert next(told)[0] == "progress"
        client.delete(f"{keys}/{name}").raise_for_status()
        waiting.go_on()
        waiting.loop.wait(waiting.task_id)
        assert "task" not in [name for name, _ in told]


def test_a_deleted_task_ends_its_stream(waiting: Waiting) -> None:
    client = waiting.loop.client
    with stream(client, waiting.task_id) as answer:
        told = events(answer)
        next(told)
        client.delete(f"/v1/namespaces/{waiting.loop.namespace_id}")
        assert all(name == "progress" or data["status"] == "CANCELED" for name, data in told)
    waiting.loop.wait = lambda *_: None  # type: ignore[method-assign]  # nothing is left to wait for


@contextlib.contextmanager
def watching(server: Server, task_id: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``tessera watch`` and wait until it has shown something."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera", "watch", task_id, "--data", str(server.data)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # Ctrl-C is asleep in what a shell started in the background, and in all that this starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        assert process.stderr is not None
        assert "%" in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_watching_and_not_the_task(gated_server: Server, waiting: Waiting) -> None:
    with watching(gated_server, waiting.task_id) as process:
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert f"tessera watch {waiting.task_id}" in said and "Traceback" not in said
    task = waiting.loop.get(f"/tasks/{waiting.task_id}")
    assert task["status"] == "IN_PROGRESS", "it goes on"
    with watching(gated_server, waiting.task_id) as process:
        waiting.go_on()
        out, said = process.communicate(timeout=60)
        assert process.returncode == 5, "some rows failed"
        assert out == f"{waiting.task_id} COMPLETED_WITH_ERRORS: 4 of 4 done, 1 failed\n"
        assert "The text says x" in said


def test_an_ending_server_waits_for_no_watcher_and_they_outlive_it(tmp_path: Path) -> None:
    """A stream ends with its server; the next one on the same address goes on with the batch, a watcher with it."""
    server = Server.start(tmp_path / "data", environment=install(tmp_path / "site"))
    try:
        with server.client() as client:
            waiting = Waiting(client, tmp_path)
            with watching(server, waiting.task_id) as process:
                with stream(client, waiting.task_id) as answer:
                    told = events(answer)
                    next(told)
                    server.restart()
                    assert "task" not in [name for name, _ in told]
                assert "graceful shutdown exceeded" not in server.log
                waiting.go_on()
                out, _ = process.communicate(timeout=120)
                assert process.returncode == 5 and "4 of 4 done" in out
    finally:
        server.kill(group=True)
