"""Routes of taxonomies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from tessera import taxonomies, taxonomy_execution
from tessera.api.auth import Asking, require
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import NamespaceId, Wh
from tessera.models.tasks import GenericDeleteResponse
from tessera.models.taxonomies import (
    CloneTaxonomyRequest,
    CloneTaxonomyResponse,
    CreateTaxonomyRequest,
    ExecuteTaxonomyRequest,
    JoinResponse,
    ListTaxonomiesRequest,
    ListTaxonomiesResponse,
    NewVersionRequest,
    PatchTaxonomyRequest,
    TaxonomyResponse,
)

router = Router(tags=["Taxonomies"])
_read = [require("read")]

Taxonomy = Annotated[str, Path(description="Taxonomy by id or name.", examples=["topics"])]
Version = Annotated[int | None, Query(ge=1, le=2**31 - 1, description="A version; the newest when absent.")]


@router.post("/v1/taxonomies")
def create_taxonomy(
    wh: Wh, asking: Asking, namespace: NamespaceId, body: CreateTaxonomyRequest
) -> TaxonomyResponse:
    """Create a taxonomy; durable when answered. A taken name is a 409."""
    return taxonomies.create(wh, asking, namespace, body)


@router.post("/v1/taxonomies/list", dependencies=_read)
def list_taxonomies(
    wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging, body: ListTaxonomiesRequest | None = None
) -> ListTaxonomiesResponse:
    """List taxonomies, the newest first unless sorted otherwise."""
    return taxonomies.list_(wh, asking, namespace, page, body or ListTaxonomiesRequest())


@router.get("/v1/taxonomies")
def list_taxonomies_get(
    wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging, search: str | None = None
) -> ListTaxonomiesResponse:
    """List taxonomies, the newest first."""
    return taxonomies.list_(wh, asking, namespace, page, ListTaxonomiesRequest(search=search))


@router.post("/v1/taxonomies/execute/{taxonomy_identifier}", dependencies=_read)
def execute_taxonomy(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    taxonomy_identifier: Taxonomy,
    body: ExecuteTaxonomyRequest,
    version: Version = None,
) -> JoinResponse:
    """Compare documents with a taxonomy and return what it says of them. Nothing is stored."""
    return taxonomy_execution.execute(wh, asking, namespace, taxonomy_identifier, body, version)


@router.post("/v1/taxonomies/{taxonomy_identifier}/execute", dependencies=_read)
def execute_taxonomy_short(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    taxonomy_identifier: Taxonomy,
    body: ExecuteTaxonomyRequest,
    version: Version = None,
) -> JoinResponse:
    """The same as `execute/{taxonomy_identifier}`, under its newer path."""
    return taxonomy_execution.execute(wh, asking, namespace, taxonomy_identifier, body, version)


@router.get("/v1/taxonomies/{taxonomy_identifier}")
def get_taxonomy(
    wh: Wh, asking: Asking, namespace: NamespaceId, taxonomy_identifier: Taxonomy, version: Version = None
) -> TaxonomyResponse:
    """Return a taxonomy, as one of its versions has it."""
    return taxonomies.get(wh, asking, namespace, taxonomy_identifier, version)


@router.patch("/v1/taxonomies/{taxonomy_identifier}")
def patch_taxonomy(
    wh: Wh, asking: Asking, namespace: NamespaceId, taxonomy_identifier: Taxonomy, body: PatchTaxonomyRequest
) -> TaxonomyResponse:
    """Change name, description or metadata; another `config` becomes the next version. Durable when answered.

    Collections that it is applied to are compared anew in the background, with a task for each.
    """
    return taxonomies.patch(wh, asking, namespace, taxonomy_identifier, body)


@router.delete("/v1/taxonomies/{taxonomy_identifier}")
def delete_taxonomy(
    wh: Wh, asking: Asking, namespace: NamespaceId, taxonomy_identifier: Taxonomy
) -> GenericDeleteResponse:
    """Delete a taxonomy with its versions; durable when answered. One that is applied to a collection is a 409."""
    return taxonomies.delete(wh, asking, namespace, taxonomy_identifier)


@router.get("/v1/taxonomies/{taxonomy_identifier}/versions")
def list_taxonomy_versions(
    wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging, taxonomy_identifier: Taxonomy
) -> ListTaxonomiesResponse:
    """List every version of a taxonomy, the newest first."""
    return taxonomies.versions(wh, asking, namespace, taxonomy_identifier, page)


@router.post("/v1/taxonomies/{taxonomy_identifier}/versions")
def create_taxonomy_version(
    wh: Wh, asking: Asking, namespace: NamespaceId, taxonomy_identifier: Taxonomy, body: NewVersionRequest
) -> TaxonomyResponse:
    """Give a taxonomy its next configuration; durable when answered. The one that it has makes no new version."""
    return taxonomies.add_version(wh, asking, namespace, taxonomy_identifier, body)


@router.post("/v1/taxonomies/{taxonomy_identifier}/clone", status_code=201)
def clone_taxonomy(
    wh: Wh, asking: Asking, namespace: NamespaceId, taxonomy_identifier: Taxonomy, body: CloneTaxonomyRequest
) -> CloneTaxonomyResponse:
    """Create another taxonomy like this one; what the body states replaces what it has. Durable when answered."""
    return taxonomies.clone(wh, asking, namespace, taxonomy_identifier, body)
