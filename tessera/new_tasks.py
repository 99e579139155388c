"""Rows of tasks: how each part of the server that starts work in the background writes down that it did."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from tessera.db.tables import tasks
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.tasks import TaskStatus, TaskType


def add(
    connection: Connection,
    organization_id: str,
    namespace_id: str | None,
    task_type: TaskType,
    inputs: Sequence[str],
    additional_data: JsonObject,
    at: str,
    *,
    status: TaskStatus = TaskStatus.PENDING,
) -> str:
    """Add a task to the transaction of what it is about, and return its id.

    A task with a `namespace_id` goes when its namespace goes; one that outlives it, as its deletion does, has None.
    """
    task_id = new_id("tsk")
    connection.execute(
        tasks.insert().values(
            task_id=task_id,
            organization_id=organization_id,
            namespace_id=namespace_id,
            task_type=task_type,
            status=status,
            inputs=list(inputs),
            outputs=[],
            additional_data=additional_data,
            created_at=at,
            updated_at=at,
        )
    )
    return task_id
