"""Background jobs: submitted batches, purges and deliveries to webhooks, driven by what the tables say.

All truth is in the tables: a batch is taken up again because its row says IN_PROGRESS and that no live
server holds it, a purge because its row exists. This module only decides what runs now: within
`max_concurrent_jobs` of each namespace, those with the fewest under way first. Taking up is one transaction,
so that several servers on one database never take up the same batch, nor more than allowed. Nothing waits
in a thread: what failed and may go better later rests, and others have its turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import (
    cluster_runs,
    cluster_triggers,
    compaction,
    enrichment_requests,
    erasure,
    evaluation_runs,
    evaluations,
    exports,
    ingest,
    materialising,
    namespaces,
    uploads,
)
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import batches, erasures, purges
from tessera.db.tables import namespaces as namespace_rows
from tessera.db.tables import tasks as task_rows
from tessera.deliveries import Deliverer
from tessera.errors import StorageError, TesseraError
from tessera.ingest_attempt import Claim, Stop
from tessera.slots import Slot, Slots

logger = logging.getLogger("tessera.jobs")

#: How often tables are read although nobody woke us.
IDLE_POLL_S = 5.0
#: The same while batches run: another server may have been asked to cancel one.
BUSY_POLL_S = 1.0
#: Heartbeats within a lease. Whether another server's has run out is seen within a third of one.
BEATS = 5
#: Rests before a batch is tried again after an error that may pass.
RETRY_AFTER_S = (1.0, 2.0, 5.0, 15.0, 60.0)
#: A batch that has gone on for so long since its last rest starts to count anew.
FORGIVEN_AFTER_S = 300.0
#: How long a job that failed for a reason of ours is left alone; it would only fail again at once.
REST_S = 5.0
#: How long an ending server waits for chunks under way before it stops the workers under them.
PARK_S = 5.0
#: Logs that have grown long, and artifacts whose grace is over, are looked for so often.
MAINTENANCE_S = 5.0
#: How often uploads that were not confirmed in time are looked for.
SWEEP_S = 30.0
#: Purges have threads of their own, so that a thousand of them hold up no batch, nor the other way round.
PURGE_THREADS = 2
#: Batches under which so many servers ended in a row run one at a time: the next to end names the culprit.
SUSPECT_CRASHES = 2

#: Any constant: servers on one PostgreSQL take up batches one after the other.
_ADVISORY_LOCK = 0x7E55E7C


@dataclass(frozen=True, slots=True)
class _Rest:
    """A job that failed `failures` times lately and is left alone `until` (monotonic seconds)."""

    failures: int
    until: float


@dataclass(frozen=True, slots=True)
class _Run:
    """A batch that runs here."""

    claim: Claim
    stop: Stop


class Jobs:
    """Runs batches and purges in threads; one for each data directory."""

    def __init__(self) -> None:
        self._wake = threading.Event()
        #: Set when the server ends: no more is taken up, and batches park at their next chunk.
        self._park = threading.Event()
        self._ended = threading.Event()
        #: The batches that run, and the namespaces and views that are being removed.
        self._running: dict[str, _Run] = {}
        self._purging: set[str] = set()
        #: Namespaces in which documents are being erased or the log folded: one at a time.
        self._maintaining: set[str] = set()
        #: Set when this server ends, or when others took it for dead and may go on with what it maintains.
        self._maintenance_stop = threading.Event()
        self._next_maintenance = 0.0
        #: The evaluation that runs, one at a time.
        self._evaluating: set[str] = set()
        self._rests: dict[str, _Rest] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._slots: Slots | None = None
        self._slot: Slot | None = None
        self._dispatcher: threading.Thread | None = None
        self._heart: threading.Thread | None = None
        self._batch_threads: ThreadPoolExecutor | None = None
        self._purge_threads: ThreadPoolExecutor | None = None
        self._maintenance_threads: ThreadPoolExecutor | None = None
        #: One execution of a cluster at a time: each may want a worker's memory and a processor.
        self._cluster_thread: ThreadPoolExecutor | None = None
        self._clustering: set[str] = set()
        self._evaluation_thread: ThreadPoolExecutor | None = None
        self._next_sweep = 0.0
        self._deliverer: Deliverer | None = None

    def start(self, wh: Warehouse) -> None:
        """Begin: first what an earlier server left unfinished, then what comes."""
        if wh.settings.database_url is None:
            # No other server is making or reading these: the data directory is ours alone.
            namespaces.end_provisioning(wh)
        self._batch_threads = ThreadPoolExecutor(wh.settings.job_threads, thread_name_prefix="job")
        self._maintenance_threads = ThreadPoolExecutor(1, thread_name_prefix="maintenance")
        self._cluster_thread = ThreadPoolExecutor(1, thread_name_prefix="cluster")
        self._evaluation_thread = ThreadPoolExecutor(1, thread_name_prefix="evaluation")
        self._purge_threads = ThreadPoolExecutor(PURGE_THREADS, thread_name_prefix="purge")
        self._dispatcher = threading.Thread(target=self._dispatch, args=(wh,), name="jobs", daemon=True)
        self._heart = threading.Thread(
            target=self._beat, args=(wh.settings.job_lease_s / BEATS,), name="jobs-heart", daemon=True
        )
        self._deliverer = Deliverer(wh, lambda: self._slot, self._alive)
        self._dispatcher.start()
        self._heart.start()
        self._deliverer.start()

    def is_running(self) -> bool:
        """Whether work is taken up; what the server's health tells."""
        return self._dispatcher is not None and self._dispatcher.is_alive()

    def wake(self) -> None:
        """Look now for work, and whether what runs was cancelled."""
        self._wake.set()

    def stop(self, timeout_s: float = PARK_S) -> None:
        """Park every batch at its next chunk; whoever comes next goes on from there.

        A chunk that takes longer than `timeout_s` is given up with its worker, and done anew.
        """
        self._park.set()
        self._maintenance_stop.set()
        self._wake.set()
        deadline = time.monotonic() + timeout_s
        if self._dispatcher is not None:
            self._dispatcher.join(timeout_s)
        with self._idle:
            self._idle.wait_for(lambda: not self._running, max(0.0, deadline - time.monotonic()))
        self._drop_all()
        if self._deliverer is not None:
            self._deliverer.stop()
        for threads in (
            self._batch_threads,
            self._purge_threads,
            self._maintenance_threads,
            self._cluster_thread,
            self._evaluation_thread,
        ):
            if threads is not None:
                threads.shutdown(wait=True, cancel_futures=True)
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        if self._slots is not None:
            if self._slot is not None:
                try:
                    self._slots.release(self._slot)
                except (TesseraError, sa.exc.SQLAlchemyError) as error:
                    logger.warning("slot %d expires by itself: %s", self._slot.number, error)
            self._slots.close()

    def _drop_all(self) -> None:
        with self._lock:
            for run in self._running.values():
                run.stop.drop.set()

    # --- being alive -------------------------------------------------------------------------------------

    def _beat(self, every_s: float) -> None:
        """Let other servers know that this one lives; when they took it for dead, give up what it was doing."""
        while not self._ended.wait(every_s):
            slot = self._slot
            try:
                if self._slots is None or slot is None or self._slots.renew(slot):
                    continue
            except (TesseraError, sa.exc.SQLAlchemyError) as error:
                logger.warning("this server's heartbeat was not written: %s", error)
                continue
            logger.warning("slot %d went to another server while this one stood still", slot.number)
            self._slot = None
            self._maintenance_stop.set()
            self._drop_all()
            self._wake.set()

    def _alive(self) -> set[str]:
        return self._slots.alive() if self._slots is not None else set()

    # --- what runs now -----------------------------------------------------------------------------------

    def _dispatch(self, wh: Warehouse) -> None:
        while not self._park.is_set():
            self._wake.clear()
            try:
                self._look(wh)
            except TesseraError as error:
                logger.warning("jobs cannot be read now: %s", error.message)
            except Exception:
                # Whatever the database does, the dispatcher lives: nothing else would take up work again.
                logger.exception("jobs cannot be read now")
            self._wake.wait(min(self._patience_s(), wh.settings.job_lease_s / 3))

    def _look(self, wh: Warehouse) -> None:
        """Stop what was taken from us, and start what is due."""
        self._drop_superseded(wh)
        for namespace_id in self._due_purges(wh):
            self._start_purge(namespace_id, partial(namespaces.purge, wh, namespace_id))
        for view_id in self._due_drops(wh):
            self._start_purge(view_id, partial(namespaces.drop_doomed, wh, view_id))
        if time.monotonic() >= self._next_sweep:
            uploads.sweep(wh)
            exports.sweep(wh)
            self._next_sweep = time.monotonic() + SWEEP_S
        if self._slots is None:
            # Where no other database is named, the server is the only one: it holds the data directory.
            self._slots = Slots(wh.db, wh.settings.job_lease_s, is_alone=wh.settings.database_url is None)
        slot = self._slot
        if slot is None:
            slot = self._slot = self._slots.claim()
            if self._deliverer is not None:
                self._deliverer.wake()
        if self._slots.leads(slot):
            self._maintain(wh)
            self._evaluate(wh, slot)
        for claim in self._claim_batches(wh, slot, self._slots):
            self._start_batch(wh, claim)
        cluster_triggers.fire_due(wh, now())
        self._start_clustering(wh, slot, self._slots)
        _give_up(wh)

    def _patience_s(self) -> float:
        """Return how long there is nothing to do unless somebody wakes us: until the next rest is over."""
        at = time.monotonic()
        with self._lock:
            self._rests = {
                job_id: rest for job_id, rest in self._rests.items() if at < rest.until + FORGIVEN_AFTER_S
            }
            ends = [rest.until - at for rest in self._rests.values() if rest.until > at]
            poll_s = BUSY_POLL_S if self._running else IDLE_POLL_S
        return min([poll_s, *ends])

    def _drop_superseded(self, wh: Warehouse) -> None:
        """Stop the runs whose batch was cancelled, deleted, or taken up by another server."""
        with self._lock:
            runs = dict(self._running)
        if not runs:
            return
        with wh.db.read() as connection:
            ours = {
                (batch_id, attempt, holder)
                for batch_id, attempt, holder in connection.execute(
                    sa.select(batches.c.batch_id, batches.c.attempt, batches.c.holder).where(
                        batches.c.batch_id.in_(runs), batches.c.status == "IN_PROGRESS"
                    )
                )
            }
        for batch_id, run in runs.items():
            if (batch_id, run.claim.attempt, run.claim.holder) not in ours:
                run.stop.drop.set()

    def _due_purges(self, wh: Warehouse) -> list[str]:
        with wh.db.read() as connection:
            rows = connection.execute(
                sa.select(purges.c.namespace_id, purges.c.targets).order_by(purges.c.created_at)
            ).all()
        # One that was swept stays until its second sweep is due.
        at = now()
        due = [namespace_id for namespace_id, targets in rows if targets.get("due_at", "") <= at]
        with self._lock:
            free = PURGE_THREADS - len(self._purging)
            resting = self._resting()
            startable = [n for n in due if n not in self._purging and n not in resting]
        return startable[:free]

    def _due_drops(self, wh: Warehouse) -> list[str]:
        with wh.db.read() as connection:
            due = namespaces.due_to_drop(connection)
        with self._lock:
            free = PURGE_THREADS - len(self._purging)
            resting = self._resting()
            startable = [
                view_id for view_id in due if view_id not in self._purging and view_id not in resting
            ]
        return startable[: max(0, free)]

    def _maintain(self, wh: Warehouse) -> None:
        """Start what is next: erase documents first, then enrich, then fold logs that have grown. One at a time.

        Of several servers on one database only the one with the lowest slot does so.
        """
        assert self._maintenance_threads is not None
        minimum = wh.settings.compact_after_changes
        looks = time.monotonic() >= self._next_maintenance
        with self._lock:
            if self._maintaining:
                return
            stop = self._maintenance_stop = threading.Event()
            if self._park.is_set() or self._slot is None:
                return
            resting = self._resting()
        with wh.db.read() as connection:
            due: list[tuple[str, Callable[[], object]]] = [
                (namespace_id, partial(erasure.erase, wh, task_id, stop))
                for task_id, namespace_id in erasure.due(connection)
            ]
            due += [
                (namespace_id, partial(materialising.run, wh, enrichment_id, stop))
                for enrichment_id, namespace_id in enrichment_requests.due(connection)
            ]
            if looks:
                self._next_maintenance = time.monotonic() + MAINTENANCE_S
                due += [
                    (
                        namespace_id,
                        partial(compaction.compact, wh, namespace_id, minimum, stop=stop),
                    )
                    for namespace_id in compaction.due(connection, minimum, 10)
                ]
        for namespace_id, work in due:
            if namespace_id not in resting:
                with self._lock:
                    self._maintaining.add(namespace_id)
                ended = partial(self._maintaining.discard, namespace_id)
                self._maintenance_threads.submit(self._working, namespace_id, work, ended)
                return

    def _evaluate(self, wh: Warehouse, slot: Slot) -> None:
        """Go on with the evaluation that waits longest, if none runs; as with maintenance, on one server only."""
        assert self._evaluation_thread is not None
        with self._lock:
            if self._evaluating or self._park.is_set():
                return
            resting = self._resting()
        due = next((found for found in evaluations.due(wh) if found not in resting), None)
        if due is None:
            return
        with self._lock:
            self._evaluating.add(due)
        work = partial(evaluation_runs.run, wh, due, lambda: self._park.is_set() or self._slot is not slot)
        self._evaluation_thread.submit(self._working, due, work, partial(self._evaluating.discard, due))

    def _claim_batches(self, wh: Warehouse, slot: Slot, slots: Slots) -> list[Claim]:
        """Take up the batches to start now; of namespaces that wait, the one with the fewest under way is next."""
        with self._lock:
            running = set(self._running)
            passed_over = running | self._resting()
        free = wh.settings.job_threads - len(running)
        if free <= 0:
            return []
        # Ours by name only: what was taken up and not started, or not released when the database failed.
        astray = sa.and_(batches.c.holder == slot.token, batches.c.batch_id.not_in(running))
        unheld = sa.or_(batches.c.holder.is_(None), batches.c.holder.not_in(slots.alive()), astray)
        is_open = batches.c.status.in_(["PENDING", "IN_PROGRESS"])
        with wh.db.read() as connection:
            some = sa.select(batches.c.batch_id).where(is_open, unheld).limit(len(passed_over) + 1)
            if set(connection.execute(some).scalars()) <= passed_over:
                return []
        with wh.db.write() as connection:
            if not wh.db.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            connection.execute(
                sa.update(batches).where(batches.c.status == "IN_PROGRESS", astray).values(holder=None)
            )
            # Asked only now, when nobody else can take up anything: who did so before has had its slot before.
            # Our own heartbeat may be late, but nobody knows better that we live.
            _bury(connection, slots.alive() | {slot.token})
            return [
                _claim(connection, batch_id, slot) for batch_id in _due(connection, wh, passed_over, free)
            ]

    def _start_batch(self, wh: Warehouse, claim: Claim) -> None:
        assert self._batch_threads is not None
        run = _Run(claim, Stop(park=self._park))
        with self._lock:
            self._running[claim.batch_id] = run

        def ended() -> None:
            self._running.pop(claim.batch_id, None)

        self._batch_threads.submit(
            self._working, claim.batch_id, partial(self._run_batch, wh, claim, run.stop), ended
        )

    def _start_clustering(self, wh: Warehouse, slot: Slot, slots: Slots) -> None:
        """Take up an execution of a cluster, unless one runs here or the last one just failed for a reason of ours."""
        assert self._cluster_thread is not None
        with self._lock:
            if self._clustering or self._park.is_set() or "clustering" in self._resting():
                return
        claimed = cluster_runs.claim(wh, slot.token, slots.alive)
        if claimed is None:
            return
        with self._lock:
            self._clustering.add(claimed.run_id)
        work = partial(cluster_runs.run, wh, claimed, self._park)
        ended = partial(self._clustering.discard, claimed.run_id)
        self._cluster_thread.submit(self._working, "clustering", work, ended)

    def _start_purge(self, job_id: str, work: Callable[[], object]) -> None:
        assert self._purge_threads is not None
        with self._lock:
            self._purging.add(job_id)
        self._purge_threads.submit(self._working, job_id, work, partial(self._purging.discard, job_id))

    def _working(self, job_id: str, work: Callable[[], object], ended: Callable[[], object]) -> None:
        try:
            work()
        except compaction.Interrupted:
            pass  # the next server goes on
        except Exception:
            # The outermost edge of a job: it stays in its table and is taken up again later.
            logger.exception("job %s failed", job_id)
            with self._lock:
                self._rests[job_id] = _Rest(1, time.monotonic() + REST_S)
        finally:
            with self._idle:
                ended()
                self._idle.notify_all()
            self._wake.set()

    def _resting(self) -> set[str]:
        """Return the jobs that are left alone now. The caller holds the lock."""
        at = time.monotonic()
        return {job_id for job_id, rest in self._rests.items() if rest.until > at}

    def _rest(self, job_id: str) -> float | None:
        """Let a job rest and return for how many seconds; None when it has failed too often."""
        at = time.monotonic()
        with self._lock:
            before = self._rests.pop(job_id, None)
            lately = before is not None and at < before.until + FORGIVEN_AFTER_S
            failures = before.failures + 1 if before is not None and lately else 1
            if failures > len(RETRY_AFTER_S):
                return None
            wait_s = RETRY_AFTER_S[failures - 1]
            self._rests[job_id] = _Rest(failures, at + wait_s)
        return wait_s

    def _run_batch(self, wh: Warehouse, claim: Claim, stop: Stop) -> None:
        batch_id = claim.batch_id
        try:
            ingest.run_batch(wh, claim, stop)
        except TesseraError as error:
            if stop.is_set():
                ingest.release(wh, claim)
                return
            # A database or a disk that cannot be written now is no fault of the batch.
            may_pass = error.retryable or isinstance(error, StorageError)
            wait_s = self._rest(batch_id) if may_pass else None
            if wait_s is None:
                ingest.fail_batch(wh, batch_id, error.message, attempt=claim.attempt)
            else:
                logger.warning("batch %s rests %g s: %s", batch_id, wait_s, error.message)
                ingest.release(wh, claim)
        except Exception as error:
            if stop.is_set():
                ingest.release(wh, claim)
                return
            # A defect of ours must not leave the batch spinning: it fails with a message and a trace.
            logger.exception("batch %s failed", batch_id)
            ingest.fail_batch(
                wh,
                batch_id,
                f"Internal error: {type(error).__name__}. The server's log has more.",
                attempt=claim.attempt,
            )
        else:
            with self._lock:
                self._rests.pop(batch_id, None)


def _bury(connection: Connection, live: set[str]) -> None:
    """Free the batches of servers that are not alive; what such a server still brings is refused from now on."""
    connection.execute(
        sa.update(batches)
        .where(
            batches.c.status == "IN_PROGRESS", batches.c.holder.is_not(None), batches.c.holder.not_in(live)
        )
        .values(holder=None, crashes=batches.c.crashes + 1)
    )


def _give_up(wh: Warehouse) -> None:
    """End the batches under which too many servers ended."""
    with wh.db.read() as connection:
        given_up = connection.execute(
            sa.select(batches.c.batch_id, batches.c.crashes).where(
                batches.c.status == "IN_PROGRESS",
                batches.c.holder.is_(None),
                batches.c.crashes >= ingest.MAX_CRASHES,
            )
        ).all()
    for batch_id, crashes in given_up:
        logger.error("batch %s is given up: %d servers in a row ended under it", batch_id, crashes)
        ingest.fail_batch(
            wh,
            batch_id,
            f"The batch was given up: {crashes} times in a row the server ended while it worked on it. Rows that "
            "were done stay done. The server's log and the system's (out of memory?) may say why; retry the "
            "batch when the cause is gone.",
        )


def _due(connection: Connection, wh: Warehouse, passed_over: set[str], free: int) -> list[str]:
    """Return at most `free` batches to take up; the caller is the only one who does so now."""
    #: Batches of each namespace that a server works on, and those that were begun: some may wait to go on.
    held: Counter[str] = Counter()
    begun: Counter[str] = Counter()
    is_suspect_running = False
    for namespace_id, holder, crashes in connection.execute(
        sa.select(batches.c.namespace_id, batches.c.holder, batches.c.crashes).where(
            batches.c.status == "IN_PROGRESS"
        )
    ):
        begun[namespace_id] += 1
        held[namespace_id] += holder is not None
        is_suspect_running |= holder is not None and crashes >= SUSPECT_CRASHES
    # No more of each namespace than could be started if all that are passed over were its own.
    order = (batches.c.status, batches.c.submitted_at, batches.c.batch_id)
    place = sa.func.row_number().over(partition_by=batches.c.namespace_id, order_by=order)
    waits = (
        sa.select(
            batches.c.batch_id, batches.c.namespace_id, batches.c.crashes, place.label("place"), *order[:2]
        )
        .where(
            sa.or_(
                # Where documents are being erased none is begun, so that the erasing ends.
                sa.and_(
                    batches.c.status == "PENDING",
                    batches.c.namespace_id.not_in(sa.select(erasures.c.namespace_id)),
                ),
                sa.and_(batches.c.status == "IN_PROGRESS", batches.c.holder.is_(None)),
            ),
            batches.c.crashes < ingest.MAX_CRASHES,
        )
        .subquery()
    )
    rows = connection.execute(
        sa.select(waits, namespace_rows.c.infrastructure)
        .join(namespace_rows, namespace_rows.c.namespace_id == waits.c.namespace_id)
        .where(waits.c.place <= free + len(passed_over))
        .order_by(waits.c.status, waits.c.submitted_at, waits.c.batch_id)
    ).all()
    waiting: dict[str, deque[tuple[str, bool]]] = {}
    limits: dict[str, int] = {}
    for row in rows:
        if row.batch_id in passed_over:
            continue
        if row.crashes >= SUSPECT_CRASHES:
            if is_suspect_running:
                continue
            is_suspect_running = True
        is_new = row.status == "PENDING"
        waiting.setdefault(row.namespace_id, deque()).append((row.batch_id, is_new))
        limits[row.namespace_id] = (row.infrastructure or {}).get(
            "max_concurrent_jobs"
        ) or wh.settings.max_concurrent_jobs
    due: list[str] = []
    while waiting and len(due) < free:
        # Of equals the one whose batch waits longest: dictionaries keep their order.
        namespace_id = min(waiting, key=held.__getitem__)
        batch_id, is_new = waiting[namespace_id].popleft()
        if (begun if is_new else held)[namespace_id] >= limits[namespace_id]:
            # Those that were begun come first, so none behind it may start either.
            del waiting[namespace_id]
            continue
        due.append(batch_id)
        held[namespace_id] += 1
        begun[namespace_id] += is_new
        if not waiting[namespace_id]:
            del waiting[namespace_id]
    return due


def _claim(connection: Connection, batch_id: str, slot: Slot) -> Claim:
    """Take up a batch under the next attempt."""
    this = batches.c.batch_id == batch_id
    before = connection.execute(sa.select(batches.c.status, batches.c.attempt, batches.c.crashes).where(this))
    status, attempt, crashes = before.one()
    connection.execute(
        sa.update(batches)
        .where(this)
        .values(status="IN_PROGRESS", attempt=attempt + 1, holder=slot.token, updated_at=now())
    )
    connection.execute(
        sa.update(task_rows)
        .where(task_rows.c.task_id == sa.select(batches.c.task_id).where(this).scalar_subquery())
        .values(status="IN_PROGRESS", updated_at=now())
    )
    return Claim(batch_id, attempt + 1, slot.token, is_resumed=status == "IN_PROGRESS", crashes=crashes)
