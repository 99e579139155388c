"""Discovery: all that a program needs to set up a namespace without reading documentation, in one place.

Made of what is there anyway: the catalogue of extractors, the stages, and the models of the requests that create
something. Nothing here belongs to a tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import orjson

from tessera.context import Warehouse
from tessera.models.base import JsonObject, Model
from tessera.models.buckets import BucketCreateRequest
from tessera.models.clusters import CreateClusterRequest
from tessera.models.collections import CreateCollectionRequest
from tessera.models.namespaces import CreateNamespaceRequest
from tessera.models.retrievers import CreateRetrieverRequest
from tessera.models.taxonomies import CreateTaxonomyRequest
from tessera.retriever_definition import available_stages
from tessera.stages.base import Stage

#: Version of the form of `manifest_schema`.
MANIFEST_VERSION = "1.0"
#: What can be created, in an order in which everything comes after what it names: by which request, and what it names.
RESOURCES: Mapping[str, tuple[type[Model], tuple[str, ...]]] = MappingProxyType(
    {
        "namespace": (CreateNamespaceRequest, ()),
        "bucket": (BucketCreateRequest, ("namespace",)),
        "collection": (CreateCollectionRequest, ("namespace", "bucket")),
        "retriever": (CreateRetrieverRequest, ("namespace", "collection")),
        "taxonomy": (CreateTaxonomyRequest, ("namespace", "collection", "retriever")),
        "cluster": (CreateClusterRequest, ("namespace", "collection")),
    }
)

_AS_IN_THE_CATALOGUE = (
    "input_schema",
    "parameter_schema",
    "output_schema",
    "costs",
    "supported_input_types",
    "max_inputs",
    "default_parameters",
    "required_vector_indexes",
    "position_fields",
)


def everything(wh: Warehouse) -> JsonObject:
    """Return extractors, stages and the schema of the requests together."""
    return {"extractors": extractors(wh), "stages": stages(wh), "manifest_schema": manifest_schema()}


def extractors(wh: Warehouse) -> list[JsonObject]:
    """Describe every extractor of the catalogue, with the requests that put it to use."""
    return [_extractor(entry) for entry in wh.registry.catalogue()]


def stages(wh: Warehouse) -> list[JsonObject]:
    """Describe every stage that can be used, with an example that a retriever takes as it is."""
    return [_stage(stage) for _, stage in sorted(available_stages(wh).items())]


@cache
def manifest_schema() -> JsonObject:
    """Return the JSON schema of each request that creates something, an example of it, and what names what."""
    schemas = {name: request.model_json_schema() for name, (request, _) in RESOURCES.items()}
    return {
        "manifest_version": MANIFEST_VERSION,
        "resource_types": list(RESOURCES),
        "schemas": schemas,
        "dependency_graph": {name: list(named) for name, (_, named) in RESOURCES.items()},
        # JSON is YAML, too.
        "examples": {
            name: orjson.dumps(schema["examples"][0], option=orjson.OPT_INDENT_2).decode()
            for name, schema in schemas.items()
        },
    }


def _stage(stage: Stage) -> JsonObject:
    return {
        **stage.described(),
        "example_config": {
            "stage_name": stage.stage_id,
            "stage_type": stage.category,
            "config": {"stage_id": stage.stage_id, "parameters": dict(stage.example)},
        },
        "common_use_cases": None,
        "cost_tier": stage.cost_tier,
        # As the first of a retriever each of them reads its collections.
        "requires_collections": True,
    }


def _extractor(entry: Mapping[str, Any]) -> JsonObject:
    indexes = entry["required_vector_indexes"]
    searched = [index for index in indexes if index["index"]["type"] == "dense"]
    return {
        "name": entry["feature_extractor_name"],
        "version": entry["version"],
        "description": entry["description"],
        "supported_modalities": entry["supported_input_types"],
        "output_features": [
            {
                "name": index["name"],
                "feature_uri": index["feature_uri"],
                "type": index["index"]["type"],
                "dimensions": index["index"].get("dimensions"),
                "description": index["description"],
            }
            for index in indexes
        ],
        "inference_type": "embedding" if searched else None,
        "capabilities": ["batch", "realtime"] if searched else ["batch"],
        "example_usage": _usage(entry),
        **{name: entry[name] for name in _AS_IN_THE_CATALOGUE},
    }


def _usage(entry: Mapping[str, Any]) -> JsonObject:
    """Return the smallest requests that put an extractor to use, in their order."""
    named = {"feature_extractor_name": entry["feature_extractor_name"], "version": entry["version"]}
    inputs = entry["input_schema"]["properties"]
    fields = {name: {"type": schema["type"]} for name, schema in list(inputs.items())[:1]}
    fields = fields or {"note": {"type": "text"}}
    return {
        "namespace": {"namespace_name": "example", "feature_extractors": [named]},
        "bucket": {"bucket_name": "example-bucket", "bucket_schema": {"properties": fields}},
        "collection": {
            "collection_name": "example-collection",
            "source": {"type": "bucket", "bucket_ids": ["example-bucket"]},
            "feature_extractor": {
                **named,
                "input_mappings": {name: name for name in fields if name in inputs},
            },
        },
    }
