"""Webhooks: who is told of which events, where, and what became of it."""

from __future__ import annotations

import base64
import binascii
import re
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from tessera.models.base import JsonObject, Model, PaginationResponse

#: What stands in answers for a value that is never shown. Sent back, it means: as it is.
HIDDEN = "********"

#: The Standard Webhooks specification allows secrets of 24 to 64 bytes, written so.
SECRET_PREFIX = "whsec_"  # noqa: S105  the mark of one, not one
SECRET_BYTES = range(24, 65)

#: A header's name (RFC 9110, 5.1: a token), and values that no receiver could read as two headers.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[\x20-\x7e]{0,4096}")
#: Headers that are the server's own, or the connection's.
_OWN_HEADERS = frozenset(
    {"host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection"}
    | {"accept", "accept-encoding", "user-agent", "expect", "te", "trailer", "upgrade", "keep-alive"}
)


class EventType(StrEnum):
    """What a webhook may be told of."""

    OBJECT_CREATED = "object.created"
    OBJECTS_CREATED_BATCH = "objects.created.batch"
    OBJECT_UPDATED = "object.updated"
    OBJECT_DELETED = "object.deleted"
    COLLECTION_CREATED = "collection.created"
    COLLECTION_UPDATED = "collection.updated"
    COLLECTION_DELETED = "collection.deleted"
    COLLECTION_DOCUMENTS_WRITTEN = "collection.documents.written"
    CLUSTER_CREATED = "cluster.created"
    CLUSTER_UPDATED = "cluster.updated"
    CLUSTER_DELETED = "cluster.deleted"
    CLUSTER_EXECUTION_STARTED = "cluster.execution.started"
    CLUSTER_EXECUTION_COMPLETED = "cluster.execution.completed"
    CLUSTER_EXECUTION_FAILED = "cluster.execution.failed"
    TRIGGER_CREATED = "trigger.created"
    TRIGGER_UPDATED = "trigger.updated"
    TRIGGER_DELETED = "trigger.deleted"
    TRIGGER_PAUSED = "trigger.paused"
    TRIGGER_RESUMED = "trigger.resumed"
    TRIGGER_FIRED = "trigger.fired"
    TRIGGER_EXECUTION_COMPLETED = "trigger.execution.completed"
    TRIGGER_EXECUTION_FAILED = "trigger.execution.failed"
    TAXONOMY_CREATED = "taxonomy.created"
    TAXONOMY_UPDATED = "taxonomy.updated"
    TAXONOMY_DELETED = "taxonomy.deleted"
    ALERT_CREATED = "alert.created"
    ALERT_UPDATED = "alert.updated"
    ALERT_DELETED = "alert.deleted"
    ALERT_TRIGGERED = "alert.triggered"
    ALERT_EXECUTION_COMPLETED = "alert.execution.completed"
    ALERT_EXECUTION_FAILED = "alert.execution.failed"


class NotificationChannel(StrEnum):
    EMAIL = "email"
    SLACK = "slack"
    WEBHOOK = "webhook"


class DeliveryStatus(StrEnum):
    """PENDING until a 2xx came (DELIVERED), or the server gave up (FAILED)."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"


class WebhookConfig(Model):
    """Where a channel leads. The query of `url` and the values of `headers` are kept sealed and never shown."""

    url: str = Field(min_length=1, max_length=8192, examples=["https://example.org/hooks/tessera"])
    headers: dict[str, str] | None = Field(
        None, max_length=32, examples=[{"Authorization": "Bearer of-the-receiver"}]
    )
    timeout: float = Field(10, gt=0, le=30, description="Seconds until an attempt counts as failed.")

    @model_validator(mode="before")
    @classmethod
    def _no_template(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("payload_template") is not None:
            raise ValueError("payload_template is not available: the body is always the event. Leave it out.")
        return value

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        seen: set[str] = set()
        for name, content in (value or {}).items():
            lower = name.lower()
            if not _TOKEN.fullmatch(name) or lower in seen:
                raise ValueError(f"headers: {name[:80]!r} is no name of a header, or stands there twice.")
            if lower in _OWN_HEADERS or lower.startswith("webhook-"):
                raise ValueError(f"headers: {name} is set by the server itself; leave it out.")
            if not _VALUE.fullmatch(content):
                raise ValueError(
                    f"headers: the value of {name} must be printable ASCII, at most 4096 characters."
                )
            seen.add(lower)
        return value


class WebhookChannel(Model):
    """One place that every event goes to; `channel` is ``webhook``, an HTTP POST."""

    channel: NotificationChannel = Field(examples=["webhook"])
    configs: WebhookConfig

    @model_validator(mode="before")
    @classmethod
    def _only_http(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("channel") in ("email", "slack"):
            raise ValueError(
                f"channel {value['channel']} is not available in this version. Use webhook, an HTTP POST: "
                '{"channel": "webhook", "configs": {"url": "https://…"}}.'
            )
        return value


def secret_bytes(secret: str) -> bytes | None:
    """Return the key that ``whsec_…`` stands for; None when it is not written so."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if secret.startswith(SECRET_PREFIX) and len(key) in SECRET_BYTES else None


def _is_secret(value: str) -> str:
    if secret_bytes(value) is None:
        raise ValueError(
            f"secret must be {SECRET_PREFIX} and the base64 of {SECRET_BYTES[0]} to {SECRET_BYTES[-1]} random bytes "
            '(echo "whsec_$(openssl rand -base64 32)"), or be left out.'
        )
    return value


class WebhookRequest(Model):
    """A webhook to create or to put in the place of one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "webhook_name": "search-cache",
                    "event_types": ["collection.documents.written", "object.deleted"],
                    "channels": [
                        {"channel": "webhook", "configs": {"url": "https://example.org/hooks/tessera"}}
                    ],
                }
            ]
        }
    )

    webhook_name: str = Field(min_length=1, max_length=200, examples=["search-cache"])
    event_types: list[EventType] = Field(min_length=1, max_length=100)
    channels: list[WebhookChannel] = Field(min_length=1, max_length=10)
    is_active: bool | None = Field(
        None, description="Absent: true. While false nothing is recorded for it, and nothing sent."
    )
    secret: Annotated[str, AfterValidator(_is_secret)] | None = Field(
        None,
        repr=False,
        description="Signs what is sent. Absent: made by the server when the webhook is created, kept by PUT.",
        json_schema_extra={"writeOnly": True, "format": "password"},
    )


class WebhookResponse(Model):
    """A webhook. `delivery_health` tells of the present run of failed deliveries, null when there is none."""

    webhook_id: str
    webhook_name: str
    event_types: list[EventType]
    channels: list[WebhookChannel]
    is_active: bool
    delivery_health: JsonObject | None = None
    created_at: str
    updated_at: str


class CreatedWebhookResponse(WebhookResponse):
    """The answer to a create: the only one that shows the secret."""

    secret: str


class ListWebhooksRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"is_active": True}]})

    event_type: EventType | None = None
    is_active: bool | None = None


class ListWebhooksResponse(Model):
    results: list[WebhookResponse]
    pagination: PaginationResponse
    total: int


class DeliveryAttempt(Model):
    at: str
    duration_ms: float
    status_code: int | None = Field(None, description="Status of the answer; null when none came.")
    error: str | None = None


class WebhookDelivery(Model):
    """One event for one channel. `event` is the body as it is sent; `history` holds the last 20 attempts."""

    delivery_id: str
    webhook_id: str
    channel: int = Field(description="Which of the webhook's channels, from 0.")
    event_id: str
    event_type: str
    event: JsonObject
    status: DeliveryStatus
    attempts: int
    next_attempt_at: str | None = Field(None, description="Null when it has ended.")
    history: list[DeliveryAttempt]
    redelivery_of: str | None = None
    created_at: str
    updated_at: str


class ListDeliveriesResponse(Model):
    results: list[WebhookDelivery]
    pagination: PaginationResponse
    total: int
