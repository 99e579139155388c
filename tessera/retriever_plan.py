"""A retriever, stored or sent along, made ready to run in its namespace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pydantic
from sqlalchemy.engine import RowMapping

from tessera import namespaces
from tessera.context import Principal, Warehouse
from tessera.errors import raise_problems
from tessera.models.retrievers import AdhocExecuteRequest, BudgetLimits, CacheConfig, InputField
from tessera.retriever_definition import (
    all_collections,
    checked_stages,
    collections_named,
    find,
    join_problems,
    secret_problems,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A retriever, ready to run in its namespace.

    `cache_ttl_s` is how long a result may be kept, null when it may not; `version` changes with the retriever;
    `limits` is what one execution may take.
    """

    place: RowMapping
    retriever_id: str
    collection_ids: list[str]
    stages: list[dict[str, Any]]
    fields: dict[str, InputField]
    cache_ttl_s: float | None = None
    version: str = ""
    limits: BudgetLimits = field(default_factory=BudgetLimits)


def stored_plan(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    wanted: Sequence[str] | None = None,
) -> tuple[Plan, RowMapping]:
    """Return a stored retriever, ready to run over its collections or those that are `wanted`, and its row.

    Both are shared with other executions: nobody changes them.
    """
    # Before the rows: what is committed while they are read makes them good for this execution only.
    version = wh.db.version()
    confined = principal.through is not None
    key = (principal.organization_id, namespace, identifier, tuple(wanted or ()), confined)
    kept: tuple[Plan, RowMapping] | None = wh.plans.get(version, key)
    if kept is not None:
        namespaces.check_admits(principal, kept[0].place, namespace)
        return kept
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        definition = row["definition"]
        if not wanted:
            # A collection deleted since then simply has no documents any more.
            found = definition["collection_ids"] or all_collections(connection, place["namespace_id"])
        else:
            own = definition["collection_ids"] if confined else None
            found, problems = collections_named(connection, place["namespace_id"], wanted, own)
            raise_problems(problems)
    fields = {name: InputField.model_validate(value) for name, value in definition["input_schema"].items()}
    stages = definition["stages"]
    ttl_s = _cache_ttl_s(definition.get("cache_config")) if _is_repeatable(wh, stages) else None
    limits = _limits(definition.get("budget_limits"))
    plan = Plan(place, row["retriever_id"], found, stages, fields, ttl_s, row["updated_at"], limits)
    size = len(orjson.dumps([key, list(place.values()), list(row.values()), found], default=repr))
    wh.plans.put(version, key, size, (plan, row))
    return plan, row


def _is_repeatable(wh: Warehouse, stages: Sequence[Mapping[str, Any]]) -> bool:
    found = (wh.registry.stage(spec["config"]["stage_id"]) for spec in stages)
    return all(stage is None or stage.is_repeatable for stage in found)


def _limits(stored: Mapping[str, Any] | None) -> BudgetLimits:
    try:
        return BudgetLimits.model_validate(stored or {})
    except pydantic.ValidationError:
        return BudgetLimits()  # of a release that took anything


def _cache_ttl_s(config: Mapping[str, Any] | None) -> float | None:
    if not config:
        return None
    try:
        read = CacheConfig.model_validate(config)
    except pydantic.ValidationError:
        return None  # of a release that took anything: then nothing is kept
    return read.ttl_seconds if read.enabled else None


def adhoc_plan(wh: Warehouse, principal: Principal, namespace: str, request: AdhocExecuteRequest) -> Plan:
    """Return the retriever that a request brings along, ready to run. Raises `ValidationError`."""
    wanted = list(request.collection_identifiers or [])
    for stage in request.stages:
        ids = stage.get("collection_ids")
        if isinstance(ids, list):
            wanted.extend(str(identifier) for identifier in ids)
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        stages, fields, problems = checked_stages(
            wh, place, request.stages, request.input_schema, declared=False
        )
        found, unknown = collections_named(connection, place["namespace_id"], wanted)
        problems += join_problems(connection, wh, place["namespace_id"], request.stages, stages, found)
        problems += secret_problems(connection, wh, principal, stages)
        raise_problems(problems + unknown)
        if not wanted:
            found = all_collections(connection, place["namespace_id"])
    return Plan(place, "", found, stages, fields, limits=request.budget_limits or BudgetLimits())
