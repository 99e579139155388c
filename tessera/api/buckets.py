"""Routes of buckets."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from tessera import buckets
from tessera.api.auth import Asking
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import NamespaceId, Wh
from tessera.models.buckets import (
    BucketCreateRequest,
    BucketPatchRequest,
    BucketResponse,
    BucketUpdateRequest,
    DeleteBucketResponse,
    ListBucketsRequest,
    ListBucketsResponse,
)

router = Router(tags=["Buckets"])

Bucket = Annotated[str, Path(description="Bucket by id or name.", examples=["quickstart-bucket"])]


@router.post("/v1/buckets")
def create_bucket(
    wh: Wh, asking: Asking, namespace: NamespaceId, body: BucketCreateRequest
) -> BucketResponse:
    """Create a bucket; durable when answered. A taken name is a 409."""
    return buckets.create(wh, asking, namespace, body)


@router.post("/v1/buckets/list")
def list_buckets(
    wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging, body: ListBucketsRequest | None = None
) -> ListBucketsResponse:
    """List buckets, oldest first unless sorted otherwise."""
    return buckets.list_(wh, asking, namespace, page, body or ListBucketsRequest())


@router.get("/v1/buckets")
def list_buckets_get(
    wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging, search: str | None = None
) -> ListBucketsResponse:
    """List buckets, oldest first."""
    return buckets.list_(wh, asking, namespace, page, ListBucketsRequest(search=search))


@router.get("/v1/buckets/{bucket_identifier}")
def get_bucket(wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket) -> BucketResponse:
    """Return a bucket with exact counts."""
    return buckets.get(wh, asking, namespace, bucket_identifier)


@router.patch("/v1/buckets/{bucket_identifier}")
def patch_bucket(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, body: BucketPatchRequest
) -> BucketResponse:
    """Change what is given of name, description, metadata; add optional properties to the schema. Durable."""
    return buckets.patch(wh, asking, namespace, bucket_identifier, body)


@router.put("/v1/buckets/{bucket_identifier}")
def update_bucket(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, body: BucketUpdateRequest
) -> BucketResponse:
    """Set what is given; what is left out stays. Durable."""
    return buckets.patch(wh, asking, namespace, bucket_identifier, body)


@router.delete("/v1/buckets/{bucket_identifier}")
def delete_bucket(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket
) -> DeleteBucketResponse:
    """Delete a bucket with its objects and batches; durable. A 409 while a collection reads it."""
    return buckets.delete(wh, asking, namespace, bucket_identifier)
