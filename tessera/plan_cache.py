"""Plans of stored retrievers, kept in memory for as long as nothing at all was committed to the database.

A plan is good for exactly one **version** of the database (`Database.version`), which was read before its rows were. A
change of a retriever, a namespace or a collection that was answered moves the version on, whichever server made it;
so does everything else that is committed. Nothing has to be told to forget.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

#: An entry takes so much besides what its rows hold as JSON.
_OVERHEAD_BYTES = 4096


class PlanCache:
    """What was prepared of rows, by what was asked for; the ones that were asked for least recently go first.

    `max_bytes` counts the rows as JSON; objects in memory take a few times as much.
    """

    def __init__(self, max_bytes: int = 8 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[Hashable, int, Any]] = OrderedDict()
        self._bytes = 0

    def get(self, version: Hashable | None, key: Hashable) -> Any:
        """Return what was prepared for `key` at this very version; None when nothing was, or no version is known."""
        if version is None:
            return None
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry[0] != version:
                return None
            self._entries.move_to_end(key)
            return entry[2]

    def put(self, version: Hashable | None, key: Hashable, size: int, prepared: Any) -> None:
        """Keep what was prepared of rows that were read after `version` was, and take `size` bytes as JSON."""
        size += _OVERHEAD_BYTES
        if version is None or size > self._max_bytes // 8:
            return
        with self._lock:
            self._remove(key)
            self._entries[key] = (version, size, prepared)
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._remove(next(iter(self._entries)))

    def _remove(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]
