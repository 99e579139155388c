"""Documents changed by hand: one, several, all that a filter finds; and what another extraction leaves of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop, encoded
from tests.http.processes import Server
from tests.media import RED, picture

OFFERED = {
    "feature_extractors": [PASSTHROUGH, TEXT],
    "payload_indexes": [
        {"field_name": "metadata.status", "type": "keyword"},
        {"field_name": "status", "type": "keyword"},
        {"field_name": "stars", "type": "integer"},
    ],
}
ONE = "/v1/collections/{collection_identifier}/documents/{document_id}"


@pytest.fixture(scope="module")
def client(either_server: Server) -> Iterator[httpx.Client]:
    with either_server.client() as client:
        yield client


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(**OFFERED))


class Notes:
    """A collection of notes that are cut into sentences: several documents of one source."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.bucket = loop.bucket({"note": {"type": "text"}})
        self.collection = loop.collection(
            self.bucket,
            {
                **TEXT,
                "parameters": {"split_by": "sentences", "chunk_size": 1},
                "field_passthrough": [{"source_path": "metadata.status"}],
            },
        )
        self.path = f"/collections/{self.collection}/documents"

    def add(self, text: str, **metadata: Any) -> str:
        object_id = self.loop.note(self.bucket, text, metadata={"status": "new", **metadata})
        self.run(object_id)
        return object_id

    def change(self, object_id: str, text: str, **metadata: Any) -> None:
        body = {
            "blobs": [{"property": "note", "type": "text", "data": text}],
            "metadata": {"status": "new", **metadata},
        }
        self.loop.send("PUT", f"/buckets/{self.bucket}/objects/{object_id}", body)
        self.run(object_id)

    def run(self, object_id: str) -> None:
        assert self.loop.run(self.bucket, [object_id])["status"] == "COMPLETED"

    def documents(self, **body: Any) -> dict[str, dict[str, Any]]:
        """Return the documents by their text."""
        return {document["text"]: document for document in self.loop.documents(self.collection, **body)}

    def found(self, filters: Any) -> set[str]:
        return set(self.documents(filters=filters))


@pytest.fixture
def notes(loop: Loop) -> Notes:
    return Notes(loop)


class Ready:
    """A collection of ready-made documents ``d0`` …, which cost nothing to make."""

    def __init__(self, loop: Loop, number: int = 3, **fields: Any) -> None:
        self.loop = loop
        self.collection = loop.collection(loop.bucket(), PASSTHROUGH)
        self.path = f"/collections/{self.collection}/documents"
        if number:
            body = {
                "collection_id": self.collection,
                "documents": [
                    {"document_id": f"d{n}", "payload": {"n": n, "stars": n % 5, **fields}}
                    for n in range(number)
                ],
            }
            loop.post(f"/namespaces/{loop.namespace_id}/documents/upsert", body)

    def found(self, filters: Any = None) -> set[str]:
        return {item["document_id"] for item in self.loop.documents(self.collection, filters=filters)}


@pytest.mark.operation("PATCH", ONE, 200)
@pytest.mark.operation("PATCH", "/v1/documents/{document_id}", 200)
def test_a_patch_merges_at_the_root_and_is_findable_when_answered(loop: Loop) -> None:
    ready = Ready(loop, metadata={"status": "New", "size": 1}, tags=["a"])
    before = loop.get(f"{ready.path}/d1")
    patched = loop.patch(f"{ready.path}/d1", {"status": "Done", "stars": 9, "metadata.status": "Done"})
    assert patched == loop.get(f"{ready.path}/d1") == loop.get("/documents/d1")
    assert {k: v for k, v in patched.items() if before.get(k) != v} == {
        "status": "Done",
        "stars": 9,
        "metadata": {"status": "Done", "size": 1},
        "updated_at": patched["updated_at"],
        "_internal": {**before["_internal"], "updated_at": patched["updated_at"]},
    }
    assert patched["updated_at"] > before["updated_at"]
    for filters in ({"status": "done"}, {"metadata.status": "DONE"}, {"stars": 9}):
        assert ready.found(filters) == {"d1"}, filters
    assert ready.found({"metadata.status": "new"}) == {"d0", "d2"}
    replaced = loop.patch("/documents/d1", {"metadata": {"size": 2}, "tags": None})
    assert (replaced["metadata"], replaced["tags"]) == ({"size": 2}, None)
    assert ready.found({"field": "tags", "operator": "exists", "value": False}) == {"d1"}
    assert ready.found({"field": "metadata.status", "operator": "is_null"}) == {"d1"}


@pytest.mark.operation("PUT", ONE, 200)
@pytest.mark.operation("PUT", "/v1/documents/{document_id}", 200)
def test_a_put_takes_the_place_of_the_users_fields(loop: Loop) -> None:
    ready = Ready(loop, metadata={"status": "new"})
    before = loop.get(f"{ready.path}/d1")
    after = loop.send("PUT", f"{ready.path}/d1", {"status": "put", "metadata.size": 3})
    assert (after["status"], after["metadata"]) == ("put", {"size": 3})
    assert not {"n", "stars"} & after.keys()
    assert (after["created_at"], after["collection_id"]) == (before["created_at"], ready.collection)
    assert ready.found({"status": "put"}) == {"d1"}
    assert ready.found({"field": "stars", "operator": "gte", "value": 0}) == {"d0", "d2"}
    again = loop.send("PUT", "/documents/d1", loop.get("/documents/d1"))
    assert again == after, "what was read can be sent back"
    assert loop.get(f"/namespaces/{loop.namespace_id}")["document_count"] == 3


def test_true_is_not_one(loop: Loop) -> None:
    """Compared as Python compares, a patch of 1 to true changed nothing."""
    ready = Ready(loop)
    assert loop.patch(f"{ready.path}/d1", {"n": True})["n"] is True
    assert loop.patch(f"{ready.path}/d1", {"n": 1.5})["n"] == 1.5


def test_what_cannot_be_changed_is_named(loop: Loop) -> None:
    ready = Ready(loop, 1)
    before = loop.get("/documents/d0")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"document_id": "other"}, "'document_id' belongs to the system"),
        ({"created_at": "2020-01-01T00:00:00Z", "a": 1}, "'created_at' belongs to the system"),
        ({"_internal.lineage.path": "x"}, "'_internal.lineage.path' belongs to the system"),
        ({"vectors": {}, "internal_id": "x"}, "'internal_id' belongs to the system"),
        ({"a..b": 1}, "'a..b' is not a field"),
        ({"": 1}, "'' is not a field"),
        ({"a": {}, "a.b.c": 1}, "'a.b.c' lies inside 'a'"),
        ({".".join("a" * 40): [[[[[[[[[[]]]]]]]]]]}, "deeper than 48"),
        ({f"f{n}": n for n in range(1001)}, "at most 1,000 fields, not 1,001"),
    ]
    for body, said in cases:
        for method in ("PATCH", "PUT"):
            assert said in loop.refused(422, method, f"{ready.path}/d0", body)
        assert said in loop.refused(422, "PATCH", "/documents/d0", body)
        updates = {"updates": [{"document_id": "d0", "update_data": body}]}
        assert said in loop.refused(422, "POST", f"{ready.path}/batch", updates)
        assert said in loop.refused(422, "PATCH", f"{ready.path}/bulk", {"update_data": body})
    assert loop.get("/documents/d0") == before


def test_a_path_through_a_plain_value_is_refused(loop: Loop) -> None:
    ready = Ready(loop, 2, tags=["a"])
    said = loop.refused(400, "PATCH", f"{ready.path}/d0", {"tags.first": "b"})
    assert "tags is a list there" in said
    updates = [
        {"document_id": "d0", "update_data": {"n.x": 1}},
        {"document_id": "d1", "update_data": {"ok": 1}},
        {"document_id": "absent", "update_data": {"ok": 1}},
    ]
    answer = loop.post(f"{ready.path}/batch", {"updates": updates})
    assert (answer["updated_count"], answer["failed_count"]) == (1, 2)
    assert [item["success"] for item in answer["results"]] == [False, True, False]
    assert "n is a plain value" in answer["results"][0]["error"]
    assert "not found" in answer["results"][2]["error"]


def test_documents_that_are_not_there(loop: Loop) -> None:
    ready = Ready(loop, 1)
    other = Ready(loop, 0)
    for method in ("PATCH", "PUT"):
        loop.refused(404, method, f"{ready.path}/absent", {"a": 1})
        loop.refused(404, method, f"{other.path}/d0", {"a": 1})
        loop.refused(404, method, "/documents/absent", {"a": 1})
        loop.refused(422, method, f"{ready.path}/d0", [1])


def log_length(loop: Loop, either_server: Server) -> int:
    """Return how many entries the namespace's log has, by asking the database."""
    import sqlite3

    with sqlite3.connect(f"file:{either_server.data / 'tessera.sqlite3'}?mode=ro", uri=True) as connection:
        (head,) = connection.execute(
            "SELECT head FROM namespaces WHERE namespace_id = ?", (loop.namespace_id,)
        ).fetchone()
    return int(head)


def test_sent_again_it_writes_nothing(loop: Loop, either_server: Server) -> None:
    ready = Ready(loop)
    body = {"status": "done", "metadata.deep.er": [1, {"a": None}]}
    first = loop.patch(f"{ready.path}/d0", body)
    bulk = {"filters": {"field": "n", "operator": "gte", "value": 1}, "update_data": {"stars": 7}}
    assert loop.patch(f"{ready.path}/bulk", bulk)["updated_count"] == 2
    head = log_length(loop, either_server)
    assert loop.patch(f"{ready.path}/d0", body) == first
    assert loop.patch(f"{ready.path}/d0", {}) == first
    assert loop.patch(f"{ready.path}/bulk", bulk)["updated_count"] == 2
    assert log_length(loop, either_server) == head


@pytest.mark.operation("PATCH", "/v1/collections/{collection_identifier}/documents/bulk", 200)
def test_bulk_reaches_what_the_filter_finds_when_it_is_asked(loop: Loop) -> None:
    """The change may be what the filter asks for: all are found before the first is changed."""
    ready, other = Ready(loop, 250, status="open"), Ready(loop, 0)
    loop.post(f"{other.path}", {"document_id": "elsewhere", "status": "open"})
    body = {"filters": {"status": "OPEN"}, "update_data": {"status": "closed", "metadata.by": "me"}}
    answer = loop.patch(f"{ready.path}/bulk", body)
    assert answer["updated_count"] == 250
    assert loop.patch(f"{ready.path}/bulk", body)["updated_count"] == 0
    assert len(ready.found({"status": "closed"})) == len(ready.found({"metadata.by": "me"})) == 250
    assert loop.get("/documents/elsewhere")["status"] == "open"
    assert loop.patch(f"{ready.path}/bulk", {"update_data": {"all": True}})["updated_count"] == 250
    assert loop.get(f"/namespaces/{loop.namespace_id}")["document_count"] == 251
    loop.refused(422, "PATCH", f"{ready.path}/bulk", {"filters": {"status": "closed"}})
    loop.refused(422, "PATCH", f"{ready.path}/bulk", {"update_data": {}})


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/documents/batch", 200)
def test_batch_gives_each_its_own_change(loop: Loop) -> None:
    ready = Ready(loop)
    updates = [{"document_id": f"d{n}", "update_data": {"label": f"L{n}"}} for n in range(3)]
    answer = loop.post(f"{ready.path}/batch", {"updates": updates})
    assert (answer["updated_count"], answer["failed_count"]) == (3, 0)
    assert answer["results"] == [{"document_id": f"d{n}", "success": True, "error": None} for n in range(3)]
    assert ready.found({"field": "label", "value": "l1"}) == {"d1"}
    by_filter = loop.post(f"{ready.path}/batch", {"filters": {"n": 2}, "update_data": {"label": "two"}})
    assert (by_filter["updated_count"], by_filter["results"]) == (1, [])
    loop.refused(400, "POST", f"{ready.path}/batch", {})
    loop.refused(400, "POST", f"{ready.path}/batch", {"filters": {"n": 2}})
    loop.refused(400, "POST", f"{ready.path}/batch", {"updates": updates, "update_data": {"a": 1}})
    assert "twice" in loop.refused(422, "POST", f"{ready.path}/batch", {"updates": [updates[0], updates[0]]})


def test_a_field_set_by_hand_stays_when_its_source_is_extracted_again(notes: Notes) -> None:
    loop = notes.loop
    object_id = notes.add("First one. Second one. Third one.")
    before = notes.documents()
    first, second, third = sorted(before, key=lambda text: ["First", "Secon", "Third"].index(text[:5]))
    loop.patch(f"{notes.path}/{before[first]['document_id']}", {"status": "checked", "note.by": "me"})
    loop.patch(f"{notes.path}/{before[third]['document_id']}", {"status": "gone"})
    notes.run(object_id)
    assert notes.documents()[first]["status"] == "checked"
    vectors = notes.documents(return_vectors=True)[second]["vectors"]

    notes.change(object_id, "First one. Second two.", status="changed")
    after = notes.documents(return_vectors=True)
    assert len(after) == 2, "the third sentence is gone, and only it"
    kept, fresh = after[first], next(d for text, d in after.items() if text != first)
    assert (kept["document_id"], kept["note"]) == (before[first]["document_id"], {"by": "me"})
    assert (kept["status"], kept["metadata"]) == ("checked", {"status": "checked"})
    assert (fresh["status"], fresh["metadata"]) == ("changed", {"status": "changed"})
    assert fresh["vectors"] != vectors
    assert notes.found({"status": "checked"}) == notes.found({"metadata.status": "CHECKED"}) == {first}

    notes.change(object_id, "First one. Second two. Third again.")
    third_again = next(d for text, d in notes.documents().items() if text.startswith("Third"))
    assert third_again["status"] == "new", "what was deleted and comes again is not what was changed"


def test_a_put_marks_only_what_it_changes(notes: Notes) -> None:
    """Read, changed in one place and sent back: the rest follows the source as before."""
    object_id = notes.add("Only one.")
    (document,) = notes.documents().values()
    path = f"{notes.path}/{document['document_id']}"
    own = {name: document[name] for name in ("text", "status", "metadata")}
    put = notes.loop.send("PUT", path, {**own, "note": "mine", "metadata": {**own["metadata"], "by": "me"}})
    assert put["metadata"] == {"status": "new", "by": "me"}
    notes.change(object_id, "Only one.", status="changed")
    after = notes.loop.get(path)
    assert (after["note"], after["status"]) == ("mine", "changed")
    assert after["metadata"] == {"status": "changed", "by": "me"}
    # Under its two names: one was changed, the other sent back as it was read.
    put = notes.loop.send("PUT", path, {**own, "status": "changed", "metadata": {"status": "checked"}})
    assert (put["status"], put["metadata"], "note" in put) == ("checked", {"status": "checked"}, False)
    notes.change(object_id, "Only one.", status="again")
    after = notes.loop.get(path)
    assert (after["status"], after["metadata"]["status"], "note" in after) == ("checked", "checked", False)


def test_one_field_under_two_names_is_changed_under_both(notes: Notes) -> None:
    """Documents carry metadata.status as status too; a filter on either must find what a patch of one set."""
    notes.add("Only one.")
    (document,) = notes.documents().values()
    path = f"{notes.path}/{document['document_id']}"
    patched = notes.loop.patch(path, {"metadata.status": "a"})
    assert (patched["status"], patched["metadata"]) == ("a", {"status": "a"})
    patched = notes.loop.patch(path, {"status": "b"})
    assert (patched["status"], patched["metadata"]) == ("b", {"status": "b"})
    patched = notes.loop.patch(path, {"metadata": {"status": "c", "more": 1}})
    assert (patched["status"], patched["metadata"]) == ("c", {"status": "c", "more": 1})
    patched = notes.loop.patch(path, {"status": "d", "metadata.status": "e"})
    assert (patched["status"], patched["metadata"]["status"]) == ("d", "e")


def test_a_deleted_document_comes_back_as_it_is_extracted(notes: Notes) -> None:
    object_id = notes.add("Only one.")
    (document,) = notes.documents().values()
    path = f"{notes.path}/{document['document_id']}"
    notes.loop.patch(path, {"status": "mine"})
    notes.loop.delete(path)
    notes.run(object_id)
    assert notes.loop.get(path)["status"] == "new"


def test_a_put_stays_too_and_files_stay_files(client: httpx.Client, loop: Loop) -> None:
    """Sent back as it was read, a document kept a signed link in the place of its file, which expired."""
    bucket = loop.bucket({"photo": {"type": "image"}})
    collection = loop.collection(bucket, {**PASSTHROUGH, "include_all_source_fields": True})
    photo = {"property": "photo", "type": "image", "data": encoded(picture(RED))}
    object_id = loop.object(bucket, {"blobs": [photo], "colour": "red"})
    loop.run(bucket, [object_id])
    (document,) = loop.documents(collection)
    path = f"/collections/{collection}/documents/{document['document_id']}"
    sent = {name: value for name, value in document.items() if name != "document_blobs"}
    after = loop.send("PUT", path, {**sent, "colour": "blue"})
    assert after["colour"] == "blue"
    assert {blob["field"] for blob in after["document_blobs"]} == {
        blob["field"] for blob in document["document_blobs"]
    }
    loop.patch(f"/buckets/{bucket}/objects/{object_id}", {"metadata": {"extra": 1}})
    loop.run(bucket, [object_id])
    assert loop.get(path)["colour"] == "blue"


def test_many_patches_of_one_document_at_once_lose_none(loop: Loop) -> None:
    """Two patches that had read the same document each wrote the whole of it, and the second undid the first."""
    ready = Ready(loop, 1)
    failures: list[Any] = []

    def change(worker: int) -> None:
        with loop.client.__class__(base_url=loop.client.base_url, headers=loop.client.headers) as client:
            mine = Loop(client, {"namespace_id": loop.namespace_id})
            try:
                for number in range(5):
                    mine.patch(f"{ready.path}/d0", {f"field_{worker}.f{number}": number})
            except AssertionError as failure:
                failures.append(failure)

    threads = [threading.Thread(target=change, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    document = loop.get("/documents/d0")
    for worker in range(6):
        assert document[f"field_{worker}"] == {f"f{number}": number for number in range(5)}
