"""Ingest: takes a submitted batch through extraction into the log, row by row and restartable anywhere.

Every chunk ends in one transaction that checks that the batch, the attempt, the collection and each
object's version are still the ones planned, appends the artifact, and records what became of its rows.
When a server dies between two chunks, it or another takes the batch up with the next attempt; what an older
attempt still brings is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    artifact,
    batch_logs,
    causes,
    derivation,
    document_edits,
    events,
    failpoints,
    filters,
    links,
    log,
    mirroring,
    row_failures,
    tiers,
)
from tessera.context import Warehouse
from tessera.db.engine import insert_missing, insert_or_replace, now
from tessera.db.tables import (
    batch_rows,
    batches,
    collections,
    log_entries,
    namespaces,
    objects,
    organizations,
    sources,
    tasks,
)
from tessera.errors import storage_error
from tessera.extraction import (
    ChunkJob,
    ChunkResult,
    ChunkRow,
    InputRef,
    RowResult,
    configured,
    run_chunk,
    write_documents,
)
from tessera.filters import values_at
from tessera.models.batches import Tier
from tessera.models.tasks import FINISHED, TaskStatus
from tessera.objects import is_missing, searchable
from tessera.plan import PROTECTED_FIELDS
from tessera.ports import HERE, HIDDEN_FIELDS, Compute, DenseVector, Failed
from tessera.progress import Meter

logger = logging.getLogger("tessera.ingest")

#: A source to process: an object's row, or what `_pending_documents` makes of a document, with what is known of its
#: own documents from before.
Row = Mapping[Any, Any]

#: A chunk closes at either bound, so that a kill costs little and progress is seen.
CHUNK_ROWS = 64
CHUNK_BYTES = 8 * 2**20
#: Rows that are planned and held in memory at once; a batch may be much larger.
WINDOW_ROWS = 1024
#: In one transaction the documents of so many sources at most become rows of the next tier, and about so many rows.
PLAN_SOURCES = 1000
PLAN_ROWS = 10_000
#: A document that changes while it is processed is read again, but not for ever.
MAX_REREADS = 3
#: Progress is counted at most so often, and takes at most a hundredth of the time.
PROGRESS_INTERVAL_S = 0.5
#: A batch under which so many servers ended in a row, without a chunk done in between, is given up.
MAX_CRASHES = 3


class Superseded(Exception):
    """The batch was cancelled, retried or deleted while we worked on it; nothing of ours counts any more."""


class _Outdated(Exception):
    """What users changed by hand of the documents is not what an artifact holds of it."""


class _CollectionGone(Exception):
    """The collection was deleted while we worked for it; the batch goes on with its other collections."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch as a server took it up: under which attempt, and under which token of its slot.

    `is_resumed` tells that it was begun before; `crashes` servers ended under it lately.
    """

    batch_id: str
    attempt: int
    holder: str
    is_resumed: bool = False
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """How a run is told to end: `park` at its next chunk, `drop` at once, with what is under way."""

    park: threading.Event = field(default_factory=threading.Event)
    drop: threading.Event = field(default_factory=threading.Event)

    def is_set(self) -> bool:
        """Whether the run shall end."""
        return self.park.is_set() or self.drop.is_set()


@dataclass(slots=True)
class _Watch:
    """Which documents the log has changed since the rows at hand were read, looked at up to entry `seen`."""

    seen: int
    changed: set[str] = field(default_factory=set)
    #: There is no telling: entries were folded meanwhile.
    is_lost: bool = False


@dataclass(slots=True)
class _Pace:
    """When progress may be counted again: counting reads every row of the batch."""

    due_s: float = 0.0
    meter: Meter = field(default_factory=Meter)
    #: Whether a worker may have left an artifact behind that nothing names.
    litter: bool = False
    #: Servers that ended under the batch and are not forgiven yet: a chunk that is done forgives all.
    crashes: int = 0
    #: So many chunks are still to be done one by one.
    wary_chunks: int = 0
    #: What has changed under the documents that are being processed.
    watch: _Watch = field(default_factory=lambda: _Watch(0))
    #: Of the tier that runs; `meter` is that of the whole batch.
    tier_meter: Meter = field(default_factory=Meter)
    #: How often each source had to be read again.
    rereads: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A batch as this server took it up."""

    batch_id: str
    number: int
    holder: str
    namespace_id: str
    internal_id: str
    bucket_id: str
    task_id: str | None
    #: As the batch's row has them; only the attempt that holds the batch writes them.
    tiers: list[Tier]
    vectors: tuple[DenseVector, ...]
    #: What the namespace fixed when it was made: parameters by extractor name, model id by vector name.
    locked: Mapping[str, Mapping[str, Any]]
    running: Mapping[str, str]
    #: Where its rows are extracted.
    compute: Compute
    pace: _Pace = field(default_factory=_Pace)


def run_batch(wh: Warehouse, claim: Claim, stop: Stop) -> None:
    """Bring a batch to its end, or to where `stop` ends it (it stays IN_PROGRESS then, free to be taken up).

    Can be repeated: rows that are done are not done again. When it returns with the batch COMPLETED,
    its documents are durable and findable. A disk that is full or fails is an error that may pass, wherever it
    was met.
    """
    try:
        _run_batch(wh, claim, stop)
    except OSError as error:
        raise storage_error(error) or error from error


def _run_batch(wh: Warehouse, claim: Claim, stop: Stop) -> None:
    attempt = _take_up(wh, claim)
    if attempt is None:
        return
    try:
        for number in range(len(attempt.tiers)):
            if not stop.is_set():
                _run_tier(wh, attempt, number, stop)
        if stop.is_set():
            if not release(wh, claim):
                raise Superseded
            return
        _tell(wh, attempt.task_id, {"stage": "index"})
        wh.views.apply(attempt.namespace_id)
        _finish(wh, attempt)
        if attempt.compute.cluster is not None:
            _sweep(wh, attempt)
    except Superseded:
        logger.info(
            "batch %s was superseded; what attempt %d still brings is dropped",
            claim.batch_id,
            claim.attempt,
        )
        attempt.pace.litter = True
    if attempt.pace.litter:
        _sweep(wh, attempt)


def release(wh: Warehouse, claim: Claim) -> bool:
    """Let go of a batch that is not done, so that any server may take it up; False when it is not ours any more."""
    with wh.db.write() as connection:
        released = connection.execute(
            sa.update(batches)
            .where(
                batches.c.batch_id == claim.batch_id,
                batches.c.attempt == claim.attempt,
                batches.c.holder == claim.holder,
                batches.c.status == "IN_PROGRESS",
            )
            .values(holder=None)
            .returning(batches.c.namespace_id)
        ).one_or_none()
        if released is not None:
            message = f"Attempt {claim.attempt} was parked: its server ended, or rests after an error."
            batch_logs.write(connection, claim.batch_id, released.namespace_id, message, level="warning")
    return released is not None


def fail_batch(wh: Warehouse, batch_id: str, message: str, *, attempt: int | None = None) -> None:
    """End a batch that cannot go on as FAILED, unless `attempt` is over; rows that are done stay done."""
    mine = sa.true() if attempt is None else batches.c.attempt == attempt
    with wh.db.write() as connection:
        row = (
            connection.execute(
                sa.update(batches)
                .where(batches.c.batch_id == batch_id, batches.c.status.in_(["PENDING", "IN_PROGRESS"]), mine)
                .values(status="FAILED", holder=None, error=message, updated_at=now())
                .returning(*batches.c)
            )
            .mappings()
            .one_or_none()
        )
        if row is None:
            return
        batch_logs.write(connection, batch_id, row["namespace_id"], f"FAILED: {message}", level="error")
        tiers.end_open(connection, row, TaskStatus.FAILED, message)
        if row["task_id"]:
            connection.execute(
                sa.update(tasks)
                .where(tasks.c.task_id == row["task_id"])
                .values(status="FAILED", error=message, updated_at=now())
            )


def _take_up(wh: Warehouse, claim: Claim) -> _Attempt | None:
    with wh.db.read() as connection:
        row = (
            connection.execute(
                sa.select(batches).where(
                    batches.c.batch_id == claim.batch_id,
                    batches.c.attempt == claim.attempt,
                    batches.c.holder == claim.holder,
                    batches.c.status == "IN_PROGRESS",
                )
            )
            .mappings()
            .one_or_none()
        )
        if row is None:
            return None
        place = connection.execute(
            sa.select(
                namespaces.c.vectors,
                namespaces.c.feature_extractors,
                namespaces.c.vector_inference_map,
                namespaces.c.infrastructure,
                namespaces.c.place,
                organizations.c.internal_id,
            )
            .join(organizations, organizations.c.organization_id == namespaces.c.organization_id)
            .where(namespaces.c.namespace_id == row["namespace_id"])
        ).one()
    compute = _compute(wh, row["namespace_id"], place.infrastructure, place.place)
    told = _tell(wh, row["task_id"], _links(compute))
    attempt = _Attempt(
        claim.batch_id,
        claim.attempt,
        claim.holder,
        row["namespace_id"],
        place.internal_id,
        row["bucket_id"],
        row["task_id"],
        tiers.of(row),
        tuple(DenseVector(**vector) for vector in place.vectors),
        {entry["feature_extractor_name"]: entry.get("params") or {} for entry in place.feature_extractors},
        place.vector_inference_map,
        # Work that was under way when the server ended waits for a cluster that may come back with it.
        replace(compute, is_patient=claim.is_resumed),
    )
    attempt.pace.meter.percent = float(told.get("percent") or 0.0)
    if claim.crashes:
        # What was under way when the servers ended is done one by one: only the culprit is met again and again.
        attempt.pace.crashes = claim.crashes
        attempt.pace.wary_chunks = 2 * (wh.settings.workers if compute is HERE else compute.max_workers)
    if attempt.number > 1:
        _sweep(wh, attempt)
    return attempt if _log_begin(wh, attempt) else None


def _log_begin(wh: Warehouse, attempt: _Attempt) -> bool:
    """Write into the batch's log that an attempt begins; False when the batch was cancelled or deleted by now."""
    where = "on a Ray cluster" if attempt.compute.cluster else f"in {wh.settings.workers} worker process(es)"
    count = sum(len(tier.collection_ids) for tier in attempt.tiers)
    message = f"Attempt {attempt.number} begins: {count} collection(s), extracted {where}."
    with wh.db.write() as connection:
        try:
            _check_attempt(connection, attempt)
        except Superseded:
            return False
        batch_logs.write(connection, attempt.batch_id, attempt.namespace_id, message)
    return True


def _compute(
    wh: Warehouse, namespace_id: str, asked: Mapping[str, Any], place: Mapping[str, Any] | None
) -> Compute:
    """Return where a namespace's rows are extracted: on the cluster that it was placed on, else on the server's.

    The bounds are the namespace's own. Only on its own cluster are workers kept for it while it has no work.
    """
    settings = wh.settings
    if place is not None:
        sealed = place.get("ray_auth_token")
        compute = Compute(
            place["ray_head_node_url"],
            wh.vault.unseal(sealed) if sealed else None,
            dashboard_url=place["ray_dashboard_url"],
            gpu_type=asked["gpu_type"],
            gpus_per_worker=asked["gpus_per_worker"] if place["compute_tier"] == "dedicated_gpu" else 0,
        )
    elif settings.ray_head_node_url is not None:
        token = settings.ray_auth_token
        compute = Compute(
            settings.ray_head_node_url,
            token.get_secret_value() if token is not None else None,
            dashboard_url=settings.ray_dashboard_url,
        )
    else:
        return HERE
    return replace(
        compute,
        pool=namespace_id,
        min_workers=asked["min_workers"] if place is not None and place["source"] == "namespace" else 0,
        max_workers=asked["max_workers"],
        autoscaling=asked["autoscaling_enabled"],
    )


def _links(compute: Compute) -> dict[str, str]:
    """Return where a batch that is extracted there can be watched, as its task tells it."""
    return {"ray_dashboard_url": compute.dashboard_url} if compute.dashboard_url else {}


def _tell(wh: Warehouse, task_id: str | None, values: Mapping[str, str]) -> dict[str, Any]:
    """Add `values` to what a task says about itself, and return what that is."""
    this = tasks.c.task_id == task_id
    with wh.db.write() as connection:
        told = {
            **(connection.execute(sa.select(tasks.c.additional_data).where(this)).scalar() or {}),
            **values,
        }
        if values:
            connection.execute(sa.update(tasks).where(this).values(additional_data=told, updated_at=now()))
    return told


def _sweep(wh: Warehouse, attempt: _Attempt) -> None:
    """Remove artifacts that were written but never logged: by earlier attempts, by workers that were lost."""
    prefix = f"{attempt.namespace_id}/artifacts"
    with wh.db.read() as connection:
        logged = set(
            connection.execute(
                sa.select(log_entries.c.artifact_key).where(
                    log_entries.c.namespace_id == attempt.namespace_id,
                    log_entries.c.artifact_key.like(f"{prefix}/{attempt.batch_id}-%"),
                )
            ).scalars()
        )
    mine = f"{prefix}/{attempt.batch_id}-"
    for key in wh.blobs.keys(prefix):
        if key.startswith(mine) and key not in logged and _attempt_of(key, mine) <= attempt.number:
            wh.blobs.remove(key)


def _attempt_of(key: str, prefix: str) -> int:
    return int(key[len(prefix) :].partition("-")[0])


def _fetch(wh: Warehouse, attempt: _Attempt, stop: Stop) -> None:
    """Make what the batch's objects have by URL our own; the rows of an object where that fails end with it."""
    with contextlib.closing(mirroring.fetch_sources(wh, attempt.batch_id, stop.is_set)) as failures:
        for failure in failures:
            if failure is None:
                with wh.db.read() as connection:
                    _check_attempt(connection, attempt)
                continue
            if stop.is_set():
                return
            _fail_object(wh, attempt, failure)


def _with_content(
    wh: Warehouse,
    attempt: _Attempt,
    collection_id: str,
    rows: Sequence[Row],
    stop: Stop,
) -> Sequence[Row]:
    """Return those of `rows` whose content is ours: all, unless objects got a new URL since it was fetched.

    Those are fetched now; what a user changes faster than that ends as failed, for a retry when it is over.
    """
    if not any(map(_lacks_content, rows)):
        return rows
    _fetch(wh, attempt, stop)
    if stop.is_set():
        return ()
    fresh = _pending(wh, attempt, collection_id)
    for row in filter(_lacks_content, fresh):
        message = "The object got another URL while it was fetched. Retry the batch."
        _fail_object(wh, attempt, mirroring.Failure(row["object_id"], "fetch_superseded", message))
    return [row for row in fresh if not _lacks_content(row)]


def _lacks_content(row: Row) -> bool:
    return any(is_missing(blob) for blob in row["blobs"])


def _fail_object(wh: Warehouse, attempt: _Attempt, failure: mirroring.Failure) -> None:
    failed = RowResult(
        failure.object_id, error_kind=failure.kind, error_message=failure.message, stage="fetch"
    )
    with wh.db.write() as connection:
        _check_attempt(connection, attempt)
        _fail_rows(connection, wh, attempt, [failed])
        _record_progress(connection, attempt, "fetch")


def _await_due(wh: Warehouse, attempt: _Attempt, stop: Stop) -> bool:
    """Wait until rows that failed are due to be tried again, and free them; False when there are none."""
    while not stop.is_set():
        with wh.db.write() as connection:
            _check_attempt(connection, attempt)
            wait_s = row_failures.free_due(connection, attempt.batch_id)
        if wait_s is None or wait_s <= 0:
            return wait_s is not None
        stop.park.wait(min(wait_s, 1.0))
    return False


# --- tiers -------------------------------------------------------------------------------------------


def _run_tier(wh: Warehouse, attempt: _Attempt, number: int, stop: Stop) -> None:
    """Bring one tier to its end, or to where `stop` ends it; one that has ended is passed over.

    What it made is findable when it has ended: the next tier reads it.
    """
    tier = attempt.tiers[number]
    if tier.status in FINISHED:
        return
    if tier.status != TaskStatus.IN_PROGRESS:
        begun = {
            "status": TaskStatus.IN_PROGRESS,
            "started_at": tier.started_at or now(),
            "completed_at": None,
        }
        tier = _write_tier(wh, attempt, tier.model_copy(update=begun))
    attempt.pace.tier_meter = Meter()
    if not tier.is_planned:
        _plan_tier(wh, attempt, tier, stop)
        if stop.is_set():
            return
        tier = _write_tier(wh, attempt, tier.model_copy(update={"is_planned": True}))
        failpoints.reach("tier.planned")
    is_due = True
    while is_due and not stop.is_set():
        _fetch(wh, attempt, stop)
        for collection_id in tier.collection_ids:
            if not stop.is_set():
                _run_collection(wh, attempt, collection_id, stop)
        is_due = _await_due(wh, attempt, stop)
    if stop.is_set():
        return
    wh.views.apply(attempt.namespace_id)
    _end_tier(wh, attempt, tier)
    failpoints.reach("tier.ended")


def _plan_tier(wh: Warehouse, attempt: _Attempt, tier: Tier, stop: Stop) -> None:
    """Make a row for each document that the batch has in the collections that feed the tier.

    Can be repeated: rows that exist stay as they are.
    """
    with wh.db.read() as connection:
        reads = tiers.fed_by_collections(connection, attempt.namespace_id, disabled_too=True)
    before = {c for earlier in attempt.tiers[: tier.tier_num] for c in earlier.collection_ids}
    for collection_id in tier.collection_ids:
        for feeding in reads.get(collection_id, ()):
            after = "" if feeding in before else None
            while after is not None and not stop.is_set():
                after = _plan_sources(wh, attempt, collection_id, feeding, after)


def _plan_sources(
    wh: Warehouse, attempt: _Attempt, collection_id: str, feeding: str, after: str
) -> str | None:
    """Make rows of `collection_id` for the documents of some sources of `feeding`; return where to go on."""
    row_of_source = sa.and_(
        sources.c.collection_id == batch_rows.c.collection_id, sources.c.source_id == batch_rows.c.object_id
    )
    with wh.db.write() as connection:
        _check_attempt(connection, attempt)
        page = connection.execute(
            sa.select(sources.c.source_id, sources.c.document_ids)
            .select_from(batch_rows.join(sources, row_of_source))
            .where(
                batch_rows.c.batch_id == attempt.batch_id,
                batch_rows.c.collection_id == feeding,
                batch_rows.c.status == "COMPLETED",
                batch_rows.c.object_id > after,
            )
            .order_by(batch_rows.c.object_id)
            .limit(PLAN_SOURCES)
        ).all()
        made: list[dict[str, Any]] = []
        last = None
        for source in page:
            ids = map(derivation.document_source, source.document_ids)
            made += [row_of(attempt.batch_id, attempt.namespace_id, collection_id, item) for item in ids]
            last = source.source_id
            if len(made) >= PLAN_ROWS:
                break
        insert_missing(connection, batch_rows, made)
    return last if len(made) >= PLAN_ROWS or len(page) == PLAN_SOURCES else None


def row_of(
    batch_id: str, namespace_id: str, collection_id: str, source_id: str, *, is_there: bool = True
) -> dict[str, Any]:
    """Return a row of a batch that is still to be done; one whose object is not there is not done at all."""
    return {
        "batch_id": batch_id,
        "collection_id": collection_id,
        "object_id": source_id,
        "namespace_id": namespace_id,
        "status": "PENDING" if is_there else "SKIPPED",
        "error_kind": None if is_there else "superseded",
        "error_message": None if is_there else "The object was deleted.",
        "attempts": 0,
        "documents": 0,
        "updated_at": now(),
    }


def _end_tier(wh: Warehouse, attempt: _Attempt, tier: Tier) -> None:
    """Write how a tier ended, and with its own task what became of its rows."""
    mine = sa.and_(
        batch_rows.c.batch_id == attempt.batch_id, batch_rows.c.collection_id.in_(tier.collection_ids)
    )
    with wh.db.read() as connection:
        counts = _counts(connection, mine)
        status, error = _outcome(connection, mine, counts)
    ended = tier.model_copy(update={"status": status, "completed_at": now()})
    _write_tier(wh, attempt, ended, error=error, counts=counts)


def _write_tier(
    wh: Warehouse,
    attempt: _Attempt,
    tier: Tier,
    *,
    error: str | None = None,
    counts: Mapping[str, int] | None = None,
) -> Tier:
    """Write a tier into its batch, and its status into its task and the log unless it is the only one; return it.

    `counts` are those of its rows, when it has ended.
    """
    with wh.db.write() as connection:
        _check_attempt(connection, attempt)
        written = [tier if known.tier_num == tier.tier_num else known for known in attempt.tiers]
        connection.execute(
            sa.update(batches)
            .where(batches.c.batch_id == attempt.batch_id)
            .values(tiers=tiers.stored(written)["tiers"], updated_at=now())
        )
        if tier.task_id is not None and tier.task_id != attempt.task_id:
            this = tasks.c.task_id == tier.task_id
            known = connection.execute(sa.select(tasks.c.additional_data).where(this)).scalar() or {}
            told = {"stage": "extract"} if counts is None else {"stage": "done", **_told(counts)}
            extra = {**known, **told, **_links(attempt.compute)}
            connection.execute(
                sa.update(tasks)
                .where(this)
                .values(status=tier.status, error=error, additional_data=extra, updated_at=now())
            )
            _log_tier(connection, attempt, tier, counts)
    attempt.tiers[tier.tier_num] = tier
    return tier


def _log_tier(
    connection: Connection, attempt: _Attempt, tier: Tier, counts: Mapping[str, int] | None
) -> None:
    """Add to the batch's log that a tier begins, has its rows, or has ended with so many of each status."""
    if counts is not None:
        done, failed = counts.get("COMPLETED", 0), counts.get("FAILED", 0)
        message = (
            f"Tier {tier.tier_num} {tier.status}: {done} row(s) done, {failed} failed, "
            f"{counts.get('SKIPPED', 0)} skipped."
        )
    else:
        what = "has its rows" if tier.is_planned else f"begins: {len(tier.collection_ids)} collection(s)"
        message, failed = f"Tier {tier.tier_num} {what}.", 0
    level: batch_logs.Level = "warning" if failed else "info"
    batch_logs.write(
        connection,
        attempt.batch_id,
        attempt.namespace_id,
        message,
        level=level,
        tier_num=tier.tier_num,
    )


# --- rows --------------------------------------------------------------------------------------------


def _run_collection(wh: Warehouse, attempt: _Attempt, collection_id: str, stop: Stop) -> None:
    with wh.db.read() as connection:
        collection = (
            connection.execute(sa.select(collections).where(collections.c.collection_id == collection_id))
            .mappings()
            .one_or_none()
        )
    if collection is None:
        _close_rows(wh, attempt, collection_id, "SKIPPED", "superseded", "The collection was deleted.")
        return
    plan_hash = _plan_hash(wh, attempt, collection)
    is_fed = collection["source"]["type"] == "collection"
    try:
        while not stop.is_set():
            rows = (
                _pending_documents(wh, attempt, collection_id)
                if is_fed
                else _pending(wh, attempt, collection_id)
            )
            if not rows:
                break
            if not is_fed:
                rows = _with_content(wh, attempt, collection_id, rows, stop)
            rows = _let_through(wh, attempt, collection, rows)
            _run_chunks(wh, attempt, plan_hash, _jobs(wh, attempt, collection, rows, plan_hash), stop)
    except _CollectionGone:
        attempt.pace.litter = True
        _close_rows(wh, attempt, collection_id, "SKIPPED", "superseded", "The collection was deleted.")
        return
    if not stop.is_set():
        # Rows that a retry took up again although their object is gone.
        _close_rows(wh, attempt, collection_id, "SKIPPED", "superseded", "The object was deleted.")


def _run_chunks(
    wh: Warehouse, attempt: _Attempt, plan_hash: str, jobs: Sequence[ChunkJob], stop: Stop
) -> None:
    """Extract and commit `jobs`; every row of them has ended or is due later when it returns, unless `stop` is set."""
    deaths: Counter[str] = Counter()
    while jobs:
        again: list[ChunkJob] = []
        for chunk, outcome in _map(wh, attempt, jobs, stop):
            if stop.is_set() and isinstance(outcome, Failed):
                return  # our workers were stopped under it: its rows are for the next server
            if isinstance(outcome, Failed) and len(chunk.rows) > 1:
                # One row took its neighbours down: each goes again alone, so that only the culprit fails.
                attempt.pace.litter = True
                again.extend(_alone(chunk))
            elif isinstance(outcome, Failed) and outcome.retryable and _may_go_again(wh, chunk, deaths):
                attempt.pace.litter = True
                _note_death(wh, attempt, chunk, outcome)
                again.append(chunk)
            else:
                _commit(wh, attempt, plan_hash, chunk, _settled(chunk, outcome))
            if stop.is_set():
                return
        jobs = again


def _may_go_again(wh: Warehouse, chunk: ChunkJob, deaths: Counter[str]) -> bool:
    """Count one more worker that died under the only row of `chunk`; say whether the row is tried once more."""
    deaths[chunk.rows[0].object_id] += 1
    return deaths[chunk.rows[0].object_id] < wh.settings.row_attempts


def _map(
    wh: Warehouse, attempt: _Attempt, jobs: Sequence[ChunkJob], stop: Stop
) -> Iterator[tuple[ChunkJob, ChunkResult | Failed]]:
    first, rest = jobs[: attempt.pace.wary_chunks], jobs[attempt.pace.wary_chunks :]
    for part in (*([job] for job in first), rest):
        if stop.is_set():
            return
        for index, outcome in wh.runner.map(
            run_chunk,
            part,
            timeout_s=wh.settings.extract_timeout_s,
            compute=attempt.compute,
            again=_apart,
            stop=stop.drop,
        ):
            if isinstance(outcome, ChunkResult) and outcome.storage_errno is not None:
                raise OSError(outcome.storage_errno, os.strerror(outcome.storage_errno))
            yield part[index], outcome
        attempt.pace.wary_chunks = max(0, attempt.pace.wary_chunks - len(part))


def _apart(chunk: ChunkJob, run: int) -> ChunkJob:
    """Return `chunk` with an artifact of its own: an earlier run of it may still be writing."""
    return replace(chunk, artifact_key=f"{chunk.artifact_key.partition('~')[0]}~{run}")


def _alone(chunk: ChunkJob) -> Iterator[ChunkJob]:
    for number, row in enumerate(chunk.rows):
        yield replace(chunk, rows=(row,), artifact_key=f"{chunk.artifact_key}-{number}")


def _settled(chunk: ChunkJob, outcome: ChunkResult | Failed) -> ChunkResult:
    if isinstance(outcome, ChunkResult):
        return outcome
    return ChunkResult(
        tuple(
            RowResult(row.object_id, error_kind=outcome.kind, error_message=outcome.message)
            for row in chunk.rows
        )
    )


def _note_death(wh: Warehouse, attempt: _Attempt, chunk: ChunkJob, outcome: Failed) -> None:
    """Write down that a worker died under the only row of `chunk`; the row is tried once more."""
    with wh.db.write() as connection:
        _check_attempt(connection, attempt)
        _fail_rows(connection, wh, attempt, _settled(chunk, outcome).rows, chunk.collection_id, is_last=False)


# --- planning ----------------------------------------------------------------------------------------


def _jobs(
    wh: Warehouse,
    attempt: _Attempt,
    collection: RowMapping,
    pending: Sequence[Row],
    plan_hash: str,
) -> list[ChunkJob]:
    """Cut pending rows into chunks; rows whose source did not change are closed at once."""
    extractor = collection["feature_extractor"]
    chunks: list[ChunkJob] = []
    rows: list[ChunkRow] = []
    size = 0
    unchanged: dict[str, int] = {}

    def close() -> None:
        nonlocal rows, size
        if rows:
            # The first row names the chunk: it is in no other one of this attempt.
            name = f"{attempt.batch_id}-{attempt.number}-{collection['collection_id']}-{rows[0].object_id}"
            chunks.append(
                ChunkJob(
                    namespace_id=attempt.namespace_id,
                    collection_id=collection["collection_id"],
                    extractor_name=extractor["feature_extractor_name"],
                    extractor_version=extractor["version"],
                    params=_params(attempt, extractor),
                    running=attempt.running,
                    vectors=attempt.vectors,
                    rows=tuple(rows),
                    artifact_key=f"{attempt.namespace_id}/artifacts/{name}",
                    blobs_root=str(wh.settings.blobs_path),
                    models_dir=str(wh.settings.models_path),
                    offline=wh.settings.offline,
                )
            )
        rows, size = [], 0

    for item in pending:
        row = _chunk_row(wh, attempt, collection, item)
        if (item["input_hash"], item["plan_hash"]) == (input_hash(row), plan_hash):
            unchanged[item["object_id"]] = len(item["document_ids"])
            continue
        rows.append(row)
        size += item["size_bytes"]
        if len(rows) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            close()
    close()
    if unchanged:
        _close_unchanged(wh, attempt, collection["collection_id"], unchanged)
    return chunks


def _pending(wh: Warehouse, attempt: _Attempt, collection_id: str) -> Sequence[Row]:
    """Return the next objects to process, each with what is known of its documents from before."""
    with wh.db.read() as connection:
        return (
            connection.execute(
                sa.select(objects, sources.c.input_hash, sources.c.plan_hash, sources.c.document_ids)
                .select_from(
                    batch_rows.join(objects, objects.c.object_id == batch_rows.c.object_id).outerjoin(
                        sources,
                        sa.and_(
                            sources.c.collection_id == batch_rows.c.collection_id,
                            sources.c.source_id == batch_rows.c.object_id,
                        ),
                    )
                )
                .where(
                    batch_rows.c.batch_id == attempt.batch_id,
                    batch_rows.c.collection_id == collection_id,
                    batch_rows.c.status == "PENDING",
                    batch_rows.c.due_at.is_(None),
                )
                .order_by(objects.c.created_at, objects.c.object_id)
                .limit(WINDOW_ROWS)
            )
            .mappings()
            .all()
        )


def _pending_documents(wh: Warehouse, attempt: _Attempt, collection_id: str) -> Sequence[Row]:
    """Return the next documents to process, as they are at a position of the log that is noted in the watch.

    Rows of documents that are gone are closed.
    """
    mine = sa.and_(
        batch_rows.c.batch_id == attempt.batch_id,
        batch_rows.c.collection_id == collection_id,
        batch_rows.c.status == "PENDING",
        batch_rows.c.due_at.is_(None),
    )
    known = sa.and_(
        sources.c.collection_id == batch_rows.c.collection_id, sources.c.source_id == batch_rows.c.object_id
    )
    while True:
        with wh.db.read() as connection:
            this = namespaces.c.namespace_id == attempt.namespace_id
            head = connection.execute(sa.select(namespaces.c.head).where(this)).scalar()
            rows = connection.execute(
                sa.select(
                    batch_rows.c.object_id, sources.c.input_hash, sources.c.plan_hash, sources.c.document_ids
                )
                .select_from(batch_rows.outerjoin(sources, known))
                .where(mine)
                .order_by(batch_rows.c.object_id)
                .limit(WINDOW_ROWS)
            ).all()
        if not rows or head is None:
            return ()
        wh.views.apply(attempt.namespace_id, head)
        attempt.pace.watch = _Watch(head)
        asked = {str(derivation.document_of(row.object_id)): row for row in rows}
        hits = wh.views.get(attempt.namespace_id, list(asked))
        found = {hit.document_id for hit in hits}
        gone = [row.object_id for document_id, row in asked.items() if document_id not in found]
        if gone:
            which = sa.and_(batch_rows.c.collection_id == collection_id, batch_rows.c.object_id.in_(gone))
            why = {"error_kind": "superseded", "error_message": "The document was deleted."}
            _end_rows(wh, attempt, "extract", which, status="SKIPPED", **why)
        if hits:
            return [_document_row(hit.payload, asked[hit.document_id], head) for hit in hits]


def _document_row(payload: Mapping[str, Any], known: Any, position: int) -> Row:
    fields = {
        name: value
        for name, value in payload.items()
        if name not in HIDDEN_FIELDS and name not in PROTECTED_FIELDS
    }
    return {
        "object_id": known.object_id,
        "version": position,
        "fields": fields,
        "blobs": (),
        "bucket_id": payload.get("root_bucket_id"),
        "size_bytes": len(orjson.dumps(fields)),
        "input_hash": known.input_hash,
        "plan_hash": known.plan_hash,
        "document_ids": known.document_ids,
        "payload": payload,
    }


def _let_through(
    wh: Warehouse, attempt: _Attempt, collection: RowMapping, rows: Sequence[Row]
) -> Sequence[Row]:
    """Return the rows that the collection's source filters let through; the others end, and have no documents."""
    wanted = filters.parse((collection["source"].get("source_filters") or {}).get("filters"))
    if wanted is None or not rows:
        return rows
    test = filters.predicate(wanted)
    passed = [row for row in rows if test(as_filtered(row))]
    kept = {row["object_id"] for row in passed}
    refused = {row["object_id"]: row["version"] for row in rows if row["object_id"] not in kept}
    if refused:
        _close_refused(wh, attempt, collection["collection_id"], refused)
    return passed


def as_filtered(row: Row) -> Mapping[str, Any]:
    """Return a source as source filters see it: a document as it is, an object with its blobs."""
    if "payload" in row:
        return {name: value for name, value in row["payload"].items() if name not in filters.SECRET_FIELDS}
    shown = ("blob_id", "property", "type", "details", "metadata")
    return {
        **searchable(row),
        "blobs": [{name: blob.get(name) for name in shown} for blob in row["blobs"]],
    }


def input_hash(row: ChunkRow) -> str:
    """Return the digest of everything of a source that decides what its documents will be."""
    return _digest(
        {
            "inputs": {
                name: [ref.text, ref.blob_key, ref.filename] for name, ref in sorted(row.inputs.items())
            },
            "passthrough": row.passthrough,
        }
    )


def _params(attempt: _Attempt, extractor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collection's parameters; what the namespace locked wins, because it decides the vectors."""
    return {
        **(extractor.get("params") or {}),
        **(extractor.get("parameters") or {}),
        **attempt.locked.get(extractor["feature_extractor_name"], {}),
    }


def _plan_hash(wh: Warehouse, attempt: _Attempt, collection: RowMapping) -> str:
    """Return the digest of everything of a collection that decides what documents it makes of a source."""
    extractor = collection["feature_extractor"]
    implementation, params = configured(
        wh.registry,
        extractor["feature_extractor_name"],
        extractor["version"],
        _params(attempt, extractor),
        attempt.running,
    )
    outputs = implementation.outputs(params)
    return _digest(
        {
            "extractor": implementation.name,
            "params": params.model_dump(mode="json"),
            "models": [[vector.name, vector.model_id, vector.dimensions] for vector in outputs.vectors],
        }
    )


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _chunk_row(wh: Warehouse, attempt: _Attempt, collection: RowMapping, item: Row) -> ChunkRow:
    extractor = collection["feature_extractor"]
    fields: dict[str, Any] = item["fields"]
    implementation = wh.registry.extractor(extractor["feature_extractor_name"], extractor["version"])
    inputs = _inputs(
        attempt.namespace_id, implementation.inputs, extractor.get("input_mappings"), fields, item["blobs"]
    )
    return ChunkRow(
        object_id=item["object_id"],
        object_version=item["version"],
        inputs=inputs,
        passthrough=_passthrough(extractor, fields, item["blobs"]),
        **_origin(attempt, item),
    )


def _origin(attempt: _Attempt, item: Row) -> dict[str, Mapping[str, Any]]:
    """Return the system fields and the lineage of what is made of a source."""
    system: dict[str, Any] = {"namespace_id": attempt.namespace_id, "internal_id": attempt.internal_id}
    parent = item.get("payload")
    if parent is None:
        named = ("object_id", "root_object_id", "source_object_id")
        system |= dict.fromkeys(named, item["object_id"])
        system |= dict.fromkeys(("bucket_id", "root_bucket_id"), item["bucket_id"])
        return {"system": system, "lineage": {"source_type": "bucket", "path": item["bucket_id"]}}
    for name, root in (("object_id", "root_object_id"), ("bucket_id", "root_bucket_id")):
        if parent.get(root) is not None:
            system |= {name: parent[root], root: parent[root]}
    known = derivation.lineage_of(parent)
    # One that was made by an older release, or came ready-made, says nothing of the steps before it.
    step = {
        "collection_id": parent["collection_id"],
        "document_id": parent["document_id"],
        "timestamp": parent.get("created_at"),
    }
    path = [parent.get("root_bucket_id"), parent["collection_id"]]
    return {
        "system": system,
        "lineage": {
            "source_type": "collection",
            "source_document_id": parent["document_id"],
            "source_collection_id": parent["collection_id"],
            "path": known.get("path") or "/".join(part for part in path if part),
            "chain": known.get("chain") or [step],
        },
    }


def plain_path(path: str) -> str:
    """Return a source path without the prefixes that the API allows (``payload.``, ``$.``)."""
    return path.removeprefix("$.").removeprefix("payload.")


def _inputs(
    namespace_id: str,
    accepted: Mapping[str, Sequence[str]],
    mappings: Any,
    fields: Mapping[str, Any],
    blobs: Sequence[Mapping[str, Any]],
) -> dict[str, InputRef]:
    """Find each of the extractor's inputs: mapped by the collection, else the first blob of a type it accepts."""
    found: dict[str, InputRef] = {}
    by_property = {blob["property"]: blob for blob in reversed(blobs)}
    if isinstance(mappings, Mapping):
        mappings = [{"input_key": key, "path": path} for key, path in mappings.items()]
    for mapping in mappings or []:
        if mapping.get("source_type") == "literal":
            found[mapping["input_key"]] = InputRef(text=str(mapping.get("override")))
            continue
        path = plain_path(str(mapping.get("path") or ""))
        blob = by_property.get(path.removeprefix("blobs."))
        if blob is not None:
            found[mapping["input_key"]] = _ref(blob)
        elif values := values_at(fields, path):
            key = links.key_in(namespace_id, values[0]) if len(values) == 1 else None
            found[mapping["input_key"]] = (
                InputRef(text="\n".join(map(str, values))) if key is None else InputRef(blob_key=key)
            )
    if not mappings:
        for name, types in accepted.items():
            blob = next((blob for blob in blobs if not types or blob["type"] in types), None)
            if blob is not None:
                found[name] = _ref(blob)
    return found


def _ref(blob: Mapping[str, Any]) -> InputRef:
    details = blob.get("details") or {}
    return InputRef(
        text=blob.get("text"),
        blob_key=blob.get("blob_key"),
        mime_type=details.get("mime_type"),
        filename=details.get("filename"),
    )


def _passthrough(
    extractor: Mapping[str, Any], fields: Mapping[str, Any], blobs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the object's fields that documents carry: each under its target *and* its own path.

    The API stores ``metadata.category`` as ``category`` by default, and its guides filter on
    ``metadata.category``: both paths work, and an index on either one indexes.
    """
    known = {**{blob["property"]: _content_of(blob) for blob in blobs}, **fields}
    wanted = extractor.get("field_passthrough") or []
    everything = extractor.get("include_all_source_fields")
    if everything is None:
        everything = extractor["feature_extractor_name"] == "passthrough_extractor" and not wanted
    payload: dict[str, Any] = dict(known) if everything else {}
    for item in wanted:
        path = plain_path(item["source_path"])
        values = values_at(known, path)
        if not values:
            if item.get("default") is None:
                continue
            value = item["default"]
        else:
            value = _value_at(known, path, values if len(values) > 1 else values[0])
        _set(payload, path, value)
        _set(payload, item.get("target_path") or path.rsplit(".", 1)[-1], value)
    return payload


def _content_of(blob: Mapping[str, Any]) -> str:
    """Return a blob as a document carries it: a short text as it is, anything else by its link."""
    text = blob.get("text")
    return str(text) if text is not None else f"{links.SCHEME}{blob['blob_key']}"


def _value_at(fields: Mapping[str, Any], path: str, fallback: Any) -> Any:
    """Return the value at `path` as it stands; `fallback` where arrays lie on the way to it."""
    here: Any = fields
    for segment in path.split("."):
        if not isinstance(here, Mapping) or segment not in here:
            return fallback
        here = here[segment]
    return here


def _set(payload: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    here = payload
    for segment in parents:
        below = here.get(segment)
        if not isinstance(below, dict):
            below = {}
        else:
            below = dict(below)  # the source's own dictionary stays as it is
        here[segment] = below
        here = below
    here[last] = value


# --- committing --------------------------------------------------------------------------------------


def _commit(wh: Warehouse, attempt: _Attempt, plan_hash: str, chunk: ChunkJob, result: ChunkResult) -> None:
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
    if seq is not None:
        wh.views.apply(attempt.namespace_id, seq)


def _check(wh: Warehouse, connection: Connection, attempt: _Attempt, chunk: ChunkJob) -> set[str]:
    """Return the chunk's sources that are not as planned any more; raise when the whole chunk is late."""
    _check_attempt(connection, attempt)
    # What others delete from here on, they delete with what was derived of it, and so with what this appends.
    log.hold(connection, attempt.namespace_id)
    exists = connection.execute(
        sa.select(collections.c.collection_id).where(collections.c.collection_id == chunk.collection_id)
    ).scalar()
    if exists is None:
        raise _CollectionGone
    return _late(wh, connection, attempt, {row.object_id: row.object_version for row in chunk.rows})


def _late(wh: Warehouse, connection: Connection, attempt: _Attempt, planned: Mapping[str, int]) -> set[str]:
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


def _looked(wh: Warehouse, connection: Connection, attempt: _Attempt) -> _Watch:
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


def _check_attempt(connection: Connection, attempt: _Attempt) -> None:
    """Raise `Superseded` unless the batch is still ours."""
    # Locked until the transaction ends, so that nobody takes it up or cancels it in between.
    batch = connection.execute(
        sa.select(batches.c.status, batches.c.attempt, batches.c.holder)
        .where(batches.c.batch_id == attempt.batch_id)
        .with_for_update()
    ).one_or_none()
    if batch != ("IN_PROGRESS", attempt.number, attempt.holder):
        raise Superseded


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
    attempt: _Attempt,
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
    attempt: _Attempt,
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
    _fail_rows(connection, wh, attempt, failed, collection_id)
    _record_progress(connection, attempt, "extract")


def _is_read_again(attempt: _Attempt, source_id: str) -> bool:
    """Say whether a source that changed meanwhile stays to be done, as it is now: a document, some times."""
    if derivation.document_of(source_id) is None:
        return False
    attempt.pace.rereads[source_id] += 1
    return attempt.pace.rereads[source_id] <= MAX_REREADS


def _fail_rows(
    connection: Connection,
    wh: Warehouse,
    attempt: _Attempt,
    failed: Sequence[RowResult],
    collection_id: str | None = None,
    *,
    is_last: bool = True,
) -> None:
    row_failures.record(
        connection,
        attempt.batch_id,
        attempt.task_id,
        failed,
        collection_id,
        retries=wh.settings.row_retries,
        is_last=is_last,
    )


def _close_rows(
    wh: Warehouse, attempt: _Attempt, collection_id: str, status: str, kind: str | None, message: str | None
) -> None:
    """Close the rows of a collection that are still to be done."""
    which = batch_rows.c.collection_id == collection_id
    _end_rows(wh, attempt, "extract", which, status=status, error_kind=kind, error_message=message)


def _end_rows(
    wh: Warehouse, attempt: _Attempt, stage: str, which: sa.ColumnElement[bool], **values: Any
) -> None:
    """Give `values` to those of the batch's rows that are still to be done."""
    with wh.db.write() as connection:
        _check_attempt(connection, attempt)
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
        _record_progress(connection, attempt, stage)


def _close_unchanged(
    wh: Warehouse, attempt: _Attempt, collection_id: str, unchanged: Mapping[str, int]
) -> None:
    """Close rows whose input and plan are those of the documents that exist: nothing is written for them.

    `unchanged` tells how many documents each object has.
    """
    with wh.db.write() as connection:
        _check_attempt(connection, attempt)
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
        _record_progress(connection, attempt, "extract")


def _close_refused(wh: Warehouse, attempt: _Attempt, collection_id: str, refused: Mapping[str, int]) -> None:
    """End rows that the source filters refuse, and delete the documents that they have from before.

    `refused` gives the version of each; those that have changed meanwhile stay to be looked at again.
    """
    seq: int | None = None
    with wh.db.write() as connection:
        _check_attempt(connection, attempt)
        log.hold(connection, attempt.namespace_id)
        ids = sorted(refused.keys() - _late(wh, connection, attempt, refused))
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
                error_kind="filtered",
                error_message="The collection's source_filters leave it out.",
                updated_at=now(),
            )
        )
        _record_progress(connection, attempt, "extract")
    if seq is not None:
        wh.views.apply(attempt.namespace_id, seq)


def _counts(connection: Connection, which: sa.ColumnElement[bool]) -> dict[str, int]:
    return {
        status: count
        for status, count in connection.execute(
            sa.select(batch_rows.c.status, sa.func.count()).where(which).group_by(batch_rows.c.status)
        )
    }


def _told(counts: Mapping[str, int]) -> dict[str, int]:
    """Return what a task says of so many rows by status."""
    total = sum(counts.values())
    return {"total": total, "done": total - counts.get("PENDING", 0), "failed": counts.get("FAILED", 0)}


def _outcome(
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


def _record_progress(
    connection: Connection, attempt: _Attempt, stage: str, counts: Mapping[str, int] | None = None
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
    told = _told(counts)
    connection.execute(
        sa.update(tasks)
        .where(tasks.c.task_id == attempt.task_id)
        .values(
            additional_data={
                "batch_id": attempt.batch_id,
                "stage": stage,
                **told,
                **attempt.pace.meter.read(time.monotonic(), done=told["done"], total=told["total"]),
                **_links(attempt.compute),
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
    connection: Connection, attempt: _Attempt, stage: str, by_collection: Mapping[str, Counter[str]]
) -> None:
    """Write how far the tier that runs is into its own task, if it has one."""
    tier = next((tier for tier in attempt.tiers if tier.status == TaskStatus.IN_PROGRESS), None)
    if tier is None or tier.task_id in (None, attempt.task_id):
        return
    told = _told(sum((by_collection.get(c, Counter()) for c in tier.collection_ids), Counter()))
    rates = attempt.pace.tier_meter.read(time.monotonic(), done=told["done"], total=told["total"])
    this = tasks.c.task_id == tier.task_id
    known = connection.execute(sa.select(tasks.c.additional_data).where(this)).scalar() or {}
    connection.execute(
        sa.update(tasks)
        .where(this)
        .values(additional_data={**known, "stage": stage, **told, **rates}, updated_at=now())
    )


def _finish(wh: Warehouse, attempt: _Attempt) -> None:
    with wh.db.write() as connection:
        mine = batch_rows.c.batch_id == attempt.batch_id
        counts = _counts(connection, mine)
        failed, total = counts.get("FAILED", 0), sum(counts.values())
        status, error = _outcome(connection, mine, counts)
        summary: Counter[str] = Counter()
        for kind, count in connection.execute(
            sa.select(batch_rows.c.error_kind, sa.func.count())
            .where(mine, batch_rows.c.status == "FAILED")
            .group_by(batch_rows.c.error_kind)
        ):
            summary[causes.known(kind).cause] += count
        done = connection.execute(
            sa.update(batches)
            .where(
                batches.c.batch_id == attempt.batch_id,
                batches.c.attempt == attempt.number,
                batches.c.holder == attempt.holder,
                batches.c.status == "IN_PROGRESS",
            )
            .values(
                status=status,
                holder=None,
                crashes=0,
                error=error,
                error_summary=dict(summary) or None,
                updated_at=now(),
            )
            .returning(batches.c.batch_id)
        ).one_or_none()
        if done is None:
            raise Superseded
        _record_progress(connection, attempt, "done", counts)
        done_rows, skipped = counts.get("COMPLETED", 0), counts.get("SKIPPED", 0)
        ending = f"{status}: {done_rows} row(s) done, {failed} failed, {skipped} skipped."
        batch_logs.write(
            connection,
            attempt.batch_id,
            attempt.namespace_id,
            ending,
            level="info" if not failed else "warning" if failed < total else "error",
        )
        if attempt.task_id:
            connection.execute(
                sa.update(tasks)
                .where(tasks.c.task_id == attempt.task_id)
                .values(status=status, error=error, updated_at=now())
            )
