"""Erasing: afterwards no file of the data directory holds a word of it, and its neighbours are untouched."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import Server

CANARY = b"quixotic-zephyr-7f3a"
NEIGHBOUR = b"placid-walrus-2b9c"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(tmp_path_factory.mktemp("erasing") / "data")
    yield server
    server.stop()


def holders(data: Path, word: bytes) -> list[str]:
    """Return the files below `data` that hold `word` in their bytes; artifacts are not compressed."""
    found = []
    for folder, _, names in os.walk(data):  # passes over folders that a purge removes meanwhile
        for name in names:
            path = Path(folder) / name
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and word in path.read_bytes():
                    found.append(str(path.relative_to(data)))
    return sorted(found)


def until_gone(data: Path, word: bytes, but_in: str | None = None) -> list[str]:
    """Wait for what may lag (marks, usage) to settle; return who holds `word` then.

    Files with `but_in` in their names may hold it: they are not waited for.
    """
    deadline = time.monotonic() + 20
    while True:
        found = holders(data, word)
        if all(but_in is not None and but_in in name for name in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


class Notes:
    """A namespace with notes; the canary's is made twice over, so that old values lie in the log too."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self.client = client
        made = client.post("/v1/namespaces", json={"namespace_name": name, "feature_extractors": [TEXT]})
        self.place = made.raise_for_status().json()["namespace_id"]
        client.headers["X-Namespace"] = self.place
        self.loop = Loop(client, made.json())
        self.bucket = self.loop.bucket()
        self.collection = self.loop.collection(self.bucket, TEXT)
        self.mine = self.loop.note(self.bucket, f"first {CANARY.decode()}")
        self.others = [
            self.loop.note(self.bucket, f"{NEIGHBOUR.decode()} number {number}") for number in range(3)
        ]
        self.loop.run(self.bucket, [self.mine, *self.others])

    def documents(self) -> dict[str, Any]:
        return {item["root_object_id"]: item for item in self.loop.documents(self.collection)}

    def erase(self, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/v1/namespaces/{self.place}/erase", json=body)
        task: dict[str, Any] = answer.raise_for_status().json()
        return task


def test_an_erased_document_is_found_nowhere_and_its_neighbours_stay(server: Server) -> None:
    with server.client() as client:
        notes = Notes(client, "erasing")
        found = notes.documents()
        neighbours = {key: value for key, value in found.items() if key in notes.others}
        mine = found[notes.mine]["document_id"]
        said = {"interaction_type": ["click"], "position": 0}
        client.post(
            "/v1/retrievers/interactions",
            json={**said, "feature_id": mine, "metadata": {"quoted": CANARY.decode()}},
        ).raise_for_status()
        others = {**said, "feature_id": neighbours[notes.others[0]]["document_id"]}
        kept = client.post("/v1/retrievers/interactions", json=others).raise_for_status().json()
        where = holders(server.data, CANARY)
        assert any(".arrow" in name for name in where) and any("sqlite" in name for name in where)
        task = notes.erase(document_ids=[mine], include_objects=True)
        assert task["task_type"] == "api_namespaces_migrations_run"
        assert notes.mine not in notes.documents(), "gone from search when answered"
        task = server.wait_for_task(task["task_id"])
        assert task["status"] == "COMPLETED", task
        report = task["additional_data"]["report"]
        assert (report["documents"], report["objects"]) == (1, 1)
        assert report["artifacts_rewritten"] == 1 and report["bytes_rewritten"] > 0
        assert report["views_dropped"] >= 1 and report["keys"]
        assert CANARY.decode() not in str(task)
        assert report["interactions_removed"] == 1
        left = client.post("/v1/retrievers/interactions/list", json={}).json()["results"]
        assert [each["interaction_id"] for each in left] == [kept["interaction_id"]]
        assert until_gone(server.data, CANARY) == []
        assert notes.documents() == neighbours
        assert holders(server.data, NEIGHBOUR), "what is not erased is found this way"
        gone = client.get(f"/v1/buckets/{notes.bucket}/objects/{notes.mine}")
        assert gone.status_code == 404
        again = server.wait_for_task(notes.erase(document_ids=[found[notes.mine]["document_id"]])["task_id"])
        assert again["status"] == "COMPLETED", "asking again changes nothing"
        report = again["additional_data"]["report"]
        assert report["artifacts_rewritten"] == 0
        assert (report["documents"], report["documents_unknown"]) == (0, 1), "nothing is left to erase"
        assert report["views_dropped"] == 0, "no view is made anew for what no view can hold"
        assert notes.documents() == neighbours


def test_what_was_deleted_before_is_erased_with_its_object(server: Server) -> None:
    with server.client() as client:
        notes = Notes(client, "deleted_before")
        document = notes.documents()[notes.mine]["document_id"]
        client.delete(f"/v1/collections/{notes.collection}/documents/{document}").raise_for_status()
        assert holders(server.data, CANARY)
        task = notes.erase(object_ids=[notes.mine])
        assert server.wait_for_task(task["task_id"])["status"] == "COMPLETED"
        # The document had been taken off its object before: it is named by its own id.
        task = server.wait_for_task(notes.erase(document_ids=[document, "nope"])["task_id"])
        assert task["status"] == "COMPLETED"
        report = task["additional_data"]["report"]
        assert (report["documents"], report["documents_unknown"]) == (1, 1)
        assert until_gone(server.data, CANARY) == []
        assert len(notes.documents()) == 3


def test_erasing_by_filter_without_objects_keeps_them(server: Server) -> None:
    with server.client() as client:
        notes = Notes(client, "by_filter")
        task = notes.erase(filters={"field": "source_object_id", "operator": "eq", "value": notes.mine})
        ended = server.wait_for_task(task["task_id"])
        assert ended["additional_data"]["report"]["documents"] == 1
        assert client.get(f"/v1/buckets/{notes.bucket}/objects/{notes.mine}").status_code == 200
        where = until_gone(server.data, CANARY, but_in="sqlite")
        assert all("sqlite" in name for name in where) and where, "only its object's row has the text"
        notes.loop.run(notes.bucket, [notes.mine])
        assert notes.mine in notes.documents(), "processed again, it brings its document back"
        client.delete(f"/v1/namespaces/{notes.place}").raise_for_status()
        assert until_gone(server.data, CANARY) == [], "a purge leaves as little"


def test_what_a_document_says_of_files_is_not_believed(server: Server) -> None:
    with server.client() as client, server.client() as other_client:
        notes, others = Notes(client, "liar"), Notes(other_client, "lied_about")
        theirs = sorted((server.data / "blobs" / others.place / "artifacts").rglob("*.arrow"))
        mine = sorted((server.data / "blobs" / notes.place / "artifacts").rglob("*.arrow"))
        assert theirs and mine
        keys = [str(path.relative_to(server.data / "blobs")) for path in (*theirs, *mine)]
        lies = [
            f"blob://{key}"
            for key in (*keys, "../tessera.sqlite3", f"{notes.place}//x", "\u0000", "x" * 5000)
        ]
        document = notes.loop.post(
            f"/collections/{notes.collection}/documents", {"document_id": "liar", "files": lies}
        )
        task = server.wait_for_task(notes.erase(document_ids=[document["document_id"]])["task_id"])
        assert task["status"] == "COMPLETED", task
        assert all(path.exists() for path in (*theirs, *mine))


def test_a_ready_document_is_erased_with_its_place(server: Server) -> None:
    with server.client() as client:
        notes = Notes(client, "ready_place")
        other = notes.loop.collection(notes.bucket, TEXT)
        body = {"document_id": "brought", "note": CANARY.decode()}
        notes.loop.post(f"/collections/{notes.collection}/documents", body)
        task = server.wait_for_task(notes.erase(document_ids=["brought"], include_objects=True)["task_id"])
        assert task["status"] == "COMPLETED"
        report = task["additional_data"]["report"]
        assert (report["documents"], report["objects"]) == (1, 0)
        # Its id is free again, anywhere in the namespace.
        notes.loop.post(f"/collections/{other}/documents", {"document_id": "brought"})


def test_ready_documents_of_a_large_upsert_are_erased_among_their_neighbours(server: Server) -> None:
    """More than an entry holds inline: they lie in an artifact of their own."""
    with server.client() as client:
        notes, word = Notes(client, "many_ready_made"), "cerulean-badger-90ae"
        documents: list[dict[str, Any]] = [
            {"document_id": f"brought {number}", "payload": {"note": "plain"}} for number in range(120)
        ]
        documents[7]["payload"]["note"] = word
        body = {"collection_id": notes.collection, "documents": documents}
        notes.loop.post(f"/namespaces/{notes.place}/documents/upsert", body)
        wanted = {"field": "note", "operator": "eq", "value": word}
        task = server.wait_for_task(notes.erase(filters=wanted)["task_id"], timeout_s=20)
        assert task["status"] == "COMPLETED", task
        found = notes.loop.post(f"/collections/{notes.collection}/documents/list?limit=1000", {})["results"]
        assert sum(item["document_id"].startswith("brought") for item in found) == 119
        assert until_gone(server.data, word.encode()) == []


def test_what_was_changed_by_hand_is_erased_too(server: Server) -> None:
    """It lies in entries that bring payloads alone, small and large, and in the table of what users changed."""
    with server.client() as client:
        notes, small, large = Notes(client, "by_hand"), "viridian-otter-5e1b", "saffron-heron-c0de"
        found = notes.documents()
        document_id = found[notes.mine]["document_id"]
        path = f"/collections/{notes.collection}/documents"
        notes.loop.patch(f"{path}/{document_id}", {"remark": small})
        notes.loop.patch(f"{path}/bulk", {"update_data": {"padding": "x" * 70_000}})
        notes.loop.patch(f"{path}/{document_id}", {"remark": f"{large} {'y' * 300_000}"})
        notes.loop.patch(f"{path}/{document_id}", {"remark": "harmless"})
        assert any(".arrow" in name for name in holders(server.data, large.encode()))
        task = server.wait_for_task(notes.erase(document_ids=[document_id])["task_id"], timeout_s=30)
        assert task["status"] == "COMPLETED", task
        for word in (small, large, "harmless"):
            assert until_gone(server.data, word.encode()) == []
        kept = notes.documents()
        assert set(kept) == set(notes.others)
        assert {len(item["padding"]) for item in kept.values()} == {70_000}, (
            "neighbours keep what was changed"
        )
        notes.loop.run(notes.bucket, [notes.mine])
        (again,) = [item for item in notes.documents().values() if item["root_object_id"] == notes.mine]
        assert "remark" not in again


@pytest.mark.parametrize("by_confirming", [True, False])
def test_an_object_is_erased_with_the_upload_that_it_came_by(server: Server, by_confirming: bool) -> None:
    with server.client() as client:
        notes = Notes(client, f"uploaded_{by_confirming}")
        path, word = f"/buckets/{notes.bucket}/uploads", f"vermilion-otter-{by_confirming}"
        upload = {"filename": f"{word}.txt", "content_type": "text/plain"}
        made = notes.loop.post(path, {**upload, "create_object_on_confirm": by_confirming})
        # The short text stands in the object's row and is a file as well, the long one is a file only.
        content = word if by_confirming else word + " " * 300_000
        httpx.put(made["presigned_url"], content=content, headers={"Content-Type": "text/plain"})
        item = notes.loop.post(f"{path}/{made['upload_id']}/confirm")["object_id"]
        if not by_confirming:
            blob = {"property": "note", "upload_id": made["upload_id"]}
            item = notes.loop.object(notes.bucket, {"blobs": [blob]})
        task = server.wait_for_task(notes.erase(object_ids=[item])["task_id"])
        assert task["status"] == "COMPLETED" and task["additional_data"]["report"]["files_removed"] == 1
        assert until_gone(server.data, word.encode()) == []


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "exactly one"),
        ({"document_ids": ["a"], "object_ids": ["b"]}, "document_ids and object_ids"),
        ({"filters": {}}, "names no condition"),
    ],
)
def test_what_cannot_be_erased_is_said(
    client: httpx.Client, server: Server, body: dict[str, Any], word: str
) -> None:
    made = client.post("/v1/namespaces", json={"namespace_name": "refusals", "feature_extractors": [TEXT]})
    answer = client.post("/v1/namespaces/refusals/erase", json=body)
    assert answer.status_code == 400 and word in answer.text
    assert made.status_code in (200, 409)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("erase.artifact:1", marks=pytest.mark.slow),
        "erase.entry:1",
        pytest.param("erase.view:1", marks=pytest.mark.slow),
        pytest.param("erase.files:1", marks=pytest.mark.slow),
    ],
)
def test_a_kill_in_the_middle_is_finished_by_the_next_server(tmp_path: Path, point: str) -> None:
    server = Server.start(tmp_path / "data", environment={"TESSERA_TEST_FAILPOINT": f"{point}:self"})
    try:
        with server.client() as client:
            notes = Notes(client, "killed")
            found = notes.documents()
            neighbours = {key: value for key, value in found.items() if key in notes.others}
            task = notes.erase(document_ids=[found[notes.mine]["document_id"]], include_objects=True)
        assert server.wait_until_dead(30), "the point was not reached"
        server = Server.start(tmp_path / "data")
        assert server.wait_for_task(task["task_id"])["status"] == "COMPLETED"
        with server.client(namespace=notes.place) as client:
            notes.loop.client = client
            assert notes.documents() == neighbours
        assert until_gone(server.data, CANARY) == []
    finally:
        server.kill(group=True)


def test_documents_that_were_sent_ready_made_are_erased_too(server: Server) -> None:
    with server.client() as client:
        notes = Notes(client, "ready_made")
        rows = [{"document_id": f"row-{n}", "vectors": {}, "payload": {"n": n}} for n in range(150)]
        word = b"nimble-otter-5d1e"
        rows[7]["payload"] = {"n": 7, "words": word.decode()}
        body = {"collection_id": notes.collection, "documents": rows}
        client.post(f"/v1/namespaces/{notes.place}/documents/upsert", json=body).raise_for_status()
        folder = server.data / "blobs" / notes.place / "artifacts" / "ready" / notes.collection
        (written,) = folder.iterdir()
        # What a server leaves that is killed before it names the file.
        left = folder / f"{'0' * 32}.0.arrow"
        left.write_bytes(written.read_bytes())
        os.utime(left, (time.time() - 3600,) * 2)
        task = notes.erase(document_ids=["row-7"], include_objects=True)
        ended = server.wait_for_task(task["task_id"])
        assert ended["status"] == "COMPLETED"
        report = ended["additional_data"]["report"]
        assert (report["documents"], report["objects"], report["artifacts_rewritten"]) == (1, 0, 1)
        assert not left.exists()
        assert until_gone(server.data, word) == []
        counted = client.get(f"/v1/collections/{notes.collection}").json()["document_count"]
        assert counted == 149 + 4, "it is not counted by its source any more"


def test_an_upload_that_an_object_was_made_of_goes_with_it(server: Server) -> None:
    with server.client() as client:
        notes = Notes(client, "uploaded")
        word = b"lucid-heron-77c2"
        long = (b"words " * 200_000) + word  # kept as a file
        request = {"filename": "n.txt", "content_type": "text/plain", "create_object_on_confirm": False}
        upload = notes.loop.post(f"/buckets/{notes.bucket}/uploads", request)
        httpx.put(upload["presigned_url"], content=long).raise_for_status()
        where = f"/buckets/{notes.bucket}/uploads/{upload['upload_id']}"
        notes.loop.post(f"{where}/confirm", {})
        blob = {"property": "note", "upload_id": upload["upload_id"]}
        made = notes.loop.object(notes.bucket, {"blobs": [blob]})
        task = notes.erase(object_ids=[made])
        assert server.wait_for_task(task["task_id"])["status"] == "COMPLETED"
        assert until_gone(server.data, word) == []
        assert client.get(f"/v1{where}").status_code == 404
