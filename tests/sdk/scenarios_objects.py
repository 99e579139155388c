"""Buckets with a unique key, objects in groups, tasks and logs, with the generated classes of both releases."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import KEY, URL, unique
from scenarios_typed import api, create_collection, create_namespace, finished, refused

PASSTHROUGH = {"feature_extractor_name": "passthrough_extractor", "version": "v1"}
PROPERTIES = {
    "note": {"type": "text"},
    "sku": {"type": "string"},
    "year": {"type": "integer"},
    "state": {"type": "string", "enum": ["new", "old"], "default": "new"},
}


def keyed_bucket(**key: Any) -> tuple[str, Any]:
    """Return a namespace and a bucket in it whose objects are told apart by `sku`."""
    namespace = create_namespace(feature_extractors=[PASSTHROUGH]).namespace_id
    request = {
        "bucket_name": unique("shelf"),
        "bucket_schema": {"properties": PROPERTIES},
        "unique_key": {"fields": ["sku"], **key},
    }
    buckets = api(mixpeek.BucketsApi, namespace=namespace)
    bucket = buckets.create_bucket(m.BucketCreateRequest.from_dict(request))
    assert type(bucket) is m.BucketResponse
    assert (bucket.unique_key.fields, bucket.unique_key.default_policy) == (
        ["sku"],
        key.get("default_policy"),
    )
    return namespace, bucket


def thing(**fields: Any) -> Any:
    return m.CreateObjectRequest.from_dict(fields)


def scenario_unique_keys() -> None:
    namespace, bucket = keyed_bucket()
    objects = api(mixpeek.BucketObjectsApi, namespace=namespace)
    create = objects.create_object_buckets
    refused(exceptions.BadRequestException, create, bucket.bucket_id, thing(sku="a"))
    refused(exceptions.NotFoundException, create, bucket.bucket_id, thing(sku="a"), policy="update")
    made = create(bucket.bucket_id, thing(sku="a", year=1), policy="insert")
    assert type(made) is m.ObjectResponse
    refused(exceptions.ConflictException, create, bucket.bucket_id, thing(sku="a"), policy="insert")
    changed = create(bucket.bucket_id, thing(sku="a", year=2), policy="upsert")
    assert (changed.object_id, changed.additional_properties["year"]) == (made.object_id, 2)
    buckets = api(mixpeek.BucketsApi, namespace=namespace)
    patch = m.BucketPatchRequest.from_dict(
        {"unique_key": {"fields": ["sku"], "default_policy": "upsert"}, "description": "shelf"}
    )
    patched = buckets.patch_bucket(bucket.bucket_id, patch)
    assert (type(patched), patched.description) == (m.BucketResponse, "shelf")
    if "unique_key" in m.BucketPatchRequest.model_fields:  # since 1.3.783
        assert patched.unique_key.default_policy == "upsert"
        assert create(bucket.bucket_id, thing(sku="a", year=3)).object_id == made.object_id


def scenario_batches_of_objects() -> None:
    namespace, bucket = keyed_bucket(default_policy="insert")
    objects = api(mixpeek.BucketObjectsApi, namespace=namespace)
    items = [{"sku": "a", "year": 1}, {"sku": "b", "state": "broken"}, {"sku": "a"}]
    done = objects.create_objects_batch_buckets(
        bucket.bucket_id, m.CreateObjectsBatchRequest.from_dict({"objects": items})
    )
    assert type(done) is m.CreateObjectsBatchResponse
    assert (done.total_requested, done.succeeded_count, done.failed_count) == (3, 1, 2)
    assert [item.additional_properties["state"] for item in done.succeeded] == ["new"]
    told = {item.object_index: item.error_type for item in done.failed}
    assert told == {1: "ValidationError", 2: "AlreadyExistsError"}


def scenario_objects_in_groups() -> None:
    namespace, bucket = keyed_bucket(default_policy="insert")
    objects = api(mixpeek.BucketObjectsApi, namespace=namespace)
    for number in range(4):
        objects.create_object_buckets(bucket.bucket_id, thing(sku=str(number), year=2020 + number % 2))
    request = {
        "group_by": [{"field": "year"}],
        "aggregations": [
            {"function": "count", "alias": "total"},
            {"function": "count_distinct", "field": "sku", "alias": "skus"},
        ],
        "having": [{"field": "total", "operator": "gte", "value": 2}],
        "sort_by": "year",
        "sort_direction": "asc",
    }
    answer = objects.aggregate_objects_buckets(
        bucket.bucket_id, m.ObjectAggregationRequest.from_dict(request)
    )
    assert type(answer) is m.ObjectAggregationResponse
    assert answer.total_groups == 2
    assert [(item.group, item.metrics) for item in answer.results] == [
        ({"year": 2020}, {"total": 2, "skus": 2}),
        ({"year": 2021}, {"total": 2, "skus": 2}),
    ]


def scenario_processed_at_once_and_watched() -> None:
    namespace, bucket = keyed_bucket(default_policy="upsert")
    create_collection(namespace, bucket.bucket_id, PASSTHROUGH)
    objects = api(mixpeek.BucketObjectsApi, namespace=namespace)
    made = objects.create_object_buckets(bucket.bucket_id, thing(sku="a", note="words"), auto_process=True)
    task_id, batch_id = (made.additional_properties[name] for name in ("task_id", "batch_id"))
    task = finished(task_id)
    assert (task.status, task.task_type) == ("COMPLETED", "api_buckets_batches_process")
    told = task.additional_data["progress"]
    assert (told["stage"], told["done"], told["total"], told["failed"]) == ("done", 1, 1, 0)
    assert (told["percent"], told["remaining_s"]) == (100.0, 0.0)
    tasks = api(mixpeek.TasksApi)
    wanted = m.ListTasksRequest.from_dict({"task_type": task.task_type, "status": "COMPLETED"})
    listed = tasks.list_tasks(limit=1000, list_tasks_request=wanted)
    assert type(listed) is m.ListTasksResponse
    assert task_id in {item.task_id for item in listed.results}
    batches = api(mixpeek.BucketBatchesApi, namespace=namespace)
    logs = batches.get_batch_logs_buckets_batches(bucket.bucket_id, batch_id)
    assert logs["logs"][-1]["message"].startswith("COMPLETED: 1 row(s) done")
    assert batches.get_batch_logs_buckets_batches(bucket.bucket_id, batch_id, tier_num=0) == logs
    # What the stream of a finished task brings is what the client reads.
    headers = {"Authorization": f"Bearer {KEY}", "Accept": "text/event-stream"}
    request = urllib.request.Request(f"{URL}/v1/tasks/{task_id}", headers=headers)
    with urllib.request.urlopen(request) as stream:
        lines = stream.read().decode().splitlines()
    (data,) = (json.loads(line[6:]) for line in lines if line.startswith("data: "))
    assert m.TaskResponse.from_dict(data) == task
    tasks.kill_task(task_id)
    refused(exceptions.NotFoundException, tasks.get_task, task_id)


def scenario_changes_of_an_object() -> None:
    namespace, bucket = keyed_bucket(default_policy="insert")
    objects = api(mixpeek.BucketObjectsApi, namespace=namespace)
    made = objects.create_object_buckets(bucket.bucket_id, thing(sku="a", year=1, note="old"))
    patch = m.PatchObjectRequest.from_dict({"year": 2})
    patched = objects.patch_object_buckets(bucket.bucket_id, made.object_id, patch)
    assert type(patched) is m.ObjectResponse
    assert patched.additional_properties["year"] == 2
    # 0.81.1 has no fields of the user in this request.
    put = m.UpdateObjectRequest.from_dict({"key_prefix": "/shelf"})
    changed = objects.update_object_buckets(bucket.bucket_id, made.object_id, put)
    assert (changed.key_prefix, changed.additional_properties["year"]) == ("/shelf", 2)
    assert len(changed.blobs) == 1
    other = objects.create_object_buckets(bucket.bucket_id, thing(sku="b"))
    taken = m.PatchObjectRequest.from_dict({"sku": "a"})
    refused(
        exceptions.ConflictException, objects.patch_object_buckets, bucket.bucket_id, other.object_id, taken
    )
