"""Unique keys: one object for each key, whatever comes and however much of it at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop

PROPERTIES = {
    "note": {"type": "text"},
    "sku": {"type": "string"},
    "size": {"type": "number"},
    "year": {"type": "integer"},
}


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(feature_extractors=[PASSTHROUGH]))


def bucket_of(loop: Loop, *fields: str, policy: str | None = None) -> str:
    key = {"fields": list(fields), **({"default_policy": policy} if policy else {})}
    return loop.bucket(PROPERTIES, unique_key=key)


def put(loop: Loop, bucket: str, policy: str = "", *, status: int = 200, **fields: Any) -> Any:
    query = f"?policy={policy}" if policy else ""
    return loop.post(f"/buckets/{bucket}/objects{query}", fields, status=status)


def test_the_three_policies(loop: Loop) -> None:
    bucket = bucket_of(loop, "sku")
    answered = loop.get(f"/buckets/{bucket}")["unique_key"]
    assert answered == {"fields": ["sku"], "default_policy": None}
    said = loop.refused(400, "POST", f"/buckets/{bucket}/objects", {"sku": "a"})
    assert "no default policy" in said and "?policy=" in said
    assert "policy" in loop.refused(422, "POST", f"/buckets/{bucket}/objects?policy=merge", {"sku": "a"})

    absent = put(loop, bucket, "update", status=404, sku="a")
    assert absent["error"]["details"]["unique_key"] == ["sku"]
    made = put(loop, bucket, "insert", sku="a", note="one", colour="red")
    taken = put(loop, bucket, "insert", status=409, sku="a", note="two")
    assert taken["error"]["type"] == "AlreadyExistsError"
    assert taken["error"]["details"]["id"] == made["object_id"]
    changed = put(loop, bucket, "update", sku="a", note="two")
    assert (changed["object_id"], changed["version"]) == (made["object_id"], 2)
    assert "colour" not in changed, "it is what the request says, as a whole"
    assert changed["created_at"] == made["created_at"] < changed["updated_at"]
    again = put(loop, bucket, "upsert", sku="a", note="two")
    assert (again["version"], again["updated_at"]) == (2, changed["updated_at"]), "nothing to change"
    other = put(loop, bucket, "upsert", sku="b", note="two")
    assert other["object_id"] != made["object_id"]
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 2


def test_a_default_policy_and_what_of_the_key_may_change(loop: Loop) -> None:
    bucket = bucket_of(loop, "sku", "year", policy="insert")
    path = f"/buckets/{bucket}"
    put(loop, bucket, sku="a", year=1)
    put(loop, bucket, sku="a", year=2)
    put(loop, bucket, sku="a", year=2, status=409)
    assert put(loop, bucket, "upsert", sku="a", year=2, size=1)["version"] == 2, "the request wins"
    changed = loop.patch(path, {"unique_key": {"fields": ["year", "sku"], "default_policy": "upsert"}})
    assert changed["unique_key"] == {"fields": ["sku", "year"], "default_policy": "upsert"}
    assert put(loop, bucket, sku="a", year=2, size=2)["version"] == 3
    assert "stay so" in loop.refused(422, "PATCH", path, {"unique_key": {"fields": ["sku"]}})
    plain = f"/buckets/{loop.bucket()}"
    said = loop.refused(422, "PATCH", plain, {"unique_key": {"fields": ["sku"]}})
    assert "without a unique key" in said


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"size": 1}, {"size": 1.0}, True),
        ({"size": 1}, {"metadata": {"size": 1}}, True),
        ({"size": 1}, {"size": 1.5}, False),
        ({"sku": "a"}, {"sku": "A"}, False),
    ],
)
def test_what_is_the_same_key(loop: Loop, first: Any, second: Any, same: bool) -> None:
    bucket = bucket_of(loop, *(set(first) & {"size", "sku"}), policy="insert")
    put(loop, bucket, **first)
    put(loop, bucket, status=409 if same else 200, **second)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({}, "needs a value"), ({"sku": ""}, "needs a value"), ({"sku": "x" * 256}, "256 characters")],
)
def test_every_object_has_a_key(loop: Loop, fields: Any, said: str) -> None:
    bucket = bucket_of(loop, "sku", policy="upsert")
    assert said in loop.refused(422, "POST", f"/buckets/{bucket}/objects", fields)


@pytest.mark.parametrize("policy", ["insert", "upsert"])
def test_requests_at_once_make_one_object(loop: Loop, policy: str) -> None:
    bucket = bucket_of(loop, "sku")

    def send(number: int) -> httpx.Response:
        body = {"sku": "a", "year": number}
        path = f"/v1/buckets/{bucket}/objects?policy={policy}"
        return loop.client.post(path, json=body, headers=loop.headers)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(send, range(24)))
    made = loop.post(f"/buckets/{bucket}/objects/list", {"limit": 100})["results"]
    assert len(made) == 1
    good = [answer.json() for answer in answers if answer.status_code == 200]
    assert {answer["object_id"] for answer in good} == {made[0]["object_id"]}
    if policy == "insert":
        assert len(good) == 1 and [a.status_code for a in answers].count(409) == 23
        assert made[0]["version"] == 1
    else:
        assert sorted(answer["version"] for answer in good) == list(range(1, 25)), "one after the other"


def test_a_change_cannot_take_the_key_of_another(loop: Loop) -> None:
    bucket = bucket_of(loop, "sku", policy="insert")
    first, second = put(loop, bucket, sku="a"), put(loop, bucket, sku="b")
    path = f"/buckets/{bucket}/objects/{second['object_id']}"
    assert first["object_id"] in loop.refused(409, "PATCH", path, {"sku": "a"})
    assert "needs a value" in loop.refused(422, "PATCH", path, {"sku": None})
    assert loop.patch(path, {"sku": "c"})["sku"] == "c"
    put(loop, bucket, sku="b")
    loop.delete(f"/buckets/{bucket}/objects/{first['object_id']}", status=204)
    put(loop, bucket, sku="a")


def test_batches_follow_the_policy_object_by_object(loop: Loop) -> None:
    bucket = bucket_of(loop, "sku")
    items = {"objects": [{"sku": "a"}, {"sku": "b"}, {"sku": "a", "year": 1}, {"year": 1}]}
    path = f"/buckets/{bucket}/objects/batch"
    assert "no default policy" in loop.refused(400, "POST", path, items)
    done = loop.post(f"{path}?policy=insert", items)
    assert [item["object_index"] for item in done["succeeded"]] == [0, 1]
    told = {item["object_index"]: item["error_type"] for item in done["failed"]}
    assert told == {2: "AlreadyExistsError", 3: "ValidationError"}
    assert (done["total_requested"], done["succeeded_count"], done["failed_count"]) == (4, 2, 2)
    done = loop.post(f"{path}?policy=upsert", items)
    assert done["succeeded_count"] == 3
    assert done["succeeded"][0]["object_id"] == done["succeeded"][2]["object_id"]


def test_idempotency_keys_and_duplicates_come_first(loop: Loop) -> None:
    bucket = bucket_of(loop, "sku", policy="insert")
    path = f"/buckets/{bucket}/objects"
    key = {"Idempotency-Key": "once"}
    first = loop.post(path, {"sku": "a"}, headers=key)
    assert loop.post(path, {"sku": "a"}, headers=key)["object_id"] == first["object_id"]
    assert loop.post(path, {"sku": "a", "skip_duplicates": True})["object_id"] == first["object_id"]
    loop.post(path, {"sku": "a"}, headers={"Idempotency-Key": "twice"}, status=409)
    # A refusal claims nothing: the key is free for a request that succeeds.
    loop.delete(f"{path}/{first['object_id']}", status=204)
    loop.post(path, {"sku": "a"}, headers={"Idempotency-Key": "twice"})


def test_uploads_follow_the_default_policy(loop: Loop) -> None:
    bucket = bucket_of(loop, "sku", policy="insert")
    path = f"/buckets/{bucket}/uploads"
    body = {"filename": "a.txt", "content_type": "text/plain", "object_metadata": {"sku": "a"}}

    def upload(content: bytes) -> Any:
        made = loop.post(path, {**body, "skip_duplicates": False})
        if made["presigned_url"]:
            httpx.put(made["presigned_url"], content=content).raise_for_status()
        return made

    assert "needs a value" in loop.refused(422, "POST", path, {**body, "object_metadata": {}})
    first, rival = upload(b"one"), upload(b"two")
    object_id = loop.post(f"{path}/{first['upload_id']}/confirm")["object_id"]
    said = loop.refused(409, "POST", f"{path}/{rival['upload_id']}/confirm")
    assert object_id in said
    late = upload(b"three")
    assert (late["skipped_unique_key"], late["existing_object_id"]) == (True, object_id)
    assert (late["presigned_url"], late["status"]) == (None, "SKIPPED")
    confirmed = loop.post(f"{path}/{late['upload_id']}/confirm")
    assert (confirmed["status"], confirmed["object_id"]) == ("SKIPPED", object_id)

    loop.patch(f"/buckets/{bucket}", {"unique_key": {"fields": ["sku"], "default_policy": "upsert"}})
    again = upload(b"four")
    assert loop.post(f"{path}/{again['upload_id']}/confirm")["object_id"] == object_id
    got = loop.get(f"/buckets/{bucket}/objects/{object_id}")
    assert (got["version"], got["blobs"][0]["data"]) == (2, "four")
    loop.patch(f"/buckets/{bucket}", {"unique_key": {"fields": ["sku"], "default_policy": "update"}})
    loop.post(path, {**body, "object_metadata": {"sku": "b"}}, status=404)
    loop.patch(f"/buckets/{bucket}", {"unique_key": {"fields": ["sku"]}})
    assert "no default policy" in loop.refused(400, "POST", path, body)


def test_an_upsert_replaces_the_documents_with_the_next_batch(loop: Loop) -> None:
    bucket = bucket_of(loop, "sku", policy="upsert")
    collection = loop.collection(bucket)
    made = put(loop, bucket, sku="a", note="old")
    loop.run(bucket, [made["object_id"]])
    (before,) = loop.documents(collection)
    put(loop, bucket, sku="a", note="new")
    assert loop.documents(collection) == [before], "until then they are what they were"
    loop.run(bucket, [made["object_id"]])
    (after,) = loop.documents(collection)
    assert (after["document_id"], after["note"]) == (before["document_id"], "new")


def test_processed_at_once(loop: Loop) -> None:
    bucket = bucket_of(loop, "sku", policy="upsert")
    path = f"/buckets/{bucket}/objects?auto_process=true"
    waits = loop.post(path, {"sku": "a", "note": "a"})
    assert (waits["batch_id"], waits["task_id"]) == (None, None), "nobody reads the bucket"
    collection = loop.collection(bucket)
    key = {"Idempotency-Key": "once"}
    made = loop.post(path, {"sku": "a", "note": "b"}, headers=key)
    assert loop.wait(made["task_id"])["status"] == "COMPLETED"
    assert [item["note"] for item in loop.documents(collection)] == ["b"]
    assert loop.post(path, {"sku": "a", "note": "b"}, headers=key)["task_id"] == made["task_id"]
    items = {"objects": [{"sku": "b", "note": "c"}, {"sku": "c", "note": "d"}, {}]}
    done = loop.post(f"/buckets/{bucket}/objects/batch?auto_process=true", items)
    assert done["succeeded_count"] == 2
    assert loop.wait(done["task_id"])["status"] == "COMPLETED"
    key = {"Idempotency-Key": "twice"}
    path = f"/buckets/{bucket}/objects/batch?auto_process=true"
    first = loop.post(f"{path}&policy=insert", {"objects": [{"sku": "e"}, {"sku": "b"}]}, headers=key)
    loop.delete(f"/buckets/{bucket}/objects/{done['succeeded'][0]['object_id']}", status=204)
    again = loop.post(f"{path}&policy=insert", {"objects": [{"sku": "e"}, {"sku": "b"}]}, headers=key)
    assert (first["failed_count"], again["failed_count"]) == (1, 0)
    assert again["batch_id"] != first["batch_id"], "more of its objects came to be"
    assert loop.wait(again["task_id"])["status"] == "COMPLETED"
    assert loop.get(f"/buckets/{bucket}/batches/{done['batch_id']}")["documents_written"] == 2
    assert {item.get("note") for item in loop.documents(collection)} == {"b", "d", None}
