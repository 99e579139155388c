"""The catalogue: extractors, stages and requests of this server, and which extractors a namespace uses."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query

from tessera import discovery, namespaces
from tessera.api.auth import Asking
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.errors import NotFoundError
from tessera.models.base import JsonObject
from tessera.models.namespaces import UnifiedExtractorListResponse

router = Router(tags=["Extractors"])

ExtractorId = Annotated[
    str, Path(description="Name and version: `text_extractor_v1`.", examples=["text_extractor_v1"])
]
NamespaceIdentifier = Annotated[str, Path(description="Id or name.", max_length=255)]


@router.get("/v1/collections/features/extractors")
def list_feature_extractors(wh: Wh) -> list[JsonObject]:
    """Describe every extractor of this server under each of its versions. Needs no key."""
    return wh.registry.catalogue()


@router.get("/v1/collections/features/extractors/{feature_extractor_id}")
def get_feature_extractor(wh: Wh, feature_extractor_id: ExtractorId) -> JsonObject:
    """Describe one extractor. Needs no key."""
    return wh.registry.by_id(feature_extractor_id)


@router.get("/v1/discovery")
def discover(wh: Wh) -> JsonObject:
    """Describe extractors, stages and the requests that create something, with examples. Needs no key."""
    return discovery.everything(wh)


@router.get("/v1/discovery/extractors")
def discover_extractors(wh: Wh) -> list[JsonObject]:
    """Describe every extractor, with the requests that put it to use. Needs no key."""
    return discovery.extractors(wh)


@router.get("/v1/discovery/stages")
def discover_stages(wh: Wh) -> list[JsonObject]:
    """Describe every stage that a retriever may use, with an example that a retriever takes. Needs no key."""
    return discovery.stages(wh)


@router.get("/v1/discovery/schema")
def discover_schema() -> JsonObject:
    """Return the JSON schema of each request that creates something, and which of them names which. Needs no key."""
    return discovery.manifest_schema()


@router.get("/v1/namespaces/{namespace_id}/extractors")
def list_namespace_extractors(
    wh: Wh,
    asking: Asking,
    namespace_id: NamespaceIdentifier,
    source: Literal["builtin", "custom", "community", "all"] | None = None,
    include_disabled: Annotated[bool, Query(description="There are none.")] = False,
) -> UnifiedExtractorListResponse:
    """Describe the extractors that collections of a namespace may use, as registered at its creation."""
    found, used = _used(wh, asking, namespace_id)
    shown = [entry for entry in used if source in (None, "all", entry["source"])]
    builtin = sum(entry["source"] == "builtin" for entry in shown)
    return UnifiedExtractorListResponse(
        extractors=shown,
        total=len(shown),
        namespace_id=found,
        builtin_count=builtin,
        custom_count=len(shown) - builtin,
    )


@router.get("/v1/namespaces/{namespace_id}/extractors/{extractor_id}")
def get_namespace_extractor(
    wh: Wh, asking: Asking, namespace_id: NamespaceIdentifier, extractor_id: ExtractorId
) -> JsonObject:
    """Describe one extractor of a namespace."""
    _, used = _used(wh, asking, namespace_id)
    for entry in used:
        if extractor_id in (entry["feature_extractor_id"], entry["feature_extractor_name"]):
            return entry
    raise NotFoundError("feature extractor", extractor_id)


def _used(wh: Wh, asking: Asking, identifier: str) -> tuple[str, list[JsonObject]]:
    with wh.db.read() as connection:
        row = namespaces.resolve(connection, asking, identifier)
    registered = [(item["feature_extractor_name"], item["version"]) for item in row["feature_extractors"]]
    # One whose file was removed, or is broken, cannot be described.
    return row["namespace_id"], [
        wh.registry.describe(name, version)
        for name, version in registered
        if wh.registry.find(name, version) is not None
    ]
