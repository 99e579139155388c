"""Messages between the server and its host processes: a length, then a pickled tuple.

Both ends are this program, on one machine, over a socket pair that nobody else can reach; that is what
makes pickle safe here.

A request is ``(request_id, operation, view, arguments)``, an answer ``(request_id, outcome, value)`` with
outcome one of the words below.
"""

from __future__ import annotations

import copyreg
import dataclasses
import operator
import pickle
import struct
from typing import Any

from tessera.filters import Condition
from tessera.ports import DenseVector, Fusion, Part, Search, SparseText, View

#: Outcomes of a request; ``value`` is the answer, or the error's parts.
OK = "ok"
BAD_REQUEST = "bad_request"  # (message, details)
FAILED = "failed"  # message: the engine refused or failed
FULL = "full"  # message: the disk that holds the view is full
DAMAGED = "damaged"  # reason
LOST = "lost"  # message: the host does not have this view open
PANIC = "panic"  # message: the engine panicked and the host ends

_LENGTH = struct.Struct("<Q")


def _pack_by_position(kind: type[Any]) -> None:
    """Have values of a dataclass pickled as its arguments: by themselves frozen ones with slots take twice the time."""
    values = operator.attrgetter(*(field.name for field in dataclasses.fields(kind)))
    copyreg.pickle(kind, lambda value: (kind, values(value)))


for _kind in (View, DenseVector, SparseText, Search, Condition, Fusion, Part):  # what every search is made of
    _pack_by_position(_kind)


def packed(message: tuple[Any, ...]) -> bytes:
    """Return the bytes of one message."""
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)) + body


class Incoming:
    """Cuts the bytes that arrive into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Any, ...]]:
        """Take `data` and return the messages that are complete with it."""
        self._buffer += data
        messages = []
        position = 0
        while len(self._buffer) - position >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, position)
            end = position + _LENGTH.size + size
            if len(self._buffer) < end:
                break
            messages.append(pickle.loads(memoryview(self._buffer)[position + _LENGTH.size : end]))  # noqa: S301
            position = end
        del self._buffer[:position]
        return messages
