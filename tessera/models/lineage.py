"""Lineage: where a document comes from, and what was made of an object."""

from __future__ import annotations

from typing import Literal

from tessera.models.base import JsonObject, Model, PaginationResponse
from tessera.models.documents import DocumentResponse


class LineageStep(Model):
    """One step: the document that a collection's extractor made."""

    collection_id: str | None = None
    feature_extractor_id: str | None = None
    document_id: str | None = None
    timestamp: str | None = None


class DocumentLineage(Model):
    """The root object, the immediate source, and every step from the first to the document itself."""

    root_object_id: str | None = None
    root_bucket_id: str | None = None
    source_type: Literal["bucket", "collection"] = "bucket"
    source_object_id: str | None = None
    source_document_id: str | None = None
    source_collection_id: str | None = None
    source_row: JsonObject | None = None
    lineage_chain: list[LineageStep]


class DocumentLineageResponse(Model):
    """`lineage` is null for a document that comes from nothing here; `message` says so then."""

    document_id: str
    collection_id: str
    lineage: DocumentLineage | None = None
    depth: int = 0
    total_steps: int = 0
    message: str | None = None


class CollectionCount(Model):
    collection_id: str
    collection_name: str
    document_count: int


class ObjectDocumentsResponse(Model):
    """The documents of an object, page by page; `collections` counts all of them."""

    object_id: str
    documents: list[DocumentResponse]
    total: int
    collections: list[CollectionCount]
    pagination: PaginationResponse


class DecompositionNode(Model):
    """A collection with what it made of the object; below it, the collections that read those documents."""

    collection_id: str
    collection_name: str | None = None
    feature_extractor_id: str | None = None
    tier: int
    document_count: int
    document_ids: list[str] | None = None
    children: list[DecompositionNode]


class DecompositionTree(Model):
    """Everything that was made of an object; `depth` counts tiers, 0 while nothing was made."""

    object_id: str
    bucket_id: str | None = None
    children: list[DecompositionNode]
    total_documents: int
    total_collections: int
    depth: int
