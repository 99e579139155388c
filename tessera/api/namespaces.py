"""Routes of namespaces."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import Body, Header, Path, Query, Response
from pydantic import SkipValidation
from starlette.concurrency import run_in_threadpool

from tessera import erasure, namespaces
from tessera.api.auth import Asking, require
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.models.erasures import EraseRequest
from tessera.models.namespaces import (
    CreateNamespaceRequest,
    DeleteNamespaceResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    NamespaceModel,
    NamespaceStatsResponse,
    PatchNamespaceRequest,
    UpdateNamespaceRequest,
)
from tessera.models.tasks import TaskResponse

router = Router(tags=["Namespaces"])

Identifier = Annotated[
    str,
    Path(
        alias="namespace_identifier",
        description="Id or name.",
        max_length=255,
        examples=["spotify_playlists_dev"],
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Sent again with the same key and body within 24 hours, the request makes nothing new.",
    ),
]

# Bodies that a plan reads arrive as they are, so that what is wrong with their form and with their meaning is
# reported together; the models describe them.
CreateBody = Annotated[CreateNamespaceRequest, SkipValidation]
PatchBody = Annotated[PatchNamespaceRequest, SkipValidation]
UpdateBody = Annotated[UpdateNamespaceRequest, SkipValidation]


@router.post("/v1/namespaces", response_model=NamespaceModel)
def create_namespace(
    wh: Wh, asking: Asking, body: CreateBody, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a namespace: its feature extractors, its payload indexes, whose infrastructure it runs on.

    Durable when answered. Everything that is wrong with the request is reported together.
    """
    return _json(namespaces.create(wh, asking, body, idempotency_key=idempotency_key))


@router.post("/v1/namespaces/list", response_model=ListNamespacesResponse, dependencies=[require("read")])
def list_namespaces(
    wh: Wh, asking: Asking, page: Paging, body: Annotated[ListNamespacesRequest | None, Body()] = None
) -> Response:
    """List namespaces, the newest first unless sorted otherwise."""
    return _json(namespaces.list_(wh, asking, page, body or ListNamespacesRequest()))


@router.get("/v1/namespaces", response_model=ListNamespacesResponse)
def list_namespaces_get(
    wh: Wh, asking: Asking, page: Paging, search: Annotated[str | None, Query(max_length=1000)] = None
) -> Response:
    """List namespaces, the newest first."""
    return _json(namespaces.list_(wh, asking, page, ListNamespacesRequest(search=search)))


@router.get("/v1/namespaces/{namespace_identifier}", response_model=NamespaceModel)
async def get_namespace(wh: Wh, asking: Asking, identifier: Identifier) -> Response:
    """Return a namespace by id or name."""
    # On SQLite reading the row takes 0.1 ms, a change of thread as much again.
    if wh.db.is_sqlite:
        return _json(namespaces.get(wh, asking, identifier))
    return _json(await run_in_threadpool(namespaces.get, wh, asking, identifier))


@router.patch("/v1/namespaces/{namespace_identifier}", response_model=NamespaceModel)
def patch_namespace(wh: Wh, asking: Asking, identifier: Identifier, body: PatchBody) -> Response:
    """Change what the body names; what it leaves out stays. A list of payload indexes replaces the user's.

    Durable when answered; a changed index set is in force.
    """
    return _json(namespaces.patch(wh, asking, identifier, body))


@router.put("/v1/namespaces/{namespace_identifier}", response_model=NamespaceModel)
def update_namespace(wh: Wh, asking: Asking, identifier: Identifier, body: UpdateBody) -> Response:
    """Set name and payload indexes. Durable when answered."""
    return _json(namespaces.update(wh, asking, identifier, body))


@router.delete("/v1/namespaces/{namespace_identifier}", response_model=DeleteNamespaceResponse)
def delete_namespace(
    wh: Wh,
    asking: Asking,
    identifier: Identifier,
    force: Annotated[bool, Query(description="Accepted; without effect.")] = False,
) -> Response:
    """Delete a namespace and everything below it.

    When answered, it is gone for every reader and its name is free. The task tells when its files are removed.
    """
    return _json(namespaces.delete(wh, asking, identifier))


@router.post("/v1/namespaces/{namespace_identifier}/erase", dependencies=[require("delete")])
def erase_documents(wh: Wh, asking: Asking, identifier: Identifier, body: EraseRequest) -> TaskResponse:
    """Erase documents: gone from search, durably, when answered; the task ends when nothing is left of them.

    It rewrites every file and row of the server that holds them and reports counts and keys in
    `additional_data.report`. Backups that exist already are not touched.
    """
    return erasure.request(wh, asking, identifier, body)


@router.get("/v1/namespaces/{namespace_identifier}/stats", response_model=NamespaceStatsResponse)
def get_namespace_stats(wh: Wh, asking: Asking, identifier: Identifier) -> Response:
    """Return counts, and the payload indexes as the engine reports them, with the points that each one holds."""
    return _json(namespaces.stats(wh, asking, identifier))


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
