"""Retrievers: created, read, listed, copied, changed and deleted.

Everything about a retriever that can be wrong is found when it is created.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, limits, names, namespaces
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import evaluations, retrievers, tasks
from tessera.errors import AlreadyExistsError, BadRequestError, Problem, quote, raise_problems
from tessera.ids import new_id
from tessera.models.evaluations import OPEN
from tessera.models.retrievers import CloneRetrieverRequest, CreateRetrieverRequest, PatchRetrieverRequest
from tessera.models.tasks import TaskStatus
from tessera.pagination import PageRequest, paginate
from tessera.retriever_definition import (
    available_stages,
    checked_stages,
    collections_named,
    find,
    join_problems,
    name_problems,
    normalise_stage,
    secret_problems,
)

#: What of a retriever no PATCH changes.
FIXED_FIELDS = ("stages", "input_schema", "collection_identifiers", "budget_limits", "cache_config")


def create(
    wh: Warehouse, principal: Principal, namespace: str, request: CreateRetrieverRequest
) -> dict[str, Any]:
    """Store a retriever. Raises with everything that is wrong at once; a taken name is a 409."""
    at = now()
    retriever_name = names.clean(request.retriever_name)
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        namespace_id = place["namespace_id"]
        stages, fields, problems = checked_stages(
            wh, place, request.stages, request.input_schema, declared=request.input_schema is not None
        )
        problems += secret_problems(connection, wh, principal, stages)
        found, unknown = collections_named(connection, namespace_id, request.collection_identifiers)
        problems += join_problems(connection, wh, namespace_id, request.stages, stages, found)
        problems += unknown + name_problems(retriever_name)
        taken = connection.execute(
            sa.select(retrievers.c.retriever_id).where(
                retrievers.c.namespace_id == namespace_id,
                retrievers.c.retriever_name == retriever_name,
            )
        ).scalar()
        if not problems and taken:
            raise AlreadyExistsError(
                f"A retriever named {quote(retriever_name)} exists in this namespace ({taken}). Choose another "
                "name, or delete that one.",
                details={"resource": "retriever", "id": taken},
            )
        raise_problems(problems)
        row = {
            "retriever_id": new_id("ret"),
            "namespace_id": namespace_id,
            "retriever_name": retriever_name,
            "description": request.description,
            "definition": {
                "collection_identifiers": request.collection_identifiers,
                "collection_ids": found,
                "stages": stages,
                "input_schema": {name: field.model_dump(exclude_none=True) for name, field in fields.items()},
                "budget_limits": (
                    request.budget_limits.model_dump(exclude_none=True) if request.budget_limits else None
                ),
                "cache_config": request.cache_config.model_dump() if request.cache_config else None,
                "tags": request.tags,
                "visibility": request.visibility,
                "display_config": request.display_config,
            },
            "version": 1,
            "created_at": at,
            "updated_at": at,
        }
        limits.check_quota(wh, connection, principal, "retrievers")
        connection.execute(retrievers.insert().values(**row))
        audit.record(
            connection,
            principal,
            "retriever_created",
            "retriever",
            row["retriever_id"],
            {"name": row["retriever_name"]},
        )
    return _answer(row)


def get(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> dict[str, Any]:
    """Return a retriever by id or name."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        return _answer(find(connection, place["namespace_id"], identifier))


def list_(
    wh: Warehouse, principal: Principal, namespace: str, page: PageRequest, body: Mapping[str, Any]
) -> dict[str, Any]:
    """List retrievers, newest first; `search` is a substring of name or description."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        condition = retrievers.c.namespace_id == place["namespace_id"]
        search = body.get("search")
        if isinstance(search, str) and search:
            condition &= sa.or_(
                retrievers.c.retriever_name.icontains(search, autoescape=True),
                retrievers.c.description.icontains(search, autoescape=True),
            )
        total = connection.execute(
            sa.select(sa.func.count()).select_from(retrievers).where(condition)
        ).scalar_one()
        rows = (
            connection.execute(
                sa.select(retrievers)
                .where(condition)
                .order_by(retrievers.c.created_at.desc(), retrievers.c.retriever_id)
                .limit(page.limit)
                .offset(page.offset)
            )
            .mappings()
            .all()
        )
    return {
        "results": [_answer(row) for row in rows],
        "total": total,
        "total_count": total,
        "pagination": paginate(wh, page, total, len(rows)),
    }


def clone(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: CloneRetrieverRequest
) -> dict[str, Any]:
    """Store another retriever like this one, under a name of its own; what the request states replaces what it has.

    Everything is checked as for a new one; a taken name is a 409.
    """
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        source = find(connection, place["namespace_id"], identifier)
    definition = source["definition"]
    inherited = {
        name: definition[name]
        for name in CreateRetrieverRequest.model_fields
        if name in definition and name not in ("collection_ids", "retriever_name")
    }
    # By id: a name may stand for another collection by now.
    inherited |= {
        "collection_identifiers": definition["collection_ids"],
        "description": source["description"],
    }
    stated = request.model_dump(exclude_none=True)
    made = create(wh, principal, namespace, CreateRetrieverRequest.model_validate({**inherited, **stated}))
    return {**made, "retriever": made, "source_retriever_id": source["retriever_id"]}


def patch(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: PatchRetrieverRequest
) -> dict[str, Any]:
    """Change a retriever's metadata; absent fields stay. What it does is fixed: another value of that is refused."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = dict(find(connection, place["namespace_id"], identifier))
        raise_problems(_fixed_problems(wh, row, request))
        given = request.model_dump(exclude_unset=True, exclude=set(FIXED_FIELDS))
        if not given:
            return _answer(row)
        name = names.clean(given.pop("retriever_name", None) or row["retriever_name"])
        if name != row["retriever_name"]:
            raise_problems(name_problems(name))
            taken = connection.execute(
                sa.select(retrievers.c.retriever_id).where(
                    retrievers.c.namespace_id == place["namespace_id"], retrievers.c.retriever_name == name
                )
            ).scalar()
            if taken:
                raise AlreadyExistsError(
                    f"A retriever named {quote(name)} exists in this namespace ({taken}). Choose another name.",
                    details={"resource": "retriever", "id": taken},
                )
            row["retriever_name"] = name
        if "description" in given:
            row["description"] = given.pop("description")
        row["definition"] = {**row["definition"], **given}
        row["updated_at"] = now()
        connection.execute(
            sa.update(retrievers)
            .where(retrievers.c.retriever_id == row["retriever_id"])
            .values(
                retriever_name=row["retriever_name"],
                description=row["description"],
                definition=row["definition"],
                updated_at=row["updated_at"],
            )
        )
        audit.record(
            connection,
            principal,
            "retriever_updated",
            "retriever",
            row["retriever_id"],
            {"fields": sorted(request.model_fields_set.difference(FIXED_FIELDS))},
        )
    return _answer(row)


def _fixed_problems(wh: Warehouse, row: Mapping[str, Any], request: PatchRetrieverRequest) -> list[Problem]:
    """Return a problem for each field that is fixed and would change; sent back as it was read it is none."""
    definition = row["definition"]
    problems = []
    for name in FIXED_FIELDS:
        value = getattr(request, name)
        if value is None or value == definition.get(name):
            continue
        if name == "collection_identifiers" and value == definition["collection_ids"]:
            continue
        if (
            name == "stages"
            and [normalise_stage(wh, raw, n)[0] for n, raw in enumerate(value)] == (definition["stages"])
        ):
            continue
        problems.append(
            Problem(
                ("body", name),
                f"{name} of a retriever is fixed when it is created. POST /v1/retrievers/{row['retriever_id']}/clone "
                f"makes another one with other {name}.",
                "fixed",
                BadRequestError.status,
            )
        )
    return problems


def delete(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> str:
    """Delete a retriever with its evaluations, and return its id; one that is under way is cancelled."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        _end_evaluations(connection, row["retriever_id"])
        connection.execute(sa.delete(retrievers).where(retrievers.c.retriever_id == row["retriever_id"]))
        audit.record(
            connection,
            principal,
            "retriever_deleted",
            "retriever",
            row["retriever_id"],
            {"name": row["retriever_name"]},
        )
    return str(row["retriever_id"])


def _end_evaluations(connection: Connection, retriever_id: str) -> None:
    """Let the tasks of evaluations end that go with their retriever: nothing else would."""
    going = sa.select(evaluations.c.task_id).where(
        evaluations.c.retriever_id == retriever_id,
        evaluations.c.status.in_(OPEN),
    )
    ended = {"status": TaskStatus.CANCELED, "error": "The retriever was deleted.", "updated_at": now()}
    connection.execute(sa.update(tasks).where(tasks.c.task_id.in_(going)).values(**ended))


def stage_catalogue(wh: Warehouse, category: str | None = None) -> list[dict[str, Any]]:
    """Describe every stage that can be used, with the JSON schema of its parameters."""
    return [
        stage.described()
        for _, stage in sorted(available_stages(wh).items())
        if category is None or stage.category == category
    ]


def _answer(row: Mapping[str, Any] | RowMapping) -> dict[str, Any]:
    definition = row["definition"]
    return {
        "retriever_id": row["retriever_id"],
        "retriever_name": row["retriever_name"],
        "description": row["description"],
        "collection_identifiers": definition["collection_identifiers"],
        "collection_ids": definition["collection_ids"],
        "stages": definition["stages"],
        "input_schema": definition["input_schema"],
        "budget_limits": definition["budget_limits"],
        "cache_config": definition["cache_config"],
        "tags": definition["tags"] or [],
        "visibility": definition["visibility"],
        "display_config": definition["display_config"],
        "fusion": None,
        "version": row["version"],
        "is_published": False,
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
