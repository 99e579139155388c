"""Keys confined to single buckets, collections, retrievers, taxonomies or clusters, and the routes to those.

A namespace is the unit that services check. A key without a scope on the namespace itself is let into it
for one request, when the path of that request names a resource that the key is confined to. What lies
below a resource (objects of a bucket, documents of a collection) goes with it. Routes that name none,
as lists and creation, stay closed: there the namespace does not exist for such a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Connection

from tessera import buckets, clusters, collections, namespaces, retriever_definition, taxonomy_definition
from tessera.context import Principal, Warehouse
from tessera.errors import ForbiddenError, NotFoundError
from tessera.scopes import RANK, matching, strength

_KINDS = {
    "buckets": "bucket",
    "collections": "collection",
    "retrievers": "retriever",
    "taxonomies": "taxonomy",
    "clusters": "cluster",
}
#: The one route that names its resource last.
_EXECUTE_TAXONOMY = "/v1/taxonomies/execute/{taxonomy_identifier}"


def is_narrow(principal: Principal) -> bool:
    """Whether the key has scopes on single resources of a namespace."""
    return any(scope.get("resource_type") in _KINDS.values() for scope in principal.scopes)


def admit(
    wh: Warehouse,
    principal: Principal,
    template: str,
    path_params: Mapping[str, Any],
    namespace: str | None,
) -> Principal:
    """Return the principal with the namespace in its scopes, if the path names a resource of a narrow scope.

    Raises `NotFoundError` for the namespace in every other case that a namespace is named, so that
    neither it nor what it holds can be told from what does not exist; `ForbiddenError` where the key may
    see the resource but not do this to it.
    """
    if template == _EXECUTE_TAXONOMY:
        template = "/v1/taxonomies/{taxonomy_identifier}/execute"
    parts = template.split("/")
    kind = _KINDS.get(parts[2]) if len(parts) > 3 and parts[3].startswith("{") else None
    if kind is None or namespace is None:
        return principal
    identifier = str(path_params[parts[3].strip("{}")])
    refused: ForbiddenError | None = None
    with wh.db.read() as connection:
        try:
            place = namespaces.resolve(connection, replace(principal, scopes=()), namespace)
            if namespaces.in_scope(principal, place["namespace_id"], place["namespace_name"]):
                try:
                    namespaces.resolve(connection, principal, namespace)
                except ForbiddenError as error:
                    # Its scope there is too weak; one on the resource itself may be stronger.
                    refused = error
                else:
                    return principal
            names = _names(connection, kind, place["namespace_id"], identifier)
        except NotFoundError:
            if refused is not None:
                raise refused from None
            raise NotFoundError("namespace", namespace) from None
    scopes = list(matching(principal, kind, names))
    if refused is not None and max(map(strength, scopes), default=0) < RANK[principal.asks]:
        raise refused
    if not scopes:
        raise NotFoundError("namespace", namespace)
    if max(strength(scope) for scope in scopes) < RANK[principal.asks]:
        raise ForbiddenError(
            f"This key may see this {kind}, but its scope there does not allow this. An admin can give it a wider "
            "scope.",
            details={"required": principal.asks},
        )
    inside = {"resource_type": "namespace", "resource_id": place["namespace_id"]}
    return replace(principal, scopes=(*principal.scopes, inside), through=kind)


def _names(connection: Connection, kind: str, namespace_id: str, identifier: str) -> tuple[str, str]:
    find = {
        "bucket": buckets.find,
        "cluster": clusters.find,
        "collection": collections.find,
        "retriever": retriever_definition.find,
        "taxonomy": taxonomy_definition.find,
    }[kind]
    row = find(connection, namespace_id, identifier)
    return str(row[f"{kind}_id"]), str(row[f"{kind}_name"])
