"""Batches: objects that every collection reading their bucket processes together.

A batch is a set of rows, one for each object and collection. Submitting, cancelling and retrying change
states in one transaction and wake the jobs, which do the work (``ingest.py``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    batch_logs,
    buckets,
    causes,
    collections,
    derivation,
    documents,
    filters,
    idempotency,
    ingest,
    ingest_rows,
    limits,
    listing,
    namespaces,
    new_tasks,
    progress,
    source_content,
    tasks,
    tiers,
)
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import batch_logs as log_lines
from tessera.db.tables import batch_rows, batches, failures, objects, sources
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
    Tier,
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
    "missing_input": "validation",
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

    The collections are those that read the bucket now, and those that these feed, sorted into tiers. Sent again
    with the same `idempotency_key` it makes nothing and returns the first one's batch.
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
            object_ids = existing_objects(connection, place, request.object_ids)
            limits.check_quota(wh, connection, principal, "batch_objects", len(object_ids))
            found = tiers_of(connection, place, request.collection_ids)
            _insert(connection, place, batch_id, object_ids, found, request.metadata)
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
        stages = tiers.of(row)
        if tier_num is not None:
            in_tier = {c for tier in stages if tier.tier_num == tier_num for c in tier.collection_ids}
            failed &= batch_rows.c.collection_id.in_(in_tier)
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
        results = [_failed_row(item, stages) for item in rows]
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
        added = existing_objects(connection, place, request.object_ids)
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
    `idempotency_key` that of the request which made them, a repeated call for them finds the first one's batch.
    """
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        stages = tiers_of(connection, place, None)
        if not stages:
            return {"batch_id": None, "task_id": None}
        batch_id = new_id("btch")
        # Sent again, a request may have made more of its objects than the first time: those are another batch.
        those = hashlib.sha256(" ".join(object_ids).encode()).hexdigest()
        route = f"POST /v1/buckets/{place['bucket_id']}/objects?auto_process={those}"
        once = idempotency.once(principal, route, idempotency_key, None)
        known = idempotency.claim(connection, once, batch_id) if once is not None else None
        if known is None:
            limits.check_quota(wh, connection, principal, "active_batches")
            limits.check_quota(wh, connection, principal, "documents")
            _insert(connection, place, batch_id, object_ids, stages, None)
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
        failed = sa.and_(batch_rows.c.batch_id == row["batch_id"], batch_rows.c.status == "FAILED")
        if request.tier_nums:
            again &= batch_rows.c.collection_id.in_(_in_tiers(row, tiers.of(row), request.tier_nums))
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

    Returns the id of the new task, None when there is no such row and no tier that was never begun, and how many
    rows there are of both. What failed a row before is kept in its history.
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
    stages = tiers.of(row)
    if not retried and not left and all(tier.is_planned for tier in stages):
        return None, 0, 0
    pending = sa.select(batch_rows.c.collection_id).where(mine, batch_rows.c.status == "PENDING")
    touched = set(connection.execute(pending.distinct()).scalars())
    return _start(connection, bucket, row, _reopened(stages, touched), at), retried, left


def trigger(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    collection: str,
    request: TriggerCollectionRequest,
) -> TriggerCollectionResponse:
    """Submit a batch of all that the collection reads, for it and for the collections that it feeds.

    Durable when it returns, findable when the task is COMPLETED. `source_filters` choose among the sources as they
    are now. There is a batch for each bucket, and for each `MAX_OBJECTS` sources. Sources that did not change since
    they were processed cost nothing.
    """
    wanted = collections.parse_source_filters(request.source_filters, ("body", "source_filters"))
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        row = collections.find(connection, namespace_id, collection)
        chosen = _chosen_sources(connection, row, request)
    is_fed = row["source"]["type"] == "collection"
    parts = _documents_of(wh, row, chosen, wanted) if is_fed else _objects_of(wh, row, chosen, wanted)
    started: list[TaskResponse] = []
    with wh.db.write() as connection:
        namespaces.resolve(connection, principal, namespace_id)
        row = collections.find(connection, namespace_id, row["collection_id"])
        stages = _arranged(connection, namespace_id, [row["collection_id"]], row["source"]["type"])
        for bucket_id, ids in parts:
            for start in range(0, len(ids), MAX_OBJECTS):
                part = ids[start : start + MAX_OBJECTS]
                limits.check_quota(wh, connection, principal, "batch_objects", len(part))
                limits.check_quota(wh, connection, principal, "active_batches")
                limits.check_quota(wh, connection, principal, "documents")
                place = buckets.find(connection, namespace_id, bucket_id or _root_bucket(connection, row))
                batch_id = new_id("btch")
                _insert(connection, place, batch_id, () if is_fed else part, stages, None)
                started.append(_submit(connection, place, _find(connection, place, batch_id), part))
    wh.jobs.wake()
    return _triggered(row, chosen, stages, started, sum(len(ids) for _, ids in parts))


def _chosen_sources(connection: Connection, row: RowMapping, request: TriggerCollectionRequest) -> list[str]:
    """Return the ids of the collection's sources, or of those of them that are asked for by id or name."""
    is_fed = row["source"]["type"] == "collection"
    own: list[str] = row["source"]["collection_ids" if is_fed else "bucket_ids"]
    wrong, asked = (
        ("include_buckets", request.include_collections)
        if is_fed
        else ("include_collections", request.include_buckets)
    )
    if getattr(request, wrong):
        raise BadRequestError(
            f"{wrong} does not fit: collection {quote(row['collection_name'])} reads "
            f"{'collections' if is_fed else 'buckets'}. Leave it out, or send "
            f"{'include_collections' if is_fed else 'include_buckets'}."
        )
    if not asked:
        return own
    find, key = (collections.find, "collection_id") if is_fed else (buckets.find, "bucket_id")
    found: list[str] = []
    for identifier in asked:
        found.append(find(connection, row["namespace_id"], identifier)[key])
        if found[-1] not in own:
            raise BadRequestError(
                f"{quote(identifier)} is not one of what collection {quote(row['collection_name'])} reads, which is: "
                f"{', '.join(own)}."
            )
    return list(dict.fromkeys(found))


def _objects_of(
    wh: Warehouse, row: RowMapping, bucket_ids: Sequence[str], wanted: filters.Filter | None
) -> list[tuple[str | None, list[str]]]:
    """Return the objects of each bucket that a filter lets through, the oldest first. Raises when there are none."""
    test = filters.predicate(wanted) if wanted is not None else None
    found: list[tuple[str | None, list[str]]] = []
    with wh.db.read() as connection:
        for bucket_id in bucket_ids:
            mine = objects.c.bucket_id == bucket_id
            oldest_first = (objects.c.created_at, objects.c.object_id)
            if test is None:
                query = sa.select(objects.c.object_id).where(mine).order_by(*oldest_first)
                ids = list(connection.execute(query).scalars())
            else:
                count = sa.select(sa.func.count()).select_from(objects).where(mine)
                listing.refuse_long_scan(wh, connection.execute(count).scalar_one(), "objects")
                with connection.execute(sa.select(objects).where(mine).order_by(*oldest_first)) as scan:
                    ids = [
                        item["object_id"]
                        for item in scan.mappings()
                        if test(source_content.as_filtered(item))
                    ]
            if ids:
                found.append((bucket_id, ids))
    if not found:
        raise BadRequestError(
            f"There is nothing to process: the buckets of collection {quote(row['collection_name'])} have no "
            f"objects{' that source_filters lets through' if test else ''}. Create some first "
            "(POST /v1/buckets/<bucket>/objects)."
        )
    return found


def _documents_of(
    wh: Warehouse, row: RowMapping, collection_ids: Sequence[str], wanted: filters.Filter | None
) -> list[tuple[str | None, list[str]]]:
    """Return the source ids of the collections' documents that a filter lets through. Raises when there are none."""
    ids: list[str] = []
    if wanted is None:
        with wh.db.read() as connection:
            for known in connection.execute(
                sa.select(sources.c.document_ids)
                .where(sources.c.collection_id.in_(collection_ids))
                .order_by(sources.c.collection_id, sources.c.source_id)
            ).scalars():
                ids += known
    else:
        for collection_id in collection_ids:
            within = filters.And((filters.Condition("collection_id", "eq", collection_id, True), wanted))
            ids += [found for found, _ in documents.all_found(wh, row["namespace_id"], within)]
    if not ids:
        raise BadRequestError(
            f"There is nothing to process: the collections that {quote(row['collection_name'])} reads have no "
            f"documents{' that source_filters lets through' if wanted is not None else ''}. Process them first (POST "
            "/v1/collections/<collection>/trigger)."
        )
    return [(None, [derivation.document_source(item) for item in ids])]


def _root_bucket(connection: Connection, row: RowMapping) -> str:
    """Return the bucket under which a batch of documents stands: the first that the collection goes back to."""
    while row["source"]["type"] == "collection":
        row = collections.find(connection, row["namespace_id"], row["source"]["collection_ids"][0])
    return str(row["source"]["bucket_ids"][0])


def _triggered(
    row: RowMapping,
    chosen: Sequence[str],
    stages: Sequence[Tier],
    started: Sequence[TaskResponse],
    count: int,
) -> TriggerCollectionResponse:
    is_fed = row["source"]["type"] == "collection"
    more = f" ({len(started)} batches)" if len(started) > 1 else ""
    batch_ids = [str(task.inputs[0]) for task in started]
    return TriggerCollectionResponse(
        batch_id=batch_ids[0],
        task_id=started[0].task_id,
        batch_ids=batch_ids,
        task_ids=[task.task_id for task in started],
        collection_id=row["collection_id"],
        source_bucket_ids=None if is_fed else list(chosen),
        source_collection_ids=list(chosen) if is_fed else None,
        object_count=None if is_fed else count,
        document_count=count if is_fed else None,
        total_tiers=len(stages),
        message=f"{count} {'document' if is_fed else 'object'}(s) are processed{more}.",
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


def existing_objects(connection: Connection, bucket: RowMapping, object_ids: Sequence[str]) -> list[str]:
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


def _arranged(
    connection: Connection,
    namespace_id: str,
    first: Sequence[str],
    source_type: Literal["bucket", "collection"],
) -> list[Tier]:
    """Return the tiers of a batch whose tier 0 are the collections `first`."""
    reads = tiers.fed_by_collections(connection, namespace_id)
    return tiers.build(tiers.sort(reads, first), reads, source_type) if first else []


def tiers_of(connection: Connection, bucket: RowMapping, wanted: Sequence[str] | None) -> list[Tier]:
    """Return the tiers of the enabled collections that read the bucket and of all that they feed.

    Of those that are asked for alone, together with what feeds them.
    """
    namespace_id = bucket["namespace_id"]
    readers = buckets.readers_of(connection, namespace_id, [bucket["bucket_id"]])
    stages = _arranged(
        connection, namespace_id, [row["collection_id"] for row in readers if row["enabled"]], "bucket"
    )
    if wanted is None:
        return stages
    known = {collection_id for tier in stages for collection_id in tier.collection_ids}
    kept: set[str] = set()
    for identifier in dict.fromkeys(wanted):
        row = collections.find(connection, namespace_id, identifier)
        if row["collection_id"] not in known:
            why = "is disabled" if not row["enabled"] else "does not read this bucket, nor what is made of it"
            raise BadRequestError(
                f"Collection {quote(identifier)} {why}. Leave it out of collection_ids, or leave collection_ids out "
                "for every collection that reads the bucket."
            )
        kept.add(row["collection_id"])
    reads = tiers.fed_by_collections(connection, namespace_id)
    for tier in reversed(stages):
        for collection_id in kept.intersection(tier.collection_ids):
            kept.update(known.intersection(reads.get(collection_id, ())))
    return _only(connection, namespace_id, stages, kept)


def _only(
    connection: Connection, namespace_id: str, stages: Sequence[Tier], kept: Collection[str]
) -> list[Tier]:
    """Return tiers of those of their collections that are in `kept`."""
    if not stages:
        return []
    left = [[c for c in tier.collection_ids if c in kept] for tier in stages]
    reads = tiers.fed_by_collections(connection, namespace_id, disabled_too=True)
    return tiers.build([ids for ids in left if ids], reads, stages[0].source_type)


def _insert(
    connection: Connection,
    bucket: RowMapping,
    batch_id: str,
    object_ids: Sequence[str],
    stages: Sequence[Tier],
    metadata: Mapping[str, Any] | None,
) -> None:
    at = now()
    connection.execute(
        batches.insert().values(
            batch_id=batch_id,
            namespace_id=bucket["namespace_id"],
            bucket_id=bucket["bucket_id"],
            object_ids=list(object_ids),
            **tiers.stored(stages),
            status=TaskStatus.DRAFT,
            attempt=0,
            metadata=dict(metadata or {}),
            created_at=at,
            updated_at=at,
        )
    )


def _submit(
    connection: Connection, bucket: RowMapping, row: RowMapping, source_ids: Sequence[str] | None = None
) -> TaskResponse:
    """Put a draft in line with a row for each source of tier 0: its objects, or the documents `source_ids`."""
    if row["status"] != TaskStatus.DRAFT:
        return _task(connection, row["task_id"], row["batch_id"])
    # A draft may be older than the collections, and they than it.
    stages = tiers.of(row) or tiers_of(connection, bucket, None)
    stages = _only(connection, row["namespace_id"], stages, _still_there(connection, stages))
    if not stages:
        raise BadRequestError(
            f"No collection reads bucket {quote(bucket['bucket_name'])}, so there is nothing to do. Create one with "
            f'"source": {{"type": "bucket", "bucket_ids": ["{bucket["bucket_id"]}"]}}, then submit again.',
            details={"batch_id": row["batch_id"], "bucket_id": bucket["bucket_id"]},
        )
    stages[0] = stages[0].model_copy(update={"is_planned": True})
    if stages[0].source_type == "bucket":
        source_ids = row["object_ids"]
        present = set(_present(connection, bucket, row["object_ids"]))
    else:
        present = set(source_ids or ())
    connection.execute(
        batch_rows.insert(),
        [
            ingest_rows.row_of(
                row["batch_id"],
                row["namespace_id"],
                collection_id,
                source_id,
                is_there=source_id in present,
            )
            for collection_id in stages[0].collection_ids
            for source_id in source_ids or ()
        ],
    )
    task_id = _start(connection, bucket, row, stages, now())
    return _task(connection, task_id, row["batch_id"])


def _reopened(stages: Sequence[Tier], touched: AbstractSet[str]) -> list[Tier]:
    """Return the tiers as a retry runs them: from the first on that has something to do, each looks for new rows."""
    first = min(
        (
            tier.tier_num
            for tier in stages
            if not touched.isdisjoint(tier.collection_ids)
            or not tier.is_planned
            or tier.status not in FINISHED - {TaskStatus.CANCELED}
        ),
        default=0,
    )
    again = {"status": TaskStatus.PENDING, "completed_at": None, "task_id": None}
    return [
        tier
        if tier.tier_num < first
        else tier.model_copy(update={**again, "is_planned": tier.is_planned and tier.tier_num == first})
        for tier in stages
    ]


def _in_tiers(row: RowMapping, stages: Sequence[Tier], tier_nums: Sequence[int]) -> set[str]:
    """Return the collections of these tiers. Raises `BadRequestError` for a tier that the batch does not have."""
    unknown = sorted(set(tier_nums) - {tier.tier_num for tier in stages})
    if unknown:
        last = len(stages) - 1
        raise BadRequestError(
            f"Batch {row['batch_id']} has no tier {unknown[0]}; its tiers are 0{f' to {last}' if last else ' alone'}. "
            "Leave tier_nums out for all of them."
        )
    return {c for tier in stages if tier.tier_num in tier_nums for c in tier.collection_ids}


def _cancel(connection: Connection, row: RowMapping) -> None:
    at = now()
    connection.execute(
        sa.update(batches)
        .where(batches.c.batch_id == row["batch_id"])
        .values(status=TaskStatus.CANCELED, updated_at=at)
    )
    tiers.end_open(connection, row, TaskStatus.CANCELED)
    connection.execute(
        sa.update(task_rows)
        .where(task_rows.c.task_id == row["task_id"])
        .values(status=TaskStatus.CANCELED, updated_at=at)
    )
    batch_logs.write(connection, row["batch_id"], row["namespace_id"], "Cancelled.", level="warning")


def _start(
    connection: Connection, bucket: RowMapping, row: RowMapping, stages: Sequence[Tier], at: str
) -> str:
    """Make a task for the batch, and for each of its tiers when it has several, and put the batch in line."""
    organization_id = connection.execute(
        sa.select(namespace_rows.c.organization_id).where(
            namespace_rows.c.namespace_id == row["namespace_id"]
        )
    ).scalar_one()
    task_id = new_tasks.add(
        connection,
        organization_id,
        row["namespace_id"],
        TaskType.BUCKETS_BATCHES_PROCESS,
        [row["batch_id"]],
        {"batch_id": row["batch_id"], "bucket_id": bucket["bucket_id"], "stage": "queued"},
        at,
    )
    connection.execute(
        sa.update(batches)
        .where(batches.c.batch_id == row["batch_id"])
        .values(
            **tiers.stored(tiers.put_in_line(connection, organization_id, row, stages, task_id, at)),
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


def _still_there(connection: Connection, stages: Sequence[Tier]) -> set[str]:
    wanted = [collection_id for tier in stages for collection_id in tier.collection_ids]
    return set(
        connection.execute(
            sa.select(collection_rows.c.collection_id).where(collection_rows.c.collection_id.in_(wanted))
        ).scalars()
    )


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
    counts: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for collection_id, status, count, made in connection.execute(
        sa.select(
            batch_rows.c.collection_id,
            batch_rows.c.status,
            sa.func.count(),
            sa.func.sum(batch_rows.c.documents),
        )
        .where(batch_rows.c.batch_id == row["batch_id"])
        .group_by(batch_rows.c.collection_id, batch_rows.c.status)
    ):
        counts[status] += count
        written[collection_id] += made or 0
    total, failed = counts.total(), counts["FAILED"]
    done = total - counts["PENDING"]
    stages = tiers.of(row)
    is_draft = row["status"] == TaskStatus.DRAFT
    return BatchModel(
        batch_id=row["batch_id"],
        bucket_id=row["bucket_id"],
        namespace_id=row["namespace_id"],
        status=TaskStatus(row["status"]),
        type="COLLECTION" if stages and stages[0].source_type == "collection" else "BUCKET",
        object_ids=row["object_ids"],
        collection_ids=row["collection_ids"],
        task_id=row["task_id"],
        error=row["error"],
        error_summary=row["error_summary"],
        metadata=row["metadata"] or {},
        tier_tasks=[]
        if is_draft
        else _tier_tasks(stages, written, _failures(connection, row["batch_id"]) if failed else {}),
        current_tier=tiers.current(stages),
        total_tiers=max(1, len(stages)),
        dag_tiers=[tier.collection_ids for tier in stages],
        progress=BatchProgress(
            processed=done, total=total, percent=progress.percent(row["status"], done, total), errors=failed
        ),
        documents_written=written.total(),
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


#: What failed in a collection: kind, one of the messages, how many rows.
Failure = tuple[str | None, str | None, int]


def _tier_tasks(
    stages: Sequence[Tier], written: Mapping[str, int], failed: Mapping[str, Sequence[Failure]]
) -> list[TierTask]:
    made: list[TierTask] = []
    for tier in stages:
        met: dict[str | None, tuple[str, int]] = {}
        summary: Counter[str] = Counter()
        for collection_id in tier.collection_ids:
            for kind, message, count in failed.get(collection_id, ()):
                said, before = met.get(kind, (message or "", 0))
                met[kind] = (said, before + count)
                summary[causes.known(kind).cause] += count
        made.append(
            TierTask(
                **tier.model_dump(exclude={"is_planned"}),
                parent_task_id=made[-1].task_id if made else None,
                errors=[
                    _tier_error(kind, said, count)
                    for kind, (said, count) in sorted(met.items(), key=lambda item: item[0] or "")
                ],
                error_summary=dict(summary) or None,
                documents_written=sum(written.get(c, 0) for c in tier.collection_ids),
            )
        )
    return made


def _tier_error(kind: str | None, message: str, count: int) -> TierError:
    known = causes.known(kind)
    return TierError(
        error_type=_CATEGORIES[known.cause],
        message=message,
        stage=known.stage,
        recovery_suggestion=known.next_step,
        affected_count=count,
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


def _failed_row(item: RowMapping, stages: Sequence[Tier]) -> FailedRow:
    kind = causes.known(item["error_kind"])
    return FailedRow(
        failure_id=failure_id(item["batch_id"], item["collection_id"], item["object_id"]),
        object_id=derivation.plain_id(item["object_id"]),
        document_id=derivation.document_of(item["object_id"]),
        collection_id=item["collection_id"],
        tier_num=tiers.number_of(stages, item["collection_id"]),
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


def _failures(connection: Connection, batch_id: str) -> dict[str, list[Failure]]:
    """Return one entry for each kind of failure in each collection, with one of its messages."""
    found: dict[str, list[Failure]] = {}
    for collection_id, kind, message, count in connection.execute(
        sa.select(
            batch_rows.c.collection_id,
            batch_rows.c.error_kind,
            sa.func.min(batch_rows.c.error_message),
            sa.func.count(),
        )
        .where(batch_rows.c.batch_id == batch_id, batch_rows.c.status == "FAILED")
        .group_by(batch_rows.c.collection_id, batch_rows.c.error_kind)
    ):
        found.setdefault(collection_id, []).append((kind, message, count))
    return found


def _first_failures(connection: Connection, batch_id: str) -> list[FailedObject]:
    rows = connection.execute(
        sa.select(batch_rows)
        .where(batch_rows.c.batch_id == batch_id, batch_rows.c.status == "FAILED")
        .order_by(batch_rows.c.collection_id, batch_rows.c.object_id)
        .limit(_SHOWN_FAILURES)
    ).mappings()
    return [
        FailedObject(
            object_id=derivation.plain_id(item["object_id"]),
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
