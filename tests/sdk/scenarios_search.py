"""Search by words and by meaning, and the place of a hit, with the generated classes; for both releases."""

from __future__ import annotations

from typing import Any

import mixpeek
from mixpeek import models as m
from scenarios_common import media_base64
from scenarios_typed import api, create_bucket, create_collection, create_namespace, ingest, retrieve

PDF_EXTRACTOR = {"feature_extractor_name": "document_graph_extractor", "version": "v1"}
URI = "mixpeek://document_graph_extractor@v1/multilingual_e5_large_instruct_v1"


def search(**options: Any) -> dict[str, Any]:
    query = {"input_mode": "text", "value": "{{INPUT.query}}"}
    return {"feature_uri": URI, "query": query, "top_k": 10, **options}


def stage(*searches: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage_name": "find",
        "stage_type": "filter",
        "config": {
            "stage_id": "feature_search",
            "parameters": {"searches": list(searches), "fusion": "rrf", "final_top_k": 5},
        },
    }


def scenario_pages_by_meaning_and_by_words() -> None:
    namespace = create_namespace(feature_extractors=[PDF_EXTRACTOR]).namespace_id
    bucket_id = create_bucket(namespace, {"paper": {"type": "pdf"}})
    extractor = {**PDF_EXTRACTOR, "input_mappings": {"pdf": "paper"}}
    collection = create_collection(namespace, bucket_id, extractor)
    assert len(collection.vector_indexes) == 2
    features = api(mixpeek.CollectionsApi, namespace=namespace).describe_collection_features(
        collection.collection_id
    )
    assert [item.vector_index.type.value for item in features.features] == ["dense", "sparse"]
    ingest(
        namespace,
        bucket_id,
        [{"blobs": [{"property": "paper", "type": "pdf", "data": media_base64("note.pdf")}]}],
    )
    question = {"query": "valve XK-4471-B"}
    hybrid = stage(search(), search(lexical=True))
    answer = retrieve(namespace, collection.collection_id, [hybrid], question)
    best = answer["documents"][0]
    assert "XK-4471-B" in best["text"]
    assert (best["page_number"], best["object_type"]) == (0, "paragraph")
    assert best["locator"]["kind"] == "page"
    assert len(best["locator"]["bbox"]) == 4
    documents = api(mixpeek.CollectionDocumentsApi, namespace=namespace)
    found = documents.get_document(collection.collection_id, best["document_id"])
    assert type(found) is m.DocumentResponse
    assert found.additional_properties["locator"] == best["locator"]
