"""Interactions: what people did with hits, as clients tell it; stored, read, listed and deleted.

They are the tenant's data about its own users: durable, of one namespace, erased with the document that they speak of,
and told to no log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import listing, namespaces, retriever_definition
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import executions, impressions, retrievers
from tessera.db.tables import interactions as rows
from tessera.errors import NotFoundError, Problem, ValidationError, quote
from tessera.ids import new_id
from tessera.models.interactions import (
    CreatedInteraction,
    InteractionRequest,
    InteractionResponse,
    InteractionsBatchResponse,
    ListInteractionsRequest,
    ListInteractionsResponse,
    stored,
)
from tessera.pagination import PageRequest

#: Fields by which the database itself chooses.
_BY_COLUMN = ("execution_id", "retriever_id", "session_id", "user_id", "feature_id")
#: Ids in one statement.
_IDS = 500


def create(
    wh: Warehouse, principal: Principal, namespace: str, request: InteractionRequest
) -> InteractionResponse:
    """Store one interaction; durable when this returns.

    Raises `NotFoundError` for a retriever that the namespace has not, `ValidationError` for one that did not run the
    execution.
    """
    return _answer(_store(wh, principal, namespace, [request])[0])


def create_many(
    wh: Warehouse, principal: Principal, namespace: str, requests: Sequence[InteractionRequest]
) -> InteractionsBatchResponse:
    """Store all of `requests` in one transaction, or, when one of them is wrong, none."""
    made = _store(wh, principal, namespace, requests)
    results = [
        CreatedInteraction(index=index, interaction_id=row["interaction_id"])
        for index, row in enumerate(made)
    ]
    return InteractionsBatchResponse(created=len(made), results=results)


def get(wh: Warehouse, principal: Principal, namespace: str, interaction_id: str) -> InteractionResponse:
    """Return one interaction. Raises `NotFoundError`."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        return _answer(_find(connection, place["namespace_id"], interaction_id))


def delete(wh: Warehouse, principal: Principal, namespace: str, interaction_id: str) -> None:
    """Delete one interaction for good. Raises `NotFoundError`."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        _find(connection, place["namespace_id"], interaction_id)
        connection.execute(sa.delete(rows).where(rows.c.interaction_id == interaction_id))


def list_(
    wh: Warehouse, principal: Principal, namespace: str, page: PageRequest, request: ListInteractionsRequest
) -> ListInteractionsResponse:
    """List interactions, the newest first unless sorted otherwise.

    Raises `BadRequestError` when `filters`, `search` or `sort` would look at more of them than may be.
    """
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        named = {name: value for name in _BY_COLUMN if (value := getattr(request, name)) is not None}
        if request.retriever_id is not None:
            named["retriever_id"] = _known_as(connection, place["namespace_id"], request.retriever_id)
        which = [rows.c.namespace_id == place["namespace_id"]]
        which += [rows.c[name] == value for name, value in named.items()]
        chosen = (
            sa.select(rows).where(*which).order_by(rows.c.created_at.desc(), rows.c.interaction_id.desc())
        )
        total = connection.execute(sa.select(sa.func.count()).select_from(rows).where(*which)).scalar_one()
        if not (request.filters or request.search or request.sort or request.interaction_type):
            shown = connection.execute(chosen.limit(page.limit).offset(page.offset)).mappings().all()
            results = [_answer(row) for row in shown]
            stand = listing.stand(wh, page, total, len(results))
        else:
            listing.refuse_long_scan(wh, total, "interactions", "namespace")
            found = [_answer(row).model_dump(mode="json") for row in connection.execute(chosen).mappings()]
            cut, stand = listing.cut(wh, page, _chosen(found, request))
            total, results = stand.total, [InteractionResponse.model_validate(row) for row in cut]
    return ListInteractionsResponse(results=results, items=results, pagination=stand, total_count=total)


def forget_documents(connection: Connection, namespace_id: str, document_ids: Iterable[str]) -> int:
    """Remove every interaction with these documents, and that they were shown; return how many interactions."""
    ids = sorted(document_ids)
    own = sa.select(retrievers.c.retriever_id).where(retrievers.c.namespace_id == namespace_id)
    removed = 0
    for start in range(0, len(ids), _IDS):
        some = ids[start : start + _IDS]
        done = connection.execute(
            sa.delete(rows).where(rows.c.namespace_id == namespace_id, rows.c.feature_id.in_(some))
        )
        removed += done.rowcount
        # A document may have the same id as one of another namespace.
        connection.execute(
            sa.delete(impressions).where(
                impressions.c.document_id.in_(some), impressions.c.retriever_id.in_(own)
            )
        )
    return removed


def _store(
    wh: Warehouse, principal: Principal, namespace: str, requests: Sequence[InteractionRequest]
) -> list[dict[str, Any]]:
    if wh.executions is not None and any(request.execution_id for request in requests):
        wh.executions.flush()  # the execution may have ended this moment
    at = now()
    with wh.db.write() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        ran = _ran(connection, namespace_id, {request.execution_id for request in requests} - {None})
        named: dict[str, str] = {}
        problems: list[Problem] = []
        made = []
        for number, request in enumerate(requests):
            if request.retriever_id is not None and request.retriever_id not in named:
                found = retriever_definition.find(connection, namespace_id, request.retriever_id)
                named[request.retriever_id] = found["retriever_id"]
            stated = named.get(request.retriever_id or "")
            by = ran.get(request.execution_id or "", stated)
            if stated is not None and by != stated:
                problems.append(_mismatch(number, len(requests), request, by))
            made.append(
                {
                    "interaction_id": new_id("itx"),
                    "namespace_id": namespace_id,
                    **stored(request),
                    "retriever_id": by,
                    "occurred_at": _past(request.occurred_at, at),
                    "created_at": at,
                }
            )
        if problems:
            raise ValidationError(problems)
        connection.execute(rows.insert(), made)
    return made


def _known_as(connection: Connection, namespace_id: str, identifier: str) -> str:
    """Return the id of a retriever that is named; of one that is gone, whose interactions stay, its id as it is."""
    try:
        return str(retriever_definition.find(connection, namespace_id, identifier)["retriever_id"])
    except NotFoundError:
        return identifier


def _ran(connection: Connection, namespace_id: str, execution_ids: set[Any]) -> dict[str, str]:
    """Return which retriever of the namespace ran each of the executions that are still known."""
    ids = sorted(execution_ids)
    found: dict[str, str] = {}
    for start in range(0, len(ids), _IDS):
        known = connection.execute(
            sa.select(executions.c.execution_id, executions.c.retriever_id)
            .join(retrievers, retrievers.c.retriever_id == executions.c.retriever_id)
            .where(
                retrievers.c.namespace_id == namespace_id,
                executions.c.execution_id.in_(ids[start : start + _IDS]),
            )
        )
        found |= {execution_id: retriever_id for execution_id, retriever_id in known}
    return found


def _mismatch(number: int, of: int, request: InteractionRequest, by: str | None) -> Problem:
    place = ("body", "retriever_id") if of == 1 else ("body", "interactions", number, "retriever_id")
    return Problem(
        place,
        f"retriever_id is {quote(request.retriever_id)}, but execution {quote(request.execution_id)} was one of {by}. "
        "Leave retriever_id out: the execution says it.",
        "mismatch",
    )


def _past(moment: datetime | None, at: str) -> str | None:
    """Return a moment as the database holds it; no zone means UTC, and one to come is `at`."""
    if moment is None:
        return None
    try:
        utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        return at
    return min(f"{utc:%Y-%m-%dT%H:%M:%S.%f}Z".rjust(27, "0"), at)


def _find(connection: Connection, namespace_id: str, interaction_id: str) -> RowMapping:
    row = (
        connection.execute(
            sa.select(rows).where(
                rows.c.namespace_id == namespace_id, rows.c.interaction_id == interaction_id
            )
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise NotFoundError("interaction", interaction_id)
    return row


def _chosen(found: list[dict[str, Any]], request: ListInteractionsRequest) -> list[dict[str, Any]]:
    wanted = request.interaction_type
    of_type = [row for row in found if wanted is None or wanted in row["interaction_type"]]
    for row in of_type:
        # What filters of the older spelling name.
        row["created_at"] = row["timestamp"]
        row["_text"] = "\n".join(_texts(row["metadata"]))
    return listing.choose(
        of_type,
        filters=request.filters,
        search=request.search,
        search_in=("_text",),
        sort=(request.sort.field, request.sort.direction) if request.sort else None,
        id_field="interaction_id",
    )


def _texts(value: Any) -> Iterable[str]:
    """Yield every text in `metadata`, names of its fields left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _answer(row: Mapping[Any, Any]) -> InteractionResponse:
    told = {name: row[name] for name in InteractionResponse.model_fields if name in row}
    return InteractionResponse(**told, timestamp=row["created_at"])
