"""What is told of an execution beside its documents: each stage's statistics, the budget, the entry of the log."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

import orjson

from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.errors import TesseraError
from tessera.fusion import SHARE
from tessera.ids import new_id
from tessera.models.retrievers import BudgetLimits
from tessera.retriever_pages import Ranked
from tessera.retriever_plan import Plan
from tessera.stages.base import FIRST, Work

#: So many hits of a page are kept to learn from.
MOST_SHOWN = 50


class Note:
    """What is noted of one execution: when it began, how it ended."""

    def __init__(self, wh: Warehouse, plan: Plan, inputs: Mapping[str, Any]) -> None:
        self.execution_id = new_id("exec")
        self._wh, self._plan, self._inputs = wh, plan, inputs
        self._begun, self._created_at = time.perf_counter(), now()

    def elapsed_ms(self) -> float:
        return round((time.perf_counter() - self._begun) * 1000, 3)

    def ended(self, ranked: Ranked, body: Mapping[str, Any]) -> None:
        self._write(
            status=body["status"],
            statistics=_without_documents(body["stage_statistics"]),
            pagination=body["pagination"],
            error=body["error"],
            total_returned=len(ranked.hits),
            cache_hit=body["cache_hit"],
            shown=self._shown(ranked),
        )

    def failed(self, error: TesseraError) -> None:
        self._write(
            status="failed",
            statistics={"stages": {}, "total_time_ms": self.elapsed_ms(), "credits_used": 0.0},
            pagination=None,
            error=error.message,
            total_returned=0,
            cache_hit=False,
            shown=[],
        )

    def _shown(self, ranked: Ranked) -> list[dict[str, Any]]:
        """Return what a fusion with learned weights learns from: each search's share in the first hits of the page."""
        if ranked.offset is None:
            return []  # behind a document, and nobody counted how many there are before it
        shown = []
        for position, hit in enumerate(ranked.hits[:MOST_SHOWN], ranked.offset):
            signals = {
                name: told[SHARE] for name, told in (hit.signals or {}).items() if told.get(SHARE) is not None
            }
            if signals:
                shown.append(
                    {
                        "execution_id": self.execution_id,
                        "position": position,
                        "retriever_id": self._plan.retriever_id,
                        "document_id": hit.document_id,
                        "signals": signals,
                        "created_at": self._created_at,
                    }
                )
        return shown

    def _write(self, *, shown: list[dict[str, Any]], **told: Any) -> None:
        if not self._plan.retriever_id or self._wh.executions is None:
            return  # stages that are not stored have no log
        inputs = orjson.dumps(self._inputs, option=orjson.OPT_SORT_KEYS)
        self._wh.executions.note(
            {
                "execution_id": self.execution_id,
                "retriever_id": self._plan.retriever_id,
                "total_stages": len(self._plan.stages),
                "inputs_hash": hashlib.sha256(inputs).hexdigest()[:16],
                "duration_ms": self.elapsed_ms(),
                "created_at": self._created_at,
                "completed_at": now(),
                **told,
            },
            shown,
        )


def statistics_of(
    count_in: int, count_out: int, begun: float, work: Work, stopped: str | None
) -> dict[str, Any]:
    """Return what an answer tells of one stage that has ended."""
    told: dict[str, Any] = {
        "input_count": count_in,
        "output_count": count_out,
        "duration_ms": round((time.perf_counter() - begun) * 1000, 3),
        "efficiency": count_out / count_in if count_in else 0.0,
        "cache_hit": False,
        "error": stopped or work.error,
    }
    if work.llm_calls is not None:
        told |= {"llm_calls": work.llm_calls, "tokens_used": work.tokens_used or 0}
    metadata = dict(work.metadata)
    if work.facets is not None:
        metadata["facets"] = work.facets
    return {**told, "metadata": metadata} if metadata else told


def budget_told(credits_used: float, elapsed_ms: float, limits: BudgetLimits) -> dict[str, Any]:
    """Return the ``budget`` of an answer: what was taken, and what there may be."""
    return {
        "credits_used": credits_used,
        "credits_limit": limits.max_credits,
        "credits_remaining": (
            None if limits.max_credits is None else max(0.0, limits.max_credits - credits_used)
        ),
        "time_elapsed_ms": elapsed_ms,
        "time_limit_ms": limits.max_time_ms,
    }


def _without_documents(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Return statistics as the log keeps them: numbers, without what stages tell of documents and inputs.

    The log is no place that erasing has to clean: no facets, no terms, no message about a document.
    """
    stages = {}
    for name, told in statistics["stages"].items():
        kept = {key: value for key, value in told.items() if key != "metadata"}
        if kept["error"]:
            kept["error"] = kept["error"].partition(FIRST)[0]
        stages[name] = kept
    return {**statistics, "stages": stages}
