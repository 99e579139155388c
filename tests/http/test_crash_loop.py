"""A namespace whose view ends its host whenever it is opened takes nobody with it."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.oracle import check_agreement
from tests.http.processes import Server


def _make(client: httpx.Client, name: str) -> tuple[Loop, str, str]:
    body = {"namespace_name": name, "feature_extractors": [PASSTHROUGH]}
    loop = Loop(client, client.post("/v1/namespaces", json=body).raise_for_status().json())
    bucket = loop.bucket()
    collection = loop.collection(bucket)
    ids = [loop.note(bucket, f"{name} {n}") for n in range(3)]
    assert loop.run(bucket, ids)["status"] == "COMPLETED"
    return loop, bucket, collection


@pytest.mark.parametrize(
    "deadly", ["the view's files", pytest.param("the namespace", marks=pytest.mark.slow)]
)
def test_others_go_on(tmp_path: Path, deadly: str) -> None:
    """Files that end their host are set aside; when rebuilding does not help, only that namespace is out."""
    server = Server.start(tmp_path / "data")
    try:
        with server.client() as client:
            ill, ill_bucket, ill_collection = _make(client, "ill")
            well, well_bucket, well_collection = _make(client, "well")
        # Batches that a start takes up again at once.
        with server.client() as client:
            ill.client = well.client = client
            later = [
                (loop, loop.post(f"/buckets/{bucket}/batches", {"object_ids": [loop.note(bucket, "later")]}))
                for loop, bucket in ((ill, ill_bucket), (well, well_bucket))
            ]
            tasks = [
                loop.post(f"/buckets/{batch['bucket_id']}/batches/{batch['batch_id']}/submit", {})["task_id"]
                for loop, batch in later
            ]
            server.kill(group=True)
        name = f"{ill.namespace_id}-1" if deadly == "the view's files" else ill.namespace_id
        server = Server.start(
            tmp_path / "data",
            environment={
                "TESSERA_TEST_FAILPOINT": f"view.open/{name}:1:abort",
                # One host for all: it dies with everybody's views.
                "TESSERA_VECTOR_HOSTS": "1",
            },
        )
        with server.client() as client:
            ill.client = well.client = client
            assert well.wait(tasks[1])["status"] == "COMPLETED"
            path = f"/v1/collections/{ill_collection}/documents/list"
            for _ in range(6):
                answer = client.post(path, json={}, headers=ill.headers)
                if answer.status_code == 200:
                    break
                assert answer.status_code == 503, answer.text
                assert answer.json()["error"]["details"]["retryable"] is True
                assert len(well.documents(well_collection)) == 4
            assert (answer.status_code == 200) == (deadly == "the view's files"), answer.text
            assert f"status {-signal.SIGABRT.value}" in server.log
            assert client.get("/v1/health").json()["status"] == "OK"
            # It can still be looked at, and removed for good.
            assert client.get(f"/v1/namespaces/{ill.namespace_id}").status_code == 200
            if deadly == "the view's files":
                assert ill.wait(tasks[0])["status"] == "COMPLETED"
                assert len(ill.documents(ill_collection)) == 4
                check_agreement(server)
            else:
                gone = ill.delete(f"/namespaces/{ill.namespace_id}")
                assert ill.wait(gone["task_id"])["status"] == "COMPLETED"
            assert len(well.documents(well_collection)) == 4
        assert server.stop() == 0
    finally:
        server.kill(group=True)
