"""The failure inbox: what failed in the batches of a namespace, why, and trying it again.

A failure belongs to a row of a batch and lives as long as the batch. ``ingest_commit.py`` writes it, in the transaction
that records the row; here it is read, and its row put in line again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import batches, buckets, causes, derivation, listing, namespaces, tiers
from tessera.context import Principal, Warehouse
from tessera.db.tables import batch_rows, objects
from tessera.db.tables import batches as batch_table
from tessera.db.tables import failures as entries
from tessera.errors import ConflictError, NotFoundError
from tessera.models.batches import Tier
from tessera.models.failures import (
    Failure,
    FailureDetail,
    FailureFilter,
    FailureState,
    ListFailuresRequest,
    ListFailuresResponse,
    RetriedBatch,
    RetryFailuresRequest,
    RetryFailuresResponse,
    SkippedFailure,
)
from tessera.models.tasks import FINISHED, TaskStatus
from tessera.pagination import PageRequest

#: An answer names so many of the failures that it passed over.
_SHOWN = 100


def list_(
    wh: Warehouse, principal: Principal, namespace: str, page: PageRequest, request: ListFailuresRequest
) -> ListFailuresResponse:
    """List failures of a namespace, the latest first, and count them by cause."""
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        wanted = sa.and_(_wanted(namespace_id, request), _in_state(request.state))
        by_cause = {
            cause: count
            for cause, count in connection.execute(
                sa.select(entries.c.cause, sa.func.count())
                .select_from(_joined())
                .where(wanted)
                .group_by(entries.c.cause)
                .order_by(entries.c.cause)
            )
        }
        rows = connection.execute(
            _query()
            .where(wanted)
            .order_by(entries.c.failed_at.desc(), entries.c.failure_id)
            .limit(page.limit)
            .offset(page.offset)
        ).mappings()
        results = [Failure(**_fields(row)) for row in rows]
    total = sum(by_cause.values())
    return ListFailuresResponse(
        results=results,
        by_cause=by_cause,
        total_count=total,
        pagination=listing.stand(wh, page, total, len(results)),
    )


def get(wh: Warehouse, principal: Principal, namespace: str, failure_id: str) -> FailureDetail:
    """Return a failure with its history."""
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        row = (
            connection.execute(
                _query().where(entries.c.namespace_id == namespace_id, entries.c.failure_id == failure_id)
            )
            .mappings()
            .one_or_none()
        )
    if row is None:
        raise NotFoundError("failure", failure_id)
    return FailureDetail(**_fields(row), history=row["history"])


def retry(
    wh: Warehouse, principal: Principal, namespace: str, request: RetryFailuresRequest
) -> RetryFailuresResponse:
    """Put rows that failed in line again, each in its own batch; their history is kept.

    Durable when it returns, and a task follows each batch. Rows of a batch that is under way, or that was
    cancelled, are passed over and named. Nothing to retry is a 409.
    """
    started: list[RetriedBatch] = []
    skipped: list[SkippedFailure] = []
    with wh.db.write() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        wanted = _to_retry(namespace_id, request)
        for batch_id, rows in _by_batch(_chosen(connection, wanted, request.failure_ids)).items():
            obstacle = _obstacle(rows[0])
            if obstacle is None and any(row.row_status == "FAILED" for row in rows):
                started.append(_restart(connection, namespace_id, batch_id, rows[0].bucket_id, wanted))
            skipped += [
                SkippedFailure(
                    failure_id=row.failure_id, reason=obstacle or "The row does not fail any more."
                )
                for row in rows
                if obstacle or row.row_status != "FAILED"
            ]
        if not started:
            raise ConflictError(
                f"There is nothing to retry. {skipped[0].reason if skipped else _nothing(connection, wanted, request)}",
                details={"skipped": [item.model_dump() for item in skipped[:_SHOWN]]},
            )
    wh.jobs.wake()
    count = sum(item.retried_count for item in started)
    return RetryFailuresResponse(
        retried_count=count,
        skipped_count=len(skipped),
        batches=started,
        skipped=skipped[:_SHOWN],
        message=f"{count} row(s) of {len(started)} batch(es) run again; {len(skipped)} passed over.",
    )


# --- inside --------------------------------------------------------------------------------------------


def _joined() -> sa.Join:
    return (
        sa.join(
            entries,
            batch_rows,
            sa.and_(
                batch_rows.c.batch_id == entries.c.batch_id,
                batch_rows.c.collection_id == entries.c.collection_id,
                batch_rows.c.object_id == entries.c.object_id,
            ),
        )
        .join(batch_table, batch_table.c.batch_id == entries.c.batch_id)
        .outerjoin(objects, objects.c.object_id == entries.c.object_id)
    )


def _query() -> sa.Select[Any]:
    return sa.select(
        entries,
        batch_rows.c.status.label("row_status"),
        batch_rows.c.attempts,
        batch_rows.c.retry_count,
        batch_rows.c.due_at,
        _overtaken().label("is_overtaken"),
        batch_table.c.bucket_id,
        batch_table.c.status.label("batch_status"),
        batch_table.c.tiers,
        objects.c.blobs,
    ).select_from(_joined())


def _wanted(namespace_id: str, request: FailureFilter) -> sa.ColumnElement[bool]:
    wanted: sa.ColumnElement[bool] = entries.c.namespace_id == namespace_id
    if request.cause:
        wanted &= entries.c.cause.in_(request.cause)
    for name in ("collection_id", "batch_id"):
        value = getattr(request, name)
        if value is not None:
            wanted &= entries.c[name] == value
    if request.object_id is not None:
        named = [request.object_id, derivation.document_source(request.object_id)]
        wanted &= entries.c.object_id.in_(named)
    return wanted


def _overtaken() -> sa.ColumnElement[bool]:
    """Say whether a batch has come to an end with the same object for the same collection since a row failed."""
    later = batch_rows.alias()
    return (
        sa.exists()
        .where(
            later.c.object_id == batch_rows.c.object_id,
            later.c.collection_id == batch_rows.c.collection_id,
            later.c.batch_id != batch_rows.c.batch_id,
            later.c.status.in_(["COMPLETED", "SKIPPED", "FAILED"]),
            later.c.updated_at > batch_rows.c.updated_at,
        )
        .correlate(batch_rows)
    )


def _in_state(state: FailureState) -> sa.ColumnElement[bool]:
    if state is FailureState.FAILED:
        return sa.and_(batch_rows.c.status == "FAILED", ~_overtaken())
    if state is FailureState.WAITING:
        return batch_rows.c.status == "PENDING"
    done = batch_rows.c.status.in_(["COMPLETED", "SKIPPED"])
    return sa.or_(done, sa.and_(batch_rows.c.status == "FAILED", _overtaken()))


def _state(row: RowMapping) -> FailureState:
    if row["row_status"] == "FAILED" and not row["is_overtaken"]:
        return FailureState.FAILED
    return FailureState.WAITING if row["row_status"] == "PENDING" else FailureState.RESOLVED


def _fields(row: RowMapping) -> dict[str, Any]:
    kind = causes.known(row["kind"])
    names = ("failure_id", "kind", "stage", "message", "failed_at", "attempts", "retry_count")
    places = ("bucket_id", "batch_id", "collection_id")
    return {
        **{name: row[name] for name in (*names, *places)},
        "object_id": derivation.plain_id(row["object_id"]),
        "document_id": derivation.document_of(row["object_id"]),
        "tier_num": tiers.number_of(
            [Tier.model_validate(tier) for tier in row["tiers"] or ()], row["collection_id"]
        ),
        "state": _state(row),
        "cause": kind.cause,
        "next_step": kind.next_step,
        "can_retry": kind.may_pass,
        "is_parked": kind.parked,
        "filename": _filename(row["blobs"] or ()),
        "retry_at": row["due_at"],
    }


def _filename(blobs: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the name of an object's first file that has one."""
    return next((name for blob in blobs if (name := (blob.get("details") or {}).get("filename"))), None)


def _to_retry(namespace_id: str, request: RetryFailuresRequest) -> sa.ColumnElement[bool]:
    wanted = _wanted(namespace_id, request)
    if request.failure_ids is not None:
        return wanted & entries.c.failure_id.in_(request.failure_ids)
    wanted &= ~_overtaken()
    if request.retry_mode == "transient_only":
        wanted &= entries.c.kind.not_in(causes.PERMANENT)
    return wanted


def _chosen(
    connection: Connection, wanted: sa.ColumnElement[bool], named: Sequence[str] | None
) -> Sequence[Any]:
    """Return the failures that are to be tried again. Raises `NotFoundError` for `named` ones that are not there."""
    columns = (
        entries.c.failure_id,
        entries.c.batch_id,
        batch_rows.c.status.label("row_status"),
        batch_table.c.bucket_id,
        batch_table.c.status.label("batch_status"),
    )
    if named is None:
        wanted = sa.and_(wanted, _in_state(FailureState.FAILED))
    rows = connection.execute(
        sa.select(*columns).select_from(_joined()).where(wanted).order_by(entries.c.failure_id)
    ).all()
    missing = [item for item in dict.fromkeys(named or ()) if item not in {row.failure_id for row in rows}]
    if missing:
        error = NotFoundError("failure", missing[0])
        error.details["missing"] = [item[:128] for item in missing[:_SHOWN]]
        raise error
    return rows


def _by_batch(rows: Sequence[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.batch_id, []).append(row)
    return found


def _obstacle(row: Any) -> str | None:
    """Return why no row of this batch can be put in line now, None when they can."""
    if row.batch_status == TaskStatus.CANCELED:
        return (
            f"Batch {row.batch_id} was cancelled; POST /v1/buckets/{row.bucket_id}/batches/{row.batch_id}/retry "
            "takes up all that is left of it."
        )
    if row.batch_status not in FINISHED:
        return f"Batch {row.batch_id} is {row.batch_status}; retry when it has ended."
    return None


def _restart(
    connection: Connection, namespace_id: str, batch_id: str, bucket_id: str, wanted: sa.ColumnElement[bool]
) -> RetriedBatch:
    bucket = buckets.find(connection, namespace_id, bucket_id)
    batch = (
        connection.execute(sa.select(batch_table).where(batch_table.c.batch_id == batch_id)).mappings().one()
    )
    chosen = sa.exists().where(
        entries.c.batch_id == batch_rows.c.batch_id,
        entries.c.collection_id == batch_rows.c.collection_id,
        entries.c.object_id == batch_rows.c.object_id,
        wanted,
    )
    task_id, retried, _ = batches.restart(connection, bucket, batch, chosen)
    assert task_id is not None
    return RetriedBatch(batch_id=batch_id, bucket_id=bucket_id, task_id=task_id, retried_count=retried)


def _nothing(connection: Connection, wanted: sa.ColumnElement[bool], request: RetryFailuresRequest) -> str:
    waiting = connection.execute(
        sa.select(sa.func.count())
        .select_from(_joined())
        .where(sa.and_(wanted, _in_state(FailureState.WAITING)))
    ).scalar_one()
    if waiting:
        return f"{waiting} row(s) are to be tried again already; wait for their batches to end."
    if request.retry_mode == "transient_only":
        return "Nothing fails that a plain retry can help. Send retry_mode 'all' to try everything again."
    return "Nothing fails."
