"""Namespaces: what a request states, and what an answer carries. Names, defaults and bounds are the API's."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, field_validator, model_validator

from tessera.errors import quote
from tessera.models.base import JsonObject, Model, PaginationResponse
from tessera.models.indexes import PayloadIndex, PayloadIndexConfig

NAME_LENGTH = 64
#: `name` is what a high-level client sends.
_NAME = AliasChoices("namespace_name", "name")
URL_LENGTH = 2048


class ComputeTier(StrEnum):
    SHARED = "shared"
    DEDICATED_CPU = "dedicated_cpu"
    DEDICATED_GPU = "dedicated_gpu"


class NamespaceType(StrEnum):
    STANDARD = "standard"
    MARKETPLACE = "marketplace"


class BaseFeatureExtractorModel(Model):
    """A feature extractor by name and version. `feature_extractor_id` is accepted and computed anew."""

    feature_extractor_name: str = Field(min_length=1, max_length=255, examples=["video_extractor"])
    version: str = Field(min_length=1, max_length=64, examples=["1.0.0"])
    params: JsonObject | None = Field(
        None, description="Parameters that decide the vectors; fixed when the namespace is created."
    )
    feature_extractor_id: str | None = Field(None, max_length=320, examples=["video_extractor_1.0.0"])


class FeatureExtractorAnswer(Model):
    feature_extractor_name: str
    version: str
    params: JsonObject | None = None
    feature_extractor_id: str


class NamespaceInfrastructure(Model):
    """On whose Qdrant and Ray a namespace runs.

    `shared` uses the organization's infrastructure where that is dedicated, else the server's. A dedicated
    tier needs `qdrant_collection`, `qdrant_url`, `qdrant_api_key` and `ray_head_node_url`; `dedicated_gpu`
    also `gpu_type` and `gpus_per_worker`. URLs sent with `shared` are kept and shown, never used.
    """

    qdrant_collection: str | None = Field(
        None,
        min_length=3,
        max_length=128,
        description="Generated on the shared tier when absent; required for dedicated tiers.",
        examples=["ns_dev"],
    )
    compute_tier: ComputeTier = ComputeTier.SHARED
    ray_cluster_id: str | None = Field(None, pattern=r"^ray_[a-zA-Z0-9_]{3,64}$")
    ray_head_node_url: str | None = Field(
        None, max_length=URL_LENGTH, examples=["ray://shared-cluster:10001"]
    )
    ray_dashboard_url: str | None = Field(None, max_length=URL_LENGTH)
    ray_auth_token: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        repr=False,
        description="Token of the Ray cluster; never shown. Ray demands one since 2.59.",
        json_schema_extra={"writeOnly": True, "format": "password"},
    )
    qdrant_url: str | None = Field(None, max_length=URL_LENGTH)
    qdrant_api_key: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        repr=False,
        json_schema_extra={"writeOnly": True, "format": "password"},
    )
    max_concurrent_jobs: int = Field(10, ge=1, le=1000)
    autoscaling_enabled: bool = True
    min_workers: int = Field(1, ge=0, le=100)
    max_workers: int = Field(10, ge=1, le=100)
    gpu_type: str | None = Field(None, min_length=1, max_length=64, examples=["A100"])
    gpus_per_worker: int = Field(1, ge=0, le=8)
    s3_plugin_bucket: str = Field("mixpeek-plugins", max_length=255)
    s3_plugin_prefix: str | None = Field(None, max_length=1024)
    max_custom_plugins: int = Field(0, ge=0, le=100)
    max_custom_models: int = Field(0, ge=0, le=50)
    description: str | None = Field(None, max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _null_means_default(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value


class InfrastructureAnswer(Model):
    """Infrastructure as resolved: the tier and URLs that are in force. Secrets are never shown."""

    qdrant_collection: str
    compute_tier: ComputeTier
    source: Literal["namespace", "organization", "server"]
    ray_cluster_id: str | None
    ray_head_node_url: str | None
    ray_dashboard_url: str | None
    qdrant_url: str | None
    max_concurrent_jobs: int
    autoscaling_enabled: bool
    min_workers: int
    max_workers: int
    gpu_type: str | None
    gpus_per_worker: int
    s3_plugin_bucket: str
    s3_plugin_prefix: str | None
    max_custom_plugins: int
    max_custom_models: int
    description: str | None


_EXAMPLE: JsonObject = {
    "namespace_name": "spotify_playlists_dev",
    "description": "This namespace contains playlists from Spotify",
    "feature_extractors": [
        {
            "feature_extractor_id": "video_extractor_1.0.0",
            "feature_extractor_name": "video_extractor",
            "version": "1.0.0",
        }
    ],
    "payload_indexes": [
        {
            "field_name": "metadata.title",
            "field_schema": {
                "lowercase": True,
                "max_token_len": 15,
                "min_token_len": 2,
                "tokenizer": "word",
                "type": "text",
            },
            "type": "text",
        },
        {
            "field_name": "metadata.description",
            "field_schema": {"is_tenant": True, "type": "keyword"},
            "type": "keyword",
        },
    ],
}


class _NamespaceFields(Model):
    """What creating and changing have in common."""

    @field_validator("auto_create_indexes", mode="before", check_fields=False)
    @classmethod
    def _only_a_boolean(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"auto_create_indexes must be true or false, not {quote(value)}.")
        return value


class CreateNamespaceRequest(_NamespaceFields):
    """A namespace to create: its feature extractors, and the payload fields to index.

    The indexes that the extractors need are added by themselves.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    namespace_name: str = Field(
        validation_alias=_NAME,
        min_length=1,
        max_length=NAME_LENGTH,
        description="Name of the namespace, unique in the organization.",
        examples=["spotify_playlists_dev"],
    )
    feature_extractors: list[BaseFeatureExtractorModel] = Field(
        min_length=1, max_length=100, description="Feature extractors to use, at least one."
    )
    description: str | None = Field(None, description="What the namespace is for.")
    payload_indexes: list[PayloadIndexConfig] | None = Field(
        None, max_length=1000, description="Payload fields to index, beside those that the extractors need."
    )
    infrastructure: NamespaceInfrastructure | None = Field(
        None, description="Absent: shared. Dedicated tiers bring their own Qdrant and Ray."
    )
    auto_create_indexes: bool | None = False
    namespace_type: NamespaceType | None = NamespaceType.STANDARD


class PatchNamespaceRequest(_NamespaceFields):
    """What to change; an absent key stays as it is.

    `description: null` clears it, `payload_indexes: null` removes all user indexes; a list replaces them.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "description": "Playlists of 2026",
                    "payload_indexes": [{"field_name": "metadata.year", "type": "integer"}],
                }
            ]
        }
    )

    namespace_name: str | None = Field(None, validation_alias=_NAME, min_length=1, max_length=NAME_LENGTH)
    description: str | None = None
    payload_indexes: list[PayloadIndexConfig] | None = Field(None, max_length=1000)
    auto_create_indexes: bool | None = None
    infrastructure: NamespaceInfrastructure | None = None


class UpdateNamespaceRequest(_NamespaceFields):
    """Name and payload indexes to set; without `payload_indexes` they stay."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"namespace_name": "spotify_playlists_dev", "payload_indexes": []}]}
    )

    namespace_name: str | None = Field(None, validation_alias=_NAME, min_length=1, max_length=NAME_LENGTH)
    payload_indexes: list[PayloadIndexConfig] | None = Field(None, max_length=1000)


class NamespaceModel(Model):
    """A namespace. Every field is always there; `payload_indexes` names the user's first, in the order sent."""

    object: Literal["namespace"] = "namespace"
    namespace_id: str = Field(examples=["ns_0f3a9c5e77d1b2c4"])
    namespace_name: str = Field(examples=["spotify_playlists_dev"])
    namespace_type: NamespaceType
    infrastructure: InfrastructureAnswer
    cluster_id: str | None
    description: str | None
    feature_extractors: list[FeatureExtractorAnswer]
    payload_indexes: list[PayloadIndex]
    payload_index_count: int = Field(
        description="User indexes, without those that extractors and the system add."
    )
    document_count: int
    document_count_complete: bool
    bucket_count: int
    collection_count: int
    object_count: int
    auto_create_indexes: bool
    vector_inference_map: dict[str, str] = Field(description="For each vector, the model that really runs.")
    mode: Literal["managed"] = "managed"
    namespace_ready: bool
    clone_status: str | None
    source_namespace_id: str | None
    expires_at: str | None
    created_at: str
    updated_at: str


class NamespaceSort(Model):
    field: Literal[
        "namespace_name", "namespace_id", "description", "created_at", "updated_at", "document_count"
    ] = "created_at"
    direction: Literal["asc", "desc"] = "asc"


class ListNamespacesRequest(Model):
    """Which namespaces to list. All parts are optional.

    `filters` takes `namespace_id`, `namespace_name` and `description`, each with a value or with operators
    (`$eq $ne $in $nin $regex $exists`); `search` finds a substring in any of them.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "filters": {"namespace_name": {"$regex": "^spotify_"}},
                    "sort": {"field": "created_at", "direction": "desc"},
                }
            ]
        }
    )

    filters: JsonObject | None = None
    sort: NamespaceSort | None = None
    sorts: list[NamespaceSort] | None = Field(None, description="As `sort`; the first one counts.")
    search: str | None = Field(None, max_length=1000)
    case_sensitive: bool | None = False


class NamespaceListStats(Model):
    """Totals over the namespaces of this page."""

    total_feature_extractors: int
    total_payload_indexes: int
    total_documents: int
    total_buckets: int
    total_collections: int
    total_objects: int
    avg_feature_extractors_per_namespace: float
    avg_payload_indexes_per_namespace: float
    avg_documents_per_namespace: float
    avg_buckets_per_namespace: float
    avg_collections_per_namespace: float
    avg_objects_per_namespace: float


class ListNamespacesResponse(Model):
    results: list[NamespaceModel]
    pagination: PaginationResponse
    total_count: int
    stats: NamespaceListStats


class DeleteNamespaceResponse(Model):
    """The namespace is gone for every reader; `task_id` follows the removal of what it held."""

    success: Literal[True] = True
    message: str
    namespace_id: str
    task_id: str
    status: str


class PayloadIndexStats(Model):
    """A payload index as the engine reports it; `points` counts the documents whose value it indexes."""

    field_name: str
    type: str
    params: JsonObject
    points: int


class NamespaceStatsResponse(Model):
    namespace_id: str
    document_count: int
    document_count_complete: bool
    bucket_count: int
    collection_count: int
    object_count: int
    payload_indexes: list[PayloadIndexStats]


class UnifiedExtractorListResponse(Model):
    """The extractors that a namespace may use in its collections."""

    success: Literal[True] = True
    extractors: list[JsonObject]
    total: int
    namespace_id: str
    builtin_count: int
    custom_count: int
