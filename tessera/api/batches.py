"""Routes of batches."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query

from tessera import batches
from tessera.api.auth import Asking
from tessera.api.buckets import Bucket
from tessera.api.objects import IdempotencyKey
from tessera.api.paging import page_parameter
from tessera.api.routing import Router
from tessera.api.scope import NamespaceId, Wh
from tessera.models.batches import (
    AddObjectsRequest,
    BatchLogsResponse,
    BatchModel,
    CreateBatchRequest,
    FailedDocumentsResponse,
    ListBatchesRequest,
    ListBatchesResponse,
    PatchBatchRequest,
    RetryBatchRequest,
    RetryBatchResponse,
    SubmitBatchRequest,
)
from tessera.models.tasks import GenericDeleteResponse, TaskResponse
from tessera.pagination import PageRequest
from tessera.tiers import MAX_TIERS

router = Router(tags=["Batches"])

BatchId = Annotated[str, Path(examples=["btch_0f3a9c5e77d1b2c4"])]
HundredRows = Annotated[PageRequest, Depends(page_parameter(100))]


@router.post("/v1/buckets/{bucket_identifier}/batches")
def create_batch(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    body: CreateBatchRequest,
    idempotency_key: IdempotencyKey = None,
) -> BatchModel:
    """Make a draft of a batch; durable when answered, processed once submitted."""
    return batches.create(wh, asking, namespace, bucket_identifier, body, idempotency_key=idempotency_key)


@router.post("/v1/buckets/{bucket_identifier}/batches/list")
def list_batches(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    page: HundredRows,
    body: ListBatchesRequest | None = None,
) -> ListBatchesResponse:
    """List a bucket's batches, the newest first."""
    return batches.list_(wh, asking, namespace, bucket_identifier, page, body or ListBatchesRequest())


@router.get("/v1/buckets/{bucket_identifier}/batches")
def list_batches_get(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, page: HundredRows
) -> ListBatchesResponse:
    """List a bucket's batches, the newest first."""
    return batches.list_(wh, asking, namespace, bucket_identifier, page, ListBatchesRequest())


@router.get("/v1/buckets/{bucket_identifier}/batches/{batch_id}")
def get_batch(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, batch_id: BatchId
) -> BatchModel:
    """Return a batch; COMPLETED means that its documents are durable and findable."""
    return batches.get(wh, asking, namespace, bucket_identifier, batch_id)


@router.patch("/v1/buckets/{bucket_identifier}/batches/{batch_id}")
def patch_batch(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    batch_id: BatchId,
    body: PatchBatchRequest,
) -> BatchModel:
    """Replace a batch's metadata; durable."""
    return batches.patch(wh, asking, namespace, bucket_identifier, batch_id, body)


@router.delete("/v1/buckets/{bucket_identifier}/batches/{batch_id}")
def delete_batch(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, batch_id: BatchId
) -> GenericDeleteResponse:
    """Delete a batch, cancelled if it is under way; the documents that it made stay."""
    return batches.delete(wh, asking, namespace, bucket_identifier, batch_id)


@router.post("/v1/buckets/{bucket_identifier}/batches/{batch_id}/objects")
def add_objects(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    batch_id: BatchId,
    body: AddObjectsRequest,
) -> BatchModel:
    """Add objects to a draft; durable."""
    return batches.add_objects(wh, asking, namespace, bucket_identifier, batch_id, body)


@router.post("/v1/buckets/{bucket_identifier}/batches/{batch_id}/submit")
def submit_batch(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    batch_id: BatchId,
    body: SubmitBatchRequest | None = None,
) -> TaskResponse:
    """Submit a batch; durable when answered, findable when the task is COMPLETED. Twice is once."""
    return batches.submit(wh, asking, namespace, bucket_identifier, batch_id)


@router.post("/v1/buckets/{bucket_identifier}/batches/{batch_id}/cancel")
def cancel_batch(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, batch_id: BatchId
) -> TaskResponse:
    """Cancel a batch under way; what is done stays, what comes late is dropped."""
    return batches.cancel(wh, asking, namespace, bucket_identifier, batch_id)


@router.post("/v1/buckets/{bucket_identifier}/batches/{batch_id}/retry")
def retry_batch(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    batch_id: BatchId,
    body: RetryBatchRequest | None = None,
) -> RetryBatchResponse:
    """Run failed rows of a finished batch again; durable when answered, findable when the task is COMPLETED."""
    return batches.retry(wh, asking, namespace, bucket_identifier, batch_id, body or RetryBatchRequest())


@router.get("/v1/buckets/{bucket_identifier}/batches/{batch_id}/failed-documents")
def failed_documents(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    batch_id: BatchId,
    collection_id: str | None = None,
    tier_num: Annotated[int | None, Query(ge=0, le=MAX_TIERS - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> FailedDocumentsResponse:
    """List the rows that failed, and why."""
    return batches.failed_documents(
        wh,
        asking,
        namespace,
        bucket_identifier,
        batch_id,
        collection_id=collection_id,
        tier_num=tier_num,
        limit=limit,
        offset=offset,
    )


@router.get("/v1/buckets/{bucket_identifier}/batches/{batch_id}/logs")
def batch_logs(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    batch_id: BatchId,
    tier_num: Annotated[
        int | None, Query(ge=0, le=MAX_TIERS - 1, description="Lines of this tier and of the whole batch.")
    ] = None,
) -> BatchLogsResponse:
    """Return what happened to a batch, in the order of time."""
    return batches.logs(wh, asking, namespace, bucket_identifier, batch_id, tier_num=tier_num)
