"""Explain: how a retriever would run, without running it.

For each stage the rows that come and go, for each condition of a filter the index that serves it, its kind and how
many documents it lets through, and for what no index serves a warning with the request that adds one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from sqlalchemy.engine import RowMapping

from tessera import executions, retriever_context, retriever_definition, retriever_plan, templates
from tessera.context import Principal, Warehouse
from tessera.errors import BadRequestError, ValidationError, quote
from tessera.filter_uses import uses_left
from tessera.filters import And, Condition, Filter, conditions, helpful_type, parse
from tessera.index_choice import served_by
from tessera.models import PayloadIndex
from tessera.models.base import JsonObject
from tessera.models.retrievers import ExplainRequest
from tessera.stages.base import Stage

#: Parameters that bound what a stage hands on, whichever it has.
_BOUNDS = ("final_top_k", "limit", "top_n", "size", "max_groups")
#: What a stage takes in ms: a part of its own, one for each document, and one for turning a query into a vector.
#: Orders of magnitude (`make bench ARGS=hot_path` has figures): they tell which stage is the slow one, no more.
_STAGE_MS, _DOCUMENT_MS, _EMBED_MS = 0.3, 0.002, 5.0


def explain(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: ExplainRequest
) -> JsonObject:
    """Return the plan of a stored retriever for these inputs; what needs an input that is not given is told so."""
    plan, row = retriever_plan.stored_plan(wh, principal, namespace, identifier)
    inputs, missing = _inputs(plan, request.inputs)
    seen = executions.seen_of(wh, plan.retriever_id)
    reading = _Reading(wh, plan, inputs, request.filters, seen)
    stages = [reading.stage(index, spec) for index, spec in enumerate(plan.stages)]
    duration_ms = round(sum(stage["estimated_duration_ms"] for stage in stages), 3)
    slowest = max(stages, key=lambda stage: stage["estimated_duration_ms"])
    unknown = [stage["stage_name"] for stage in stages if stage["estimate_basis"] == "unknown"]
    suggestions = [
        suggestion for stage in stages for suggestion in stage.pop("_suggestions") if suggestion is not None
    ]
    return {
        "retriever_id": plan.retriever_id,
        "retriever_name": row["retriever_name"],
        "estimated_cost": {
            "total_credits": round(sum(stage["estimated_cost_credits"] for stage in stages), 6),
            "total_duration_ms": duration_ms,
        },
        "execution_plan": stages,
        "total_estimated_stages": len(stages),
        # What asks a model is slower than anything that is estimated by rule.
        "bottleneck_stages": unknown or [slowest["stage_name"]],
        "optimization_suggestions": _once(suggestions),
        "optimization_applied": False,
        "missing_inputs": missing,
    }


def _inputs(plan: retriever_plan.Plan, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the inputs with their defaults, and the names of those that an execution would ask for.

    Raises for what was given and is not of its type, as an execution would.
    """
    retriever_context.check_inputs(plan.fields, given)
    inputs = {name: field.default for name, field in plan.fields.items()} | dict(given)
    missing = [name for name, field in plan.fields.items() if field.required and inputs.get(name) is None]
    return {name: value for name, value in inputs.items() if name not in missing}, missing


class _Reading:
    """Goes through the stages as an execution would, with counts in the place of documents."""

    def __init__(
        self,
        wh: Warehouse,
        plan: retriever_plan.Plan,
        inputs: dict[str, Any],
        filters: Mapping[str, Any] | None,
        seen: Mapping[str, executions.Seen],
    ) -> None:
        self._wh, self._plan, self._inputs, self._seen = wh, plan, inputs, seen
        self._namespace_id: str = plan.place["namespace_id"]
        self._context = retriever_context.context_of(wh, plan, inputs, None)
        self._collections = self._context.within
        self._requested = parse(filters, inputs=inputs) if filters else None
        if self._requested is not None:
            self._within(self._requested)
        #: Documents that come to the next stage; the collections' own while none has read any.
        self._rows = self._count(self._context.within)
        self._is_read = False
        self._results: dict[str, Any] = {}

    def stage(self, index: int, spec: Mapping[str, Any]) -> JsonObject:
        """Return the plan of one stage and go on behind it."""
        stage = self._wh.registry.stage(spec["config"]["stage_id"])
        if stage is None:
            raise BadRequestError(
                f"Stage {quote(spec['config']['stage_id'])} of this retriever is not installed any more."
            )
        notes: list[str] = []
        params = self._params(stage, spec, index, notes)
        before = self._rows
        asked: list[tuple[str, Filter]] = []
        if index == 0 and self._requested is not None:
            asked.append(("the request's filters", self._requested))
        # Parameters that lack an input are a dictionary of those that are known: no condition can be made of them.
        is_known = params is not None and not isinstance(params, dict)
        if is_known:
            notes += stage.notes(params, self._context)
        narrowed = stage.narrow(params, self._context) if is_known and not self._is_read else None
        if narrowed is not None:
            asked.append(("its conditions", narrowed))
            self._within(narrowed)
            self._rows = self._count(self._context.within)
            notes.append("It is not run by itself: the next stage searches within its conditions.")
        else:
            asked += self._filters_of(stage, params)
            self._rows = _handed_on(stage, params, before)
            self._is_read = True
        name = (
            spec["stage_name"] if spec["stage_name"] not in self._results else f"{spec['stage_name']}_{index}"
        )
        self._results[name] = {"count": self._rows}
        told = [self._told(source, condition) for source, filter in asked for condition in conditions(filter)]
        scanned = sum(item["served_by"] != "index" for item in told) * before
        embeds = _EMBED_MS if any(stage.searches_in(spec["config"]["parameters"])) else 0.0
        duration_ms = _STAGE_MS + embeds + _DOCUMENT_MS * (self._rows + scanned)
        estimate, unknown = self._estimate(stage, spec, name, before, duration_ms)
        return {
            "stage_index": index,
            "stage_name": spec["stage_name"],
            "stage_type": stage.category,
            "stage_id": stage.stage_id,
            "estimated_input": before,
            "estimated_output": self._rows,
            "estimated_efficiency": min(1.0, self._rows / before) if before else 0.0,
            **estimate,
            "cache_likely": self._plan.cache_ttl_s is not None,
            "filters": told,
            "optimization_notes": notes,
            "warnings": [*unknown, *(item["warning"] for item in told if item["warning"])],
            "_suggestions": [item.pop("_suggestion") for item in told],
        }

    def _estimate(
        self, stage: Stage, spec: Mapping[str, Any], name: str, documents: int, ruled_ms: float
    ) -> tuple[JsonObject, list[str]]:
        """Return credits and time of a stage, and a warning where what it asks has not been measured yet.

        A stage that asks somebody takes what it took in the retriever's last executions; others go by rule.
        """
        asks = stage.asks(spec["config"]["parameters"], retriever_definition.equipment_of(self._wh))
        seen = self._seen.get(name)
        estimate = {
            "estimated_cost_credits": 0.0,
            "estimated_duration_ms": round(ruled_ms, 3),
            "estimate_basis": "rule" if asks is None else "unknown",
        }
        if asks is None:
            return estimate, []
        if seen is None:
            warning = (
                f"unknown: asks {asks}, and no execution of this retriever is in the log yet. Time and credits are "
                "those of everything else; execute it once to have them measured."
            )
            return estimate, [warning]
        share = seen.share(documents)
        credits = seen.tokens * share / self._wh.settings.llm_tokens_per_credit
        return {
            "estimated_cost_credits": round(credits, 6),
            "estimated_duration_ms": round(max(ruled_ms, seen.duration_ms * share), 3),
            "estimate_basis": "measured",
        }, []

    def _params(self, stage: Stage, spec: Mapping[str, Any], index: int, notes: list[str]) -> Any:
        scope = {"INPUT": self._inputs, "STAGE": self._results, "CONTEXT": {}}
        try:
            return retriever_context.stage_params(stage, spec, scope, index)
        except ValidationError:
            known = {
                name: value
                for name, value in spec["config"]["parameters"].items()
                if name in _BOUNDS and not templates.is_template(value)
            }
            notes.append("Some of its parameters come from inputs that are not given: send `inputs`.")
            return known

    def _filters_of(self, stage: Stage, params: Any) -> list[tuple[str, Filter]]:
        """Return the filters of a search's own; what a later stage asks of documents in hand needs no index."""
        if self._is_read or isinstance(params, dict):
            return []
        found = []
        for _, searching in stage.searches_in(params.model_dump()):
            for number, search in enumerate(searching["searches"]):
                parsed = parse(search["filters"], inputs=self._inputs) if search["filters"] else None
                if parsed is not None:
                    found.append((f"filters of search {number}", parsed))
        return found

    def _within(self, asked: Filter) -> None:
        self._context = retriever_context.narrowed(self._context, asked)

    def _count(self, filter: Filter) -> int:
        """Return how many documents pass; 0 is returned for a view that cannot be asked so many."""
        found = self._counted(filter)
        return found if found is not None else 0

    def _counted(self, filter: Filter) -> int | None:
        try:
            return self._wh.views.count(self._namespace_id, filter)
        except BadRequestError:
            return None  # more than may be looked at without an index

    def _told(self, source: str, condition: Condition) -> JsonObject:
        """Return what serves one condition, and what would."""
        indexes = self._context.indexes
        index = indexes.get(condition.path)
        served = served_by(condition, indexes)
        warning, suggestion = None, None
        if served != "index" and condition.operator != "search":
            suggestion = _command(self._plan.place, condition) if index is None else None
            warning = _warning(condition, index, served, suggestion)
            if suggestion is not None and self._plan.place["auto_create_indexes"]:
                warning += self._by_itself(condition, suggestion)
        return {
            "source": source,
            "field": condition.path,
            "operator": condition.operator,
            "index": condition.path if index is not None and served != "scan" else None,
            "index_type": str(index.type) if index is not None else None,
            "is_auto": index is not None and index.is_auto,
            "served_by": served,
            "estimated_points": self._counted(And((self._collections, condition))),
            "warning": warning,
            "_suggestion": suggestion,
        }

    def _by_itself(self, condition: Condition, suggestion: JsonObject) -> str:
        kind = suggestion["body"]["payload_indexes"][-1]["type"]
        settings = self._wh.settings
        left = uses_left(self._wh.db, self._namespace_id, condition.path, kind, settings.auto_index_uses)
        if left is None:
            return " auto_create_indexes tried it: it does not hold every document's value."
        least = settings.auto_index_documents
        return f" auto_create_indexes does it after {left} more uses, from {least} documents on."


# --- pure ------------------------------------------------------------------------------------------------


def _command(place: RowMapping, condition: Condition) -> JsonObject | None:
    """Return the request that adds the index: the user's own indexes with one more, for PATCH replaces them."""
    type = helpful_type(condition)
    if type is None:
        return None
    own = [
        {
            name: stored[name]
            for name in ("field_name", "type", "field_schema")
            if stored.get(name) is not None
        }
        for stored in place["user_indexes"] or ()
    ]
    return {
        "reason": f"{condition.path} has no index",
        "method": "PATCH",
        "path": f"/v1/namespaces/{place['namespace_id']}",
        "body": {"payload_indexes": [*own, {"field_name": condition.path, "type": type}]},
    }


def _warning(
    condition: Condition, index: PayloadIndex | None, served: str, suggestion: JsonObject | None
) -> str:
    asked = f"{condition.path} {condition.operator}"
    if suggestion is not None:
        body = orjson.dumps(suggestion["body"]).decode()
        return (
            f"{asked} looks into each document, because {condition.path} has no index. Add it: "
            f"{suggestion['method']} {suggestion['path']} {body}"
        )
    if index is None:
        return f"{asked} looks into each document: no index serves {condition.operator}."
    if served == "partly":
        return f"{asked} is narrowed down by the {index.type} index and then looks into what is left."
    return f"{asked} looks into each document: the {index.type} index does not answer it with this value."


def _handed_on(stage: Stage, params: Any, rows: int) -> int:
    values = params if isinstance(params, dict) else params.model_dump()
    held = [values, *(searching for _, searching in stage.searches_in(values))]
    bounds = [each.get(name) for each in held for name in _BOUNDS]
    return min([rows, *(bound for bound in bounds if isinstance(bound, int))])


def _once(suggestions: list[JsonObject]) -> list[JsonObject]:
    return list({orjson.dumps(item): item for item in suggestions}.values())
