"""Progress of a task as people read it: how far, how fast, how long still. Never backwards, never done too early.

Pure: whoever works counts and gives the time, `tasks.py` shows what was written.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera.models.tasks import FINISHED, TaskProgress, TaskStatus

#: The rate is that of so many seconds: long enough for chunks of different size, short enough to follow a change.
WINDOW_S = 30.0
#: A rate over less time than this says nothing.
_SHORTEST_S = 0.25
#: What is not finished never shows more: the index still takes in what was extracted last.
_MOST_PERCENT = 99.0

_SUCCEEDED = frozenset({TaskStatus.COMPLETED, TaskStatus.COMPLETED_WITH_ERRORS})


@dataclass(slots=True)
class Meter:
    """Reckons rate and remaining time from counts as they come; `percent` is the most that was shown before."""

    percent: float = 0.0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def read(self, at_s: float, *, done: int, total: int) -> dict[str, float | None]:
        """Return `percent`, `rate_per_s` and `remaining_s` at `at_s` (monotonic seconds) with `done` of `total` rows.

        The rate is that of the last `WINDOW_S`; both it and the time are None while nothing is known.
        """
        while len(self._seen) > 1 and self._seen[1][0] <= at_s - WINDOW_S:
            self._seen.popleft()
        self._seen.append((at_s, done))
        since_s, before = self._seen[0]
        took_s = at_s - since_s
        rate = max(0, done - before) / took_s if took_s >= _SHORTEST_S else None
        self.percent = max(self.percent, _percent(done, total))
        return {
            "percent": self.percent,
            "rate_per_s": rate and round(rate, 3),
            "remaining_s": round((total - done) / rate, 1) if rate else None,
        }


def shown(status: str, told: Mapping[str, Any]) -> TaskProgress:
    """Return the progress of a task with `status` out of what it says of itself (its `additional_data`)."""
    total, done = int(told.get("total") or 0), int(told.get("done") or 0)
    has_ended = status in FINISHED
    succeeded = status in _SUCCEEDED
    before = float(told.get("percent") or 0.0)
    return TaskProgress(
        stage="done" if has_ended else str(told.get("stage") or "queued"),
        done=done,
        total=total,
        failed=int(told.get("failed") or 0),
        percent=max(before, percent(status, done, total)),
        rate_per_s=told.get("rate_per_s"),
        remaining_s=0.0 if succeeded else None if has_ended else told.get("remaining_s"),
    )


def percent(status: str, done: int, total: int) -> float:
    """Return the share of a task or batch with `status` that is done: 100 when it has succeeded, and only then."""
    return 100.0 if status in _SUCCEEDED else _percent(done, total)


def _percent(done: int, total: int) -> float:
    """Return the share that is done with one decimal, rounded down."""
    return min(_MOST_PERCENT, math.floor(1000 * done / total) / 10) if total else 0.0
