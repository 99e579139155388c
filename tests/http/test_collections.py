"""Collections: everything about one is decided, and everything wrong with one is found, when it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop

PROPERTIES = {
    "note": {"type": "text", "required": True},
    "photo": {"type": "image"},
    "year": {"type": "integer"},
    "shop": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(feature_extractors=[PASSTHROUGH, TEXT]))


@pytest.fixture
def bucket(loop: Loop) -> str:
    return loop.bucket(PROPERTIES)


def body(bucket: str, extractor: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "collection_name": "notes",
        "source": {"type": "bucket", "bucket_ids": [bucket]},
        "feature_extractor": {**TEXT, "input_mappings": {"text": "note"}, **(extractor or {})},
        **fields,
    }


@pytest.mark.operation("POST", "/v1/collections", 200)
@pytest.mark.operation("GET", "/v1/collections/{collection_identifier}", 200)
def test_the_output_schema_is_known_at_once_and_stays(loop: Loop, bucket: str) -> None:
    extractor = {
        "field_passthrough": [{"source_path": "metadata.category"}, "year", {"source_path": "$.shop.city"}],
        "parameters": {"model": "multilingual-e5-large-instruct"},
    }
    made = loop.post("/collections", body(bucket, extractor, description="…", metadata={"team": "a"}))
    properties = made["output_schema"]["properties"]
    assert {name: field["type"] for name, field in properties.items()} == {
        "category": "string",
        "year": "integer",
        "city": "string",
        "text": "string",
        "locator": "object",
    }
    assert made["input_schema"]["properties"] == PROPERTIES
    config = made["feature_extractor"]
    assert config["feature_extractor_id"] == "text_extractor_v1"
    assert config["input_mappings"] == {"text": "note"}
    assert config["parameters"]["model"] == "multilingual-e5-large-instruct"
    assert [item["target_path"] for item in config["field_passthrough"]] == ["category", "year", "city"]
    assert (made["source"]["type"], made["source"]["bucket_ids"]) == ("bucket", [bucket])
    vector, words = made["vector_indexes"]
    assert vector["feature_uri"].startswith("mixpeek://text_extractor@v1/")
    assert words["feature_uri"] == "mixpeek://text_extractor@v1/bm25"
    assert (made["document_count"], made["enabled"], made["metadata"]) == (0, True, {"team": "a"})
    loop.patch(f"/buckets/{bucket}", {"schema": {"properties": {**PROPERTIES, "page": {"type": "integer"}}}})
    assert loop.get("/collections/notes") == loop.get(f"/collections/{made['collection_id']}") == made


@pytest.mark.operation("GET", "/v1/collections/{collection_identifier}/features", 200)
@pytest.mark.parametrize("version", ["v1", "1.0.0"])
def test_either_spelling_of_the_version_is_the_namespaces(loop: Loop, bucket: str, version: str) -> None:
    made = loop.post("/collections", body(bucket, {"version": version}))
    assert made["feature_extractor"]["version"] == version
    assert made["vector_indexes"][0]["feature_uri"].startswith("mixpeek://text_extractor@v1/"), (
        "as registered"
    )
    described = loop.get("/collections/notes/features")["features"]
    assert [(item["primary"], item["version"]) for item in described] == [(True, version), (False, version)]
    index = described[0]["vector_index"]
    assert (index["type"], index["dimensions"]) == ("dense", 384)


@pytest.mark.parametrize(
    "mappings",
    [
        {"text": "note"},
        {"text": "$.note"},
        {"text": "payload.note"},
        {"text": "metadata.anything"},
        {"text": "shop.city"},
        {"text": "year"},
        [{"input_key": "text", "source_type": "payload", "path": "note"}],
        [{"input_key": "text", "source_type": "literal", "override": "the same for all"}],
    ],
)
def test_inputs_may_come_from_any_text_or_value(loop: Loop, bucket: str, mappings: Any) -> None:
    made = loop.post("/collections", body(bucket, {"input_mappings": mappings}))
    answered = made["feature_extractor"]["input_mappings"]
    if isinstance(mappings, dict):
        assert answered == mappings
    else:
        assert answered[0].items() >= mappings[0].items()


def test_an_input_without_a_mapping_takes_what_fits(loop: Loop) -> None:
    made = loop.post("/collections", body(loop.bucket(PROPERTIES), {"input_mappings": None}))
    assert made["feature_extractor"]["input_mappings"] == {"text": "note"}
    several = loop.bucket({"a": {"type": "text"}, "b": {"type": "text"}})
    said = loop.refused(422, "POST", "/collections", body(several, {"input_mappings": None}))
    assert "could be any of a, b" in said
    none = loop.bucket({"photo": {"type": "image"}})
    said = loop.refused(422, "POST", "/collections", body(none, {"input_mappings": None}))
    assert "text takes text, string" in said


@pytest.mark.parametrize(
    ("extractor", "status", "said"),
    [
        ({"input_mappings": {"words": "note"}}, 422, "no input 'words'; its inputs are: text"),
        ({"input_mappings": {"text": "photo"}}, 422, "takes text, string, but property 'photo' is image"),
        (
            {"input_mappings": {"text": "nowhere"}},
            422,
            "has no property 'nowhere'; its properties are: note (text)",
        ),
        ({"input_mappings": {"text": "a..b"}}, 422, "is not a path"),
        (
            {"input_mappings": [{"input_key": "text", "source_type": "vector", "path": "x"}]},
            400,
            "not available",
        ),
        ({"input_mappings": [{"input_key": "text", "source_type": "literal"}]}, 422, "needs `override`"),
        (
            {"feature_extractor_name": "no_such_extractor"},
            422,
            "is not known. This namespace has: passthrough",
        ),
        (
            {"feature_extractor_name": "course_content_extractor"},
            422,
            "needs models for source code and for slides",
        ),
        ({"version": "v9"}, 422, "has no version 'v9'; its versions are: v1, 1.0.0"),
        ({"parameters": {"chunk_size": 0}}, 422, "chunk_size must be at least 1, not 0"),
        ({"field_passthrough": [{"source_path": "a..b"}]}, 422, "is not a path"),
        (
            {"field_passthrough": [{"source_path": "a", "target_path": "document_id"}]},
            400,
            "written by the system",
        ),
        (
            {"field_passthrough": [{"source_path": "a", "target_path": "text"}]},
            422,
            "written by the extractor",
        ),
        ({"field_passthrough": ["a.x", "b.x"]}, 422, "both be stored as 'x'"),
    ],
)
def test_what_is_wrong_with_an_extractor_is_named(
    loop: Loop, bucket: str, extractor: Any, status: int, said: str
) -> None:
    assert said in loop.refused(status, "POST", "/collections", body(bucket, extractor))
    assert loop.post("/collections/list")["total_count"] == 0


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"collection_name": "ab"}, 422, "at least 3 characters"),
        ({"collection_name": "c" * 101}, 422, "at most 100 characters"),
        ({"collection_name": "a/b"}, 422, "slash"),
        ({"collection_name": "features"}, 422, "word of the API"),
        (
            {"source": {"type": "taxonomy", "bucket_id": "x"}},
            400,
            "in this version a collection reads buckets",
        ),
        ({"source": {"collection_id": "x"}}, 404, "collection 'x' was not found"),
        ({"source": {"type": "collection"}}, 422, "source.collection_ids is required"),
        (
            {"source": {"type": "collection", "collection_ids": ["notes"], "bucket_id": "x"}},
            422,
            "source names buckets, but its type is collection",
        ),
        (
            {"source": {"collection_ids": ["notes"]}},
            422,
            "Collection 'notes' would read itself",
        ),
        (
            {
                "source": {
                    "type": "bucket",
                    "bucket_ids": ["nowhere"],
                    "source_filters": {"field": "a", "operator": "is"},
                }
            },
            404,
            "bucket 'nowhere' was not found",
        ),
        ({"source": {"type": "bucket"}}, 422, "source.bucket_ids is required"),
        ({"source": {"type": "bucket", "bucket_ids": ["nowhere"]}}, 404, "bucket 'nowhere' was not found"),
        ({"taxonomy_applications": [{"taxonomy_id": "t"}]}, 400, "Taxonomy 't' was not found"),
        ({"cluster_applications": [{"cluster_id": "c"}]}, 400, "not available in this version"),
        ({"schedule": {"trigger_type": "cron"}}, 400, "not available in this version"),
    ],
)
def test_what_is_wrong_with_a_collection_is_named(
    loop: Loop, bucket: str, fields: Any, status: int, said: str
) -> None:
    assert said in loop.refused(status, "POST", "/collections", {**body(bucket), **fields})


def test_an_extractor_that_the_namespace_lacks_is_refused(
    client: httpx.Client, namespace: Callable[..., Any]
) -> None:
    loop = Loop(client, namespace(feature_extractors=[PASSTHROUGH]))
    said = loop.refused(400, "POST", "/collections", body(loop.bucket(PROPERTIES)))
    assert "not one of this namespace's extractors, which are: passthrough_extractor v1" in said


def test_default_targets_give_way_to_fields_that_are_written_already(loop: Loop, bucket: str) -> None:
    extractor = {"field_passthrough": ["metadata.created_at", "metadata.text", "metadata._s"]}
    made = loop.post("/collections", body(bucket, extractor))
    targets = [item["target_path"] for item in made["feature_extractor"]["field_passthrough"]]
    assert targets == ["metadata.created_at", "metadata.text", "metadata._s"]


def test_source_buckets_by_every_spelling(loop: Loop) -> None:
    first, second = loop.bucket(bucket_name="one"), loop.bucket(bucket_name="two")
    made = loop.post("/collections", body("one", source={"type": "bucket", "bucket_id": "one"}))
    assert made["source"]["bucket_ids"] == [first]
    source = {"type": "bucket", "bucket_ids": ["two", first, "one"]}
    made = loop.post("/collections", body("one", collection_name="both", source=source))
    assert made["source"]["bucket_ids"] == [second, first]
    other = loop.bucket({"note": {"type": "image"}})
    source = {"type": "bucket", "bucket_ids": ["one", other]}
    said = loop.refused(422, "POST", "/collections", body("one", collection_name="all", source=source))
    assert "'note' is text in one source bucket and image in" in said


def test_the_passthrough_extractor_carries_everything_unless_told_what(loop: Loop, bucket: str) -> None:
    typed = {**PASSTHROUGH, "include_all_source_fields": False, "input_mappings": None}
    everything = loop.post("/collections", body(bucket, typed))
    assert everything["feature_extractor"]["include_all_source_fields"] is True
    assert set(everything["output_schema"]["properties"]) == set(PROPERTIES)
    chosen = {**PASSTHROUGH, "input_mappings": None, "field_passthrough": ["year"]}
    made = loop.post("/collections", body(bucket, chosen, collection_name="years"))
    assert set(made["output_schema"]["properties"]) == {"year"}


@pytest.mark.operation("GET", "/v1/collections", 200)
@pytest.mark.operation("POST", "/v1/collections/list", 200)
@pytest.mark.operation("PATCH", "/v1/collections/{collection_identifier}", 200)
def test_names_lists_and_changes(loop: Loop, bucket: str) -> None:
    made = loop.post("/collections", body(bucket))
    assert made["collection_id"] in loop.refused(409, "POST", "/collections", body(bucket))
    loop.post("/collections", body(bucket, collection_name="more notes"))
    names = [item["collection_name"] for item in loop.post("/collections/list")["results"]]
    assert names == ["notes", "more notes"]
    found = loop.post("/collections/list", {"search": "MORE", "sort": {"field": "collection_name"}})
    assert [item["collection_name"] for item in found["results"]] == ["more notes"]
    assert loop.get("/collections?limit=1")["pagination"]["total_pages"] == 2
    path = f"/collections/{made['collection_id']}"
    assert loop.patch(path, {}) == made
    changed = loop.patch(path, {"collection_name": "renamed", "enabled": False, "metadata": {"a": 1}})
    assert (changed["collection_name"], changed["enabled"], changed["metadata"]) == (
        "renamed",
        False,
        {"a": 1},
    )
    assert "fixed when it is created" in loop.refused(400, "PATCH", path, {"feature_extractor": TEXT})
    assert "not available" in loop.refused(
        400, "PATCH", path, {"cluster_applications": [{"cluster_id": "c"}]}
    )
    body_with_more = {"description": "…", "no_such_field": 1, "schedule": None}
    answer = loop.client.patch(f"/v1{path}", json=body_with_more, headers=loop.headers)
    assert (answer.status_code, answer.json()["description"]) == (200, "…")
    assert answer.headers["x-ignored-fields"].split(", ") == ["no_such_field", "schedule"]
    loop.get("/collections/notes", status=404)


@pytest.mark.operation("DELETE", "/v1/collections/{collection_identifier}", 200)
def test_delete_removes_the_documents_and_frees_the_name(loop: Loop) -> None:
    bucket = loop.bucket()
    collection, other = loop.collection(bucket, collection_name="notes"), loop.collection(bucket)
    object_ids = [loop.note(bucket, text) for text in "abc"]
    assert loop.run(bucket, object_ids)["status"] == "COMPLETED"
    document = loop.documents(collection)[0]
    assert loop.get(f"/collections/{collection}")["document_count"] == 3
    assert "3 document(s)" in loop.delete("/collections/notes")["message"]
    loop.get(f"/collections/{collection}", status=404)
    loop.get(f"/documents/{document['document_id']}", status=404)
    loop.post(f"/collections/{collection}/documents/list", status=404)
    assert len(loop.documents(other)) == 3, "another collection's documents stay"
    again = loop.collection(bucket, collection_name="notes")
    assert loop.documents(again) == [], "a collection of the same name never sees old documents"


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/trigger", 202)
def test_trigger_processes_everything_in_the_buckets(loop: Loop) -> None:
    bucket = loop.bucket()
    collection, idle = loop.collection(bucket), loop.collection(bucket)
    assert "no objects" in loop.refused(400, "POST", f"/collections/{collection}/trigger")
    made = {loop.note(bucket, text) for text in "abc"}
    started = loop.post(f"/collections/{collection}/trigger", status=202)
    assert (started["collection_id"], started["object_count"], started["total_tiers"]) == (collection, 3, 1)
    assert loop.wait(started["task_id"])["status"] == "COMPLETED"
    assert {item["root_object_id"] for item in loop.documents(collection)} == made
    assert loop.documents(idle) == []


def test_another_namespace_sees_nothing(loop: Loop, bucket: str, namespace: Callable[..., Any]) -> None:
    made = loop.post("/collections", body(bucket))
    other = Loop(loop.client, namespace(feature_extractors=[TEXT]))
    for identifier in (made["collection_id"], "notes"):
        for method, path in (
            ("GET", ""),
            ("PATCH", ""),
            ("DELETE", ""),
            ("GET", "/features"),
            ("POST", "/trigger"),
            ("POST", "/documents/list"),
        ):
            answer = other.send(method, f"/collections/{identifier}{path}", {}, status=404)
            assert answer["error"]["details"] == {"resource": "collection", "id": identifier}
    said = other.refused(404, "POST", "/collections", body(bucket))
    assert bucket in said


@pytest.mark.operation("GET", "/v1/collections/features/extractors", 200)
@pytest.mark.operation("GET", "/v1/collections/features/extractors/{feature_extractor_id}", 200)
def test_the_catalogue_describes_each_extractor_that_it_lists(loop: Loop) -> None:
    listed = loop.get("/collections/features/extractors")
    assert {item["feature_extractor_name"] for item in listed} >= {"passthrough_extractor", "text_extractor"}
    for item in listed:
        one = loop.get(f"/collections/features/extractors/{item['feature_extractor_id']}")
        assert one == item
    loop.get("/collections/features/extractors/no_such_extractor_v1", status=404)
