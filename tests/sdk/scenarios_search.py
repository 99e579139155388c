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


def scenario_rows_of_a_sheet() -> None:
    namespace = create_namespace(feature_extractors=[PDF_EXTRACTOR]).namespace_id
    bucket_id = create_bucket(namespace, {"stock": {"type": "excel"}})
    collection = create_collection(
        namespace, bucket_id, {**PDF_EXTRACTOR, "input_mappings": {"excel": "stock"}}
    )
    blob = {"property": "stock", "type": "excel", "data": media_base64("parts.xlsx")}
    ingest(namespace, bucket_id, [{"blobs": [blob]}])
    answer = retrieve(
        namespace, collection.collection_id, [stage(search())], {"query": "price of the fresnel prism"}
    )
    best = answer["documents"][0]
    assert best["cells"][0] == "Fresnel prism", best
    assert best["locator"]["cells"] == "A2:C2"


def scenario_faces_and_sites_take_the_clients_own_parameters() -> None:
    """Every default that the generated classes send is accepted and echoed."""
    extractors = [
        {"feature_extractor_name": name, "version": "v1"}
        for name in ("face_identity_extractor", "web_scraper", "sentiment_classifier")
    ]
    faces, scraper, sentiment = extractors
    for extractor, parameters in (
        (faces, m.FaceIdentityExtractorParams(detection_threshold=0.6).to_dict()),
        (scraper, m.WebScraperExtractorParams(max_depth=1).to_dict()),
        (sentiment, {"return_all_scores": True, "batch_size": 32}),
    ):
        namespace = create_namespace(feature_extractors=[extractor]).namespace_id
        bucket_id = create_bucket(namespace, {"photo": {"type": "image"}, "address": {"type": "string"}})
        create_collection(namespace, bucket_id, {**extractor, "parameters": parameters})
    catalogue = api(mixpeek.FeatureExtractorsApi, key=None)
    face = catalogue.get_feature_extractor_by("face_identity_extractor_v1")
    (vector,) = face.required_vector_indexes
    index = vector.index.actual_instance
    assert (index.dimensions, index.inference_name) == (512, "face_identity_arcface_r100_v1")
    assert face.default_parameters["detection_model"] == "scrfd_2.5g"
    site = catalogue.get_feature_extractor_by("web_scraper_v1")
    assert (site.default_parameters["max_depth"], site.default_parameters["max_pages"]) == (2, 50)
