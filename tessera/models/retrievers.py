"""Retrievers: stages over collections, and what an execution takes and gives."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field

from tessera.models.base import JsonObject, Model

InputType = Literal[
    "string",
    "number",
    "integer",
    "float",
    "boolean",
    "object",
    "array",
    "date",
    "datetime",
    "text",
    "image",
    "audio",
    "video",
    "pdf",
    "excel",
    "document_reference",
]


_STAGES: list[JsonObject] = [
    {
        "stage_name": "search",
        "stage_type": "filter",
        "config": {
            "stage_id": "feature_search",
            "parameters": {
                "feature_uri": "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1",
                "input": {"text": "{{INPUT.query_text}}"},
                "limit": 20,
            },
        },
    }
]
_INPUT_SCHEMA: JsonObject = {"query_text": {"type": "text", "required": True}}
_EXAMPLE: JsonObject = {
    "retriever_name": "quickstart-search",
    "collection_identifiers": ["quickstart-docs"],
    "stages": _STAGES,
    "input_schema": _INPUT_SCHEMA,
}
_EXECUTION: JsonObject = {"inputs": {"query_text": "wireless headphones"}, "limit": 10}
_AD_HOC: JsonObject = {**_EXAMPLE, **_EXECUTION}
del _AD_HOC["retriever_name"]


class InputField(Model):
    """One input of a retriever."""

    type: InputType
    required: bool = False
    default: Any = None
    description: str | None = None
    enum: list[Any] | None = None
    examples: list[Any] | None = None


class CacheConfig(Model):
    """Whether results may be kept, and for how long at most; any write to the namespace ends them earlier."""

    model_config = ConfigDict(extra="allow")

    enabled: bool = True
    ttl_seconds: int = Field(3600, ge=1, le=30 * 86_400)


class BudgetLimits(Model):
    """What one execution may take; a credit is a number of a language model's tokens, all else costs none."""

    max_credits: float | None = Field(None, ge=0, allow_inf_nan=False)
    max_time_ms: int | None = Field(None, ge=0, le=86_400_000)


class CreateRetrieverRequest(Model):
    """A retriever to create; `name`, `collection_ids` and ``input_schema.properties`` are accepted spellings."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    retriever_name: str = Field(
        min_length=1,
        max_length=100,
        validation_alias=AliasChoices("retriever_name", "name"),
        examples=["quickstart-search"],
    )
    collection_identifiers: list[str] = Field(
        default_factory=list,
        max_length=100,
        validation_alias=AliasChoices("collection_identifiers", "collection_ids"),
        examples=[["quickstart-docs"]],
    )
    stages: list[JsonObject] = Field(
        min_length=1,
        max_length=32,
        examples=[_STAGES],
    )
    input_schema: JsonObject | None = Field(None, examples=[_INPUT_SCHEMA])
    description: str | None = Field(None, max_length=2000)
    budget_limits: BudgetLimits | None = None
    cache_config: CacheConfig | None = None
    tags: list[str] | None = None
    visibility: str | None = None
    display_config: JsonObject | None = None


class PatchRetrieverRequest(Model):
    """Metadata of a retriever; its stages do not change."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"description": "Product texts by meaning"}]})

    retriever_name: str | None = Field(
        None, min_length=1, max_length=100, validation_alias=AliasChoices("retriever_name", "name")
    )
    description: str | None = Field(None, max_length=2000)
    tags: list[str] | None = None
    visibility: str | None = None
    display_config: JsonObject | None = None
    # Fixed; may be sent back as they were read.
    stages: list[JsonObject] | None = None
    input_schema: JsonObject | None = None
    collection_identifiers: list[str] | None = Field(
        None, validation_alias=AliasChoices("collection_identifiers", "collection_ids")
    )
    budget_limits: JsonObject | None = None
    cache_config: JsonObject | None = None


class CloneRetrieverRequest(Model):
    """A retriever like another one; what is absent is taken from that."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"retriever_name": "quickstart-search-2"}]})

    retriever_name: str = Field(
        min_length=1, max_length=100, validation_alias=AliasChoices("retriever_name", "name")
    )
    description: str | None = Field(None, max_length=2000)
    collection_identifiers: list[str] | None = Field(
        None, max_length=100, validation_alias=AliasChoices("collection_identifiers", "collection_ids")
    )
    stages: list[JsonObject] | None = Field(None, min_length=1, max_length=32)
    input_schema: JsonObject | None = None
    budget_limits: BudgetLimits | None = None
    cache_config: CacheConfig | None = None
    tags: list[str] | None = None
    visibility: str | None = None
    display_config: JsonObject | None = None


class ListExecutionsRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "completed"}]})

    status: Literal["completed", "failed", "running"] | None = None


class ExplainRequest(Model):
    """What an execution would be asked; without inputs the plan is less exact."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": {"query_text": "wireless headphones"}}]}
    )

    inputs: JsonObject = Field(default_factory=dict)
    filters: JsonObject | None = None


class ExecuteRequest(Model):
    """One execution. `limit`, or `pagination` by method ``cursor`` or ``offset``, cuts the answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXECUTION]})

    inputs: JsonObject = Field(default_factory=dict, examples=[{"query_text": "wireless headphones"}])
    filters: JsonObject | None = None
    limit: int | None = Field(None, ge=1, le=1000)
    pagination: JsonObject | None = Field(
        None, examples=[{"method": "offset", "page_size": 10, "page_number": 1}]
    )
    return_urls: bool | None = None
    return_vectors: bool | None = None
    stream: bool = False
    collection_identifiers: list[str] | None = Field(
        None, validation_alias=AliasChoices("collection_identifiers", "collection_ids")
    )


class AdhocExecuteRequest(ExecuteRequest):
    """An execution of stages that are not stored."""

    model_config = ConfigDict(json_schema_extra={"examples": [_AD_HOC]})

    stages: list[JsonObject] = Field(min_length=1, max_length=32)
    input_schema: JsonObject | None = None
    budget_limits: BudgetLimits | None = None


class SearchDocumentsRequest(Model):
    """A plain text search over collections."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "wireless headphones", "page_size": 10}]}
    )

    query: str = Field(min_length=1, max_length=100_000)
    collection_ids: list[str] = Field(default_factory=list)
    filters: JsonObject | None = None
    page_size: int = Field(10, ge=1, le=500, validation_alias=AliasChoices("page_size", "limit"))
