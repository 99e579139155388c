"""Collections with taxonomies: their documents carry what those say of them, and are compared anew when it changes.

A document is compared with every taxonomy of its collection at once: first what was written into it before is taken
back, then everything is written anew. So it may be done again at any time, and a kill in the middle leaves nothing
to repair. Its payload remembers by what it was compared; whoever writes a document, or changes a taxonomy or the
collection's list of them, leaves a request in `enrichments` for those that do not have that yet. A batch compares what
it made before it ends.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import document_edits, failpoints, log, namespaces
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import collections, enrichments, tasks
from tessera.enrichment import KEPT, Verdict, enriched, nodes_of, undone
from tessera.errors import BadRequestError, NotFoundError, TesseraError
from tessera.filters import And, Condition, Filter, matches, parse
from tessera.models.tasks import TaskStatus
from tessera.models.taxonomies import EnrichmentStyle
from tessera.ports import Document, Hit, Page, Payload
from tessera.taxonomy_definition import find
from tessera.taxonomy_matching import BATCH, Taxonomy, compare, ready

logger = logging.getLogger("tessera.materialising")

#: One request is worked on for so long before others have their turn; what it has done is not done again.
_TURN_S = 5.0
#: A batch is compared anew so often when others write the same documents in between.
_TRIES = 10


@dataclass(frozen=True, slots=True)
class _Application:
    """A taxonomy at work on a collection, and which documents it looks at."""

    taxonomy: Taxonomy
    within: Filter | None
    top_k: int
    min_confidence: float
    style: EnrichmentStyle


@dataclass(frozen=True, slots=True)
class _Applied:
    """What a collection's documents are compared with; `signature` tells it from what came before and comes later."""

    collection_id: str
    signature: str
    applications: tuple[_Application, ...]

    @property
    def needs_vectors(self) -> bool:
        return any(each.taxonomy.needs_vectors for each in self.applications)


@dataclass(slots=True)
class Counts:
    """How many documents were compared, got a node, and could not be compared; `message` is the first reason."""

    done: int = 0
    assigned: int = 0
    failed: int = 0
    message: str | None = None


@dataclass(slots=True)
class _Progress:
    """Where the walk over a collection is, by the last point that was passed; `ended` when there are no more."""

    after: Any = None
    ended: bool = False
    counts: Counts = field(default_factory=Counts)


# --- what others call ----------------------------------------------------------------------------------


def after_tier(
    wh: Warehouse, namespace_id: str, collection_ids: Sequence[str], is_stopped: Callable[[], bool]
) -> dict[str, Counts]:
    """Compare what a batch has just made, before anything reads it; return the counts of each collection compared.

    What is up to date already is passed over, so that it can be repeated. Raises what may pass by itself; what does
    not (a retriever that was deleted) is told in the counts.
    """
    found: dict[str, Counts] = {}
    for collection_id in collection_ids:
        with wh.db.read() as connection:
            row = _collection(connection, collection_id)
        if row is None or not row["taxonomy_applications"] or is_stopped():
            continue
        progress = _Progress()
        try:
            with wh.db.read() as connection:
                applied = _applied(connection, namespace_id, row)
            while not progress.ended and not is_stopped():
                _next_batch(wh, namespace_id, applied, progress, is_full=False, filters=None)
        except TesseraError as error:
            if error.retryable:
                raise
            progress.counts.message = error.message
        found[collection_id] = progress.counts
    return found


def run(wh: Warehouse, enrichment_id: str, stop: threading.Event | None = None) -> None:
    """Go on with a request for some seconds, or to its end. Can be repeated and resumed.

    COMPLETED means that every document has what the taxonomies say of it, durable and findable.
    """
    this = enrichments.c.enrichment_id == enrichment_id
    with wh.db.read() as connection:
        request = connection.execute(sa.select(enrichments).where(this)).mappings().one_or_none()
        row = _collection(connection, request["collection_id"]) if request is not None else None
    if request is None or row is None:
        return
    namespace_id, targets = request["namespace_id"], dict(request["targets"])
    until = time.monotonic() + _TURN_S
    try:
        with wh.db.read() as connection:
            applied = _applied(connection, namespace_id, row)
        progress = _resumed(targets, applied.signature)
        if targets.get("total") is None:
            within = _wanted(applied, bool(targets["is_full"]), targets["filters"])
            targets["total"] = wh.views.count(namespace_id, within)
        targets["signature"] = applied.signature
        # Begun, before anything is read: what is written from here on asks for itself.
        _save(wh, request, targets, progress)
        while not progress.ended:
            if (stop is not None and stop.is_set()) or time.monotonic() > until:
                return
            _next_batch(
                wh,
                namespace_id,
                applied,
                progress,
                is_full=bool(targets["is_full"]),
                filters=targets["filters"],
            )
            _save(wh, request, targets, progress)
            failpoints.reach("enrichment.saved")
    except NotFoundError:
        return  # the namespace or the collection was deleted: its requests went with it
    except TesseraError as error:
        if error.retryable:
            raise
        # What was counted before stays: how far a task is never goes back.
        before = Counts(targets.get("done", 0), targets.get("assigned", 0), targets.get("failed", 0))
        _end(wh, request, TaskStatus.FAILED, targets, before, error.message)
        logger.warning("collection %s is not enriched: %s", request["collection_id"], error.message)
        return
    counts = progress.counts
    status = TaskStatus.COMPLETED_WITH_ERRORS if counts.failed else TaskStatus.COMPLETED
    _end(wh, request, status, targets, counts, counts.message)


# --- the walk ------------------------------------------------------------------------------------------


def _collection(connection: Connection, collection_id: str) -> RowMapping | None:
    return (
        connection.execute(sa.select(collections).where(collections.c.collection_id == collection_id))
        .mappings()
        .one_or_none()
    )


def _applied(connection: Connection, namespace_id: str, row: Mapping[Any, Any]) -> _Applied:
    """Return what the documents of a collection are to be compared with now, in order of priority."""
    place = namespaces.row_of(connection, namespace_id)
    asked = [
        application
        for application in row["taxonomy_applications"] or ()
        if application["execution_mode"] != "on_demand"
    ]
    asked.sort(key=lambda application: (application["execution_phase"], -application["priority"]))
    found: list[_Application] = []
    told: list[Any] = []
    for application in asked:
        try:
            known = find(connection, namespace_id, application["taxonomy_id"])
        except NotFoundError as error:
            raise BadRequestError(f"{error.message} PATCH the collection's taxonomy_applications.") from None
        taxonomy = ready(connection, place, known)
        style = EnrichmentStyle(application["hierarchical_enrichment_style"])
        filters = application["scroll_filters"]
        top_k, least = application["top_k"], application["min_confidence"]
        found.append(_Application(taxonomy, parse(filters) if filters else None, top_k, least, style))
        told.append([taxonomy.taxonomy_id, taxonomy.version, top_k, least, style.value, filters])
    signature = hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    return _Applied(row["collection_id"], signature, tuple(found))


def _wanted(applied: _Applied, is_full: bool, filters: Mapping[str, Any] | None) -> Filter:
    """Return which documents are looked at: all that are asked for, or those that are not up to date."""
    mine: list[Filter] = [Condition("collection_id", "eq", applied.collection_id, True)]
    asked = parse(filters) if filters else None
    if asked is not None:
        mine.append(asked)
    if not applied.applications:
        mine.append(Condition(f"{KEPT}.fields", "exists", True))
    elif not is_full:
        mine.append(Condition(f"{KEPT}.signature", "ne", applied.signature, True))
    return And(tuple(mine))


def _resumed(targets: Mapping[str, Any], signature: str) -> _Progress:
    """Return where a request stands; at the beginning when what is compared with has changed since."""
    if targets.get("signature") != signature or "done" not in targets:
        return _Progress()
    counts = Counts(targets["done"], targets["assigned"], targets["failed"], targets.get("message"))
    return _Progress(targets["after"], bool(targets["ended"]), counts)


def _next_batch(
    wh: Warehouse,
    namespace_id: str,
    applied: _Applied,
    progress: _Progress,
    *,
    is_full: bool,
    filters: Mapping[str, Any] | None,
) -> None:
    """Compare the next documents, and log those that change by it.

    Documents that somebody else writes meanwhile are left to the request that this leaves, or to that batch. When a
    node that was assigned is changed or erased meanwhile, all are compared anew.
    """
    within = _wanted(applied, is_full, filters)
    for _ in range(_TRIES):
        begun = wh.views.apply(namespace_id).seq
        page = wh.views.page(
            namespace_id,
            Page(limit=BATCH, filter=within, after=progress.after, with_vectors=applied.needs_vectors),
        )
        counts = Counts(message=progress.counts.message)
        try:
            _store(wh, namespace_id, applied, page.hits, _payloads(wh, applied, page.hits, counts), begun)
        except (document_edits.Overtaken, log.Folded):
            continue
        progress.counts.done += len(page.hits)
        progress.counts.assigned += counts.assigned
        progress.counts.failed += counts.failed
        progress.counts.message = counts.message
        break
    else:
        logger.info("documents of %s change faster than they can be enriched", applied.collection_id)
    progress.after, progress.ended = page.next_after, page.next_after is None


def _payloads(wh: Warehouse, applied: _Applied, hits: Sequence[Hit], counts: Counts) -> dict[str, Payload]:
    """Return what each document becomes."""
    plain = {hit.document_id: undone(hit.payload) for hit in hits}
    if not applied.applications:
        return plain
    with wh.db.read() as connection:
        by_hand = document_edits.of_documents(connection, applied.collection_id, plain)
    verdicts = _compared(wh, applied, hits, counts)
    return {
        document_id: enriched(base, said, applied.signature, by_hand.get(document_id, ()))
        for (document_id, base), said in zip(plain.items(), verdicts, strict=True)
    }


def _compared(wh: Warehouse, applied: _Applied, hits: Sequence[Hit], counts: Counts) -> list[list[Verdict]]:
    """Return what all taxonomies say of each document, in their order."""
    plain = [Hit(hit.document_id, undone(hit.payload), None, hit.vectors) for hit in hits]
    said: list[list[Verdict]] = [[] for _ in hits]
    failed: set[int] = set()
    for application in applied.applications:
        within = application.within
        numbers = [n for n, hit in enumerate(plain) if within is None or matches(within, hit.payload)]
        verdicts = compare(
            wh,
            application.taxonomy,
            [plain[number] for number in numbers],
            top_k=application.top_k,
            min_confidence=application.min_confidence,
            style=application.style,
        )
        for number, verdict in zip(numbers, verdicts, strict=True):
            if isinstance(verdict, TesseraError):
                failed.add(number)
                counts.message = counts.message or verdict.message
            else:
                said[number].append(verdict)
    counts.failed += len(failed)
    counts.assigned += sum(any(verdict.assignments for verdict in each) for each in said)
    return said


def _store(
    wh: Warehouse,
    namespace_id: str,
    applied: _Applied,
    hits: Sequence[Hit],
    payloads: Mapping[str, Payload],
    begun: int,
) -> None:
    """Log the payloads that changed. Raises `Overtaken` when a document or its node was written since entry `begun`."""
    read = {hit.document_id: hit.payload for hit in hits}
    changed = [
        Document(document_id, payload)
        for document_id, payload in payloads.items()
        if payload != read[document_id]
    ]
    if not changed:
        return

    def also(connection: Connection) -> None:
        if _collection(connection, applied.collection_id) is None:
            raise NotFoundError("collection", applied.collection_id)

    decided = {document.document_id for document in changed}
    decided.update(*(nodes_of(document.payload) for document in changed))
    with wh.views.editing(namespace_id):
        seq = document_edits.log_payloads(
            wh, namespace_id, applied.collection_id, changed, decided, begun, also
        )
    failpoints.reach("enrichment.logged")
    wh.views.apply(namespace_id, seq)


# --- requests ------------------------------------------------------------------------------------------


def _save(wh: Warehouse, request: Mapping[Any, Any], targets: dict[str, Any], progress: _Progress) -> None:
    """Write how far a request is, behind the last one in the queue, and into its task."""
    counts = progress.counts
    targets |= {
        "after": progress.after,
        "ended": progress.ended,
        "done": counts.done,
        "assigned": counts.assigned,
        "failed": counts.failed,
        "message": counts.message,
    }
    with wh.db.write() as connection:
        connection.execute(
            sa.update(enrichments)
            .where(enrichments.c.enrichment_id == request["enrichment_id"])
            .values(targets=targets, due_at=now())
        )
        _tell(connection, request, TaskStatus.IN_PROGRESS, targets, "enrich", None)


def _end(
    wh: Warehouse,
    request: Mapping[Any, Any],
    status: TaskStatus,
    targets: dict[str, Any],
    counts: Counts,
    error: str | None,
) -> None:
    targets |= {"done": counts.done, "assigned": counts.assigned, "failed": counts.failed}
    with wh.db.write() as connection:
        connection.execute(
            sa.delete(enrichments).where(enrichments.c.enrichment_id == request["enrichment_id"])
        )
        _tell(connection, request, status, targets, "done", error)


def _tell(
    connection: Connection,
    request: Mapping[Any, Any],
    status: TaskStatus,
    targets: Mapping[str, Any],
    stage: str,
    error: str | None,
) -> None:
    if request["task_id"] is None:
        return
    this = tasks.c.task_id == request["task_id"]
    known = connection.execute(sa.select(tasks.c.additional_data).where(this)).scalar() or {}
    total = max(int(targets.get("total") or 0), int(targets["done"]))
    counted = {"done": targets["done"], "assigned": targets["assigned"], "failed": targets["failed"]}
    told = {**known, **counted, "stage": stage, "total": total}
    ended = {"outputs": [request["collection_id"]]} if status is TaskStatus.COMPLETED else {}
    connection.execute(
        sa.update(tasks)
        .where(this)
        .values(status=status, error=error, additional_data=told, updated_at=now(), **ended)
    )
