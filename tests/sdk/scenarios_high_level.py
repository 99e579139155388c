"""What a user does with the client's ``Mixpeek(...)`` wrapper; the same file for both releases."""

from __future__ import annotations

from typing import Any

import mixpeek
from mixpeek import Mixpeek
from mixpeek._client.client import MixpeekAPIError
from scenarios_common import (
    HEADPHONES,
    KEY,
    LAMP,
    PAGE_REQUEST,
    QUESTION,
    TEXT_URI,
    URL,
    unique,
    until,
    web_page,
)

NEWER = mixpeek.__version__ != "0.81.1"


def client(namespace: str | None = None, key: str = KEY) -> Any:
    return Mixpeek(key, namespace=namespace, base_url=f"{URL}/v1")


def status_of(call: Any, *arguments: Any, **named: Any) -> int:
    try:
        answer = call(*arguments, **named)
    except MixpeekAPIError as error:
        return error.status
    raise AssertionError(f"The call was answered instead of refused: {answer!r}")


def results(answer: Any) -> list[dict[str, Any]]:
    return answer["results"]


def scenario_namespaces() -> None:
    mp = client()
    name = unique("high")
    page = {key: value for key, value in PAGE_REQUEST.items() if key != "namespace_name"}
    created = mp.namespaces.create(name=name, **page)
    assert created["namespace_name"] == name
    assert created["feature_extractors"][0]["feature_extractor_id"] == "video_extractor_1.0.0"
    assert mp.namespaces.get(created["namespace_id"]) == mp.namespaces.get(name)
    assert any(item["namespace_id"] == created["namespace_id"] for item in results(mp.namespaces.list()))
    deleted = mp.namespaces.delete(name)
    assert deleted["task_id"]
    assert status_of(mp.namespaces.get, created["namespace_id"]) == 404
    if NEWER:
        until(lambda: mp.tasks.get(deleted["task_id"])["status"] == "COMPLETED")


def scenario_errors() -> None:
    assert status_of(client(key="sk_live_wrong").namespaces.list) == 401
    assert status_of(client().namespaces.create, name=unique("high"), feature_extractors=[]) == 422
    assert status_of(client().buckets.list) == 400, "scoped routes need a namespace"
    assert status_of(client("ns_0123456789abcdef").buckets.list) == 404


def scenario_a_search_from_nothing() -> None:
    extractor = {"feature_extractor_name": "text_extractor", "version": "v1"}
    namespace = client().namespaces.create(name=unique("high"), feature_extractors=[extractor])
    mp = client(namespace["namespace_id"])
    bucket = mp.buckets.create(
        name=unique("bucket"), bucket_schema={"properties": {"note": {"type": "text", "required": True}}}
    )
    bucket_id = bucket["bucket_id"]
    assert [item["bucket_id"] for item in results(mp.buckets.list())] == [bucket_id]
    assert mp.buckets.get(bucket_id)["bucket_name"] == bucket["bucket_name"]
    collection = mp.collections.create(
        name=unique("notes"),
        source={"type": "bucket", "bucket_ids": [bucket_id]},
        feature_extractor={
            **extractor,
            "input_mappings": {"text": "note"},
            "field_passthrough": [{"source_path": "metadata.category"}],
        },
    )
    collection_id = collection["collection_id"]
    assert [item["collection_id"] for item in results(mp.collections.list())] == [collection_id]
    assert mp.collections.get(collection_id)["collection_name"] == collection["collection_name"]

    # 0.81.1 sends {"blob": {"data": …}}; 1.3.783 reads the bucket and sends {"blobs": [{…}]}.
    first = mp.buckets.upload(bucket_id, data=HEADPHONES, metadata={"category": "headphones"})
    second = mp.buckets.upload(
        bucket_id, blobs=[{"property": "note", "type": "text", "data": LAMP}], metadata={"category": "lamps"}
    )
    listed = mp.buckets.list_objects(bucket_id)
    assert {item["object_id"] for item in results(listed)} == {first["object_id"], second["object_id"]}

    triggered = mp.collections.trigger(collection_id)
    assert triggered["collection_id"] == collection_id
    assert triggered["task_id"]
    documents = until(
        lambda: (found := results(mp.documents.list(collection_id))) and len(found) == 2 and found
    )
    by_object = {document["root_object_id"]: document for document in documents}
    headphones = by_object[first["object_id"]]
    assert headphones["text"] == HEADPHONES
    assert mp.documents.get(collection_id, headphones["document_id"])["category"] == "headphones"
    lamps = mp.documents.list(
        collection_id, filters={"field": "metadata.category", "operator": "eq", "value": "lamps"}
    )
    assert [item["root_object_id"] for item in results(lamps)] == [second["object_id"]]

    found = mp.search(QUESTION, collection=collection_id)
    assert found["documents"][0]["document_id"] == headphones["document_id"]
    filters = {"field": "metadata.category", "operator": "eq", "value": "lamps"}
    found = mp.search(QUESTION, collection=collection_id, filters=filters)
    assert [item["root_object_id"] for item in found["documents"]] == [second["object_id"]]
    found = mp.search(QUESTION, limit=1)
    assert [item["document_id"] for item in found["documents"]] == [headphones["document_id"]]
    searched = mp.documents.search(collection_ids=[collection_id], query=QUESTION)
    assert results(searched)[0]["document_id"] == headphones["document_id"]

    retriever = mp.retrievers.create(
        name=unique("retriever"),
        collection_ids=[collection_id],
        input_schema={"properties": {"query_text": {"type": "text", "required": True}}},
        stages=[
            {
                "stage_type": "filter",
                "stage_id": "feature_search",
                "parameters": {
                    "feature_uri": TEXT_URI,
                    "input": {"text": "{{INPUT.query_text}}"},
                    "limit": 20,
                },
            }
        ],
    )
    retriever_id = retriever["retriever_id"]
    assert mp.retrievers.get(retriever_id)["retriever_name"] == retriever["retriever_name"]
    assert retriever_id in {item["retriever_id"] for item in results(mp.retrievers.list())}
    executed = mp.retrievers.execute(retriever_id, inputs={"query_text": QUESTION}, limit=1)
    assert [item["document_id"] for item in executed["documents"]] == [headphones["document_id"]]
    assert executed["documents"][0]["score"] > 0

    mp.documents.delete(collection_id, headphones["document_id"])
    assert status_of(mp.documents.get, collection_id, headphones["document_id"]) == 404
    mp.retrievers.delete(retriever_id)
    assert status_of(mp.retrievers.get, retriever_id) == 404
    mp.collections.delete(collection_id)
    assert status_of(mp.collections.get, collection_id) == 404
    mp.buckets.delete(bucket_id)
    assert status_of(mp.buckets.get, bucket_id) == 404
    client().namespaces.delete(namespace["namespace_id"])


def scenario_upload_by_url() -> None:
    """``buckets.upload(url=…)`` and ``index(url)``, which both releases send in forms of their own."""
    extractor = {"feature_extractor_name": "text_extractor", "version": "v1"}
    namespace = client().namespaces.create(name=unique("high"), feature_extractors=[extractor])
    mp = client(namespace["namespace_id"])
    bucket_id = mp.buckets.create(
        name=unique("bucket"), bucket_schema={"properties": {"note": {"type": "text", "required": True}}}
    )["bucket_id"]
    collection_id = mp.collections.create(
        name=unique("notes"),
        source={"type": "bucket", "bucket_ids": [bucket_id]},
        feature_extractor={**extractor, "input_mappings": {"text": "note"}},
    )["collection_id"]
    with web_page(LAMP.encode()) as url:
        first = mp.buckets.upload(bucket_id, url=url, metadata={"n": 1})
        second = mp.index(url, metadata={"n": 2})
        mp.collections.trigger(collection_id)
        documents = until(
            lambda: (found := results(mp.documents.list(collection_id))) and len(found) == 2 and found
        )
    assert {document["root_object_id"] for document in documents} == {first["object_id"], second["object_id"]}
    assert {document["text"] for document in documents} == {LAMP}
    assert status_of(mp.buckets.upload, bucket_id, url="http://127.0.0.1/") == 400
    client().namespaces.delete(namespace["namespace_id"])
