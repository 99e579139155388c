"""Documents: what extractors made of objects. User fields at the root, system fields in `_internal`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field

from tessera.models.base import JsonObject, Model, PaginationResponse
from tessera.models.objects import ListSort


class Lineage(Model):
    """Where a document comes from: its root, what it was made of, and every step from the one to the other.

    `path` are the bucket and the collections, with slashes between them. `path` and `chain` are null for documents
    that came ready-made, or that an older release extracted.
    """

    root_object_id: str | None = None
    root_bucket_id: str | None = None
    source_type: Literal["bucket", "collection"] = "bucket"
    source_object_id: str | None = None
    source_document_id: str | None = None
    source_collection_id: str | None = None
    path: str | None = None
    chain: list[JsonObject] | None = None


class InternalPayload(Model):
    """System fields of a document."""

    model_config = ConfigDict(extra="allow")

    namespace_id: str | None = None
    document_id: str
    collection_id: str
    created_at: str | None = None
    updated_at: str | None = None
    lineage: Lineage


class DocumentBlob(Model):
    """A file of the document. `url` works for an hour without a key."""

    field: str
    role: Literal["source", "processed", "thumbnail", "artifact", "aux"]
    type: Literal["video", "image", "audio", "text", "pdf", "other"]
    url: str
    presigned_url: str | None = None


class DocumentResponse(Model):
    """A document: the fields passed through and the extractor's outputs stand at the root."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True)

    document_id: str = Field(examples=["doc_6f1c2c7ac0e15ed3a9a2d3e0a7b8f1c4"])
    collection_id: str
    root_object_id: str | None = None
    root_bucket_id: str | None = None
    source_object_id: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    document_blobs: list[DocumentBlob]
    internal: InternalPayload = Field(alias="_internal")


def _bare_field(value: Any) -> Any:
    """Accept ``{"field": "metadata.category"}`` for its field, as elsewhere in the API."""
    return value.get("field") if isinstance(value, dict) else value


class ListDocumentsRequest(Model):
    """Which documents to list. `filters` is exact whether a field is indexed or not; an index makes it fast.

    `select` names the fields to return beside the ids. Strings are compared without regard to case. `search` is a
    text that any of a document's own fields contains. With `group_by` the answer has groups instead of documents.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "filters": {"field": "metadata.category", "operator": "eq", "value": "headphones"},
                    "limit": 10,
                    "return_url": False,
                }
            ]
        }
    )

    filters: JsonObject | None = None
    sort: ListSort | None = None
    search: str | None = Field(None, max_length=1000)
    group_by: Annotated[str | None, BeforeValidator(_bare_field)] = Field(None, max_length=255)
    select: list[str] | None = Field(None, max_length=100)
    return_url: bool | None = False
    return_presigned_urls: bool | None = False
    return_vectors: bool | None = False
    return_vector_names: bool | list[str] | None = False


class DocumentGroup(Model):
    """All documents that share a value; `group_key` is null for those without one."""

    group_key: Any = None
    documents: list[DocumentResponse]
    count: int


class ListDocumentsResponse(Model):
    """Either `results` or, with `group_by`, `groups`: then `pagination` counts groups."""

    results: list[DocumentResponse] | None = None
    groups: list[DocumentGroup] | None = None
    pagination: PaginationResponse
    total_documents: int
    stats: JsonObject = Field(default_factory=dict)
    group_by_field: str | None = None


class BatchDeleteRequest(Model):
    """Documents to delete: by id, or all that a filter lets through. Exactly one of the two."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"filters": {"field": "metadata.category", "value": "headphones"}}]}
    )

    document_ids: list[str] | None = Field(None, min_length=1, max_length=1000)
    filters: JsonObject | None = None


class DeletedDocument(Model):
    document_id: str
    success: bool
    error: str | None = None


class BatchDeleteResponse(Model):
    """`results` has one entry for each id that was asked for; a delete by filter only counts."""

    deleted_count: int
    failed_count: int
    results: list[DeletedDocument]
    message: str


class BulkUpdateRequest(Model):
    """One change for all documents that `filters` let through; for all of the collection without them.

    A name in `update_data` replaces that field; a path with dots (``metadata.status``) sets one field inside and
    keeps its neighbours.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "filters": {"field": "metadata.category", "value": "headphones"},
                    "update_data": {"metadata.status": "reviewed"},
                }
            ]
        }
    )

    filters: JsonObject | None = None
    update_data: JsonObject = Field(min_length=1)


class BulkUpdateResponse(Model):
    updated_count: int
    message: str


class DocumentUpdate(Model):
    """A change of one document, in the form that `BulkUpdateRequest` describes."""

    document_id: str = Field(max_length=255)
    update_data: JsonObject


class BatchUpdateRequest(Model):
    """A change for each named document, or `filters` with one `update_data` for all that they let through."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "updates": [
                        {
                            "document_id": "doc_6f1c2c7ac0e15ed3a9a2d3e0a7b8f1c4",
                            "update_data": {"metadata.status": "reviewed"},
                        }
                    ]
                }
            ]
        }
    )

    updates: list[DocumentUpdate] | None = Field(None, min_length=1, max_length=1000)
    filters: JsonObject | None = None
    update_data: JsonObject | None = Field(None, min_length=1)


class UpdatedDocument(Model):
    document_id: str
    success: bool
    error: str | None = None


class BatchUpdateResponse(Model):
    """`results` has one entry for each document that was named; a change by filters only counts."""

    updated_count: int
    failed_count: int
    results: list[UpdatedDocument]
    message: str


class GivenFeature(Model):
    """What one extractor would have brought: fields, and vectors by name."""

    feature_extractor_id: str
    payload: JsonObject | None = None
    vectors: dict[str, Any] | None = None


class CreateDocumentRequest(Model):
    """A document with ready vectors. Further keys are its fields, kept at the root.

    `vectors` maps a vector index of the collection (its name, its feature URI or the last part of that) to
    its numbers: a list, or base64 of little-endian float32.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"document_id": "lamp-1", "metadata": {"category": "lamps"}, "colour": "green"}]
        },
    )

    document_id: str | None = None
    collection_id: str | None = None
    root_object_id: str | None = Field(None, max_length=255)
    root_bucket_id: str | None = Field(None, max_length=255)
    source_object_id: str | None = Field(None, max_length=255)
    metadata: JsonObject | None = None
    features: list[GivenFeature] | None = Field(None, max_length=100)
    vectors: dict[str, Any] | None = None


class UpsertDocument(Model):
    """One document of an upsert; the fields of `payload` stand at its root, `metadata` below that name."""

    document_id: str
    vectors: dict[str, Any] = Field(default_factory=dict)
    payload: JsonObject | None = None
    metadata: JsonObject | None = None
    root_object_id: str | None = Field(None, max_length=255)
    root_bucket_id: str | None = Field(None, max_length=255)
    source_object_id: str | None = Field(None, max_length=255)


class UpsertOptions(Model):
    write_token: bool | None = False
    idempotency_key: str | None = None


class UpsertDocumentsRequest(Model):
    """Documents with ready vectors, at most 1,000. One whose id exists in the collection is replaced as a whole."""

    #: Where lists of numbers come as arrays already, unless something is odd with them.
    vectors_at: ClassVar[tuple[str, ...]] = ("documents", "[]", "vectors")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "collection_id": "products",
                    "documents": [
                        {"document_id": "lamp-1", "payload": {"colour": "green"}},
                        {"document_id": "lamp-2", "payload": {"colour": "brass"}},
                    ],
                }
            ]
        }
    )

    collection_id: str | None = Field(
        None, validation_alias=AliasChoices("collection_id", "collection_identifier")
    )
    documents: list[UpsertDocument] = Field(min_length=1, max_length=1000)
    options: UpsertOptions | None = None


class UpsertDocumentsResponse(Model):
    """`unsearchable_document_ids` are stored and listed, but carry no vector or text that could find them."""

    inserted: int
    document_ids: list[str]
    write_token: str | None = None
    dropped_payload_fields: dict[str, list[str]] = Field(default_factory=dict)
    unsearchable_document_ids: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
