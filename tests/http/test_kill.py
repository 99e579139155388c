"""SIGKILL in the middle of ingest: nothing acknowledged is lost, nothing is there twice, every batch ends."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.http.processes import Server

OBJECTS = 100
WORDS = ["amber", "basalt", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jetty"]


@dataclass
class Record:
    """What the client asked for, and what of it the server acknowledged; kept by the client alone."""

    #: Objects of batches whose submission was sent, and of those whose submission was acknowledged.
    asked: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    task_ids: list[str] = field(default_factory=list)
    #: Objects whose document was asked to be deleted, and of those acknowledged.
    asked_to_delete: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


@pytest.mark.parametrize("rounds", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_sigkill_during_ingest(tmp_path: Path, rounds: int) -> None:
    """In turn the server alone and the whole process group are killed, half of the time inside an apply."""
    seed = int(os.environ.get("TESSERA_TEST_SEED", time.time_ns() % 2**32))
    print(f"seed {seed}; TESSERA_TEST_SEED repeats it")
    rng = random.Random(seed)
    record = Record()
    inside_apply = 0
    place: dict[str, str] = {}
    server = Server.start(tmp_path / "data")
    try:
        place = _prepare(server)
        for number in range(rounds):
            whom = "group" if number % 2 else "server"
            armed = number % 4 in (1, 2)
            if armed:
                # The point lies in the vector host: its parent is the server, its group is everything.
                point = f"apply.slice:{rng.randint(1, 2)}:{'group' if whom == 'group' else 'parent'}"
                server.stop()
                server = Server.start(tmp_path / "data", environment={"TESSERA_TEST_FAILPOINT": point})
            _ingest(server, place, record, rng, number)
            if armed and server.wait_until_dead(15):
                inside_apply += 1
            else:
                time.sleep(rng.uniform(0, 1.2))
                server.kill(group=whom == "group")
            server = Server.start(tmp_path / "data")
            _check(server, place, record)
        assert inside_apply >= rounds // 4, f"only {inside_apply} of {rounds} kills fell inside an apply"
    finally:
        server.kill(group=True)


def _prepare(server: Server) -> dict[str, str]:
    with server.client() as client:
        namespace = client.post(
            "/v1/namespaces",
            json={
                "namespace_name": "kill",
                "feature_extractors": [{"feature_extractor_name": "text_extractor", "version": "v1"}],
            },
        ).json()["namespace_id"]
        client.headers["X-Namespace"] = namespace
        bucket = client.post(
            "/v1/buckets",
            json={
                "bucket_name": "texts",
                "bucket_schema": {"properties": {"body": {"type": "text", "required": True}}},
            },
        ).json()["bucket_id"]
        collection = client.post(
            "/v1/collections",
            json={
                "collection_name": "texts",
                "source": {"type": "bucket", "bucket_ids": [bucket]},
                "feature_extractor": {
                    "feature_extractor_name": "text_extractor",
                    "version": "v1",
                    "input_mappings": {"text": "body"},
                    "field_passthrough": [{"source_path": "metadata.n"}],
                },
            },
        ).json()["collection_id"]
    return {"namespace": namespace, "bucket": bucket, "collection": collection}


def _ingest(server: Server, place: dict[str, str], record: Record, rng: random.Random, number: int) -> None:
    """Put objects, submit a batch, delete a few documents of earlier rounds; note only what was acknowledged."""
    with server.client(namespace=place["namespace"]) as client:
        try:
            ids = []
            for start in range(0, OBJECTS, 20):
                objects = [
                    {
                        "blobs": [
                            {"property": "body", "type": "text", "data": " ".join(rng.choices(WORDS, k=8))}
                        ],
                        "metadata": {"n": number * OBJECTS + start + offset},
                    }
                    for offset in range(20)
                ]
                answer = client.post(
                    f"/v1/buckets/{place['bucket']}/objects/batch", json={"objects": objects}
                )
                ids += [item["object_id"] for item in answer.raise_for_status().json()["succeeded"]]
            batch = client.post(f"/v1/buckets/{place['bucket']}/batches", json={"object_ids": ids})
            batch_id = batch.raise_for_status().json()["batch_id"]
            record.asked |= set(ids)
            submitted = client.post(f"/v1/buckets/{place['bucket']}/batches/{batch_id}/submit", json={})
            record.task_ids.append(submitted.raise_for_status().json()["task_id"])
            record.acknowledged |= set(ids)
            base = f"/v1/collections/{place['collection']}/documents"
            some = client.post(f"{base}/list", json={"limit": 3}).raise_for_status().json()["results"]
            for document in some:
                record.asked_to_delete.add(document["root_object_id"])
                client.delete(f"{base}/{document['document_id']}").raise_for_status()
                record.deleted.add(document["root_object_id"])
        except httpx.TransportError:
            pass  # killed under us: what was not acknowledged is not recorded


def _check(server: Server, place: dict[str, str], record: Record) -> None:
    with server.client(namespace=place["namespace"]) as client:
        for task_id in record.task_ids:
            assert server.wait_for_task(task_id, 60)["status"] == "COMPLETED"
        found: list[str] = []
        cursor = None
        while True:
            answer = client.post(
                f"/v1/collections/{place['collection']}/documents/list",
                params={"limit": 200, **({"cursor": cursor} if cursor else {})},
            )
            page = answer.raise_for_status().json()
            found += [document["root_object_id"] for document in page["results"]]
            cursor = page["pagination"]["next_cursor"]
            if not cursor:
                break
        assert len(found) == len(set(found)), "a document is there twice"
        assert set(found) <= record.asked, "a document came from nowhere"
        assert not (set(found) & record.deleted), "a deleted document came back"
        # What was asked to be deleted without an answer may or may not be there.
        lost = record.acknowledged - set(found) - record.asked_to_delete
        assert not lost, f"{len(lost)} acknowledged documents are lost"
        count = client.get(f"/v1/namespaces/{place['namespace']}").json()["document_count"]
        assert count == len(found)
