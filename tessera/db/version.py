"""Whether anything was committed to SQLite since: for what is kept in memory of rows and must never be behind them."""

from __future__ import annotations

import itertools
import threading
from typing import Any

from sqlalchemy.engine import Engine

#: What is read of the database: which connection read it, and the number that it read.
Version = tuple[int, int]

#: Numbers of connections: what one has read says nothing about what another one reads.
_connections = itertools.count(1)


class DataVersion:
    """Reads ``PRAGMA data_version`` on a connection that it keeps and that never writes; about 5 µs.

    The number is another one after any commit of any other connection, of this process or of another one, and after
    what only looks like one (a write-ahead log that begins anew). It means nothing to other connections.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: Any = None
        self._connection = 0
        #: Reads that were begun.
        self._begun = 0
        self._last: Version | None = None
        self._is_closed = False

    def read(self) -> Version | None:
        """Return the version that the database has now, or had at some moment since the call began; None when unknown.

        Rows that are read afterwards are of this version or a later one.
        """
        begun = self._begun
        with self._lock:
            # Of several callers that waited one reads for all: a read that began after a call is good for that call.
            if self._begun == begun:
                self._begun += 1
                self._last = self._read()
            return self._last

    def close(self) -> None:
        """Let go of the kept connection; from here on nothing is known."""
        with self._lock:
            self._is_closed = True
            self._last = None
            kept, self._kept = self._kept, None
            if kept is not None:
                kept.close()

    def _read(self) -> Version | None:
        if self._is_closed:
            return None
        try:
            if self._kept is None:
                self._kept = self._engine.raw_connection()
                self._connection = next(_connections)
            cursor = self._kept.dbapi_connection.execute("PRAGMA data_version")
            # To the last row: a statement that stood open would hold a snapshot, and the number would never change.
            ((number,),) = cursor.fetchall()
            cursor.close()
        except Exception:  # noqa: BLE001  the driver's own; whoever asks reads the rows and meets it there
            kept, self._kept = self._kept, None
            if kept is not None:
                kept.invalidate()
            return None
        return self._connection, int(number)
