"""What becomes of rows: a chunk's documents enter the log, and its rows end, in one transaction.

Each transaction checks that the batch, the attempt, the collection and each source's version are still the ones
planned; what is late is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import artifact, batch_logs, derivation, document_edits, events, failpoints, log, row_failures
from tessera.context import Warehouse
from tessera.db.engine import insert_or_replace, now
from tessera.db.tables import batch_rows, batches, collections, objects, sources
from tessera.extraction import ChunkJob, ChunkResult, ChunkRow, RowResult, write_documents
from tessera.ingest_attempt import Attempt, Superseded, Watch, check_attempt
from tessera.ingest_progress import record_progress
from tessera.source_content import input_hash

#: A document that changes while it is processed is read again, but not for ever.
MAX_REREADS = 3


class _Outdated(Exception):
    """What users changed by hand of the documents is not what an artifact holds of it."""


class CollectionGone(Exception):
    """The collection was deleted while we worked for it; the batch goes on with its other collections."""


def commit_chunk(
    wh: Warehouse, attempt: Attempt, plan_hash: str, chunk: ChunkJob, result: ChunkResult
) -> None:
    """Append what a chunk brought and record its rows, in one transaction; then make it findable."""
    rows = {row.object_id: row for row in chunk.rows}
    documents = {identifier for r in result.rows for identifier in r.document_ids}
    kept = result
    edits: Mapping[str, document_edits.Changes] = {}
    failpoints.reach("batch.commit")
    for _ in range(5):
        with contextlib.suppress(_Outdated), wh.db.write() as connection:
            late = _check(wh, connection, attempt, chunk)
            by_hand = document_edits.of_documents(connection, chunk.collection_id, documents)
            if by_hand == edits and not any(r.object_id in late and r.document_ids for r in kept.rows):
                seq = _append(connection, wh, attempt, chunk, kept, rows, late, plan_hash)
                # Who changes a document from here on comes behind us in the log, and sees us there; on PostgreSQL
                # somebody may have come in between.
                by_hand = document_edits.of_documents(connection, chunk.collection_id, documents)
                if by_hand == edits:
                    break
                raise _Outdated
        kept, edits = _rewritten(wh, chunk, result, kept, late, by_hand), by_hand
    else:
        raise Superseded
    if kept is not result:
        for key in result.artifact_keys:
            wh.blobs.path(key).unlink(missing_ok=True)
    failpoints.reach("log.appended")
    if result.cost is not None:
        extractor = wh.registry.find(chunk.extractor_name, chunk.extractor_version)
        name = extractor.name if extractor is not None else chunk.extractor_name
        attempt.pace.seen.add(chunk.collection_id, name, plan_hash, result.cost)
    if seq is not None:
        wh.views.apply(attempt.namespace_id, seq)


def _check(wh: Warehouse, connection: Connection, attempt: Attempt, chunk: ChunkJob) -> set[str]:
    """Return the chunk's sources that are not as planned any more; raise when the whole chunk is late."""
    check_attempt(connection, attempt)
    # What others delete from here on, they delete with what was derived of it, and so with what this appends.
    log.hold(connection, attempt.namespace_id)
    exists = connection.execute(
        sa.select(collections.c.collection_id).where(collections.c.collection_id == chunk.collection_id)
    ).scalar()
    if exists is None:
        raise CollectionGone
    return _late(wh, connection, attempt, {row.object_id: row.object_version for row in chunk.rows})


def _late(wh: Warehouse, connection: Connection, attempt: Attempt, planned: Mapping[str, int]) -> set[str]:
    """Return the sources that are not at the version that was planned any more."""
    parents = {source_id: derivation.document_of(source_id) for source_id in planned}
    read = {source_id: parent for source_id, parent in parents.items() if parent is not None}
    late: set[str] = set()
    if read:
        watch = _looked(wh, connection, attempt)
        late |= {source_id for source_id, parent in read.items() if watch.is_lost or parent in watch.changed}
    object_ids = planned.keys() - read.keys()
    if object_ids:
        versions = {
            object_id: version
            for object_id, version in connection.execute(
                sa.select(objects.c.object_id, objects.c.version).where(objects.c.object_id.in_(object_ids))
            )
        }
        late |= {object_id for object_id in object_ids if versions.get(object_id) != planned[object_id]}
    return late


def _looked(wh: Warehouse, connection: Connection, attempt: Attempt) -> Watch:
    """Return the watch, brought up to the head of the log."""
    watch = attempt.pace.watch
    if not watch.is_lost:
        try:
            changed, watch.seen = log.changed_since(
                connection,
                attempt.namespace_id,
                after=watch.seen,
                local_path=wh.blobs.path,
                but_for=f"{attempt.namespace_id}/artifacts/{attempt.batch_id}-{attempt.number}-",
            )
        except (log.Folded, FileNotFoundError):
            watch.is_lost = True
        else:
            watch.changed |= changed
    return watch


def _rewritten(
    wh: Warehouse,
    chunk: ChunkJob,
    result: ChunkResult,
    before: ChunkResult,
    late: set[str],
    by_hand: Mapping[str, document_edits.Changes],
) -> ChunkResult:
    """Return `result` without the documents of `late` objects, and with what users changed of the others by hand.

    `before` is what this made of `result` last time: its artifacts are written anew.
    """
    dropped = {identifier for r in result.rows if r.object_id in late for identifier in r.document_ids}
    kept = [
        replace(
            document,
            payload=document_edits.with_changes(
                document.payload, by_hand.get(document.document_id, {}), by_force=True
            ),
        )
        for key in result.artifact_keys
        for documents in artifact.read(wh.blobs.path(key))
        for document in documents
        if document.document_id not in dropped
    ]
    if before is not result:
        for key in before.artifact_keys:
            wh.blobs.path(key).unlink(missing_ok=True)
    keys = write_documents(wh.blobs, f"{chunk.artifact_key}-kept", chunk.vectors, kept)
    rows = tuple(replace(r, document_ids=()) if r.object_id in late else r for r in result.rows)
    return ChunkResult(rows, keys, len(kept))


def _append(
    connection: Connection,
    wh: Warehouse,
    attempt: Attempt,
    chunk: ChunkJob,
    result: ChunkResult,
    rows: Mapping[str, ChunkRow],
    late: set[str],
    plan_hash: str,
) -> int | None:
    done = [r for r in result.rows if r.object_id not in late and r.error_kind is None]
    before = {
        source_id: ids
        for source_id, ids in connection.execute(
            sa.select(sources.c.source_id, sources.c.document_ids).where(
                sources.c.collection_id == chunk.collection_id,
                sources.c.source_id.in_([r.object_id for r in done]),
            )
        )
    }
    stale = [
        identifier
        for r in done
        for identifier in before.get(r.object_id, ())
        if identifier not in set(r.document_ids)
    ]
    document_edits.forget(connection, chunk.collection_id, stale)
    deleted = len(stale)
    # What was derived from documents that are no more goes with them, in every tier.
    stale += derivation.forget(connection, attempt.namespace_id, stale)
    insert_or_replace(
        connection,
        sources,
        [
            {
                "namespace_id": attempt.namespace_id,
                "collection_id": chunk.collection_id,
                "source_id": r.object_id,
                "input_hash": input_hash(rows[r.object_id]),
                "plan_hash": plan_hash,
                "document_ids": list(r.document_ids),
            }
            for r in done
        ],
    )
    _record_rows(connection, wh, attempt, chunk.collection_id, result.rows, late)
    if attempt.pace.crashes:
        attempt.pace.crashes = 0
        connection.execute(sa.update(batches).where(batches.c.batch_id == attempt.batch_id).values(crashes=0))
    seq: int | None = None
    for number, key in enumerate(result.artifact_keys):
        seq = log.append_artifact(
            connection,
            attempt.namespace_id,
            key,
            deletes=stale if number == 0 else (),
            documents=result.documents if number == 0 else 0,
        )
    if stale and not result.artifact_keys:
        seq = log.append_edit(connection, attempt.namespace_id, deletes=stale)
    if seq is not None:
        events.documents_written(
            connection,
            attempt.namespace_id,
            chunk.collection_id,
            written=result.documents,
            deleted=deleted,
            batch_id=attempt.batch_id,
        )
    return seq


def _record_rows(
    connection: Connection,
    wh: Warehouse,
    attempt: Attempt,
    collection_id: str,
    results: Sequence[RowResult],
    late: set[str],
) -> None:
    at = now()
    again = {source_id for source_id in late if _is_read_again(attempt, source_id)}
    values = [
        {
            "b_object_id": r.object_id,
            "b_status": "SKIPPED" if r.object_id in late else "COMPLETED",
            "b_documents": len(r.document_ids),
            "b_kind": "superseded" if r.object_id in late else None,
            "b_message": "The object changed or was deleted while it was extracted."
            if r.object_id in late
            else None,
        }
        for r in results
        if r.object_id not in again and (r.object_id in late or r.error_kind is None)
    ]
    if values:
        connection.execute(
            sa.update(batch_rows)
            .where(
                batch_rows.c.batch_id == attempt.batch_id,
                batch_rows.c.collection_id == collection_id,
                batch_rows.c.object_id == sa.bindparam("b_object_id"),
            )
            .values(
                status=sa.bindparam("b_status"),
                documents=sa.bindparam("b_documents"),
                error_kind=sa.bindparam("b_kind"),
                error_message=sa.bindparam("b_message"),
                attempts=batch_rows.c.attempts + 1,
                updated_at=at,
            ),
            values,
        )
    failed = [r for r in results if r.error_kind is not None and r.object_id not in late]
    fail_rows(connection, wh, attempt, failed, collection_id)
    record_progress(connection, attempt, "extract")


def _is_read_again(attempt: Attempt, source_id: str) -> bool:
    """Say whether a source that changed meanwhile stays to be done, as it is now: a document, some times."""
    if derivation.document_of(source_id) is None:
        return False
    attempt.pace.rereads[source_id] += 1
    return attempt.pace.rereads[source_id] <= MAX_REREADS


def fail_rows(
    connection: Connection,
    wh: Warehouse,
    attempt: Attempt,
    failed: Sequence[RowResult],
    collection_id: str | None = None,
    *,
    is_last: bool = True,
) -> None:
    """Write down that rows failed, in one collection or in all of the batch; unless `is_last` they are tried again."""
    row_failures.record(
        connection,
        attempt.batch_id,
        attempt.task_id,
        failed,
        collection_id,
        retries=wh.settings.row_retries,
        is_last=is_last,
    )


def close_rows(
    wh: Warehouse, attempt: Attempt, collection_id: str, status: str, kind: str | None, message: str | None
) -> None:
    """Close the rows of a collection that are still to be done."""
    which = batch_rows.c.collection_id == collection_id
    end_rows(wh, attempt, "extract", which, status=status, error_kind=kind, error_message=message)


def end_rows(
    wh: Warehouse, attempt: Attempt, stage: str, which: sa.ColumnElement[bool], **values: Any
) -> None:
    """Give `values` to those of the batch's rows that are still to be done."""
    with wh.db.write() as connection:
        check_attempt(connection, attempt)
        connection.execute(
            sa.update(batch_rows)
            .where(
                batch_rows.c.batch_id == attempt.batch_id,
                which,
                batch_rows.c.status == "PENDING",
                batch_rows.c.due_at.is_(None),
            )
            .values(**values, updated_at=now())
        )
        record_progress(connection, attempt, stage)


def close_unchanged(
    wh: Warehouse, attempt: Attempt, collection_id: str, unchanged: Mapping[str, int]
) -> None:
    """Close rows whose input and plan are those of the documents that exist: nothing is written for them.

    `unchanged` tells how many documents each object has.
    """
    with wh.db.write() as connection:
        check_attempt(connection, attempt)
        connection.execute(
            sa.update(batch_rows)
            .where(
                batch_rows.c.batch_id == attempt.batch_id,
                batch_rows.c.collection_id == collection_id,
                batch_rows.c.object_id == sa.bindparam("b_object_id"),
            )
            .values(
                status="COMPLETED",
                documents=sa.bindparam("b_documents"),
                error_kind=None,
                error_message=None,
                updated_at=now(),
            ),
            [{"b_object_id": o, "b_documents": count} for o, count in unchanged.items()],
        )
        record_progress(connection, attempt, "extract")


def close_left_out(
    wh: Warehouse, attempt: Attempt, collection_id: str, left_out: Mapping[str, int], kind: str, message: str
) -> None:
    """End rows that a collection leaves out as `message` says, and delete the documents that they have from before.

    `left_out` gives the version of each; those that have changed meanwhile stay to be looked at again.
    """
    seq: int | None = None
    with wh.db.write() as connection:
        check_attempt(connection, attempt)
        log.hold(connection, attempt.namespace_id)
        ids = sorted(left_out.keys() - _late(wh, connection, attempt, left_out))
        known = sa.and_(sources.c.collection_id == collection_id, sources.c.source_id.in_(ids))
        stale = [
            document_id
            for had in connection.execute(sa.select(sources.c.document_ids).where(known)).scalars()
            for document_id in had
        ]
        if stale:
            connection.execute(sa.delete(sources).where(known))
            events.documents_written(
                connection, attempt.namespace_id, collection_id, deleted=len(stale), batch_id=attempt.batch_id
            )
            stale += derivation.forget(connection, attempt.namespace_id, stale)
            seq = log.append_edit(connection, attempt.namespace_id, deletes=stale)
        connection.execute(
            sa.update(batch_rows)
            .where(
                batch_rows.c.batch_id == attempt.batch_id,
                batch_rows.c.collection_id == collection_id,
                batch_rows.c.object_id.in_(ids),
            )
            .values(
                status="SKIPPED",
                documents=0,
                error_kind=kind,
                error_message=message,
                updated_at=now(),
            )
        )
        if ids and kind == "missing_input":
            told = f"{len(ids)} source(s) skipped in collection {collection_id}. {message}"
            batch_logs.write(connection, attempt.batch_id, attempt.namespace_id, told, level="info")
        record_progress(connection, attempt, "extract")
    if seq is not None:
        wh.views.apply(attempt.namespace_id, seq)
