"""Taxonomies with the generated classes; the same file for both releases."""

from __future__ import annotations

import json
from typing import Any

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import TEXT_URI, unique
from scenarios_organizations import answered
from scenarios_typed import (
    CONFIGURED,
    TEXT_EXTRACTOR,
    api,
    create_namespace,
    finished,
    refused,
)

TOPICS = {"sound": "Headphones, loudspeakers and microphones.", "light": "Lamps, bulbs and glass shades."}
NOTES = {"sound": "Wireless headphones with noise cancelling.", "light": "A brass lamp with a glass shade."}


class Shop:
    """A namespace with topics and their retriever, and notes that are not processed yet."""

    def __init__(self) -> None:
        self.namespace_id = create_namespace().namespace_id
        self.topics, batch = self.collection(TOPICS, "topic")
        self.process(*batch)
        stage = {
            "stage_name": "near",
            "stage_type": "filter",
            "config": {
                "stage_id": "feature_search",
                "parameters": {"feature_uri": TEXT_URI, "input": {"text": "{{INPUT.q}}"}, "limit": 2},
            },
        }
        request = {
            "retriever_name": unique("near"),
            "collection_identifiers": [self.topics],
            "stages": [stage],
            "input_schema": {"q": {"type": "text", "required": True}},
        }
        made = api(mixpeek.RetrieversApi, namespace=self.namespace_id).create_retriever_with_http_info(
            m.CreateRetrieverRequest.from_dict(request)
        )
        self.retriever = json.loads(made.raw_data)["retriever_id"]
        self.taxonomies = api(mixpeek.TaxonomiesApi, namespace=self.namespace_id)

    def collection(self, texts: dict[str, str], field: str) -> tuple[str, tuple[str, list[str]]]:
        bucket = {
            "bucket_name": unique("bucket"),
            "bucket_schema": {"properties": {"note": {"type": "text"}}},
        }
        buckets = api(mixpeek.BucketsApi, namespace=self.namespace_id)
        bucket_id = buckets.create_bucket(m.BucketCreateRequest.from_dict(bucket)).bucket_id
        passed = [{"source_path": f"metadata.{field}"}]
        extractor = {**TEXT_EXTRACTOR, "field_passthrough": passed}
        collection = {
            "collection_name": unique("collection"),
            "source": {"type": "bucket", "bucket_ids": [bucket_id]},
            "feature_extractor": extractor,
        }
        collections = api(mixpeek.CollectionsApi, namespace=self.namespace_id)
        made = collections.create_collection(m.CreateCollectionRequest.from_dict(collection))
        items = api(mixpeek.BucketObjectsApi, namespace=self.namespace_id)
        ids = []
        for name, text in texts.items():
            blobs = [{"property": "note", "type": "text", "data": text}]
            body = {"blobs": blobs, "metadata": {field: name}}
            created = items.create_object_buckets(bucket_id, m.CreateObjectRequest.from_dict(body))
            ids.append(created.object_id)
        return made.collection_id, (bucket_id, ids)

    def process(self, bucket_id: str, ids: list[str]) -> None:
        batches = api(mixpeek.BucketBatchesApi, namespace=self.namespace_id)
        batch = batches.create_batch_buckets_batches(bucket_id, m.CreateBatchRequest(object_ids=ids))
        task = batches.submit_batch_buckets_batches(
            bucket_id, batch.batch_id, submit_batch_request=m.SubmitBatchRequest()
        )
        assert finished(task.task_id).status == "COMPLETED"

    def config(self, **fields: Any) -> dict[str, Any]:
        return {
            "taxonomy_type": "flat",
            "retriever_id": self.retriever,
            "input_mappings": [{"input_key": "q", "source_type": "payload", "path": "text"}],
            "source_collection": {
                "collection_id": self.topics,
                "enrichment_fields": [{"field_path": "topic", "merge_mode": "replace"}],
            },
            **fields,
        }

    def taxonomy(self, config: dict[str, Any] | None = None) -> Any:
        request = {"taxonomy_name": unique("topics"), "config": self.config() if config is None else config}
        made = self.taxonomies.create_taxonomy_taxonomies(m.CreateTaxonomyRequest.from_dict(request))
        assert type(made) is m.TaxonomyResponse, made
        return made


def scenario_a_taxonomy_and_its_versions() -> None:
    shop = Shop()
    made = shop.taxonomy()
    assert type(made.config.actual_instance) is m.FlatTaxonomyConfigOutput
    assert (made.version, made.ready, made.retriever_id) == (1, True, shop.retriever)
    known = shop.taxonomies.get_taxonomy_taxonomies
    assert answered(m.TaxonomyResponse, known, made.taxonomy_name).taxonomy_id == made.taxonomy_id
    changed = answered(
        m.TaxonomyResponse,
        shop.taxonomies.patch_taxonomy_taxonomies,
        made.taxonomy_id,
        m.PatchTaxonomyRequest(description="…", metadata={"a": 1}),
    )
    assert (changed.description, changed.metadata, changed.version) == ("…", {"a": 1}, 1)
    refused(
        exceptions.BadRequestException,
        shop.taxonomies.patch_taxonomy_taxonomies,
        made.taxonomy_id,
        m.PatchTaxonomyRequest(),
    )
    second = answered(
        m.TaxonomyResponse,
        shop.taxonomies.create_taxonomy_version_taxonomies,
        made.taxonomy_id,
        {"config": shop.config(input_mappings=[{"input_key": "q", "path": "title"}])},
    )
    assert second.version == 2
    listed = answered(
        m.ListTaxonomiesResponse, shop.taxonomies.list_taxonomy_versions_taxonomies, made.taxonomy_id
    )
    assert ([item.version for item in listed.results], listed.total_count) == ([2, 1], 2)
    assert known(made.taxonomy_id, version=1).version == 1
    listed = answered(
        m.ListTaxonomiesResponse,
        shop.taxonomies.list_taxonomies,
        list_taxonomies_request=m.ListTaxonomiesRequest(search=made.taxonomy_name),
    )
    assert [item.taxonomy_id for item in listed.results] == [made.taxonomy_id]
    assert (listed.stats.flat_taxonomies, listed.stats.hierarchical_taxonomies) == (1, 0)
    copy = shop.taxonomies.clone_taxonomy_taxonomies_with_http_info(
        made.taxonomy_id, m.CloneTaxonomyRequest(taxonomy_name=unique("copy"))
    )
    assert copy.status_code == 201
    typed = copy.data or m.CloneTaxonomyResponse.from_dict(json.loads(copy.raw_data))
    assert type(typed) is m.CloneTaxonomyResponse
    assert typed.source_taxonomy_id == made.taxonomy_id
    assert shop.taxonomies.delete_taxonomy_taxonomies(typed.taxonomy.taxonomy_id)["success"] is True
    refused(exceptions.NotFoundException, known, typed.taxonomy.taxonomy_id)


def scenario_a_tree() -> None:
    shop = Shop()
    other, _ = shop.collection({}, "topic")
    made = shop.taxonomy(
        {
            "taxonomy_type": "hierarchical",
            "retriever_id": shop.retriever,
            "input_mappings": [{"input_key": "q", "source_type": "payload", "path": "text"}],
            "hierarchical_nodes": [
                {"collection_id": other, "label": "Everything"},
                {"collection_id": shop.topics, "parent_collection_id": other, "label": "Topics"},
            ],
        }
    )
    config = made.config.actual_instance
    assert type(config) is m.HierarchicalTaxonomyConfigOutput
    assert [node.parent_collection_id for node in config.hierarchical_nodes] == [None, other]
    request = {
        "taxonomy_name": unique("no"),
        "config": {"taxonomy_type": "hierarchical", "inference_strategy": "llm"},
    }
    refused(
        exceptions.BadRequestException,
        shop.taxonomies.create_taxonomy_taxonomies,
        m.CreateTaxonomyRequest.from_dict(request),
    )


def scenario_on_demand_and_in_a_retriever() -> None:
    shop = Shop()
    made = shop.taxonomy()
    payload = {"source_documents": [{"text": text} for text in NOTES.values()], "min_confidence": 0.1}
    done = answered(
        m.JoinResponse,
        shop.taxonomies.execute_taxonomy_taxonomies,
        made.taxonomy_id,
        m.Payload(actual_instance=payload),
    )
    assert (done.stats.processed_docs, done.stats.errors) == (2, 0)
    assert [result["topic"] for result in done.results] == list(NOTES)
    if CONFIGURED:
        assert {match.label for match in done.matches} == set(TOPICS)
    stage = {
        "stage_name": "said",
        "stage_type": "apply",
        "config": {
            "stage_id": "taxonomy_enrich",
            "parameters": {"taxonomy_id": made.taxonomy_id, "top_k": 1, "min_score": 0.1},
        },
    }
    request = {
        "retriever_name": unique("said"),
        "collection_identifiers": [shop.topics],
        "stages": [stage],
        "input_schema": {},
    }
    retrievers = api(mixpeek.RetrieversApi, namespace=shop.namespace_id)
    stored = retrievers.create_retriever_with_http_info(m.CreateRetrieverRequest.from_dict(request))
    retriever_id = json.loads(stored.raw_data)["retriever_id"]
    run = retrievers.execute_retriever_with_http_info(
        retriever_id, m.ExecuteRetrieverRequest.from_dict({"inputs": {}})
    )
    documents = json.loads(run.raw_data)["documents"]
    assert len(documents) == len(TOPICS)
    assert all(len(document["_taxonomies"][0]["assignments"]) == 1 for document in documents)


def scenario_at_work_on_a_collection() -> None:
    shop = Shop()
    made = shop.taxonomy()
    collection_id, batch = shop.collection(NOTES, "about")
    collections = api(mixpeek.CollectionsApi, namespace=shop.namespace_id)
    application = {"taxonomy_id": made.taxonomy_id, "execution_mode": "materialize", "min_confidence": 0.1}
    changed = collections.update_collection(collection_id, {"taxonomy_applications": [application]})
    assert type(changed) is m.CollectionResponse, changed
    assert changed.taxonomy_applications[0].taxonomy_id == made.taxonomy_id
    shop.process(*batch)
    documents = api(mixpeek.CollectionDocumentsApi, namespace=shop.namespace_id)
    listed = documents.list_documents(collection_id, list_documents_request=m.ListDocumentsRequest())
    found = [document.additional_properties for document in listed.results]
    assert {each["about"]: each["topic"] for each in found} == {name: name for name in NOTES}
    applying = api(mixpeek.CollectionTaxonomiesApi, namespace=shop.namespace_id)
    answer = answered(
        m.ApplyTaxonomyResponse,
        applying.apply_taxonomy_to_collection,
        collection_id,
        m.ApplyTaxonomyRequest(taxonomy_id=made.taxonomy_id),
    )
    assert (answer.status, answer.estimated_documents) == ("PENDING", len(NOTES))
    assert finished(answer.task_id).status == "COMPLETED"
    error = refused(exceptions.ApiException, shop.taxonomies.delete_taxonomy_taxonomies, made.taxonomy_id)
    assert error.status == 409
