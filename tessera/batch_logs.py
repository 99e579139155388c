"""The log of a batch: when it was submitted and taken up, by which attempt, how it ended.

Lines are written in the transaction of what they tell. They hold ids and counts, never words of a document: those
of rows that failed are read from the rows themselves, where erasing finds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import derivation, tiers
from tessera.db.engine import now
from tessera.db.tables import batch_logs, batch_rows, batches
from tessera.models.batches import BatchLogLine, Tier

Level = Literal["info", "warning", "error"]

#: Rows that failed are told one by one up to so many; `failed-documents` lists all.
MOST_FAILED_ROWS = 100


def write(
    connection: Connection,
    batch_id: str,
    namespace_id: str,
    message: str,
    *,
    level: Level = "info",
    tier_num: int | None = None,
) -> None:
    """Add a line; `tier_num` is that of the tier that it is about, None for the whole batch."""
    connection.execute(
        batch_logs.insert().values(
            batch_id=batch_id,
            namespace_id=namespace_id,
            tier_num=tier_num,
            level=level,
            message=message,
            created_at=now(),
        )
    )


def read(connection: Connection, batch_id: str, tier_num: int | None = None) -> list[BatchLogLine]:
    """Return the lines of a batch in the order of time, with its first failed rows; or those of one tier."""
    mine = batch_logs.c.batch_id == batch_id
    if tier_num is not None:
        mine &= batch_logs.c.tier_num.is_(None) | (batch_logs.c.tier_num == tier_num)
    row = (
        connection.execute(sa.select(batches).where(batches.c.batch_id == batch_id)).mappings().one_or_none()
    )
    stages = tiers.of(row) if row is not None else []
    lines = [
        BatchLogLine(timestamp=row.created_at, level=row.level, tier_num=row.tier_num, message=row.message)
        for row in connection.execute(sa.select(batch_logs).where(mine).order_by(batch_logs.c.line_id))
    ]
    # Sorting is stable, so that lines of one moment stay in their order.
    failed = [line for line in _failed(connection, batch_id, stages) if tier_num in (None, line.tier_num)]
    return sorted([*lines, *failed], key=lambda line: line.timestamp)


def _failed(connection: Connection, batch_id: str, stages: Sequence[Tier]) -> Iterator[BatchLogLine]:
    rows = connection.execute(
        sa.select(batch_rows)
        .where(batch_rows.c.batch_id == batch_id, batch_rows.c.status == "FAILED")
        .order_by(batch_rows.c.updated_at, batch_rows.c.object_id)
        .limit(MOST_FAILED_ROWS)
    )
    for row in rows:
        yield BatchLogLine(
            timestamp=row.updated_at,
            level="error",
            tier_num=tiers.number_of(stages, row.collection_id),
            message=f"{row.error_kind or 'unknown'}: {row.error_message or ''}",
            object_id=derivation.plain_id(row.object_id),
            collection_id=row.collection_id,
        )
