"""Namespaces: create, find, list, change, delete, purge; and on whose Qdrant and Ray each one runs.

Creating one is a single write transaction: the row and the first log entry, which says what is indexed.
Its view is made on first use, so that a namespace costs neither files nor memory before it holds
something.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import idempotency, listing, log, names, sealing
from tessera.config import Settings
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import (
    api_keys,
    buckets,
    collections,
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
    plan_namespace,
    plan_patch,
    plan_update,
    stored_indexes,
)

logger = logging.getLogger("tessera.namespaces")

CREATE_ROUTE = "POST /v1/namespaces"

Row = Mapping[str, Any] | RowMapping

_ID = re.compile(r"ns_[0-9a-f]{16}\Z")
#: What the first word of a scope's operation amounts to; all others (``execute_retriever`` …) only read.
_RANK = {"read": 1, "write": 2, "modify": 2, "delete": 3, "manage": 4, "admin": 4}
#: After a sweep that failed, the next one.
_AGAIN_S = 10
_URL_FIELDS = ("qdrant_url", "ray_head_node_url", "ray_dashboard_url")


class DedicatedUnavailableError(UnavailableError):
    """The namespace would need dedicated infrastructure, which this version does not provision."""

    retryable = False


# --- infrastructure ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backend:
    """A Qdrant and a Ray that somebody brought. `qdrant_api_key` is sealed, and never part of an answer."""

    compute_tier: ComputeTier = ComputeTier.SHARED
    qdrant_url: str | None = None
    ray_head_node_url: str | None = None
    ray_dashboard_url: str | None = None
    qdrant_api_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Backend:
        """Read what a namespace or an organization states; None states nothing."""
        stored = stored or {}
        return cls(
            ComputeTier(stored.get("compute_tier") or ComputeTier.SHARED),
            *(stored.get(name) for name in (*_URL_FIELDS, "qdrant_api_key")),
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
    if row is None or not in_scope(principal, row["namespace_id"], row["namespace_name"]):
        raise NotFoundError("namespace", identifier)
    _check_operation(principal, row["namespace_id"], row["namespace_name"])
    return row


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
    stored = row["infrastructure"]
    of_organization = row["organization_infrastructure"]
    resolved = resolve_infrastructure(
        Backend.of(stored), Backend.of(of_organization) if of_organization else None, server_backend(settings)
    )
    shown = {name: value for name, value in stored.items() if name != "qdrant_api_key"}
    shown["compute_tier"] = resolved.backend.compute_tier.value
    if resolved.source == "organization":
        shown.update({name: getattr(resolved.backend, name) for name in _URL_FIELDS})
    return shown


# --- creating ----------------------------------------------------------------------------------------


def create(
    wh: Warehouse, principal: Principal, body: object, *, idempotency_key: str | None = None
) -> JsonObject:
    """Create the namespace that `body` asks for and return it.

    When this returns the namespace is durable. Repeating it with the same `idempotency_key` and body
    makes nothing and returns what the first call made.

    Raises `ValidationError` or `BadRequestError` with everything that is wrong, `AlreadyExistsError` when
    only the name is taken, `DedicatedUnavailableError` when the namespace would run on dedicated
    infrastructure.
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
    try:
        with wh.db.write() as connection:
            first = idempotency.claim(connection, once, namespace_id) if once is not None else None
            if first is None:
                of_organization = connection.execute(
                    _OF_ORGANIZATION, {"organization_id": principal.organization_id}
                ).scalar()
                connection.execute(_INSERT, row)
                # Inside the transaction, so that a name that is taken is told before what this version lacks.
                _refuse_dedicated(row["infrastructure"], of_organization)
                log.append_indexes(connection, namespace_id, plan.indexes)
    except sa.exc.IntegrityError as error:
        raise _name_taken(plan.namespace_name) from error
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
    stored = infrastructure.model_dump(mode="json", exclude={"qdrant_api_key"})
    if infrastructure.qdrant_collection is None:
        stored["qdrant_collection"] = before["qdrant_collection"] if before is not None else new_id("ns")
    if "max_concurrent_jobs" not in infrastructure.model_fields_set:
        stored["max_concurrent_jobs"] = wh.settings.max_concurrent_jobs
    if infrastructure.qdrant_api_key is not None:
        stored["qdrant_api_key"] = sealing.seal(wh.signing_key, infrastructure.qdrant_api_key)
    elif before is not None and keeps_key(infrastructure, before):
        stored["qdrant_api_key"] = before["qdrant_api_key"]
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


def _refuse_dedicated(stored: JsonObject, of_organization: JsonObject | None) -> None:
    """Raise `DedicatedUnavailableError` when the namespace would not run on the server's own infrastructure."""
    resolved = resolve_infrastructure(
        Backend.of(stored), Backend.of(of_organization) if of_organization else None, Backend()
    )
    if resolved.source == "server":
        return
    tier = resolved.backend.compute_tier.value
    remedy = (
        "Send compute_tier 'shared' or leave infrastructure out."
        if resolved.source == "namespace"
        else "It is the organization's; remove it there to use the server's shared infrastructure."
    )
    raise DedicatedUnavailableError(
        f"The infrastructure is well formed, but dedicated provisioning ({tier}) is not available in this version "
        f"of Tessera; nothing was changed. {remedy}",
        details={"compute_tier": tier, "source": resolved.source},
    )


# --- changing ----------------------------------------------------------------------------------------


def patch(wh: Warehouse, principal: Principal, identifier: str, body: object) -> JsonObject:
    """Change what `body` names and return the namespace. Repeating it changes nothing more.

    When this returns, the change is durable and a changed index set is in force.
    """
    return _change(wh, principal, identifier, body, plan_patch)


def update(wh: Warehouse, principal: Principal, identifier: str, body: object) -> JsonObject:
    """Set name and payload indexes (PUT); what `body` leaves out stays. Otherwise as `patch`."""
    return _change(wh, principal, identifier, body, plan_update)


def _change(wh: Warehouse, principal: Principal, identifier: str, body: object, plan: Any) -> JsonObject:
    with wh.db.read() as connection:
        namespace_id = resolve(connection, principal, identifier)["namespace_id"]
    if plan is plan_patch:
        _authorize_infrastructure(wh, principal, body)
    seq: int | None = None
    filled = False
    try:
        with wh.db.write() as connection:
            # Planned against the row that the transaction holds: two changes at once cannot mix.
            current = _find(connection, principal, namespace_id, _LOCKED_BY_ID, _LOCKED_BY_NAME)
            change: NamespaceChange = plan(body, current)
            values = _column_values(wh, connection, current, change)
            if values:
                connection.execute(
                    sa.update(namespaces)
                    .where(namespaces.c.namespace_id == namespace_id)
                    .values(**values, updated_at=now())
                )
            if "user_indexes" in change.values:
                filled = _has_documents(connection, namespace_id)
                added = stored_indexes(current["added_indexes"])
                seq = log.append_indexes(
                    connection, namespace_id, effective_indexes(change.values["user_indexes"], added)
                )
            shown = _find(connection, principal, namespace_id, _SHOWN_BY_ID, _SHOWN_BY_NAME)
    except sa.exc.IntegrityError as error:
        raise _name_taken(str(change.values["namespace_name"])) from error
    if seq is not None and (filled or wh.views.is_open(namespace_id)):
        try:
            wh.views.apply(namespace_id, seq)
        except QdrantError as error:
            # The log has the change, so the next use of the view applies it.
            logger.warning("index change %s of %s waits for its view: %s", seq, namespace_id, error.message)
    return answer(wh, shown)


def _column_values(
    wh: Warehouse, connection: Connection, current: RowMapping, change: NamespaceChange
) -> dict[str, Any]:
    values = dict(change.values)
    if "user_indexes" in values:
        values["user_indexes"] = _dumped(values["user_indexes"])
    if "infrastructure" in values:
        stored = _stored_infrastructure(wh, values.pop("infrastructure"), current["infrastructure"])
        if stored != current["infrastructure"]:
            _refuse_move(connection, current, stored)
            values["infrastructure"] = stored
    return values


def _refuse_move(connection: Connection, current: RowMapping, stored: JsonObject) -> None:
    """Refuse what would move the namespace elsewhere."""
    if stored["compute_tier"] == current["infrastructure"]["compute_tier"] == ComputeTier.SHARED:
        return
    if _has_documents(connection, current["namespace_id"]):
        raise ConflictError(
            f"Namespace {quote(current['namespace_name'])} holds documents, and moving them to other infrastructure "
            "is not available in this version. Its tier can change only while it is empty.",
            details={"namespace_id": current["namespace_id"]},
        )
    _refuse_dedicated(stored, None)


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
    at, task_id = now(), new_id("tsk")
    with wh.db.write() as connection:
        row = _find(connection, principal, identifier, _SHOWN_BY_ID, _SHOWN_BY_NAME)
        namespace_id = row["namespace_id"]
        connection.execute(
            tasks.insert().values(
                task_id=task_id,
                organization_id=row["organization_id"],
                namespace_id=None,
                task_type=TaskType.NAMESPACES_DELETE,
                status=TaskStatus.PENDING,
                inputs=[namespace_id],
                outputs=[],
                additional_data={
                    "namespace_id": namespace_id,
                    "namespace_name": row["namespace_name"],
                    "document_count": wh.views.document_count(namespace_id, row["document_count"]),
                    "bucket_count": row["bucket_count"],
                    "collection_count": row["collection_count"],
                    "object_count": row["object_count"],
                },
                created_at=at,
                updated_at=at,
            )
        )
        connection.execute(
            purges.insert().values(
                namespace_id=namespace_id,
                organization_id=row["organization_id"],
                task_id=task_id,
                targets={
                    "view_ids": [f"{namespace_id}-{number}" for number in range(1, row["generation"] + 1)]
                },
                created_at=at,
            )
        )
        _revoke_keys(connection, row, at)
        connection.execute(sa.delete(tasks).where(tasks.c.namespace_id == namespace_id))
        connection.execute(sa.delete(namespaces).where(namespaces.c.namespace_id == namespace_id))
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
        _sweep(wh, namespace_id, row.targets["view_ids"])
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
    wh.db.forget_deleted()


def _sweep(wh: Warehouse, namespace_id: str, view_ids: Sequence[str]) -> None:
    wh.views.purge(namespace_id, view_ids)
    wh.blobs.delete_namespace(namespace_id)
    if wh.blobs.path(namespace_id).exists():
        raise StorageError("Some of its files cannot be removed now.")


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
