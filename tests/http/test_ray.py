"""Extraction on a Ray cluster, over HTTP: the same documents as without, and what is lost goes again.

The cluster is real: one head on this machine, with its token.
"""

from __future__ import annotations

import base64
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import qdrant_rest
from tests.http.processes import Server
from tests.media import BLUE, GREEN, RED, video
from tests.ray_cluster import RayCluster

pytestmark = pytest.mark.timeout(300)

WORDS = ["amber", "basalt", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jetty"]
DASHBOARD = "http://127.0.0.1:8265"


def settings_of(cluster: RayCluster) -> dict[str, str]:
    return {
        "TESSERA_RAY_HEAD_NODE_URL": cluster.url,
        "TESSERA_RAY_AUTH_TOKEN": cluster.token,
        "TESSERA_RAY_DASHBOARD_URL": DASHBOARD,
    }


@pytest.fixture(scope="module")
def server_on_ray(tmp_path_factory: pytest.TempPathFactory, ray_cluster: RayCluster) -> Iterator[Server]:
    server = Server.start(tmp_path_factory.mktemp("ray") / "data", environment=settings_of(ray_cluster))
    yield server
    assert server.stop() == 0, server.log[-2000:]
    assert ray_cluster.token not in server.log


class Place:
    """A namespace with texts, and if wanted with videos, and what is asked of it."""

    def __init__(self, server: Server, *, videos: bool = False, **infrastructure: Any) -> None:
        self.server = server
        extractors = ["text_extractor", *(["video_extractor"] if videos else [])]
        with server.client() as client:
            answer = client.post(
                "/v1/namespaces",
                json={
                    "namespace_name": f"ray-{random.getrandbits(48):x}",
                    "feature_extractors": [
                        {"feature_extractor_name": name, "version": "v1"} for name in extractors
                    ],
                    "infrastructure": {"qdrant_collection": "col", "max_workers": 2, **infrastructure},
                },
            )
            assert answer.status_code == 200, answer.text
            self.namespace = answer.json()["namespace_id"]
            client.headers["X-Namespace"] = self.namespace
            self.bucket = client.post(
                "/v1/buckets",
                json={
                    "bucket_name": "all",
                    "bucket_schema": {"properties": {"body": {"type": "text"}, "clip": {"type": "video"}}},
                },
            ).json()["bucket_id"]
            self.collections = []
            for name in extractors:
                mappings = {"text": "body"} if name == "text_extractor" else {"video": "clip"}
                answer = client.post(
                    "/v1/collections",
                    json={
                        "collection_name": name,
                        "source": {"type": "bucket", "bucket_ids": [self.bucket]},
                        "feature_extractor": {
                            "feature_extractor_name": name,
                            "version": "v1",
                            "input_mappings": mappings,
                            "field_passthrough": [{"source_path": "metadata.n"}],
                            **({"parameters": {"time_split_interval": 2}} if "video" in name else {}),
                        },
                    },
                )
                assert answer.status_code == 200, answer.text
                self.collections.append(answer.json()["collection_id"])

    def submit(self, blobs: list[dict[str, Any]], collection: int = 0) -> str:
        """Put one object for each blob and submit a batch of them; return the task."""
        with self.server.client(namespace=self.namespace) as client:
            ids: list[str] = []
            for start in range(0, len(blobs), 100):
                answer = client.post(
                    f"/v1/buckets/{self.bucket}/objects/batch",
                    json={
                        "objects": [
                            {"blobs": [blob], "metadata": {"n": start + number}}
                            for number, blob in enumerate(blobs[start : start + 100])
                        ]
                    },
                )
                ids += [item["object_id"] for item in answer.raise_for_status().json()["succeeded"]]
            batch = client.post(
                f"/v1/buckets/{self.bucket}/batches",
                json={"object_ids": ids, "collection_ids": [self.collections[collection]]},
            )
            self.batch = batch.raise_for_status().json()["batch_id"]
            task = client.post(f"/v1/buckets/{self.bucket}/batches/{self.batch}/submit", json={})
            return str(task.raise_for_status().json()["task_id"])

    def run(self, blobs: list[dict[str, Any]], collection: int = 0) -> dict[str, Any]:
        return self.server.wait_for_task(self.submit(blobs, collection), 200)

    def documents(self, collection: int = 0) -> list[dict[str, Any]]:
        """Return all documents, without what is not the extractor's: ids, times, signed URLs."""
        found = []
        cursor = None
        with self.server.client(namespace=self.namespace) as client:
            while True:
                answer = client.post(
                    f"/v1/collections/{self.collections[collection]}/documents/list",
                    params={"limit": 200, **({"cursor": cursor} if cursor else {})},
                    json={"return_vectors": True},
                )
                page = answer.raise_for_status().json()
                found += [
                    {
                        name: value
                        for name, value in document.items()
                        if not name.endswith(("_id", "_at", "_url", "_blobs")) and name != "_internal"
                    }
                    for document in page["results"]
                ]
                cursor = page["pagination"]["next_cursor"]
                if not cursor:
                    return sorted(found, key=lambda d: (d["n"], d.get("start_time") or 0))


def texts(count: int) -> list[dict[str, Any]]:
    rng = random.Random(7)
    return [
        {"property": "body", "type": "text", "data": " ".join(rng.choices(WORDS, k=8))} for _ in range(count)
    ]


def clips(count: int) -> list[dict[str, Any]]:
    colours = [RED, GREEN, BLUE]
    found = []
    for number in range(count):
        shots = [(2, colours[number % 3]), (2, colours[(number + 1) % 3])]
        data = base64.b64encode(video(shots, [(0.2, 1.8, f"{WORDS[number % 10]} speaks.")])).decode()
        found.append({"property": "clip", "type": "video", "data": data})
    return found


def test_ten_videos_and_two_hundred_texts_as_without_ray(
    server_on_ray: Server, server: Server, ray_cluster: RayCluster
) -> None:
    on_ray, here = (Place(each, videos=True) for each in (server_on_ray, server))
    for place in (on_ray, here):
        for collection, blobs in enumerate((texts(200), clips(10))):
            task = place.run(blobs, collection)
            assert task["status"] == "COMPLETED", task
            assert task["additional_data"].get("ray_dashboard_url") == (
                DASHBOARD if place is on_ray else None
            )
    for collection, count in ((0, 200), (1, 20)):
        documents = on_ray.documents(collection)
        assert len(documents) == count
        assert documents == here.documents(collection)
    # Ray's own lists: 4 chunks of texts and at least one of videos, by workers of this namespace only.
    listed = ray_cluster.ask()
    assert listed["runs"] >= 5
    mine = [actor for actor in listed["actors"] if on_ray.namespace in actor["name"]]
    assert 1 <= len([actor for actor in mine if actor["state"] == "ALIVE"]) <= 2
    assert not [actor for actor in listed["actors"] if here.namespace in actor["name"]]


def test_a_killed_worker_and_a_killed_head_cost_time_only(
    server_on_ray: Server, ray_cluster: RayCluster
) -> None:
    place = Place(server_on_ray)
    task_id = place.submit(texts(800))
    await_progress(server_on_ray, task_id, 64)
    for pid in ray_cluster.workers()[:1]:
        os.kill(pid, signal.SIGKILL)
    await_progress(server_on_ray, task_id, 250)
    ray_cluster.kill()
    ray_cluster.start()
    task = server_on_ray.wait_for_task(task_id, 200)
    assert task["status"] == "COMPLETED", task
    assert task["additional_data"]["failed"] == 0
    assert [document["n"] for document in place.documents()] == list(range(800))
    assert leftovers(server_on_ray, place) == 0


def test_a_refused_token_fails_the_batch_which_can_be_retried(
    tmp_path: Path, ray_cluster: RayCluster
) -> None:
    wrong = {**settings_of(ray_cluster), "TESSERA_RAY_AUTH_TOKEN": "not-the-token-of-this-cluster"}
    server = Server.start(tmp_path / "data", environment=wrong)
    try:
        place = Place(server)
        begun = time.monotonic()
        task = place.run(texts(20))
        assert time.monotonic() - begun < 15
        assert task["status"] == "FAILED"
        assert "refused the token" in task["error"]
        assert "not-the-token" not in task["error"] + server.log
        assert server.stop() == 0
        server = place.server = Server.start(tmp_path / "data", environment=settings_of(ray_cluster))
        with server.client(namespace=place.namespace) as client:
            again = client.post(f"/v1/buckets/{place.bucket}/batches/{place.batch}/retry", json={})
        task = server.wait_for_task(again.raise_for_status().json()["task_id"], 120)
        assert task["status"] == "COMPLETED", task
        assert len(place.documents()) == 20
    finally:
        server.stop()


def test_a_dedicated_namespace_runs_on_its_own_cluster(
    server: Server, ray_cluster: RayCluster, tmp_path: Path
) -> None:
    qdrant = qdrant_rest.start(tmp_path, api_key="a key")
    try:
        place = Place(
            server,
            compute_tier="dedicated_cpu",
            qdrant_collection=f"own_{random.getrandbits(32):x}",
            qdrant_url=qdrant.url,
            qdrant_api_key="a key",
            ray_head_node_url=ray_cluster.url,
            ray_auth_token=ray_cluster.token,
            ray_dashboard_url=DASHBOARD,
        )
        here = Place(server)
        for each in (place, here):
            assert each.run(texts(70))["status"] == "COMPLETED"
        assert place.documents() == here.documents()
        with server.client() as client:
            shown = client.get(f"/v1/namespaces/{place.namespace}").text
            assert ray_cluster.token not in shown
            client.delete(f"/v1/namespaces/{place.namespace}")
        assert place.namespace in "".join(actor["name"] for actor in ray_cluster.ask()["actors"])
        for path in server.data.rglob("*"):
            if path.is_file():
                assert ray_cluster.token.encode() not in path.read_bytes(), path
    finally:
        qdrant.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_rounds_of_killing(tmp_path: Path, ray_cluster: RayCluster) -> None:
    """A worker, the head or the server, at random moments: every batch ends, each document is there once."""
    seed = int(os.environ.get("TESSERA_TEST_SEED", time.time_ns() % 2**32))
    print(f"seed {seed}; TESSERA_TEST_SEED repeats it")
    rng = random.Random(seed)
    server = Server.start(tmp_path / "data", environment=settings_of(ray_cluster))
    try:
        for number in range(10):
            place = Place(server)
            task_id = place.submit(texts(500))
            await_progress(server, task_id, rng.choice([0, 64, 200, 350]))
            time.sleep(rng.uniform(0, 2))
            whom = rng.choice(["worker", "head", "server"])
            print(f"round {number}: {whom}")
            if whom == "worker":
                for pid in ray_cluster.workers()[:1]:
                    os.kill(pid, signal.SIGKILL)
            elif whom == "head":
                ray_cluster.kill()
                ray_cluster.start()
            else:
                server.restart(signal.SIGKILL)
            task = server.wait_for_task(task_id, 300)
            assert task["status"] == "COMPLETED", task
            assert [document["n"] for document in place.documents()] == list(range(500))
    finally:
        server.stop()


def await_progress(server: Server, task_id: str, rows: int) -> None:
    deadline = time.monotonic() + 120
    with server.client() as client:
        while True:
            task = client.get(f"/v1/tasks/{task_id}").raise_for_status().json()
            if task["additional_data"].get("done", 0) >= rows:
                return
            assert task["status"] in ("PENDING", "IN_PROGRESS"), task
            assert time.monotonic() < deadline, task
            time.sleep(0.02)


def leftovers(server: Server, place: Place) -> int:
    """Return how many artifacts lie there that no log entry names."""
    import sqlite3

    folder = server.data / "blobs" / place.namespace / "artifacts"
    with sqlite3.connect(server.data / "tessera.sqlite3") as connection:
        logged = {
            key.rpartition("/")[2]
            for (key,) in connection.execute(
                "SELECT artifact_key FROM log_entries WHERE namespace_id = ? AND artifact_key IS NOT NULL",
                (place.namespace,),
            )
        }
    return len({path.name for path in folder.iterdir()} - logged)
