"""Uploads: a signed URL to PUT a file to, and its confirmation."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from tessera.models.base import JsonObject, Model, PaginationResponse
from tessera.models.objects import ListSort
from tessera.models.tasks import TaskResponse, TaskStatus

MAX_BATCH = 100

_EXAMPLE: JsonObject = {
    "filename": "headphones.txt",
    "content_type": "text/plain",
    "blob_property": "product_text",
    "object_metadata": {"category": "headphones"},
}


class CreateUploadRequest(Model):
    """A file that is to be uploaded. What it declares is checked when the file comes."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    filename: str = Field(min_length=1, max_length=255, examples=["clip.mp4"])
    content_type: str = Field(min_length=1, max_length=255, examples=["video/mp4"])
    file_size_bytes: int | None = Field(
        None, ge=1, strict=True, description="A PUT of another size is refused."
    )
    presigned_url_expiration: int | None = Field(
        3600, ge=60, le=86400, strict=True, description="Seconds in which to PUT and confirm."
    )
    metadata: JsonObject | None = Field(None, description="Of the upload itself; lists filter on it.")
    create_object_on_confirm: bool | None = Field(
        True, description="Make an object of the file when confirmed."
    )
    object_metadata: JsonObject | None = Field(None, description="`metadata` of that object.")
    blob_property: str | None = Field(
        None,
        pattern=r"^[a-zA-Z0-9_]+$",
        max_length=100,
        description="Property of the bucket's schema that the file fills. Default: the only one for files, else the "
        "one that is named like the file.",
    )
    blob_type: str | None = Field(None, max_length=32, description="Type of that property, if stated.")
    file_hash: str | None = Field(
        None, pattern=r"^[a-f0-9]{64}$", description="SHA-256 in hex; a PUT of other content is refused."
    )
    skip_duplicates: bool | None = Field(
        True, description="Answer with the confirmed upload of the same content, if there is one."
    )


class BatchUploadRequest(Model):
    """Up to 100 uploads: all of them are made, or none."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"uploads": [_EXAMPLE]}]})

    uploads: list[CreateUploadRequest] = Field(min_length=1, max_length=MAX_BATCH)
    shared_metadata: JsonObject | None = Field(None, description="For each upload; its own keys win.")
    shared_object_metadata: JsonObject | None = Field(None, description="For each upload; its own keys win.")


class UploadResponse(Model):
    """An upload. `presigned_url` takes a PUT of the file without a key until `expires_at`."""

    upload_id: str = Field(examples=["upl_0f3a9c5e77d1b2c4"])
    bucket_id: str
    filename: str
    content_type: str
    file_size_bytes: int | None
    presigned_url: str | None
    presigned_url_expiration: int
    s3_key: str
    status: TaskStatus
    metadata: JsonObject | None
    create_object_on_confirm: bool
    object_metadata: JsonObject | None
    blob_property: str | None
    blob_type: str | None
    file_hash: str | None
    skip_duplicates: bool
    is_duplicate: bool
    duplicate_of_upload_id: str | None
    skipped_unique_key: bool = Field(
        False, description="An object has the unique key already, and the bucket's policy is insert."
    )
    existing_object_id: str | None = Field(None, description="That object.")
    message: str | None
    created_at: str
    expires_at: str
    completed_at: str | None
    verified_at: str | None
    etag: str | None
    object_id: str | None
    task_id: str | None = None


class BatchUploadResponse(Model):
    uploads: list[UploadResponse]
    total: int


class ConfirmUploadRequest(Model):
    """What the client knows of the file; what is given must fit what came."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})

    etag: str | None = Field(
        None, max_length=128, description="ETag of the PUT's answer, with or without quotes."
    )
    file_size_bytes: int | None = Field(None, ge=1, strict=True)


class ConfirmUploadResponse(Model):
    """A confirmed upload: its file is durable, and so is the object made of it."""

    upload_id: str
    status: TaskStatus
    etag: str | None
    file_size_bytes: int | None
    file_hash: str | None
    verified_at: str | None
    completed_at: str | None
    object_id: str | None
    task_id: str | None = None
    message: str | None


class BatchConfirmRequest(Model):
    """Up to 100 confirmations, each by itself: `{upload_id, etag, file_size_bytes}`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"confirmations": [{"upload_id": "upl_0f3a9c5e77d1b2c4"}]}]}
    )

    confirmations: list[Any] = Field(min_length=1, max_length=MAX_BATCH)


class BatchConfirmResponse(Model):
    """What became of each stands in the task: `outputs` and `additional_data.failed_confirmations`."""

    task_id: str
    status: TaskStatus
    confirmations_count: int
    task: TaskResponse
    message: str


class ListUploadsRequest(Model):
    """Which uploads to list, the newest first; `search` is a substring of the filename or of a value of `metadata`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"filters": {"status": "COMPLETED"}}]})

    filters: JsonObject | None = None
    sort: ListSort | None = None
    search: str | None = Field(None, max_length=1000)
    return_presigned_urls: bool | None = Field(False, description="Give confirmed files a URL to GET them.")


class UploadListStats(Model):
    """Totals over the uploads of this page."""

    total_uploads: int
    total_size_bytes: int
    uploads_by_status: dict[str, int]
    avg_file_size_bytes: float
    unique_buckets: int


class ListUploadsResponse(Model):
    results: list[UploadResponse]
    pagination: PaginationResponse
    stats: UploadListStats
