"""Failures: rows of batches that failed, across all batches of a namespace, each with its history."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field

from tessera.causes import Cause, Stage
from tessera.models.base import Model, PaginationResponse


class FailureState(StrEnum):
    """How things stand with a row that failed: it still does, it is to be tried again, it is done with."""

    FAILED = "failed"
    WAITING = "waiting"
    RESOLVED = "resolved"


class FailureFilter(Model):
    """Which failures are meant; what is left out does not matter."""

    cause: list[Cause] | None = Field(None, min_length=1, description="Only these causes.")
    collection_id: str | None = Field(None, max_length=128, description="Only of this collection (its id).")
    batch_id: str | None = Field(None, max_length=128, description="Only of this batch.")
    object_id: str | None = Field(None, max_length=128, description="Only of this object, or document.")


class ListFailuresRequest(FailureFilter):
    model_config = ConfigDict(json_schema_extra={"examples": [{"cause": ["unreadable", "too_large"]}]})

    state: FailureState = FailureState.FAILED


class FailureTry(Model):
    """One try of a row that failed."""

    attempt: int
    task_id: str | None
    kind: str
    stage: Stage
    message: str
    at: str


class Failure(Model):
    """A row of a batch that failed: what went wrong, where, what to do, and how often it was tried.

    `can_retry` says whether a plain retry can help; a row that `is_parked` ended its worker each time and is tried
    again only on request. `retry_at` is when the batch itself tries it again.
    """

    failure_id: str = Field(examples=["fail_0f3a9c5e77d1b2c4"])
    state: FailureState
    cause: Cause
    kind: str
    stage: Stage
    message: str
    next_step: str
    can_retry: bool
    is_parked: bool
    bucket_id: str
    batch_id: str
    collection_id: str
    tier_num: int
    object_id: str = Field(description="What failed: an object, or in later tiers a document.")
    document_id: str | None = Field(description="The document, where that failed.")
    filename: str | None
    attempts: int
    retry_count: int
    retry_at: str | None
    failed_at: str


class FailureDetail(Failure):
    """A failure with all its tries that failed, the oldest first; of very many the last 50."""

    history: list[FailureTry]


class ListFailuresResponse(Model):
    """`by_cause` counts all that were asked for, not only this page."""

    results: list[Failure]
    by_cause: dict[Cause, int]
    total_count: int
    pagination: PaginationResponse


class RetryFailuresRequest(FailureFilter):
    """Which failures to try again: those named, else all that the filters let through.

    Of those that are not named only such are tried that a retry can help, unless `retry_mode` is ``all``.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"cause": ["unreachable"]}]})

    failure_ids: list[str] | None = Field(None, min_length=1, max_length=1000)
    retry_mode: Literal["transient_only", "all"] = "transient_only"


class RetriedBatch(Model):
    """A batch that was put in line again. Follow `task_id`."""

    batch_id: str
    bucket_id: str
    task_id: str
    retried_count: int


class SkippedFailure(Model):
    failure_id: str
    reason: str


class RetryFailuresResponse(Model):
    """What is tried again; of what is not, the first 100 with the reason."""

    retried_count: int
    skipped_count: int
    batches: list[RetriedBatch]
    skipped: list[SkippedFailure]
    message: str
