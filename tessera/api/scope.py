"""The namespace of a request: header ``X-Namespace``, by id or name."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import Depends, Header, Request
from starlette.concurrency import run_in_threadpool

from tessera.api.routing import principal
from tessera.context import Principal, Warehouse
from tessera.errors import BadRequestError

#: Longest header that names a namespace.
LONGEST_NAMESPACE = 512


def warehouse(request: Request) -> Warehouse:
    """Return the warehouse that this server serves."""
    return cast(Warehouse, request.app.state.warehouse)


async def _warehouse(request: Request) -> Warehouse:
    return warehouse(request)


#: Parameter of a route: the warehouse.
Wh = Annotated[Warehouse, Depends(_warehouse)]


async def named_namespace(
    request: Request,
    x_namespace: Annotated[
        str | None,
        Header(
            alias="X-Namespace",
            description="Namespace by id or name (in UTF-8). May be left out with a key whose scope is one namespace.",
            max_length=LONGEST_NAMESPACE,
            examples=["spotify_playlists_dev"],
        ),
    ] = None,
) -> str:
    """Return the id or the name of the namespace that the request is about, as it was sent.

    Raises `BadRequestError` without the header.
    """
    identifier = utf8(x_namespace) if x_namespace else only_namespace(principal(request))
    if identifier is None:
        raise BadRequestError(
            "This route works inside a namespace: send the header X-Namespace with its id or name.",
            details={"header": "X-Namespace"},
        )
    return identifier


async def namespace_if_named(
    request: Request,
    x_namespace: Annotated[
        str | None,
        Header(
            alias="X-Namespace",
            description="Namespace by id or name (in UTF-8); may be left out.",
            max_length=LONGEST_NAMESPACE,
            examples=["spotify_playlists_dev"],
        ),
    ] = None,
) -> str | None:
    """Return the id or the name of the namespace that the request is about, if it is about one."""
    return utf8(x_namespace) if x_namespace else only_namespace(principal(request))


#: Parameter of a route that works inside a namespace and outside of any.
NamespaceIfNamed = Annotated[str | None, Depends(namespace_if_named)]

#: Parameter of a route whose service reads the namespace's row once, together with what else it needs.
NamespaceName = Annotated[str, Depends(named_namespace)]


async def namespace_row(request: Request, identifier: NamespaceName) -> Any:
    """Return the row of the namespace that the request is about.

    Raises `NotFoundError` for what is absent, foreign or out of scope.
    """
    wh, asking = warehouse(request), principal(request)
    if wh.db.is_sqlite:
        return _resolve(wh, asking, identifier)
    return await run_in_threadpool(_resolve, wh, asking, identifier)


async def namespace_id(row: Annotated[Any, Depends(namespace_row)]) -> str:
    """Return the id of the namespace that the request is about."""
    return str(row["namespace_id"])


#: Parameters of a route inside a namespace: the namespace's row, or its id alone.
NamespaceRow = Annotated[Any, Depends(namespace_row)]
NamespaceId = Annotated[str, Depends(namespace_id)]


def only_namespace(asking: Principal) -> str | None:
    """Return the one namespace that the key is confined to, if it is one and named without a pattern."""
    named = {str(s["resource_id"]) for s in asking.scopes if s["resource_type"] == "namespace"}
    if len(named) != 1 or "*" in (only := named.pop()):
        return None
    return only


def utf8(header: str) -> str:
    """Return a header as its sender wrote it: curl sends UTF-8, older clients Latin-1, as which it arrives."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _resolve(wh: Warehouse, asking: Principal, identifier: str) -> Any:
    from tessera.namespaces import resolve

    with wh.db.read() as connection:
        return resolve(connection, asking, identifier)
