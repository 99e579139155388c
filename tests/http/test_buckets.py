"""Buckets: names, schemas, counts, and what may still change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop

NOTE = {"properties": {"note": {"type": "text"}}}


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(feature_extractors=[PASSTHROUGH]))


@pytest.mark.parametrize("name_key", ["bucket_name", "name"])
@pytest.mark.parametrize("schema_key", ["bucket_schema", "schema"])
@pytest.mark.operation("POST", "/v1/buckets", 200)
@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}", 200)
def test_every_spelling_of_a_create_request_is_understood(loop: Loop, name_key: str, schema_key: str) -> None:
    made = loop.post("/buckets", {name_key: "photos", schema_key: NOTE, "description": "…"})
    assert made["bucket_name"] == "photos"
    assert made["bucket_schema"] == NOTE, "the schema is answered as it was sent"
    assert (made["object_count"], made["total_size_bytes"], made["status"]) == (0, 0, "ACTIVE")
    assert made["batch_stats"] == {"total": 0, "active": 0, "completed": 0, "failed": 0}
    assert loop.get(f"/buckets/{made['bucket_id']}") == loop.get("/buckets/photos") == made


def test_all_types_of_a_schema_are_known_and_no_other(loop: Loop) -> None:
    values = ["string", "number", "integer", "float", "boolean", "object", "array", "date", "datetime"]
    types = [*values, "text", "image", "audio", "video", "pdf", "excel"]
    made = loop.post(
        "/buckets", {"name": "all", "schema": {"properties": {f"p_{t}": {"type": t} for t in types}}}
    )
    assert [field["type"] for field in made["bucket_schema"]["properties"].values()] == types
    said = loop.refused(
        422, "POST", "/buckets", {"name": "x", "schema": {"properties": {"p": {"type": "vdeo"}}}}
    )
    assert "schema.properties.p.type" in said
    assert "'vdeo'" in said
    assert "Did you mean video?" in said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"schema": NOTE}, "bucket_name is required"),
        ({"name": "x"}, "bucket_schema is required"),
        ({"name": "", "schema": NOTE}, "at least 1 character"),
        ({"name": "n" * 101, "schema": NOTE}, "at most 100 characters"),
        ({"name": "a/b", "schema": NOTE}, "slash"),
        ({"name": " a", "schema": NOTE}, "blank"),
        ({"name": "a\u202eb", "schema": NOTE}, "cannot be printed"),
        ({"name": "bkt_0123456789abcdef", "schema": NOTE}, "looks like an id"),
        ({"name": "list", "schema": NOTE}, "word of the API"),
        ({"name": "x", "schema": {"properties": {"a.b": {"type": "text"}}}}, "without dots"),
        ({"name": "x", "schema": {"properties": {"": {"type": "text"}}}}, "cannot be named so"),
        ({"name": "x", "schema": {"properties": {"created_at": {"type": "date"}}}}, "field of the system"),
        ({"name": "x", "schema": {"properties": {"status": {"type": "string"}}}}, "field of the system"),
        (
            {"name": "x", "schema": {"properties": {"n": {"type": "integer", "default": "one"}}}},
            "whole number",
        ),
        (
            {"name": "x", "schema": {"properties": {"n": {"type": "string", "enum": ["a"], "default": "b"}}}},
            "must be one of 'a'",
        ),
        ({"name": "x", "schema": {"properties": {"n": {"type": "string", "enum": []}}}}, "is empty"),
        ({"name": "x", "schema": {"properties": {"n": {"type": "integer", "enum": [1, "2"]}}}}, "not '2'"),
        (
            {"name": "x", "schema": {"properties": {"n": {"type": "string", "items": {"type": "string"}}}}},
            "only an array has items",
        ),
        (
            {
                "name": "x",
                "schema": {
                    "properties": {
                        "n": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "properties": {"k": {"type": "integer", "default": 1.5}},
                            },
                        }
                    }
                },
            },
            "'n[].k' must be a whole number",
        ),
        (
            {"name": "x", "schema": NOTE, "unique_key": {"fields": ["note"]}},
            "'note' is text, no single value. Properties that can be in the key: none",
        ),
        ({"name": "x", "schema": NOTE, "unique_key": {"fields": ["sku"]}}, "'sku' is no property"),
        ({"name": "x", "schema": NOTE, "unique_key": {"fields": []}}, "at least 1"),
        (
            {"name": "x", "schema": NOTE, "unique_key": {"fields": ["a"], "default_policy": "merge"}},
            "insert, update, upsert, not 'merge'",
        ),
    ],
)
def test_what_is_wrong_with_a_bucket_is_named(loop: Loop, body: Any, said: str) -> None:
    assert said in loop.refused(422, "POST", "/buckets", body)


def test_all_problems_come_together(loop: Loop) -> None:
    body = {"name": "a/b", "schema": {"properties": {"a.b": {"type": "text"}, "status": {"type": "string"}}}}
    said = loop.refused(422, "POST", "/buckets", body)
    assert "slash" in said
    assert "'a.b'" in said
    assert "'status'" in said


def test_a_name_is_taken_once_in_a_namespace(loop: Loop, namespace: Callable[..., Any]) -> None:
    first = loop.post("/buckets", {"name": "photos", "schema": NOTE})
    said = loop.refused(409, "POST", "/buckets", {"name": "photos", "schema": NOTE})
    assert first["bucket_id"] in said
    # Another form of the same letters is the same name.
    loop.post("/buckets", {"name": "caf\u00e9", "schema": NOTE})
    loop.refused(409, "POST", "/buckets", {"name": "cafe\u0301", "schema": NOTE})
    other = Loop(loop.client, namespace())
    assert other.post("/buckets", {"name": "photos", "schema": NOTE})["bucket_id"] != first["bucket_id"]


@pytest.mark.operation("POST", "/v1/buckets/list", 200)
@pytest.mark.operation("GET", "/v1/buckets", 200)
def test_lists_filter_search_sort_and_page(loop: Loop) -> None:
    for letter in "cab":
        loop.post("/buckets", {"name": f"shelf {letter}", "description": letter.upper() * 3, "schema": NOTE})
    loop.post("/buckets", {"name": "other", "schema": NOTE})

    def names(body: Any = None, query: str = "") -> list[str]:
        return [item["bucket_name"] for item in loop.post(f"/buckets/list{query}", body)["results"]]

    assert names() == ["shelf c", "shelf a", "shelf b", "other"]
    assert names({"search": "SHELF", "sort": {"field": "bucket_name"}}) == ["shelf a", "shelf b", "shelf c"]
    assert names({"sort": {"field": "description", "direction": "desc"}})[-1] == "other", (
        "nulls last both ways"
    )
    assert names({"search": "SHELF", "case_sensitive": True}) == []
    assert names({"filters": {"bucket_name": "shelf a"}}) == ["shelf a"]
    assert names({"filters": {"bucket_name": {"$regex": "^shelf [ab]$"}}}) == ["shelf a", "shelf b"]
    assert names({"filters": {"field": "description", "operator": "starts_with", "value": "c"}}) == [
        "shelf c"
    ]
    assert names({"limit": 2}) == ["shelf c", "shelf a"]
    assert names({"limit": 2}, "?limit=3") == ["shelf c", "shelf a", "shelf b"], "the query wins"
    assert names({"page_size": 3, "page": 2}) == ["other"]
    page = loop.post("/buckets/list", {"limit": 3})
    assert page["total_count"] == page["pagination"]["total"] == 4
    assert page["pagination"]["total_pages"] == 2
    rest = loop.post("/buckets/list", {"limit": 3, "cursor": page["pagination"]["next_cursor"]})
    assert [item["bucket_name"] for item in rest["results"]] == ["other"]
    assert rest["pagination"]["next_cursor"] is None
    assert [item["bucket_name"] for item in loop.get("/buckets?search=oth")["results"]] == ["other"]
    assert "limit" in loop.refused(422, "POST", "/buckets/list", {"limit": 0})
    assert "sort.field" in loop.refused(422, "POST", "/buckets/list", {"sort": {"field": "size"}})


def test_counts_are_those_of_the_objects(loop: Loop) -> None:
    bucket_id = loop.bucket()
    loop.note(bucket_id, "twelve bytes")
    second = loop.note(bucket_id, "four")
    found = loop.get(f"/buckets/{bucket_id}")
    assert (found["object_count"], found["total_size_bytes"]) == (2, 16)
    assert found["last_upload_at"] is not None
    loop.delete(f"/buckets/{bucket_id}/objects/{second}", status=204)
    found = loop.get(f"/buckets/{bucket_id}")
    assert (found["object_count"], found["total_size_bytes"]) == (1, 12)
    listed = loop.post("/buckets/list")
    assert listed["stats"]["total_objects"] == 1


@pytest.mark.operation("PATCH", "/v1/buckets/{bucket_identifier}", 200)
@pytest.mark.operation("PUT", "/v1/buckets/{bucket_identifier}", 200)
def test_patch_changes_what_it_names(loop: Loop) -> None:
    made = loop.post(
        "/buckets", {"name": "photos", "schema": NOTE, "description": "old", "metadata": {"a": 1}}
    )
    path = f"/buckets/{made['bucket_id']}"
    assert loop.patch(path, {}) == made, "an empty patch changes nothing, not even updated_at"
    renamed = loop.patch(path, {"bucket_name": "pictures"})
    assert (renamed["bucket_name"], renamed["description"], renamed["metadata"]) == (
        "pictures",
        "old",
        {"a": 1},
    )
    assert renamed["updated_at"] > made["updated_at"]
    loop.get("/buckets/photos", status=404)
    cleared = loop.patch("/buckets/pictures", {"description": None, "metadata": {"b": 2}})
    assert (cleared["description"], cleared["metadata"]) == (None, {"b": 2})
    put = loop.send("PUT", path, {"description": "new"})
    assert (put["bucket_name"], put["description"]) == ("pictures", "new")
    loop.bucket(bucket_name="taken")
    assert "exists" in loop.refused(409, "PATCH", path, {"bucket_name": "taken"})


def test_a_schema_only_grows(loop: Loop) -> None:
    path = f"/buckets/{loop.bucket({'note': {'type': 'text', 'required': True}})}"
    grown = {"properties": {"note": {"type": "text", "required": True}, "year": {"type": "integer"}}}
    assert loop.patch(path, {"bucket_schema": grown})["bucket_schema"] == grown
    assert "keeps its own" in loop.refused(400, "PATCH", path, {"bucket_schema": {"properties": {}}})
    narrowed = {"properties": {**grown["properties"], "year": {"type": "string"}}}
    assert "integer" in loop.refused(400, "PATCH", path, {"bucket_schema": narrowed})
    nested = {"properties": {**grown["properties"], "tags": {"type": "array", "items": {"type": "string"}}}}
    loop.patch(path, {"bucket_schema": nested})
    inner = {**nested["properties"], "tags": {"type": "array", "items": {"type": "integer"}}}
    assert "items" in loop.refused(400, "PATCH", path, {"bucket_schema": {"properties": inner}})
    grown = nested
    demanding = {"properties": {**grown["properties"], "page": {"type": "integer", "required": True}}}
    assert "cannot be required" in loop.refused(400, "PATCH", path, {"bucket_schema": demanding})


@pytest.mark.operation("DELETE", "/v1/buckets/{bucket_identifier}", 200)
def test_delete_takes_objects_along_and_frees_the_name(loop: Loop) -> None:
    bucket_id = loop.bucket(bucket_name="photos")
    object_id = loop.note(bucket_id, "one")
    batch = loop.post(f"/buckets/{bucket_id}/batches", {"object_ids": [object_id]})
    gone = loop.delete("/buckets/photos")
    assert (gone["bucket_id"], gone["object_count"], gone["status"]) == (bucket_id, 1, "COMPLETED")
    assert loop.get(f"/tasks/{gone['task_id']}")["task_type"] == "api_buckets_delete"
    for path in ("", f"/objects/{object_id}", f"/batches/{batch['batch_id']}"):
        loop.get(f"/buckets/{bucket_id}{path}", status=404)
    loop.delete("/buckets/photos", status=404)
    assert loop.bucket(bucket_name="photos") != bucket_id


def test_a_bucket_that_is_read_stays(loop: Loop) -> None:
    bucket_id = loop.bucket()
    collection_id = loop.collection(bucket_id, collection_name="readers of it")
    said = loop.refused(409, "DELETE", f"/buckets/{bucket_id}")
    assert "readers of it" in said
    assert "DELETE /v1/collections" in said
    loop.delete(f"/collections/{collection_id}")
    loop.delete(f"/buckets/{bucket_id}")


def test_another_namespace_sees_nothing(
    loop: Loop, namespace: Callable[..., Any], client: httpx.Client
) -> None:
    bucket_id = loop.bucket(bucket_name="mine")
    other = Loop(client, namespace())
    for identifier in (bucket_id, "mine", "absent"):
        for method in ("GET", "DELETE"):
            body = other.send(method, f"/buckets/{identifier}", status=404)
            assert body["error"]["details"] == {"resource": "bucket", "id": identifier}
    assert other.post("/buckets/list")["results"] == []
    answer = client.get(f"/v1/buckets/{bucket_id}")
    assert answer.status_code == 400
    assert "X-Namespace" in answer.json()["error"]["message"]
