"""Routes of documents."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query, Request

from tessera import documents, ready_documents
from tessera.api.auth import Asking
from tessera.api.collections import Collection
from tessera.api.namespaces import Identifier as Namespace
from tessera.api.paging import Paging
from tessera.api.routing import Router, exchange
from tessera.api.scope import NamespaceId, Wh
from tessera.models.base import JsonObject
from tessera.models.documents import (
    BatchDeleteRequest,
    BatchDeleteResponse,
    CreateDocumentRequest,
    DocumentResponse,
    ListDocumentsRequest,
    ListDocumentsResponse,
    UpsertDocumentsRequest,
    UpsertDocumentsResponse,
)
from tessera.models.tasks import GenericDeleteResponse

router = Router(tags=["Documents"])

DocumentId = Annotated[str, Path(examples=["doc_6f1c2c7ac0e15ed3a9a2d3e0a7b8f1c4"])]
ReturnUrls = Annotated[
    bool, Query(alias="return_presigned_urls", description="Name each file's URL as presigned_url too.")
]
ReturnVectors = Annotated[bool, Query(description="Return the document's vectors, by name.")]
ReturnVectorNames = Annotated[bool, Query(description="Return the names of the document's vectors.")]


@router.post("/v1/collections/{collection_identifier}/documents/list", response_model=ListDocumentsResponse)
def list_documents(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    page: Paging,
    body: ListDocumentsRequest | None = None,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
) -> JsonObject:
    """List a collection's documents, exactly those that the filter lets through, as of everything findable."""
    request = body or ListDocumentsRequest()
    given = request.model_copy(
        update={
            "return_presigned_urls": request.return_presigned_urls or return_urls,
            "return_vectors": request.return_vectors or return_vectors,
        }
    )
    return documents.list_(wh, asking, namespace, collection_identifier, page, given)


@router.get("/v1/collections/{collection_identifier}/documents", response_model=ListDocumentsResponse)
def list_documents_get(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    page: Paging,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
) -> JsonObject:
    """List a collection's documents."""
    request = ListDocumentsRequest(return_presigned_urls=return_urls, return_vectors=return_vectors)
    return documents.list_(wh, asking, namespace, collection_identifier, page, request)


@router.post("/v1/collections/{collection_identifier}/documents", response_model=DocumentResponse)
def create_document(
    request: Request,
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: CreateDocumentRequest,
) -> JsonObject:
    """Store a document with ready vectors; durable and findable when answered. One of its id is replaced."""
    made, dropped = ready_documents.create(wh, asking, namespace, collection_identifier, body)
    exchange(request).ignored.extend(dropped)
    return made


@router.post("/v1/namespaces/{namespace_identifier}/documents/upsert")
def upsert_documents(
    wh: Wh, asking: Asking, namespace_identifier: Namespace, body: UpsertDocumentsRequest
) -> UpsertDocumentsResponse:
    """Store up to 1,000 documents with ready vectors, all or none; durable and findable when answered."""
    return ready_documents.upsert(wh, asking, namespace_identifier, body)


@router.delete("/v1/collections/{collection_identifier}/documents/batch")
def delete_documents(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: BatchDeleteRequest,
) -> BatchDeleteResponse:
    """Delete documents by id or by filter; durable, and no longer findable, when answered."""
    return documents.delete_batch(wh, asking, namespace, collection_identifier, body)


@router.get(
    "/v1/collections/{collection_identifier}/documents/{document_id}", response_model=DocumentResponse
)
def get_document(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    document_id: DocumentId,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
    return_vector_names: ReturnVectorNames = False,
) -> JsonObject:
    """Return a document of a collection, as of everything findable."""
    return documents.get(
        wh,
        asking,
        namespace,
        collection_identifier,
        document_id,
        return_urls=return_urls,
        return_vectors=return_vectors,
        return_vector_names=return_vector_names,
    )


@router.delete("/v1/collections/{collection_identifier}/documents/{document_id}")
def delete_document(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    document_id: DocumentId,
) -> GenericDeleteResponse:
    """Delete a document; durable, and no longer findable, when answered. Its object stays."""
    return documents.delete(wh, asking, namespace, collection_identifier, document_id)


@router.get("/v1/documents/{document_id}", response_model=DocumentResponse)
def get_document_of_namespace(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    document_id: DocumentId,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
    return_vector_names: ReturnVectorNames = False,
) -> JsonObject:
    """Return a document of any collection of the namespace."""
    return documents.get(
        wh,
        asking,
        namespace,
        None,
        document_id,
        return_urls=return_urls,
        return_vectors=return_vectors,
        return_vector_names=return_vector_names,
    )
