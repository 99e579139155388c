"""Two servers on one database: who stands still or dies loses its batches; every effect comes once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tessera import artifact
from tests import qdrant_rest
from tests.gated import GATED, install
from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

LEASE_S = 1.5
ROWS = 4
#: What is done to whoever works on the batch.
WAYS = ("server killed", "server stopped", "worker killed", "worker stopped")


class Pair:
    """Two servers with data directories of their own; metadata, blobs and the Qdrant server are shared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True)
        self._qdrant = qdrant_rest.start(folder / "qdrant")
        self.environment = {
            **install(folder / "site"),
            "TESSERA_DATABASE_URL": f"sqlite:///{folder / 'tessera.sqlite3'}",
            "TESSERA_QDRANT_URL": self._qdrant.url,
            "TESSERA_JOB_LEASE_S": str(LEASE_S),
            "TESSERA_EXTRACT_TIMEOUT_S": "5",
            "TESSERA_WORKERS": "2",
        }
        self.servers: list[Server] = []
        for name in ("a", "b"):
            data = folder / name
            data.mkdir()
            (data / "blobs").symlink_to(folder / "blobs")
            if self.servers:
                shutil.copy(folder / "a" / "admin.key", data)
            self.servers.append(Server.start(data, environment=self.environment))

    def close(self) -> None:
        for server in self.servers:
            os.kill(server.process.pid, signal.SIGCONT)
            assert server.stop() == 0, server.log[-2000:]
        self._qdrant.shutdown()

    def restart(self, server: Server) -> Server:
        again = Server.start(server.data, environment=self.environment)
        self.servers[self.servers.index(server)] = again
        return again

    def other(self, server: Server) -> Server:
        return self.servers[1 - self.servers.index(server)]

    def holder(self, batch_id: str) -> Server | None:
        """Return the server under whose slot the batch is done."""
        (row,) = self.ask("tessera", "SELECT holder FROM batches WHERE batch_id = ?", batch_id)
        owners = self.ask("jobs", "SELECT owner FROM job_slots WHERE token = ?", row[0])
        for (owner,) in owners:
            return next(s for s in self.servers if owner.startswith(f"pid {s.process.pid} "))
        return None

    def ask(self, name: str, query: str, *values: object) -> list[Any]:
        path = self.folder / f"{name}.sqlite3"
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair") / "all")
    yield pair
    pair.close()


def until(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.02)


@contextmanager
def inside(server: Server, namespace: dict[str, Any]) -> Iterator[Loop]:
    with server.client() as client:
        yield Loop(client, namespace)


def make_namespace(server: Server) -> dict[str, Any]:
    body = {"namespace_name": f"pair_{time.monotonic_ns()}", "feature_extractors": [GATED, PASSTHROUGH]}
    with server.client() as client:
        made: dict[str, Any] = client.post("/v1/namespaces", json=body).raise_for_status().json()
    return made


def documents_in_log(pair: Pair, namespace_id: str) -> Counter[str]:
    """Count how often each document was logged."""
    found: Counter[str] = Counter()
    query = "SELECT artifact_key FROM log_entries WHERE namespace_id = ? AND artifact_key IS NOT NULL"
    for (key,) in pair.ask("tessera", query, namespace_id):
        for documents in artifact.read(pair.folder / "blobs" / key):
            found.update(document.document_id for document in documents)
    return found


def run_once(pair: Pair, way: str, rng: random.Random, number: int) -> str:
    """Let a batch lose its server or its worker at a random moment, and check what became of it."""
    first = rng.choice(pair.servers)
    namespace = make_namespace(first)
    reached = pair.folder / f"reached{number}"
    with inside(first, namespace) as loop:
        bucket = loop.bucket()
        collections = [
            loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}}) for _ in range(2)
        ] + [loop.collection(bucket)]
        texts = [f"open:{reached} sleep:0.15 word{n}" for n in range(ROWS)]
        objects = [loop.note(bucket, text) for text in texts]
        batch_id = loop.post(f"/buckets/{bucket}/batches", {"object_ids": objects})["batch_id"]
        path = f"/buckets/{bucket}/batches/{batch_id}"
        task_id = loop.post(f"{path}/submit")["task_id"]
    until(lambda: reached.exists(), "a row has begun")
    time.sleep(rng.uniform(0, 1.0))
    victim = pair.holder(batch_id)
    note = way
    if victim is None:
        note = f"{way}: it had ended already"
        victim = first
    if way == "server killed":
        victim.kill()
    elif way == "server stopped":
        os.kill(victim.process.pid, signal.SIGSTOP)
    else:
        try:
            os.kill(int(reached.read_text()), signal.SIGKILL if way == "worker killed" else signal.SIGSTOP)
        except ProcessLookupError:
            note = f"{way}: it had ended already"
    awake = pair.other(victim)
    if way == "server stopped" and "already" not in note:
        # One that stands still in the middle of a write holds up the other for as long.
        deadline = time.monotonic() + 20
        query = "SELECT status FROM batches WHERE batch_id = ? AND (attempt > 1 OR status != 'IN_PROGRESS')"
        while not (taken := pair.ask("tessera", query, batch_id)) and time.monotonic() < deadline:
            time.sleep(0.02)
        if taken and rng.random() < 0.5:
            until(lambda: pair.ask("tessera", query, batch_id) != [("IN_PROGRESS",)], "the other did it")
        os.kill(victim.process.pid, signal.SIGCONT)
    elif way == "server stopped":
        os.kill(victim.process.pid, signal.SIGCONT)
    with inside(awake, namespace) as loop:
        task = loop.wait(task_id, 180)
        assert task["status"] == "COMPLETED", (way, task)
        batch = loop.get(path)
        assert (batch["status"], batch["progress"]["processed"]) == ("COMPLETED", 3 * ROWS), batch
        assert batch["failed_object_count"] == 0
        if "already" not in note and way.startswith("server"):
            note += f", {batch['retry_count']} takeover"
        logged = documents_in_log(pair, loop.namespace_id)
        assert len(logged) == 3 * ROWS
        assert set(logged.values()) == {1}, logged
        if way == "server killed":
            victim = pair.restart(victim)
        elif way == "server stopped":
            until(lambda: health(victim) == "OK", "the stopped server works again")
        for collection in collections:
            found = [item["root_object_id"] for item in loop.documents(collection)]
            assert sorted(found) == sorted(objects)
    # What the one that stood still had made is refused, and taken away.
    folder = pair.folder / "blobs" / namespace["namespace_id"] / "artifacts"
    query = "SELECT count(*) FROM log_entries WHERE namespace_id = ? AND artifact_key IS NOT NULL"
    count = pair.ask("tessera", query, namespace["namespace_id"])[0][0]
    until(lambda: len(list(folder.iterdir())) == count, "no file is left behind")
    assert pair.ask("tessera", "SELECT count(*) FROM batches WHERE holder IS NOT NULL") == [(0,)]
    return note


def health(server: Server) -> str:
    with server.client() as client:
        return str(client.get("/v1/health").json()["status"])


@pytest.mark.parametrize(
    "runs", [len(WAYS), pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_work_goes_on_when_its_server_or_worker_stands_still_or_dies(pair: Pair, runs: int) -> None:
    seed = int(os.environ.get("TESSERA_TEST_SEED", time.time_ns() % 2**32))
    print(f"seed {seed}; TESSERA_TEST_SEED repeats it")
    rng = random.Random(seed)
    notes: Counter[str] = Counter()
    for number in range(runs):
        begun = time.monotonic()
        note = run_once(pair, WAYS[number % len(WAYS)], rng, number)
        print(f"  {time.monotonic() - begun:.1f} s {note}")
        notes[note] += 1
    for note, count in sorted(notes.items()):
        print(f"{count:4} × {note}")
    # Slots are used again: as many as there are servers, whatever has died.
    slots = pair.ask("jobs", "SELECT slot FROM job_slots ORDER BY slot")
    assert [slot for (slot,) in slots] in ([0, 1], [0, 1, 2]), slots


def test_what_one_server_changes_the_other_sees_with_its_next_execution(pair: Pair) -> None:
    one, other = pair.servers
    namespace = make_namespace(one)
    with inside(one, namespace) as here, inside(other, namespace) as there:
        collection = here.collection(here.bucket())
        here.post(f"/collections/{collection}/documents", {"document_id": "d"})
        sort = {"stage_id": "sort_attribute", "parameters": {"sort_field": "document_id"}}
        name = ["r"]
        body = {"retriever_name": "r", "collection_identifiers": [collection], "stages": [sort]}
        here.post("/retrievers", body)

        def found() -> list[str]:
            answer = there.post(f"/retrievers/{name[0]}/execute", {})
            return [item["document_id"] for item in answer["documents"]]

        for number in range(2):
            assert [found(), found()] == [["d"]] * 2
            here.patch(f"/retrievers/{name[0]}", {"retriever_name": f"r{number}"})
            there.refused(404, "POST", f"/retrievers/{name[0]}/execute", {})
            name[0] = f"r{number}"
        assert [found(), found()] == [["d"]] * 2
        here.delete(f"/retrievers/{name[0]}")
        there.refused(404, "POST", f"/retrievers/{name[0]}/execute", {})
