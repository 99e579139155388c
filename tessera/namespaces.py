"""Namespaces: create, find, list, change, delete, purge; and on whose Qdrant and Ray each one runs.

Creating one is a single write transaction: the row and the first log entry, which says what is indexed.
Its view is made on first use, so that a namespace costs neither files nor memory before it holds
something.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, failpoints, idempotency, limits, listing, log, names, new_tasks
from tessera.config import Settings
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.migrate import remove_copies
from tessera.db.tables import (
    api_keys,
    buckets,
    collections,
    doomed_views,
    filter_uses,
    log_entries,
    namespaces,
    objects,
    organizations,
    purges,
    tasks,
)
from tessera.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    NotEnabledError,
    NotFoundError,
    Problem,
    QdrantError,
    StorageError,
    TesseraError,
    UnavailableError,
    ValidationError,
    quote,
)
from tessera.filters import Condition, Filter
from tessera.ids import new_id
from tessera.models import JsonObject, PayloadIndex
from tessera.models.namespaces import (
    ComputeTier,
    ListNamespacesRequest,
    NamespaceInfrastructure,
    NamespaceSort,
)
from tessera.models.tasks import TaskStatus, TaskType
from tessera.pagination import PageRequest, paginate
from tessera.plan import (
    NamespaceChange,
    effective_indexes,
    keeps_key,
    keeps_token,
    plan_namespace,
    plan_patch,
    plan_update,
    stored_indexes,
    without_auto,
)
from tessera.ports import DenseVector, SparseText, View

logger = logging.getLogger("tessera.namespaces")

CREATE_ROUTE = "POST /v1/namespaces"

Row = Mapping[str, Any] | RowMapping

_ID = re.compile(r"ns_[0-9a-f]{16}\Z")
#: What the first word of a scope's operation amounts to; all others (``execute_retriever`` …) only read.
_RANK = {"read": 1, "write": 2, "modify": 2, "delete": 3, "manage": 4, "admin": 4}
#: After a sweep that failed, the next one.
_AGAIN_S = 10
#: A view that was provisioned for a creation that never ended is dropped after this time.
_PROVISIONING_S = 120
#: A view that a namespace has left is dropped when every request that may still read it has ended.
_GRACE_S = 90
#: A change of payload indexes over many documents is waited for this long.
_INDEX_PATIENCE_S = 20
#: Time to reach a Ray head; nothing more is asked of it while a namespace is created.
_RAY_CONNECT_S = 2.0
_URL_FIELDS = ("qdrant_url", "ray_head_node_url", "ray_dashboard_url")
_SECRETS = ("qdrant_api_key", "ray_auth_token")


# --- infrastructure ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backend:
    """A Qdrant and a Ray that somebody brought. Key and token are sealed, and never part of an answer."""

    compute_tier: ComputeTier = ComputeTier.SHARED
    qdrant_url: str | None = None
    ray_head_node_url: str | None = None
    ray_dashboard_url: str | None = None
    qdrant_api_key: str | None = field(default=None, repr=False)
    ray_auth_token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Backend:
        """Read what a namespace or an organization states; None states nothing."""
        stored = stored or {}
        return cls(
            ComputeTier(stored.get("compute_tier") or ComputeTier.SHARED),
            *(stored.get(name) for name in (*_URL_FIELDS, *_SECRETS)),
        )


@dataclass(frozen=True, slots=True)
class Resolved:
    """The backend in force, and who brought it."""

    backend: Backend
    source: Literal["namespace", "organization", "server"]


def resolve_infrastructure(namespace: Backend, organization: Backend | None, server: Backend) -> Resolved:
    """Return whose infrastructure a namespace uses: its own dedicated, else its organization's, else the server's.

    Only a dedicated tier takes part: URLs that stand beside ``shared`` are kept and shown, but nothing
    is routed by them.
    """
    if namespace.compute_tier != ComputeTier.SHARED:
        return Resolved(namespace, "namespace")
    if organization is not None and organization.compute_tier != ComputeTier.SHARED:
        return Resolved(organization, "organization")
    return Resolved(server, "server")


def place_of(
    infrastructure: Mapping[str, Any], of_organization: Mapping[str, Any] | None
) -> JsonObject | None:
    """Return where a namespace's view shall live; None for the server's own default. Pure.

    On the namespace's own infrastructure `qdrant_collection` is the alias by which its owner knows it; on
    the organization's it is only a name.
    """
    resolved = resolve_infrastructure(
        Backend.of(infrastructure), Backend.of(of_organization) if of_organization else None, Backend()
    )
    if resolved.source == "server":
        return None
    backend = resolved.backend
    return {
        "source": resolved.source,
        "compute_tier": backend.compute_tier.value,
        "qdrant_url": backend.qdrant_url,
        "qdrant_api_key": backend.qdrant_api_key,
        "ray_head_node_url": backend.ray_head_node_url,
        "ray_dashboard_url": backend.ray_dashboard_url,
        "ray_auth_token": backend.ray_auth_token,
        "alias": infrastructure["qdrant_collection"] if resolved.source == "namespace" else None,
    }


def _same_store(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Say whether two places are one collection on one server (or both the server's default)."""
    if one is None or other is None:
        return one is other
    return (one["qdrant_url"], one["alias"]) == (other["qdrant_url"], other["alias"])


def server_backend(settings: Settings) -> Backend:
    """Return what the server itself offers to shared namespaces."""
    return Backend(ComputeTier.SHARED, settings.qdrant_url, settings.ray_head_node_url)


# --- finding -----------------------------------------------------------------------------------------


def _count_in(table: sa.Table, name: str) -> sa.Label[int]:
    return (
        sa.select(sa.func.count())
        .select_from(table)
        .where(table.c.namespace_id == namespaces.c.namespace_id)
        .scalar_subquery()
        .label(name)
    )


#: Everything that an answer shows, in one statement.
_SHOWN = sa.select(
    namespaces,
    organizations.c.infrastructure.label("organization_infrastructure"),
    _count_in(buckets, "bucket_count"),
    _count_in(collections, "collection_count"),
    _count_in(objects, "object_count"),
).join(organizations, organizations.c.organization_id == namespaces.c.organization_id)

_MINE = namespaces.c.organization_id == sa.bindparam("organization_id")
_BY_ID = namespaces.c.namespace_id == sa.bindparam("identifier")
_BY_NAME = namespaces.c.namespace_name == sa.bindparam("identifier")
_ROW_BY_ID, _ROW_BY_NAME = (sa.select(namespaces).where(_MINE, by) for by in (_BY_ID, _BY_NAME))
_LOCKED_BY_ID, _LOCKED_BY_NAME = (row.with_for_update() for row in (_ROW_BY_ID, _ROW_BY_NAME))
_INSERT = namespaces.insert()
_OF_ORGANIZATION = sa.select(organizations.c.infrastructure).where(
    organizations.c.organization_id == sa.bindparam("organization_id")
)
_SHOWN_BY_ID, _SHOWN_BY_NAME = (_SHOWN.where(_MINE, by) for by in (_BY_ID, _BY_NAME))


def resolve(connection: Connection, principal: Principal, identifier: str) -> RowMapping:
    """Return the row of the namespace with this id, or else of this name.

    Raises `NotFoundError` for what does not exist, belongs to another organization or lies outside the
    key's scope: the three cannot be told apart.
    """
    return _find(connection, principal, identifier, _ROW_BY_ID, _ROW_BY_NAME)


def row_of(connection: Connection, namespace_id: str) -> RowMapping:
    """Return the row of a namespace for work that nobody asks for now. Raises `NotFoundError`."""
    found = connection.execute(sa.select(namespaces).where(namespaces.c.namespace_id == namespace_id))
    row = found.mappings().one_or_none()
    if row is None:
        raise NotFoundError("namespace", namespace_id)
    return row


def _find(
    connection: Connection,
    principal: Principal,
    identifier: str,
    by_id: sa.Select[Any],
    by_name: sa.Select[Any],
) -> RowMapping:
    wanted = names.clean(identifier)
    row = (
        connection.execute(
            by_id if _ID.match(wanted) else by_name,
            {"organization_id": principal.organization_id, "identifier": wanted},
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise NotFoundError("namespace", identifier)
    check_admits(principal, row, identifier)
    return row


def check_admits(principal: Principal, row: Row, identifier: str) -> None:
    """Raise what `resolve` does when the key's scopes do not let it into this namespace of its organization."""
    if not principal.scopes:
        return
    if not in_scope(principal, row["namespace_id"], row["namespace_name"]):
        raise NotFoundError("namespace", identifier)
    _check_operation(principal, row["namespace_id"], row["namespace_name"])


def in_scope(principal: Principal, namespace_id: str, namespace_name: str) -> bool:
    """Say whether the key may see this namespace. A key without scopes sees the whole organization.

    A scope names ids or names, ``*`` standing for any characters.
    """
    return not principal.scopes or any(_scopes_on(principal, namespace_id, namespace_name))


def _scopes_on(
    principal: Principal, namespace_id: str, namespace_name: str
) -> Iterator[Mapping[str, object]]:
    """Yield the key's scopes that name this namespace."""
    for scope in principal.scopes:
        pattern = str(scope.get("resource_id", "")).replace("[", "[[]").replace("?", "[?]")
        if scope.get("resource_type") == "organization":
            named: tuple[str, ...] = (principal.organization_id,)
        elif scope.get("resource_type") == "namespace":
            named = (namespace_id, namespace_name)
        else:
            continue
        if any(fnmatchcase(name, pattern) for name in named):
            yield scope


def _check_operation(principal: Principal, namespace_id: str, namespace_name: str) -> None:
    """Refuse what the key may see, but not do: a scope may allow less than the key's permissions."""
    if not principal.scopes:
        return
    allowed = 0
    for scope in _scopes_on(principal, namespace_id, namespace_name):
        operations = scope.get("operations")
        if not isinstance(operations, list):
            return
        allowed = max(allowed, *(_RANK.get(str(word).partition("_")[0], 1) for word in operations), 0)
    if allowed < _RANK[principal.asks]:
        raise ForbiddenError(
            f"This key may see namespace {quote(namespace_name)}, but its scope there does not allow to "
            f"{'change' if principal.asks == 'write' else principal.asks} it. An admin can give it a wider scope.",
            details={"required": principal.asks},
        )


def get(wh: Warehouse, principal: Principal, identifier: str) -> JsonObject:
    """Return a namespace by id or name. `document_count` is exact as of what the view has applied."""
    with wh.db.read() as connection:
        row = _find(connection, principal, identifier, _SHOWN_BY_ID, _SHOWN_BY_NAME)
    return answer(wh, row)


def list_(
    wh: Warehouse, principal: Principal, page: PageRequest, request: ListNamespacesRequest
) -> JsonObject:
    """List namespaces, the newest first unless sorted otherwise; no view is opened."""
    sort = request.sorts[0] if request.sorts else request.sort
    by_time = sort is None or sort.field == "created_at"
    if by_time and not (request.filters or request.search or principal.scopes):
        newest_first = sort is None or sort.direction == "desc"
        rows, total, position = _page_by_time(wh, principal, page, newest_first=newest_first)
    else:
        rows, total = _page_of_chosen(wh, principal, page, request, sort)
        position = None
    results = [answer(wh, row) for row in rows]
    return {
        "results": results,
        "pagination": paginate(wh, page, total, len(results), position),
        "total_count": total,
        "stats": _list_stats(results),
    }


def _page_by_time(
    wh: Warehouse, principal: Principal, page: PageRequest, *, newest_first: bool
) -> tuple[Sequence[RowMapping], int, JsonObject | None]:
    """Read one page straight from the index; a cursor goes on behind the row that it names."""
    place = sa.tuple_(namespaces.c.created_at, namespaces.c.namespace_id)
    mine = namespaces.c.organization_id == principal.organization_id
    order = [c.desc() if newest_first else c.asc() for c in place]
    wanted = _SHOWN.where(mine).order_by(*order).limit(page.limit)
    behind = (page.position or {}).get("k")
    if behind is None:
        wanted = wanted.offset(page.offset)
    else:
        last = sa.tuple_(*(sa.literal(value) for value in behind))
        wanted = wanted.where(place < last if newest_first else place > last)
    with wh.db.read() as connection:
        rows = connection.execute(wanted).mappings().all()
        total = connection.execute(
            sa.select(sa.func.count()).select_from(namespaces).where(mine)
        ).scalar_one()
    return rows, total, {"k": [rows[-1]["created_at"], rows[-1]["namespace_id"]]} if rows else None


#: What lists filter, search and sort by.
_CHOSEN_BY = (
    "namespace_id",
    "namespace_name",
    "description",
    "namespace_type",
    "created_at",
    "updated_at",
    "document_count",
)


def _page_of_chosen(
    wh: Warehouse,
    principal: Principal,
    page: PageRequest,
    request: ListNamespacesRequest,
    sort: NamespaceSort | None,
) -> tuple[list[RowMapping], int]:
    """Look at a few columns of every namespace, then read the rows of the page."""
    case_sensitive = bool(request.case_sensitive)
    _check_filter_fields(listing.parse_filters(request.filters, case_sensitive=case_sensitive))
    with wh.db.read() as connection:
        every = connection.execute(
            sa.select(*(namespaces.c[name] for name in _CHOSEN_BY))
            .where(namespaces.c.organization_id == principal.organization_id)
            .order_by(namespaces.c.created_at.desc(), namespaces.c.namespace_id.desc())
        ).mappings()
        seen = [
            {**row, "document_count": wh.views.document_count(row["namespace_id"], row["document_count"])}
            for row in every
            if in_scope(principal, row["namespace_id"], row["namespace_name"])
        ]
        chosen = listing.choose(
            seen,
            filters=request.filters,
            search=request.search,
            search_in=("namespace_id", "namespace_name", "description"),
            sort=(sort.field, sort.direction) if sort is not None else None,
            id_field="namespace_id",
            case_sensitive=case_sensitive,
        )
        ids = [row["namespace_id"] for row in chosen[page.offset : page.offset + page.limit]]
        rows = {
            row["namespace_id"]: row
            for row in connection.execute(_SHOWN.where(namespaces.c.namespace_id.in_(ids))).mappings()
        }
    return [rows[namespace_id] for namespace_id in ids], len(chosen)


def _check_filter_fields(wanted: Filter | None) -> None:
    unknown = sorted(set(_fields_of(wanted)) - set(_CHOSEN_BY)) if wanted is not None else []
    if unknown:
        raise ValidationError(
            [
                Problem(
                    ("body", "filters", name),
                    f"filters name {quote(name)}, which namespaces are not filtered by; known are "
                    f"{', '.join(_CHOSEN_BY)}.",
                    "unknown_field",
                )
                for name in unknown
            ]
        )


def _fields_of(wanted: Filter) -> Iterator[str]:
    if isinstance(wanted, Condition):
        yield wanted.path
    else:
        for child in wanted.children:
            yield from _fields_of(child)


def _list_stats(results: Sequence[JsonObject]) -> JsonObject:
    """Return totals and averages over the namespaces that are shown."""
    totals = {
        "feature_extractors": sum(len(item["feature_extractors"]) for item in results),
        "payload_indexes": sum(len(item["payload_indexes"]) for item in results),
        "documents": sum(item["document_count"] for item in results),
        "buckets": sum(item["bucket_count"] for item in results),
        "collections": sum(item["collection_count"] for item in results),
        "objects": sum(item["object_count"] for item in results),
    }
    count = len(results) or 1
    return {f"total_{name}": total for name, total in totals.items()} | {
        f"avg_{name}_per_namespace": total / count for name, total in totals.items()
    }


# --- answering ---------------------------------------------------------------------------------------


def answer(wh: Warehouse, row: Row) -> JsonObject:
    """Return a namespace as the API shows it: every field, always, and no secret."""
    user_indexes = row["user_indexes"]
    named = {index["field_name"] for index in user_indexes}
    return {
        "object": "namespace",
        "namespace_id": row["namespace_id"],
        "namespace_name": row["namespace_name"],
        "namespace_type": row["namespace_type"],
        "infrastructure": _shown_infrastructure(wh.settings, row),
        "cluster_id": None,
        "description": row["description"],
        "feature_extractors": [
            {**item, "feature_extractor_id": f"{item['feature_extractor_name']}_{item['version']}"}
            for item in row["feature_extractors"]
        ],
        "payload_indexes": [
            *user_indexes,
            *(index for index in row["added_indexes"] if index["field_name"] not in named),
        ],
        "payload_index_count": len(user_indexes),
        "document_count": wh.views.document_count(row["namespace_id"], row["document_count"]),
        "document_count_complete": True,
        "bucket_count": row["bucket_count"],
        "collection_count": row["collection_count"],
        "object_count": row["object_count"],
        "auto_create_indexes": row["auto_create_indexes"],
        "vector_inference_map": row["vector_inference_map"],
        "mode": "managed",
        "namespace_ready": True,
        "clone_status": None,
        "source_namespace_id": None,
        "expires_at": None,
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


def _shown_infrastructure(settings: Settings, row: Row) -> JsonObject:
    """Return the infrastructure that the namespace really runs on, and whose it is; no secret."""
    place = row["place"]
    shown = {name: value for name, value in row["infrastructure"].items() if name not in _SECRETS}
    shown["compute_tier"] = place["compute_tier"] if place else ComputeTier.SHARED.value
    shown["source"] = place["source"] if place else "server"
    if place and place["source"] == "organization":
        shown.update({name: place[name] for name in _URL_FIELDS})
    return shown


# --- creating ----------------------------------------------------------------------------------------


def create(
    wh: Warehouse, principal: Principal, body: object, *, idempotency_key: str | None = None
) -> JsonObject:
    """Create the namespace that `body` asks for and return it.

    When this returns the namespace is durable. Repeating it with the same `idempotency_key` and body
    makes nothing and returns what the first call made.

    Raises `ValidationError` or `BadRequestError` with everything that is wrong, `AlreadyExistsError` when
    only the name (or, on a dedicated Qdrant, the collection) is taken, `QdrantError` or `UnavailableError`
    when dedicated infrastructure cannot be reached: then nothing is left behind, here or there.
    """
    _authorize_infrastructure(wh, principal, body)
    once = idempotency.once(principal, CREATE_ROUTE, idempotency_key, body)
    plan = plan_namespace(body, wh.registry)
    namespace_id = new_id("ns")
    if not in_scope(principal, "", plan.namespace_name):
        raise ForbiddenError(
            f"This key is limited to other namespaces and cannot create {quote(plan.namespace_name)}. Use a key "
            "without scopes, or one whose scope matches that name."
        )
    _check_operation(principal, "", plan.namespace_name)
    at = now()
    row: dict[str, Any] = {
        "namespace_id": namespace_id,
        "organization_id": principal.organization_id,
        "namespace_name": plan.namespace_name,
        "description": plan.description,
        "namespace_type": plan.namespace_type,
        "feature_extractors": list(plan.feature_extractors),
        "user_indexes": _dumped(plan.user_indexes),
        "added_indexes": _dumped(plan.added_indexes),
        "vectors": list(plan.vectors),
        "sparse_vectors": list(plan.sparse_vectors) or None,
        "vector_inference_map": dict(plan.vector_inference_map),
        "infrastructure": _stored_infrastructure(wh, plan.infrastructure),
        "auto_create_indexes": plan.auto_create_indexes,
        "head": 0,
        "view_id": f"{namespace_id}-1",
        "generation": 1,
        "mark_seq": 0,
        "document_count": 0,
        "created_at": at,
        "updated_at": at,
    }
    with wh.db.read() as connection:
        of_organization = connection.execute(
            _OF_ORGANIZATION, {"organization_id": principal.organization_id}
        ).scalar()
        place = row["place"] = place_of(row["infrastructure"], of_organization)
        if place is not None and once is not None:
            made = idempotency.find(connection, once)
            if made is not None:
                return _made_before(wh, principal, made)
        if place is not None and _name_is_taken(connection, principal, plan.namespace_name):
            raise _name_taken(plan.namespace_name)
    if place is None:
        first = _insert(wh, principal, row, plan.indexes, once)
    else:
        row["mark_seq"] = 1
        view = wh.views.view_at(
            namespace_id,
            row["view_id"],
            tuple(DenseVector(**v) for v in row["vectors"]),
            place,
            SparseText.all_of(row["sparse_vectors"]),
        )
        try:
            with _provisioned(wh, view, plan.indexes, 1, place):
                first = _insert(wh, principal, row, plan.indexes, once)
                if first is not None:
                    raise _MadeBeforeError
        except _MadeBeforeError:
            pass
    if first is not None:
        return _made_before(wh, principal, first)
    return answer(
        wh,
        {
            **row,
            "organization_infrastructure": of_organization,
            "bucket_count": 0,
            "collection_count": 0,
            "object_count": 0,
        },
    )


def _insert(
    wh: Warehouse,
    principal: Principal,
    row: Mapping[str, Any],
    indexes: Sequence[PayloadIndex],
    once: idempotency.Once | None,
) -> str | None:
    """Insert the namespace and its first log entry; return the id that an earlier such request made, or None.

    From the commit on a view that was provisioned for it is in use, so it is no longer due to be dropped.
    """
    try:
        with wh.db.write() as connection:
            if once is not None:
                first = idempotency.claim(connection, once, row["namespace_id"])
                if first is not None:
                    return first
            limits.check_quota(wh, connection, principal, "namespaces")
            connection.execute(_INSERT, row)
            audit.record(
                connection,
                principal,
                "namespace_created",
                "namespace",
                row["namespace_id"],
                {"name": row["namespace_name"]},
            )
            log.append_indexes(connection, row["namespace_id"], indexes)
            if row["place"] is not None:
                connection.execute(sa.delete(doomed_views).where(doomed_views.c.view_id == row["view_id"]))
    except sa.exc.IntegrityError as error:
        raise _name_taken(row["namespace_name"]) from error
    failpoints.reach("namespace.committed")
    return None


class _MadeBeforeError(Exception):
    """While a view was provisioned, the same request came to its end elsewhere; ours is undone."""


@contextmanager
def _provisioned(
    wh: Warehouse, view: View, indexes: Sequence[PayloadIndex], seq: int, place: JsonObject
) -> Iterator[None]:
    """Make `view` on dedicated infrastructure for the block that begins to use it, and undo it when that fails.

    What is to be undone is written down first: when the server is killed in between, `drop_doomed` does it.
    """
    _check_ray(place["ray_head_node_url"])
    # The first contact makes nothing: a server that is not there or refuses the key leaves nothing to undo.
    wh.views.drop(view)
    with wh.db.write() as connection:
        _check_alias(connection, view.namespace_id, place)
        _check_alone(connection, view.namespace_id)
        connection.execute(
            doomed_views.insert().values(
                view_id=view.view_id,
                namespace_id=view.namespace_id,
                place=place,
                due_at=_in(_PROVISIONING_S),
            )
        )
    try:
        wh.views.provision(view, indexes, seq)
        failpoints.reach("namespaces.provisioned")
        yield
    except BaseException as error:
        with wh.db.write() as connection:
            connection.execute(
                sa.update(doomed_views).where(doomed_views.c.view_id == view.view_id).values(due_at=now())
            )
        if isinstance(error, QdrantError) and error.retryable:
            # A server that went away in the middle would only keep the caller waiting once more.
            wh.jobs.wake()
        else:
            drop_doomed(wh, view.view_id)
        raise


def _check_alias(connection: Connection, namespace_id: str, place: JsonObject) -> None:
    """Refuse the collection of another namespace, be it that one is only just being made.

    A Qdrant server would let the later of two requests at once take the alias from the earlier.
    """
    if place["alias"] is None:
        return
    for table in (namespaces, doomed_views):
        taken = connection.execute(
            sa.select(table.c.namespace_id)
            .where(
                table.c.namespace_id != namespace_id,
                table.c.place["alias"].as_string() == place["alias"],
                table.c.place["qdrant_url"].as_string() == place["qdrant_url"],
            )
            .limit(1)
        ).scalar()
        if taken is not None:
            raise AlreadyExistsError(
                f"The collection {quote(place['alias'])} at {place['qdrant_url']} belongs to another namespace. It is "
                "left as it is; choose another qdrant_collection.",
                details={"resource": "collection", "id": place["alias"]},
            )


def _check_alone(connection: Connection, namespace_id: str) -> None:
    """Refuse a second move while a first is under way: they would take the alias from each other."""
    used = connection.execute(
        sa.select(namespaces.c.view_id).where(namespaces.c.namespace_id == namespace_id)
    ).scalar()
    doomed = connection.execute(
        sa.select(doomed_views.c.view_id).where(
            doomed_views.c.namespace_id == namespace_id, doomed_views.c.due_at > now()
        )
    ).scalars()
    # Views that were left behind are doomed too, and older than the one in use.
    if used is not None and any(_generation(view_id) > _generation(used) for view_id in doomed):
        raise ConflictError(
            "Another request is changing the infrastructure of this namespace. Send this one again when it has ended.",
            details={"namespace_id": namespace_id},
        )


def _generation(view_id: str) -> int:
    return int(view_id.rpartition("-")[2])


def end_provisioning(wh: Warehouse) -> None:
    """Let every doomed view be dropped now: those who were making it or reading it ended with an earlier server."""
    waits = doomed_views.c.due_at > now()
    with wh.db.read() as connection:
        if connection.execute(sa.select(doomed_views.c.view_id).where(waits).limit(1)).scalar() is None:
            return
    with wh.db.write() as connection:
        connection.execute(sa.update(doomed_views).where(waits).values(due_at=now()))


def drop_doomed(wh: Warehouse, view_id: str) -> None:
    """Drop a view that nothing refers to, if it is due. Can be repeated; one that cannot be dropped now waits."""
    with wh.db.read() as connection:
        row = connection.execute(
            sa.select(doomed_views).where(doomed_views.c.view_id == view_id, doomed_views.c.due_at <= now())
        ).one_or_none()
    if row is None:
        return
    this = doomed_views.c.view_id == view_id
    try:
        wh.views.drop(wh.views.view_at(row.namespace_id, view_id, (), row.place))
    except (TesseraError, OSError) as error:
        logger.warning("view %s is not dropped yet, next try in %d s: %s", view_id, _AGAIN_S, error)
        with wh.db.write() as connection:
            connection.execute(sa.update(doomed_views).where(this).values(due_at=_in(_AGAIN_S)))
        return
    with wh.db.write() as connection:
        connection.execute(sa.delete(doomed_views).where(this))


def due_to_drop(connection: Connection) -> list[str]:
    """Return the views that are to be dropped now."""
    return list(
        connection.execute(sa.select(doomed_views.c.view_id).where(doomed_views.c.due_at <= now())).scalars()
    )


def _check_ray(url: str) -> None:
    """Try to reach a Ray head for 2 s. Raises `UnavailableError` that names it."""
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 10001), _RAY_CONNECT_S):
            return
    except OSError as error:
        raise UnavailableError(
            f"The Ray head at {parts.hostname}:{parts.port or 10001} cannot be reached: {error.strerror or error}. "
            "Nothing was created; start it, or correct ray_head_node_url, and send the request again.",
            details={"ray_head_node_url": url},
            retry_after_s=5,
        ) from None


def _name_is_taken(connection: Connection, principal: Principal, name: str) -> bool:
    return (
        connection.execute(
            sa.select(namespaces.c.namespace_id).where(
                namespaces.c.organization_id == principal.organization_id,
                namespaces.c.namespace_name == name,
            )
        ).scalar()
        is not None
    )


def _made_before(wh: Warehouse, principal: Principal, namespace_id: str) -> JsonObject:
    try:
        return get(wh, principal, namespace_id)
    except NotFoundError:
        raise ConflictError(
            f"The namespace {namespace_id} that this Idempotency-Key made has been deleted since. Use a new key to "
            "create another."
        ) from None


def _name_taken(name: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"A namespace named {quote(name)} exists in this organization. Choose another name, or delete or rename "
        "that one first.",
        details={"resource": "namespace", "namespace_name": name},
    )


def _dumped(indexes: Sequence[PayloadIndex]) -> list[JsonObject]:
    return [index.model_dump(mode="json") for index in indexes]


def _stored_infrastructure(
    wh: Warehouse, sent: NamespaceInfrastructure | None, before: Mapping[str, Any] | None = None
) -> JsonObject:
    """Return the infrastructure as the row keeps it: complete, its key sealed."""
    infrastructure = sent or NamespaceInfrastructure()
    stored = infrastructure.model_dump(mode="json", exclude=set(_SECRETS))
    if infrastructure.qdrant_collection is None:
        stored["qdrant_collection"] = before["qdrant_collection"] if before is not None else new_id("ns")
    if "max_concurrent_jobs" not in infrastructure.model_fields_set:
        stored["max_concurrent_jobs"] = wh.settings.max_concurrent_jobs
    if infrastructure.qdrant_api_key is not None:
        stored["qdrant_api_key"] = wh.vault.seal(infrastructure.qdrant_api_key)
    elif before is not None and keeps_key(infrastructure, before):
        stored["qdrant_api_key"] = before["qdrant_api_key"]
    if infrastructure.ray_auth_token is not None:
        stored["ray_auth_token"] = wh.vault.seal(infrastructure.ray_auth_token)
    elif before is not None and keeps_token(infrastructure, before):
        stored["ray_auth_token"] = before["ray_auth_token"]
    return stored


def _authorize_infrastructure(wh: Warehouse, principal: Principal, body: object) -> None:
    """Refuse infrastructure that this key or this server may not set, before anything is validated."""
    infrastructure = body.get("infrastructure") if isinstance(body, dict) else None
    if not isinstance(infrastructure, dict):
        return
    dedicated = infrastructure.get("compute_tier") in (ComputeTier.DEDICATED_CPU, ComputeTier.DEDICATED_GPU)
    if "admin" not in principal.permissions and (
        dedicated or any(infrastructure.get(n) for n in _URL_FIELDS)
    ):
        raise ForbiddenError(
            "Dedicated tiers and infrastructure URLs need a key with the permission admin. Leave them out for "
            "shared infrastructure, or use an admin key.",
            details={"required": "admin", "granted": sorted(principal.permissions)},
        )
    if dedicated and not wh.settings.allow_dedicated:
        raise NotEnabledError(
            "This server does not allow dedicated infrastructure (setting allow_dedicated). Send compute_tier "
            "'shared' or leave infrastructure out."
        )


# --- changing ----------------------------------------------------------------------------------------


def patch(wh: Warehouse, principal: Principal, identifier: str, body: object) -> JsonObject:
    """Change what `body` names and return the namespace. Repeating it changes nothing more.

    When this returns, the change is durable and a changed index set is in force; over many documents it comes
    into force when the view that is built with it is ready, which this waits for only so long.
    """
    return _change(wh, principal, identifier, body, plan_patch)


def update(wh: Warehouse, principal: Principal, identifier: str, body: object) -> JsonObject:
    """Set name and payload indexes (PUT); what `body` leaves out stays. Otherwise as `patch`."""
    return _change(wh, principal, identifier, body, plan_update)


def _change(wh: Warehouse, principal: Principal, identifier: str, body: object, plan: Any) -> JsonObject:
    if plan is plan_patch:
        _authorize_infrastructure(wh, principal, body)
    with wh.db.read() as connection:
        current = _find(connection, principal, identifier, _SHOWN_BY_ID, _SHOWN_BY_NAME)
        moves, place = _planned_place(wh, connection, current, plan(body, current))
    move = _begun_move(wh, current, place) if moves else None
    if move is None or move.place is None:
        return _write_change(wh, principal, current["namespace_id"], body, plan, move)
    with _provisioned(wh, move.view, move.indexes, move.head, move.place):
        return _write_change(wh, principal, current["namespace_id"], body, plan, move)


@dataclass(frozen=True, slots=True)
class _Move:
    """A change of place of an empty namespace: the view that it leaves, and the one that it will use.

    Of the latter's indexes, those of log entry `head` are made.
    """

    leaves: str
    view: View
    place: JsonObject | None
    indexes: tuple[PayloadIndex, ...]
    head: int


def _planned_place(
    wh: Warehouse, connection: Connection, current: RowMapping, change: NamespaceChange
) -> tuple[bool, JsonObject | None]:
    """Say whether a change of infrastructure moves the view, and where it is to be.

    Raises `ConflictError` when there is something to move.
    """
    if "infrastructure" not in change.values:
        return False, current["place"]
    stored = _stored_infrastructure(wh, change.values["infrastructure"], current["infrastructure"])
    place = place_of(stored, current["organization_infrastructure"])
    if _same_store(place, current["place"]):
        return False, place
    if _has_documents(connection, current["namespace_id"]):
        raise ConflictError(
            f"Namespace {quote(current['namespace_name'])} holds documents, and moving them to another Qdrant is "
            "not available in this version: only an empty namespace can change its place. Create another namespace "
            "there and ingest again.",
            details={"namespace_id": current["namespace_id"]},
        )
    return True, place


def _begun_move(wh: Warehouse, current: RowMapping, place: JsonObject | None) -> _Move:
    """Return a move under a generation of its own: views of two moves at once, or of one that failed, never meet."""
    namespace_id = current["namespace_id"]
    with wh.db.write() as connection:
        generation = connection.execute(
            sa.update(namespaces)
            .where(namespaces.c.namespace_id == namespace_id)
            .values(generation=namespaces.c.generation + 1)
            .returning(namespaces.c.generation)
        ).scalar_one_or_none()
    if generation is None:
        raise NotFoundError("namespace", current["namespace_name"])
    view = wh.views.view_at(
        namespace_id,
        f"{namespace_id}-{generation}",
        tuple(DenseVector(**vector) for vector in current["vectors"]),
        place,
        SparseText.all_of(current["sparse_vectors"]),
    )
    indexes = effective_indexes(
        stored_indexes(current["user_indexes"]), stored_indexes(current["added_indexes"])
    )
    return _Move(current["view_id"], view, place, indexes, current["head"])


def _write_change(
    wh: Warehouse, principal: Principal, namespace_id: str, body: object, plan: Any, move: _Move | None
) -> JsonObject:
    seq: int | None = None
    filled = False
    try:
        with wh.db.write() as connection:
            # Planned against the row that the transaction holds: two changes at once cannot mix.
            current = _find(connection, principal, namespace_id, _LOCKED_BY_ID, _LOCKED_BY_NAME)
            change: NamespaceChange = plan(body, current)
            values = _column_values(wh, connection, current, change, move)
            user = change.values.get("user_indexes", stored_indexes(current["user_indexes"]))
            before = stored_indexes(current["added_indexes"])
            auto = bool(change.values.get("auto_create_indexes", current["auto_create_indexes"]))
            added = without_auto(before, user, keep=auto)
            if added != before:
                values["added_indexes"] = _dumped(added)
            if values:
                connection.execute(
                    sa.update(namespaces)
                    .where(namespaces.c.namespace_id == namespace_id)
                    .values(**values, updated_at=now())
                )
                audit.record(
                    connection,
                    principal,
                    "namespace_updated",
                    "namespace",
                    namespace_id,
                    {"fields": sorted(values)},
                )
            if "user_indexes" in change.values or added != before:
                filled = _has_documents(connection, namespace_id)
                seq = log.append_indexes(connection, namespace_id, effective_indexes(user, added))
            shown = _find(connection, principal, namespace_id, _SHOWN_BY_ID, _SHOWN_BY_NAME)
    except sa.exc.IntegrityError as error:
        raise _name_taken(str(change.values["namespace_name"])) from error
    if "place" in values:
        wh.views.forget(namespace_id)
    if seq is not None and (filled or wh.views.is_open(namespace_id)):
        try:
            if wh.views.apply(namespace_id, seq).behind:
                wh.views.wait_for_build(namespace_id, _INDEX_PATIENCE_S)
        except UnavailableError as error:
            # The log has the change, so the next use of the view applies it.
            logger.warning("index change %s of %s waits for its view: %s", seq, namespace_id, error.message)
    return answer(wh, shown)


def _column_values(
    wh: Warehouse,
    connection: Connection,
    current: RowMapping,
    change: NamespaceChange,
    move: _Move | None,
) -> dict[str, Any]:
    values = dict(change.values)
    if "user_indexes" in values:
        values["user_indexes"] = _dumped(values["user_indexes"])
    if "infrastructure" not in values:
        return values
    stored = _stored_infrastructure(wh, values.pop("infrastructure"), current["infrastructure"])
    if stored == current["infrastructure"]:
        return values
    values["infrastructure"] = stored
    of_organization = connection.execute(
        _OF_ORGANIZATION, {"organization_id": current["organization_id"]}
    ).scalar()
    place = place_of(stored, of_organization)
    if place != current["place"]:
        values["place"] = place
    if move is None and _same_store(place, current["place"]):
        return values  # at most the key or the Ray cluster is another
    if (
        move is None
        or not _same_store(place, move.place)
        or current["view_id"] != move.leaves
        or current["head"] != move.head
        or _has_documents(connection, current["namespace_id"])
    ):
        raise ConflictError(
            f"Namespace {quote(current['namespace_name'])} was changed while its infrastructure was prepared. Send "
            "the request again.",
            details={"namespace_id": current["namespace_id"]},
        )
    connection.execute(sa.delete(doomed_views).where(doomed_views.c.view_id == move.view.view_id))
    connection.execute(
        doomed_views.insert().values(
            view_id=current["view_id"],
            namespace_id=current["namespace_id"],
            place=current["place"],
            due_at=_in(_GRACE_S),
        )
    )
    return values | {
        "view_id": move.view.view_id,
        "mark_seq": move.head if move.place is not None else 0,
    }


def _has_documents(connection: Connection, namespace_id: str) -> bool:
    """Say whether anything but index sets was ever logged."""
    return (
        connection.execute(
            sa.select(log_entries.c.seq)
            .where(log_entries.c.namespace_id == namespace_id, log_entries.c.kind != "indexes")
            .limit(1)
        ).scalar()
        is not None
    )


# --- deleting ----------------------------------------------------------------------------------------


def delete(wh: Warehouse, principal: Principal, identifier: str) -> JsonObject:
    """Delete a namespace and everything below it; return the task that removes what it held.

    When this returns, the namespace is gone for every reader and its name is free. The task ends when
    its documents, blobs and files are removed. Asking again is a `NotFoundError`.
    """
    at = now()
    with wh.db.write() as connection:
        row = _find(connection, principal, identifier, _SHOWN_BY_ID, _SHOWN_BY_NAME)
        namespace_id = row["namespace_id"]
        task_id = new_tasks.add(
            connection,
            row["organization_id"],
            None,
            TaskType.NAMESPACES_DELETE,
            [namespace_id],
            {
                "namespace_id": namespace_id,
                "namespace_name": row["namespace_name"],
                "document_count": wh.views.document_count(namespace_id, row["document_count"]),
                "bucket_count": row["bucket_count"],
                "collection_count": row["collection_count"],
                "object_count": row["object_count"],
            },
            at,
        )
        connection.execute(
            purges.insert().values(
                namespace_id=namespace_id,
                organization_id=row["organization_id"],
                task_id=task_id,
                targets={
                    "view_ids": [f"{namespace_id}-{number}" for number in range(1, row["generation"] + 1)],
                    "place": row["place"],
                },
                created_at=at,
            )
        )
        _revoke_keys(connection, row, at)
        audit.record(
            connection,
            principal,
            "namespace_deleted",
            "namespace",
            namespace_id,
            {"name": row["namespace_name"]},
        )
        connection.execute(sa.delete(tasks).where(tasks.c.namespace_id == namespace_id))
        connection.execute(sa.delete(filter_uses).where(filter_uses.c.namespace_id == namespace_id))
        connection.execute(sa.delete(namespaces).where(namespaces.c.namespace_id == namespace_id))
    failpoints.reach("purge.decided")
    wh.jobs.wake()
    return {
        "success": True,
        "message": f"Namespace {quote(row['namespace_name'])} is deleted; task {task_id} removes what it held.",
        "namespace_id": namespace_id,
        "task_id": task_id,
        "status": TaskStatus.PENDING.value,
    }


def _revoke_keys(connection: Connection, row: RowMapping, at: str) -> None:
    """Revoke keys that could see nothing but this namespace, so that none outlives what it was made for."""
    only = {row["namespace_id"], row["namespace_name"]}
    keys = connection.execute(
        sa.select(api_keys.c.key_id, api_keys.c.scopes).where(
            api_keys.c.organization_id == row["organization_id"], api_keys.c.status == "active"
        )
    )
    orphaned = [
        key_id
        for key_id, scopes in keys
        if scopes
        and all(
            scope.get("resource_type") == "namespace" and scope.get("resource_id") in only for scope in scopes
        )
    ]
    if orphaned:
        connection.execute(
            sa.update(api_keys).where(api_keys.c.key_id.in_(orphaned)).values(status="revoked", revoked_at=at)
        )


def purge(wh: Warehouse, namespace_id: str) -> None:
    """Remove what a deleted namespace left in any store. Can be repeated, and resumed after a kill.

    Its files are swept twice: at once, which ends the task, and again when the longest extraction that
    was under way has ended, because a worker may write a file after the first sweep. A sweep that fails
    is tried again later. ``targets.due_at`` of the row in ``purges`` says when the next one is due.
    """
    with wh.db.read() as connection:
        row = connection.execute(sa.select(purges).where(purges.c.namespace_id == namespace_id)).one_or_none()
    if row is None or row.targets.get("due_at", "") > now():
        return
    this = purges.c.namespace_id == namespace_id
    try:
        _sweep(wh, namespace_id, row.targets)
    except (TesseraError, OSError) as error:
        logger.warning("namespace %s is not removed yet, next try in %d s: %s", namespace_id, _AGAIN_S, error)
        again = {**row.targets, "due_at": _in(_AGAIN_S)}
        with wh.db.write() as connection:
            connection.execute(sa.update(purges).where(this).values(targets=again))
        return
    with wh.db.write() as connection:
        if row.targets.get("swept"):
            connection.execute(sa.delete(purges).where(this))
        else:
            last = {**row.targets, "swept": True, "due_at": _in(wh.settings.extract_timeout_s + 60)}
            connection.execute(sa.update(purges).where(this).values(targets=last))
            connection.execute(
                sa.update(tasks)
                .where(tasks.c.task_id == row.task_id)
                .values(status=TaskStatus.COMPLETED, outputs=[namespace_id], updated_at=now())
            )
    failpoints.reach("purge.recorded")
    wh.db.forget_deleted()


def _sweep(wh: Warehouse, namespace_id: str, targets: Mapping[str, Any]) -> None:
    wh.views.purge(namespace_id, targets["view_ids"], targets.get("place"))
    failpoints.reach("purge.views")
    wh.blobs.delete_namespace(namespace_id)
    remove_copies(wh.db)
    if wh.blobs.path(namespace_id).exists():
        raise StorageError("Some of its files cannot be removed now; while a backup runs none is.")
    failpoints.reach("purge.blobs")


def _in(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- what runs in it ---------------------------------------------------------------------------------


def stats(wh: Warehouse, principal: Principal, identifier: str) -> JsonObject:
    """Return counts, and the payload indexes as the engine itself reports them, with the points in each.

    Opens the view: the engine is asked, not the plan.
    """
    with wh.db.read() as connection:
        row = _find(connection, principal, identifier, _SHOWN_BY_ID, _SHOWN_BY_NAME)
    namespace_id = row["namespace_id"]
    reports = {report.field_name: report for report in wh.views.indexes(namespace_id)}
    order = [index["field_name"] for index in (*row["user_indexes"], *row["added_indexes"])]
    listed = [reports.pop(name) for name in order if name in reports]
    return {
        "namespace_id": namespace_id,
        "document_count": wh.views.document_count(namespace_id, row["document_count"]),
        "document_count_complete": True,
        "bucket_count": row["bucket_count"],
        "collection_count": row["collection_count"],
        "object_count": row["object_count"],
        "payload_indexes": [
            {"field_name": r.field_name, "type": r.type, "params": dict(r.params), "points": r.points}
            for r in (*listed, *reports.values())
        ],
    }
