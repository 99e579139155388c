"""What becomes of a row that failed: it is tried again a little later, or FAILED; either way its history says so.

Everything here happens in the transaction of whoever records the row.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import causes
from tessera.db.engine import insert_or_replace, now
from tessera.db.tables import batch_rows, failures
from tessera.extraction import RowResult
from tessera.ids import failure_id

#: A row that comes back by itself does so after this, and after four times as long every time.
RETRY_PAUSE_S = 1.0
#: Of a row's failures so many are kept, the last ones.
MAX_HISTORY = 50


def record(
    connection: Connection,
    batch_id: str,
    task_id: str | None,
    failed: Sequence[RowResult],
    collection_id: str | None = None,
    *,
    retries: int,
    is_last: bool = True,
) -> None:
    """Record one more failure of rows that are to be done: of one collection, or of all that read the object.

    A row whose failure may pass by itself stays PENDING and is due again after a pause, `retries` times; one that
    is being tried again anyway (not `is_last`) stays PENDING too. The others are FAILED.
    """
    results = {result.object_id: result for result in failed}
    which = sa.and_(
        batch_rows.c.batch_id == batch_id,
        batch_rows.c.object_id.in_(results),
        batch_rows.c.status == "PENDING",
    )
    if collection_id is not None:
        which &= batch_rows.c.collection_id == collection_id
    rows = connection.execute(sa.select(batch_rows).where(which)).mappings().all() if results else ()
    if not rows:
        return
    at = now()
    connection.execute(
        sa.update(batch_rows)
        .where(
            batch_rows.c.batch_id == batch_id,
            batch_rows.c.collection_id == sa.bindparam("b_collection_id"),
            batch_rows.c.object_id == sa.bindparam("b_object_id"),
        )
        .values(
            status=sa.bindparam("b_status"),
            due_at=sa.bindparam("b_due_at"),
            error_kind=sa.bindparam("b_kind"),
            error_message=sa.bindparam("b_message"),
            attempts=batch_rows.c.attempts + 1,
            tries=batch_rows.c.tries + 1,
            updated_at=at,
        ),
        [_change(row, results[row["object_id"]], retries, is_last=is_last) for row in rows],
    )
    _write_down(connection, task_id, rows, results, at)


def free_due(connection: Connection, batch_id: str) -> float | None:
    """Free the rows of a batch that are due to be tried again; return in how many seconds the first one is.

    That is 0 when some were freed, and None when none waits.
    """
    waiting = sa.and_(
        batch_rows.c.batch_id == batch_id,
        batch_rows.c.status == "PENDING",
        batch_rows.c.due_at.is_not(None),
    )
    first = connection.execute(sa.select(sa.func.min(batch_rows.c.due_at)).where(waiting)).scalar()
    if first is None:
        return None
    wait_s = (datetime.fromisoformat(first) - datetime.now(UTC)).total_seconds()
    if wait_s > 0:
        return wait_s
    # Those that are due a moment later go with them.
    soon = _in(RETRY_PAUSE_S)
    connection.execute(sa.update(batch_rows).where(waiting, batch_rows.c.due_at <= soon).values(due_at=None))
    return 0.0


def _change(row: RowMapping, result: RowResult, retries: int, *, is_last: bool) -> dict[str, str | None]:
    again = is_last and causes.known(result.error_kind).comes_back and row["tries"] < retries
    # Half as long or half as long again: what failed together does not come back together.
    pause_s = RETRY_PAUSE_S * 4 ** row["tries"] * random.uniform(0.5, 1.5)
    return {
        "b_collection_id": row["collection_id"],
        "b_object_id": row["object_id"],
        "b_status": "PENDING" if again or not is_last else "FAILED",
        "b_due_at": _in(pause_s) if again else None,
        "b_kind": result.error_kind,
        "b_message": causes.plain(result.error_message or ""),
    }


def _write_down(
    connection: Connection,
    task_id: str | None,
    rows: Sequence[RowMapping],
    results: Mapping[str, RowResult],
    at: str,
) -> None:
    """Add what failed each of `rows` (as they were before it) to its history."""
    ids = [failure_id(row["batch_id"], row["collection_id"], row["object_id"]) for row in rows]
    before = {
        identifier: history
        for identifier, history in connection.execute(
            sa.select(failures.c.failure_id, failures.c.history).where(failures.c.failure_id.in_(ids))
        )
    }
    entries = []
    for identifier, row in zip(ids, rows, strict=True):
        result = results[row["object_id"]]
        place = causes.known(result.error_kind)
        failure = {
            "kind": result.error_kind,
            "stage": result.stage or place.stage,
            "message": causes.plain(result.error_message or ""),
        }
        told = {"attempt": row["attempts"] + 1, "task_id": task_id, **failure, "at": at}
        entries.append(
            {
                "failure_id": identifier,
                **{key: row[key] for key in ("namespace_id", "batch_id", "collection_id", "object_id")},
                "cause": place.cause,
                **failure,
                "failed_at": at,
                "history": [*before.get(identifier, ()), told][-MAX_HISTORY:],
            }
        )
    insert_or_replace(connection, failures, entries)


def _in(seconds: float) -> str:
    """Return the time in so many seconds, as the database holds it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
