"""Results of retrievers, kept in memory under what they were read at, so that no write is ever hidden by them.

A result is good for exactly one **position**: the view and the log entry up to which it was applied, read before the
search. Whatever is written to the namespace afterwards, to any of its collections, moves the position on, and the
result is not met any more. Nothing has to be told to forget; `forget` is for what must not be remembered at all.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """A result, packed, and the ETag of the answer that was made of it."""

    packed: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class _Entry:
    position: Hashable
    expires_at: float
    kept: Kept


class ResultCache:
    """Results of all namespaces, at most `max_bytes` of them; the ones that were asked for least recently go first."""

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        self._bytes = 0

    def get(self, namespace_id: str, position: Hashable, key: bytes) -> Kept | None:
        """Return the result that was read for `key` at this very position, if its time is not over."""
        with self._lock:
            entry = self._entries.get((namespace_id, key))
            if entry is None:
                return None
            if entry.position != position or entry.expires_at <= time.monotonic():
                self._remove((namespace_id, key))
                return None
            self._entries.move_to_end((namespace_id, key))
            return entry.kept

    def put(self, namespace_id: str, position: Hashable, key: bytes, kept: Kept, ttl_s: float) -> None:
        """Keep a result that was read at `position`, or later, for `ttl_s` seconds at most."""
        with self._lock:
            self._remove((namespace_id, key))
            if len(kept.packed) > self._max_bytes // 8:
                return  # one that would push out many
            self._entries[namespace_id, key] = _Entry(position, time.monotonic() + ttl_s, kept)
            self._bytes += len(kept.packed)
            while self._bytes > self._max_bytes:
                self._remove(next(iter(self._entries)))

    def forget(self, namespace_id: str) -> None:
        """Keep nothing of a namespace: documents of it are being erased, or it is gone."""
        with self._lock:
            for place in [place for place in self._entries if place[0] == namespace_id]:
                self._remove(place)

    def _remove(self, place: tuple[str, bytes]) -> None:
        entry = self._entries.pop(place, None)
        if entry is not None:
            self._bytes -= len(entry.kept.packed)
