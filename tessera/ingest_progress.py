"""How far a batch and its tiers are, and how their rows ended, as their tasks tell it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import derivation
from tessera.db.engine import now
from tessera.db.tables import batch_rows, tasks
from tessera.ingest_attempt import Attempt, links_of
from tessera.models.tasks import TaskStatus

#: Progress is counted at most so often, and takes at most a hundredth of the time.
PROGRESS_INTERVAL_S = 0.5


def counts_by_status(connection: Connection, which: sa.ColumnElement[bool]) -> dict[str, int]:
    """Return how many of the rows `which` there are by status."""
    return {
        status: count
        for status, count in connection.execute(
            sa.select(batch_rows.c.status, sa.func.count()).where(which).group_by(batch_rows.c.status)
        )
    }


def told_of(counts: Mapping[str, int]) -> dict[str, int]:
    """Return what a task says of so many rows by status."""
    total = sum(counts.values())
    return {"total": total, "done": total - counts.get("PENDING", 0), "failed": counts.get("FAILED", 0)}


def outcome_of(
    connection: Connection, which: sa.ColumnElement[bool], counts: Mapping[str, int]
) -> tuple[TaskStatus, str | None]:
    """Return how rows ended together, and what is said of those that failed."""
    failed, total = counts.get("FAILED", 0), sum(counts.values())
    if not failed:
        return TaskStatus.COMPLETED, None
    first = connection.execute(
        sa.select(batch_rows.c.object_id, batch_rows.c.error_message)
        .where(which, batch_rows.c.status == "FAILED")
        .order_by(batch_rows.c.collection_id, batch_rows.c.object_id)
        .limit(1)
    ).one()
    name = derivation.plain_id(first.object_id)
    error = f"{failed} of {total} rows failed; the first, {name}: {first.error_message}"
    return TaskStatus.FAILED if failed == total else TaskStatus.COMPLETED_WITH_ERRORS, error


def record_progress(
    connection: Connection, attempt: Attempt, stage: str, counts: Mapping[str, int] | None = None
) -> None:
    """Write how far the batch is into its task: `counts` if they are known, else counted when it is time."""
    started = time.monotonic()
    if not attempt.task_id or (counts is None and started < attempt.pace.due_s):
        return
    if counts is None:
        by_collection = _counts_by_collection(connection, attempt.batch_id)
        counts = sum(by_collection.values(), Counter())
        _record_tier_progress(connection, attempt, stage, by_collection)
        counted = time.monotonic()
        attempt.pace.due_s = counted + max(PROGRESS_INTERVAL_S, 100 * (counted - started))
    told = told_of(counts)
    connection.execute(
        sa.update(tasks)
        .where(tasks.c.task_id == attempt.task_id)
        .values(
            additional_data={
                "batch_id": attempt.batch_id,
                "stage": stage,
                **told,
                **attempt.pace.meter.read(time.monotonic(), done=told["done"], total=told["total"]),
                **links_of(attempt.compute),
            },
            updated_at=now(),
        )
    )


def _counts_by_collection(connection: Connection, batch_id: str) -> dict[str, Counter[str]]:
    """Return how many rows of each collection there are by status."""
    found: dict[str, Counter[str]] = {}
    for collection_id, status, count in connection.execute(
        sa.select(batch_rows.c.collection_id, batch_rows.c.status, sa.func.count())
        .where(batch_rows.c.batch_id == batch_id)
        .group_by(batch_rows.c.collection_id, batch_rows.c.status)
    ):
        found.setdefault(collection_id, Counter())[status] = count
    return found


def _record_tier_progress(
    connection: Connection, attempt: Attempt, stage: str, by_collection: Mapping[str, Counter[str]]
) -> None:
    """Write how far the tier that runs is into its own task, if it has one."""
    tier = next((tier for tier in attempt.tiers if tier.status == TaskStatus.IN_PROGRESS), None)
    if tier is None or tier.task_id in (None, attempt.task_id):
        return
    told = told_of(sum((by_collection.get(c, Counter()) for c in tier.collection_ids), Counter()))
    rates = attempt.pace.tier_meter.read(time.monotonic(), done=told["done"], total=told["total"])
    this = tasks.c.task_id == tier.task_id
    known = connection.execute(sa.select(tasks.c.additional_data).where(this)).scalar() or {}
    connection.execute(
        sa.update(tasks)
        .where(this)
        .values(additional_data={**known, "stage": stage, **told, **rates}, updated_at=now())
    )
