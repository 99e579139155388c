"""Counts by which fields filters choose, where no index serves them or one that was made by itself does.

Counted in memory; one thread hands the sums to the database's writer, and has what follows from them decided.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import sqlalchemy as sa

from tessera.db.engine import Database, insert_or_add, now
from tessera.db.tables import filter_uses
from tessera.filters import Filter, conditions, helpful_type
from tessera.index_choice import served_by
from tessera.models import PayloadIndex

logger = logging.getLogger("tessera.filter_uses")

#: Sums are written so long after the first use; what is unused is looked for so often.
DELAY_S = 1.0
SWEEP_S = 3600.0
#: More fields than this are not counted at once: filters are made by users.
_MOST_FIELDS = 10_000

COUNTING, MADE, REFUSED = "COUNTING", "MADE", "REFUSED"

#: Namespace, field, type of index.
Use = tuple[str, str, str]


class FilterUses:
    """Counts uses; `decide` is called in a thread of its own with the namespaces whose sums grew."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._counts: Counter[Use] = Counter()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._decide: Callable[[set[str]], None] = lambda _: None

    def start(self, decide: Callable[[set[str]], None]) -> None:
        """Begin to write and to decide; once an hour also for no namespace, when what is unused is dropped."""
        self._decide = decide
        self._thread = threading.Thread(target=self._run, name="filter-uses", daemon=True)
        self._thread.start()

    def note(self, namespace_id: str, asked: Iterable[Filter], indexes: Mapping[str, PayloadIndex]) -> None:
        """Count the conditions of `asked` that an index would serve, or one made by itself does."""
        for filter in asked:
            for condition in conditions(filter):
                index = indexes.get(condition.path)
                if index is None:
                    kind = helpful_type(condition) if condition.operator != "search" else None
                elif index.is_auto and served_by(condition, indexes) != "scan":
                    kind = str(index.type)
                else:
                    kind = None
                if kind is not None:
                    self._count((namespace_id, condition.path, kind))

    def _count(self, use: Use) -> None:
        with self._lock:
            if use in self._counts or len(self._counts) < _MOST_FIELDS:
                self._counts[use] += 1
        self._wake.set()

    def end(self) -> None:
        """Begin to decide nothing more."""
        self._stop.set()
        self._wake.set()

    def close(self) -> None:
        """Write what is left; what is being decided is ended first."""
        self.end()
        if self._thread is not None:
            self._thread.join(timeout=30)
        self._write()

    def _run(self) -> None:
        self._turn(set())
        while not self._stop.is_set():
            woken = self._wake.wait(SWEEP_S)
            if self._stop.wait(DELAY_S if woken else 0):
                return
            self._wake.clear()
            self._turn(self._write())

    def _turn(self, grown: set[str]) -> None:
        try:
            self._decide(grown)
        except Exception as error:  # noqa: BLE001  whatever it was, the next turn tries again
            logger.warning("indexes could not be decided on: %s", error)

    def _write(self) -> set[str]:
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return set()
        at = now()
        rows = [
            {
                "namespace_id": namespace_id,
                "field_name": field_name,
                "index_type": kind,
                "uses": uses,
                "last_used_at": at,
                "state": COUNTING,
            }
            for (namespace_id, field_name, kind), uses in counts.items()
        ]
        try:
            with self._db.write() as connection:
                insert_or_add(connection, filter_uses, rows, sums=("uses",), latest=("last_used_at",))
        except Exception as error:  # noqa: BLE001  what was not written counts the next time
            logger.warning("uses of filters were not written: %s", error)
            with self._lock:
                self._counts.update(counts)
            return set()
        return {namespace_id for namespace_id, _, _ in counts}


def uses_left(db: Database, namespace_id: str, field_name: str, kind: str, needed: int) -> int | None:
    """Return after how many more uses, of `needed`, a field gets an index by itself; None when it does not."""
    with db.read() as connection:
        row = connection.execute(
            sa.select(filter_uses.c.uses, filter_uses.c.state).where(
                filter_uses.c.namespace_id == namespace_id,
                filter_uses.c.field_name == field_name,
                filter_uses.c.index_type == kind,
            )
        ).one_or_none()
    if row is not None and row.state == REFUSED:
        return None
    return max(0, needed - (row.uses if row is not None else 0))
