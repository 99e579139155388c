"""Routes of tasks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from tessera import tasks
from tessera.api.auth import Asking
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.models.tasks import (
    GenericDeleteResponse,
    ListTasksRequest,
    ListTasksResponse,
    TaskResponse,
)

router = Router(tags=["Tasks"])

TaskId = Annotated[str, Path(examples=["tsk_0f3a9c5e77d1b2c4"])]


@router.post("/v1/tasks/list")
def list_tasks(
    wh: Wh, asking: Asking, page: Paging, body: ListTasksRequest | None = None
) -> ListTasksResponse:
    """List the organization's tasks, the newest first."""
    return tasks.list_(wh, asking, page, body or ListTasksRequest())


@router.get("/v1/tasks")
def list_tasks_get(wh: Wh, asking: Asking, page: Paging) -> ListTasksResponse:
    """List the organization's tasks, the newest first."""
    return tasks.list_(wh, asking, page, ListTasksRequest())


@router.get("/v1/tasks/{task_id}")
def get_task(wh: Wh, asking: Asking, task_id: TaskId) -> TaskResponse:
    """Return a task with its progress; COMPLETED means durable and findable."""
    return tasks.get(wh, asking, task_id)


@router.delete("/v1/tasks/{task_id}")
def delete_task(wh: Wh, asking: Asking, task_id: TaskId) -> GenericDeleteResponse:
    """Delete a finished task; what it did stays. A 409 while it is under way."""
    return tasks.delete(wh, asking, task_id)
