"""Executions of stored retrievers, as the API shows them; `execution_log.py` keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from tessera import namespaces, retriever_definition
from tessera.context import Principal, Warehouse
from tessera.db.tables import executions
from tessera.errors import NotFoundError
from tessera.models.base import JsonObject
from tessera.pagination import PageRequest, paginate


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
