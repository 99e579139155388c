"""Routes of documents."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Depends, Path, Query, Request

from tessera import document_edits, document_lists, documents, lineage, ready_documents
from tessera.api.auth import Asking
from tessera.api.collections import Collection
from tessera.api.namespaces import Identifier as Namespace
from tessera.api.objects import ObjectId
from tessera.api.paging import Paging, page_parameter
from tessera.api.routing import Router, exchange
from tessera.api.scope import NamespaceId, Wh
from tessera.models.aggregations import AggregationRequest, AggregationResponse
from tessera.models.base import JsonObject
from tessera.models.documents import (
    BatchDeleteRequest,
    BatchDeleteResponse,
    BatchUpdateRequest,
    BatchUpdateResponse,
    BulkUpdateRequest,
    BulkUpdateResponse,
    CreateDocumentRequest,
    DocumentResponse,
    ListDocumentsRequest,
    ListDocumentsResponse,
    UpsertDocumentsRequest,
    UpsertDocumentsResponse,
)
from tessera.models.lineage import DecompositionTree, DocumentLineageResponse, ObjectDocumentsResponse
from tessera.models.tasks import GenericDeleteResponse
from tessera.pagination import MAX_LIMIT, PageRequest

router = Router(tags=["Documents"])

_FIELDS = (
    "Fields of the document. A name stands for the field at the root, a path with dots for one field inside, whose "
    "neighbours stay. Fields of the system are refused unless they are as the document has them."
)

DocumentId = Annotated[str, Path(examples=["doc_6f1c2c7ac0e15ed3a9a2d3e0a7b8f1c4"])]
ReturnUrls = Annotated[
    bool, Query(alias="return_presigned_urls", description="Name each file's URL as presigned_url too.")
]
ReturnVectors = Annotated[bool, Query(description="Return the document's vectors, by name.")]
ReturnVectorNames = Annotated[bool, Query(description="Return the names of the document's vectors.")]


QueryFilters = Annotated[str | None, Query(description="The body's `filters`, as JSON.", max_length=100_000)]
QuerySearch = Annotated[str | None, Query(description="The body's `search`.", max_length=1000)]
QuerySort = Annotated[
    str | None, Query(description="The body's `sort`, as JSON or as ``field:direction``.", max_length=500)
]
#: Fields by name or by path, values as they are to be.
Fields = Annotated[
    JsonObject, Body(examples=[{"metadata.status": "reviewed", "rating": 5}], description=_FIELDS)
]
#: As many of an object's documents as an answer may hold, unless fewer are asked for.
AllPaging = Annotated[PageRequest, Depends(page_parameter(MAX_LIMIT))]


@router.post("/v1/collections/{collection_identifier}/documents/list", response_model=ListDocumentsResponse)
def list_documents(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    page: Paging,
    body: ListDocumentsRequest | None = None,
    filters: QueryFilters = None,
    search: QuerySearch = None,
    sort: QuerySort = None,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
) -> JsonObject:
    """List a collection's documents, exactly those that the filter lets through, as of everything findable.

    With `group_by` the answer has groups of documents, and pages count groups.
    """
    request = body or ListDocumentsRequest()
    stated = document_lists.stated_in_query(filters, search, sort)
    given = request.model_copy(
        update={
            # What the body says wins.
            **{name: value for name, value in stated.items() if getattr(request, name) is None},
            "return_presigned_urls": request.return_presigned_urls or return_urls,
            "return_vectors": request.return_vectors or return_vectors,
        }
    )
    return document_lists.list_(wh, asking, namespace, collection_identifier, page, given)


@router.get("/v1/collections/{collection_identifier}/documents", response_model=ListDocumentsResponse)
def list_documents_get(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    page: Paging,
    filters: QueryFilters = None,
    search: QuerySearch = None,
    sort: QuerySort = None,
    return_urls: ReturnUrls = False,
    return_vectors: ReturnVectors = False,
) -> JsonObject:
    """List a collection's documents."""
    request = ListDocumentsRequest(return_presigned_urls=return_urls, return_vectors=return_vectors)
    request = request.model_copy(update=document_lists.stated_in_query(filters, search, sort))
    return document_lists.list_(wh, asking, namespace, collection_identifier, page, request)


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
    request: Request, wh: Wh, asking: Asking, namespace_identifier: Namespace, body: UpsertDocumentsRequest
) -> UpsertDocumentsResponse:
    """Store up to 1,000 documents with ready vectors, all or none; durable and findable when answered."""
    turn = exchange(request).turn
    checked = (lambda: None) if turn is None else turn.end
    return ready_documents.upsert(wh, asking, namespace_identifier, body, checked)


@router.patch("/v1/collections/{collection_identifier}/documents/bulk")
def update_documents_bulk(
    wh: Wh, asking: Asking, namespace: NamespaceId, collection_identifier: Collection, body: BulkUpdateRequest
) -> BulkUpdateResponse:
    """Make one change to all documents that the filters let through; durable and findable when answered."""
    return document_edits.edit_bulk(wh, asking, namespace, collection_identifier, body)


@router.post("/v1/collections/{collection_identifier}/documents/batch")
def update_documents_batch(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: BatchUpdateRequest,
) -> BatchUpdateResponse:
    """Change up to 1,000 named documents, each in its own way; durable and findable when answered."""
    return document_edits.edit_batch(wh, asking, namespace, collection_identifier, body)


@router.post("/v1/collections/{collection_identifier}/documents/aggregate")
def aggregate_documents(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: AggregationRequest,
) -> AggregationResponse:
    """Group documents and reckon figures of each group, over everything findable that the filters let through."""
    return document_lists.aggregate(wh, asking, namespace, collection_identifier, body)


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


@router.patch(
    "/v1/collections/{collection_identifier}/documents/{document_id}", response_model=DocumentResponse
)
def patch_document(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    document_id: DocumentId,
    body: Fields,
) -> JsonObject:
    """Set fields of a document, all others stay; durable and findable when answered.

    What is set by hand stays when the document's source is processed again.
    """
    return document_edits.edit_one(
        wh, asking, namespace, collection_identifier, document_id, body, replaces=False
    )


@router.put(
    "/v1/collections/{collection_identifier}/documents/{document_id}", response_model=DocumentResponse
)
def update_document(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    document_id: DocumentId,
    body: Fields,
) -> JsonObject:
    """Put fields in the place of all that a document has, but for the system's; durable and findable when answered.

    Its vectors stay. What is set by hand stays when the document's source is processed again.
    """
    return document_edits.edit_one(
        wh, asking, namespace, collection_identifier, document_id, body, replaces=True
    )


@router.get("/v1/collections/{collection_identifier}/documents/{document_id}/lineage")
def get_document_lineage(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    document_id: DocumentId,
) -> DocumentLineageResponse:
    """Return every step from the root object to a document."""
    return lineage.of_document(wh, asking, namespace, collection_identifier, document_id)


@router.get("/v1/objects/{object_id}/documents")
def get_documents_of_object(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    object_id: ObjectId,
    page: AllPaging,
    collection_ids: Annotated[list[str] | None, Query(description="Only these collections.")] = None,
) -> ObjectDocumentsResponse:
    """Return the documents that were made of an object, in every collection, up to 1,000 at once."""
    return lineage.documents_of(wh, asking, namespace, object_id, page, collection_ids)


@router.get("/v1/objects/{object_id}/decomposition-tree")
def get_decomposition_tree(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    object_id: ObjectId,
    include_document_ids: Annotated[
        bool, Query(description="Name the documents of each collection, not only count them.")
    ] = False,
) -> DecompositionTree:
    """Return what was made of an object: collection under collection, with the number of documents of each."""
    return lineage.decomposition_tree(
        wh, asking, namespace, object_id, include_document_ids=include_document_ids
    )


@router.patch("/v1/documents/{document_id}", response_model=DocumentResponse)
def patch_document_of_namespace(
    wh: Wh, asking: Asking, namespace: NamespaceId, document_id: DocumentId, body: Fields
) -> JsonObject:
    """Set fields of a document of any collection; durable and findable when answered."""
    return document_edits.edit_one(wh, asking, namespace, None, document_id, body, replaces=False)


@router.put("/v1/documents/{document_id}", response_model=DocumentResponse)
def update_document_of_namespace(
    wh: Wh, asking: Asking, namespace: NamespaceId, document_id: DocumentId, body: Fields
) -> JsonObject:
    """Put fields in the place of all that a document of any collection has; durable and findable when answered."""
    return document_edits.edit_one(wh, asking, namespace, None, document_id, body, replaces=True)
