"""Background jobs: submitted batches and purges, driven by what the tables say.

All truth is in the tables: a batch is taken up again after a restart because its row says
IN_PROGRESS, a purge because its row exists. This module only decides what runs now: within
`max_concurrent_jobs` of each namespace, those with the fewest under way first. Nothing waits in a thread:
what failed and may go better later rests, and others have its turn.
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

from tessera import compaction, erasure, ingest, namespaces
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import batches, erasures, purges
from tessera.db.tables import namespaces as namespace_rows
from tessera.errors import StorageError, TesseraError

logger = logging.getLogger("tessera.jobs")

#: How often tables are read although nobody woke us.
IDLE_POLL_S = 5.0
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
#: Purges have threads of their own, so that a thousand of them hold up no batch, nor the other way round.
PURGE_THREADS = 2


@dataclass(frozen=True, slots=True)
class _Rest:
    """A job that failed `failures` times lately and is left alone `until` (monotonic seconds)."""

    failures: int
    until: float


class Jobs:
    """Runs batches and purges in threads; one for each data directory."""

    def __init__(self) -> None:
        self._wake = threading.Event()
        self._stop = threading.Event()
        #: Namespace of each batch that runs, and the namespaces that are being purged.
        self._running: dict[str, str] = {}
        self._purging: dict[str, str] = {}
        #: Namespaces in which documents are being erased or the log folded: one of the two at a time.
        self._maintaining: dict[str, str] = {}
        self._maintenance_at = 0.0
        self._rests: dict[str, _Rest] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._dispatcher: threading.Thread | None = None
        self._batch_threads: ThreadPoolExecutor | None = None
        self._purge_threads: ThreadPoolExecutor | None = None
        self._maintenance_threads: ThreadPoolExecutor | None = None
        self._wh: Warehouse | None = None

    def start(self, wh: Warehouse) -> None:
        """Begin: first what an earlier server left unfinished, then what comes."""
        self._wh = wh
        self._batch_threads = ThreadPoolExecutor(wh.settings.job_threads, thread_name_prefix="job")
        self._purge_threads = ThreadPoolExecutor(PURGE_THREADS, thread_name_prefix="purge")
        self._maintenance_threads = ThreadPoolExecutor(1, thread_name_prefix="maintenance")
        self._dispatcher = threading.Thread(target=self._dispatch, args=(wh,), name="jobs", daemon=True)
        self._dispatcher.start()

    def is_running(self) -> bool:
        """Whether work is taken up; what the server's health tells."""
        return self._dispatcher is not None and self._dispatcher.is_alive()

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def stop(self, timeout_s: float = PARK_S) -> None:
        """Park every batch at its next chunk; the next server goes on from there.

        A chunk that takes longer than `timeout_s` is given up with its worker, and done anew by that server.
        """
        self._stop.set()
        self._wake.set()
        deadline = time.monotonic() + timeout_s
        if self._dispatcher is not None:
            self._dispatcher.join(timeout_s)
        with self._idle:
            parked = self._idle.wait_for(lambda: not self._running, max(0.0, deadline - time.monotonic()))
        if not parked and self._wh is not None:
            self._wh.runner.close()
        for threads in (self._batch_threads, self._purge_threads, self._maintenance_threads):
            if threads is not None:
                threads.shutdown(wait=True, cancel_futures=True)

    def _dispatch(self, wh: Warehouse) -> None:
        assert self._batch_threads is not None
        assert self._purge_threads is not None
        assert self._maintenance_threads is not None
        while not self._stop.is_set():
            self._wake.clear()
            try:
                for namespace_id in self._due_purges(wh):
                    work = partial(namespaces.purge, wh, namespace_id)
                    self._start_one(self._purge_threads, self._purging, namespace_id, namespace_id, work)
                for view_id in self._due_drops(wh):
                    work = partial(namespaces.drop_doomed, wh, view_id)
                    self._start_one(self._purge_threads, self._purging, view_id, view_id, work)
                for namespace_id, maintain in self._due_maintenance(wh):
                    self._start_one(
                        self._maintenance_threads, self._maintaining, namespace_id, namespace_id, maintain
                    )
                for batch_id, namespace_id in self._due_batches(wh):
                    work = partial(self._run_batch, wh, batch_id)
                    self._start_one(self._batch_threads, self._running, batch_id, namespace_id, work)
            except TesseraError as error:
                logger.warning("jobs cannot be read now: %s", error.message)
            except Exception:
                # Whatever the database does, the dispatcher lives: nothing else would take up work again.
                logger.exception("jobs cannot be read now")
            self._wake.wait(self._patience_s())

    def _patience_s(self) -> float:
        """Return how long there is nothing to do unless somebody wakes us: until the next rest is over."""
        at = time.monotonic()
        with self._lock:
            self._rests = {
                job_id: rest for job_id, rest in self._rests.items() if at < rest.until + FORGIVEN_AFTER_S
            }
            ends = [rest.until - at for rest in self._rests.values() if rest.until > at]
        return min([IDLE_POLL_S, *ends])

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

    def _due_maintenance(self, wh: Warehouse) -> list[tuple[str, Callable[[], object]]]:
        """Return what to do in which namespace: erase documents first, then fold logs that have grown long."""
        minimum = wh.settings.compact_after_changes
        looks = time.monotonic() >= self._maintenance_at
        with wh.db.read() as connection:
            due: list[tuple[str, Callable[[], object]]] = [
                (namespace_id, partial(erasure.erase, wh, task_id, self._stop))
                for task_id, namespace_id in erasure.due(connection)
            ]
            if looks:
                self._maintenance_at = time.monotonic() + MAINTENANCE_S
                due += [
                    (namespace_id, partial(compaction.compact, wh, namespace_id, minimum, stop=self._stop))
                    for namespace_id in compaction.due(connection, minimum, 10)
                ]
        with self._lock:
            passed_over = set(self._maintaining) | self._resting()
            if self._maintaining:
                return []
        return next(([(n, work)] for n, work in due if n not in passed_over), [])

    def _due_batches(self, wh: Warehouse) -> list[tuple[str, str]]:
        """Return the batches to start now; of namespaces that wait, the one with the fewest under way is next."""
        with self._lock:
            busy = Counter(self._running.values())
            passed_over = set(self._running) | self._resting()
            free = wh.settings.job_threads - len(self._running)
        if free <= 0:
            return []
        # No more of each namespace than could be started if all that are passed over were its own.
        order = (batches.c.status, batches.c.submitted_at, batches.c.batch_id)
        place = sa.func.row_number().over(partition_by=batches.c.namespace_id, order_by=order)
        open_batches = (
            sa.select(batches.c.batch_id, batches.c.namespace_id, place.label("place"), *order[:2])
            .where(
                batches.c.status.in_(["PENDING", "IN_PROGRESS"]),
                # Where documents are being erased none is begun, so that the erasing ends.
                sa.or_(
                    batches.c.status == "IN_PROGRESS",
                    batches.c.namespace_id.not_in(sa.select(erasures.c.namespace_id)),
                ),
            )
            .subquery()
        )
        with wh.db.read() as connection:
            rows = connection.execute(
                sa.select(
                    open_batches.c.batch_id, open_batches.c.namespace_id, namespace_rows.c.infrastructure
                )
                .join(namespace_rows, namespace_rows.c.namespace_id == open_batches.c.namespace_id)
                .where(open_batches.c.place <= free + len(passed_over))
                .order_by(open_batches.c.status, open_batches.c.submitted_at, open_batches.c.batch_id)
            ).all()
        waiting: dict[str, deque[str]] = {}
        limits: dict[str, int] = {}
        for batch_id, namespace_id, infrastructure in rows:
            if batch_id not in passed_over:
                waiting.setdefault(namespace_id, deque()).append(batch_id)
                limits[namespace_id] = (infrastructure or {}).get(
                    "max_concurrent_jobs"
                ) or wh.settings.max_concurrent_jobs
        due: list[tuple[str, str]] = []
        while waiting and len(due) < free:
            # Of equals the one whose batch waits longest: dictionaries keep their order.
            namespace_id = min(waiting, key=busy.__getitem__)
            if busy[namespace_id] >= limits[namespace_id]:
                del waiting[namespace_id]
                continue
            due.append((waiting[namespace_id].popleft(), namespace_id))
            busy[namespace_id] += 1
            if not waiting[namespace_id]:
                del waiting[namespace_id]
        return due

    def _start_one(
        self,
        threads: ThreadPoolExecutor,
        under_way: dict[str, str],
        job_id: str,
        namespace_id: str,
        work: Callable[[], object],
    ) -> None:
        with self._lock:
            under_way[job_id] = namespace_id

        def run() -> None:
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
                    under_way.pop(job_id, None)
                    self._idle.notify_all()
                self._wake.set()

        threads.submit(run)

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

    def _run_batch(self, wh: Warehouse, batch_id: str) -> None:
        try:
            ingest.run_batch(wh, batch_id, self._stop)
        except TesseraError as error:
            if self._stop.is_set():
                return
            # A database or a disk that cannot be written now is no fault of the batch.
            may_pass = error.retryable or isinstance(error, StorageError)
            wait_s = self._rest(batch_id) if may_pass else None
            if wait_s is None:
                ingest.fail_batch(wh, batch_id, error.message)
            else:
                logger.warning("batch %s rests %g s: %s", batch_id, wait_s, error.message)
        except Exception as error:
            if self._stop.is_set():
                return
            # A defect of ours must not leave the batch spinning: it fails with a message and a trace.
            logger.exception("batch %s failed", batch_id)
            ingest.fail_batch(
                wh, batch_id, f"Internal error: {type(error).__name__}. The server's log has more."
            )
        else:
            with self._lock:
                self._rests.pop(batch_id, None)
