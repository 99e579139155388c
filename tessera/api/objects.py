"""Routes of objects."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Path, Query

from tessera import batches, objects
from tessera.api.auth import Asking
from tessera.api.buckets import Bucket
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import NamespaceId, Wh
from tessera.models.aggregations import AggregationRequest, AggregationResponse
from tessera.models.buckets import Policy
from tessera.models.objects import (
    CreateObjectRequest,
    CreateObjectsBatchRequest,
    CreateObjectsBatchResponse,
    ListObjectsRequest,
    ListObjectsResponse,
    ObjectResponse,
    UpdateObjectRequest,
)

router = Router(tags=["Objects"])

ObjectId = Annotated[str, Path(examples=["obj_0f3a9c5e77d1b2c4"])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Sent again within 24 hours, the request has one effect and the same answer.",
        examples=["6f1c2c7a-c0e1-4ed3-a9a2-d3e0a7b8f1c4"],
    ),
]
PolicyOfKey = Annotated[
    Policy | None,
    Query(
        alias="policy",
        description="In a bucket with a unique key: insert (a taken key is a 409), update (a free one is a 404) or "
        "upsert. Default: the bucket's.",
    ),
]
AutoProcess = Annotated[
    bool,
    Query(
        description="Process it at once, in a batch of its own: the answer has its `batch_id` and `task_id` (null "
        "when no collection reads the bucket)."
    ),
]
PresignedUrls = Annotated[
    bool, Query(description="Give each file a URL that works for an hour without a key.")
]


@router.post("/v1/buckets/{bucket_identifier}/objects")
def create_object(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    body: CreateObjectRequest,
    policy: PolicyOfKey = None,
    auto_process: AutoProcess = False,
    idempotency_key: IdempotencyKey = None,
) -> ObjectResponse:
    """Create an object; durable when answered. A batch processes it: one of its own with auto_process.

    In a bucket with a unique key an object that has the key may be made equal to the request instead: see `policy`.
    """
    made = objects.create(
        wh, asking, namespace, bucket_identifier, body, policy=policy, idempotency_key=idempotency_key
    )
    if auto_process:
        run = batches.process(wh, asking, namespace, bucket_identifier, [made.object_id], idempotency_key)
        return made.model_copy(update=run)
    return made


@router.post("/v1/buckets/{bucket_identifier}/objects/batch")
def create_objects_batch(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    body: CreateObjectsBatchRequest,
    policy: PolicyOfKey = None,
    auto_process: AutoProcess = False,
    idempotency_key: IdempotencyKey = None,
) -> CreateObjectsBatchResponse:
    """Create up to 100 objects, each by itself; those that succeeded are durable when answered.

    With auto_process they are processed at once, in one batch.
    """
    made = objects.create_batch(
        wh,
        asking,
        namespace,
        bucket_identifier,
        body.objects,
        policy=policy,
        idempotency_key=idempotency_key,
    )
    if auto_process and made.succeeded:
        ids = [item.object_id for item in made.succeeded]
        run = batches.process(wh, asking, namespace, bucket_identifier, ids, idempotency_key)
        return made.model_copy(update=run)
    return made


@router.post("/v1/buckets/{bucket_identifier}/objects/list")
def list_objects(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    page: Paging,
    body: ListObjectsRequest | None = None,
) -> ListObjectsResponse:
    """List a bucket's objects, oldest first unless sorted otherwise."""
    return objects.list_(wh, asking, namespace, bucket_identifier, page, body or ListObjectsRequest())


@router.post("/v1/buckets/{bucket_identifier}/objects/aggregate")
def aggregate_objects(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, body: AggregationRequest
) -> AggregationResponse:
    """Group a bucket's objects and reckon figures of each group, over all that the filters let through."""
    return objects.aggregate(wh, asking, namespace, bucket_identifier, body)


@router.get("/v1/buckets/{bucket_identifier}/objects")
def list_objects_get(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, page: Paging
) -> ListObjectsResponse:
    """List a bucket's objects, oldest first."""
    return objects.list_(wh, asking, namespace, bucket_identifier, page, ListObjectsRequest())


@router.get("/v1/buckets/{bucket_identifier}/objects/{object_identifier}")
def get_object(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    object_identifier: ObjectId,
    return_presigned_urls: PresignedUrls = False,
) -> ObjectResponse:
    """Return an object, short texts in full."""
    return objects.get(
        wh, asking, namespace, bucket_identifier, object_identifier, presigned_urls=return_presigned_urls
    )


@router.patch("/v1/buckets/{bucket_identifier}/objects/{object_identifier}")
def patch_object(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    object_identifier: ObjectId,
    body: UpdateObjectRequest,
) -> ObjectResponse:
    """Merge the given fields into an object; durable. Its documents follow with the next batch."""
    return objects.update(wh, asking, namespace, bucket_identifier, object_identifier, body, replace=False)


@router.put("/v1/buckets/{bucket_identifier}/objects/{object_identifier}")
def update_object(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    object_identifier: ObjectId,
    body: UpdateObjectRequest,
) -> ObjectResponse:
    """Set what is given, `blobs` and `metadata` each as a whole; durable."""
    return objects.update(wh, asking, namespace, bucket_identifier, object_identifier, body, replace=True)


@router.delete("/v1/buckets/{bucket_identifier}/objects/{object_identifier}", status_code=204)
def delete_object(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, object_identifier: ObjectId
) -> None:
    """Delete an object and its documents; durable, and no longer findable, when answered."""
    objects.delete(wh, asking, namespace, bucket_identifier, object_identifier)
