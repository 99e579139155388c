"""What failed in a batch and its retry, with the generated classes and the wrapper; the same file for both releases."""

from __future__ import annotations

import base64
from typing import Any

import mixpeek
from mixpeek import Mixpeek, exceptions
from mixpeek import models as m
from scenarios_common import KEY, URL, data_uri, media_base64, unique
from scenarios_typed import CONFIGURED, api, create_namespace, finished, refused

IMAGE = {"feature_extractor_name": "image_extractor", "version": "v1"}


def failed_batch() -> tuple[str, str, str, Any]:
    """Process a whole picture and one that is cut off; return namespace, bucket, the second object and the batch."""
    namespace = create_namespace(feature_extractors=[IMAGE]).namespace_id
    buckets = api(mixpeek.BucketsApi, namespace=namespace)
    schema = {"properties": {"photo": {"type": "image"}}}
    request = {"bucket_name": unique("photos"), "bucket_schema": schema}
    bucket_id = buckets.create_bucket(m.BucketCreateRequest.from_dict(request)).bucket_id
    collection = {
        "collection_name": unique("seen"),
        "source": {"type": "bucket", "bucket_ids": [bucket_id]},
        "feature_extractor": {**IMAGE, "input_mappings": {"image": "photo"}},
    }
    made = api(mixpeek.CollectionsApi, namespace=namespace)
    made.create_collection(m.CreateCollectionRequest.from_dict(collection))
    picture = base64.b64decode(media_base64("red.png"))
    cut = f"data:image/png;base64,{base64.b64encode(picture[: len(picture) // 2]).decode()}"
    objects = api(mixpeek.BucketObjectsApi, namespace=namespace)
    ids = [
        objects.create_object_buckets(
            bucket_id,
            m.CreateObjectRequest.from_dict(
                {"blobs": [{"property": "photo", "type": "image", "data": data}]}
            ),
        ).object_id
        for data in (data_uri("red.png"), cut)
    ]
    batches = api(mixpeek.BucketBatchesApi, namespace=namespace)
    batch = batches.create_batch_buckets_batches(bucket_id, m.CreateBatchRequest(object_ids=ids))
    task = batches.submit_batch_buckets_batches(bucket_id, batch.batch_id)
    assert finished(task.task_id).status == "COMPLETED_WITH_ERRORS"
    return namespace, bucket_id, ids[1], batches.get_batch_buckets_batches(bucket_id, batch.batch_id)


def scenario_failed_documents_and_retry() -> None:
    namespace, bucket_id, bad, batch = failed_batch()
    assert type(batch) is m.BatchModel
    assert (batch.status, batch.error_summary) == ("COMPLETED_WITH_ERRORS", {"unreadable": 1})
    detail = batch.tier_tasks[0].errors[0]
    assert type(detail) is m.BatchErrorDetail
    assert (detail.error_type, detail.stage, detail.affected_count) == ("validation", "decode", 1)
    assert detail.recovery_suggestion
    if CONFIGURED:
        (record,) = batch.failed_objects
        assert type(record) is m.FailedObjectRecord
        assert (record.object_id, record.error_type) == (bad, "permanent")
        assert batch.failed_object_count == 1
    batches = api(mixpeek.BucketBatchesApi, namespace=namespace)
    failed = batches.get_failed_documents_buckets_batches_batch(bucket_id, batch.batch_id)
    (row,) = failed["results"]
    assert (row["object_id"], row["tier_num"], row["cause"]) == (bad, 0, "unreadable")
    assert (failed["total"], failed["limit"], failed["offset"]) == (1, 100, 0)
    narrowed = batches.get_failed_documents_buckets_batches_batch(
        bucket_id, batch.batch_id, tier_num=0, collection_id=row["collection_id"], limit=1, offset=1
    )
    assert (narrowed["results"], narrowed["total"]) == ([], 1)
    other = batches.get_failed_documents_buckets_batches_batch(bucket_id, batch.batch_id, tier_num=1)
    assert other["total"] == 0

    retry = batches.retry_batch_buckets_batches
    error = refused(exceptions.ApiException, retry, bucket_id, batch.batch_id, m.RetryBatchRequest())
    assert error.status == 409 and "retry_mode 'all'" in error.body
    everything = m.RetryBatchRequest(retry_mode="all", tier_nums=[0], max_retry_count=1)
    started = retry(bucket_id, batch.batch_id, everything)
    assert (started["retried_count"], started["skipped_count"]) == (1, 0)
    assert finished(started["task_id"]).status == "COMPLETED_WITH_ERRORS"
    (row,) = batches.get_failed_documents_buckets_batches_batch(bucket_id, batch.batch_id)["results"]
    assert (row["attempts"], row["retry_count"]) == (2, 1)
    refused(exceptions.ApiException, retry, bucket_id, batch.batch_id, everything)


def scenario_failed_documents_with_the_wrapper() -> None:
    namespace, bucket_id, bad, batch = failed_batch()
    if not CONFIGURED:
        return  # 0.81.1 has no wrapper of batches
    client = Mixpeek(KEY, namespace=namespace, base_url=f"{URL}/v1")
    assert client.batches.get(bucket_id, batch.batch_id)["status"] == "COMPLETED_WITH_ERRORS"
    told = client.batches.failed_documents(bucket_id, batch.batch_id, tier_num=0, limit=5, offset=0)
    assert [row["object_id"] for row in told["results"]] == [bad]
