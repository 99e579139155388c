"""Routes of collections."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request

from tessera import batches, collections, exports, schema_sync
from tessera.api.auth import Asking
from tessera.api.paging import Paging
from tessera.api.routing import Router, exchange, require
from tessera.api.scope import NamespaceId, Wh
from tessera.models.collections import (
    CloneCollectionRequest,
    CloneCollectionResponse,
    CollectionExportRequest,
    CollectionExportResponse,
    CollectionResponse,
    CreateCollectionRequest,
    DescribeFeaturesResponse,
    ListCollectionsRequest,
    ListCollectionsResponse,
    PatchCollectionRequest,
    SchemaSyncRequest,
    SchemaSyncResponse,
    SchemaSyncSkippedResponse,
    TriggerCollectionRequest,
    TriggerCollectionResponse,
)
from tessera.models.tasks import GenericDeleteResponse
from tessera.models.taxonomies import ApplyTaxonomyRequest, ApplyTaxonomyResponse

router = Router(tags=["Collections"])

Collection = Annotated[str, Path(description="Collection by id or name.", examples=["quickstart-docs"])]


@router.post("/v1/collections")
def create_collection(
    wh: Wh, asking: Asking, namespace: NamespaceId, body: CreateCollectionRequest
) -> CollectionResponse:
    """Create a collection; durable when answered, with its output schema. A taken name is a 409."""
    return collections.create(wh, asking, namespace, body)


@router.post("/v1/collections/list")
def list_collections(
    wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging, body: ListCollectionsRequest | None = None
) -> ListCollectionsResponse:
    """List collections, oldest first unless sorted otherwise."""
    return collections.list_(wh, asking, namespace, page, body or ListCollectionsRequest())


@router.get("/v1/collections")
def list_collections_get(
    wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging, search: str | None = None
) -> ListCollectionsResponse:
    """List collections, oldest first."""
    return collections.list_(wh, asking, namespace, page, ListCollectionsRequest(search=search))


@router.get("/v1/collections/{collection_identifier}")
def get_collection(
    wh: Wh, asking: Asking, namespace: NamespaceId, collection_identifier: Collection
) -> CollectionResponse:
    """Return a collection."""
    return collections.get(wh, asking, namespace, collection_identifier)


@router.patch("/v1/collections/{collection_identifier}")
def patch_collection(
    request: Request,
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: PatchCollectionRequest,
) -> CollectionResponse:
    """Change name, description, enabled or metadata; durable. Everything else is fixed."""
    exchange(request).ignored.extend(sorted(body.model_extra or ()))
    return collections.patch(wh, asking, namespace, collection_identifier, body)


@router.post("/v1/collections/{collection_identifier}/apply-taxonomy")
def apply_taxonomy(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: ApplyTaxonomyRequest,
) -> ApplyTaxonomyResponse:
    """Compare documents with the collection's taxonomies anew; accepted and durable, findable when the task ends.

    New and changed documents are compared by themselves; this is for nodes that have changed since.
    """
    return collections.apply_taxonomy(wh, asking, namespace, collection_identifier, body)


@router.delete("/v1/collections/{collection_identifier}")
def delete_collection(
    wh: Wh, asking: Asking, namespace: NamespaceId, collection_identifier: Collection
) -> GenericDeleteResponse:
    """Delete a collection with its documents; durable, and no longer findable, when answered.

    A collection that others read is a 409.
    """
    return collections.delete(wh, asking, namespace, collection_identifier)


@router.get("/v1/collections/{collection_identifier}/features")
def describe_features(
    wh: Wh, asking: Asking, namespace: NamespaceId, collection_identifier: Collection
) -> DescribeFeaturesResponse:
    """Describe the vectors that a retriever can search in this collection."""
    return collections.features(wh, asking, namespace, collection_identifier)


@router.post("/v1/collections/{collection_identifier}/trigger", status_code=202)
def trigger_collection(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: TriggerCollectionRequest | None = None,
) -> TriggerCollectionResponse:
    """Process all that the collection reads, then what it feeds; durable when answered, findable when COMPLETED."""
    return batches.trigger(wh, asking, namespace, collection_identifier, body or TriggerCollectionRequest())


@router.post("/v1/collections/{collection_identifier}/clone", status_code=201)
def clone_collection(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: CloneCollectionRequest,
) -> CloneCollectionResponse:
    """Create a collection like this one, but for what is given; durable when answered. It has no documents yet."""
    return collections.clone(wh, asking, namespace, collection_identifier, body)


@router.post("/v1/collections/{collection_identifier}/sync-schema")
def sync_schema(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: SchemaSyncRequest | None = None,
) -> SchemaSyncResponse | SchemaSyncSkippedResponse:
    """Add the fields that documents have beyond the output schema to it; durable when answered."""
    return schema_sync.sync(wh, asking, namespace, collection_identifier, body or SchemaSyncRequest())


@router.post("/v1/collections/{collection_identifier}/export", dependencies=[require("read")])
def export_collection(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    collection_identifier: Collection,
    body: CollectionExportRequest | None = None,
) -> CollectionExportResponse:
    """Write the collection's documents into a file, and return a link to it that works for an hour without a key."""
    return exports.export(wh, asking, namespace, collection_identifier, body or CollectionExportRequest())
