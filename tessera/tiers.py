"""Tiers: the order in which the collections of a batch run, and how far each tier is.

Tier 0 reads what the batch was made of; every further tier reads documents that the tiers before it made. A batch
keeps its tiers in one column, so that what is written of them commits with what it speaks of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import new_tasks
from tessera.db.engine import now
from tessera.db.tables import batches, collections, tasks
from tessera.models.batches import Tier
from tessera.models.tasks import FINISHED, TaskStatus, TaskType

#: Longest chain of collections that feed each other.
MAX_TIERS = 16


class CycleError(ValueError):
    """Collections that read each other in a circle: no order exists in which they could run."""

    def __init__(self, members: Sequence[str]) -> None:
        super().__init__(f"These collections read each other in a circle: {' -> '.join(members)}.")
        self.members = list(members)


def sort(reads: Mapping[str, Sequence[str]], first: Sequence[str]) -> list[list[str]]:
    """Return `first` and every collection that is fed by them, sorted into the tiers in which they run.

    Pure. `reads` says of each collection which collections it reads. A collection stands one tier behind the last
    of those that feed it here, whatever else it reads; within a tier the order is that of `reads`. The collections
    of `first` are tier 0, even where one feeds another. Raises `CycleError`.
    """
    reached = set(first)
    waiting = list(first)
    readers: dict[str, list[str]] = {}
    for collection, feeding in reads.items():
        for source in feeding:
            readers.setdefault(source, []).append(collection)
    while waiting:
        new = [reader for reader in readers.get(waiting.pop(), ()) if reader not in reached]
        reached.update(new)
        waiting += new
    tiers = [list(dict.fromkeys(first))]
    placed = set(first)
    left = [collection for collection in reads if collection in reached - placed]
    while left:
        tier = [c for c in left if not reached.intersection(reads[c]).difference(placed)]
        if not tier:
            raise CycleError(_circle(reads, left))
        tiers.append(tier)
        placed.update(tier)
        left = [collection for collection in left if collection not in placed]
    return tiers


def _circle(reads: Mapping[str, Sequence[str]], left: Sequence[str]) -> list[str]:
    """Return the members of a circle among `left`, each of which reads another of them."""
    path = [left[0]]
    while path[-1] not in path[:-1]:
        path.append(next(source for source in reads[path[-1]] if source in left))
    return path[path.index(path[-1]) :]


# --- a namespace's collections -------------------------------------------------------------------------


def fed_by_collections(
    connection: Connection, namespace_id: str, *, disabled_too: bool = False
) -> dict[str, list[str]]:
    """Return, for each collection that is fed by collections, which ones it reads; the oldest first."""
    rows = connection.execute(
        sa.select(collections.c.collection_id, collections.c.source, collections.c.enabled)
        .where(collections.c.namespace_id == namespace_id)
        .order_by(collections.c.created_at, collections.c.collection_id)
    )
    return {
        row.collection_id: row.source["collection_ids"]
        for row in rows
        if row.source["type"] == "collection" and (row.enabled or disabled_too)
    }


def build(
    sorted_ids: Sequence[Sequence[str]],
    reads: Mapping[str, Sequence[str]],
    source_type: Literal["bucket", "collection"],
) -> list[Tier]:
    """Return tiers of these collections, none of them begun. Pure; `source_type` is what tier 0 reads."""
    made: list[Tier] = []
    before: set[str] = set()
    for number, ids in enumerate(sorted_ids):
        feeding = {source for collection_id in ids for source in reads.get(collection_id, ())}
        made.append(
            Tier(
                tier_num=number,
                source_type=source_type if number == 0 else "collection",
                status=TaskStatus.PENDING,
                collection_ids=list(ids),
                source_collection_ids=sorted(feeding if number == 0 else feeding & before) or None,
            )
        )
        before.update(ids)
    return made


# --- a batch's tiers -----------------------------------------------------------------------------------


def of(batch: Mapping[Any, Any]) -> list[Tier]:
    """Return the tiers of a batch's row; a batch of an older release has one."""
    if batch["tiers"] is not None:
        return [Tier.model_validate(tier) for tier in batch["tiers"]]
    if not batch["collection_ids"]:
        return []
    return [
        Tier(
            tier_num=0,
            source_type="bucket",
            status=TaskStatus.PENDING if batch["status"] == TaskStatus.DRAFT else TaskStatus(batch["status"]),
            task_id=batch["task_id"],
            collection_ids=batch["collection_ids"],
            is_planned=True,
        )
    ]


def stored(tiers: Sequence[Tier]) -> dict[str, Any]:
    """Return the columns of a batch that say which tiers it has."""
    return {
        "tiers": [tier.model_dump(mode="json") for tier in tiers],
        "collection_ids": [collection_id for tier in tiers for collection_id in tier.collection_ids],
    }


def current(tiers: Sequence[Tier]) -> int | None:
    """Return the number of the tier that runs, or ran last; None while none has begun."""
    begun = [tier.tier_num for tier in tiers if tier.status != TaskStatus.PENDING]
    return max(begun, default=None)


def number_of(tiers: Sequence[Tier], collection_id: str) -> int:
    """Return the tier of a collection; 0 for one that is in none."""
    return next((tier.tier_num for tier in tiers if collection_id in tier.collection_ids), 0)


def task_ids(tiers: Sequence[Tier], batch_task_id: str | None) -> list[str]:
    """Return the tasks of the tiers that are not that of the batch as a whole."""
    return [tier.task_id for tier in tiers if tier.task_id and tier.task_id != batch_task_id]


def put_in_line(
    connection: Connection,
    organization_id: str,
    batch: Mapping[Any, Any],
    tiers: Sequence[Tier],
    task_id: str,
    at: str,
) -> list[Tier]:
    """Return `tiers` as they wait to run, each of those that have not ended with a new task.

    The task of a batch's only tier is that of the batch.
    """
    if len(tiers) == 1:
        return [tiers[0].model_copy(update={"task_id": task_id})]
    waiting = []
    for tier in tiers:
        if tier.status in FINISHED:
            waiting.append(tier)
            continue
        own = new_tasks.add(
            connection,
            organization_id,
            batch["namespace_id"],
            TaskType.FEATURE_EXTRACTOR_RUN,
            [batch["batch_id"]],
            {
                "batch_id": batch["batch_id"],
                "bucket_id": batch["bucket_id"],
                "batch_task_id": task_id,
                "tier_num": tier.tier_num,
                "collection_ids": tier.collection_ids,
                "stage": "queued",
            },
            at,
        )
        waiting.append(tier.model_copy(update={"task_id": own}))
    return waiting


def end_open(
    connection: Connection, batch: Mapping[Any, Any], status: TaskStatus, error: str | None = None
) -> None:
    """End the tiers that have not ended, with their tasks: the batch was cancelled, or failed as a whole."""
    at = now()
    tiers = of(batch)
    open_tiers = [tier for tier in tiers if tier.status not in FINISHED]
    ended = [
        tier.model_copy(update={"status": status, "completed_at": at}) if tier in open_tiers else tier
        for tier in tiers
    ]
    connection.execute(
        sa.update(batches).where(batches.c.batch_id == batch["batch_id"]).values(tiers=stored(ended)["tiers"])
    )
    connection.execute(
        sa.update(tasks)
        .where(tasks.c.task_id.in_(task_ids(open_tiers, batch["task_id"])))
        .values(status=status, error=error, updated_at=at)
    )
