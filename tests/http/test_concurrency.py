"""`max_concurrent_jobs` is a true limit: reached, and never exceeded, whatever is submitted."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator

import pytest

from tests.gated import GATED, install
from tests.http.loop import Loop
from tests.http.processes import Server

BATCHES = 30


@pytest.fixture(scope="module")
def roomy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that would run 32 batches at once if nothing held it back."""
    folder = tmp_path_factory.mktemp("roomy")
    environment = {**install(folder / "site"), "TESSERA_JOB_THREADS": "32", "TESSERA_WORKERS": "4"}
    server = Server.start(folder / "data", environment=environment)
    yield server
    assert server.stop() == 0, server.log[-2000:]


class Watch:
    """Counts, as fast as the database answers, the batches of a namespace that are in progress."""

    def __init__(self, server: Server, namespace_id: str) -> None:
        self._path = server.data / "tessera.sqlite3"
        self._namespace_id = namespace_id
        self._stop = threading.Event()
        self.seen: set[int] = set()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        with sqlite3.connect(f"file:{self._path}?mode=ro", uri=True) as connection:
            while not self._stop.is_set():
                (count,) = connection.execute(
                    "SELECT count(*) FROM batches WHERE namespace_id = ? AND status = 'IN_PROGRESS'",
                    (self._namespace_id,),
                ).fetchone()
                self.seen.add(count)
                time.sleep(0.001)

    def end(self) -> set[int]:
        self._stop.set()
        self._thread.join(10)
        return self.seen


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_no_more_batches_are_in_progress_than_allowed(roomy_server: Server, limit: int) -> None:
    with roomy_server.client() as client:
        made = client.post(
            "/v1/namespaces",
            json={
                "namespace_name": f"limit_{limit}",
                "feature_extractors": [GATED],
                "infrastructure": {"compute_tier": "shared", "max_concurrent_jobs": limit},
            },
        )
        loop = Loop(client, made.raise_for_status().json())
        bucket = loop.bucket()
        collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
        batches = []
        for number in range(BATCHES):
            object_id = loop.note(bucket, f"sleep:0.1 word{number}")
            batches.append(loop.post(f"/buckets/{bucket}/batches", {"object_ids": [object_id]})["batch_id"])
        watch = Watch(roomy_server, loop.namespace_id)
        tasks = [loop.post(f"/buckets/{bucket}/batches/{batch}/submit", {})["task_id"] for batch in batches]
        for task in tasks:
            assert loop.wait(task)["status"] == "COMPLETED"
        seen = watch.end()
        assert max(seen) == limit, f"in progress at once: {sorted(seen)}"
        assert len(loop.documents(collection)) == BATCHES
