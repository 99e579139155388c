"""Batches: what is processed together, tier by tier, by every collection that reads it or is fed by one that does."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from tessera.causes import Cause, Stage
from tessera.models.base import JsonObject, Model, PaginationResponse
from tessera.models.tasks import TaskStatus

#: Objects of one batch; one row for each object and collection is kept while it runs.
MAX_OBJECTS = 100_000


class CreateBatchRequest(Model):
    """Objects to process together. The collections that read the bucket, and those that these feed, are found now."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object_ids": ["obj_0f3a9c5e77d1b2c4"]}]})

    object_ids: list[str] = Field(min_length=1, max_length=MAX_OBJECTS)
    collection_ids: list[str] | None = Field(
        None, min_length=1, max_length=1000, description="Only these of the collections, and what feeds them."
    )
    metadata: JsonObject | None = None


class AddObjectsRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"object_ids": ["obj_0f3a9c5e77d1b2c4"]}]})

    object_ids: list[str] = Field(min_length=1, max_length=MAX_OBJECTS)


class PatchBatchRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"metadata": {"source": "nightly"}}]})

    metadata: JsonObject | None = None


class SubmitBatchRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"include_processing_history": True}]})

    include_processing_history: bool | None = Field(True, description="Accepted; without effect.")


class RetryBatchRequest(Model):
    """Which failed rows to run again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"retry_mode": "all"}]})

    retry_mode: Literal["transient_only", "all"] = "transient_only"
    tier_nums: list[int] | None = Field(
        None, max_length=100, description="Only these tiers; all when absent."
    )
    max_retry_count: int = Field(
        3, ge=1, le=10, description="Rows that retries ran again this often already stay failed."
    )


class TierError(Model):
    error_type: Literal["dependency", "authentication", "validation", "runtime", "network", "resource"]
    message: str
    stage: Stage
    recovery_suggestion: str
    affected_count: int


class Tier(Model):
    """One tier of a batch: collections that do not feed each other. `source_collection_ids` feed it."""

    tier_num: int
    source_type: Literal["bucket", "collection"]
    status: TaskStatus
    task_id: str | None = None
    collection_ids: list[str]
    source_collection_ids: list[str] | None = None
    #: Whether there is a row for each of its sources; those of later tiers are made when the tier begins.
    is_planned: bool = False
    started_at: str | None = None
    completed_at: str | None = None


class TierTask(Model):
    """One tier of a batch, and what became of it. A batch's only tier has the batch's task."""

    tier_num: int
    source_type: Literal["bucket", "collection"]
    status: TaskStatus
    task_id: str | None
    parent_task_id: str | None
    collection_ids: list[str]
    source_collection_ids: list[str] | None
    started_at: str | None
    completed_at: str | None
    errors: list[TierError]
    error_summary: dict[str, int] | None
    documents_written: int


class BatchProgress(Model):
    """Rows, one for each object and collection."""

    processed: int
    total: int
    percent: float
    errors: int


class FailedObject(Model):
    """An object of which a row failed, in short."""

    object_id: str
    error: str
    error_type: Literal["transient", "permanent", "resource"]
    timestamp: str


class BatchModel(Model):
    """A batch. COMPLETED means that its documents are durable and findable."""

    batch_id: str = Field(examples=["btch_0f3a9c5e77d1b2c4"])
    bucket_id: str
    namespace_id: str
    status: TaskStatus
    type: Literal["BUCKET", "COLLECTION"]
    object_ids: list[str]
    collection_ids: list[str]
    task_id: str | None
    error: str | None
    error_summary: dict[str, int] | None
    metadata: JsonObject
    tier_tasks: list[TierTask]
    current_tier: int | None
    total_tiers: int
    dag_tiers: list[list[str]]
    progress: BatchProgress
    documents_written: int
    failed_object_count: int
    failed_objects: list[FailedObject] = Field(
        description="The first 100 rows that failed; failed-documents lists all."
    )
    retry_count: int
    max_node_death_resubmits: int
    max_deploy_resubmits: int
    lifecycle: str | None = None
    lifecycle_reason: str | None = None
    created_at: str
    updated_at: str
    submitted_at: str | None


class ListBatchesRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "COMPLETED", "limit": 100}]})

    status: TaskStatus | None = None
    collection_id: str | None = Field(None, max_length=128)


class ListBatchesResponse(Model):
    results: list[BatchModel]
    total_count: int
    pagination: PaginationResponse


class FailedRow(Model):
    """A row that failed: what, why, how often it was tried, and whether a plain retry can help.

    `attempts` counts all tries, `retry_count` the retries that were asked for. `error_type` is ``transient`` where
    a retry can help (`can_retry`), ``resource`` where something was too large or took too much. A row that
    `is_parked` ended its worker each time: only retry_mode ``all`` or its `failure_id` tries it again. `object_id` is
    what failed: an object, or in later tiers the document that `document_id` names too.
    """

    failure_id: str
    object_id: str
    document_id: str | None
    collection_id: str
    tier_num: int
    error_type: Literal["transient", "permanent", "resource"]
    cause: Cause
    error_kind: str
    error: str
    next_step: str
    stage: Stage
    can_retry: bool
    is_parked: bool
    attempts: int
    retry_count: int
    timestamp: str
    updated_at: str


class FailedDocumentsResponse(Model):
    batch_id: str
    results: list[FailedRow]
    total: int
    limit: int
    offset: int


class RetryBatchResponse(Model):
    """What the retry took up. Follow `task_id`."""

    batch_id: str
    task_id: str
    status: TaskStatus
    retried_count: int
    skipped_count: int
    message: str


class BatchLogLine(Model):
    """One thing that happened to a batch, or one row of it that failed (with the ids of object and collection)."""

    timestamp: str
    level: Literal["info", "warning", "error"]
    tier_num: int | None = Field(description="Tier that it is about; null for the whole batch.")
    message: str
    object_id: str | None = None
    collection_id: str | None = None


class BatchLogsResponse(Model):
    """What happened to a batch, in the order of time; of failed rows the first hundred."""

    batch_id: str
    status: TaskStatus
    logs: list[BatchLogLine]
    total: int = Field(description="How many lines these are.")
