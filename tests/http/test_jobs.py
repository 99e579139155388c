"""Batches under way: ended within seconds when nobody wants them, poison parked, servers that end under them."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gated import GATED, install
from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

#: A row may take so long in these tests.
TIMEOUT_S = 5


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def gated_server(tmp_path_factory: pytest.TempPathFactory, site: dict[str, str]) -> Iterator[Server]:
    environment = {**site, "TESSERA_WORKERS": "2", "TESSERA_EXTRACT_TIMEOUT_S": str(TIMEOUT_S)}
    server = Server.start(tmp_path_factory.mktemp("jobs") / "data", environment=environment)
    yield server
    assert server.stop() == 0, server.log[-2000:]


def make(server: Server) -> Loop:
    body = {"namespace_name": f"jobs_{time.monotonic_ns()}", "feature_extractors": [GATED, PASSTHROUGH]}
    client = server.client()
    return Loop(client, client.post("/v1/namespaces", json=body).raise_for_status().json())


def submit(loop: Loop, bucket: str, object_ids: list[str]) -> tuple[str, str]:
    """Submit a batch; return its path and its task."""
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": object_ids})
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    return path, loop.post(f"{path}/submit")["task_id"]


def until(condition: Callable[[], object], what: str, timeout_s: float = 30) -> float:
    """Wait until `condition` holds and return after how many seconds it did."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < timeout_s, f"in vain: {what}"
        time.sleep(0.01)
    return time.monotonic() - begun


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ask(server: Server, query: str, *values: str) -> list[Any]:
    connection = sqlite3.connect(f"file:{server.data / 'tessera.sqlite3'}?mode=ro", uri=True)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


# --- ended -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "delete the batch", "delete the namespace"])
def test_work_that_nobody_wants_ends_within_two_seconds(
    gated_server: Server, tmp_path: Path, how: str
) -> None:
    """The worker went on with its chunk, up to the time limit, and kept others from it."""
    took: list[float] = []
    # The machine may be busy: the best of three counts.
    while not took or (min(took) > 2 and len(took) < 3):
        reached = tmp_path / f"reached{len(took)}"
        loop = make(gated_server)
        bucket = loop.bucket()
        first = loop.collection(bucket)
        second = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
        objects = [loop.note(bucket, "a"), loop.note(bucket, f"b open:{reached} sleep:60")]
        path, task_id = submit(loop, bucket, objects)
        until(reached.exists, "the row that takes a minute has begun")
        worker = int(reached.read_text())
        if how == "cancel":
            assert loop.post(f"{path}/cancel")["status"] == "CANCELED"
        elif how == "delete the batch":
            assert loop.delete(path)["success"] is True
        else:
            loop.client.delete(f"/v1/namespaces/{loop.namespace_id}").raise_for_status()
        took.append(until(lambda pid=worker: not is_alive(pid), "the worker was stopped"))  # type: ignore[misc]
        if how != "delete the namespace":
            # What was done stays, nothing comes after, and the next one has a worker.
            assert len(loop.documents(first)) == 2
            assert loop.get(f"/tasks/{task_id}")["status"] == "CANCELED"
            assert loop.run(bucket, [loop.note(bucket, "c")])["status"] == "COMPLETED"
            assert [item["piece"] for item in loop.documents(second)] == ["c"]
    print(f"{how}: ended after {min(took):.2f} s")
    assert min(took) <= 2, took
    if how == "cancel":
        batch = loop.get(path)
        assert (batch["status"], batch["progress"]["processed"]) == ("CANCELED", 2)
        folder = gated_server.data / "blobs" / loop.namespace_id / "artifacts"
        query = "SELECT count(*) FROM log_entries WHERE namespace_id = ? AND artifact_key IS NOT NULL"
        until(
            lambda: len(list(folder.glob("*"))) == ask(gated_server, query, loop.namespace_id)[0][0],
            "no file is left behind",
        )
    elif how == "delete the batch":
        loop.get(path, status=404)


# --- poison ----------------------------------------------------------------------------------------------


def test_rows_that_kill_or_hold_their_worker_fail_alone(gated_server: Server) -> None:
    loop = make(gated_server)
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    texts = {3: "exit:7", 17: "segfault", 29: "sleep:600"}
    objects = [loop.note(bucket, texts.get(number, f"word{number}")) for number in range(40)]
    batch = loop.run(bucket, objects)
    assert batch["status"] == "COMPLETED_WITH_ERRORS"
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    failed = {row["object_id"]: row for row in loop.get(f"{path}/failed-documents")["results"]}
    assert set(failed) == {objects[number] for number in texts}
    assert "ended with status 7" in failed[objects[3]]["error"]
    assert f"ended with status {-signal.SIGSEGV}" in failed[objects[17]]["error"]
    assert f"took longer than {TIMEOUT_S} s" in failed[objects[29]]["error"]
    assert batch["error_summary"] == {"ours": 2, "limit": 1}
    assert len(loop.documents(collection)) == 37


def test_a_batch_that_ends_servers_is_given_up(tmp_path: Path, site: dict[str, str]) -> None:
    """It took every server down that took it up, for ever, and all other batches with it."""
    data = tmp_path / "data"
    environment = {**site, "TESSERA_WORKERS": "1"}
    # Whatever commits a chunk is killed, while it starts or just after.
    armed = {**environment, "TESSERA_TEST_FAILPOINT": "batch.commit:1:self"}
    deaths = 0
    server = Server.start(data, environment=armed)
    try:
        loop = make(server)
        bucket = loop.bucket()
        collection = loop.collection(bucket)
        path, _ = submit(loop, bucket, [loop.note(bucket, "a")])
        assert server.wait_until_dead(30)
        while (found := given_up(data, armed, loop.namespace_id, path)) is None:
            deaths += 1
            assert deaths < 10
        deaths += 1
        assert deaths == 3
        assert "3 times in a row the server ended" in found["error"]
        assert found["max_node_death_resubmits"] == 2
        # When the cause is gone, a retry does it.
        server = Server.start(data, environment=environment)
        with server.client() as client:
            mended = Loop(client, {"namespace_id": loop.namespace_id})
            task_id = mended.post(f"{path}/retry")["task_id"]
            assert mended.wait(task_id)["status"] == "COMPLETED"
            assert len(mended.documents(collection)) == 1
    finally:
        server.kill(group=True)


def given_up(data: Path, environment: dict[str, str], namespace_id: str, path: str) -> dict[str, Any] | None:
    """Start a server and return the batch when that has failed; None when the server died of it."""
    try:
        server = Server.start(data, environment=environment)
    except RuntimeError:
        return None
    with server.client(namespace=namespace_id) as client:
        while server.process.poll() is None:
            try:
                batch: dict[str, Any] = client.get(f"/v1{path}").raise_for_status().json()
            except httpx.TransportError:
                continue
            if batch["status"] == "FAILED":
                assert server.stop() == 0
                return batch
            time.sleep(0.05)
    return None


# --- ending in order -------------------------------------------------------------------------------------


def test_a_server_told_to_end_parks_within_ten_seconds_and_the_next_goes_on(
    tmp_path: Path, site: dict[str, str]
) -> None:
    data, reached, opened = tmp_path / "data", tmp_path / "reached", tmp_path / "opened"
    environment = {**site, "TESSERA_WORKERS": "1"}
    server = Server.start(data, environment=environment)
    try:
        loop = make(server)
        bucket = loop.bucket()
        done = loop.collection(bucket)
        collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
        path, task_id = submit(loop, bucket, [loop.note(bucket, f"a open:{reached} wait:{opened}")])
        until(reached.exists, "the row has begun")
        begun = time.monotonic()
        assert server.stop() == 0
        took = time.monotonic() - begun
        print(f"parked and ended after {took:.1f} s")
        assert took <= 10
        query = "SELECT status, holder, crashes FROM batches WHERE batch_id = ?"
        assert ask(server, query, path.rsplit("/", 1)[1]) == [("IN_PROGRESS", None, 0)]
        opened.touch()
        server = Server.start(data, environment=environment)
        with server.client() as client:
            after = Loop(client, {"namespace_id": loop.namespace_id})
            assert after.wait(task_id)["status"] == "COMPLETED"
            assert len(after.documents(done)) == len(after.documents(collection)) == 1
            assert after.get(path)["retry_count"] == 1
    finally:
        server.kill(group=True)
