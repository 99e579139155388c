"""Calls into decoders that do not come back: in a worker they end the process, and the row that it held.

Native code cannot be interrupted, only ended with its process. A file of a few kilobytes can keep a decoder busy for
years; the limit of a whole chunk is there for that, but it leaves room for a film. One page, or one picture, has
much less.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: How a process ends whose call did not come back, as `subprocess` and others give it.
STATUS = -int(signal.SIGALRM)


@dataclass(slots=True)
class _Process:
    is_expendable: bool = False


_process = _Process()


def allow() -> None:
    """Say that this process may be ended by a call that does not come back; somebody knows what it was doing."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _process.is_expendable = True


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """End the process when the block takes longer, unless it is one that has to stay. Of several the shortest holds."""
    if not _process.is_expendable:
        yield
        return
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    if left_s:
        signal.setitimer(signal.ITIMER_REAL, min(left_s, seconds))
    try:
        yield
    finally:
        # What an outer block had left goes on from here; the time in this one is a gift, and small.
        signal.setitimer(signal.ITIMER_REAL, left_s)
