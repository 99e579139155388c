"""Erasing: documents leave search at once, and then everything that the data directory keeps of them.

A request logs the deletion, takes the documents off their sources (and, if asked, removes those objects), and
leaves a row in `erasures` that says what is still to be done; its task reports what was rewritten, in counts,
keys and bytes and never in content. The rest is done in the background, in steps that can be repeated, so that
a kill anywhere is resumed:

1. every entry and artifact of the log up to the deletion is rewritten without the documents;
2. error texts and idempotency rows that speak of their objects are cleared, interactions with them removed;
3. a new view is built from the rewritten log, and every older one is dropped with its files;
4. when no batch of the namespace is at work: files that nothing names any more, and the objects' blobs;
5. copies of the database from before an upgrade are removed, and SQLite's write-ahead log is emptied (rows
   that are deleted are overwritten as they go: ``secure_delete``).

While an erasure is under way no new batch of its namespace is begun, so that step 4 comes.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import (
    artifact,
    audit,
    cluster_artifacts,
    compaction,
    derivation,
    documents,
    enrichment_requests,
    events,
    exports,
    failpoints,
    interactions,
    links,
    log,
    namespaces,
    new_tasks,
    objects,
    tasks,
)
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.migrate import remove_copies
from tessera.db.tables import (
    batch_rows,
    batches,
    collections,
    doomed_views,
    erasures,
    failures,
    fetches,
    idempotency,
    log_entries,
    uploads,
)
from tessera.db.tables import namespaces as namespace_rows
from tessera.db.tables import objects as object_rows
from tessera.db.tables import tasks as task_rows
from tessera.enrichment import KEPT, nodes_of, undone
from tessera.errors import BadRequestError, QdrantError, UnavailableError
from tessera.filters import parse
from tessera.links import SCHEME
from tessera.models.erasures import EraseRequest
from tessera.models.tasks import TaskResponse, TaskStatus, TaskType

logger = logging.getLogger("tessera.erasure")

#: Entries looked at in one transaction; each may hold a quarter of a MiB.
_PAGE = 100
#: Ids in one statement.
_IDS = 500
#: How long until what could not be done now is tried again.
_AGAIN_S = 2.0
#: Emptying the write-ahead log is tried for so long before the erasure rests.
_WAL_PATIENCE_S = 5.0
#: Keys that a report names; the counts cover all.
_REPORTED_KEYS = 100
#: What is left of a text that could quote what was erased.
_CLEARED = "The text was erased together with an object."

_COUNTS = (
    "documents",
    "documents_unknown",
    "objects",
    "objects_unknown",
    "entries_rewritten",
    "artifacts_rewritten",
    "artifacts_removed",
    "bytes_rewritten",
    "files_removed",
    "bytes_removed",
    "texts_cleared",
    "interactions_removed",
    "idempotency_keys_removed",
    "views_dropped",
    "database_copies_removed",
)


# --- asking --------------------------------------------------------------------------------------------


def request(wh: Warehouse, principal: Principal, namespace: str, body: EraseRequest) -> TaskResponse:
    """Remove documents from search for good, and return the task that erases what is left of them.

    What was derived from them, in every tier, is erased with them.

    When this returns they are durably deleted and no longer findable. Can be repeated. Raises
    `BadRequestError` unless exactly one way of naming them was used.
    """
    given = [name for name in ("document_ids", "object_ids", "filters") if getattr(body, name) is not None]
    if len(given) != 1:
        raise BadRequestError(
            f"Send exactly one of document_ids, object_ids and filters; the body has {' and '.join(given) or 'none'}."
        )
    wanted = parse(body.filters) if body.filters is not None else None
    if body.filters is not None and wanted is None:
        raise BadRequestError(
            "filters names no condition, which would erase every document of the namespace. Name one, or delete the "
            "namespace."
        )
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
    found: list[tuple[str, str]] = []
    if wanted is not None:
        found = list(documents.all_found(wh, namespace_id, wanted))
    elif body.document_ids is not None:
        found = documents.sources_of(wh, namespace_id, body.document_ids)
    object_ids = set(body.object_ids or ())
    if body.include_objects:
        object_ids |= _objects_of(wh, namespace_id, found)
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        log.hold(connection, namespace_id)
        there = {document_id for document_id, _ in found}
        document_ids = there.union(body.document_ids or ())
        documents.forget(connection, namespace_id, found)
        taken = _take_objects(connection, namespace_id, sorted(object_ids))
        there |= taken.document_ids
        document_ids |= taken.document_ids
        derived = derivation.forget(connection, namespace_id, document_ids)
        there.update(derived)
        document_ids.update(derived)
        task_id, seq = _record(
            connection,
            principal,
            place,
            {
                "document_ids": sorted(document_ids),
                # What the log knows of them is seen when it is rewritten: they may have been deleted before.
                "unknown": sorted(document_ids - there),
                "object_ids": sorted(object_ids),
                "objects_unknown": len(object_ids - taken.object_ids),
                # Whose error texts may quote them.
                "source_ids": sorted(
                    {
                        *object_ids,
                        *(source_id for _, source_id in found),
                        *map(derivation.document_source, document_ids),
                    }
                ),
                "blob_keys": sorted(taken.blob_keys),
            },
        )
        answer = tasks.answer(connection, _task(connection, task_id))
    try:
        wh.views.apply(namespace_id, seq)
    except UnavailableError as error:
        # The log has the deletion, and a view answers nothing before it has the log.
        logger.warning("deletion %d of %s waits for its view: %s", seq, namespace_id, error.message)
    wh.results.forget(namespace_id)
    wh.jobs.wake()
    return answer


def _objects_of(wh: Warehouse, namespace_id: str, found: Sequence[tuple[str, str]]) -> set[str]:
    """Return the objects at the root of documents, given as (document id, source id)."""
    roots: set[str] = set()
    derived: list[str] = []
    for document_id, source_id in found:
        if derivation.document_of(source_id) is not None:
            derived.append(document_id)
        elif source_id != derivation.own_source(document_id):
            # What was sent ready-made is its own source, which no object is.
            roots.add(source_id)
    for ids in _slices(derived):
        roots.update(
            str(root)
            for hit in wh.views.get(namespace_id, ids)
            if (root := hit.payload.get("root_object_id"))
        )
    return roots


@dataclass(slots=True)
class _Taken:
    """What was known of objects: `object_ids` are those of which anything was."""

    object_ids: set[str] = field(default_factory=set)
    blob_keys: set[str] = field(default_factory=set)
    document_ids: set[str] = field(default_factory=set)


def _take_objects(connection: Connection, namespace_id: str, object_ids: Sequence[str]) -> _Taken:
    """Remove objects with what the tables know of them; return their files and their documents."""
    taken = _Taken()
    for ids in _slices(object_ids):
        mine = sa.and_(object_rows.c.namespace_id == namespace_id, object_rows.c.object_id.in_(ids))
        for row in connection.execute(sa.select(object_rows).where(mine)).mappings().all():
            events.object_changed(connection, "deleted", row)
            # A short text stands in the row, and was a file all the same when it was uploaded.
            hashes = {blob["details"]["hash"] for blob in row["blobs"]} - {None}
            taken.object_ids.add(row["object_id"])
            taken.blob_keys |= {f"{namespace_id}/blobs/{digest}" for digest in hashes}
        taken.document_ids.update(derivation.forget_sources(connection, namespace_id, ids))
        connection.execute(
            sa.update(batch_rows)
            .where(
                batch_rows.c.namespace_id == namespace_id,
                batch_rows.c.object_id.in_(ids),
                batch_rows.c.status == "PENDING",
            )
            .values(
                status="SKIPPED",
                error_kind="superseded",
                error_message="The object was erased.",
                updated_at=now(),
            )
        )
        came_by = sa.and_(uploads.c.namespace_id == namespace_id, uploads.c.object_id.in_(ids))
        # Also of objects that were deleted before.
        for upload in connection.execute(sa.select(uploads.c.object_id, uploads.c.blob_key).where(came_by)):
            taken.object_ids.add(upload.object_id)
            taken.blob_keys |= {upload.blob_key} - {None}
        for table in (uploads, fetches):
            connection.execute(
                sa.delete(table).where(table.c.namespace_id == namespace_id, table.c.object_id.in_(ids))
            )
        connection.execute(sa.delete(object_rows).where(mine))
    return taken


def _record(
    connection: Connection, principal: Principal, place: Mapping[Any, Any], targets: dict[str, Any]
) -> tuple[str, int]:
    """Log the deletion and write down what it leaves to be done; return the task and the entry's number."""
    at, namespace_id = now(), place["namespace_id"]
    seq = log.append_edit(connection, namespace_id, deletes=targets["document_ids"])
    report = {
        **dict.fromkeys(_COUNTS, 0),
        "documents": len(targets["document_ids"]) - len(targets["unknown"]),
        "documents_unknown": len(targets["unknown"]),
        "objects": len(targets["object_ids"]) - targets["objects_unknown"],
        "objects_unknown": targets["objects_unknown"],
        "keys": [],
    }
    task_id = new_tasks.add(
        connection,
        place["organization_id"],
        namespace_id,
        TaskType.NAMESPACES_MIGRATIONS_RUN,
        [namespace_id],
        {"operation": "erase", "namespace_id": namespace_id, "stage": "queued", "report": report},
        at,
    )
    connection.execute(
        erasures.insert().values(
            task_id=task_id,
            namespace_id=namespace_id,
            targets={**targets, "seq": seq},
            report=report,
            due_at=at,
            created_at=at,
        )
    )
    counts = {"documents": report["documents"], "objects": report["objects"], "task_id": task_id}
    audit.record(connection, principal, "documents_erased", "namespace", namespace_id, counts)
    return task_id, seq


# --- doing ---------------------------------------------------------------------------------------------


def due(connection: Connection) -> list[tuple[str, str]]:
    """Return (task, namespace) of the erasures that can go on now, the oldest first."""
    rows = connection.execute(
        sa.select(erasures.c.task_id, erasures.c.namespace_id)
        .where(erasures.c.due_at <= now())
        .order_by(erasures.c.created_at)
    )
    return [(task_id, namespace_id) for task_id, namespace_id in rows]


def erase(wh: Warehouse, task_id: str, stop: threading.Event | None = None) -> None:
    """Bring an erasure to its end, or to where it has to wait for something. Can be repeated and resumed.

    Not together with another erasure or with `compaction.compact` in the same namespace.
    """
    with wh.db.read() as connection:
        row = connection.execute(sa.select(erasures).where(erasures.c.task_id == task_id)).one_or_none()
    if row is None or row.due_at > now():
        return
    work = _Work(wh, task_id, row.namespace_id, dict(row.targets), dict(row.report), row.created_at)
    if work.stage in ("queued", "log"):
        work.enter("log")
        _rewrite_log(work, stop or threading.Event())
        _clear_texts(work)
        work.enter("views")
    if work.stage == "views":
        try:
            _renew_view(work)
        except QdrantError as error:
            if stop is not None and stop.is_set():
                raise compaction.Interrupted from error
            raise
        failpoints.reach("erase.view")
        work.enter("files")
    if work.stage == "files":
        waits_for = _remove_files(work)
        if waits_for is not None:
            work.rest(waits_for)
            return
        failpoints.reach("erase.files")
        work.enter("database")
    waits_for = _clean_database(work)
    if waits_for is not None:
        work.rest(waits_for)
        return
    work.finish()


class _Work:
    """An erasure under way. What `report` and `targets` say is written with the change that they speak of."""

    def __init__(
        self,
        wh: Warehouse,
        task_id: str,
        namespace_id: str,
        targets: dict[str, Any],
        report: dict[str, Any],
        created_at: str,
    ) -> None:
        self.wh, self.task_id, self.namespace_id = wh, task_id, namespace_id
        self.targets, self.report, self.created_at = targets, report, created_at
        self._saved = dict(targets)
        self.documents = frozenset(targets["document_ids"])

    @property
    def stage(self) -> str:
        return str(self.targets.get("stage", "queued"))

    def count(self, **more: int) -> None:
        for name, number in more.items():
            # A report of an earlier release counts fewer things.
            self.report[name] = self.report.get(name, 0) + number

    def save(self, connection: Connection, **values: Any) -> None:
        """Write how far the work is, in the transaction of `connection`."""
        if self.targets != self._saved:
            # Ids of a hundred thousand documents are megabytes: not with every entry that is rewritten.
            values["targets"] = self.targets
        connection.execute(
            sa.update(erasures).where(erasures.c.task_id == self.task_id).values(report=self.report, **values)
        )
        self._saved = dict(self.targets)

    def tell(self, connection: Connection, status: TaskStatus, **more: Any) -> None:
        connection.execute(
            sa.update(task_rows)
            .where(task_rows.c.task_id == self.task_id)
            .values(
                status=status,
                outputs=[self.namespace_id] if status == TaskStatus.COMPLETED else [],
                additional_data={
                    "operation": "erase",
                    "namespace_id": self.namespace_id,
                    "stage": self.stage,
                    "report": self.report,
                    **more,
                },
                updated_at=now(),
            )
        )

    def enter(self, stage: str) -> None:
        self.targets["stage"] = stage
        with self.wh.db.write() as connection:
            self.save(connection)
            self.tell(connection, TaskStatus.IN_PROGRESS)

    def rest(self, waits_for: str) -> None:
        due_at = (datetime.now(UTC) + timedelta(seconds=_AGAIN_S)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self.wh.db.write() as connection:
            self.save(connection, due_at=due_at)
            self.tell(connection, TaskStatus.IN_PROGRESS, waits_for=waits_for)

    def finish(self) -> None:
        self.targets["stage"] = "done"
        with self.wh.db.write() as connection:
            connection.execute(sa.delete(erasures).where(erasures.c.task_id == self.task_id))
            self.tell(connection, TaskStatus.COMPLETED)
            # What lost the fields of a node that was erased is compared with those that are left.
            for collection_id in connection.execute(
                sa.select(collections.c.collection_id).where(
                    collections.c.namespace_id == self.namespace_id,
                    collections.c.taxonomy_applications.is_not(None),
                )
            ).scalars():
                enrichment_requests.note_written(connection, self.namespace_id, collection_id)
        logger.info("task %s has erased %d documents", self.task_id, self.report["documents"])


# --- the log -------------------------------------------------------------------------------------------


def _rewrite_log(work: _Work, stop: threading.Event) -> None:
    """Rewrite every entry up to the deletion that holds one of the documents."""
    after = 0
    while True:
        with work.wh.db.read() as connection:
            rows = connection.execute(
                sa.select(log_entries)
                .where(
                    log_entries.c.namespace_id == work.namespace_id,
                    log_entries.c.seq > after,
                    log_entries.c.seq <= work.targets["seq"],
                )
                .order_by(log_entries.c.seq)
                .limit(_PAGE)
            ).all()
        for row in rows:
            if stop.is_set():
                raise compaction.Interrupted
            if row.kind == "edit":
                _rewrite_edit(work, row)
            elif row.kind == "artifact":
                _rewrite_artifact(work, row)
        if len(rows) < _PAGE:
            return
        after = rows[-1].seq


def _rewrite_edit(work: _Work, row: Any) -> None:
    value = orjson.loads(row.body)
    kept = [
        {**item, "payload": _without_copies(work, item["payload"])}
        for item in value["upserts"]
        if item["document_id"] not in work.documents
    ]
    if kept == value["upserts"]:
        return
    gone = [
        (item["document_id"], item["payload"])
        for item in value["upserts"]
        if item["document_id"] in work.documents
    ]
    body = orjson.dumps({**value, "upserts": kept})
    work.count(entries_rewritten=1, bytes_rewritten=len(row.body))
    _write_entry(work, row, gone, body=body)


def _rewrite_artifact(work: _Work, row: Any) -> None:
    path = work.wh.blobs.path(row.artifact_key)
    if work.documents.isdisjoint(artifact.document_ids(path)) and not _has_copies(work, path):
        return
    kept, gone = [], []
    for part in artifact.read(path):
        kept += [
            replace(document, payload=_without_copies(work, document.payload))
            for document in part
            if document.document_id not in work.documents
        ]
        gone += [
            (document.document_id, document.payload)
            for document in part
            if document.document_id in work.documents
        ]
    size = path.stat().st_size
    work.count(artifacts_rewritten=1, bytes_rewritten=size)
    if len(work.report["keys"]) < _REPORTED_KEYS:
        work.report["keys"] = [*work.report["keys"], row.artifact_key]
    if kept:
        key = f"{work.namespace_id}/artifacts/erased-{work.task_id}-{row.seq}.arrow"
        sizes = {name: len(vector) for document in kept for name, vector in document.vectors.items()}
        artifact.write(work.wh.blobs.new_path(key), kept, sizes)
        failpoints.reach("erase.artifact")
        _write_entry(work, row, gone, artifact_key=key)
    else:
        deletes = orjson.loads(row.body)["deletes"]
        body = orjson.dumps({"upserts": [], "deletes": deletes})
        _write_entry(work, row, gone, kind="edit", body=body, artifact_key=None)
    failpoints.reach("erase.entry")
    with work.wh.views.quiet(work.namespace_id):
        # Whoever applies reads under that lock; while a backup runs it stays for the last sweep.
        work.wh.blobs.remove(row.artifact_key)


def _has_copies(work: _Work, path: Path) -> bool:
    """Say whether a document of an artifact holds what a taxonomy copied from one that is erased."""
    mark = KEPT.encode()
    return any(
        mark in payload and not work.documents.isdisjoint(nodes_of(orjson.loads(payload)))
        for payload in artifact.payloads(path)
    )


def _without_copies(work: _Work, payload: dict[str, Any]) -> dict[str, Any]:
    """Return a payload without what taxonomies wrote into it, if any of that came from what is erased."""
    return payload if work.documents.isdisjoint(nodes_of(payload)) else undone(payload)


def _write_entry(work: _Work, row: Any, gone: Sequence[tuple[str, Any]], **values: Any) -> None:
    """Replace an entry, and remember which documents (id, payload) it loses, and which files those had."""
    unknown = work.targets.get("unknown", ())
    if met := {document_id for document_id, _ in gone}.intersection(unknown):
        work.targets["unknown"] = sorted(set(unknown) - met)
        work.count(documents=len(met), documents_unknown=-len(met))
    payloads = [payload for _, payload in gone]
    if files := set(_files_in(work.namespace_id, payloads)).difference(work.targets["blob_keys"]):
        work.targets["blob_keys"] = sorted(files.union(work.targets["blob_keys"]))
    with work.wh.db.write() as connection:
        connection.execute(
            sa.update(log_entries)
            .where(log_entries.c.namespace_id == work.namespace_id, log_entries.c.seq == row.seq)
            .values(**values)
        )
        connection.execute(
            sa.update(namespace_rows)
            .where(namespace_rows.c.namespace_id == work.namespace_id)
            .values(log_edition=namespace_rows.c.log_edition + 1)
        )
        work.save(connection)


def _files_in(namespace_id: str, value: Any) -> Iterable[str]:
    """Yield the key of every blob of the namespace that a payload names.

    Users write payloads: whatever else stands there in the same form names nothing that is removed for it.
    """
    if isinstance(value, str):
        key = links.key_in(namespace_id, value)
        if key is not None:
            yield key
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _files_in(namespace_id, item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _files_in(namespace_id, item)


# --- rows ----------------------------------------------------------------------------------------------


def _clear_texts(work: _Work) -> None:
    """Clear error texts that may quote an object, digests of the requests that made one, and interactions with it."""
    if work.wh.executions is not None:
        work.wh.executions.flush()  # what was shown until now
    with work.wh.db.write() as connection:
        touched: set[str] = set()
        for ids in _slices(work.targets["source_ids"]):
            mine = sa.and_(batch_rows.c.namespace_id == work.namespace_id, batch_rows.c.object_id.in_(ids))
            touched.update(
                connection.execute(sa.select(batch_rows.c.batch_id).where(mine).distinct()).scalars()
            )
            cleared = connection.execute(
                sa.update(batch_rows)
                .where(
                    mine,
                    batch_rows.c.error_message.is_not(None),
                    batch_rows.c.error_message != _CLEARED,
                    batch_rows.c.error_kind.is_distinct_from("superseded"),
                )
                .values(error_message=_CLEARED)
            )
            work.count(texts_cleared=cleared.rowcount)
            _clear_failures(connection, work.namespace_id, ids)
        for ids in _slices(sorted(touched)):
            cleared = connection.execute(
                sa.update(batches)
                .where(batches.c.batch_id.in_(ids), batches.c.error.is_not(None), batches.c.error != _CLEARED)
                .values(error=_CLEARED)
            )
            work.count(texts_cleared=cleared.rowcount)
        told = connection.execute(
            sa.select(task_rows.c.task_id, task_rows.c.inputs).where(
                task_rows.c.namespace_id == work.namespace_id,
                task_rows.c.error.is_not(None),
                task_rows.c.error != _CLEARED,
            )
        ).all()
        quoting = [task_id for task_id, inputs in told if touched.intersection(map(str, inputs or ()))]
        for ids in _slices(quoting):
            connection.execute(
                sa.update(task_rows).where(task_rows.c.task_id.in_(ids)).values(error=_CLEARED)
            )
            work.count(texts_cleared=len(ids))
        for ids in _slices(work.targets["object_ids"]):
            removed = connection.execute(sa.delete(idempotency).where(idempotency.c.resource_id.in_(ids)))
            work.count(idempotency_keys_removed=removed.rowcount)
        forgotten = interactions.forget_documents(connection, work.namespace_id, work.documents)
        work.count(interactions_removed=forgotten)
        work.save(connection)


def _clear_failures(connection: Connection, namespace_id: str, object_ids: Sequence[str]) -> None:
    """Clear what the histories of failures say; that there were some, when and where, stays."""
    mine = sa.and_(failures.c.namespace_id == namespace_id, failures.c.object_id.in_(object_ids))
    found = connection.execute(sa.select(failures.c.failure_id, failures.c.history).where(mine)).all()
    for identifier, history in found:
        connection.execute(
            sa.update(failures)
            .where(failures.c.failure_id == identifier)
            .values(message=_CLEARED, history=[{**item, "message": _CLEARED} for item in history])
        )


# --- views ---------------------------------------------------------------------------------------------


def _renew_view(work: _Work) -> None:
    """Build a view of the rewritten log and drop every other one that the namespace ever had."""
    wh, n = work.wh, namespace_rows.c
    this = n.namespace_id == work.namespace_id
    with wh.db.read() as connection:
        row = connection.execute(sa.select(n.checkpoint_seq).where(this)).one_or_none()
    if row is None:
        return  # the namespace was deleted: its purge removes everything
    if _knows_nothing(work, row.checkpoint_seq):
        return
    wh.views.renew(work.namespace_id)
    with wh.db.read() as connection:
        used = connection.execute(sa.select(n.view_id, n.place).where(this)).one_or_none()
    if used is None:
        return
    # Later ones are built of the rewritten log: one may be under way, or answer by now.
    older = range(1, int(used.view_id.rpartition("-")[2]))
    view_ids = [f"{work.namespace_id}-{number}" for number in older]
    for view_id in view_ids:
        wh.views.drop(wh.views.view_at(work.namespace_id, view_id, (), used.place))
    work.report["views_dropped"] = len(view_ids)
    with wh.db.write() as connection:
        for ids in _slices(view_ids):
            those = doomed_views.c.view_id.in_(ids)
            doomed = connection.execute(sa.select(doomed_views.c.view_id, doomed_views.c.place).where(those))
            # One that the namespace left behind elsewhere is still to be dropped there.
            here = [row.view_id for row in doomed if row.place == used.place]
            connection.execute(sa.delete(doomed_views).where(doomed_views.c.view_id.in_(here)))
        work.save(connection)


def _knows_nothing(work: _Work, checkpoint_seq: int) -> bool:
    """Say whether no view can hold anything of what is erased, so that none need be made anew.

    The log names every document that a view ever had, until it is folded; and what another erasure has taken out of
    it is in views until that one has renewed them.
    """
    report = work.report
    found = ("documents", "objects", "entries_rewritten", "artifacts_rewritten")
    if checkpoint_seq or any(report[name] for name in found):
        return False
    others = sa.and_(erasures.c.namespace_id == work.namespace_id, erasures.c.task_id != work.task_id)
    with work.wh.db.read() as connection:
        return connection.execute(sa.select(sa.literal(1)).where(sa.exists().where(others))).scalar() is None


# --- files ---------------------------------------------------------------------------------------------


def _remove_files(work: _Work) -> str | None:
    """Remove what the log does not name any more, and the objects' blobs; say what has to be waited for first."""
    wh = work.wh
    if _busy_batches(wh, work.namespace_id):
        return "batches that are at work in this namespace"
    if (waits_for := exports.remove_all(wh, work.namespace_id)) is not None:
        return waits_for
    if (waits_for := cluster_artifacts.erase(wh, work.namespace_id, work.documents)) is not None:
        return waits_for
    asked_at = datetime.fromisoformat(work.created_at).timestamp()
    if any(written_at <= asked_at for _, written_at in compaction.being_stored(wh, work.namespace_id)):
        return "documents that are being stored"
    for key in compaction.unnamed_artifacts(wh, work.namespace_id, open_states=("IN_PROGRESS",)):
        if not wh.blobs.remove(key):
            return "a backup"
        work.count(artifacts_removed=1)
    for folder in (work.namespace_id, f"{work.namespace_id}/blobs"):
        _remove_staged(wh.blobs.path(folder), work.targets["blob_keys"])
    orphans, after, was_full = {key: key.encode() for key in work.targets["blob_keys"]}, -1, True
    while was_full:
        with wh.db.read() as connection:
            orphans, after, was_full = _unnamed_by_documents(
                wh, connection, work.namespace_id, orphans, after
            )
    # In one transaction, which no object can be made beside: what it refers to is written, or written again, by then.
    with wh.db.write() as connection:
        if _any_at_work(connection, work.namespace_id):
            return "batches that are at work in this namespace"
        # What was logged since the last page: writers do not wait for us, and a busy namespace is erased from too.
        orphans, _, was_full = _unnamed_by_documents(wh, connection, work.namespace_id, orphans, after)
        if was_full:
            return "writes to this namespace"
        for key in sorted(orphans):
            # An upload that no object was made of by itself keeps nothing: it is the very content.
            if objects.is_named(connection, key, but_for=[uploads]):
                continue
            path = wh.blobs.path(key)
            size = path.stat().st_size if path.exists() else None
            if not wh.blobs.remove(key):
                return "a backup"
            connection.execute(sa.delete(uploads).where(uploads.c.blob_key == key))
            if size is not None:
                work.count(files_removed=1, bytes_removed=size)
        work.save(connection)
    return None


def _remove_staged(folder: Path, keys: Sequence[str]) -> None:
    """Remove what a put that was killed left beside these files (obstore writes ``<name>#<n>`` first)."""
    names = {key.rpartition("/")[2] for key in keys}
    if folder.exists():
        for path in folder.iterdir():
            if re.sub(r"#\d+$", "", path.name) in names and "#" in path.name:
                path.unlink(missing_ok=True)


def _unnamed_by_documents(
    wh: Warehouse, connection: Connection, namespace_id: str, keys: dict[str, bytes], after: int
) -> tuple[dict[str, bytes], int, bool]:
    """Look for `keys` in the payloads of a page of the log's entries behind `after`.

    Return those that are not there, the last entry looked at, and whether there may be more.
    """
    rows = connection.execute(
        sa.select(log_entries)
        .where(log_entries.c.namespace_id == namespace_id, log_entries.c.seq > after)
        .order_by(log_entries.c.seq)
        .limit(_PAGE)
    ).all()
    left = keys
    for row in rows:
        texts = (
            artifact.payloads(wh.blobs.path(row.artifact_key))
            if row.kind == "artifact"
            else [bytes(row.body)]
        )
        for text in texts:
            if SCHEME.encode() in text:
                left = {key: needle for key, needle in left.items() if needle not in text}
    return left, rows[-1].seq if rows else after, len(rows) == _PAGE


def _busy_batches(wh: Warehouse, namespace_id: str) -> bool:
    with wh.db.read() as connection:
        return _any_at_work(connection, namespace_id)


def _any_at_work(connection: Connection, namespace_id: str) -> bool:
    return (
        connection.execute(
            sa.select(sa.literal(1))
            .select_from(batches)
            .where(batches.c.namespace_id == namespace_id, batches.c.status == "IN_PROGRESS")
            .limit(1)
        ).scalar()
        is not None
    )


# --- the database --------------------------------------------------------------------------------------


def _clean_database(work: _Work) -> str | None:
    """Remove copies of the database from before an upgrade and empty the write-ahead log."""
    removed = remove_copies(work.wh.db)
    with work.wh.db.write() as connection:
        work.count(database_copies_removed=removed)
        work.save(connection)
    return None if forget(work.wh) else "readers of the database"


def forget(wh: Warehouse) -> bool:
    """Empty the write-ahead log, waiting for readers for a few seconds; say whether that was done."""
    deadline = time.monotonic() + _WAL_PATIENCE_S
    while not wh.db.forget_deleted():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _task(connection: Connection, task_id: str) -> Mapping[Any, Any]:
    return connection.execute(sa.select(task_rows).where(task_rows.c.task_id == task_id)).mappings().one()


def _slices(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _IDS] for start in range(0, len(ids), _IDS))
