"""Routes of retrievers and of searching without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import orjson
from fastapi import Body, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from tessera import executions, explain, retrieve, retrievers
from tessera.api import direct
from tessera.api.auth import Asking, require
from tessera.api.paging import Paging
from tessera.api.routing import Router, exchange
from tessera.api.scope import NamespaceId, NamespaceName, Wh
from tessera.models.base import JsonObject
from tessera.models.retrievers import (
    AdhocExecuteRequest,
    CloneRetrieverRequest,
    CreateRetrieverRequest,
    ExecuteRequest,
    ExplainRequest,
    ListExecutionsRequest,
    PatchRetrieverRequest,
    SearchDocumentsRequest,
)

router = Router(tags=["Retrievers"])
_read = [require("read")]

ReturnUrls = Annotated[
    bool, Query(alias="return_presigned_urls", description="Sign a short-lived URL for each blob of a hit.")
]
ReturnVectors = Annotated[bool, Query(description="Return each hit's vectors.")]
SkipCache = Annotated[bool, Query(description="Search anew, and keep nothing of it.")]
IfNoneMatch = Annotated[
    str | None, Header(description="ETag of an answer that is at hand; 304 if it is still right.")
]

_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, events as it comes about.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    304: {"description": "The answer with this ETag is still right."},
}


@router.post("/v1/retrievers")
def create_retriever(
    wh: Wh, asking: Asking, namespace: NamespaceId, body: CreateRetrieverRequest
) -> JsonObject:
    """Store a retriever: stages over collections. Durable when answered; stages do not change afterwards."""
    made = retrievers.create(wh, asking, namespace, body)
    # Older clients read the configuration at the root, newer ones under `retriever`.
    return {**made, "retriever": made}


@router.get("/v1/retrievers/stages")
def list_stages(wh: Wh, category: str | None = None) -> list[JsonObject]:
    """Describe every stage that a retriever may use, with the schema of its parameters."""
    return retrievers.stage_catalogue(wh, category)


@router.post("/v1/retrievers/list", dependencies=_read)
def list_retrievers(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    page: Paging,
    body: Annotated[JsonObject | None, Body(examples=[{"search": "quickstart"}])] = None,
) -> JsonObject:
    """List retrievers, newest first."""
    return retrievers.list_(wh, asking, namespace, page, body or {})


@router.get("/v1/retrievers")
def list_retrievers_get(wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging) -> JsonObject:
    """List retrievers, newest first."""
    return retrievers.list_(wh, asking, namespace, page, {})


@router.post("/v1/retrievers/execute", dependencies=_read, responses={200: _EVENTS[200]})
def execute_adhoc(
    request: Request,
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    body: AdhocExecuteRequest,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
) -> Any:
    """Run stages once without storing them. Finds everything that was findable when it began."""
    shown = {"return_urls": return_urls, "return_vectors": return_vectors}
    if body.stream:
        return _streamed(retrieve.stream(wh, asking, namespace, None, body, **shown))
    return _answered(request, retrieve.execute_adhoc(wh, asking, namespace, body, **shown), None)


@router.get("/v1/retrievers/{retriever_id}")
def get_retriever(wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str) -> JsonObject:
    """Return a retriever by id or name."""
    return retrievers.get(wh, asking, namespace, retriever_id)


@router.patch("/v1/retrievers/{retriever_id}")
def patch_retriever(
    wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str, body: PatchRetrieverRequest
) -> JsonObject:
    """Change name, description, tags, visibility or display configuration; durable when answered.

    What it does (stages, inputs, collections) is fixed; another value of that is a 400.
    """
    changed = retrievers.patch(wh, asking, namespace, retriever_id, body)
    return {**changed, "retriever": changed}


@router.post("/v1/retrievers/{retriever_id}/clone", status_code=201)
def clone_retriever(
    wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str, body: CloneRetrieverRequest
) -> JsonObject:
    """Store another retriever like this one; what the body states replaces what it has. Durable when answered."""
    return retrievers.clone(wh, asking, namespace, retriever_id, body)


@router.delete("/v1/retrievers/{retriever_id}")
def delete_retriever(wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str) -> JsonObject:
    """Delete a retriever; durable when answered."""
    deleted = retrievers.delete(wh, asking, namespace, retriever_id)
    return {"message": f"Retriever {deleted} was deleted.", "success": True, "retriever_id": deleted}


@direct.post(router, "/v1/retrievers/{retriever_id}/execute", dependencies=_read, responses=_EVENTS)
def execute_retriever(
    request: Request,
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    retriever_id: str,
    body: ExecuteRequest,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
    skip_cache: SkipCache = False,
    if_none_match: IfNoneMatch = None,
) -> Any:
    """Run a retriever. Finds everything that was findable when it began.

    With a `cache_config` the result may be one that was kept (`X-Cache-Status`), if nothing was written since.
    With `stream`, events: `stage_start` and `stage_complete` for each stage, then `execution_complete`.
    """
    shown = {"return_urls": return_urls, "return_vectors": return_vectors}
    if body.stream:
        return _streamed(retrieve.stream(wh, asking, namespace, retriever_id, body, **shown))
    answered = retrieve.execute(wh, asking, namespace, retriever_id, body, **shown, skip_cache=skip_cache)
    return _answered(request, answered, if_none_match)


@router.post("/v1/retrievers/{retriever_id}/execute/explain", dependencies=_read)
def explain_retriever(
    wh: Wh, asking: Asking, namespace: NamespaceName, retriever_id: str, body: ExplainRequest | None = None
) -> JsonObject:
    """Tell how a retriever would run: rows and cost of each stage, and which index serves which condition.

    Where one is missing a warning has the request that adds it. Nothing is searched; documents are counted.
    """
    return explain.explain(wh, asking, namespace, retriever_id, body or ExplainRequest())


@router.post("/v1/retrievers/{retriever_id}/explain", dependencies=_read)
def explain_retriever_short(
    wh: Wh, asking: Asking, namespace: NamespaceName, retriever_id: str, body: ExplainRequest | None = None
) -> JsonObject:
    """The same as `execute/explain`, under its older path."""
    return explain.explain(wh, asking, namespace, retriever_id, body or ExplainRequest())


@router.post("/v1/retrievers/{retriever_id}/executions/list", dependencies=_read)
def list_executions(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    retriever_id: str,
    page: Paging,
    body: ListExecutionsRequest | None = None,
) -> JsonObject:
    """List a retriever's executions, the newest first; statistics are kept for a week, documents are not."""
    return executions.list_(wh, asking, namespace, retriever_id, page, body.status if body else None)


@router.get("/v1/retrievers/{retriever_id}/executions")
def list_executions_get(
    wh: Wh, asking: Asking, namespace: NamespaceName, retriever_id: str, page: Paging
) -> JsonObject:
    """List a retriever's executions, the newest first."""
    return executions.list_(wh, asking, namespace, retriever_id, page, None)


@router.get("/v1/retrievers/{retriever_id}/executions/{execution_id}")
def get_execution(
    wh: Wh, asking: Asking, namespace: NamespaceName, retriever_id: str, execution_id: str
) -> JsonObject:
    """Return one execution with the statistics of its stages."""
    return executions.get(wh, asking, namespace, retriever_id, execution_id)


@router.post("/v1/documents/search", dependencies=_read)
def search_documents(
    wh: Wh, asking: Asking, namespace: NamespaceId, body: SearchDocumentsRequest
) -> dict[str, Any]:
    """Search collections by a text, over every feature that takes one."""
    return retrieve.search_documents(wh, asking, namespace, body)


def _answered(request: Request, answered: retrieve.Answered, if_none_match: str | None) -> Any:
    headers = exchange(request).headers
    headers.append((b"x-cache-status", answered.cache_status.encode()))
    if answered.etag is None:
        return answered.body
    headers.append((b"etag", answered.etag.encode()))
    # It is this key's own: nothing between may keep it.
    headers.append((b"cache-control", b"private, no-cache"))
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if answered.etag.removeprefix("W/") in known or "*" in known:
        return Response(status_code=304)
    return answered.body


def _streamed(events: Iterator[JsonObject]) -> StreamingResponse:
    # Without names: an EventSource hands those to one listener for all.
    lines = (b"data: " + orjson.dumps(event) + b"\n\n" for event in events)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Cache-Status": "BYPASS"}
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)
