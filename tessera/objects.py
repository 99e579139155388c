"""Objects: user fields, and blobs that hold what extractors read; checked against their bucket's schema.

An object is checked as a whole before anything is stored. Its files are written first and its row last;
files without a row are content-addressed and harm nothing. A blob that is a URL is accepted as such, with a row in
`fetches` in the same transaction: the first batch with the object fetches it before anything is extracted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pydantic
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    aggregation,
    buckets,
    derivation,
    drafts,
    events,
    failpoints,
    idempotency,
    links,
    listing,
    log,
    unique_keys,
)
from tessera.context import Principal, Warehouse
from tessera.db.engine import insert_or_replace, now
from tessera.db.tables import batch_rows, erasures, fetches, log_entries, metadata, objects, sources
from tessera.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    Problem,
    StorageError,
    TesseraError,
    ValidationError,
    raise_problems,
)
from tessera.filters import Filter, matches
from tessera.ids import new_id
from tessera.models.aggregations import AggregationRequest, AggregationResponse
from tessera.models.base import JsonObject
from tessera.models.buckets import FieldType, Policy
from tessera.models.objects import (
    BatchObjectResult,
    BlobModel,
    CreateObjectRequest,
    CreateObjectsBatchResponse,
    FailedObject,
    ListObjectsRequest,
    ListObjectsResponse,
    ObjectListStats,
    ObjectResponse,
    UpdateObjectRequest,
)
from tessera.pagination import PageRequest
from tessera.validation import schema_problems

# --- create --------------------------------------------------------------------------------------------


def create(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    request: CreateObjectRequest,
    *,
    policy: Policy | None = None,
    idempotency_key: str | None = None,
) -> ObjectResponse:
    """Create an object. Durable when it returns; it has documents once a batch with it is COMPLETED.

    In a bucket with a unique key, `policy` (else the bucket's default) says what it means that the key is taken, or
    is not: with ``update`` and ``upsert`` the object that has it becomes what the request says, as a whole.
    Sent again with the same `idempotency_key` it makes nothing and returns the first one's object.
    Raises with everything that is wrong with it at once.
    """
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
    new = prepare(wh, principal, place, request, policy=policy, idempotency_key=idempotency_key)
    failpoints.reach("object.stored")
    with wh.db.write() as connection:
        check_stored(wh, new.blobs)
        made = insert(connection, place, new)
        if made.is_new:
            events.object_changed(connection, "created", made.row)
    failpoints.reach("object.committed")
    return _answer(wh, made.row)


def create_batch(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    items: Sequence[object],
    *,
    policy: Policy | None = None,
    idempotency_key: str | None = None,
) -> CreateObjectsBatchResponse:
    """Create up to 100 objects, each by itself: what failed is named, the others exist and are durable.

    `policy` is that of `create`, for each of them.

    Sent again with the same `idempotency_key`, objects that exist are returned as replayed and only the
    others are tried.
    """
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
    _policy(place, policy)  # without one, none of them has to be looked at
    failed: list[FailedObject] = []
    prepared: list[tuple[int, New]] = []
    for index, item in enumerate(items):
        key = f"{idempotency_key}/{index}" if idempotency_key is not None else None
        try:
            new = prepare(wh, principal, place, _validated(item), policy=policy, idempotency_key=key)
            prepared.append((index, new))
        except TesseraError as error:
            failed.append(_failure(index, error))
    failpoints.reach("object.stored")
    made: list[tuple[int, Made]] = []
    with wh.db.write() as connection:
        for index, new in prepared:
            try:
                check_stored(wh, new.blobs)
                made.append((index, insert(connection, place, new)))
            except (AlreadyExistsError, ConflictError, NotFoundError) as error:
                failed.append(_failure(index, error))
        new_ids = [item.row["object_id"] for _, item in made if item.is_new]
        events.objects_created(connection, place, new_ids)
    succeeded = [
        BatchObjectResult.model_validate(
            {
                **_answer(wh, item.row).model_dump(),
                "object_index": index,
                "replayed": item.replayed_by is not None,
                "replayed_by": item.replayed_by,
            }
        )
        for index, item in made
    ]
    return CreateObjectsBatchResponse(
        succeeded=succeeded,
        failed=sorted(failed, key=lambda item: item.object_index),
        total_requested=len(items),
        succeeded_count=len(succeeded),
        failed_count=len(failed),
    )


def _validated(item: object) -> CreateObjectRequest:
    try:
        return CreateObjectRequest.model_validate(item)
    except pydantic.ValidationError as error:
        raise ValidationError(schema_problems(error, ("body",))) from None


def _failure(index: int, error: TesseraError) -> FailedObject:
    """Return an error as one line of a batch's answer; what is not the object's fault ends the whole request."""
    if error.status >= 500:
        raise error
    told = (
        " ".join(problem.message for problem in error.problems)
        if isinstance(error, ValidationError)
        else error.message
    )
    return FailedObject(object_index=index, error=told, error_type=error.type)


@dataclass(frozen=True, slots=True)
class New:
    """An object that is checked and whose files are written; only its row is missing."""

    draft: drafts.Draft
    blobs: list[dict[str, Any]]
    #: The URLs that are still to be fetched, sealed, by property.
    remote: Mapping[str, str]
    once: idempotency.Once | None
    skip_duplicates: bool
    policy: Policy | None


@dataclass(frozen=True, slots=True)
class Made:
    """The row that answers a request, and what made it stand for another one's."""

    row: RowMapping
    replayed_by: str | None

    @property
    def is_new(self) -> bool:
        """Whether the object was not there before, not even with another content."""
        return self.replayed_by is None and self.row["version"] == 1


def prepare(
    wh: Warehouse,
    principal: Principal,
    bucket: RowMapping,
    request: CreateObjectRequest,
    *,
    policy: Policy | None = None,
    idempotency_key: str | None = None,
    uploaded: Mapping[Any, Any] | None = None,
) -> New:
    """Check an object and write its files, for `insert`. Raises with everything that is wrong with it.

    `uploaded` is an upload that is being confirmed, and so is not yet one that a blob may name.
    """
    key = idempotency_key if idempotency_key is not None else request.idempotency_key
    once = None
    if key is not None:
        route = f"POST /v1/buckets/{bucket['bucket_id']}/objects"
        body = request.model_dump(mode="json", exclude={"idempotency_key"})
        once = idempotency.once(principal, route, key, body)
    policy = _policy(bucket, policy)
    fields = dict(request.model_extra or {})
    if request.metadata is not None:
        fields["metadata"] = request.metadata
    draft = drafts.check(wh, bucket, request, fields, uploaded=uploaded)
    raise_problems(draft.problems)
    stored = _store(wh, bucket["namespace_id"], draft)
    return New(draft, stored, _sealed(wh, draft), once, bool(request.skip_duplicates), policy)


def _policy(bucket: Mapping[Any, Any], asked: Policy | None) -> Policy | None:
    """Return what a taken key means; None for a bucket without a unique key, in which a policy says nothing."""
    key = buckets.unique_key(bucket)
    return unique_keys.policy(key, asked) if key is not None else None


def insert(connection: Connection, bucket: RowMapping, new: New) -> Made:
    """Insert the object's row, or find the object that the request stands for already.

    Raises `AlreadyExistsError` or `NotFoundError` where the policy of a unique key says so; nothing was written then.
    """
    # The bucket may have gone while files were written.
    buckets.find(connection, bucket["namespace_id"], bucket["bucket_id"])
    taken = _holder(connection, bucket, new.draft.unique_key)
    object_id = taken["object_id"] if taken is not None else new_id("obj")
    if new.once is not None:
        known = idempotency.find(connection, new.once)
        if known is not None:
            return Made(_row(connection, bucket, known, made=known), "idempotency_key")
    digest = _content_hash(new.draft, new.blobs)
    twin = _twin(connection, bucket, digest) if new.skip_duplicates else None
    if twin is None:
        _check_policy(bucket, new, taken)
    if new.once is not None:
        known = idempotency.claim(connection, new.once, twin["object_id"] if twin is not None else object_id)
        if known is not None:
            return Made(_row(connection, bucket, known, made=known), "idempotency_key")
    if twin is not None:
        return Made(twin, "skip_duplicates")
    if taken is not None:
        return Made(_replace(connection, bucket, taken, new), None)
    _insert(connection, bucket, object_id, digest, new)
    return Made(_row(connection, bucket, object_id), None)


def _insert(connection: Connection, bucket: RowMapping, object_id: str, digest: str, new: New) -> None:
    at = now()
    connection.execute(
        objects.insert().values(
            object_id=object_id,
            namespace_id=bucket["namespace_id"],
            bucket_id=bucket["bucket_id"],
            key_prefix=new.draft.key_prefix,
            fields=new.draft.fields,
            blobs=new.blobs,
            version=1,
            content_hash=digest,
            size_bytes=_size(new.blobs),
            unique_key=new.draft.unique_key,
            status="DRAFT",
            created_at=at,
            updated_at=at,
        )
    )
    _note_remote(connection, bucket["namespace_id"], object_id, new.remote)


def _twin(connection: Connection, bucket: RowMapping, digest: str) -> RowMapping | None:
    """Return the oldest object of the bucket with the same content."""
    same = sa.and_(objects.c.bucket_id == bucket["bucket_id"], objects.c.content_hash == digest)
    found = connection.execute(sa.select(objects).where(same).order_by(objects.c.created_at).limit(1))
    return found.mappings().one_or_none()


def _holder(connection: Connection, bucket: Mapping[Any, Any], unique_key: str | None) -> RowMapping | None:
    """Return the object of the bucket that has a unique key, which nobody else takes or gives up meanwhile."""
    if unique_key is None:
        return None
    if connection.dialect.name != "sqlite":
        # SQLite has one writer at a time; elsewhere requests for one key come one after the other by this.
        lock = sa.func.hashtextextended(f"{bucket['bucket_id']} {unique_key}", 0)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
    held = sa.and_(objects.c.bucket_id == bucket["bucket_id"], objects.c.unique_key == unique_key)
    return connection.execute(sa.select(objects).where(held)).mappings().one_or_none()


def _check_policy(bucket: Mapping[Any, Any], new: New, taken: RowMapping | None) -> None:
    if new.policy == "insert" and taken is not None:
        raise _key_is_taken(bucket, taken["object_id"], "Send ?policy=upsert to replace it.")
    if new.policy == "update" and taken is None:
        raise _no_such_key(bucket)


def _no_such_key(bucket: Mapping[Any, Any]) -> NotFoundError:
    fields = bucket["unique_key"]["fields"]
    error = NotFoundError("object", f"with this {', '.join(fields)}")
    error.message += " The policy is update; with ?policy=upsert one would be made."
    error.details["unique_key"] = fields
    return error


def _key_is_taken(bucket: Mapping[Any, Any], object_id: str, remedy: str) -> AlreadyExistsError:
    fields = bucket["unique_key"]["fields"]
    return AlreadyExistsError(
        f"Object {object_id} has this unique key ({', '.join(fields)}) already. {remedy}",
        details={"resource": "object", "id": object_id, "unique_key": fields},
    )


def _replace(connection: Connection, bucket: RowMapping, before: RowMapping, new: New) -> RowMapping:
    """Make the object of a row what a request says, as a whole; when it is that already, nothing changes."""
    stored, remote = _reused(new.draft, new.blobs, new.remote, before["blobs"])
    if _content_hash(new.draft, stored) == before["content_hash"] and not _asked_again(new.draft):
        return before
    return _change(connection, bucket, before, new.draft, stored, remote)


# --- read ----------------------------------------------------------------------------------------------


def get(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    object_id: str,
    *,
    presigned_urls: bool = False,
) -> ObjectResponse:
    """Return an object; short texts in full, files by signed URL when `presigned_urls` is set."""
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        row = _row(connection, place, object_id)
        made = sa.and_(
            sources.c.namespace_id == place["namespace_id"], sources.c.source_id == row["object_id"]
        )
        documents = connection.execute(
            sa.select(
                sa.func.coalesce(sa.func.sum(sa.func.json_array_length(sources.c.document_ids)), 0)
            ).where(made)
        ).scalar_one()
    answer = _answer(wh, row, presigned_urls=presigned_urls, texts=True)
    return answer.model_copy(update={"document_count": documents})


def list_(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    page: PageRequest,
    request: ListObjectsRequest,
) -> ListObjectsResponse:
    """List a bucket's objects, oldest first unless sorted otherwise.

    Filters see the user's fields at the root and in `metadata`, and `object_id`, `key_prefix`, `status`,
    `created_at`, `updated_at`.
    """
    wanted = listing.parse_filters(request.filters)
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        in_bucket = objects.c.bucket_id == place["bucket_id"]
        oldest_first = (objects.c.created_at, objects.c.object_id)
        total = connection.execute(
            sa.select(sa.func.count()).select_from(objects).where(in_bucket)
        ).scalar_one()
        if wanted is None and not request.search and request.sort is None:
            query = sa.select(objects).where(in_bucket).order_by(*oldest_first)
            rows: list[RowMapping] = list(
                connection.execute(query.limit(page.limit).offset(page.offset)).mappings().all()
            )
        else:
            listing.refuse_long_scan(wh, total, "objects")
            # Closed whatever happens: a result that is left open disturbs the next use of its connection.
            with connection.execute(sa.select(objects).where(in_bucket).order_by(*oldest_first)) as scan:
                chosen = list(_chosen(scan.mappings(), wanted, request))
            total = len(chosen)
            if request.sort is not None:
                chosen = listing.ordered(
                    chosen, request.sort.field, request.sort.direction, id_field="object_id"
                )
            ids = [item["object_id"] for item in chosen[page.offset : page.offset + page.limit]]
            found = {
                row["object_id"]: row
                for row in connection.execute(
                    sa.select(objects).where(objects.c.object_id.in_(ids))
                ).mappings()
            }
            rows = [found[object_id] for object_id in ids]
    results = [
        _selected(_answer(wh, row, presigned_urls=bool(request.return_presigned_urls)), request.select)
        for row in rows
    ]
    return ListObjectsResponse(
        results=results,
        pagination=listing.stand(wh, page, total, len(rows)),
        total_count=total,
        stats=_statistics(rows),
    )


def _statistics(rows: Sequence[RowMapping]) -> ObjectListStats:
    blob_count = sum(len(row["blobs"]) for row in rows)
    statuses: dict[str, int] = {}
    for row in rows:
        statuses[row["status"]] = statuses.get(row["status"], 0) + 1
    return ObjectListStats(
        total_objects=len(rows),
        total_blobs=blob_count,
        avg_blobs_per_object=blob_count / len(rows) if rows else 0.0,
        objects_by_status=statuses,
    )


def aggregate(
    wh: Warehouse, principal: Principal, namespace: str, bucket: str, request: AggregationRequest
) -> AggregationResponse:
    """Group a bucket's objects and reckon figures of each group, over all that the filters let through.

    Paths find the user's fields at the root and in `metadata`, what filters of a list see, and `blobs` (with
    ``property``, ``type`` and ``details``).
    """
    wanted = listing.parse_filters(request.filters)
    read = 0
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        in_bucket = objects.c.bucket_id == place["bucket_id"]
        total = connection.execute(
            sa.select(sa.func.count()).select_from(objects).where(in_bucket)
        ).scalar_one()
        listing.refuse_long_scan(wh, total, "objects")

        def records() -> Iterator[Mapping[str, Any]]:
            nonlocal read
            with connection.execute(sa.select(objects).where(in_bucket)) as scan:
                for row in scan.mappings():
                    record = searchable(row)
                    if wanted is None or matches(wanted, record):
                        read += 1
                        yield {**record, "blobs": [_shown_blob(blob) for blob in row["blobs"]]}

        results, groups = aggregation.aggregate(records(), request)
    info = {"bucket_id": place["bucket_id"], "objects": read}
    return AggregationResponse(results=results, total_groups=groups, query_info=info)


def _shown_blob(blob: Mapping[str, Any]) -> JsonObject:
    return {"property": blob["property"], "type": blob["type"], "details": blob["details"]}


def _chosen(
    rows: Iterable[RowMapping], wanted: Filter | None, request: ListObjectsRequest
) -> Iterator[dict[str, Any]]:
    """Yield what filters and sorting need of each row that is let through; nothing else is kept in memory."""
    keep = {"object_id"} if request.sort is None else {"object_id", request.sort.field.split(".")[0]}
    for row in rows:
        document = searchable(row)
        if wanted is not None and not matches(wanted, document):
            continue
        if request.search and not listing.contains(
            {"text": orjson.dumps(document).decode()}, request.search, ("text",), case_sensitive=False
        ):
            continue
        yield {name: value for name, value in document.items() if name in keep}


def searchable(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an object as filters see it: each user field at the root and, where it is nested, in `metadata`."""
    fields = row["fields"]
    nested = fields.get("metadata")
    return {
        **(nested if isinstance(nested, dict) else {}),
        **fields,
        "metadata": {**{k: v for k, v in fields.items() if k != "metadata"}, **(nested or {})},
        "object_id": row["object_id"],
        "bucket_id": row["bucket_id"],
        "key_prefix": row["key_prefix"],
        "status": row["status"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


# --- change, delete ------------------------------------------------------------------------------------


def update(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    object_id: str,
    request: UpdateObjectRequest,
    *,
    replace: bool,
) -> ObjectResponse:
    """Change the fields that are given; null removes one. Blobs, when given, replace all that it has.

    `metadata` is replaced as a whole with `replace`, else merged. Durable when it returns; its documents
    follow with the next batch. What a batch under way still makes of the object as it was is dropped.
    """
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        before = _row(connection, place, object_id)
    fields = {**before["fields"], **(request.model_extra or {})}
    if "metadata" in request.model_fields_set:
        earlier = {} if replace or request.metadata is None else before["fields"].get("metadata") or {}
        fields["metadata"] = {**earlier, **request.metadata} if request.metadata is not None else None
    fields = {name: value for name, value in fields.items() if value is not None}
    kept = [] if request.blobs is not None else before["blobs"]
    draft = drafts.check(wh, place, request, fields, kept={blob["property"] for blob in kept})
    if draft.key_prefix is None:
        draft.key_prefix = before["key_prefix"]
    raise_problems(draft.problems)
    given_properties = {blob.property for blob in draft.blobs}
    kept = [blob for blob in kept if blob["property"] not in given_properties]
    fresh, remote = _reused(
        draft, _store(wh, place["namespace_id"], draft), _sealed(wh, draft), before["blobs"]
    )
    with wh.db.write() as connection:
        # What was fetched meanwhile is no change of the object, and stays.
        present = {blob["blob_id"]: blob for blob in _row(connection, place, before["object_id"])["blobs"]}
        stored = [present.get(blob["blob_id"], blob) for blob in [*kept, *fresh]]
        check_stored(wh, stored)
        holder = _holder(connection, place, draft.unique_key)
        if holder is not None and holder["object_id"] != before["object_id"]:
            raise _key_is_taken(place, holder["object_id"], "Change that one, or choose other values.")
        row = _change(connection, place, before, draft, stored, remote)
    return _answer(wh, row, texts=True)


def _change(
    connection: Connection,
    bucket: RowMapping,
    before: RowMapping,
    draft: drafts.Draft,
    stored: Sequence[Mapping[str, Any]],
    remote: Mapping[str, str],
) -> RowMapping:
    """Give an object a new version; raise `ConflictError` when it is not any more what it was `before`."""
    this = objects.c.object_id == before["object_id"]
    changed = connection.execute(
        sa.update(objects)
        .where(this, objects.c.version == before["version"])
        .values(
            key_prefix=draft.key_prefix,
            fields=draft.fields,
            blobs=list(stored),
            size_bytes=_size(stored),
            content_hash=_content_hash(draft, stored),
            unique_key=draft.unique_key,
            version=before["version"] + 1,
            updated_at=now(),
        )
    ).rowcount
    if not changed:
        raise ConflictError(
            f"Object {before['object_id']} was changed by another request meanwhile. Read it and send the "
            "change again."
        )
    gone = fetches.c.property.not_in([blob["property"] for blob in stored if is_missing(blob)])
    connection.execute(sa.delete(fetches).where(fetches.c.object_id == before["object_id"], gone))
    _note_remote(connection, bucket["namespace_id"], before["object_id"], remote)
    row = _row(connection, bucket, before["object_id"])
    events.object_changed(connection, "updated", row)
    return row


def delete(wh: Warehouse, principal: Principal, namespace: str, bucket: str, object_id: str) -> None:
    """Delete an object, its documents and what was derived from them. Durable, and no longer findable, when it returns.

    What a batch under way still makes of it is dropped. Its files stay until the namespace is deleted,
    because other objects may hold the same content.
    """
    seq: int | None = None
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        namespace_id = place["namespace_id"]
        log.hold(connection, namespace_id)
        row = _row(connection, place, object_id)
        documents = derivation.forget_sources(connection, namespace_id, [row["object_id"]])
        documents += derivation.forget(connection, namespace_id, documents)
        connection.execute(
            sa.update(batch_rows)
            .where(
                batch_rows.c.namespace_id == namespace_id,
                batch_rows.c.object_id == row["object_id"],
                batch_rows.c.status == "PENDING",
            )
            .values(
                status="SKIPPED",
                error_kind="superseded",
                error_message="The object was deleted.",
                updated_at=now(),
            )
        )
        connection.execute(sa.delete(fetches).where(fetches.c.object_id == row["object_id"]))
        connection.execute(sa.delete(objects).where(objects.c.object_id == row["object_id"]))
        events.object_changed(connection, "deleted", row)
        if documents:
            seq = log.append_edit(connection, namespace_id, deletes=documents)
    if seq is not None:
        wh.views.apply(namespace_id, seq)


# --- checking ------------------------------------------------------------------------------------------


def check_fields(
    wh: Warehouse, bucket: RowMapping, blob_property: str, metadata: JsonObject
) -> tuple[list[Problem], str | None]:
    """Return what is wrong with an object of `metadata` and one blob, whose content is still to come.

    And the digest of its unique key, in a bucket that has one.
    """
    request = CreateObjectRequest(metadata=metadata)
    draft = drafts.check(wh, bucket, request, {"metadata": metadata}, kept={blob_property})
    return draft.problems, draft.unique_key


def standing_for(connection: Connection, bucket: RowMapping, unique_key: str | None) -> str | None:
    """Return the object because of whose key the bucket's default policy makes no other one, if there is one.

    Raises `BadRequestError` when there is no default policy, `NotFoundError` when it asks for an object that is not
    there.
    """
    policy, holder = _policy(bucket, None), _holder(connection, bucket, unique_key)
    if policy == "update" and holder is None:
        raise _no_such_key(bucket)
    return str(holder["object_id"]) if policy == "insert" and holder is not None else None


# --- storing, answering --------------------------------------------------------------------------------


def _store(wh: Warehouse, namespace_id: str, draft: drafts.Draft) -> list[dict[str, Any]]:
    """Write the draft's files and return its blobs as the row keeps them. Can be repeated: same bytes, same key."""
    stored = []
    for blob in draft.blobs:
        entry: dict[str, Any] = {
            "blob_id": new_id("blob"),
            "property": blob.property,
            "type": blob.type.value,
            "key_prefix": blob.key_prefix,
            "metadata": blob.metadata,
        }
        details: dict[str, Any] = {"filename": None, "size_bytes": None, "mime_type": None, "hash": None}
        found = blob.content
        if isinstance(found, drafts.Kept):
            entry |= found.entry
            details = dict(found.entry["details"])
        elif isinstance(found, drafts.Remote):
            entry["source"] = {"url": found.shown, "digest": found.digest}
        else:
            details |= {
                "size_bytes": len(found.data),
                "mime_type": found.mime_type,
                "hash": hashlib.sha256(found.data).hexdigest(),
            }
            if blob.type is FieldType.TEXT and len(found.data) <= drafts.MAX_INLINE_TEXT_BYTES:
                entry["text"] = found.data.decode()
            else:
                entry["blob_key"] = wh.blobs.put(namespace_id, found.data)
        entry["details"] = {**details, "filename": blob.filename or details["filename"]}
        stored.append(entry)
    return stored


def check_stored(wh: Warehouse, stored: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to refer to a file that was erased with another object since it was stored.

    Called within the transaction that refers to it. Files are removed within write transactions too, so what is
    there now stays. Raises `StorageError`.
    """
    for blob in stored:
        key = blob.get("blob_key")
        if key and not wh.blobs.path(key).exists():
            raise StorageError(
                "The content of this object was erased with another one at this moment; nothing of this request was "
                "kept. Send it again."
            )


def is_named(connection: Connection, key: str, *, but_for: Sequence[sa.Table] = ()) -> bool:
    """Whether a row of any table names the file; the log's entries, erasures and `but_for` are not asked.

    Called within the write transaction in which it is removed if none does.
    """
    for table in metadata.sorted_tables:
        if table in (log_entries, erasures, *but_for) or "namespace_id" not in table.c:
            continue
        texts = [column for column in table.c if isinstance(column.type, sa.JSON | sa.String)]
        named = sa.or_(*(sa.cast(column, sa.String).like(f"%{key}%") for column in texts))
        mine = table.c.namespace_id == key.partition("/")[0]
        if connection.execute(sa.select(sa.literal(1)).where(mine, named).limit(1)).scalar():
            return True
    return False


def _reused(
    draft: drafts.Draft,
    stored: Sequence[dict[str, Any]],
    remote: Mapping[str, str],
    before: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Let blobs from a URL that was fetched for the same property keep what came: a URL is fetched once.

    Returns the blobs, and the URLs (sealed, by property) that are still to be fetched.
    """
    again = _asked_again(draft)
    known = {
        (blob["property"], blob["source"]["digest"]): blob
        for blob in before
        if "source" in blob and not is_missing(blob)
    }
    kept, still = [], dict(remote)
    for blob in stored:
        name = blob["property"]
        earlier = known.get((name, blob["source"]["digest"])) if "source" in blob else None
        if earlier is None or name in again:
            kept.append(blob)
            continue
        came = {part: earlier[part] for part in ("text", "blob_key", "source") if part in earlier}
        details = {
            **earlier["details"],
            "filename": blob["details"]["filename"] or earlier["details"]["filename"],
        }
        kept.append({**blob, **came, "details": details})
        still.pop(name, None)
    return kept, still


def _asked_again(draft: drafts.Draft) -> set[str]:
    """Return the properties whose URL is to be fetched although it was fetched before."""
    return {
        blob.property
        for blob in draft.blobs
        if isinstance(blob.content, drafts.Remote) and blob.content.again
    }


def is_missing(blob: Mapping[str, Any]) -> bool:
    """Say whether a stored blob is still to be fetched."""
    return "text" not in blob and "blob_key" not in blob


def _sealed(wh: Warehouse, draft: drafts.Draft) -> dict[str, str]:
    return {
        blob.property: wh.vault.seal(blob.content.url)
        for blob in draft.blobs
        if isinstance(blob.content, drafts.Remote)
    }


def _note_remote(
    connection: Connection, namespace_id: str, object_id: str, remote: Mapping[str, str]
) -> None:
    insert_or_replace(
        connection,
        fetches,
        [
            {
                "object_id": object_id,
                "property": name,
                "namespace_id": namespace_id,
                "sealed_url": sealed_url,
            }
            for name, sealed_url in remote.items()
        ],
    )


def _content_hash(draft: drafts.Draft, stored: Sequence[Mapping[str, Any]]) -> str:
    """Return the digest of everything that the user gave: two objects with the same one are duplicates."""
    parts = {
        "key_prefix": draft.key_prefix,
        "fields": draft.fields,
        "blobs": sorted([blob["property"], blob["type"], _identity(blob)] for blob in stored),
    }
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _identity(blob: Mapping[str, Any]) -> str:
    """Return what a blob's content is told by: what the user gave, so its URL even when that was fetched."""
    return f"url:{blob['source']['digest']}" if "source" in blob else str(blob["details"]["hash"])


def _size(blobs: Sequence[Mapping[str, Any]]) -> int:
    return sum(blob["details"]["size_bytes"] or 0 for blob in blobs)


def with_content(blobs: Sequence[Mapping[str, Any]], blob_id: str, entry: Mapping[str, Any]) -> JsonObject:
    """Return the columns of an object's row in which the blob `blob_id` has the content of `entry`."""
    filled = [
        {
            **blob,
            **entry,
            "details": {
                **entry["details"],
                "filename": blob["details"]["filename"] or entry["details"]["filename"],
            },
        }
        if blob["blob_id"] == blob_id
        else blob
        for blob in blobs
    ]
    return {"blobs": filled, "size_bytes": _size(filled)}


def _row(
    connection: Connection, bucket: RowMapping, object_id: str, *, made: str | None = None
) -> RowMapping:
    return buckets.find_in(connection, bucket, objects, "object", object_id, made=made)


def _answer(
    wh: Warehouse, row: Mapping[Any, Any], *, presigned_urls: bool = False, texts: bool = False
) -> ObjectResponse:
    return ObjectResponse.model_validate(
        {
            **row["fields"],
            "object_id": row["object_id"],
            "bucket_id": row["bucket_id"],
            "key_prefix": row["key_prefix"],
            "blobs": [
                BlobModel(
                    blob_id=blob["blob_id"],
                    property=blob["property"],
                    key_prefix=blob.get("key_prefix"),
                    type=blob["type"],
                    properties=blob.get("metadata") or {},
                    details=blob["details"],
                    url=(blob.get("source") or {}).get("url"),
                    data=blob.get("text") if texts else None,
                    presigned_url=links.sign(wh, row["namespace_id"], blob["blob_key"])
                    if presigned_urls and blob.get("blob_key")
                    else None,
                )
                for blob in row["blobs"]
            ],
            "status": row["status"],
            "version": row["version"],
            "content_hash": row["content_hash"],
            "created_at": row["created_at"],
            "updated_at": row["updated_at"],
        }
    )


def _selected(answer: ObjectResponse, select: Sequence[str] | None) -> ObjectResponse:
    if not select:
        return answer
    wanted = {path.split(".")[0] for path in select}
    fields = answer.model_dump()
    own = set(ObjectResponse.model_fields)
    return ObjectResponse.model_validate(
        {name: value for name, value in fields.items() if name in own or name in wanted}
    )
