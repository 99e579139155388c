"""Background jobs: submitted batches and purges, driven by what the tables say.

All truth is in the tables: a batch is taken up again after a restart because its row says
IN_PROGRESS, a purge because its row exists. This module only decides what runs now, within
`max_concurrent_jobs` of each namespace.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import sqlalchemy as sa

from tessera import ingest, namespaces
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import batches, purges
from tessera.db.tables import namespaces as namespace_rows
from tessera.errors import TesseraError

logger = logging.getLogger("tessera.jobs")

#: How often tables are read although nobody woke us.
IDLE_POLL_S = 5.0
#: Waits before a batch is tried again after an error that may pass.
RETRY_AFTER_S = (1.0, 2.0, 5.0, 15.0, 60.0)


class Jobs:
    """Runs batches and purges in threads; one for each data directory."""

    def __init__(self) -> None:
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._running: dict[str, str] = {}
        self._lock = threading.Lock()
        self._dispatcher: threading.Thread | None = None
        self._threads: ThreadPoolExecutor | None = None

    def start(self, wh: Warehouse) -> None:
        """Begin: first what an earlier server left unfinished, then what comes."""
        self._threads = ThreadPoolExecutor(wh.settings.job_threads, thread_name_prefix="job")
        self._dispatcher = threading.Thread(target=self._dispatch, args=(wh,), name="jobs", daemon=True)
        self._dispatcher.start()

    def is_running(self) -> bool:
        """Whether work is taken up; what the server's health tells."""
        return self._dispatcher is not None and self._dispatcher.is_alive()

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Park every batch at its next chunk; the next server goes on from there."""
        self._stop.set()
        self._wake.set()
        if self._dispatcher is not None:
            self._dispatcher.join(timeout_s)
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _dispatch(self, wh: Warehouse) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                for namespace_id in self._due_purges(wh):
                    self._start_one(namespace_id, namespace_id, partial(namespaces.purge, wh, namespace_id))
                for view_id in self._due_drops(wh):
                    self._start_one(view_id, view_id, partial(namespaces.drop_doomed, wh, view_id))
                for batch_id, namespace_id in self._due_batches(wh):
                    self._start_one(batch_id, namespace_id, partial(self._run_batch, wh, batch_id))
            except TesseraError as error:
                logger.warning("jobs cannot be read now: %s", error.message)
            self._wake.wait(IDLE_POLL_S)

    def _due_purges(self, wh: Warehouse) -> list[str]:
        with wh.db.read() as connection:
            rows = connection.execute(sa.select(purges.c.namespace_id, purges.c.targets)).all()
        # One that was swept stays until its second sweep is due.
        at = now()
        due = [namespace_id for namespace_id, targets in rows if targets.get("due_at", "") <= at]
        with self._lock:
            return [namespace_id for namespace_id in due if namespace_id not in self._running]

    def _due_drops(self, wh: Warehouse) -> list[str]:
        with wh.db.read() as connection:
            due = namespaces.due_to_drop(connection)
        with self._lock:
            return [view_id for view_id in due if view_id not in self._running]

    def _due_batches(self, wh: Warehouse) -> list[tuple[str, str]]:
        with wh.db.read() as connection:
            rows = connection.execute(
                sa.select(batches.c.batch_id, batches.c.namespace_id, namespace_rows.c.infrastructure)
                .join(namespace_rows, namespace_rows.c.namespace_id == batches.c.namespace_id)
                .where(batches.c.status.in_(["PENDING", "IN_PROGRESS"]))
                .order_by(batches.c.status, batches.c.submitted_at, batches.c.batch_id)
            ).all()
        with self._lock:
            busy = Counter(self._running.values())
            running = set(self._running)
        due: list[tuple[str, str]] = []
        for batch_id, namespace_id, infrastructure in rows:
            limit = (infrastructure or {}).get("max_concurrent_jobs") or wh.settings.max_concurrent_jobs
            if batch_id in running or busy[namespace_id] >= limit:
                continue
            if len(running) + len(due) >= wh.settings.job_threads:
                break
            busy[namespace_id] += 1
            due.append((batch_id, namespace_id))
        return due

    def _start_one(self, job_id: str, namespace_id: str, work: Callable[[], object]) -> None:
        assert self._threads is not None
        with self._lock:
            self._running[job_id] = namespace_id

        def run() -> None:
            try:
                work()
            except Exception:
                # The outermost edge of a job: it stays in its table and is taken up again later.
                logger.exception("job %s failed", job_id)
            finally:
                with self._lock:
                    self._running.pop(job_id, None)
                self._wake.set()

        self._threads.submit(run)

    def _run_batch(self, wh: Warehouse, batch_id: str) -> None:
        for wait_s in (*RETRY_AFTER_S, None):
            try:
                ingest.run_batch(wh, batch_id, self._stop)
                return
            except TesseraError as error:
                if wait_s is None or not error.retryable:
                    ingest.fail_batch(wh, batch_id, error.message)
                    return
                logger.warning("batch %s waits %g s: %s", batch_id, wait_s, error.message)
                if self._stop.wait(wait_s):
                    return
            except Exception as error:
                # A defect of ours must not leave the batch spinning: it fails with a message and a trace.
                logger.exception("batch %s failed", batch_id)
                ingest.fail_batch(
                    wh, batch_id, f"Internal error: {type(error).__name__}. The server's log has more."
                )
                return
