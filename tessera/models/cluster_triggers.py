"""Triggers of clusters: what has a cluster executed by itself, and what is told of it."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from tessera import schedules
from tessera.errors import quote
from tessera.models.base import JsonObject, Model

#: Shortest and longest time between two executions of an interval.
MIN_INTERVAL_S, MAX_INTERVAL_S = 60, 366 * 24 * 3600


class TriggerType(StrEnum):
    """What a trigger waits for. ``conditional`` is a word of the API that this server refuses."""

    CRON = "cron"
    INTERVAL = "interval"
    EVENT = "event"
    CONDITIONAL = "conditional"


class TriggerStatus(StrEnum):
    """Only an active trigger fires; ``failed`` is set by the server."""

    ACTIVE = "active"
    PAUSED = "paused"
    DISABLED = "disabled"
    FAILED = "failed"


class CronSchedule(Model):
    """Moments by a cron expression of five fields, read in a time zone."""

    timezone: str = Field("UTC", max_length=100)
    cron_expression: str = Field(max_length=200)

    @field_validator("cron_expression")
    @classmethod
    def _comes(cls, value: str, info: ValidationInfo) -> str:
        if "timezone" in info.data:
            _next(value, info.data["timezone"])
        return value

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        _next("* * * * *", value)
        return value


def _next(expression: str, timezone: str) -> None:
    try:
        schedules.next_cron(expression, timezone, datetime.now(UTC))
    except ValueError as error:
        raise ValueError(
            f"{quote(timezone if expression == '* * * * *' else expression)} is {error}"
        ) from None


class IntervalSchedule(Model):
    """Every so many seconds, the first time after that time or at once."""

    interval_seconds: int = Field(ge=MIN_INTERVAL_S, le=MAX_INTERVAL_S)
    start_immediately: bool = False


class EventSchedule(Model):
    """After so many documents of a collection were made (or made anew), or deleted."""

    event_type: Literal["documents_added", "documents_deleted"]
    event_threshold: int = Field(1, ge=1, le=1_000_000_000)
    collection_id: str = Field(max_length=255)
    cooldown_seconds: int = Field(0, ge=0, le=MAX_INTERVAL_S)


SCHEDULES: dict[TriggerType, type[Model]] = {
    TriggerType.CRON: CronSchedule,
    TriggerType.INTERVAL: IntervalSchedule,
    TriggerType.EVENT: EventSchedule,
}


class ExecutionConfig(Model):
    """A cluster that is made for the trigger: collections, and ``{algorithm, feature_uris, …parameters}``."""

    collection_ids: list[str] = Field(min_length=1, max_length=50)
    config: JsonObject


class CreateTriggerRequest(Model):
    """What is executed, and when: a cluster that exists, or one that is made for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "cluster_id": "clust_0f3a9c5e77d1b2c4",
                    "trigger_type": "cron",
                    "schedule_config": {"cron_expression": "0 2 * * *", "timezone": "UTC"},
                }
            ]
        }
    )

    cluster_id: str | None = None
    execution_config: ExecutionConfig | None = None
    trigger_type: TriggerType
    schedule_config: JsonObject
    description: str | None = Field(None, max_length=10_000)
    status: TriggerStatus = TriggerStatus.ACTIVE


class UpdateTriggerRequest(Model):
    """What may change: never the cluster, nor the kind of trigger. A schedule is replaced whole."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"description": "every night"}]})

    schedule_config: JsonObject | None = None
    description: str | None = Field(None, max_length=10_000)
    status: TriggerStatus | None = None


class ListTriggersRequest(Model):
    """Which triggers to list; the newest first unless sorted otherwise."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "active"}]})

    cluster_id: str | None = None
    trigger_type: TriggerType | None = None
    status: TriggerStatus | None = None
    offset: int = Field(0, ge=0, le=1_000_000_000)
    limit: int = Field(50, ge=1, le=1000)
    sort_by: Literal[
        "created_at",
        "updated_at",
        "last_triggered_at",
        "next_scheduled_at",
        "execution_count",
        "status",
        "trigger_type",
    ] = "created_at"
    direction: Literal["asc", "desc"] = "desc"


class TriggerHistoryRequest(Model):
    """Which executions of a trigger to list, the newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status_filter": "failed"}]})

    offset: int = Field(0, ge=0, le=1_000_000_000)
    limit: int = Field(50, ge=1, le=1000)
    status_filter: Literal["pending", "processing", "completed", "failed"] | None = None


class TriggerModel(Model):
    """A trigger, and how it went. `last_execution_job_id` is the task of the last execution."""

    trigger_id: str
    cluster_id: str
    namespace_id: str
    internal_id: str = Field(description="The organization's public id; the name is the API's.")
    execution_config: ExecutionConfig
    trigger_type: TriggerType
    schedule_config: JsonObject
    status: TriggerStatus
    last_triggered_at: str | None
    last_execution_job_id: str | None
    next_scheduled_at: str | None
    execution_count: int
    consecutive_failures: int
    last_execution_status: str | None
    last_execution_error: str | None
    event_counter: int
    last_cooldown_at: str | None
    created_at: str
    updated_at: str
    created_by: str | None
    description: str | None


class ListTriggersResponse(Model):
    """A page of triggers."""

    results: list[TriggerModel]
    total: int
    offset: int
    limit: int


class TriggerHistoryItem(Model):
    """An execution that a trigger began. `job_id` is its task, `run_id` what `executions` calls it."""

    job_id: str
    run_id: str
    triggered_at: str
    status: str
    execution_time_ms: int | None
    error: str | None
    num_clusters: int | None
    num_documents: int | None


class TriggerHistoryResponse(Model):
    """A page of a trigger's executions."""

    trigger_id: str
    executions: list[TriggerHistoryItem]
    total: int
    offset: int
    limit: int
