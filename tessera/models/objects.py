"""Objects: user fields at the root, and blobs that hold what extractors read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from tessera.models.base import JsonObject, Model, PaginationResponse
from tessera.models.buckets import FieldType
from tessera.models.tasks import TaskStatus

MAX_BATCH = 100

_EXAMPLE: JsonObject = {
    "key_prefix": "/catalog",
    "metadata": {"category": "headphones"},
    "blobs": [
        {
            "property": "product_text",
            "type": "text",
            "data": "Lightweight wireless headphones with active noise cancellation.",
        }
    ],
}


class CreateBlobRequest(Model):
    """One blob of an object: which property of the bucket's schema it fills, and its content, given once.

    `data` is the words themselves for a text, base64 or a data URI for anything else, a URL (http, https, s3)
    for either, and the plain value for a property whose type is no blob.
    """

    property: str = Field(min_length=1, max_length=100, examples=["product_text"])
    type: FieldType | None = Field(None, description="Absent: the type that the schema names.")
    data: Any = Field(None, description="Text, base64, a data URI, or a URL that the next batch fetches.")
    url: str | None = Field(None, description="The same as a URL in `data`.")
    upload_id: str | None = Field(
        None, max_length=64, description="A confirmed upload of this bucket; it may serve several objects."
    )
    filename: str | None = Field(None, max_length=1024)
    key_prefix: str | None = Field(None, max_length=1024)
    metadata: JsonObject | None = None
    canonicalize_source: bool | None = Field(None, description="As that of the object, for this blob.")
    force_remirror: bool | None = Field(None, description="As that of the object, for this blob.")


class LooseBlob(Model):
    """A blob without property and type: they are those of the bucket's only blob property."""

    data: Any = None
    url: str | None = Field(None, description="A URL that the next batch fetches.")
    upload_id: str | None = Field(None, max_length=64, description="A confirmed upload of this bucket.")
    filename: str | None = Field(None, max_length=1024)
    metadata: JsonObject | None = None


class CreateObjectRequest(Model):
    """An object to create. Further keys at the root are the user's own fields, as those in `metadata` are."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    key_prefix: str | None = Field(None, max_length=1024)
    blobs: list[CreateBlobRequest] | None = Field(None, max_length=100)
    blob: LooseBlob | None = Field(None, description="Short form for a bucket with one blob property.")
    metadata: JsonObject | None = Field(
        None, description="User fields; paths find them here and at the root."
    )
    skip_duplicates: bool | None = Field(
        False, description="Answer with the object that has the same content already, if there is one."
    )
    canonicalize_source: bool | None = Field(
        True, description="Accepted; what is behind a URL always becomes a copy of the server's own."
    )
    force_remirror: bool | None = Field(
        False, description="For a change: fetch again what the same URL brought before."
    )
    idempotency_key: str | None = Field(
        None, max_length=255, description="As the header Idempotency-Key, for this object alone."
    )


class UpdateObjectRequest(Model):
    """Replaces what is given: `blobs` and `metadata` each as a whole. The object's version grows."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"metadata": {"category": "speakers"}}]}
    )

    key_prefix: str | None = Field(None, max_length=1024)
    blobs: list[CreateBlobRequest] | None = Field(None, max_length=100)
    blob: LooseBlob | None = Field(None, description="Short form for a bucket with one blob property.")
    metadata: JsonObject | None = None
    skip_duplicates: bool | None = Field(None, description="Accepted; without effect.")
    canonicalize_source: bool | None = Field(
        None, description="Accepted; what is behind a URL always becomes a copy of the server's own."
    )
    force_remirror: bool | None = Field(
        None, description="Fetch again what the same URL brought before; without it that is kept."
    )
    idempotency_key: str | None = Field(
        None, max_length=255, description="Accepted; setting a value twice is once."
    )


class BlobDetails(Model):
    """What the content is; null while a URL is still to be fetched."""

    filename: str | None
    size_bytes: int | None
    mime_type: str | None
    hash: str | None = Field(description="SHA-256 of the content, in hex.")


class BlobModel(Model):
    """A stored blob. `data` repeats a short text, `presigned_url` fetches a file without a key for an hour."""

    blob_id: str
    property: str
    key_prefix: str | None = None
    type: FieldType
    properties: JsonObject
    details: BlobDetails
    url: str | None = Field(None, description="Where it was or will be fetched from, without its query.")
    data: str | None = None
    presigned_url: str | None = None


class ObjectResponse(Model):
    """An object. The user's fields stand at the root, as they were sent."""

    model_config = ConfigDict(extra="allow")

    object_id: str = Field(examples=["obj_0f3a9c5e77d1b2c4"])
    bucket_id: str
    key_prefix: str | None
    blobs: list[BlobModel]
    status: TaskStatus
    error: str | None = None
    version: int = Field(description="Grows with each change.")
    content_hash: str
    document_count: int | None = Field(
        None, description="Documents that collections have made of it; null in lists and after a change."
    )
    created_at: str
    updated_at: str


class BatchObjectResult(ObjectResponse):
    object_index: int
    replayed: bool = False
    replayed_by: Literal["idempotency_key", "skip_duplicates"] | None = None


class FailedObject(Model):
    object_index: int
    error: str
    error_type: str


class CreateObjectsBatchRequest(Model):
    """Up to 100 objects; each is checked and created by itself."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"objects": [_EXAMPLE]}]})

    objects: list[Any] = Field(
        min_length=1, max_length=MAX_BATCH, description="Objects as `POST …/objects` takes them."
    )


class CreateObjectsBatchResponse(Model):
    """What became of each object; those that failed name why, the others exist."""

    succeeded: list[BatchObjectResult]
    failed: list[FailedObject]
    total_requested: int
    succeeded_count: int
    failed_count: int
    batch_id: str | None = Field(None, description="With auto_process: the batch that processes them.")
    task_id: str | None = Field(None, description="With auto_process: its task.")


class ListSort(Model):
    """A field path and a direction."""

    field: str = Field(min_length=1, max_length=255, examples=["created_at"])
    direction: Literal["asc", "desc"] = "asc"


class ListObjectsRequest(Model):
    """Which objects to list: `filters` in the filter grammar over the object's fields, `search` as a substring."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"filters": {"field": "metadata.category", "operator": "eq", "value": "headphones"}}]
        }
    )

    filters: JsonObject | None = None
    sort: ListSort | None = None
    search: str | None = Field(None, max_length=1000)
    select: list[str] | None = Field(
        None, max_length=100, description="Root fields to return beside the ids."
    )
    return_presigned_urls: bool | None = False


class ObjectListStats(Model):
    """Totals over the objects of this page."""

    total_objects: int
    total_blobs: int
    avg_blobs_per_object: float
    objects_by_status: dict[str, int]


class ListObjectsResponse(Model):
    results: list[ObjectResponse]
    pagination: PaginationResponse
    total_count: int
    stats: ObjectListStats
