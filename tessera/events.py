"""Events: what happened, written down for webhooks in the transaction that made it happen.

So an event is there exactly when its effect is, whatever is killed when. It is written once for each channel of
each active webhook of the organization that wants its type; without any, nothing is. Bodies hold ids,
counts and names of collections, never content: what was erased is in no event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera.db.engine import notify, now
from tessera.db.tables import cluster_triggers, namespaces, webhook_deliveries, webhooks
from tessera.ids import new_id
from tessera.models.webhooks import EventType

#: What is told to who waits for events to deliver.
TOPIC = "webhook_deliveries"

#: The events that this server emits, and what a cache in front of it must forget: one ``key``, a ``collection``, or
#: what it holds of the whole ``namespace``. The other types may be subscribed to; nothing causes them yet.
CACHE_SCOPES: Mapping[EventType, str] = {
    EventType.OBJECT_CREATED: "key",
    EventType.OBJECTS_CREATED_BATCH: "key",
    EventType.OBJECT_UPDATED: "key",
    EventType.OBJECT_DELETED: "collection",
    EventType.COLLECTION_CREATED: "namespace",
    EventType.COLLECTION_UPDATED: "collection",
    EventType.COLLECTION_DELETED: "namespace",
    EventType.COLLECTION_DOCUMENTS_WRITTEN: "collection",
    EventType.CLUSTER_CREATED: "key",
    EventType.CLUSTER_UPDATED: "key",
    EventType.CLUSTER_DELETED: "key",
    EventType.CLUSTER_EXECUTION_STARTED: "key",
    EventType.CLUSTER_EXECUTION_COMPLETED: "key",
    EventType.CLUSTER_EXECUTION_FAILED: "key",
    EventType.TRIGGER_CREATED: "key",
    EventType.TRIGGER_UPDATED: "key",
    EventType.TRIGGER_DELETED: "key",
    EventType.TRIGGER_PAUSED: "key",
    EventType.TRIGGER_RESUMED: "key",
    EventType.TRIGGER_FIRED: "key",
    EventType.TRIGGER_EXECUTION_COMPLETED: "key",
    EventType.TRIGGER_EXECUTION_FAILED: "key",
    EventType.TAXONOMY_CREATED: "namespace",
    EventType.TAXONOMY_UPDATED: "namespace",
    EventType.TAXONOMY_DELETED: "namespace",
}

#: Built once: it runs with every change.
_SUBSCRIBED = (
    sa.select(
        webhooks.c.webhook_id,
        webhooks.c.event_types,
        sa.func.json_array_length(webhooks.c.channels).label("channels"),
    )
    .join(namespaces, namespaces.c.organization_id == webhooks.c.organization_id)
    .where(namespaces.c.namespace_id == sa.bindparam("namespace_id"), webhooks.c.is_active)
)

#: Counts documents for the triggers that wait for them. One that has enough is due, after its cooldown.
_COUNT = (
    sa.update(cluster_triggers)
    .where(
        cluster_triggers.c.collection_id == sa.bindparam("of"),
        cluster_triggers.c.event_type == sa.bindparam("what"),
        cluster_triggers.c.status == "active",
    )
    .values(
        event_counter=cluster_triggers.c.event_counter + sa.bindparam("more", type_=sa.Integer),
        due_at=sa.case(
            (cluster_triggers.c.due_at.is_not(None), cluster_triggers.c.due_at),
            (
                cluster_triggers.c.event_counter + sa.bindparam("more", type_=sa.Integer)
                < cluster_triggers.c.event_threshold,
                sa.null(),
            ),
            (
                cluster_triggers.c.cooldown_until > sa.bindparam("at", type_=sa.String),
                cluster_triggers.c.cooldown_until,
            ),
            else_=sa.bindparam("at", type_=sa.String),
        ),
    )
)


def emit(
    connection: Connection,
    namespace_id: str,
    event_type: EventType,
    subject_id: str,
    metadata: Mapping[str, Any],
) -> None:
    """Write down, in the transaction of `connection`, that this happened to `subject_id`.

    `metadata` holds ids and counts. The deliverer is told when the transaction has committed.
    """
    subscribed = [
        row
        for row in connection.execute(_SUBSCRIBED, {"namespace_id": namespace_id}).all()
        if event_type in row.event_types
    ]
    if not subscribed:
        return
    at, event_id = now(), new_id("evt")
    body = orjson.dumps(
        {
            "event_id": event_id,
            "event_type": event_type,
            "occurred_at": at,
            "namespace_id": namespace_id,
            "subject": {"type": _subject(event_type), "id": subject_id},
            "metadata": dict(metadata),
            "cache_scope": CACHE_SCOPES[event_type],
        }
    )
    connection.execute(
        webhook_deliveries.insert(),
        [
            {
                "delivery_id": new_id("dlv"),
                "webhook_id": row.webhook_id,
                "channel": channel,
                "event_id": event_id,
                "event_type": event_type,
                "body": body,
                "due_at": at,
                "created_at": at,
                "updated_at": at,
            }
            for row in subscribed
            for channel in range(row.channels)
        ],
    )
    notify(connection, TOPIC)


def object_changed(connection: Connection, what: str, row: Mapping[Any, Any]) -> None:
    """Write down that the object of `row` was ``created``, ``updated`` or ``deleted``."""
    metadata = {"bucket_id": row["bucket_id"]}
    emit(connection, row["namespace_id"], EventType(f"object.{what}"), row["object_id"], metadata)


def objects_created(connection: Connection, bucket: Mapping[Any, Any], object_ids: Sequence[str]) -> None:
    """Write down which objects one request created together; nothing when there are none."""
    if object_ids:
        metadata = {"object_ids": list(object_ids), "object_count": len(object_ids)}
        namespace_id = bucket["namespace_id"]
        emit(connection, namespace_id, EventType.OBJECTS_CREATED_BATCH, bucket["bucket_id"], metadata)


def collection_changed(connection: Connection, what: str, row: Mapping[Any, Any], **more: Any) -> None:
    """Write down that the collection of `row` was ``created``, ``updated`` or ``deleted``."""
    metadata = {"collection_name": row["collection_name"], **more}
    emit(connection, row["namespace_id"], EventType(f"collection.{what}"), row["collection_id"], metadata)


def taxonomy_changed(connection: Connection, what: str, row: Mapping[Any, Any], **more: Any) -> None:
    """Write down that the taxonomy of `row` was ``created``, ``updated`` or ``deleted``."""
    metadata = {"taxonomy_name": row["taxonomy_name"], "version": row["version"], **more}
    emit(connection, row["namespace_id"], EventType(f"taxonomy.{what}"), row["taxonomy_id"], metadata)


def documents_written(
    connection: Connection,
    namespace_id: str,
    collection_id: str,
    *,
    written: int = 0,
    deleted: int = 0,
    are_edits: bool = False,
    **ids: str,
) -> None:
    """Write down that a collection's documents changed: so many were made or replaced, so many went.

    Triggers of clusters count them, but for edits: what clusters write into documents is one, and fires none.
    """
    if written and not are_edits:
        connection.execute(
            _COUNT, {"of": collection_id, "what": "documents_added", "more": written, "at": now()}
        )
    if deleted:
        connection.execute(
            _COUNT, {"of": collection_id, "what": "documents_deleted", "more": deleted, "at": now()}
        )
    metadata = {"documents_written": written, "documents_deleted": deleted, **ids}
    emit(connection, namespace_id, EventType.COLLECTION_DOCUMENTS_WRITTEN, collection_id, metadata)


def _subject(event_type: EventType) -> str:
    """Return the kind of what the event is about: ``bucket`` for objects that were created together."""
    return "bucket" if event_type is EventType.OBJECTS_CREATED_BATCH else event_type.partition(".")[0]
