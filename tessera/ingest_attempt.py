"""A batch in the hands of one server: how it was taken up, how it is told to end, and whether it still is ours."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera.db.tables import batches
from tessera.models.batches import Tier
from tessera.ports import Compute, DenseVector
from tessera.progress import Meter
from tessera.rates import Seen


class Superseded(Exception):
    """The batch was cancelled, retried or deleted while we worked on it; nothing of ours counts any more."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch as a server took it up: under which attempt, and under which token of its slot.

    `is_resumed` tells that it was begun before; `crashes` servers ended under it lately.
    """

    batch_id: str
    attempt: int
    holder: str
    is_resumed: bool = False
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """How a run is told to end: `park` at its next chunk, `drop` at once, with what is under way."""

    park: threading.Event = field(default_factory=threading.Event)
    drop: threading.Event = field(default_factory=threading.Event)

    def is_set(self) -> bool:
        """Whether the run shall end."""
        return self.park.is_set() or self.drop.is_set()


@dataclass(slots=True)
class Watch:
    """Which documents the log has changed since the rows at hand were read, looked at up to entry `seen`."""

    seen: int
    changed: set[str] = field(default_factory=set)
    #: There is no telling: entries were folded meanwhile.
    is_lost: bool = False


@dataclass(slots=True)
class _Pace:
    """When progress may be counted again: counting reads every row of the batch."""

    due_s: float = 0.0
    meter: Meter = field(default_factory=Meter)
    #: Whether a worker may have left an artifact behind that nothing names.
    litter: bool = False
    #: Servers that ended under the batch and are not forgiven yet: a chunk that is done forgives all.
    crashes: int = 0
    #: So many chunks are still to be done one by one.
    wary_chunks: int = 0
    #: What has changed under the documents that are being processed.
    watch: Watch = field(default_factory=lambda: Watch(0))
    #: Of the tier that runs; `meter` is that of the whole batch.
    tier_meter: Meter = field(default_factory=Meter)
    #: What its chunks took, from when on.
    seen: Seen = field(default_factory=Seen)
    began_s: float = field(default_factory=time.monotonic)
    #: How often each source had to be read again.
    rereads: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A batch as this server took it up."""

    batch_id: str
    number: int
    holder: str
    namespace_id: str
    internal_id: str
    bucket_id: str
    task_id: str | None
    #: As the batch's row has them; only the attempt that holds the batch writes them.
    tiers: list[Tier]
    vectors: tuple[DenseVector, ...]
    #: What the namespace fixed when it was made: parameters by extractor name, model id by vector name.
    locked: Mapping[str, Mapping[str, Any]]
    running: Mapping[str, str]
    #: Where its rows are extracted.
    compute: Compute
    pace: _Pace = field(default_factory=_Pace)


def links_of(compute: Compute) -> dict[str, str]:
    """Return where a batch that is extracted there can be watched, as its task tells it."""
    return {"ray_dashboard_url": compute.dashboard_url} if compute.dashboard_url else {}


def check_attempt(connection: Connection, attempt: Attempt) -> None:
    """Raise `Superseded` unless the batch is still ours."""
    # Locked until the transaction ends, so that nobody takes it up or cancels it in between.
    batch = connection.execute(
        sa.select(batches.c.status, batches.c.attempt, batches.c.holder)
        .where(batches.c.batch_id == attempt.batch_id)
        .with_for_update()
    ).one_or_none()
    if batch != ("IN_PROGRESS", attempt.number, attempt.holder):
        raise Superseded
