"""Extraction on a Ray cluster, over HTTP: the same documents as without, and what is lost goes again.

The cluster is real: one head on this machine, with its token; nodes with GPUs are added where they are wanted.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from tests import qdrant_rest
from tests.http.processes import Server
from tests.link import Link
from tests.media import BLUE, GREEN, RED, video
from tests.ray_cluster import RayCluster, other_version

pytestmark = pytest.mark.timeout(300)

WORDS = ["amber", "basalt", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jetty"]
DASHBOARD = "http://127.0.0.1:8265"
#: How each extractor is used. The last one loads no model, where only the way there matters.
MAPPED: dict[str, dict[str, Any]] = {
    "text_extractor": {"input_mappings": {"text": "body"}},
    "video_extractor": {"input_mappings": {"video": "clip"}, "parameters": {"time_split_interval": 2}},
    "passthrough_extractor": {},
}
PASSTHROUGH = ("passthrough_extractor",)
#: What a cause may take to be named: 15 s on a quiet machine, and twice that on a busy one.
NAMED_WITHIN_S = 2 * 15


@pytest.fixture(scope="module")
def own_qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and key of the Qdrant that dedicated namespaces bring: the real one if there is one, else the stand-in."""
    if url := os.environ.get("TESSERA_TEST_QDRANT_URL"):
        yield url, os.environ.get("TESSERA_TEST_QDRANT_API_KEY", "a key")
        return
    standin = qdrant_rest.start(tmp_path_factory.mktemp("own-qdrant"), api_key="a key")
    yield standin.url, "a key"
    standin.shutdown()
    standin.server_close()


@pytest.fixture
def dedicated(own_qdrant: tuple[str, str], ray_cluster: RayCluster) -> Callable[..., dict[str, Any]]:
    """A function that returns the infrastructure of a namespace with its own Qdrant and its own Ray."""

    def infrastructure(**fields: Any) -> dict[str, Any]:
        return {
            "compute_tier": "dedicated_cpu",
            "qdrant_collection": f"own_{random.getrandbits(48):x}",
            "qdrant_url": own_qdrant[0],
            "qdrant_api_key": own_qdrant[1],
            "ray_head_node_url": ray_cluster.url,
            "ray_auth_token": ray_cluster.token,
            "ray_dashboard_url": DASHBOARD,
            # None stays for a namespace that has no work: they would take the place of the next test's.
            "min_workers": 0,
            "max_workers": 2,
            **fields,
        }

    return infrastructure


class Place:
    """A namespace with a collection for each extractor, and what is asked of it."""

    def __init__(
        self, server: Server, *, extractors: tuple[str, ...] = ("text_extractor",), **infrastructure: Any
    ) -> None:
        self.server = server
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
                answer = client.post(
                    "/v1/collections",
                    json={
                        "collection_name": name,
                        "source": {"type": "bucket", "bucket_ids": [self.bucket]},
                        "feature_extractor": {
                            "feature_extractor_name": name,
                            "version": "v1",
                            **MAPPED[name],
                            "field_passthrough": [{"source_path": "metadata.n"}],
                        },
                    },
                )
                assert answer.status_code == 200, answer.text
                self.collections.append(answer.json()["collection_id"])

    def submit(self, blobs: list[dict[str, Any]], collection: int = 0) -> str:
        """Put one object for each blob and submit a batch of them; return the task."""
        return self.start(self.prepare(blobs, collection))

    def prepare(self, blobs: list[dict[str, Any]], collection: int = 0) -> str:
        """Put one object for each blob and return a batch of them."""
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
            return str(batch.raise_for_status().json()["batch_id"])

    def start(self, batch: str) -> str:
        """Submit a batch and return its task."""
        self.batch = batch
        return self._send_batch("submit")

    def retry(self) -> str:
        """Send what failed of the last batch again and return the new task."""
        return self._send_batch("retry")

    def _send_batch(self, verb: str) -> str:
        with self.server.client(namespace=self.namespace) as client:
            task = client.post(f"/v1/buckets/{self.bucket}/batches/{self.batch}/{verb}", json={})
            return str(task.raise_for_status().json()["task_id"])

    def remove(self) -> None:
        """Delete the namespace and wait until nothing of it is left."""
        with self.server.client() as client:
            task_id = client.delete(f"/v1/namespaces/{self.namespace}").raise_for_status().json()["task_id"]
        assert self.server.wait_for_task(task_id)["status"] == "COMPLETED"

    def documents(self, collection: int = 0) -> list[dict[str, Any]]:
        """Return all documents with ids, payloads and vectors; without times, and URLs that hold the server's."""
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
                found += map(timeless, page["results"])
                cursor = page["pagination"]["next_cursor"]
                if not cursor:
                    return sorted(found, key=lambda d: (d["n"], d["document_id"]))


def timeless(value: Any) -> Any:
    """Return `value` without what each server writes at its own time and place."""
    if isinstance(value, list):
        return [timeless(item) for item in value]
    if isinstance(value, dict):
        return {
            name: timeless(item)
            for name, item in value.items()
            if not name.endswith(("_at", "url", "timestamp"))
        }
    return value


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


def test_ten_videos_and_two_hundred_texts_on_own_qdrant_and_own_ray_as_without(
    tmp_path: Path,
    ray_cluster: RayCluster,
    own_qdrant: tuple[str, str],
    dedicated: Callable[..., dict[str, Any]],
) -> None:
    """One namespace is prepared, its data directory copied; one copy moves to its own infrastructure, one stays."""
    first = Server.start(tmp_path / "there")
    place = Place(first, extractors=("text_extractor", "video_extractor"))
    batches = [place.prepare(blobs, n) for n, blobs in enumerate((texts(200), clips(10)))]
    assert first.stop() == 0
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    there, here = place, Place.__new__(Place)
    here.__dict__.update(place.__dict__)
    with ThreadPoolExecutor(2) as starting:
        there.server, here.server = starting.map(Server.start, [tmp_path / "there", tmp_path / "here"])
    client = QdrantClient(url=own_qdrant[0], api_key=own_qdrant[1], check_compatibility=False)
    try:
        sent = dedicated()
        path = f"/v1/namespaces/{place.namespace}"
        with there.server.client() as http:
            moved = http.patch(path, json={"infrastructure": sent}).raise_for_status().json()
        assert (moved["infrastructure"]["compute_tier"], moved["infrastructure"]["source"]) == (
            "dedicated_cpu",
            "namespace",
        )
        for each in (there, here):
            tasks = [each.start(batch) for batch in batches]
            for task in [each.server.wait_for_task(task, 200) for task in tasks]:
                assert task["status"] == "COMPLETED", task
                link = task["additional_data"].get("ray_dashboard_url")
                assert link == (DASHBOARD if each is there else None)
        for collection, count in ((0, 200), (1, 20)):
            documents = there.documents(collection)
            assert len(documents) == count
            assert documents == here.documents(collection)
        # The documents are on that Qdrant, and nowhere else.
        assert client.count(sent["qdrant_collection"], exact=True).count == 220
        assert not list((there.server.data / "views").glob("*"))
        # Ray's own lists: 4 chunks of texts and at least one of videos, by workers of this namespace.
        listed = ray_cluster.ask()
        mine = [actor for actor in listed["actors"] if place.namespace in actor["name"]]
        assert 1 <= len([actor for actor in mine if actor["alive"]]) <= 2
        assert all(actor["resources"] == {"CPU": 1} for actor in mine)
        runs = [task for task in listed["tasks"] if task["name"] == "Worker.run"]
        names = {actor["name"] for actor in mine}
        assert len([run for run in runs if run["actor"] in names and run["state"] == "FINISHED"]) >= 5
        # A full namespace stays where it is, and says why; its workers may be others.
        with there.server.client() as http:
            refused = http.patch(path, json={"infrastructure": {"compute_tier": "shared"}})
            assert refused.status_code == 409, refused.text
            assert "only an empty namespace can change its place" in refused.json()["error"]["message"]
            http.patch(path, json={"infrastructure": {**sent, "max_workers": 1}}).raise_for_status()
            # Removed, it leaves nothing there.
            shown = http.get(path).text
            assert ray_cluster.token not in shown
            for file in there.server.data.rglob("*"):
                if file.is_file():
                    assert ray_cluster.token.encode() not in file.read_bytes(), file
            task_id = http.delete(path).raise_for_status().json()["task_id"]
            assert there.server.wait_for_task(task_id)["status"] == "COMPLETED"
        assert not [c.name for c in client.get_collections().collections if place.namespace in c.name]
        assert sent["qdrant_collection"] not in {a.alias_name for a in client.get_aliases().aliases}
        assert ray_cluster.token not in there.server.log
    finally:
        client.close()
        for each in (there, here):
            assert each.server.stop() == 0


def test_whatever_is_killed_costs_time_only(
    tmp_path: Path, ray_cluster: RayCluster, dedicated: Callable[..., dict[str, Any]]
) -> None:
    """A worker, the link, the server and the head of one batch: it goes on behind the last finished chunk."""
    link = Link(ray_cluster.client_port)
    server = Server.start(tmp_path / "data")
    try:
        place = Place(server, **dedicated(ray_head_node_url=f"ray://127.0.0.1:{link.port}"))
        task_id = place.submit(texts(1200))
        finished: set[str] = set()
        for rows, whom in ((64, "worker"), (192, "link"), (384, "server"), (640, "head")):
            await_progress(server, task_id, rows)
            assert finished <= logged(place)
            finished = logged(place)
            assert len(finished) < 19, "nothing is left to be lost"
            lose(whom, server, ray_cluster, link)
        check_complete(place, server.wait_for_task(task_id, 200), 1200)
        assert finished <= logged(place)
    finally:
        server.stop()
        link.close()
    assert not children(server)


def test_causes_are_named_in_seconds_and_the_batches_can_be_retried(
    server: Server, ray_cluster: RayCluster, dedicated: Callable[..., dict[str, Any]]
) -> None:
    wrong = "not-the-token-of-this-cluster"
    python = ".".join(map(str, sys.version_info[:3]))
    with ExitStack() as stack:
        closed, silent = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64)) for _ in range(2)
        )
        heads = {
            name: f"ray://127.0.0.1:{each.getsockname()[1]}" for name, each in (("c", closed), ("s", silent))
        }
        ray_of = stack.enter_context(other_version("2.9.3", python))
        python_of = stack.enter_context(other_version(version("ray"), "3.9.1"))
        # Each with a cluster of its own, all at once.
        faults = {
            "refused the token": {"ray_auth_token": wrong},
            "2.9.3": {"ray_head_node_url": ray_of},
            "3.9.1": {"ray_head_node_url": python_of},
            "cannot be reached": {"ray_head_node_url": heads["c"]},
            "does not answer": {"ray_head_node_url": heads["s"]},
        }
        sent = {says: dedicated(max_workers=1, **fault) for says, fault in faults.items()}
        places = {
            says: Place(server, extractors=PASSTHROUGH, **infrastructure)
            for says, infrastructure in sent.items()
        }
        closed.close()
        tasks = {says: place.submit(texts(3)) for says, place in places.items()}
        for says, task_id in tasks.items():
            task = server.wait_for_task(task_id)
            assert task["status"] == "FAILED", task
            assert says in task["error"]
            assert task["additional_data"]["ray_dashboard_url"] == DASHBOARD
            took = datetime.fromisoformat(task["updated_at"]) - datetime.fromisoformat(task["created_at"])
            assert took.total_seconds() < NAMED_WITHIN_S, task
            for secret in (wrong, ray_cluster.token):
                assert secret not in task["error"] + server.log
    right = {"ray_head_node_url": ray_cluster.url, "ray_auth_token": ray_cluster.token}
    retried = ("refused the token", "2.9.3", "cannot be reached")
    for says in retried:
        place = places[says]
        with server.client() as client:
            change = {"infrastructure": {**sent[says], **right}}
            client.patch(f"/v1/namespaces/{place.namespace}", json=change).raise_for_status()
        tasks[says] = place.retry()
    for says in retried:
        check_complete(places[says], server.wait_for_task(tasks[says], 120), 3)
    for place in places.values():
        place.remove()


def test_gpus_are_asked_for_and_a_lost_node_costs_time_only(
    server: Server, ray_cluster: RayCluster, dedicated: Callable[..., dict[str, Any]]
) -> None:
    gpus = {"compute_tier": "dedicated_gpu", "gpu_type": "T4", "gpus_per_worker": 1}
    place = Place(server, **dedicated(**gpus, max_workers=1))
    begun = time.monotonic()
    task = server.wait_for_task(place.submit(texts(500)))
    assert time.monotonic() - begun < NAMED_WITHIN_S
    assert task["status"] == "FAILED"
    assert "asks for 1 GPU(s) of type T4 a worker" in task["error"]
    assert "has none" in task["error"]
    ray_cluster.add_gpu_nodes(2, "T4")
    task_id = place.retry()
    await_progress(server, task_id, 64)
    finished = logged(place)
    (worker,) = ray_cluster.workers()
    ray_cluster.kill_node_of(worker)
    check_complete(place, server.wait_for_task(task_id, 120), 500)
    assert finished <= logged(place)
    mine = [actor for actor in ray_cluster.ask()["actors"] if place.namespace in actor["name"]]
    assert len(mine) >= 2
    for actor in mine:
        assert actor["resources"] == {"CPU": 1, "GPU": 1, "accelerator_type:T4": pytest.approx(0.001)}
    place.remove()
    ray_cluster.kill_node_of(next(actor["pid"] for actor in mine if actor["alive"]))


def test_a_cluster_that_does_not_see_the_blobs_is_refused_with_the_remedy(
    server: Server, dedicated: Callable[..., dict[str, Any]]
) -> None:
    """As seen from another machine: what the server has written into its directory is not there."""
    place = Place(server, extractors=PASSTHROUGH, **dedicated())
    check_complete(place, server.wait_for_task(place.submit(texts(3)), 120), 3)
    (seen,) = (server.data / "blobs").glob(".seen-by-ray-*")
    content = seen.read_text()
    seen.unlink()
    try:
        other = Place(server, extractors=PASSTHROUGH, **dedicated())
        task = server.wait_for_task(other.submit(texts(3)), 60)
    finally:
        seen.write_text(content)
    assert task["status"] == "FAILED"
    assert f"does not see the server's directory {server.data / 'blobs'}" in task["error"]
    assert "Mount that directory there under the same path" in task["error"]
    check_complete(other, server.wait_for_task(other.retry(), 120), 3)
    for each in (place, other):
        each.remove()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_ten_rounds_of_killing(
    tmp_path: Path,
    ray_cluster: RayCluster,
    dedicated: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Something is lost at a random moment: every batch ends, each document is there once."""
    seed = int(os.environ.get("TESSERA_TEST_SEED", time.time_ns() % 2**32))

    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    say(f"\nseed {seed}; TESSERA_TEST_SEED repeats it")
    rng = random.Random(seed)
    # The three that die most often twice and each of the others once, in any order; the last as it comes.
    whom_all = [*["worker", "head", "server"] * 2, "actor", "link", "silence"]
    whom_all.append(rng.choice(whom_all))
    rng.shuffle(whom_all)
    link = Link(ray_cluster.client_port)
    server = Server.start(tmp_path / "data")
    try:
        for number, whom in enumerate(whom_all):
            place = Place(server, **dedicated(ray_head_node_url=f"ray://127.0.0.1:{link.port}"))
            task_id = place.submit(texts(2000))
            await_progress(server, task_id, rng.choice([0, 1, 64, 400, 800]))
            time.sleep(rng.uniform(0, 0.5))
            begun, finished = time.monotonic(), logged(place)
            lose(whom, server, ray_cluster, link)
            task = server.wait_for_task(task_id, 300)
            took_s = time.monotonic() - begun
            say(f"round {number}: {whom} lost after {len(finished)} of 32 chunks, ended {took_s:.1f} s later")
            check_complete(place, task, 2000)
            assert finished <= logged(place)
            place.remove()
    finally:
        server.stop()
        link.close()
    assert not children(server)


# --- what is lost -------------------------------------------------------------------------------------


def lose(whom: str, server: Server, cluster: RayCluster, link: Link) -> None:
    """Take something away; what does not come back by itself is started again."""
    if whom == "worker":
        for pid in cluster.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
    elif whom == "actor":
        cluster.ask("tessera-")
    elif whom == "link":
        link.cut()
    elif whom == "silence":
        link.mute()
        time.sleep(50)  # the round is about what happens in this time
        link.unmute()
    elif whom == "server":
        before = children(server)
        server.restart(signal.SIGKILL)
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in before):
            assert time.monotonic() < deadline, "the connection outlives its server"
            time.sleep(0.1)
    else:
        cluster.kill()
        cluster.start()


def children(server: Server) -> list[int]:
    """Return the processes that hold a server's connections to Ray, by the session they were started in."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            if b"tessera.adapters.ray_child" in command and os.getsid(int(entry.name)) == server.process.pid:
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def check_complete(place: Place, task: dict[str, Any], count: int) -> None:
    """Every document is there once, in as many artifacts as there were chunks, and no other artifact is left."""
    assert task["status"] == "COMPLETED", task
    assert task["additional_data"]["failed"] == 0
    assert [document["n"] for document in place.documents()] == list(range(count))
    folder = place.server.data / "blobs" / place.namespace / "artifacts"
    keys = logged(place)
    assert len(keys) == -(-count // 64)
    assert {path.name for path in folder.iterdir()} == keys


def logged(place: Place) -> set[str]:
    """Return the artifacts of a namespace that its log names."""
    with sqlite3.connect(place.server.data / "tessera.sqlite3") as connection:
        rows = connection.execute(
            "SELECT artifact_key FROM log_entries WHERE namespace_id = ? AND artifact_key IS NOT NULL",
            (place.namespace,),
        )
        return {key.rpartition("/")[2] for (key,) in rows}


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
