"""Which collections are still to get what taxonomies say of their documents: written down with what causes it.

A request that somebody made has a task. What documents leave that were written has none, and is asked for once for
however many writes come before it is done. `materialising.py` does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import new_tasks
from tessera.db.engine import now
from tessera.db.tables import collections, enrichments, tasks
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.tasks import TaskStatus, TaskType


def request(
    connection: Connection,
    place: Mapping[Any, Any],
    collection: Mapping[Any, Any],
    taxonomy_ids: Sequence[str],
    filters: JsonObject | None = None,
    total: int | None = None,
) -> str:
    """Ask for every document of a collection, or those that `filters` let through, to be compared; return the task."""
    at, namespace_id = now(), place["namespace_id"]
    told = {
        "namespace_id": namespace_id,
        "collection_id": collection["collection_id"],
        "taxonomy_ids": list(taxonomy_ids),
        "stage": "queued",
        "total": total or 0,
        "done": 0,
        "failed": 0,
    }
    task_id = new_tasks.add(
        connection,
        place["organization_id"],
        namespace_id,
        TaskType.TAXONOMIES_MATERIALIZE,
        [collection["collection_id"], *taxonomy_ids],
        told,
        at,
    )
    _add(
        connection, namespace_id, collection["collection_id"], task_id, {"is_full": True, "filters": filters}
    )
    return task_id


def note_written(connection: Connection, namespace_id: str, collection_id: str) -> bool:
    """Ask for the documents that were written to be compared, if the collection has taxonomies; say whether it has."""
    applied = connection.execute(
        sa.select(collections.c.taxonomy_applications).where(collections.c.collection_id == collection_id)
    ).scalar()
    if not applied:
        return False
    waits = connection.execute(
        sa.select(enrichments.c.targets).where(
            enrichments.c.collection_id == collection_id, enrichments.c.task_id.is_(None)
        )
    ).scalars()
    # One that was begun may have passed what is written now.
    if not any("done" not in targets for targets in waits):
        _add(connection, namespace_id, collection_id, None, {"is_full": False, "filters": None})
    return True


def cancel(connection: Connection, collection_id: str) -> None:
    """End what was asked for a collection that is about to be deleted; its rows go with it."""
    asked = sa.select(enrichments.c.task_id).where(
        enrichments.c.collection_id == collection_id, enrichments.c.task_id.is_not(None)
    )
    connection.execute(
        sa.update(tasks)
        .where(tasks.c.task_id.in_(asked))
        .values(status=TaskStatus.CANCELED, error="The collection was deleted.", updated_at=now())
    )


def due(connection: Connection) -> list[tuple[str, str]]:
    """Return (id, namespace) of what can be done now, the oldest first."""
    rows = connection.execute(
        sa.select(enrichments.c.enrichment_id, enrichments.c.namespace_id)
        .where(enrichments.c.due_at <= now())
        .order_by(enrichments.c.due_at, enrichments.c.created_at)
        .limit(100)
    )
    return [(enrichment_id, namespace_id) for enrichment_id, namespace_id in rows]


def _add(
    connection: Connection,
    namespace_id: str,
    collection_id: str,
    task_id: str | None,
    targets: JsonObject,
) -> None:
    at = now()
    connection.execute(
        enrichments.insert().values(
            enrichment_id=new_id("enr"),
            namespace_id=namespace_id,
            collection_id=collection_id,
            task_id=task_id,
            targets=targets,
            due_at=at,
            created_at=at,
        )
    )
