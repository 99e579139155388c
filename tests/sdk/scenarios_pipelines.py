"""Collections that feed each other and their batches, with the generated classes and the wrapper; for both releases."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import mixpeek
from mixpeek import Mixpeek, exceptions
from mixpeek import models as m
from scenarios_common import HEADPHONES, KEY, LAMP, URL, unique
from scenarios_typed import (
    CONFIGURED,
    TEXT_EXTRACTOR,
    api,
    create_bucket,
    create_namespace,
    finished,
    refused,
)

PASSTHROUGH = {"feature_extractor_name": "passthrough_extractor", "version": "v1"}
SENTENCES = {"split_by": "sentences", "chunk_size": 1}


def made(namespace: str, source: dict[str, Any], extractor: dict[str, Any]) -> Any:
    request = {"collection_name": unique("tier"), "source": source, "feature_extractor": extractor}
    collections = api(mixpeek.CollectionsApi, namespace=namespace)
    created = collections.create_collection(m.CreateCollectionRequest.from_dict(request))
    assert type(created) is m.CollectionResponse, created
    return created


def pipeline() -> tuple[str, str, list[Any], list[str]]:
    """Return namespace, bucket, three collections that feed each other, and two objects."""
    namespace = create_namespace(feature_extractors=[TEXT_EXTRACTOR, PASSTHROUGH]).namespace_id
    bucket_id = create_bucket(namespace, {"note": {"type": "text", "required": True}})
    first = made(
        namespace,
        {"type": "bucket", "bucket_ids": [bucket_id]},
        {**TEXT_EXTRACTOR, "input_mappings": {"text": "note"}, "parameters": SENTENCES},
    )
    second = made(
        namespace,
        {"type": "collection", "collection_ids": [first.collection_id]},
        {**PASSTHROUGH, "include_all_source_fields": True},
    )
    filters = {"AND": [{"field": "text", "operator": "contains", "value": "lamp"}]}
    source = {
        "type": "collection",
        "collection_id": second.collection_id,
        "source_filters": {"filters": filters},
    }
    third = made(namespace, source, {**TEXT_EXTRACTOR, "input_mappings": {"text": "text"}})
    objects = api(mixpeek.BucketObjectsApi, namespace=namespace)
    ids = [
        objects.create_object_buckets(
            bucket_id,
            m.CreateObjectRequest.from_dict({"blobs": [{"property": "note", "type": "text", "data": text}]}),
        ).object_id
        for text in (HEADPHONES, LAMP)
    ]
    return namespace, bucket_id, [first, second, third], ids


def scenario_three_tiers() -> None:
    namespace, bucket_id, (first, second, third), ids = pipeline()
    assert (second.source.type, second.source.collection_ids) == ("collection", [first.collection_id])
    assert second.source.bucket_ids is None
    assert third.source.source_filters.filters.var_and
    assert third.input_schema.properties["text"].type == "string"
    collections = api(mixpeek.CollectionsApi, namespace=namespace)
    batches = api(mixpeek.BucketBatchesApi, namespace=namespace)
    batch = batches.create_batch_buckets_batches(bucket_id, m.CreateBatchRequest(object_ids=ids))
    assert type(batch) is m.BatchModel, batch
    dag = [[first.collection_id], [second.collection_id], [third.collection_id]]
    assert (batch.status, batch.dag_tiers, batch.total_tiers) == ("DRAFT", dag, 3)
    assert batch.metadata is not None
    task = batches.submit_batch_buckets_batches(bucket_id, batch.batch_id)
    assert type(task) is m.TaskResponse
    assert finished(task.task_id).status == "COMPLETED"
    batch = batches.get_batch_buckets_batches(bucket_id, batch.batch_id)
    assert (batch.status, batch.current_tier, batch.type) == ("COMPLETED", 2, "BUCKET")
    if CONFIGURED:
        assert isinstance(batch.max_node_death_resubmits, int)
        assert isinstance(batch.max_deploy_resubmits, int)
    tiers = batch.tier_tasks
    assert all(type(tier) is m.TierTaskInfo for tier in tiers)
    assert [(t.tier_num, t.source_type, t.status) for t in tiers] == [
        (0, "bucket", "COMPLETED"),
        (1, "collection", "COMPLETED"),
        (2, "collection", "COMPLETED"),
    ]
    assert [t.source_collection_ids for t in tiers] == [None, dag[0], dag[1]]
    assert all(t.documents_written for t in tiers[:2])
    assert all(finished(tier.task_id).status == "COMPLETED" for tier in tiers)
    error = refused(exceptions.ApiException, collections.delete_collection, first.collection_id)
    assert error.status == 409

    again = collections.trigger_collection_with_http_info(
        second.collection_id,
        trigger_collection_request=m.TriggerCollectionRequest(include_collections=[first.collection_name]),
    )
    assert again.status_code == 202
    assert type(again.data) is m.TriggerCollectionResponse
    assert (again.data.collection_id, again.data.total_tiers) == (second.collection_id, 2)
    assert again.data.source_collection_ids == [first.collection_id]
    assert finished(again.data.task_id).status == "COMPLETED"
    triggered = batches.get_batch_buckets_batches(bucket_id, again.data.batch_id)
    assert (triggered.type, triggered.object_ids) == ("COLLECTION", [])


def scenario_clone_schema_and_changes() -> None:
    namespace, _, (first, second, _), _ = pipeline()
    collections = api(mixpeek.CollectionsApi, namespace=namespace)
    request = m.CloneCollectionRequest.from_dict({"collection_name": unique("clone"), "metadata": {"a": 1}})
    answer = collections.clone_collection_with_http_info(second.collection_id, request)
    assert answer.status_code == 201
    # The newer client declares 200 here, and decodes no 201.
    typed = m.CloneCollectionResponse.from_dict(json.loads(answer.raw_data)) if CONFIGURED else answer.data
    assert type(typed) is m.CloneCollectionResponse
    assert (typed.source_collection_id, typed.collection.metadata) == (second.collection_id, {"a": 1})
    assert typed.collection.collection_id != second.collection_id
    assert typed.collection.output_schema == second.output_schema

    schema = api(mixpeek.CollectionSchemaApi, namespace=namespace)
    synced = schema.sync_collection_schema(first.collection_id).actual_instance
    assert type(synced) is m.SchemaSyncResponse, synced
    assert (synced.fields_added, synced.schema_version) == ([], 1)
    skipped = schema.sync_collection_schema(first.collection_id).actual_instance
    assert type(skipped) is m.SchemaSyncSkippedResponse, skipped
    forced = schema.sync_collection_schema(
        first.collection_id, schema_sync_request=m.SchemaSyncRequest(force=True, sample_size=5)
    )
    assert type(forced.actual_instance) is m.SchemaSyncResponse

    changed = collections.update_collection(first.collection_id, {"description": "…", "enabled": False})
    assert type(changed) is m.CollectionResponse
    assert (changed.description, changed.enabled) == ("…", False)
    refused(
        exceptions.BadRequestException, collections.update_collection, first.collection_id, {"source": {}}
    )
    features = collections.describe_collection_features(first.collection_id)
    assert features.features[0].feature_extractor_name == "text_extractor"


def scenario_exports() -> None:
    namespace, _, (first, _, _), _ = pipeline()
    collections = api(mixpeek.CollectionsApi, namespace=namespace)
    started = collections.trigger_collection(first.collection_id)
    assert finished(started.task_id).status == "COMPLETED"
    request = m.CollectionExportRequest(format="json", include_vectors=True, select_fields=["text"])
    answer = collections.export_collection(first.collection_id, collection_export_request=request)
    assert type(answer) is m.CollectionExportResponse, answer
    with urllib.request.urlopen(answer.download_url) as file:
        lines = file.read().splitlines()
    assert answer.document_count == len(lines) >= 2
    assert all(json.loads(line)["text"] for line in lines)
    with urllib.request.urlopen(answer.vectors_download_url) as file:
        assert len(json.loads(file.readline())["text_extractor_v1_embedding"]) == 384
    whole = collections.export_collection(first.collection_id)
    assert (whole.format, whole.document_count) == ("parquet", len(lines))


def scenario_batches_with_the_wrapper() -> None:
    namespace, bucket_id, collections, ids = pipeline()
    client = Mixpeek(KEY, namespace=namespace, base_url=f"{URL}/v1")
    started = client.collections.trigger(collections[0].collection_id)
    assert (started["object_count"], started["total_tiers"]) == (len(ids), 3)
    assert finished(started["task_id"]).status == "COMPLETED"
    assert len(client.documents.list(collections[2].collection_id)["results"]) >= 1
    if not CONFIGURED:
        return  # 0.81.1 has no wrapper of batches
    batch = client.batches.get(bucket_id, started["batch_id"])
    assert [tier["documents_written"] > 0 for tier in batch["tier_tasks"]] == [True, True, True]
    clone = client.collections.clone(collections[1].collection_id, name=unique("clone"))
    assert clone["source_collection_id"] == collections[1].collection_id
    renamed = client.collections.update(clone["collection"]["collection_id"], description="renamed")
    assert renamed["description"] == "renamed"
