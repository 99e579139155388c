"""Keyword search beside vectors: what words find that meaning does not, by every kind of query."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.loop import TEXT, Loop, encoded
from tests.http.processes import Server
from tests.media import RED, picture

DENSE = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
SPARSE = "mixpeek://text_extractor@v1/bm25"
#: More words than the text model reads (256 tokens): what comes behind them it cannot see.
LONG = "The maintenance of pumps and valves is described in the following pages. " * 40
NOTES = {
    "manual": LONG + "Spare part XK-4471-B.",
    "pump": "A pump, a spare part and its number.",
    "valve": "Spare parts for valves are ordered by their number.",
    "soup": "Simmer red lentils with ginger to a thick soup.",
}


class Place(Loop):
    notes: str
    ids: dict[str, str]

    def search(self, *searches: dict[str, Any], **parameters: Any) -> list[Any]:
        return list(self.execute({"searches": list(searches), **parameters})["documents"])

    def execute(self, parameters: dict[str, Any], **named: Any) -> Any:
        stage = {"stage_type": "filter", "stage_id": "feature_search", "parameters": parameters}
        body = {"collection_identifiers": [self.notes], "stages": [stage], "inputs": {}}
        return self.post("/retrievers/execute", body, **named)

    def names(self, *searches: dict[str, Any], **parameters: Any) -> list[str]:
        return [hit["name"] for hit in self.search(*searches, **parameters)]


@pytest.fixture(scope="module")
def place(either_server: Server) -> Iterator[Place]:
    with either_server.client() as client:
        body = {
            "namespace_name": "hybrid",
            "feature_extractors": [
                {"feature_extractor_name": name, "version": "v1"}
                for name in ("text_extractor", "image_extractor")
            ],
        }
        here = Place(client, client.post("/v1/namespaces", json=body).raise_for_status().json())
        bucket = here.bucket()
        extractor = {**TEXT, "input_mappings": {"text": "note"}, "field_passthrough": ["metadata.name"]}
        here.notes = here.collection(bucket, extractor)
        ids = [here.note(bucket, text, metadata={"name": name}) for name, text in NOTES.items()]
        assert here.run(bucket, ids)["status"] == "COMPLETED"
        here.ids = {document["name"]: document["document_id"] for document in here.documents(here.notes)}
        yield here


QUERY = "spare part number XK-4471-B"


@pytest.mark.parametrize("fusion", ["rrf", "dbsf", "weighted", "max"])
def test_a_number_that_the_model_cannot_see_is_found_by_hybrid_search(place: Place, fusion: str) -> None:
    dense = {"feature_uri": DENSE, "query": QUERY}
    lexical = {"feature_uri": DENSE, "query": {"input_mode": "text", "value": "XK-4471-B"}, "lexical": True}
    assert place.names(dense)[0] != "manual"
    assert place.names(lexical) == ["manual"]
    # By `max` the best of either ranking are equals: the smaller id comes first.
    first = 2 if fusion == "max" else 1
    for words in (lexical, {"feature_uri": SPARSE, "query": "XK-4471-B"}):
        assert "manual" in place.names(dense, words, fusion=fusion)[:first]


def test_all_ways_to_name_the_words(place: Place) -> None:
    for search in (
        {"feature_uri": SPARSE, "query": "lentils"},
        {"feature_uri": "mixpeek://text_extractor@1.0.0/bm25", "query": {"text": "lentil"}},
        {"query": {"input_mode": "text", "text": "LENTILS"}, "lexical": True},
        {"feature_uri": SPARSE, "query": {"input_mode": "content", "value": "data:text/plain,lentils"}},
        {
            "feature_uri": SPARSE,
            "query": {"input_mode": "document", "document_ref": {"document_id": place.ids["soup"]}},
        },
    ):
        assert place.names(search)[0] == "soup", search
    short = place.execute({"feature_uri": DENSE, "input": {"text": "lentils"}, "lexical": True, "limit": 3})
    assert [hit["name"] for hit in short["documents"]] == ["soup"]
    assert place.names({"feature_uri": SPARSE, "query": "nowhere"}) == []
    floor = place.search({"feature_uri": SPARSE, "query": "number"})[-1]["score"]
    assert len(place.search({"feature_uri": SPARSE, "query": "number", "min_score": floor + 1e-6})) == 1


def test_a_text_as_content_is_embedded_like_the_text(place: Place) -> None:
    encoded_text = "data:text/plain;base64," + base64.b64encode(b"Ginger soup").decode()
    by_content = place.search(
        {"feature_uri": DENSE, "query": {"input_mode": "content", "value": encoded_text}}
    )
    by_text = place.search({"feature_uri": DENSE, "query": {"input_mode": "text", "value": "Ginger soup"}})
    assert by_content == by_text
    assert by_text[0]["name"] == "soup"


def test_queries_that_are_no_words_are_refused(place: Place) -> None:
    image = f"data:image/png;base64,{encoded(picture(RED))}"
    for query, told in (
        ({"vector": [1.0, 2.0]}, "by vector"),
        ({"content": image}, "by image"),
        ({"text": "  "}, "not blank"),
        ({"content": "data:text/plain;base64,####"}, "base64"),
        ({"content": "http://127.0.0.1:9/a.png"}, "not public"),
        ({"document_id": "doc_" + "0" * 32}, "was not found"),
    ):
        stage = {
            "stage_id": "feature_search",
            "parameters": {"searches": [{"query": query, "lexical": True}]},
        }
        status = 404 if "document_id" in query else 400
        assert told in place.refused(status, "POST", "/retrievers/execute", {"stages": [stage], "inputs": {}})


def test_ready_made_documents_are_found_by_their_text(place: Place) -> None:
    body = {
        "collection_id": place.notes,
        "documents": [
            {"document_id": "ready-1", "payload": {"text": "A brass lantern", "name": "lantern"}},
            {"document_id": "ready-2", "payload": {"name": "nothing"}},
        ],
    }
    answer = place.post(f"/namespaces/{place.namespace_id}/documents/upsert", body)
    assert answer["unsearchable_document_ids"] == ["ready-2"]
    assert place.names({"query": "lanterns", "lexical": True}) == ["lantern"]
    body["documents"] = [{"document_id": "ready-1", "payload": {"text": "A copper lamp", "name": "lamp"}}]
    place.post(f"/namespaces/{place.namespace_id}/documents/upsert", body)
    assert place.names({"query": "lanterns", "lexical": True}) == []
    assert place.names({"query": "copper", "lexical": True}) == ["lamp"]
    place.patch(f"/collections/{place.notes}/documents/ready-1", {"text": "A pewter candlestick"})
    assert place.names({"query": "copper", "lexical": True}) == []
    assert place.names({"query": "pewter", "lexical": True}) == ["lamp"]
    place.delete(f"/collections/{place.notes}/documents/batch", {"document_ids": ["ready-1", "ready-2"]})
    assert place.names({"query": "copper", "lexical": True}) == []


def test_the_words_are_listed_among_the_features(place: Place) -> None:
    features = place.get(f"/collections/{place.notes}/features")["features"]
    assert [(item["feature_uri"], item["vector_index"]["type"]) for item in features] == [
        (DENSE, "dense"),
        (SPARSE, "sparse"),
    ]
    entry = place.get("/collections/features/extractors/text_extractor_v1")
    dense, sparse = (item["index"] for item in entry["required_vector_indexes"])
    assert (dense["type"], sparse["type"], sparse["name"]) == ("dense", "sparse", "bm25")


def test_a_namespace_without_texts_has_no_words(place: Place) -> None:
    body = {
        "namespace_name": "pictures alone",
        "feature_extractors": [{"feature_extractor_name": "image_extractor", "version": "v1"}],
    }
    other = Loop(place.client, place.post("/namespaces", body))
    stage = {"stage_id": "feature_search", "parameters": {"searches": [{"query": "lamp", "lexical": True}]}}
    told = other.refused(400, "POST", "/retrievers/execute", {"stages": [stage], "inputs": {}})
    assert "no keyword index" in told
