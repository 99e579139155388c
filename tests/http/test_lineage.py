"""Lineage: from a document up to its object, and from an object down to everything that was made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop
from tests.http.processes import Server


@pytest.fixture(scope="module")
def client(either_server: Server) -> Iterator[httpx.Client]:
    with either_server.client() as client:
        yield client


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(feature_extractors=[PASSTHROUGH, TEXT]))


@pytest.mark.operation("GET", "/v1/collections/{collection_identifier}/documents/{document_id}/lineage", 200)
@pytest.mark.operation("GET", "/v1/objects/{object_id}/documents", 200)
@pytest.mark.operation("GET", "/v1/objects/{object_id}/decomposition-tree", 200)
def test_up_from_a_document_and_down_from_an_object(loop: Loop) -> None:
    bucket = loop.bucket()
    whole = loop.collection(bucket)
    parts = loop.collection(bucket, {**TEXT, "parameters": {"split_by": "sentences", "chunk_size": 1}})
    ours, other = loop.note(bucket, "One. Two. Three."), loop.note(bucket, "Else.")
    idle = loop.note(bucket, "Not processed.")
    assert loop.run(bucket, [ours, other])["status"] == "COMPLETED"
    documents = [item for item in loop.documents(parts) if item["root_object_id"] == ours]
    assert len(documents) == 3

    one = documents[0]
    answer = loop.get(f"/collections/{parts}/documents/{one['document_id']}/lineage")
    assert (answer["document_id"], answer["collection_id"]) == (one["document_id"], parts)
    assert (answer["depth"], answer["total_steps"], answer["message"]) == (1, 1, None)
    lineage = answer["lineage"]
    assert (lineage["root_object_id"], lineage["root_bucket_id"]) == (ours, bucket)
    assert (lineage["source_type"], lineage["source_object_id"]) == ("bucket", ours)
    (step,) = lineage["lineage_chain"]
    assert (step["collection_id"], step["document_id"]) == (parts, one["document_id"])
    assert step["feature_extractor_id"] == "text_extractor_v1"

    found = loop.get(f"/objects/{ours}/documents")
    assert found["total"] == len(found["documents"]) == 4
    assert {item["root_object_id"] for item in found["documents"]} == {ours}
    counts = {item["collection_id"]: item["document_count"] for item in found["collections"]}
    assert counts == {whole: 1, parts: 3}
    some = loop.get(f"/objects/{ours}/documents?collection_ids={parts}&limit=2")
    assert (some["total"], len(some["documents"])) == (3, 2)
    rest = loop.get(
        f"/objects/{ours}/documents?collection_ids={parts}&limit=2&cursor={some['pagination']['next_cursor']}"
    )
    ids = {item["document_id"] for item in [*some["documents"], *rest["documents"]]}
    assert ids == {item["document_id"] for item in documents}
    assert rest["pagination"]["next_cursor"] is None

    tree = loop.get(f"/objects/{ours}/decomposition-tree?include_document_ids=true")
    assert (tree["object_id"], tree["bucket_id"]) == (ours, bucket)
    assert (tree["total_documents"], tree["total_collections"], tree["depth"]) == (4, 2, 1)
    nodes = {node["collection_id"]: node for node in tree["children"]}
    assert set(nodes[parts]["document_ids"]) == ids
    assert (nodes[parts]["document_count"], nodes[parts]["tier"], nodes[parts]["children"]) == (3, 0, [])
    without = loop.get(f"/objects/{ours}/decomposition-tree")
    assert {node["document_ids"] for node in without["children"]} == {None}

    empty = loop.get(f"/objects/{idle}/decomposition-tree")
    assert (empty["bucket_id"], empty["children"], empty["total_documents"]) == (bucket, [], 0)
    assert loop.get(f"/objects/{idle}/documents")["documents"] == []


def test_tiers_lead_down_and_up_again_and_what_was_set_by_hand_stays_in_each(loop: Loop) -> None:
    bucket = loop.bucket()
    sentences = {**TEXT, "parameters": {"split_by": "sentences", "chunk_size": 1}}
    first = loop.collection(bucket, sentences)
    words = {**TEXT, "parameters": {"split_by": "words", "chunk_size": 3}, "input_mappings": {"text": "text"}}
    below = {"type": "collection", "collection_id": first}
    second = loop.collection(bucket, words, source=below)
    object_id = loop.note(bucket, "Red lamps. Blue chairs.")
    assert loop.run(bucket, [object_id])["status"] == "COMPLETED"
    upper = {item["text"]: item for item in loop.documents(first)}
    lower = [item for item in loop.documents(second) if "lamps" in item["text"]]
    parent = next(item for text, item in upper.items() if "lamps" in text)
    one = lower[0]
    traced = loop.get(f"/collections/{second}/documents/{one['document_id']}/lineage")
    assert traced["depth"] == 2
    assert traced["lineage"]["source_type"] == "collection"
    assert traced["lineage"]["source_document_id"] == parent["document_id"]
    steps = [(step["collection_id"], step["document_id"]) for step in traced["lineage"]["lineage_chain"]]
    assert steps == [(first, parent["document_id"]), (second, one["document_id"])]
    tree = loop.get(f"/objects/{object_id}/decomposition-tree")
    (top,) = tree["children"]
    (under,) = top["children"]
    assert (tree["depth"], tree["total_collections"]) == (2, 2)
    assert (top["collection_id"], top["document_count"], top["tier"]) == (first, 2, 0)
    assert (under["collection_id"], under["document_count"], under["tier"]) == (second, 2, 1)
    assert loop.get(f"/objects/{object_id}/documents")["total"] == 4

    loop.patch(f"/collections/{first}/documents/{parent['document_id']}", {"mark": "upper"})
    loop.patch(f"/documents/{one['document_id']}", {"mark": "lower"})
    body = {"blobs": [{"property": "note", "type": "text", "data": "Red lamps. Green beds."}]}
    loop.send("PUT", f"/buckets/{bucket}/objects/{object_id}", body)
    assert loop.run(bucket, [object_id])["status"] == "COMPLETED"
    marks = {item["text"]: item.get("mark") for item in [*loop.documents(first), *loop.documents(second)]}
    assert len(marks) >= 2 and "Blue chairs." not in marks
    assert loop.get(f"/documents/{parent['document_id']}")["mark"] == "upper"
    assert loop.get(f"/documents/{one['document_id']}")["mark"] == "lower"
    assert loop.get(f"/namespaces/{loop.namespace_id}")["document_count"] == 4


def test_a_document_that_comes_from_nothing_says_so(loop: Loop) -> None:
    collection = loop.collection(loop.bucket())
    path = f"/collections/{collection}/documents"
    loop.post(path, {"document_id": "alone"})
    loop.post(path, {"document_id": "rooted", "root_object_id": "obj_elsewhere"})
    alone = loop.get(f"{path}/alone/lineage")
    assert (alone["lineage"], alone["depth"], alone["total_steps"]) == (None, 0, 0)
    assert "ready-made" in alone["message"]
    rooted = loop.get(f"{path}/rooted/lineage")
    assert (rooted["lineage"]["root_object_id"], rooted["depth"]) == ("obj_elsewhere", 1)
    assert loop.get("/objects/obj_elsewhere/documents")["total"] == 1


def test_what_is_not_there_is_not_found(loop: Loop) -> None:
    collection = loop.collection(loop.bucket())
    loop.refused(404, "GET", f"/collections/{collection}/documents/absent/lineage")
    loop.refused(404, "GET", "/collections/col_0000000000000000/documents/absent/lineage")
    for path in ("documents", "decomposition-tree"):
        loop.refused(404, "GET", f"/objects/obj_0000000000000000/{path}")
    loop.refused(404, "GET", "/objects/obj_0000000000000000/documents?collection_ids=absent")
