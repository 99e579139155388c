"""SIGKILL in the middle of a purge: the next server ends it, no store keeps a trace, and nobody sees what was."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx
import pytest

from tests.http.loop import Loop
from tests.http.processes import Server

CANARY = "a canary named Xanthippe"
NAMESPACE = {
    "namespace_name": "purged",
    "feature_extractors": [{"feature_extractor_name": "passthrough_extractor", "version": "v1"}],
    "payload_indexes": [{"field_name": "note", "type": "keyword"}],
}


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("purge.decided:1:group", marks=pytest.mark.slow),
        "drop.renamed:1:group",
        pytest.param("drop.renamed:1:parent", marks=pytest.mark.slow),
        pytest.param("purge.views:1:self", marks=pytest.mark.slow),
        pytest.param("purge.blobs:1:group", marks=pytest.mark.slow),
        "purge.recorded:1:group",
    ],
)
def test_a_purge_that_is_killed_is_ended_by_the_next_server(tmp_path: Path, point: str) -> None:
    server = Server.start(tmp_path / "data", environment={"TESSERA_TEST_FAILPOINT": point})
    try:
        with server.client() as client:
            first = client.post("/v1/namespaces", json=NAMESPACE).raise_for_status().json()
            _ingest(Loop(client, first))
            with contextlib.suppress(httpx.TransportError):
                client.delete(f"/v1/namespaces/{first['namespace_id']}")
        assert server.wait_until_dead(30)
        server = Server.start(tmp_path / "data")
        with server.client() as client:
            assert client.get(f"/v1/namespaces/{first['namespace_id']}").status_code == 404
            second = client.post("/v1/namespaces", json=NAMESPACE).raise_for_status().json()
            assert second["namespace_id"] != first["namespace_id"]
            loop = Loop(client, second)
            collection_id = loop.collection(loop.bucket())
            assert loop.documents(collection_id) == []
            assert second["document_count"] == 0
            deadline = time.monotonic() + 30
            while traces := [p for p in server.data.rglob("*") if first["namespace_id"] in p.name]:
                assert time.monotonic() < deadline, traces
                time.sleep(0.1)
        # What is written behind is written when the server ends.
        server.stop()
        holding = [
            path for path in server.data.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
        ]
        assert holding == []
    finally:
        server.kill(group=True)


def _ingest(loop: Loop) -> None:
    bucket_id = loop.bucket()
    collection_id = loop.collection(bucket_id, field_passthrough=[{"source_path": "metadata.note"}])
    notes = [loop.note(bucket_id, f"{CANARY} {n}", metadata={"note": f"{CANARY} {n}"}) for n in range(5)]
    assert loop.run(bucket_id, notes)["status"] == "COMPLETED"
    assert len(loop.documents(collection_id)) == 5
