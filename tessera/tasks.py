"""Tasks: what goes on in the background.

They belong to an organization; a key that is confined to namespaces sees those of its namespaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import listing, namespaces, progress, tiers
from tessera.context import Principal, Warehouse
from tessera.db.tables import batch_rows, batches, tasks
from tessera.db.tables import namespaces as namespace_rows
from tessera.errors import ConflictError, NotFoundError
from tessera.models.tasks import (
    FINISHED,
    GenericDeleteResponse,
    ListTasksRequest,
    ListTasksResponse,
    TaskEvent,
    TaskResponse,
    TaskStatus,
    TaskType,
)
from tessera.pagination import PageRequest

#: Ids looked up in one statement; SQLite bounds the number of parameters.
_SLICE = 5000
#: States in which what a batch's task says of itself is its latest count.
_SAYS_ITSELF = frozenset({TaskStatus.IN_PROGRESS, TaskStatus.COMPLETED, TaskStatus.COMPLETED_WITH_ERRORS})


def get(wh: Warehouse, principal: Principal, task_id: str) -> TaskResponse:
    """Return a task. COMPLETED means that what it was to do is durable, and findable where it made documents."""
    with wh.db.read() as connection:
        row = _find(connection, principal, task_id)
        return answer(connection, row)


def list_(
    wh: Warehouse, principal: Principal, page: PageRequest, request: ListTasksRequest
) -> ListTasksResponse:
    """List tasks, the newest first unless sorted otherwise."""
    with wh.db.read() as connection:
        mine = tasks.c.organization_id == principal.organization_id
        if request.status is not None:
            mine &= tasks.c.status == request.status.value
        if request.task_type is not None:
            mine &= tasks.c.task_type == request.task_type
        visible = _visible(connection, principal)
        newest_first = (tasks.c.created_at.desc(), tasks.c.task_id)
        plain = visible is None and not request.filters and not request.search and request.sort is None
        if plain:
            total = connection.execute(sa.select(sa.func.count()).select_from(tasks).where(mine)).scalar_one()
            rows = list(
                connection.execute(
                    sa.select(tasks).where(mine).order_by(*newest_first).limit(page.limit).offset(page.offset)
                ).mappings()
            )
        else:
            # Closed whatever happens: a result that is left open disturbs the next use of its connection.
            with connection.execute(sa.select(tasks).where(mine).order_by(*newest_first)) as found:
                chosen = listing.choose(
                    (row for row in found.mappings() if _sees(principal, row, visible)),
                    filters=request.filters,
                    search=request.search,
                    search_in=("task_id", "task_type", "error"),
                    sort=(request.sort.field, request.sort.direction) if request.sort else None,
                    id_field="task_id",
                )
            total = len(chosen)
            rows = chosen[page.offset : page.offset + page.limit]
        results = [answer(connection, row) for row in rows]
    return ListTasksResponse(
        results=results, pagination=listing.stand(wh, page, total, len(results)), total_count=total
    )


def delete(wh: Warehouse, principal: Principal, task_id: str) -> GenericDeleteResponse:
    """Delete a finished task. What it did stays."""
    with wh.db.write() as connection:
        row = _find(connection, principal, task_id)
        if row["status"] not in FINISHED:
            remedy = (
                "Cancel its batch first (POST /v1/buckets/<bucket>/batches/<batch>/cancel), or wait until it has ended."
                if row["task_type"] in (TaskType.BUCKETS_BATCHES_PROCESS, TaskType.FEATURE_EXTRACTOR_RUN)
                else "Wait until it has ended."
            )
            raise ConflictError(
                f"Task {task_id} is {row['status']}; only a finished task can be deleted. {remedy}",
                details={"task_id": task_id, "status": row["status"]},
            )
        connection.execute(sa.delete(tasks).where(tasks.c.task_id == task_id))
    return GenericDeleteResponse(message=f"Task {task_id} was deleted.")


def changed(wh: Warehouse, seen: Mapping[str, str | None]) -> dict[str, tuple[str, TaskResponse | None]]:
    """Return those of the tasks `seen` that are not as they were: each with what to give as seen next.

    For streams whose right to see them was checked: what a thousand of them follow is read once. None stands for a
    task that was never seen, and for one that is gone.
    """
    found: dict[str, tuple[str, TaskResponse | None]] = {}
    with wh.db.read() as connection:
        wanted = list(seen)
        for start in range(0, len(wanted), _SLICE):
            some = tasks.c.task_id.in_(wanted[start : start + _SLICE])
            states = connection.execute(
                sa.select(tasks.c.task_id, tasks.c.status, tasks.c.updated_at).where(some)
            )
            now_there = {task_id: f"{status} {at}" for task_id, status, at in states}
            for task_id in wanted[start : start + _SLICE]:
                state = now_there.get(task_id, "gone")
                if state != seen[task_id]:
                    found[task_id] = state, _read(connection, task_id)
    return found


def event(task: TaskResponse) -> TaskEvent:
    """Return what a stream tells of a task that has not ended."""
    told = task.additional_data["progress"]
    return TaskEvent.model_validate({**told, "task_id": task.task_id, "status": task.status})


def _read(connection: Connection, task_id: str) -> TaskResponse | None:
    row = connection.execute(sa.select(tasks).where(tasks.c.task_id == task_id)).mappings().one_or_none()
    return answer(connection, row) if row is not None else None


def answer(connection: Connection, row: Mapping[Any, Any]) -> TaskResponse:
    """Return a task as the API shows it, with the progress of its batch."""
    extra = dict(row["additional_data"] or {})
    if row["task_type"] == TaskType.BUCKETS_BATCHES_PROCESS and row["inputs"]:
        extra |= _of_batch(connection, row, extra)
    told = progress.shown(row["status"], extra).model_dump()
    # What was counted last stands beside: a task that has ended does not say 99 % there.
    extra |= {name: told[name] for name in ("percent", "remaining_s") if name in extra}
    extra["progress"] = told
    error = row["error"]
    if error:
        extra["error"] = error
    return TaskResponse(
        task_id=row["task_id"],
        task_type=row["task_type"],
        status=TaskStatus(row["status"]),
        inputs=row["inputs"] or [],
        outputs=row["outputs"] or [],
        additional_data=extra,
        error=error,
        error_message=error,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _of_batch(connection: Connection, task: Mapping[Any, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    columns = (batches.c.batch_id, batches.c.bucket_id, batches.c.namespace_id, batches.c.collection_ids)
    batch = (
        connection.execute(
            # Not the ids themselves: a hundred thousand of them would be parsed for one number.
            sa.select(
                *columns,
                batches.c.status,
                batches.c.tiers,
                batches.c.task_id,
                sa.func.json_array_length(batches.c.object_ids).label("object_count"),
            ).where(batches.c.batch_id == task["inputs"][0])
        )
        .mappings()
        .one_or_none()
    )
    if batch is None:
        return {}
    stages = tiers.of(batch)
    place = {
        **{column.name: batch[column.name] for column in columns},
        "object_count": batch["object_count"],
        "current_tier": tiers.current(stages) or 0,
        "total_tiers": max(1, len(stages)),
    }
    if batch["task_id"] != task["task_id"]:
        # A retry has its own task; what this one did is what it said last.
        return place
    if task["status"] in _SAYS_ITSELF and "total" in known:
        return place  # written by whoever runs it, often enough; counting reads every row
    counts: dict[str, int] = {
        status: count
        for status, count in connection.execute(
            sa.select(batch_rows.c.status, sa.func.count())
            .where(batch_rows.c.batch_id == batch["batch_id"])
            .group_by(batch_rows.c.status)
        )
    }
    total = sum(counts.values())
    return {
        **place,
        "stage": "done" if task["status"] in FINISHED else known.get("stage", "queued"),
        "total": total,
        "done": total - counts.get("PENDING", 0),
        "failed": counts.get("FAILED", 0),
    }


def _find(connection: Connection, principal: Principal, task_id: str) -> RowMapping:
    row = (
        connection.execute(
            sa.select(tasks).where(
                tasks.c.task_id == task_id, tasks.c.organization_id == principal.organization_id
            )
        )
        .mappings()
        .one_or_none()
    )
    if row is None or not _sees(principal, row, _visible(connection, principal)):
        raise NotFoundError("task", task_id)
    return row


def _sees(principal: Principal, row: RowMapping, visible: set[str] | None) -> bool:
    if visible is None or row["namespace_id"] in visible:
        return True
    # The namespace that a task deletes is no row any more, but whoever could see it may follow its end.
    gone = row["additional_data"] or {}
    return row["task_type"] == TaskType.NAMESPACES_DELETE and namespaces.in_scope(
        principal, str(gone.get("namespace_id")), str(gone.get("namespace_name"))
    )


def _visible(connection: Connection, principal: Principal) -> set[str] | None:
    """Return the namespaces whose tasks the key may see; None means all, and those of no namespace too."""
    if namespaces.in_scope(principal, "", ""):
        return None
    rows = connection.execute(
        sa.select(namespace_rows.c.namespace_id, namespace_rows.c.namespace_name).where(
            namespace_rows.c.organization_id == principal.organization_id
        )
    )
    return {namespace_id for namespace_id, name in rows if namespaces.in_scope(principal, namespace_id, name)}
