"""The log of executions: what retrievers took and how long, kept for a while; never what they found.

Only of a fusion with learned weights it is kept which documents were shown and how each search scored them, as long as
there are interactions with it; erasing knows.

Noted in memory and written together a moment later, so that no search waits for it; a crash loses that moment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tessera.db.tables import executions, impressions, interactions
from tessera.errors import TesseraError

if TYPE_CHECKING:
    from tessera.db.engine import Database

#: An execution, and what it showed.
_Noted = tuple[dict[str, Any], Sequence[dict[str, Any]]]

logger = logging.getLogger("tessera.executions")

#: What was noted is written so much later, all of it together.
DELAY_S = 0.5
#: More than this is not held in memory: a database that cannot be written must not fill it.
MOST_PENDING = 20_000
_SWEEP_S = 3600.0


class ExecutionLog:
    """Notes executions and writes them down; one for each server."""

    def __init__(self, db: Database, log_days: float) -> None:
        self._db, self._log_days = db, log_days
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._pending: list[_Noted] = []
        self._timer: threading.Timer | None = None
        self._next_sweep = 0.0

    def note(self, row: dict[str, Any], shown: Sequence[dict[str, Any]] = ()) -> None:
        """Note one execution, a row of the table, with rows of what it showed; takes microseconds."""
        with self._lock:
            if len(self._pending) >= MOST_PENDING:
                return
            self._pending.append((row, shown))
            if self._timer is None:
                self._timer = threading.Timer(DELAY_S, self._later)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write what was noted so far; when it returns it can be read."""
        with self._flushing:
            with self._lock:
                noted, self._pending = self._pending, []
                timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            if noted:
                self._write(noted)

    def close(self) -> None:
        """Write what is left."""
        self._later()

    def _later(self) -> None:
        try:
            self.flush()
        except (TesseraError, sa.exc.SQLAlchemyError) as error:
            logger.warning("executions were not written: %s", error)

    def _write(self, noted: list[_Noted]) -> None:
        try:
            with self._db.write() as connection:
                connection.execute(executions.insert(), [row for row, _ in noted])
                if shown := [hit for _, hits in noted for hit in hits]:
                    connection.execute(impressions.insert(), shown)
                if time.monotonic() >= self._next_sweep:
                    self._next_sweep = time.monotonic() + _SWEEP_S
                    oldest = datetime.now(UTC) - timedelta(days=self._log_days)
                    limit = oldest.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                    connection.execute(sa.delete(executions).where(executions.c.created_at < limit))
                    told = sa.select(interactions.c.execution_id).where(
                        interactions.c.execution_id == impressions.c.execution_id
                    )
                    connection.execute(
                        sa.delete(impressions).where(impressions.c.created_at < limit, ~told.exists())
                    )
        except sa.exc.IntegrityError:
            # The retriever of one of them was deleted meanwhile: then each for itself.
            if len(noted) > 1:
                for one in noted:
                    self._write([one])
