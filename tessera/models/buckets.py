"""Buckets: a named place for objects, and the schema that its objects follow."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from tessera.models.base import JsonObject, Model, PaginationResponse

NAME_LENGTH = 100


class FieldType(StrEnum):
    """Types of a bucket's properties: the first ten are values, the others are held by blobs."""

    STRING = "string"
    NUMBER = "number"
    INTEGER = "integer"
    FLOAT = "float"
    BOOLEAN = "boolean"
    OBJECT = "object"
    ARRAY = "array"
    DATE = "date"
    DATETIME = "datetime"
    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"
    PDF = "pdf"
    EXCEL = "excel"


#: Types whose content an object carries as a blob; all others are plain values.
BLOB_TYPES = frozenset(
    {FieldType.TEXT, FieldType.IMAGE, FieldType.AUDIO, FieldType.VIDEO, FieldType.PDF, FieldType.EXCEL}
)


class SchemaField(Model):
    """One property: its type, and what its values must be. Further keys are kept and echoed."""

    model_config = ConfigDict(extra="allow")

    type: FieldType
    required: bool = False
    default: Any = None
    description: str | None = None
    enum: list[Any] | None = None
    examples: list[Any] | None = None
    items: SchemaField | None = None
    properties: dict[str, SchemaField] | None = None

    @model_serializer(mode="wrap")
    def _as_sent(self, handler: SerializerFunctionWrapHandler) -> JsonObject:
        """Leave out what was not said."""
        written: JsonObject = handler(self)
        return {name: value for name, value in written.items() if name in self.model_fields_set}


class BucketSchema(Model):
    """The properties of a bucket's objects, by name."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"properties": {"product_text": {"type": "text", "required": True}}}]
        },
    )

    properties: dict[str, SchemaField] = Field(max_length=1000)


#: What an object whose unique key is taken, or is not, means.
Policy = Literal["insert", "update", "upsert"]


class UniqueKey(Model):
    """Fields whose values together name one object of the bucket."""

    fields: list[str] = Field(
        min_length=1, max_length=16, description="Properties of the schema that hold single values."
    )
    default_policy: Policy | None = Field(
        None,
        description="For requests without ?policy=. insert: a taken key is a 409. update: a free one is a 404. "
        "upsert: the object is made, or made equal to the request. Without any, each request must name one.",
    )


_NAME = AliasChoices("bucket_name", "name")
_SCHEMA = AliasChoices("bucket_schema", "schema")


class BucketCreateRequest(Model):
    """A bucket to create. `schema` is accepted for `bucket_schema`, `name` for `bucket_name`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "bucket_name": "quickstart-bucket",
                    "description": "Product texts",
                    "bucket_schema": {"properties": {"product_text": {"type": "text", "required": True}}},
                }
            ]
        }
    )

    bucket_name: str = Field(
        min_length=1,
        max_length=NAME_LENGTH,
        validation_alias=_NAME,
        description="Name of the bucket, unique in the namespace.",
        examples=["quickstart-bucket"],
    )
    bucket_schema: BucketSchema = Field(
        validation_alias=_SCHEMA, description="The properties that the bucket's objects have."
    )
    description: str | None = Field(None, max_length=10_000)
    metadata: JsonObject | None = None
    unique_key: UniqueKey | None = Field(
        None, description="Makes objects with equal values of these fields one object. Fixed at creation."
    )


class BucketPatchRequest(Model):
    """What to change; an absent key stays as it is, `null` clears `description` and `metadata`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"description": "Product texts of 2026"}]})

    bucket_name: str | None = Field(None, min_length=1, max_length=NAME_LENGTH, validation_alias=_NAME)
    description: str | None = Field(None, max_length=10_000)
    metadata: JsonObject | None = None
    bucket_schema: BucketSchema | None = Field(
        None,
        validation_alias=_SCHEMA,
        description="May add properties that are not required; the ones that exist stay as they are.",
    )
    unique_key: UniqueKey | None = Field(
        None, description="Changes default_policy; `fields` repeats those that the bucket has."
    )


class BucketUpdateRequest(BucketPatchRequest):
    """The same keys as in a patch: those that are given are set."""


class BatchStatistics(Model):
    total: int = 0
    active: int = Field(0, description="Not finished, drafts included.")
    completed: int = 0
    failed: int = 0


class BucketResponse(Model):
    """A bucket. Counts and sizes are exact, taken when it is read."""

    bucket_id: str = Field(examples=["bkt_0f3a9c5e77d1b2c4"])
    bucket_name: str
    namespace_id: str
    description: str | None
    bucket_schema: BucketSchema
    unique_key: UniqueKey | None
    metadata: JsonObject
    object_count: int
    total_size_bytes: int
    status: Literal["ACTIVE"] = "ACTIVE"
    is_locked: bool = False
    batch_stats: BatchStatistics
    last_upload_at: str | None = Field(description="When the youngest object was created.")
    created_at: str
    updated_at: str


class BucketSort(Model):
    field: Literal["bucket_name", "bucket_id", "description", "created_at", "updated_at"] = "created_at"
    direction: Literal["asc", "desc"] = "asc"


class ListBucketsRequest(Model):
    """Which buckets to list. `filters` takes equality on `bucket_id`, `bucket_name`, `description`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"search": "quickstart", "limit": 10}]})

    search: str | None = Field(None, max_length=1000)
    filters: JsonObject | None = None
    sort: BucketSort | None = None
    case_sensitive: bool | None = False


class BucketListStats(Model):
    """Totals over the buckets of this page."""

    total_objects: int
    total_size_bytes: int
    avg_objects_per_bucket: float
    avg_size_per_bucket: float


class ListBucketsResponse(Model):
    results: list[BucketResponse]
    total_count: int
    pagination: PaginationResponse
    stats: BucketListStats


class DeleteBucketResponse(Model):
    """The bucket, its objects and batches are gone; `task_id` is a finished task that says what went."""

    success: Literal[True] = True
    message: str
    bucket_id: str
    bucket_name: str
    object_count: int
    task_id: str
    status: Literal["COMPLETED"] = "COMPLETED"
