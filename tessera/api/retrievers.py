"""Routes of retrievers and of searching without one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Query

from tessera import retrieve
from tessera.api.auth import Asking, require
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import NamespaceId, NamespaceName, Wh
from tessera.models.base import JsonObject
from tessera.models.retrievers import (
    AdhocExecuteRequest,
    CreateRetrieverRequest,
    ExecuteRequest,
    PatchRetrieverRequest,
    SearchDocumentsRequest,
)

router = Router(tags=["Retrievers"])
_read = [require("read")]

ReturnUrls = Annotated[
    bool, Query(alias="return_presigned_urls", description="Sign a short-lived URL for each blob of a hit.")
]
ReturnVectors = Annotated[bool, Query(description="Return each hit's vectors.")]


@router.post("/v1/retrievers")
def create_retriever(
    wh: Wh, asking: Asking, namespace: NamespaceId, body: CreateRetrieverRequest
) -> JsonObject:
    """Store a retriever: stages over collections. Durable when answered; stages do not change afterwards."""
    made = retrieve.create(wh, asking, namespace, body)
    # Older clients read the configuration at the root, newer ones under `retriever`.
    return {**made, "retriever": made}


@router.get("/v1/retrievers/stages")
def list_stages(wh: Wh, category: str | None = None) -> list[JsonObject]:
    """Describe every stage that a retriever may use, with the schema of its parameters."""
    return retrieve.stage_catalogue(wh, category)


@router.post("/v1/retrievers/list", dependencies=_read)
def list_retrievers(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    page: Paging,
    body: Annotated[JsonObject | None, Body(examples=[{"search": "quickstart"}])] = None,
) -> JsonObject:
    """List retrievers, newest first."""
    return retrieve.list_(wh, asking, namespace, page, body or {})


@router.get("/v1/retrievers")
def list_retrievers_get(wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging) -> JsonObject:
    """List retrievers, newest first."""
    return retrieve.list_(wh, asking, namespace, page, {})


@router.post("/v1/retrievers/execute", dependencies=_read)
def execute_adhoc(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    body: AdhocExecuteRequest,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
) -> JsonObject:
    """Run stages once without storing them. Finds everything that was findable when it began."""
    return retrieve.execute_adhoc(
        wh, asking, namespace, body, return_urls=return_urls, return_vectors=return_vectors
    )


@router.get("/v1/retrievers/{retriever_id}")
def get_retriever(wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str) -> JsonObject:
    """Return a retriever by id or name."""
    return retrieve.get(wh, asking, namespace, retriever_id)


@router.patch("/v1/retrievers/{retriever_id}")
def patch_retriever(
    wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str, body: PatchRetrieverRequest
) -> JsonObject:
    """Change name, description, tags, visibility or display configuration; durable when answered."""
    changed = retrieve.patch(wh, asking, namespace, retriever_id, body)
    return {**changed, "retriever": changed}


@router.delete("/v1/retrievers/{retriever_id}")
def delete_retriever(wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str) -> JsonObject:
    """Delete a retriever; durable when answered."""
    deleted = retrieve.delete(wh, asking, namespace, retriever_id)
    return {"message": f"Retriever {deleted} was deleted.", "success": True, "retriever_id": deleted}


@router.post("/v1/retrievers/{retriever_id}/execute", dependencies=_read)
def execute_retriever(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    retriever_id: str,
    body: ExecuteRequest,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
) -> JsonObject:
    """Run a retriever. Finds everything that was findable when it began."""
    return retrieve.execute(
        wh, asking, namespace, retriever_id, body, return_urls=return_urls, return_vectors=return_vectors
    )


@router.post("/v1/documents/search", dependencies=_read)
def search_documents(
    wh: Wh, asking: Asking, namespace: NamespaceId, body: SearchDocumentsRequest
) -> dict[str, Any]:
    """Search collections by a text, over every feature that takes one."""
    return retrieve.search_documents(wh, asking, namespace, body)
