"""Executions of stored retrievers, as the API shows them; `execution_log.py` keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tessera import namespaces, retriever_definition
from tessera.context import Principal, Warehouse
from tessera.db.tables import executions
from tessera.errors import NotFoundError
from tessera.models.base import JsonObject
from tessera.pagination import PageRequest, paginate

#: So many executions tell what a stage takes.
_LAST = 20


def list_(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    page: PageRequest,
    status: str | None,
) -> JsonObject:
    """List a retriever's executions, the newest first."""
    if wh.executions is not None:
        wh.executions.flush()
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        retriever = retriever_definition.find(connection, place["namespace_id"], identifier)
        which = [executions.c.retriever_id == retriever["retriever_id"]]
        if status is not None:
            which.append(executions.c.status == status)
        total = connection.execute(
            sa.select(sa.func.count()).select_from(executions).where(*which)
        ).scalar_one()
        rows = connection.execute(
            sa.select(executions)
            .where(*which)
            .order_by(executions.c.created_at.desc(), executions.c.execution_id)
            .limit(page.limit)
            .offset(page.offset)
        ).mappings()
        results = [_summary(row) for row in rows]
    return {
        "results": results,
        "pagination": {
            **paginate(wh, page, total, len(results)),
            # What the official clients read of this list.
            "limit": page.limit,
            "offset": page.offset,
            "has_next": page.offset + len(results) < total,
        },
        "total": total,
    }


def get(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, execution_id: str
) -> JsonObject:
    """Return one execution with the statistics of its stages. Raises `NotFoundError`."""
    if wh.executions is not None:
        wh.executions.flush()
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        retriever = retriever_definition.find(connection, place["namespace_id"], identifier)
        row = (
            connection.execute(
                sa.select(executions).where(
                    executions.c.execution_id == execution_id,
                    executions.c.retriever_id == retriever["retriever_id"],
                )
            )
            .mappings()
            .one_or_none()
        )
    if row is None:
        raise NotFoundError("execution", execution_id)
    stages = row["statistics"].get("stages", {})
    return {
        **_summary(row),
        "retriever_id": row["retriever_id"],
        "documents": [],
        "results": [],
        "documents_retained": False,
        "pagination": row["pagination"],
        "stage_statistics": row["statistics"],
        "budget": {
            "credits_used": row["statistics"].get("credits_used", 0.0),
            "credits_limit": None,
            "time_elapsed_ms": row["duration_ms"],
        },
        "error": row["error"],
        "cache_hit": row["cache_hit"],
        "stages_completed": len(stages),
        "total_stages": row["total_stages"],
        "current_stage": None,
    }


@dataclass(slots=True)
class Seen:
    """What a stage took in so many executions, all together."""

    executions: int = 0
    documents: int = 0
    duration_ms: float = 0.0
    tokens: int = 0

    def share(self, documents: int) -> float:
        """Return which part of it a run over so many documents is: by documents, where any came to the stage."""
        return documents / self.documents if self.documents else 1 / self.executions


def seen_of(wh: Warehouse, retriever_id: str) -> dict[str, Seen]:
    """Return what each stage of a retriever took in its last executions that went through."""
    if wh.executions is not None:
        wh.executions.flush()
    with wh.db.read() as connection:
        kept = connection.execute(
            sa.select(executions.c.statistics)
            .where(
                executions.c.retriever_id == retriever_id,
                executions.c.status == "completed",
                executions.c.cache_hit.is_(False),
            )
            .order_by(executions.c.created_at.desc())
            .limit(_LAST)
        ).scalars()
        found: dict[str, Seen] = {}
        for statistics in kept:
            for name, told in statistics.get("stages", {}).items():
                seen = found.setdefault(name, Seen())
                seen.executions += 1
                seen.documents += told["input_count"]
                seen.duration_ms += told["duration_ms"]
                seen.tokens += told.get("tokens_used") or 0
    return found


def _summary(row: Mapping[Any, Any]) -> JsonObject:
    stages = row["statistics"].get("stages", {})
    return {
        "execution_id": row["execution_id"],
        "status": row["status"],
        "created_at": row["created_at"],
        "completed_at": row["completed_at"],
        "duration_ms": row["duration_ms"],
        "credits_used": row["statistics"].get("credits_used", 0.0),
        "total_processed": sum(stage["input_count"] for stage in stages.values()),
        "total_returned": row["total_returned"],
        "cache_hit_rate": float(row["cache_hit"]),
        "inputs_hash": row["inputs_hash"],
        "query_summary": None,
    }
