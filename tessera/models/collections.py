"""Collections: what an extractor makes of objects, or of other collections' documents, and what comes of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from tessera.models.base import JsonObject, Model, PaginationResponse
from tessera.models.buckets import BucketSchema
from tessera.models.objects import ListSort

#: The clients refuse to read a collection whose name is shorter or longer.
MIN_NAME_LENGTH, NAME_LENGTH = 3, 100


class SourceConfig(Model):
    """What the collection reads: one or more buckets, or one or more other collections, by id or name.

    A source that `source_filters` (a filter, also under the key `filters`) does not let through is left out, and has
    no documents. Objects are seen with their fields and `blobs`, documents with all their fields.
    """

    type: str | None = Field(
        None, max_length=64, description="`bucket` or `collection`; absent: what the ids are of."
    )
    bucket_ids: list[str] | None = Field(None, max_length=100)
    bucket_id: str | None = Field(None, max_length=128, description="Short for `bucket_ids` of one.")
    collection_ids: list[str] | None = Field(None, max_length=100)
    collection_id: str | None = Field(None, max_length=128, description="Short for `collection_ids` of one.")
    source_filters: JsonObject | None = None

    def kind(self) -> str:
        """Return what is read, said or not."""
        if self.type is not None:
            return self.type
        return "collection" if self.collection_ids or self.collection_id else "bucket"

    def identifiers(self, kind: str) -> list[str]:
        """Return the ids and names given of one kind of source, ``bucket`` or ``collection``, each once."""
        many, one = (
            (self.collection_ids, self.collection_id)
            if kind == "collection"
            else (self.bucket_ids, self.bucket_id)
        )
        return list(dict.fromkeys([*(many or ()), *([one] if one else ())]))


class InputMapping(Model):
    """One input of the extractor: a path into the object, or a literal value."""

    input_key: str = Field(min_length=1, max_length=100)
    source_type: Literal["payload", "literal", "vector"] = "payload"
    path: str | None = Field(None, max_length=255)
    override: Any = None


class FieldPassthrough(Model):
    """A field of the object that its documents carry.

    `target_path` is the last part of `source_path` unless given; the field is stored under its own path too.
    """

    source_path: str = Field(min_length=1, max_length=255, examples=["metadata.category"])
    target_path: str | None = Field(None, min_length=1, max_length=255)
    default: Any = None
    required: bool = False


class FeatureExtractorConfig(Model):
    """The extractor to run: one of the namespace's, under either spelling of its version.

    `input_mappings` is a map from the extractor's input to a path into the object, or a list of
    `InputMapping`. Unknown `parameters` are ignored.
    """

    feature_extractor_name: str = Field(min_length=1, max_length=255, examples=["text_extractor"])
    version: str = Field(min_length=1, max_length=64, examples=["v1"])
    params: JsonObject | None = None
    parameters: JsonObject | None = None
    input_mappings: dict[str, str] | list[InputMapping] | None = None
    field_passthrough: list[FieldPassthrough] | None = Field(None, max_length=1000)
    include_all_source_fields: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _paths_alone(cls, value: Any) -> Any:
        """Let a plain path stand for a passthrough entry."""
        if isinstance(value, dict) and isinstance(value.get("field_passthrough"), list):
            entries = [{"source_path": e} if isinstance(e, str) else e for e in value["field_passthrough"]]
            return {**value, "field_passthrough": entries}
        return value


class CreateCollectionRequest(Model):
    """A collection to create. Its `output_schema` is in the answer at once, and fixed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "collection_name": "quickstart-docs",
                    "source": {"type": "bucket", "bucket_ids": ["quickstart-bucket"]},
                    "feature_extractor": {
                        "feature_extractor_name": "text_extractor",
                        "version": "v1",
                        "input_mappings": {"text": "product_text"},
                        "field_passthrough": [{"source_path": "metadata.category"}],
                    },
                }
            ]
        }
    )

    collection_name: str = Field(
        min_length=MIN_NAME_LENGTH,
        max_length=NAME_LENGTH,
        validation_alias=AliasChoices("collection_name", "name"),
        description="Name of the collection, unique in the namespace.",
        examples=["quickstart-docs"],
    )
    source: SourceConfig
    feature_extractor: FeatureExtractorConfig
    description: str | None = Field(None, max_length=10_000)
    input_schema: BucketSchema | None = Field(None, description="Absent: what all sources together have.")
    enabled: bool = Field(True, description="A disabled collection takes no part in new batches.")
    metadata: JsonObject | None = None
    taxonomy_applications: list[Any] | None = Field(
        None, max_length=20, description="Taxonomies whose assignments documents carry as they are written."
    )
    cluster_applications: list[Any] | None = Field(None, description="Not available in this version.")
    alert_applications: list[Any] | None = Field(None, description="Not available in this version.")
    retriever_enrichments: list[Any] | None = Field(None, description="Not available in this version.")
    schedule: JsonObject | None = Field(None, description="Not available in this version.")


class CloneCollectionRequest(Model):
    """A new name, and what shall differ from the collection that is cloned; an absent key is as it is there."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"collection_name": "quickstart-docs-2"}]})

    collection_name: str = Field(
        min_length=MIN_NAME_LENGTH,
        max_length=NAME_LENGTH,
        validation_alias=AliasChoices("collection_name", "name"),
    )
    source: SourceConfig | None = None
    feature_extractor: FeatureExtractorConfig | None = None
    description: str | None = Field(None, max_length=10_000)
    enabled: bool | None = None
    metadata: JsonObject | None = None
    taxonomy_applications: list[Any] | None = Field(
        None, max_length=20, description="Taxonomies whose assignments documents carry as they are written."
    )


class PatchCollectionRequest(Model):
    """What to change; an absent key stays as it is. Source, extractor and schemas are fixed."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"description": "Products of 2026"}]}
    )

    collection_name: str | None = Field(
        None,
        min_length=MIN_NAME_LENGTH,
        max_length=NAME_LENGTH,
        validation_alias=AliasChoices("collection_name", "name"),
    )
    description: str | None = Field(None, max_length=10_000)
    enabled: bool | None = None
    metadata: JsonObject | None = None
    taxonomy_applications: list[Any] | None = Field(None, max_length=20)


class SourceFilters(Model):
    filters: JsonObject


class SourceAnswer(Model):
    """What the collection reads. `inherited_bucket_ids` are the buckets that its documents go back to."""

    type: Literal["bucket", "collection"] = "bucket"
    bucket_ids: list[str] | None = None
    collection_ids: list[str] | None = None
    inherited_bucket_ids: list[str] | None = None
    source_filters: SourceFilters | None = None


class FeatureExtractorAnswer(Model):
    feature_extractor_name: str
    version: str
    feature_extractor_id: str
    params: JsonObject | None
    parameters: JsonObject | None
    input_mappings: dict[str, str] | list[InputMapping] | None
    field_passthrough: list[FieldPassthrough]
    include_all_source_fields: bool


class VectorIndex(Model):
    """A vector of the collection's documents, or the index of their words, which has no `dimensions`."""

    name: str
    description: str
    dimensions: int | None
    type: Literal["dense", "sparse"] = "dense"
    distance: str
    datatype: Literal["float32"] = "float32"
    supported_inputs: list[str]
    inference_name: str
    inference_service_id: str = Field(description="The model that really runs.")


class CollectionVectorIndex(Model):
    """A vector as the collection lists it; `feature_uri` is what a retriever names."""

    name: str
    feature_uri: str
    type: Literal["single"] = "single"
    description: str
    index: VectorIndex


class CollectionResponse(Model):
    """A collection. `document_count` counts the documents that its last batches brought."""

    collection_id: str = Field(examples=["col_0f3a9c5e77d1b2c4"])
    collection_name: str
    namespace_id: str
    description: str | None
    source: SourceAnswer
    feature_extractor: FeatureExtractorAnswer
    input_schema: BucketSchema
    output_schema: BucketSchema
    vector_indexes: list[CollectionVectorIndex]
    payload_indexes: list[JsonObject]
    enabled: bool
    metadata: JsonObject
    document_count: int
    schema_version: int = Field(description="Grows with each sync that found new fields.")
    last_schema_sync: str | None
    #: Schemas grow when that is asked for, never by themselves.
    schema_sync_enabled: Literal[False] = False
    taxonomy_applications: list[JsonObject] = Field(default_factory=list)
    cluster_applications: list[Any] = Field(default_factory=list)
    created_at: str
    updated_at: str


class ListCollectionsRequest(Model):
    """Which collections to list. `filters` takes equality on `collection_id`, `collection_name`, `description`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"search": "quickstart"}]})

    filters: JsonObject | None = None
    sort: ListSort | None = None
    search: str | None = Field(None, max_length=1000)
    case_sensitive: bool | None = False


class CollectionListStats(Model):
    """Totals over the collections of this page."""

    total_documents: int
    avg_documents_per_collection: float
    total_feature_extractors: int


class ListCollectionsResponse(Model):
    results: list[CollectionResponse]
    pagination: PaginationResponse
    total_count: int
    stats: CollectionListStats


class CollectionFeature(Model):
    """A vector that a retriever can search, under its address."""

    feature_address: str
    feature_uri: str
    feature_extractor_name: str
    version: str
    vector_index: VectorIndex
    primary: bool


class DescribeFeaturesResponse(Model):
    features: list[CollectionFeature]


class TriggerCollectionRequest(Model):
    """Which of the collection's sources to process; all when absent.

    `include_buckets` is for a collection of buckets, `include_collections` for one that collections feed; both take
    ids and names. `source_filters` is a filter over objects or documents.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"source_filters": {"AND": [{"field": "metadata.lang", "operator": "eq", "value": "en"}]}}
            ]
        }
    )

    include_buckets: list[str] | None = Field(None, max_length=100)
    include_collections: list[str] | None = Field(None, max_length=100)
    source_filters: JsonObject | None = None


class TriggerCollectionResponse(Model):
    """A batch of the collection's sources was submitted, for it and all that it feeds; follow `task_id`.

    A collection of several buckets has a batch, and a task, for each.
    """

    batch_id: str
    task_id: str
    batch_ids: list[str]
    task_ids: list[str]
    collection_id: str
    source_bucket_ids: list[str] | None
    source_collection_ids: list[str] | None
    object_count: int | None
    document_count: int | None
    total_tiers: int
    message: str


class CloneCollectionResponse(Model):
    collection: CollectionResponse
    source_collection_id: str


class SchemaSyncRequest(Model):
    """How many documents to look at, and whether collections that read this one get to know what is found."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"sample_size": 1000, "force": True}]})

    sample_size: int = Field(1000, ge=1, le=10_000)
    force: bool = Field(False, description="Also when the last sync is less than five minutes ago.")
    cascade_to_downstream: bool = True


class SchemaSyncResponse(Model):
    success: Literal[True] = True
    collection_id: str
    schema_version: int
    previous_version: int
    fields_added: list[str]
    fields_total: int
    documents_sampled: int
    downstream_collections_updated: list[str]
    message: str | None


class SchemaSyncSkippedResponse(Model):
    """The last sync is too fresh for another one."""

    success: Literal[True] = True
    skipped: Literal[True] = True
    reason: str
    collection_id: str
    schema_version: int
    last_sync: str | None


class ExportFormat(StrEnum):
    """``json`` has a document a line."""

    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


class CollectionExportRequest(Model):
    """Which documents to export, and how; all of them, as Parquet, when nothing is said."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"format": "json", "sample_size": 100}]})

    format: ExportFormat = ExportFormat.PARQUET
    include_vectors: bool = Field(False, description="Vectors too, in a file of their own.")
    select_fields: list[str] | None = Field(None, max_length=100, description="Only these fields, by path.")
    filters: JsonObject | None = None
    sample_size: int | None = Field(None, ge=1, le=1_000_000, description="At most so many documents.")


class CollectionExportResponse(Model):
    """A file that can be fetched for an hour under `download_url`, and then is gone."""

    download_url: str
    s3_path: str = Field(description="Where the file lies in the server's storage.")
    format: ExportFormat
    document_count: int
    file_size_bytes: int
    exported_at: str
    vectors_download_url: str | None
    vectors_s3_path: str | None
