"""Taxonomies: labelled documents that others are compared with, and what comparing takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, model_validator

from tessera.models.base import JsonObject, Model, PaginationResponse
from tessera.models.objects import ListSort

NAME_LENGTH = 100
#: Nodes of one hierarchy, and fields of one node.
MAX_NODES = 100
MAX_FIELDS = 100
#: Documents that one execution compares.
MAX_DOCUMENTS = 1000

_FLAT: JsonObject = {
    "taxonomy_type": "flat",
    "retriever_id": "topics-by-text",
    "input_mappings": [{"input_key": "text", "source_type": "payload", "path": "text"}],
    "source_collection": {
        "collection_id": "topics",
        "enrichment_fields": [{"field_path": "topic", "merge_mode": "replace"}],
    },
}


class MergeMode(StrEnum):
    """What becomes of a value that the document has already."""

    REPLACE = "replace"
    APPEND = "append"


class SourceType(StrEnum):
    PAYLOAD = "payload"
    LITERAL = "literal"
    VECTOR = "vector"


class EnrichmentStyle(StrEnum):
    """What a hierarchy writes beside its enrichment fields: each tier, the deepest node, or both."""

    FULL_CHAIN = "full_chain"
    BEST_MATCH = "best_match"
    COMBINED = "combined"


class InferenceStrategy(StrEnum):
    SCHEMA = "schema"
    CLUSTER = "cluster"
    LLM = "llm"


class TaxonomyInput(Model):
    """One input of the retriever: a field or a vector of the document, or a value that is always the same."""

    input_key: str = Field(min_length=1, max_length=200)
    source_type: SourceType = SourceType.PAYLOAD
    path: str | None = Field(None, max_length=1024)
    override: Any = None


def _as_mappings(value: Any) -> Any:
    """Read a map of paths, as the guides write it: ``{"text": "payload.title"}``."""
    if not isinstance(value, Mapping):
        return value
    return [
        {"input_key": key, **path} if isinstance(path, Mapping) else {"input_key": key, "path": path}
        for key, path in value.items()
    ]


def _as_fields(value: Any) -> Any:
    """Read names for fields: ``["topic"]``."""
    if not isinstance(value, list):
        return value
    return [{"field_path": item} if isinstance(item, str) else item for item in value]


Inputs = Annotated[list[TaxonomyInput], BeforeValidator(_as_mappings), Field(max_length=50)]


class EnrichmentField(Model):
    """A field of the matched node, and where it goes in the document."""

    field_path: str = Field(min_length=1, max_length=1024)
    target_field: str | None = Field(None, min_length=1, max_length=1024)
    merge_mode: MergeMode = MergeMode.REPLACE


Fields = Annotated[list[EnrichmentField], BeforeValidator(_as_fields), Field(max_length=MAX_FIELDS)]


class SourceCollection(Model):
    """Whose documents are the nodes. Without `enrichment_fields` a document gets all that it lacks itself."""

    collection_id: str = Field(min_length=1, max_length=255)
    enrichment_fields: Fields | None = None


def _as_source(value: Any) -> Any:
    return {"collection_id": value} if isinstance(value, str) else value


class FlatConfig(Model):
    """One collection whose documents are the nodes, found by one retriever."""

    taxonomy_type: Literal["flat"] = "flat"
    retriever_id: str = Field(min_length=1, max_length=255)
    input_mappings: Inputs
    source_collection: Annotated[SourceCollection, BeforeValidator(_as_source)]


class HierarchicalNode(Model):
    """A collection as a node. `retriever_id` and `input_mappings` default to the taxonomy's."""

    collection_id: str = Field(min_length=1, max_length=255)
    parent_collection_id: str | None = Field(None, max_length=255)
    label: str | None = Field(None, max_length=200)
    summary: str | None = Field(None, max_length=2000)
    keywords: list[str] | None = Field(None, max_length=100)
    retriever_id: str | None = Field(None, min_length=1, max_length=255)
    enrichment_fields: Fields | None = None
    input_mappings: Inputs | None = None


class HierarchicalConfig(Model):
    """Collections as nodes of a tree. ``schema`` derives who is whose parent from what their documents hold."""

    taxonomy_type: Literal["hierarchical"] = "hierarchical"
    retriever_id: str | None = Field(None, min_length=1, max_length=255)
    input_mappings: Inputs | None = None
    inference_strategy: InferenceStrategy | None = None
    inference_collections: list[str] | None = Field(None, max_length=MAX_NODES)
    hierarchical_nodes: list[HierarchicalNode] | None = Field(None, max_length=MAX_NODES)


class _Written(Model):
    """What a request says of a configuration: in `config`, or at its root as the guides write it."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("config") is not None:
            return given
        at_root = {name: given[name] for name in CONFIG_KEYS if name in given}
        if not at_root:
            return given
        fields = at_root.pop("enrichment_fields", None)
        source = _as_source(at_root.pop("source_collection", at_root.pop("collection_id", None)))
        if source is not None:
            if fields is not None and isinstance(source, Mapping):
                source = {"enrichment_fields": fields, **source}
            at_root["source_collection"] = source
        return {
            **{name: value for name, value in given.items() if name not in CONFIG_KEYS},
            "config": at_root,
        }


#: Keys of a configuration that stand at the root of a request where it has no `config`.
CONFIG_KEYS = frozenset(
    {"taxonomy_type", "source_collection", "collection_id", "enrichment_fields", "step_analytics"}
    | (HierarchicalConfig.model_fields.keys() | FlatConfig.model_fields.keys())
)


class CreateTaxonomyRequest(_Written):
    """A taxonomy to create; `config` is told apart by `taxonomy_type`, and its keys may stand at the root."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"taxonomy_name": "topics", "config": _FLAT}]},
    )

    taxonomy_name: str = Field(
        min_length=1, max_length=NAME_LENGTH, validation_alias=AliasChoices("taxonomy_name", "name")
    )
    description: str | None = Field(None, max_length=10_000)
    config: JsonObject
    metadata: JsonObject | None = None


class PatchTaxonomyRequest(_Written):
    """What to change; another `config` becomes the next version. Nothing at all is refused."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"description": "Topics of 2026"}]})

    taxonomy_name: str | None = Field(
        None, min_length=1, max_length=NAME_LENGTH, validation_alias=AliasChoices("taxonomy_name", "name")
    )
    description: str | None = Field(None, max_length=10_000)
    metadata: JsonObject | None = None
    config: JsonObject | None = None


class NewVersionRequest(_Written):
    """The next version's configuration: in `config`, or as the body itself."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"config": _FLAT}]})

    config: JsonObject


class CloneTaxonomyRequest(_Written):
    """A taxonomy like another one; what is absent is taken from that."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"taxonomy_name": "topics-2"}]})

    taxonomy_name: str = Field(
        min_length=1, max_length=NAME_LENGTH, validation_alias=AliasChoices("taxonomy_name", "name")
    )
    description: str | None = Field(None, max_length=10_000)
    config: JsonObject | None = None


class TaxonomyResponse(Model):
    """A taxonomy with one of its configurations, the newest unless another was asked for."""

    taxonomy_id: str = Field(examples=["tax_0f3a9c5e77d1b2c4"])
    version: int
    taxonomy_name: str
    namespace_id: str
    description: str | None
    retriever_id: str | None
    input_mappings: list[TaxonomyInput] | None
    config: JsonObject
    #: Nothing is inferred later: what is stored can be used.
    ready: Literal[True] = True
    metadata: JsonObject
    created_at: str
    updated_at: str


class CloneTaxonomyResponse(Model):
    taxonomy: TaxonomyResponse
    source_taxonomy_id: str


class ListTaxonomiesRequest(Model):
    """Which taxonomies to list. `filters` and `search` look at `taxonomy_id`, `taxonomy_name`, `description`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"search": "topics"}]})

    search: str | None = Field(None, max_length=1000)
    filters: JsonObject | None = None
    sort: ListSort | None = None
    case_sensitive: bool | None = False


class TaxonomyListStats(Model):
    """Totals over the taxonomies that were chosen."""

    total_taxonomies: int
    flat_taxonomies: int
    hierarchical_taxonomies: int
    taxonomies_with_retrievers: int


class ListTaxonomiesResponse(Model):
    results: list[TaxonomyResponse]
    pagination: PaginationResponse
    total_count: int
    stats: TaxonomyListStats


class ExecuteTaxonomyRequest(Model):
    """Which documents to compare: sent along, by id, of a collection, or the `inputs` of one. Nothing is stored."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"source_documents": [{"text": "How to prune a rose in spring"}]}]},
    )

    source_documents: list[JsonObject] | None = Field(
        None,
        max_length=MAX_DOCUMENTS,
        validation_alias=AliasChoices("source_documents", "documents"),
        description="Documents as they would be stored; `vectors` may hold some by name.",
    )
    document_ids: list[str] | None = Field(None, max_length=MAX_DOCUMENTS)
    inputs: JsonObject | None = Field(None, description="One document's inputs, past `input_mappings`.")
    source_collection_id: str | None = Field(
        None, validation_alias=AliasChoices("source_collection_id", "collection_id")
    )
    scroll_filters: JsonObject | None = Field(
        None, validation_alias=AliasChoices("scroll_filters", "filters")
    )
    limit: int = Field(100, ge=1, le=MAX_DOCUMENTS, description="Most documents of the collection.")
    top_k: int = Field(3, ge=1, le=50)
    min_confidence: float = Field(
        0.5, ge=0, le=1, validation_alias=AliasChoices("min_confidence", "min_score")
    )
    hierarchical_enrichment_style: EnrichmentStyle = EnrichmentStyle.COMBINED
    join_mode: Literal["on_demand", "batch"] | None = None


class JoinStats(Model):
    processed_docs: int
    batches: int
    errors: int
    enriched: int


class TaxonomyMatch(Model):
    """One assignment. `path` leads from the root to the node, `hierarchy_level` is 0 there."""

    document_id: str | None
    taxonomy_id: str
    taxonomy_name: str
    version: int
    node_id: str
    label: str
    score: float
    confidence: float
    path: list[str]
    hierarchy_level: int
    enriched_fields: list[str]


class JoinResponse(Model):
    """Each document with what the taxonomy adds to it, and every assignment in a row."""

    stats: JoinStats
    results: list[JsonObject]
    matches: list[TaxonomyMatch]
    errors: list[JsonObject] = Field(description="Documents that could not be compared, and why.")


class TaxonomyApplication(Model):
    """A taxonomy at work on a collection: its documents get what it says of them, as they are written."""

    taxonomy_id: str = Field(min_length=1, max_length=255)
    execution_mode: Literal["materialize", "on_demand"] = Field(
        "materialize", description="`materialize` writes into documents; `on_demand` leaves that to stages."
    )
    target_collection_id: str | None = Field(
        None, description="Not available: documents are enriched in place."
    )
    scroll_filters: JsonObject | None = Field(None, description="Only documents that this lets through.")
    execution_phase: int = Field(1, ge=1, le=3)
    priority: int = Field(0, ge=0, le=1000, description="Higher goes first.")
    hierarchical_enrichment_style: EnrichmentStyle = EnrichmentStyle.COMBINED
    top_k: int = Field(3, ge=1, le=50)
    min_confidence: float = Field(
        0.5, ge=0, le=1, validation_alias=AliasChoices("min_confidence", "min_score")
    )

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_read(cls, given: Any) -> Any:
        """Read an answer that is sent back: null is no value, and the mode that clients do not know has its own key."""
        if not isinstance(given, Mapping):
            return given
        stated = {key: value for key, value in given.items() if value is not None}
        if stated.get("is_on_demand") is True:
            stated.setdefault("execution_mode", "on_demand")
        return stated


class ApplyTaxonomyRequest(Model):
    """Compare a collection's documents anew, all of them or those that the filters let through."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"taxonomy_id": "tax_0f3a9c5e77d1b2c4"}]})

    taxonomy_id: str = Field(min_length=1, max_length=255)
    scroll_filters: JsonObject | None = None


class ApplyTaxonomyResponse(Model):
    """The task that does it; COMPLETED means that every document has what the taxonomies say of it, findable."""

    task_id: str
    status: str
    collection_id: str
    taxonomy_id: str
    estimated_documents: int
