"""Buckets: named places for objects, each with the schema that its objects follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, limits, listing, names, namespaces, new_tasks, schemas, tiers, unique_keys
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import (
    batch_logs,
    batch_rows,
    batches,
    buckets,
    collections,
    failures,
    fetches,
    objects,
    tasks,
    uploads,
)
from tessera.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    Problem,
    quote,
    raise_problems,
)
from tessera.ids import new_id
from tessera.models.buckets import (
    BatchStatistics,
    BucketCreateRequest,
    BucketListStats,
    BucketPatchRequest,
    BucketResponse,
    BucketSchema,
    DeleteBucketResponse,
    ListBucketsRequest,
    ListBucketsResponse,
    UniqueKey,
)
from tessera.models.tasks import TaskStatus, TaskType
from tessera.pagination import PageRequest

#: Words that routes below ``/v1/buckets/`` take.
RESERVED_NAMES = frozenset({"list"})
Location = tuple[str | int, ...]


def create(
    wh: Warehouse, principal: Principal, namespace: str, request: BucketCreateRequest
) -> BucketResponse:
    """Create a bucket. Durable when it returns; a taken name is a 409, so a repeated call makes no second one."""
    at = now()
    name = names.clean(request.bucket_name)
    problems = _name_problems(name) + schemas.problems(request.bucket_schema, ("body", "bucket_schema"))
    if request.unique_key is not None:
        problems += unique_keys.problems(request.unique_key, request.bucket_schema)
    with wh.db.write() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        taken = _id_of_name(connection, namespace_id, name)
        if taken and not problems:
            problems.append(_taken(name, taken))
        raise_problems(problems)
        row = {
            "bucket_id": new_id("bkt"),
            "namespace_id": namespace_id,
            "bucket_name": name,
            "description": request.description,
            "bucket_schema": _stored_schema(request.bucket_schema),
            "metadata": request.metadata or {},
            "unique_key": request.unique_key and request.unique_key.model_dump(),
            "created_at": at,
            "updated_at": at,
        }
        limits.check_quota(wh, connection, principal, "buckets")
        connection.execute(buckets.insert().values(**row))
        audit.record(connection, principal, "bucket_created", "bucket", str(row["bucket_id"]), {"name": name})
        return _answer(row, {}, {})


def get(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> BucketResponse:
    """Return a bucket by id or name, with exact counts."""
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        return _read(connection, find(connection, namespace_id, identifier))


def list_(
    wh: Warehouse, principal: Principal, namespace: str, page: PageRequest, request: ListBucketsRequest
) -> ListBucketsResponse:
    """List buckets, oldest first unless sorted otherwise."""
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        query = (
            sa.select(buckets)
            .where(buckets.c.namespace_id == namespace_id)
            .order_by(buckets.c.created_at, buckets.c.bucket_id)
        )
        rows = connection.execute(query).mappings().all()
        chosen = listing.choose(
            rows,
            filters=request.filters,
            search=request.search,
            search_in=("bucket_id", "bucket_name", "description"),
            sort=(request.sort.field, request.sort.direction) if request.sort else None,
            case_sensitive=bool(request.case_sensitive),
            id_field="bucket_id",
        )
        shown, pagination = listing.cut(wh, page, chosen)
        ids = [row["bucket_id"] for row in shown]
        counts, runs = _counts(connection, ids), _batch_counts(connection, ids)
    results = [
        _answer(row, counts.get(row["bucket_id"], {}), runs.get(row["bucket_id"], {})) for row in shown
    ]
    total_objects = sum(result.object_count for result in results)
    total_bytes = sum(result.total_size_bytes for result in results)
    return ListBucketsResponse(
        results=results,
        total_count=len(chosen),
        pagination=pagination,
        stats=BucketListStats(
            total_objects=total_objects,
            total_size_bytes=total_bytes,
            avg_objects_per_bucket=total_objects / len(results) if results else 0.0,
            avg_size_per_bucket=total_bytes / len(results) if results else 0.0,
        ),
    )


def patch(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: BucketPatchRequest
) -> BucketResponse:
    """Change what is given of name, description, metadata, schema and the default policy of the unique key.

    A schema only grows by optional properties.
    """
    with wh.db.write() as connection:
        row = resolve(connection, principal, namespace, identifier)
        values, problems = _changes(connection, row, request)
        raise_problems(problems)
        if values:
            connection.execute(
                sa.update(buckets)
                .where(buckets.c.bucket_id == row["bucket_id"])
                .values(**values, updated_at=now())
            )
            audit.record(
                connection,
                principal,
                "bucket_updated",
                "bucket",
                row["bucket_id"],
                {"fields": sorted(values)},
            )
        return _read(connection, find(connection, row["namespace_id"], row["bucket_id"]))


def _changes(
    connection: Connection, row: RowMapping, request: BucketPatchRequest
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the columns that a request changes, and what is wrong with it."""
    given = request.model_fields_set
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    if request.bucket_name is not None:
        name = names.clean(request.bucket_name)
        if name != row["bucket_name"]:
            values["bucket_name"] = name
            problems += _name_problems(name)
            taken = _id_of_name(connection, row["namespace_id"], name)
            if taken and not problems:
                problems.append(_taken(name, taken))
    if "description" in given:
        values["description"] = request.description
    if "metadata" in given:
        values["metadata"] = request.metadata or {}
    if request.bucket_schema is not None:
        problems += schemas.growth_problems(
            BucketSchema.model_validate(row["bucket_schema"]), request.bucket_schema
        )
        values["bucket_schema"] = _stored_schema(request.bucket_schema)
    if request.unique_key is not None:
        problems += unique_keys.change_problems(unique_key(row), request.unique_key)
        values["unique_key"] = {
            **(row["unique_key"] or {}),
            "default_policy": request.unique_key.default_policy,
        }
    return {name: value for name, value in values.items() if value != row[name]}, problems


def delete(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> DeleteBucketResponse:
    """Delete a bucket with its objects and batches. Durable when it returns; the name is free at once.

    Refused while a collection reads it: a collection's documents go with the collection, so no document is
    ever left without its source. The files of its blobs stay until the namespace is deleted, because other
    objects and documents of the namespace may hold the same content.
    """
    at = now()
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        bucket_id = row["bucket_id"]
        readers = readers_of(connection, place["namespace_id"], [bucket_id])
        if readers:
            shown = ", ".join(reader["collection_name"] for reader in readers[:5])
            more = f" and {len(readers) - 5} more" if len(readers) > 5 else ""
            raise ConflictError(
                f"Bucket {quote(row['bucket_name'])} is read by {len(readers)} collection(s): {shown}{more}. Delete "
                "them first (DELETE /v1/collections/<id>); their documents go with them.",
                details={
                    "resource": "bucket",
                    "id": bucket_id,
                    "read_by": [r["collection_id"] for r in readers[:100]],
                },
            )
        count = connection.execute(
            sa.select(sa.func.count()).select_from(objects).where(objects.c.bucket_id == bucket_id)
        ).scalar_one()
        _delete_contents(connection, bucket_id, at)
        connection.execute(sa.delete(buckets).where(buckets.c.bucket_id == bucket_id))
        audit.record(
            connection, principal, "bucket_deleted", "bucket", bucket_id, {"name": row["bucket_name"]}
        )
        task_id = new_tasks.add(
            connection,
            place["organization_id"],
            place["namespace_id"],
            TaskType.BUCKETS_DELETE,
            [bucket_id],
            {"bucket_id": bucket_id, "object_count": count},
            at,
            status=TaskStatus.COMPLETED,
        )
    return DeleteBucketResponse(
        message=f"Bucket {row['bucket_name']} and its {count} object(s) were deleted.",
        bucket_id=bucket_id,
        bucket_name=row["bucket_name"],
        object_count=count,
        task_id=task_id,
    )


def _delete_contents(connection: Connection, bucket_id: str, at: str) -> None:
    """Delete what lies in a bucket and what refers to it; batches that are under way are cancelled."""
    own_batches = sa.select(batches.c.batch_id).where(batches.c.bucket_id == bucket_id)
    unfinished = sa.select(batches).where(
        batches.c.bucket_id == bucket_id, batches.c.status.in_(["PENDING", "IN_PROGRESS"])
    )
    for batch in connection.execute(unfinished).mappings().all():
        tiers.end_open(connection, batch, TaskStatus.CANCELED)
        connection.execute(
            sa.update(tasks)
            .where(tasks.c.task_id == batch["task_id"])
            .values(status="CANCELED", updated_at=at)
        )
    for table in (batch_rows, failures, batch_logs):
        connection.execute(sa.delete(table).where(table.c.batch_id.in_(own_batches)))
    connection.execute(sa.delete(batches).where(batches.c.bucket_id == bucket_id))
    own_objects = sa.select(objects.c.object_id).where(objects.c.bucket_id == bucket_id)
    connection.execute(sa.delete(fetches).where(fetches.c.object_id.in_(own_objects)))
    own_uploads = uploads.c.bucket_id == bucket_id
    is_open = uploads.c.status == "PENDING"
    connection.execute(sa.delete(uploads).where(own_uploads, ~is_open))
    # What came and was not confirmed is removed by the sweep of those that expired.
    connection.execute(sa.update(uploads).where(own_uploads, is_open).values(expires_at=at))
    connection.execute(sa.delete(objects).where(objects.c.bucket_id == bucket_id))


# --- for other services --------------------------------------------------------------------------------


def find(connection: Connection, namespace_id: str, identifier: str) -> RowMapping:
    """Return the row of a bucket by id, else by name. Raises `NotFoundError`."""
    found = (
        connection.execute(
            sa.select(buckets).where(
                buckets.c.namespace_id == namespace_id,
                sa.or_(buckets.c.bucket_id == identifier, buckets.c.bucket_name == names.clean(identifier)),
            )
        )
        .mappings()
        .all()
    )
    if not found:
        raise NotFoundError("bucket", identifier)
    return next((row for row in found if row["bucket_id"] == identifier), found[0])


def unique_key(row: Mapping[Any, Any]) -> UniqueKey | None:
    """Return the unique key of a bucket's row, if it has one."""
    return UniqueKey.model_validate(row["unique_key"]) if row["unique_key"] is not None else None


def resolve(connection: Connection, principal: Principal, namespace: str, identifier: str) -> RowMapping:
    """Return the row of a bucket by id or name, in a namespace that the key may see. Raises `NotFoundError`."""
    namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
    return find(connection, namespace_id, identifier)


def find_in(
    connection: Connection,
    bucket: Mapping[Any, Any],
    table: sa.Table,
    noun: str,
    identifier: str,
    *,
    made: str | None = None,
) -> RowMapping:
    """Return the row of an object, upload or batch (`noun`) of a bucket. Raises `NotFoundError`.

    `made` is the id that an Idempotency-Key stands for: when that one is gone it is a `ConflictError`, because the
    request must not make another.
    """
    row = (
        connection.execute(
            sa.select(table).where(
                table.c[f"{noun}_id"] == identifier, table.c.bucket_id == bucket["bucket_id"]
            )
        )
        .mappings()
        .one_or_none()
    )
    if row is None and made is not None:
        raise ConflictError(
            f"The {noun} {made} that this Idempotency-Key made has been deleted since. Use a new key to make another."
        )
    if row is None:
        raise NotFoundError(noun, identifier)
    return row


def readers_of(connection: Connection, namespace_id: str, bucket_ids: Sequence[str]) -> list[RowMapping]:
    """Return the rows of the collections that read any of these buckets, oldest first."""
    wanted = set(bucket_ids)
    rows = connection.execute(
        sa.select(collections)
        .where(collections.c.namespace_id == namespace_id)
        .order_by(collections.c.created_at, collections.c.collection_id)
    ).mappings()
    return [row for row in rows if wanted.intersection(row["source"].get("bucket_ids") or ())]


# --- inside --------------------------------------------------------------------------------------------


def _name_problems(name: str) -> list[Problem]:
    return names.check(name, ("body", "bucket_name"), id_prefix="bkt", reserved=RESERVED_NAMES)


def _id_of_name(connection: Connection, namespace_id: str, name: str) -> str | None:
    found: str | None = connection.execute(
        sa.select(buckets.c.bucket_id).where(
            buckets.c.namespace_id == namespace_id, buckets.c.bucket_name == name
        )
    ).scalar()
    return found


def _taken(name: str, bucket_id: str) -> Problem:
    return Problem(
        ("body", "bucket_name"),
        f"A bucket named {quote(name)} exists in this namespace ({bucket_id}). Use that one, or choose another name.",
        "name_taken",
        AlreadyExistsError.status,
    )


def _stored_schema(schema: BucketSchema) -> dict[str, Any]:
    """Return the schema as it is kept and answered: what was said, without the defaults of what was not."""
    return schema.model_dump(mode="json", exclude_unset=True)


def _read(connection: Connection, row: RowMapping) -> BucketResponse:
    ids = [row["bucket_id"]]
    return _answer(
        row, _counts(connection, ids).get(ids[0], {}), _batch_counts(connection, ids).get(ids[0], {})
    )


def _counts(connection: Connection, bucket_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    rows = connection.execute(
        sa.select(
            objects.c.bucket_id,
            sa.func.count().label("object_count"),
            sa.func.coalesce(sa.func.sum(objects.c.size_bytes), 0).label("total_size_bytes"),
            sa.func.max(objects.c.created_at).label("last_upload_at"),
        )
        .where(objects.c.bucket_id.in_(list(bucket_ids)))
        .group_by(objects.c.bucket_id)
    ).mappings()
    return {row["bucket_id"]: dict(row) for row in rows}


def _batch_counts(connection: Connection, bucket_ids: Iterable[str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for bucket_id, status, count in connection.execute(
        sa.select(batches.c.bucket_id, batches.c.status, sa.func.count())
        .where(batches.c.bucket_id.in_(list(bucket_ids)))
        .group_by(batches.c.bucket_id, batches.c.status)
    ):
        found.setdefault(bucket_id, {})[status] = count
    return found


def _answer(row: Mapping[Any, Any], counts: Mapping[str, Any], runs: Mapping[str, int]) -> BucketResponse:
    return BucketResponse(
        bucket_id=row["bucket_id"],
        bucket_name=row["bucket_name"],
        namespace_id=row["namespace_id"],
        description=row["description"],
        bucket_schema=BucketSchema.model_validate(row["bucket_schema"]),
        unique_key=unique_key(row),
        metadata=row["metadata"] or {},
        object_count=counts.get("object_count", 0),
        total_size_bytes=int(counts.get("total_size_bytes", 0)),
        batch_stats=BatchStatistics(
            total=sum(runs.values()),
            active=sum(runs.get(status, 0) for status in ("DRAFT", "PENDING", "IN_PROGRESS")),
            completed=runs.get("COMPLETED", 0) + runs.get("COMPLETED_WITH_ERRORS", 0),
            failed=runs.get("FAILED", 0),
        ),
        last_upload_at=counts.get("last_upload_at"),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
