"""Documents that bring their own vectors: durable, findable, exact about what is wrong, and nobody else's."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop
from tests.http.processes import Server

NAME = "text_extractor_v1_embedding"
URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(feature_extractors=[PASSTHROUGH, TEXT]))


@pytest.fixture
def collection(loop: Loop) -> str:
    return loop.collection(loop.bucket(), TEXT)


def vector(number: int) -> list[float]:
    """The unit vector along axis `number`."""
    return [float(n == number) for n in range(384)]


def upsert(loop: Loop, collection: str, documents: list[dict[str, Any]], **named: Any) -> Any:
    body = {"collection_id": collection, "documents": documents}
    return loop.post(f"/namespaces/{loop.namespace_id}/documents/upsert", body, **named)


def retriever(loop: Loop, collection: str) -> str:
    body = {
        "retriever_name": "near",
        "collection_identifiers": [collection],
        "stages": [
            {
                "stage_id": "feature_search",
                "parameters": {"searches": [{"feature_uri": URI, "query": {"vector": "{{INPUT.v}}"}}]},
            }
        ],
        "input_schema": {"v": {"type": "array", "required": True}},
    }
    return str(loop.post("/retrievers", body)["retriever_id"])


def nearest(loop: Loop, retriever_id: str, number: int) -> list[str]:
    found = loop.post(f"/retrievers/{retriever_id}/execute", {"inputs": {"v": vector(number)}, "limit": 500})
    return [item["document_id"] for item in found["documents"]]


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/documents", 200)
def test_one_document_is_found_by_its_vector(loop: Loop, collection: str) -> None:
    made = loop.post(
        f"/collections/{collection}/documents",
        {
            "document_id": "lamp 1",
            "metadata": {"category": "lamps"},
            "colour": "green",
            "vectors": {NAME: vector(3)},
        },
    )
    assert (made["document_id"], made["collection_id"], made["colour"]) == ("lamp 1", collection, "green")
    assert made["metadata"] == {"category": "lamps"}
    read = loop.get(f"/collections/{collection}/documents/lamp 1?return_vectors=true")
    assert read.pop("vectors") == {NAME: vector(3)}
    assert read == made
    assert nearest(loop, retriever(loop, collection), 3) == ["lamp 1"]
    answered = loop.client.post(
        f"/v1/collections/{collection}/documents",
        json={"score": 5, "internal_id": "int_x", "size": 2, "collection_id": collection},
        headers=loop.headers,
    )
    assert answered.json()["document_id"].startswith("doc_") and "score" not in answered.json()
    assert answered.headers["x-ignored-fields"] == "internal_id, score"


def test_a_vector_may_be_named_by_its_feature_or_come_as_base64(loop: Loop, collection: str) -> None:
    text = base64.b64encode(np.array(vector(9), dtype="<f4").tobytes()).decode()
    answer = upsert(
        loop,
        collection,
        [
            {"document_id": "a", "vectors": {URI: vector(7)}},
            {"document_id": "b", "vectors": {URI.rpartition("/")[2]: vector(8)}},
            {"document_id": "c", "vectors": {NAME: text}},
            {"document_id": "d", "vectors": {}, "payload": {"internal_id": "x", "note": "bare"}},
        ],
    )
    assert answer["inserted"] == 4 and answer["document_ids"] == ["a", "b", "c", "d"]
    assert answer["unsearchable_document_ids"] == ["d"]
    assert answer["dropped_payload_fields"] == {"d": ["internal_id"]}
    near = retriever(loop, collection)
    assert [nearest(loop, near, number)[0] for number in (7, 8, 9)] == ["a", "b", "c"]
    feature = {
        "feature_extractor_id": "text_extractor_v1",
        "payload": {"text": "f"},
        "vectors": {NAME: vector(5)},
    }
    made = loop.post(f"/collections/{collection}/documents", {"features": [feature]})
    assert made["text"] == "f"
    assert nearest(loop, near, 5)[0] == made["document_id"]


def test_an_upsert_replaces_as_a_whole_and_is_counted_once(loop: Loop, collection: str) -> None:
    rows = [
        {"document_id": f"row-{n}", "vectors": {NAME: vector(n)}, "payload": {"n": n}} for n in range(250)
    ]
    assert upsert(loop, collection, rows)["inserted"] == 250
    assert upsert(loop, collection, rows[100:])["inserted"] == 150
    upsert(loop, collection, [{"document_id": "row-7", "vectors": {NAME: vector(300)}, "payload": {"m": 1}}])
    counted = loop.get(f"/collections/{collection}")["document_count"]
    assert counted == loop.get(f"/namespaces/{loop.namespace_id}")["document_count"] == 250
    changed = loop.get(f"/collections/{collection}/documents/row-7")
    assert changed["m"] == 1 and "n" not in changed
    assert nearest(loop, retriever(loop, collection), 300)[0] == "row-7"
    gone = loop.delete(f"/collections/{collection}/documents/batch", {"document_ids": ["row-7", "row-8"]})
    assert gone["deleted_count"] == 2
    assert loop.get(f"/collections/{collection}")["document_count"] == 248
    loop.delete(f"/collections/{collection}")
    assert loop.get(f"/namespaces/{loop.namespace_id}")["document_count"] == 0


def test_everything_that_is_wrong_is_named_and_nothing_is_kept(loop: Loop, collection: str) -> None:
    def said(*documents: Any, status: int = 422) -> str:
        body = {"collection_id": collection, "documents": list(documents)}
        return loop.refused(status, "POST", f"/namespaces/{loop.namespace_id}/documents/upsert", body)

    wrong = said(
        {"document_id": "a/b", "vectors": {}},
        {"document_id": "", "vectors": {}},
        {"document_id": "n", "vectors": {NAME: [1.0, 2.0]}},
        {"document_id": "o", "vectors": {NAME: [1e39, *vector(1)[1:]]}},
        {"document_id": "p", "vectors": {NAME: ["1.0", *vector(1)[1:]]}},
        {"document_id": "q", "vectors": {NAME: [True, *vector(1)[1:]]}},
        {"document_id": "r", "vectors": {NAME: {"indices": [1], "values": [0.5]}}},
        {"document_id": "s", "vectors": {"colour": vector(1)}},
        {"document_id": "t", "vectors": {NAME: vector(1), URI: vector(2)}},
        {"document_id": "u", "vectors": {NAME: "no base64 at all"}},
        {"document_id": "fine", "vectors": {NAME: vector(1)}},
    )
    for word in (
        "slash", "1 to 255", "2 numbers; 384", "float32", "list of 384 numbers", "not a vector of",
        f"{NAME} (384)", "once more", "base64",
    ):  # fmt: skip
        assert word in wrong, (word, wrong)
    assert "documents[0]" in said({"document_id": "x"}, {"document_id": "x"})
    assert "String" in said({"document_id": 7}) or "string" in said({"document_id": 7})
    said()
    said(*({"document_id": f"{n}"} for n in range(1001)))
    missing = loop.refused(
        400,
        "POST",
        f"/namespaces/{loop.namespace_id}/documents/upsert",
        {"documents": [{"document_id": "x"}]},
    )
    assert "collection_id" in missing
    assert "another" in loop.refused(
        400, "POST", f"/collections/{collection}/documents", {"collection_id": "another"}
    )
    assert loop.documents(collection) == []
    assert loop.get(f"/collections/{collection}")["document_count"] == 0


def test_ids_are_unique_in_a_namespace_and_extracted_documents_stay(loop: Loop, collection: str) -> None:
    bucket = loop.bucket()
    other = loop.collection(bucket, TEXT)
    assert loop.run(bucket, [loop.note(bucket, "a lamp")])["status"] == "COMPLETED"
    (extracted,) = loop.documents(other)
    upsert(loop, collection, [{"document_id": "mine", "payload": {"n": 1}}])
    for taken in ("mine", extracted["document_id"]):
        answer = upsert(loop, other, [{"document_id": taken}, {"document_id": "new"}], status=409)
        assert taken in answer["error"]["message"]
    assert loop.documents(other) == [extracted]
    given = loop.post(f"/collections/{collection}/documents", {"n": 1})["document_id"]
    upsert(loop, collection, [{"document_id": given, "payload": {"n": 2}}])
    assert loop.get(f"/collections/{collection}/documents/{given}")["n"] == 2


def test_a_large_request_means_what_a_small_one_means(loop: Loop, collection: str) -> None:
    """Vectors of large bodies are read in another way: the same documents, errors and repetitions."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((60, 384))
    whole = [*range(383), 2**53]
    documents = [
        {"document_id": f"d {n}", "vectors": {NAME: row.tolist()}, "payload": {"numbers": whole, "n": n}}
        for n, row in enumerate(rows)
    ]
    documents[7]["document_id"] = 'a "quoted" \\ id, ü'
    documents[8]["vectors"] = {NAME: whole}
    assert len(orjson.dumps(documents)) > 300_000
    body = {"collection_id": collection, "documents": documents, "options": {"idempotency_key": "large"}}
    path = f"/namespaces/{loop.namespace_id}/documents/upsert"
    first = loop.post(path, body)
    assert first["inserted"] == 60
    assert first["document_ids"] == [document["document_id"] for document in documents]
    assert loop.post(path, body) == first
    assert loop.post(path, {**body, "options": None}) == first, "replaced, and counted once"
    listed = loop.post(f"/collections/{collection}/documents/list", {"limit": 100})
    assert listed["pagination"]["total"] == 60
    assert {item["document_id"] for item in listed["results"]} == set(first["document_ids"])
    assert all(item["numbers"] == whole for item in listed["results"])
    by_id = {item["document_id"]: item for item in listed["results"]}
    assert by_id["d 3"]["n"] == 3

    rows[0, 0] += 1
    loop.post(
        path,
        {**body, "documents": [{**documents[0], "vectors": {NAME: rows[0].tolist()}}, *documents[1:]]},
        status=409,
    )
    documents[1]["vectors"] = {NAME: [*rows[1, 1:].tolist(), 1e39]}
    documents[2]["vectors"] = {NAME: rows[2, 1:].tolist()}
    documents[3]["vectors"] = {NAME: [*rows[3, 1:].tolist(), "0.5"]}
    documents[4]["vectors"] = {NAME: [rows[4].tolist()]}
    refused = loop.post(path, {**body, "options": None}, status=422)
    texts = {problem["loc"][2]: problem["msg"] for problem in refused["detail"]}
    assert sorted(texts) == [1, 2, 3, 4]
    assert "beyond float32" in texts[1]
    assert "has 383 numbers; 384 are needed" in texts[2]
    assert "list of 384 numbers" in texts[3] and "list of 384 numbers" in texts[4]


def test_large_requests_at_once_are_all_answered(loop: Loop, collection: str) -> None:
    """They are computed on in turn, and one that is refused, wherever, lets the next one begin."""
    path = f"/namespaces/{loop.namespace_id}/documents/upsert"

    def body(number: int, **fields: Any) -> Any:
        rows = np.random.default_rng(number).standard_normal((40, 384)).tolist()
        documents = [
            {"document_id": f"d{number}-{n}", "vectors": {NAME: row}, **fields} for n, row in enumerate(rows)
        ]
        return {"collection_id": collection, "documents": documents}

    wrong = [
        (400, {**body(1), "collection_id": None}),
        (404, {**body(2), "collection_id": "col_ffffffffffffffff"}),
        (422, {**body(3), "documents": "x" * 300_000}),
        (422, body(4, metadata=7)),
        (422, {**body(5), "deep": [[[0.5] * 300]] * 200 + [json.loads("[" * 70 + "]" * 70)]}),
        *((200, body(number)) for number in range(6, 12)),
    ]
    with ThreadPoolExecutor(len(wrong)) as pool:
        sent = [pool.submit(loop.post, path, large, status=status) for status, large in wrong]
        assert all(future.result(timeout=120) for future in sent)
    assert loop.get(f"/collections/{collection}")["document_count"] == 240


def test_an_idempotency_key_holds_for_one_body(loop: Loop, collection: str) -> None:
    path = f"/namespaces/{loop.namespace_id}/documents/upsert"
    body = {
        "collection_id": collection,
        "documents": [{"document_id": "a", "payload": {"n": 1}}],
        "options": {"idempotency_key": "once-1"},
    }
    first = loop.post(path, body)
    upsert(loop, collection, [{"document_id": "a", "payload": {"n": 2}}])
    assert loop.post(path, body) == first
    assert loop.get(f"/collections/{collection}/documents/a")["n"] == 2
    loop.post(path, {**body, "documents": [{"document_id": "b"}]}, status=409)


def test_answered_means_durable_and_findable_after_a_kill(tmp_path: Path) -> None:
    server = Server.start(tmp_path / "data")
    try:
        with server.client() as client:
            made = client.post(
                "/v1/namespaces", json={"namespace_name": "kept", "feature_extractors": [TEXT]}
            ).json()
            loop = Loop(client, made)
            collection = loop.collection(loop.bucket(), TEXT)
            large = [{"document_id": f"l{n}", "vectors": {NAME: vector(n)}} for n in range(300)]
            upsert(loop, collection, large)
            upsert(loop, collection, [{"document_id": "small", "vectors": {NAME: vector(301)}}])
        server.restart(signal.SIGKILL)
        with server.client() as client:
            loop = Loop(client, made)
            near = retriever(loop, collection)
            assert [nearest(loop, near, n)[0] for n in (0, 299, 301)] == ["l0", "l299", "small"]
            assert loop.get(f"/collections/{collection}")["document_count"] == 301
    finally:
        server.stop()
