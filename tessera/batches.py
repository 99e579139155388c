"""Batches: objects that every collection reading their bucket processes together.

A batch is a set of rows, one for each object and collection. Submitting, cancelling and retrying change
states in one transaction and wake the jobs, which do the work (``ingest.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    batch_logs,
    buckets,
    causes,
    collections,
    idempotency,
    ingest,
    limits,
    listing,
    namespaces,
    progress,
    tasks,
)
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import batch_logs as log_lines
from tessera.db.tables import batch_rows, batches, failures, objects
from tessera.db.tables import collections as collection_rows
from tessera.db.tables import namespaces as namespace_rows
from tessera.db.tables import tasks as task_rows
from tessera.errors import BadRequestError, ConflictError, NotFoundError, quote
from tessera.ids import failure_id, new_id
from tessera.models.batches import (
    MAX_OBJECTS,
    AddObjectsRequest,
    BatchLogsResponse,
    BatchModel,
    BatchProgress,
    CreateBatchRequest,
    FailedDocumentsResponse,
    FailedObject,
    FailedRow,
    ListBatchesRequest,
    ListBatchesResponse,
    PatchBatchRequest,
    RetryBatchRequest,
    RetryBatchResponse,
    TierError,
    TierTask,
)
from tessera.models.collections import TriggerCollectionRequest, TriggerCollectionResponse
from tessera.models.tasks import FINISHED, GenericDeleteResponse, TaskResponse, TaskStatus, TaskType
from tessera.pagination import PageRequest

#: What the API calls the causes of failures in a tier's errors.
_CATEGORIES: Mapping[str, Literal["dependency", "validation", "resource", "network", "runtime"]] = {
    "unreadable": "validation",
    "unsupported": "validation",
    "unreachable": "network",
    "too_large": "resource",
    "limit": "resource",
    "model_missing": "dependency",
    "ours": "runtime",
}
#: A batch shows so many of the rows that failed; `failed_documents` has all.
_SHOWN_FAILURES = 100

#: Ids looked up in one statement; SQLite bounds the number of parameters.
_SLICE = 5000
_OPEN = ("PENDING", "IN_PROGRESS")


# --- create, read --------------------------------------------------------------------------------------


def create(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    request: CreateBatchRequest,
    *,
    idempotency_key: str | None = None,
) -> BatchModel:
    """Make a draft of a batch. Durable when it returns; nothing is processed before it is submitted.

    The collections are those that read the bucket now. Sent again with the same `idempotency_key` it makes
    nothing and returns the first one's batch.
    """
    body = request.model_dump(mode="json") if idempotency_key is not None else None
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        once = idempotency.once(
            principal, f"POST /v1/buckets/{place['bucket_id']}/batches", idempotency_key, body
        )
        batch_id = new_id("btch")
        known = idempotency.claim(connection, once, batch_id) if once is not None else None
        if known is None:
            object_ids = _existing(connection, place, request.object_ids)
            limits.check_quota(wh, connection, principal, "batch_objects", len(object_ids))
            wanted = _readers(connection, place, request.collection_ids)
            _insert(connection, place, batch_id, object_ids, wanted, request.metadata)
        row = _find(connection, place, known or batch_id, made=known)
        return _answer(connection, row)


def get(wh: Warehouse, principal: Principal, namespace: str, bucket: str, batch_id: str) -> BatchModel:
    """Return a batch. COMPLETED means that its documents are durable and findable."""
    with wh.db.read() as connection:
        return _answer(
            connection, _find(connection, buckets.resolve(connection, principal, namespace, bucket), batch_id)
        )


def list_(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    page: PageRequest,
    request: ListBatchesRequest,
) -> ListBatchesResponse:
    """List a bucket's batches, the newest first."""
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        wanted = batches.c.bucket_id == place["bucket_id"]
        if request.status is not None:
            wanted &= batches.c.status == request.status.value
        query = sa.select(batches).where(wanted).order_by(batches.c.created_at.desc(), batches.c.batch_id)
        if request.collection_id is None:
            total = connection.execute(
                sa.select(sa.func.count()).select_from(batches).where(wanted)
            ).scalar_one()
            rows = list(connection.execute(query.limit(page.limit).offset(page.offset)).mappings())
        else:
            chosen = [
                row
                for row in connection.execute(query).mappings()
                if request.collection_id in row["collection_ids"]
            ]
            total, rows = len(chosen), chosen[page.offset : page.offset + page.limit]
        results = [_answer(connection, row) for row in rows]
    return ListBatchesResponse(
        results=results, total_count=total, pagination=listing.stand(wh, page, total, len(results))
    )


def failed_documents(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    batch_id: str,
    *,
    collection_id: str | None = None,
    tier_num: int | None = None,
    limit: int = 100,
    offset: int = 0,
) -> FailedDocumentsResponse:
    """List the rows of a batch that failed, and why."""
    with wh.db.read() as connection:
        row = _find(connection, buckets.resolve(connection, principal, namespace, bucket), batch_id)
        failed = sa.and_(batch_rows.c.batch_id == row["batch_id"], batch_rows.c.status == "FAILED")
        if collection_id is not None:
            failed &= batch_rows.c.collection_id == collection_id
        if tier_num:
            failed &= sa.false()  # all collections of this version are in tier 0
        total = connection.execute(
            sa.select(sa.func.count()).select_from(batch_rows).where(failed)
        ).scalar_one()
        rows = connection.execute(
            sa.select(batch_rows, failures.c.stage)
            .select_from(_with_failures())
            .where(failed)
            .order_by(batch_rows.c.collection_id, batch_rows.c.object_id)
            .limit(limit)
            .offset(offset)
        ).mappings()
        results = [_failed_row(item) for item in rows]
    return FailedDocumentsResponse(
        batch_id=row["batch_id"], results=results, total=total, limit=limit, offset=offset
    )


def logs(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    batch_id: str,
    *,
    tier_num: int | None = None,
) -> BatchLogsResponse:
    """Return what happened to a batch: submitted, taken up, ended, and which rows failed."""
    with wh.db.read() as connection:
        row = _find(connection, buckets.resolve(connection, principal, namespace, bucket), batch_id)
        lines = batch_logs.read(connection, row["batch_id"], tier_num)
    return BatchLogsResponse(
        batch_id=row["batch_id"], status=TaskStatus(row["status"]), logs=lines, total=len(lines)
    )


# --- change --------------------------------------------------------------------------------------------


def add_objects(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    batch_id: str,
    request: AddObjectsRequest,
) -> BatchModel:
    """Add objects to a draft; those that it has already are not added twice."""
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        row = _find(connection, place, batch_id)
        if row["status"] != TaskStatus.DRAFT:
            raise _state(row, "Objects can be added only to a draft. Make another batch for them.")
        added = _existing(connection, place, request.object_ids)
        together = list(dict.fromkeys([*row["object_ids"], *added]))
        if len(together) > MAX_OBJECTS:
            raise BadRequestError(
                f"The batch would have {len(together)} objects; at most {MAX_OBJECTS} are allowed. Make another batch "
                "for the rest."
            )
        limits.check_quota(wh, connection, principal, "batch_objects", len(together))
        connection.execute(
            sa.update(batches)
            .where(batches.c.batch_id == row["batch_id"])
            .values(object_ids=together, updated_at=now())
        )
        return _answer(connection, _find(connection, place, batch_id))


def patch(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    batch_id: str,
    request: PatchBatchRequest,
) -> BatchModel:
    """Replace a batch's metadata, when given; null clears it."""
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        row = _find(connection, place, batch_id)
        if "metadata" in request.model_fields_set and (request.metadata or {}) != row["metadata"]:
            connection.execute(
                sa.update(batches)
                .where(batches.c.batch_id == row["batch_id"])
                .values(metadata=request.metadata or {}, updated_at=now())
            )
        return _answer(connection, _find(connection, place, batch_id))


def delete(
    wh: Warehouse, principal: Principal, namespace: str, bucket: str, batch_id: str
) -> GenericDeleteResponse:
    """Delete a batch; one that is under way is cancelled first. The documents that it made stay.

    What is under way is given up within seconds, and nothing of it is applied.
    """
    with wh.db.write() as connection:
        row = _find(connection, buckets.resolve(connection, principal, namespace, bucket), batch_id)
        if row["status"] in _OPEN:
            _cancel(connection, row)
        for table in (batch_rows, failures, log_lines):
            connection.execute(sa.delete(table).where(table.c.batch_id == row["batch_id"]))
        connection.execute(sa.delete(batches).where(batches.c.batch_id == row["batch_id"]))
    wh.jobs.wake()
    return GenericDeleteResponse(message=f"Batch {batch_id} was deleted; its documents stay.")


# --- run -----------------------------------------------------------------------------------------------


def submit(wh: Warehouse, principal: Principal, namespace: str, bucket: str, batch_id: str) -> TaskResponse:
    """Submit a batch: durable when it returns, findable when its task is COMPLETED.

    Can be repeated: a batch that was submitted answers with its task and nothing is done twice.
    """
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        row = _find(connection, place, batch_id)
        if row["status"] == TaskStatus.DRAFT:
            limits.check_quota(wh, connection, principal, "active_batches")
            limits.check_quota(wh, connection, principal, "documents")
        answer = _submit(connection, place, row)
    wh.jobs.wake()
    return answer


def process(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    object_ids: Sequence[str],
    idempotency_key: str | None,
) -> dict[str, str | None]:
    """Submit a batch of objects that were just made, and return its `batch_id` and `task_id`.

    Both are None when no collection reads the bucket: the objects wait for a batch then, as any others do. With an
    `idempotency_key` that of the request which made them, a repeated call finds the first one's batch.
    """
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        reading = _readers(connection, place, None)
        if not reading:
            return {"batch_id": None, "task_id": None}
        batch_id = new_id("btch")
        route = f"POST /v1/buckets/{place['bucket_id']}/objects?auto_process"
        once = idempotency.once(principal, route, idempotency_key, list(object_ids))
        known = idempotency.claim(connection, once, batch_id) if once is not None else None
        if known is None:
            limits.check_quota(wh, connection, principal, "active_batches")
            limits.check_quota(wh, connection, principal, "documents")
            _insert(connection, place, batch_id, object_ids, reading, None)
        row = _find(connection, place, known or batch_id, made=known)
        task = _submit(connection, place, row)
    wh.jobs.wake()
    return {"batch_id": row["batch_id"], "task_id": task.task_id}


def cancel(wh: Warehouse, principal: Principal, namespace: str, bucket: str, batch_id: str) -> TaskResponse:
    """Cancel a batch that is not finished. What is done stays; what is under way is given up within seconds.

    Nothing is applied once this has returned. Can be repeated. `retry` takes up what was left.
    """
    with wh.db.write() as connection:
        row = _find(connection, buckets.resolve(connection, principal, namespace, bucket), batch_id)
        if row["status"] == TaskStatus.DRAFT:
            raise _state(row, "There is nothing to cancel: submit it, or delete it.")
        if row["status"] in FINISHED and row["status"] != TaskStatus.CANCELED:
            raise _state(row, "It has ended already.")
        if row["status"] in _OPEN:
            _cancel(connection, row)
        answer = _task(connection, row["task_id"], batch_id)
    wh.jobs.wake()
    return answer


def retry(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    batch_id: str,
    request: RetryBatchRequest,
) -> RetryBatchResponse:
    """Run the failed rows of a finished batch again, and those that a cancel left; rows that are done stay.

    Durable when it returns. The retry has a task of its own; nothing to retry is a 409.
    """
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        row = _find(connection, place, batch_id)
        if row["status"] not in FINISHED:
            raise _state(row, "Only a batch that has ended can be retried.")
        again = batch_rows.c.retry_count < request.max_retry_count
        if request.retry_mode == "transient_only":
            again &= sa.or_(
                batch_rows.c.error_kind.is_(None), batch_rows.c.error_kind.not_in(causes.PERMANENT)
            )
        if request.tier_nums and 0 not in request.tier_nums:
            again &= sa.false()
        failed = sa.and_(batch_rows.c.batch_id == row["batch_id"], batch_rows.c.status == "FAILED")
        count_failed = _count(connection, failed)
        task_id, retried, left = restart(connection, place, row, again)
        if task_id is None:
            remedy = (
                "Send retry_mode 'all' to run permanent failures again, or a higher max_retry_count."
                if count_failed
                else "None of its rows failed."
            )
            raise _state(row, f"There is nothing to retry. {remedy}")
    wh.jobs.wake()
    stay = count_failed - retried
    return RetryBatchResponse(
        batch_id=row["batch_id"],
        task_id=task_id,
        status=TaskStatus.PENDING,
        retried_count=retried + left,
        skipped_count=stay,
        message=f"{retried + left} row(s) run again; {stay} failed row(s) stay as they are.",
    )


def restart(
    connection: Connection, bucket: RowMapping, row: RowMapping, again: sa.ColumnElement[bool]
) -> tuple[str | None, int, int]:
    """Put a finished batch in line again, for its failed rows that are `again` and those that a cancel left.

    Returns the id of the new task, None when there is no such row, and how many there are of both. What failed
    a row before is kept in its history.
    """
    at = now()
    mine = batch_rows.c.batch_id == row["batch_id"]
    left = connection.execute(
        sa.update(batch_rows)
        .where(mine, batch_rows.c.status == "PENDING")
        .values(tries=0, due_at=None, updated_at=at)
    ).rowcount
    retried = connection.execute(
        sa.update(batch_rows)
        .where(mine, batch_rows.c.status == "FAILED", again)
        .values(
            status="PENDING",
            error_kind=None,
            error_message=None,
            tries=0,
            due_at=None,
            retry_count=batch_rows.c.retry_count + 1,
            updated_at=at,
        )
    ).rowcount
    return (_start(connection, bucket, row, at) if retried or left else None), retried, left


def trigger(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    collection: str,
    request: TriggerCollectionRequest,
) -> TriggerCollectionResponse:
    """Submit a batch of all the objects of the collection's buckets, for this collection alone.

    Durable when it returns, findable when the task is COMPLETED. With several buckets there is a batch for
    each. Objects that did not change since they were processed cost nothing.
    """
    if request.source_filters or request.include_collections:
        raise BadRequestError(
            "source_filters and include_collections are not available in this version; leave them out. To process some "
            "of the objects, make a batch of them (POST /v1/buckets/<bucket>/batches)."
        )
    with wh.db.write() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        row = collections.find(connection, namespace_id, collection)
        places = [buckets.find(connection, namespace_id, b) for b in row["source"]["bucket_ids"]]
        if request.include_buckets:
            asked = set(request.include_buckets)
            places = [p for p in places if p["bucket_id"] in asked or p["bucket_name"] in asked]
        started: list[tuple[str, TaskResponse]] = []
        object_count = 0
        for place in places:
            ids = connection.execute(
                sa.select(objects.c.object_id)
                .where(objects.c.bucket_id == place["bucket_id"])
                .order_by(objects.c.created_at, objects.c.object_id)
            ).scalars()
            object_ids = list(ids)
            for start in range(0, len(object_ids), MAX_OBJECTS):
                batch_id = new_id("btch")
                part = object_ids[start : start + MAX_OBJECTS]
                limits.check_quota(wh, connection, principal, "batch_objects", len(part))
                limits.check_quota(wh, connection, principal, "active_batches")
                limits.check_quota(wh, connection, principal, "documents")
                _insert(connection, place, batch_id, part, [row["collection_id"]], None)
                started.append((batch_id, _submit(connection, place, _find(connection, place, batch_id))))
            object_count += len(object_ids)
        if not started:
            raise BadRequestError(
                f"There is nothing to process: the buckets of collection {quote(row['collection_name'])} have no "
                "objects. Create some first (POST /v1/buckets/<bucket>/objects)."
            )
    wh.jobs.wake()
    batch_id, task = started[0]
    more = f" ({len(started)} batches)" if len(started) > 1 else ""
    return TriggerCollectionResponse(
        batch_id=batch_id,
        task_id=task.task_id,
        batch_ids=[item for item, _ in started],
        task_ids=[item.task_id for _, item in started],
        collection_id=row["collection_id"],
        source_bucket_ids=[place["bucket_id"] for place in places],
        object_count=object_count,
        message=f"{object_count} object(s) are processed{more}.",
    )


# --- inside --------------------------------------------------------------------------------------------


def _find(
    connection: Connection, bucket: RowMapping, batch_id: str, *, made: str | None = None
) -> RowMapping:
    return buckets.find_in(connection, bucket, batches, "batch", batch_id, made=made)


def _state(row: RowMapping, remedy: str) -> ConflictError:
    return ConflictError(
        f"Batch {row['batch_id']} is {row['status']}. {remedy}",
        details={"batch_id": row["batch_id"], "status": row["status"]},
    )


def _existing(connection: Connection, bucket: RowMapping, object_ids: Sequence[str]) -> list[str]:
    """Return the ids without repetitions, in their order. Raises `NotFoundError` for those not in the bucket."""
    wanted = list(dict.fromkeys(object_ids))
    known: set[str] = set()
    for start in range(0, len(wanted), _SLICE):
        known.update(
            connection.execute(
                sa.select(objects.c.object_id).where(
                    objects.c.bucket_id == bucket["bucket_id"],
                    objects.c.object_id.in_(wanted[start : start + _SLICE]),
                )
            ).scalars()
        )
    missing = [object_id for object_id in wanted if object_id not in known]
    if missing:
        error = NotFoundError("object", missing[0])
        if len(missing) > 1:
            error.message = f"{len(missing)} of the {len(wanted)} objects were not found in this bucket."
        error.message += " Create them first, or leave them out."
        error.details["missing"] = [object_id[:128] for object_id in missing[:100]]
        raise error
    return wanted


def _readers(connection: Connection, bucket: RowMapping, wanted: Sequence[str] | None) -> list[str]:
    """Return the enabled collections that read the bucket, or those of them that are asked for."""
    reading = [
        row
        for row in buckets.readers_of(connection, bucket["namespace_id"], [bucket["bucket_id"]])
        if row["enabled"]
    ]
    if wanted is None:
        return [row["collection_id"] for row in reading]
    found = []
    for identifier in dict.fromkeys(wanted):
        row = collections.find(connection, bucket["namespace_id"], identifier)
        if row["collection_id"] not in {item["collection_id"] for item in reading}:
            why = "is disabled" if not row["enabled"] else "does not read this bucket"
            raise BadRequestError(
                f"Collection {quote(identifier)} {why}. Leave it out of collection_ids, or leave collection_ids out "
                "for every collection that reads the bucket."
            )
        found.append(row["collection_id"])
    return found


def _insert(
    connection: Connection,
    bucket: RowMapping,
    batch_id: str,
    object_ids: Sequence[str],
    collection_ids: Sequence[str],
    metadata: Mapping[str, Any] | None,
) -> None:
    at = now()
    connection.execute(
        batches.insert().values(
            batch_id=batch_id,
            namespace_id=bucket["namespace_id"],
            bucket_id=bucket["bucket_id"],
            object_ids=list(object_ids),
            collection_ids=list(collection_ids),
            status=TaskStatus.DRAFT,
            attempt=0,
            metadata=dict(metadata or {}),
            created_at=at,
            updated_at=at,
        )
    )


def _submit(connection: Connection, bucket: RowMapping, row: RowMapping) -> TaskResponse:
    if row["status"] != TaskStatus.DRAFT:
        return _task(connection, row["task_id"], row["batch_id"])
    at = now()
    # A draft may be older than the collections, and they than it.
    wanted = row["collection_ids"] or _readers(connection, bucket, None)
    there = _still_there(connection, wanted)
    if not there:
        raise BadRequestError(
            f"No collection reads bucket {quote(bucket['bucket_name'])}, so there is nothing to do. Create one with "
            f'"source": {{"type": "bucket", "bucket_ids": ["{bucket["bucket_id"]}"]}}, then submit again.',
            details={"batch_id": row["batch_id"], "bucket_id": bucket["bucket_id"]},
        )
    connection.execute(
        sa.update(batches).where(batches.c.batch_id == row["batch_id"]).values(collection_ids=there)
    )
    present = set(_present(connection, bucket, row["object_ids"]))
    connection.execute(
        batch_rows.insert(),
        [
            {
                "batch_id": row["batch_id"],
                "collection_id": collection_id,
                "object_id": object_id,
                "namespace_id": row["namespace_id"],
                "status": "PENDING" if object_id in present else "SKIPPED",
                "error_kind": None if object_id in present else "superseded",
                "error_message": None if object_id in present else "The object was deleted.",
                "attempts": 0,
                "documents": 0,
                "updated_at": at,
            }
            for collection_id in there
            for object_id in row["object_ids"]
        ],
    )
    task_id = _start(connection, bucket, row, at)
    return _task(connection, task_id, row["batch_id"])


def _cancel(connection: Connection, row: RowMapping) -> None:
    at = now()
    connection.execute(
        sa.update(batches)
        .where(batches.c.batch_id == row["batch_id"])
        .values(status=TaskStatus.CANCELED, updated_at=at)
    )
    connection.execute(
        sa.update(task_rows)
        .where(task_rows.c.task_id == row["task_id"])
        .values(status=TaskStatus.CANCELED, updated_at=at)
    )
    batch_logs.write(connection, row["batch_id"], row["namespace_id"], "Cancelled.", level="warning")


def _start(connection: Connection, bucket: RowMapping, row: RowMapping, at: str) -> str:
    """Make a task for the batch and put the batch in line."""
    task_id = new_id("tsk")
    organization_id = connection.execute(
        sa.select(namespace_rows.c.organization_id).where(
            namespace_rows.c.namespace_id == row["namespace_id"]
        )
    ).scalar_one()
    connection.execute(
        task_rows.insert().values(
            task_id=task_id,
            organization_id=organization_id,
            namespace_id=row["namespace_id"],
            task_type=TaskType.BUCKETS_BATCHES_PROCESS,
            status=TaskStatus.PENDING,
            inputs=[row["batch_id"]],
            outputs=[],
            additional_data={
                "batch_id": row["batch_id"],
                "bucket_id": bucket["bucket_id"],
                "stage": "queued",
            },
            created_at=at,
            updated_at=at,
        )
    )
    connection.execute(
        sa.update(batches)
        .where(batches.c.batch_id == row["batch_id"])
        .values(
            status=TaskStatus.PENDING,
            task_id=task_id,
            holder=None,
            crashes=0,
            error=None,
            error_summary=sa.null(),
            submitted_at=at,
            updated_at=at,
        )
    )
    pending = _count(
        connection, sa.and_(batch_rows.c.batch_id == row["batch_id"], batch_rows.c.status == "PENDING")
    )
    message = f"Submitted with {pending} row(s) to process, as task {task_id}."
    batch_logs.write(connection, row["batch_id"], row["namespace_id"], message)
    return task_id


def _still_there(connection: Connection, collection_ids: Sequence[str]) -> list[str]:
    known = set(
        connection.execute(
            sa.select(collection_rows.c.collection_id).where(
                collection_rows.c.collection_id.in_(collection_ids)
            )
        ).scalars()
    )
    return [collection_id for collection_id in collection_ids if collection_id in known]


def _present(connection: Connection, bucket: RowMapping, object_ids: Sequence[str]) -> Iterable[str]:
    for start in range(0, len(object_ids), _SLICE):
        yield from connection.execute(
            sa.select(objects.c.object_id).where(
                objects.c.bucket_id == bucket["bucket_id"],
                objects.c.object_id.in_(object_ids[start : start + _SLICE]),
            )
        ).scalars()


def _count(connection: Connection, condition: sa.ColumnElement[bool]) -> int:
    return connection.execute(
        sa.select(sa.func.count()).select_from(batch_rows).where(condition)
    ).scalar_one()


def _task(connection: Connection, task_id: str | None, batch_id: str) -> TaskResponse:
    row = (
        connection.execute(sa.select(task_rows).where(task_rows.c.task_id == task_id))
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise ConflictError(
            f"The task of batch {batch_id} was deleted. GET the batch to see its state; retry it, or make another."
        )
    return tasks.answer(connection, row)


def _answer(connection: Connection, row: RowMapping) -> BatchModel:
    counts: dict[str, int] = {}
    written = 0
    for status, count, documents in connection.execute(
        sa.select(batch_rows.c.status, sa.func.count(), sa.func.sum(batch_rows.c.documents))
        .where(batch_rows.c.batch_id == row["batch_id"])
        .group_by(batch_rows.c.status)
    ):
        counts[status] = count
        written += documents or 0
    total, failed = sum(counts.values()), counts.get("FAILED", 0)
    done = total - counts.get("PENDING", 0)
    draft = row["status"] == TaskStatus.DRAFT
    collection_ids = row["collection_ids"]
    return BatchModel(
        batch_id=row["batch_id"],
        bucket_id=row["bucket_id"],
        namespace_id=row["namespace_id"],
        status=TaskStatus(row["status"]),
        object_ids=row["object_ids"],
        collection_ids=collection_ids,
        task_id=row["task_id"],
        error=row["error"],
        error_summary=row["error_summary"],
        metadata=row["metadata"] or {},
        tier_tasks=[
            TierTask(
                tier_num=0,
                status=TaskStatus(row["status"]),
                task_id=row["task_id"],
                collection_ids=collection_ids,
                errors=_tier_errors(connection, row["batch_id"]) if failed else [],
                documents_written=written,
            )
        ]
        if collection_ids and not draft
        else [],
        current_tier=None if draft else 0,
        dag_tiers=[collection_ids] if collection_ids else [],
        progress=BatchProgress(
            processed=done, total=total, percent=progress.percent(row["status"], done, total), errors=failed
        ),
        documents_written=written,
        failed_object_count=_failed_objects(connection, row["batch_id"]) if failed else 0,
        failed_objects=_first_failures(connection, row["batch_id"]) if failed else [],
        retry_count=max(0, row["attempt"] - 1),
        max_node_death_resubmits=ingest.MAX_CRASHES - 1,
        # How often a server that ends in order hands the batch on is not bounded; the clients want a number.
        max_deploy_resubmits=0,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        submitted_at=row["submitted_at"],
    )


def _with_failures() -> sa.Join:
    """Return the rows of batches with what is known of their last failure."""
    return batch_rows.outerjoin(
        failures,
        sa.and_(
            failures.c.batch_id == batch_rows.c.batch_id,
            failures.c.collection_id == batch_rows.c.collection_id,
            failures.c.object_id == batch_rows.c.object_id,
        ),
    )


def _failed_row(item: RowMapping) -> FailedRow:
    kind = causes.known(item["error_kind"])
    return FailedRow(
        failure_id=failure_id(item["batch_id"], item["collection_id"], item["object_id"]),
        object_id=item["object_id"],
        collection_id=item["collection_id"],
        tier_num=0,
        error_type=causes.error_type(item["error_kind"]),
        cause=kind.cause,
        error_kind=item["error_kind"] or "unknown",
        error=item["error_message"] or "",
        next_step=kind.next_step,
        stage=item["stage"] or kind.stage,
        can_retry=kind.may_pass,
        is_parked=kind.parked,
        attempts=item["attempts"],
        retry_count=item["retry_count"],
        timestamp=item["updated_at"],
        updated_at=item["updated_at"],
    )


def _tier_errors(connection: Connection, batch_id: str) -> list[TierError]:
    """Return one entry for each kind of failure, with one of its messages."""
    return [
        TierError(
            error_type=_CATEGORIES[causes.known(kind).cause],
            message=message or "",
            stage=causes.known(kind).stage,
            recovery_suggestion=causes.known(kind).next_step,
            affected_count=count,
        )
        for kind, message, count in connection.execute(
            sa.select(batch_rows.c.error_kind, sa.func.min(batch_rows.c.error_message), sa.func.count())
            .where(batch_rows.c.batch_id == batch_id, batch_rows.c.status == "FAILED")
            .group_by(batch_rows.c.error_kind)
            .order_by(batch_rows.c.error_kind)
        )
    ]


def _first_failures(connection: Connection, batch_id: str) -> list[FailedObject]:
    rows = connection.execute(
        sa.select(batch_rows)
        .where(batch_rows.c.batch_id == batch_id, batch_rows.c.status == "FAILED")
        .order_by(batch_rows.c.collection_id, batch_rows.c.object_id)
        .limit(_SHOWN_FAILURES)
    ).mappings()
    return [
        FailedObject(
            object_id=item["object_id"],
            error=item["error_message"] or "",
            error_type=causes.error_type(item["error_kind"]),
            timestamp=item["updated_at"],
        )
        for item in rows
    ]


def _failed_objects(connection: Connection, batch_id: str) -> int:
    return connection.execute(
        sa.select(sa.func.count(sa.distinct(batch_rows.c.object_id))).where(
            batch_rows.c.batch_id == batch_id, batch_rows.c.status == "FAILED"
        )
    ).scalar_one()
