"""Documents: their shape, exact filters, both paginations, and deletes that nobody finds any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop, encoded
from tests.http.processes import Server
from tests.media import RED, picture

ROWS = [
    {"category": "Lamps", "year": 2001, "tags": ["brass", "green"]},
    {"category": "chairs", "year": 1999, "tags": []},
    {"category": "lamps", "year": 2005, "tags": ["steel"]},
    {"category": "Tables", "tags": ["oak", "brass"]},
]

OFFERED = {
    "feature_extractors": [PASSTHROUGH, TEXT],
    "payload_indexes": [
        {"field_name": "metadata.category", "type": "keyword"},
        {"field_name": "year", "type": "integer"},
    ],
}


@pytest.fixture(scope="module")
def client(either_server: Server) -> Iterator[httpx.Client]:
    with either_server.client() as client:
        yield client


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(**OFFERED))


class Shop:
    """A collection of the four rows, with the objects in their order."""

    def __init__(self, loop: Loop, extractor: dict[str, Any] | None = None) -> None:
        self.loop = loop
        self.bucket = loop.bucket({"note": {"type": "text"}, "year": {"type": "integer"}})
        passed = ["metadata.category", "year", "metadata.tags"]
        self.collection = loop.collection(
            self.bucket, {**(extractor or PASSTHROUGH), "field_passthrough": passed}
        )
        self.object_ids = [
            loop.note(
                self.bucket,
                f"row {number}",
                metadata={"category": row["category"], "tags": row["tags"]},
                **({"year": row["year"]} if "year" in row else {}),
            )
            for number, row in enumerate(ROWS)
        ]
        assert loop.run(self.bucket, self.object_ids)["status"] == "COMPLETED"

    def rows(self, **body: Any) -> list[int]:
        """Return the numbers of the rows that a list request finds."""
        found = self.loop.documents(self.collection, **body)
        return [self.object_ids.index(item["root_object_id"]) for item in found]

    def found(self, filters: Any) -> list[int]:
        return sorted(self.rows(filters=filters))


@pytest.fixture
def shop(loop: Loop) -> Shop:
    return Shop(loop)


@pytest.fixture(scope="module")
def still_shop(client: httpx.Client) -> Iterator[Shop]:
    """A shop in which nothing is changed, for all tests that only read."""
    made = client.post("/v1/namespaces", json={"namespace_name": "still shop", **OFFERED})
    shop = Shop(Loop(client, made.raise_for_status().json()))
    yield shop
    client.delete(f"/v1/namespaces/{shop.loop.namespace_id}")


@pytest.mark.operation("GET", "/v1/collections/{collection_identifier}/documents/{document_id}", 200)
@pytest.mark.operation("GET", "/v1/documents/{document_id}", 200)
def test_a_document_in_the_shape_of_the_api(loop: Loop) -> None:
    shop = Shop(loop, TEXT)
    document = next(
        item for item in loop.documents(shop.collection) if item["root_object_id"] == shop.object_ids[0]
    )
    assert (document["text"], document["category"], document["year"]) == ("row 0", "Lamps", 2001)
    assert document["metadata"] == {"category": "Lamps", "tags": ["brass", "green"]}
    assert document["collection_id"] == shop.collection
    assert document["document_id"].startswith("doc_")
    assert document["source_object_id"] == shop.object_ids[0]
    internal = document["_internal"]
    assert internal["namespace_id"] == loop.namespace_id
    lineage = internal["lineage"]
    assert (lineage["root_object_id"], lineage["root_bucket_id"]) == (shop.object_ids[0], shop.bucket)
    assert (lineage["source_type"], lineage["source_object_id"]) == ("bucket", shop.object_ids[0])
    assert lineage["path"] == f"{shop.bucket}/{shop.collection}"
    assert [step["document_id"] for step in lineage["chain"]] == [document["document_id"]]
    assert internal["created_at"].endswith("Z")
    text = loop.client.post(
        f"/v1/collections/{shop.collection}/documents/list", json={}, headers=loop.headers
    ).text
    for hidden in ("internal_id", "int_", '"_s"', "vectors"):
        assert hidden not in text
    path = f"/collections/{shop.collection}/documents/{document['document_id']}"
    assert loop.get(path) == loop.get(f"/documents/{document['document_id']}") == document


def test_the_organizations_secret_id_cannot_be_asked_out(loop: Loop, shop: Shop) -> None:
    """A cursor held what a list was sorted by, and a filter told letter by letter what it begins with."""
    path = f"/v1/collections/{shop.collection}/documents/list"
    refused: list[dict[str, Any]] = [
        {"sort": {"field": "internal_id", "direction": "asc"}, "limit": 1},
        {"filters": {"field": "internal_id", "operator": "starts_with", "value": "int_"}},
        {"filters": {"NOT": [{"internal_id": "int_0"}]}},
    ]
    for body in refused:
        answer = loop.client.post(path, json=body, headers=loop.headers)
        assert answer.status_code == 422, body
        assert "is not a field that" in answer.text


def test_vectors_only_when_asked(loop: Loop) -> None:
    shop = Shop(loop, TEXT)
    name = "text_extractor_v1_embedding"
    document_id = loop.documents(shop.collection)[0]["document_id"]
    path = f"/collections/{shop.collection}/documents/{document_id}"
    assert len(loop.get(f"{path}?return_vectors=true")["vectors"][name]) == 384
    named = loop.get(f"{path}?return_vector_names=true")
    assert named["_vectors"] == [name]
    assert "vectors" not in named
    listed = loop.documents(shop.collection, return_vectors=True)
    assert {len(item["vectors"][name]) for item in listed} == {384}
    assert loop.documents(shop.collection, return_vector_names=["other"])[0]["vectors"] == {}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ({}, [0, 1, 2, 3]),
        ({"field": "metadata.category", "operator": "eq", "value": "LAMPS"}, [0, 2]),
        ({"field": "category", "value": "lamps"}, [0, 2]),
        ({"category": "lamps"}, [0, 2]),
        ({"field": "metadata.category", "operator": "eq", "value": "lamps", "case_sensitive": True}, [2]),
        ({"field": "category", "operator": "in", "value": ["chairs", "tables"]}, [1, 3]),
        ({"field": "year", "operator": "gte", "value": 2001}, [0, 2]),
        ({"field": "year", "operator": "exists", "value": False}, [3]),
        ({"field": "year", "operator": "ne", "value": 1999}, [0, 2, 3]),
        ({"field": "metadata.tags", "operator": "contains", "value": "brass"}, [0, 3]),
        ({"field": "category", "operator": "starts_with", "value": "ta"}, [3]),
        ({"field": "category", "operator": "regex", "value": "^(lamp|table)s$"}, [0, 2, 3]),
        ({"OR": [{"year": 1999}, {"field": "year", "operator": "is_null"}]}, [1, 3]),
        ({"AND": [{"category": "lamps"}, {"NOT": [{"year": 2005}]}]}, [0]),
        ({"case_sensitive": False, "category": "lamps", "year": 2005}, [2]),
    ],
)
def test_filters_are_exact_with_and_without_an_index(
    still_shop: Shop, filters: Any, expected: list[int]
) -> None:
    assert still_shop.found(filters) == expected


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"field": "a", "operator": "like", "value": 1}, "like"),
        ({"field": "", "operator": "eq", "value": 1}, "field"),
        ({"AND": {"a": 1}}, "AND"),
        ({"field": "a", "operator": "regex", "value": "("}, "regex"),
    ],
)
def test_a_filter_that_is_no_filter_is_named(still_shop: Shop, filters: Any, said: str) -> None:
    path = f"/collections/{still_shop.collection}/documents/list"
    assert said in still_shop.loop.refused(422, "POST", path, {"filters": filters})


def test_sorts_put_missing_values_last(still_shop: Shop) -> None:
    assert still_shop.rows(sort={"field": "year", "direction": "asc"}) == [1, 0, 2, 3]
    assert still_shop.rows(sort={"field": "year", "direction": "desc"}) == [2, 0, 1, 3]


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/documents/list", 200)
@pytest.mark.operation("GET", "/v1/collections/{collection_identifier}/documents", 200)
def test_both_paginations_show_each_document_once(shop: Shop) -> None:
    loop, path = shop.loop, f"/collections/{shop.collection}/documents/list"
    for body in ({}, {"sort": {"field": "year"}}, {"filters": {"field": "category", "operator": "exists"}}):
        by_offset = [
            item["document_id"]
            for offset in range(4)
            for item in loop.post(path, {**body, "limit": 1, "offset": offset})["results"]
        ]
        assert len(set(by_offset)) == 4
        seen: list[str] = []
        cursor = None
        while True:
            page = loop.post(path, {**body, "limit": 3, **({"cursor": cursor} if cursor else {})})
            assert page["pagination"]["total"] == page["total_documents"] == 4
            seen += [item["document_id"] for item in page["results"]]
            cursor = page["pagination"]["next_cursor"]
            if cursor is None:
                break
        assert seen == by_offset
    first = loop.post(path, {"limit": 3})
    assert (first["pagination"]["page"], first["pagination"]["total_pages"]) == (1, 2)
    assert len(loop.post(f"{path}?limit=2", {"limit": 3})["results"]) == 2, "the query wins"
    assert len(loop.get(f"/collections/{shop.collection}/documents?limit=2")["results"]) == 2


def test_a_cursor_goes_with_its_filters_and_survives_inserts(shop: Shop) -> None:
    loop, path = shop.loop, f"/collections/{shop.collection}/documents/list"
    first = loop.post(path, {"limit": 2, "filters": {"category": "lamps"}})
    assert first["pagination"]["next_cursor"] is None
    first = loop.post(path, {"limit": 2, "return_vectors": False, "offset": 0})
    cursor = first["pagination"]["next_cursor"]
    other = {"limit": 2, "cursor": cursor, "filters": {"category": "lamps"}}
    assert "another collection, filter or sort" in loop.refused(400, "POST", path, other)
    assert "not one that this server gave out" in loop.refused(400, "POST", path, {"cursor": "forged"})
    added = loop.note(shop.bucket, "row 4", metadata={"category": "new"})
    loop.run(shop.bucket, [added])
    rest = loop.post(f"{path}?limit=10&cursor={cursor}")["results"]
    ids = [item["root_object_id"] for item in [*first["results"], *rest]]
    assert len(ids) == len(set(ids))
    assert set(ids) - {added} == set(shop.object_ids)


def test_select_keeps_what_it_names(still_shop: Shop) -> None:
    body = {"select": ["metadata.category", "year"], "filters": {"year": 2001}}
    (document,) = still_shop.loop.documents(still_shop.collection, **body)
    assert (document["metadata"], document["year"]) == ({"category": "Lamps"}, 2001)
    assert "category" not in document
    assert document["root_object_id"] == still_shop.object_ids[0]
    path = f"/collections/{still_shop.collection}/documents/list"
    for wrong in ("a..b", "", "metadata."):
        said = still_shop.loop.refused(422, "POST", path, {"select": ["year", wrong]})
        assert f"{wrong!r} is not a field" in said


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"search": "LAMP"}, [0, 2]),
        ({"search": "rass"}, [0, 3]),
        ({"search": "HAIR"}, [1]),
        ({"search": "brass", "filters": {"category": "tables"}}, [3]),
        ({"search": "brass", "sort": {"field": "year", "direction": "desc"}}, [0, 3]),
        ({"search": "col_"}, []),
        ({"search": "int_"}, []),
    ],
)
def test_search_looks_into_every_text_of_the_users(
    still_shop: Shop, body: dict[str, Any], expected: list[int]
) -> None:
    assert sorted(still_shop.rows(**body)) == expected


def test_a_list_may_be_asked_for_in_the_query(still_shop: Shop) -> None:
    loop, path = still_shop.loop, f"/collections/{still_shop.collection}/documents"

    def rows(query: str, method: str = "GET", below: str = "", body: Any = None) -> list[int]:
        found = loop.send(method, f"{path}{below}?{query}", body)["results"]
        return [still_shop.object_ids.index(item["root_object_id"]) for item in found]

    assert rows('filters={"category": "lamps"}&sort=year:desc') == [2, 0]
    assert rows('search=brass&sort={"field": "year", "direction": "asc"}') == [0, 3]
    assert rows("sort=year") == [1, 0, 2, 3]
    assert rows("search=brass&sort=year", "POST", "/list", {"search": "steel"}) == [2], "the body wins"
    for query in ("filters={", "sort=year:sideways", "sort={}", "filters=7"):
        loop.refused(422, "GET", f"{path}?{query}")
    first = loop.get(f"{path}?sort=year&limit=3")
    cursor = first["pagination"]["next_cursor"]
    assert rows(f"sort=year&limit=3&cursor={cursor}") == [3]
    assert "another collection" in loop.refused(400, "GET", f"{path}?sort=year:desc&limit=3&cursor={cursor}")


def test_groups_share_a_value_and_are_paged(still_shop: Shop) -> None:
    loop, path = still_shop.loop, f"/collections/{still_shop.collection}/documents/list"

    def groups(**body: Any) -> tuple[list[tuple[Any, list[int]]], Any]:
        answer = loop.post(path, body)
        assert answer["results"] is None
        assert all(len(group["documents"]) == group["count"] for group in answer["groups"])
        numbers = [
            (
                group["group_key"],
                [still_shop.object_ids.index(item["root_object_id"]) for item in group["documents"]],
            )
            for group in answer["groups"]
        ]
        return numbers, answer

    by_tag, answer = groups(group_by="metadata.tags", sort={"field": "year"})
    assert by_tag == [("brass", [0, 3]), ("green", [0]), ("oak", [3]), ("steel", [2]), (None, [1])]
    assert (answer["pagination"]["total"], answer["total_documents"]) == (5, 4)
    assert answer["group_by_field"] == "metadata.tags"
    by_year, _ = groups(group_by={"field": "year"}, filters={"category": "lamps"}, select=["year"])
    assert by_year == [(2001, [0]), (2005, [2])]
    seen: list[Any] = []
    cursor: str | None = None
    while True:
        some, answer = groups(group_by="metadata.tags", limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [key for key, _ in some]
        if (cursor := answer["pagination"]["next_cursor"]) is None:
            break
        assert answer["pagination"]["total_pages"] == 3
    assert seen == ["brass", "green", "oak", "steel", None]
    assert [key for key, _ in groups(group_by="metadata.tags", limit=2, offset=2)[0]] == ["oak", "steel"]
    for refused in ("internal_id", "a..b"):
        assert "is not a field" in loop.refused(422, "POST", path, {"group_by": refused})


def test_files_of_a_document_come_as_signed_links(loop: Loop) -> None:
    bucket = loop.bucket({"photo": {"type": "image"}})
    collection = loop.collection(bucket)
    red = picture(RED)
    made = loop.post(
        f"/buckets/{bucket}/objects",
        {"blobs": [{"property": "photo", "type": "image", "data": encoded(red)}], "note": "a"},
    )
    # What an extractor stores for a file is blob://<key>; here the user's own field says it.
    key = f"{loop.namespace_id}/blobs/{made['blobs'][0]['details']['hash']}"
    foreign = f"ns_0123456789abcdef/blobs/{made['blobs'][0]['details']['hash']}"
    fields = {
        "thumbnail_url": f"blob://{key}",
        "pages": [{"image": f"blob://{key}"}],
        "stolen": f"blob://{foreign}",
        "artifact": f"blob://{loop.namespace_id}/artifacts/x.arrow",
    }
    loop.run(bucket, [loop.object(bucket, fields)])
    (document,) = loop.documents(collection)
    assert httpx.get(document["thumbnail_url"]).content == red
    assert httpx.get(document["pages"][0]["image"]).content == red
    assert document["stolen"] == fields["stolen"], "only the namespace's own files are signed"
    assert document["artifact"] == fields["artifact"]
    blobs = {item["field"]: item for item in document["document_blobs"]}
    assert set(blobs) == {"thumbnail_url", "pages.image"}
    assert (blobs["thumbnail_url"]["role"], blobs["thumbnail_url"]["type"]) == ("thumbnail", "image")
    assert blobs["thumbnail_url"]["presigned_url"] is None
    (document,) = loop.documents(collection, return_url=True)
    urls = {item["presigned_url"] for item in document["document_blobs"]}
    assert all(httpx.get(url).content == red for url in urls)


@pytest.mark.operation("DELETE", "/v1/collections/{collection_identifier}/documents/{document_id}", 200)
def test_a_deleted_document_is_found_nowhere(shop: Shop) -> None:
    loop = shop.loop
    document = loop.documents(shop.collection, filters={"year": 1999})[0]
    path = f"/collections/{shop.collection}/documents/{document['document_id']}"
    assert loop.delete(path)["success"] is True
    assert shop.rows(sort={"field": "year"}) == [0, 2, 3]
    loop.get(path, status=404)
    loop.get(f"/documents/{document['document_id']}", status=404)
    loop.delete(path, status=404)
    assert loop.get(f"/collections/{shop.collection}")["document_count"] == 3
    counted = loop.client.get(f"/v1/namespaces/{loop.namespace_id}").json()["document_count"]
    assert counted == 3
    loop.run(shop.bucket, [shop.object_ids[1]])
    assert shop.found(None) == [0, 1, 2, 3], "processing its object again brings it back"
    assert (
        loop.documents(shop.collection, filters={"year": 1999})[0]["document_id"] == document["document_id"]
    )


@pytest.mark.operation("DELETE", "/v1/collections/{collection_identifier}/documents/batch", 200)
def test_many_are_deleted_by_id_or_by_filter(shop: Shop) -> None:
    loop, path = shop.loop, f"/collections/{shop.collection}/documents/batch"
    ids = [item["document_id"] for item in loop.documents(shop.collection, sort={"field": "year"})]
    answer = loop.delete(path, {"document_ids": [ids[0], "doc_absent", ids[0]]})
    assert (answer["deleted_count"], answer["failed_count"]) == (1, 1)
    assert [item["success"] for item in answer["results"]] == [True, False]
    assert "doc_absent" in answer["results"][1]["error"]
    answer = loop.delete(path, {"filters": {"category": "LAMPS"}})
    assert (answer["deleted_count"], shop.found(None)) == (2, [3])
    assert loop.delete(path, {"filters": {"category": "lamps"}})["deleted_count"] == 0
    for body in ({}, {"document_ids": ["doc_a"], "filters": {"a": 1}}):
        assert "one of the two" in loop.refused(400, "DELETE", path, body)
    for filters in ({}, {"case_sensitive": False}):
        assert "every document" in loop.refused(400, "DELETE", path, {"filters": filters})
    assert "at most 1000" in loop.refused(422, "DELETE", path, {"document_ids": ["doc_a"] * 1001})


def test_documents_belong_to_one_collection_and_one_namespace(
    shop: Shop, namespace: Callable[..., Any], client: httpx.Client
) -> None:
    loop = shop.loop
    neighbour = loop.collection(shop.bucket)
    document_id = loop.documents(shop.collection)[0]["document_id"]
    other = Loop(client, namespace(feature_extractors=[PASSTHROUGH]))
    there = other.collection(other.bucket())
    for method in ("GET", "DELETE"):
        absent = loop.send(method, f"/collections/{neighbour}/documents/{document_id}", status=404)
        assert absent["error"]["details"] == {"resource": "document", "id": document_id}
        other.send(method, f"/collections/{there}/documents/{document_id}", status=404)
    other.get(f"/documents/{document_id}", status=404)
    gone = loop.delete(f"/collections/{neighbour}/documents/batch", {"document_ids": [document_id]})
    assert gone["deleted_count"] == 0
    assert (
        loop.delete(f"/collections/{neighbour}/documents/batch", {"filters": {"year": 1999}})["deleted_count"]
        == 0
    )
    assert shop.found(None) == [0, 1, 2, 3]
