"""Routes of tasks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from tessera import tasks
from tessera.api import streams
from tessera.api.auth import Asking, bearer
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.errors import UnauthorizedError
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


@router.get(
    "/v1/tasks/{task_id}",
    response_model=TaskResponse,
    responses={
        200: {
            "description": "The task; with Accept: text/event-stream, events as it goes on.",
            "content": {streams.MEDIA_TYPE: {"schema": {"type": "string"}}},
        },
        204: {"description": "A stream whose last event was received already."},
    },
)
def get_task(
    wh: Wh,
    asking: Asking,
    request: Request,
    task_id: TaskId,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    last_event_id: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> TaskResponse | Response:
    """Return a task with its progress; COMPLETED means durable and findable.

    With `Accept: text/event-stream` the answer stays open: an event `progress` now and whenever something changed,
    its data a TaskEvent; in the end one event `task`, its data the task.
    """
    task = tasks.get(wh, asking, task_id)
    if not _wants_events(accept):
        return task
    keys, key = request.app.state.keys, bearer(request.scope)

    async def may_go_on() -> bool:
        try:
            present = await run_in_threadpool(keys.check, key) if keys.blocking else keys.check(key)
        except UnauthorizedError:
            return False
        return (present.permissions, present.scopes) == granted

    granted = (asking.permissions, asking.scopes)
    open_streams: streams.Streams = request.app.state.streams
    return open_streams.respond(task, may_go_on, last_event_id)


def _wants_events(accept: str | None) -> bool:
    """Whether a stream is asked for by name: a client that takes anything gets JSON."""
    named = [part.partition(";")[0].strip().lower() for part in (accept or "").split(",")]
    return streams.MEDIA_TYPE in named and "application/json" not in named


@router.delete("/v1/tasks/{task_id}")
def delete_task(wh: Wh, asking: Asking, task_id: TaskId) -> GenericDeleteResponse:
    """Delete a finished task; what it did stays. A 409 while it is under way."""
    return tasks.delete(wh, asking, task_id)
