"""Tasks: what goes on in the background, and how it ended."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field

from tessera.models.base import JsonObject, Model, PaginationResponse


class TaskStatus(StrEnum):
    """States of tasks, batches and objects; one closed set, because clients refuse a state they do not know."""

    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    COMPLETED_WITH_ERRORS = "COMPLETED_WITH_ERRORS"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    UNKNOWN = "UNKNOWN"
    SKIPPED = "SKIPPED"
    DRAFT = "DRAFT"
    ACTIVE = "ACTIVE"
    ARCHIVED = "ARCHIVED"
    SUSPENDED = "SUSPENDED"


#: Nothing changes any more.
FINISHED = frozenset(
    {TaskStatus.COMPLETED, TaskStatus.COMPLETED_WITH_ERRORS, TaskStatus.FAILED, TaskStatus.CANCELED}
)


class TaskType(StrEnum):
    """The kinds of task that this server starts (a subset of the API's closed list)."""

    NAMESPACES_DELETE = "api_namespaces_delete"
    #: Erasing: it runs through all that a namespace has and rewrites it. The closed list has no word of its own.
    NAMESPACES_MIGRATIONS_RUN = "api_namespaces_migrations_run"
    BUCKETS_DELETE = "api_buckets_delete"
    BUCKETS_BATCHES_PROCESS = "api_buckets_batches_process"
    BUCKETS_UPLOADS_BATCH_CONFIRM = "api_buckets_uploads_batch_confirm"
    #: Documents of a collection get what taxonomies say of them.
    TAXONOMIES_MATERIALIZE = "api_taxonomies_materialize"
    #: One tier of a batch that has several.
    FEATURE_EXTRACTOR_RUN = "engine_feature_extractor_run"
    CLUSTER_BUILD = "engine_cluster_build"
    EVALUATIONS_RUN = "api_evaluations_run"


class TaskProgress(Model):
    """How far a task is. Rows are counted, one for each object and collection that reads it."""

    stage: str = Field(
        description="queued, fetch (URLs), extract, enrich (by taxonomies), index (made findable), done."
    )
    done: int = Field(description="Rows that have ended, with or without success; never goes back.")
    total: int
    failed: int
    percent: float = Field(description="Never goes back, and is 100 only when the task has ended.")
    rate_per_s: float | None = Field(description="Rows a second, over the last 30 s; null while unknown.")
    remaining_s: float | None = Field(description="Seconds left at that rate; null while unknown.")


class TaskEvent(TaskProgress):
    """The data of an event ``progress`` of a task's stream."""

    task_id: str
    status: TaskStatus


class TaskResponse(Model):
    """A task. `additional_data.progress` tells how far it is: `TaskProgress`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "task_id": "tsk_0f3a9c5e77d1b2c4",
                    "task_type": "api_buckets_batches_process",
                    "status": "COMPLETED",
                    "inputs": ["btch_0f3a9c5e77d1b2c4"],
                    "outputs": [],
                    "additional_data": {
                        "batch_id": "btch_0f3a9c5e77d1b2c4",
                        "progress": {
                            "stage": "done",
                            "done": 1,
                            "total": 1,
                            "failed": 0,
                            "percent": 100.0,
                            "rate_per_s": 1.9,
                            "remaining_s": 0.0,
                        },
                    },
                    "error": None,
                    "error_message": None,
                    "created_at": "2026-11-23T10:00:00.000000Z",
                    "updated_at": "2026-11-23T10:00:02.000000Z",
                }
            ]
        }
    )

    task_id: str
    task_type: str
    status: TaskStatus
    inputs: list[str | JsonObject]
    outputs: list[str | JsonObject]
    additional_data: JsonObject
    error: str | None
    error_message: str | None
    created_at: str
    updated_at: str


class TaskSort(Model):
    field: Literal["created_at", "updated_at", "status", "task_type", "task_id"] = "created_at"
    direction: Literal["asc", "desc"] = "desc"


class ListTasksRequest(Model):
    """Which tasks to list, the newest first. `search` finds a substring in id, type and error."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"status": "COMPLETED", "task_type": "api_buckets_batches_process"}]}
    )

    status: TaskStatus | None = None
    task_type: str | None = Field(None, max_length=100)
    filters: JsonObject | None = None
    sort: TaskSort | None = None
    search: str | None = Field(None, max_length=1000)


class ListTasksResponse(Model):
    results: list[TaskResponse]
    pagination: PaginationResponse
    total_count: int


class GenericDeleteResponse(Model):
    message: str = "Successfully deleted"
    success: Literal[True] = True
