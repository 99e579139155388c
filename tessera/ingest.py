"""Ingest: takes a submitted batch through extraction into the log, row by row and restartable anywhere.

Every chunk ends in one transaction that checks that the batch, the attempt, the collection and each
object's version are still the ones planned, appends the artifact, and records what became of its rows.
When a server dies between two chunks, it or another takes the batch up with the next attempt; what an older
attempt still brings is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import batch_logs, causes, failpoints, materialising, mirroring, rates, row_failures, tiers
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import batch_rows, batches, collections, log_entries, namespaces, organizations, tasks
from tessera.errors import storage_error
from tessera.extraction import ChunkJob, ChunkResult, RowResult, run_chunk
from tessera.ingest_attempt import Attempt, Claim, Stop, Superseded, check_attempt, links_of
from tessera.ingest_commit import CollectionGone, close_rows, commit_chunk, fail_rows
from tessera.ingest_progress import counts_by_status, outcome_of, record_progress, told_of
from tessera.ingest_rows import (
    Row,
    cut_into_chunks,
    let_through,
    pending_documents,
    pending_objects,
    plan_hash_of,
    plan_tier,
)
from tessera.models.batches import Tier
from tessera.models.tasks import FINISHED, TaskStatus
from tessera.objects import is_missing
from tessera.ports import HERE, Compute, DenseVector, Failed
from tessera.progress import Meter

logger = logging.getLogger("tessera.ingest")


#: A batch under which so many servers ended in a row, without a chunk done in between, is given up.
MAX_CRASHES = 3


def run_batch(wh: Warehouse, claim: Claim, stop: Stop) -> None:
    """Bring a batch to its end, or to where `stop` ends it (it stays IN_PROGRESS then, free to be taken up).

    Can be repeated: rows that are done are not done again. When it returns with the batch COMPLETED,
    its documents are durable and findable. A disk that is full or fails is an error that may pass, wherever it
    was met.
    """
    for other in list(wh.under_way):
        wh.under_way[other] = False
    wh.under_way[claim.batch_id] = not wh.under_way
    try:
        _run_batch(wh, claim, stop)
    except OSError as error:
        raise storage_error(error) or error from error
    finally:
        wh.under_way.pop(claim.batch_id, None)


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


def _take_up(wh: Warehouse, claim: Claim) -> Attempt | None:
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
    compute = compute_of(wh, row["namespace_id"], place.infrastructure, place.place)
    told = _tell(wh, row["task_id"], links_of(compute))
    attempt = Attempt(
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
        attempt.pace.wary_chunks = 2 * workers_of(wh, compute)[0]
    if attempt.number > 1:
        _sweep(wh, attempt)
    return attempt if _log_begin(wh, attempt) else None


def _log_begin(wh: Warehouse, attempt: Attempt) -> bool:
    """Write into the batch's log that an attempt begins; False when the batch was cancelled or deleted by now."""
    where = "on a Ray cluster" if attempt.compute.cluster else f"in {wh.settings.workers} worker process(es)"
    count = sum(len(tier.collection_ids) for tier in attempt.tiers)
    message = f"Attempt {attempt.number} begins: {count} collection(s), extracted {where}."
    with wh.db.write() as connection:
        try:
            check_attempt(connection, attempt)
        except Superseded:
            return False
        batch_logs.write(connection, attempt.batch_id, attempt.namespace_id, message)
    return True


def compute_of(
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


def workers_of(wh: Warehouse, compute: Compute) -> tuple[int, str]:
    """Return how many workers there are where rows are extracted, and under which name rates of that place are kept."""
    workers = wh.settings.workers if compute.cluster is None else compute.max_workers
    return workers, rates.place_of(compute.cluster, workers)


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


def _sweep(wh: Warehouse, attempt: Attempt) -> None:
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


def _fetch(wh: Warehouse, attempt: Attempt, stop: Stop) -> None:
    """Make what the batch's objects have by URL our own; the rows of an object where that fails end with it."""
    with contextlib.closing(mirroring.fetch_sources(wh, attempt.batch_id, stop.is_set)) as failures:
        for failure in failures:
            if failure is None:
                with wh.db.read() as connection:
                    check_attempt(connection, attempt)
                continue
            if stop.is_set():
                return
            _fail_object(wh, attempt, failure)


def _with_content(
    wh: Warehouse,
    attempt: Attempt,
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
    fresh = pending_objects(wh, attempt, collection_id)
    for row in filter(_lacks_content, fresh):
        message = "The object got another URL while it was fetched. Retry the batch."
        _fail_object(wh, attempt, mirroring.Failure(row["object_id"], "fetch_superseded", message))
    return [row for row in fresh if not _lacks_content(row)]


def _lacks_content(row: Row) -> bool:
    return any(is_missing(blob) for blob in row["blobs"])


def _fail_object(wh: Warehouse, attempt: Attempt, failure: mirroring.Failure) -> None:
    failed = RowResult(
        failure.object_id, error_kind=failure.kind, error_message=failure.message, stage="fetch"
    )
    with wh.db.write() as connection:
        check_attempt(connection, attempt)
        fail_rows(connection, wh, attempt, [failed])
        record_progress(connection, attempt, "fetch")


def _await_due(wh: Warehouse, attempt: Attempt, stop: Stop) -> bool:
    """Wait until rows that failed are due to be tried again, and free them; False when there are none."""
    while not stop.is_set():
        with wh.db.write() as connection:
            check_attempt(connection, attempt)
            wait_s = row_failures.free_due(connection, attempt.batch_id)
        if wait_s is None or wait_s <= 0:
            return wait_s is not None
        stop.park.wait(min(wait_s, 1.0))
    return False


# --- tiers -------------------------------------------------------------------------------------------


def _run_tier(wh: Warehouse, attempt: Attempt, number: int, stop: Stop) -> None:
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
        plan_tier(wh, attempt, tier, stop)
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
    _enrich(wh, attempt, tier, stop)
    if stop.is_set():
        return
    _end_tier(wh, attempt, tier)
    failpoints.reach("tier.ended")


def _enrich(wh: Warehouse, attempt: Attempt, tier: Tier, stop: Stop) -> None:
    """Give the tier's documents what taxonomies say of them: the next tier reads that too."""
    compared = materialising.after_tier(wh, attempt.namespace_id, tier.collection_ids, stop.is_set)
    if not compared:
        return
    with wh.db.write() as connection:
        check_attempt(connection, attempt)
        for collection_id, counts in compared.items():
            message = (
                f"Collection {collection_id}: {counts.done} document(s) compared with its taxonomies, "
                f"{counts.assigned} assigned, {counts.failed} failed."
            )
            if counts.message is not None:
                message += f" {counts.message}"
            batch_logs.write(
                connection,
                attempt.batch_id,
                attempt.namespace_id,
                message,
                level="warning" if counts.message is not None else "info",
                tier_num=tier.tier_num,
            )


def _end_tier(wh: Warehouse, attempt: Attempt, tier: Tier) -> None:
    """Write how a tier ended, and with its own task what became of its rows."""
    mine = sa.and_(
        batch_rows.c.batch_id == attempt.batch_id, batch_rows.c.collection_id.in_(tier.collection_ids)
    )
    with wh.db.read() as connection:
        counts = counts_by_status(connection, mine)
        status, error = outcome_of(connection, mine, counts)
    ended = tier.model_copy(update={"status": status, "completed_at": now()})
    _write_tier(wh, attempt, ended, error=error, counts=counts)


def _write_tier(
    wh: Warehouse,
    attempt: Attempt,
    tier: Tier,
    *,
    error: str | None = None,
    counts: Mapping[str, int] | None = None,
) -> Tier:
    """Write a tier into its batch, and its status into its task and the log unless it is the only one; return it.

    `counts` are those of its rows, when it has ended.
    """
    with wh.db.write() as connection:
        check_attempt(connection, attempt)
        written = [tier if known.tier_num == tier.tier_num else known for known in attempt.tiers]
        connection.execute(
            sa.update(batches)
            .where(batches.c.batch_id == attempt.batch_id)
            .values(tiers=tiers.stored(written)["tiers"], updated_at=now())
        )
        if tier.task_id is not None and tier.task_id != attempt.task_id:
            this = tasks.c.task_id == tier.task_id
            known = connection.execute(sa.select(tasks.c.additional_data).where(this)).scalar() or {}
            told = {"stage": "extract"} if counts is None else {"stage": "done", **told_of(counts)}
            extra = {**known, **told, **links_of(attempt.compute)}
            connection.execute(
                sa.update(tasks)
                .where(this)
                .values(status=tier.status, error=error, additional_data=extra, updated_at=now())
            )
            _log_tier(connection, attempt, tier, counts)
    attempt.tiers[tier.tier_num] = tier
    return tier


def _log_tier(connection: Connection, attempt: Attempt, tier: Tier, counts: Mapping[str, int] | None) -> None:
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


def _run_collection(wh: Warehouse, attempt: Attempt, collection_id: str, stop: Stop) -> None:
    with wh.db.read() as connection:
        collection = (
            connection.execute(sa.select(collections).where(collections.c.collection_id == collection_id))
            .mappings()
            .one_or_none()
        )
    if collection is None:
        close_rows(wh, attempt, collection_id, "SKIPPED", "superseded", "The collection was deleted.")
        return
    plan_hash = plan_hash_of(wh, attempt, collection)
    is_fed = collection["source"]["type"] == "collection"
    try:
        while not stop.is_set():
            rows = (
                pending_documents(wh, attempt, collection_id)
                if is_fed
                else pending_objects(wh, attempt, collection_id)
            )
            if not rows:
                break
            if not is_fed:
                rows = _with_content(wh, attempt, collection_id, rows, stop)
            rows = let_through(wh, attempt, collection, rows)
            _run_chunks(
                wh, attempt, plan_hash, cut_into_chunks(wh, attempt, collection, rows, plan_hash), stop
            )
    except CollectionGone:
        attempt.pace.litter = True
        close_rows(wh, attempt, collection_id, "SKIPPED", "superseded", "The collection was deleted.")
        return
    if not stop.is_set():
        # Rows that a retry took up again although their object is gone.
        close_rows(wh, attempt, collection_id, "SKIPPED", "superseded", "The object was deleted.")


def _run_chunks(
    wh: Warehouse, attempt: Attempt, plan_hash: str, jobs: Sequence[ChunkJob], stop: Stop
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
                commit_chunk(wh, attempt, plan_hash, chunk, _settled(chunk, outcome))
            if stop.is_set():
                return
        jobs = again


def _may_go_again(wh: Warehouse, chunk: ChunkJob, deaths: Counter[str]) -> bool:
    """Count one more worker that died under the only row of `chunk`; say whether the row is tried once more."""
    deaths[chunk.rows[0].object_id] += 1
    return deaths[chunk.rows[0].object_id] < wh.settings.row_attempts


def _map(
    wh: Warehouse, attempt: Attempt, jobs: Sequence[ChunkJob], stop: Stop
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


def _note_death(wh: Warehouse, attempt: Attempt, chunk: ChunkJob, outcome: Failed) -> None:
    """Write down that a worker died under the only row of `chunk`; the row is tried once more."""
    with wh.db.write() as connection:
        check_attempt(connection, attempt)
        fail_rows(connection, wh, attempt, _settled(chunk, outcome).rows, chunk.collection_id, is_last=False)


# --- the end -----------------------------------------------------------------------------------------


def _finish(wh: Warehouse, attempt: Attempt) -> None:
    with wh.db.write() as connection:
        mine = batch_rows.c.batch_id == attempt.batch_id
        counts = counts_by_status(connection, mine)
        failed, total = counts.get("FAILED", 0), sum(counts.values())
        status, error = outcome_of(connection, mine, counts)
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
        record_progress(connection, attempt, "done", counts)
        _record_rates(connection, wh, attempt, is_whole=attempt.number == 1 and not failed)
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


def _record_rates(connection: Connection, wh: Warehouse, attempt: Attempt, *, is_whole: bool) -> None:
    """Keep what the batch took, for predictions.

    How long all of it took says something only where this attempt did all of it, and no other batch ran beside it.
    """
    seen = attempt.pace.seen
    if not seen.chunks:
        return
    workers, place = workers_of(wh, attempt.compute)
    is_first = place not in wh.warm
    is_alone = wh.under_way.get(attempt.batch_id, False)
    took_s = time.monotonic() - attempt.pace.began_s if is_whole and is_alone else None
    rates.record(connection, place, seen, wall_s=took_s, workers=workers, is_first=is_first)
    wh.warm.update((place, *(f"{place} {extractor}" for extractor, _, _ in seen.used)))
