"""What a cluster is made of: collections, features, method and parameters; all problems found at once."""

from __future__ import annotations

import pydantic
from sqlalchemy.engine import Connection, RowMapping

from tessera import collections, names, retriever_features
from tessera.context import Warehouse
from tessera.errors import BadRequestError, NotFoundError, Problem, quote
from tessera.filters import is_path, parse
from tessera.language import NOT_SET
from tessera.models.base import JsonObject
from tessera.models.clusters import (
    PARAMS,
    ClusteringMethod,
    ClusterType,
    CreateClusterRequest,
    LlmLabeling,
    VectorConfig,
)
from tessera.plan import RESERVED_FIELDS
from tessera.validation import schema_problems

_PARAMS_OF = {
    ClusteringMethod.KMEANS: "kmeans_parameters",
    ClusteringMethod.DBSCAN: "dbscan_parameters",
    ClusteringMethod.HDBSCAN: "hdbscan_parameters",
}


def definition_of(
    wh: Warehouse, connection: Connection, place: RowMapping, request: CreateClusterRequest
) -> tuple[JsonObject, list[Problem]]:
    """Return what is stored of a request, and what is wrong with it."""
    problems: list[Problem] = []
    rows = []
    for number, identifier in enumerate(request.collection_ids):
        try:
            rows.append(collections.find(connection, place["namespace_id"], identifier))
        except NotFoundError as error:
            problems.append(_problem(("collection_ids", number), error.message))
    parse(request.filters)
    kind = request.cluster_type or (ClusterType.ATTRIBUTE if request.attribute_config else ClusterType.VECTOR)
    check_labeling(wh, request.llm_labeling, kind)
    config = request.vector_config if kind is ClusterType.VECTOR else request.attribute_config
    if config is None:
        problems.append(
            _problem((f"{kind}_config",), f"A cluster of type {kind} needs {kind}_config.", "missing")
        )
    vector, features = None, None
    if kind is ClusterType.VECTOR and request.vector_config is not None:
        vector, features, found = _vector_config(wh, place, rows, request.vector_config)
        problems += found
    attribute = request.attribute_config if kind is ClusterType.ATTRIBUTE else None
    if attribute is not None:
        problems += _attribute_problems(attribute.attributes, hierarchical=attribute.hierarchical_grouping)
    mapped = request.source_enrichment_config
    for number, mapping in enumerate((mapped.field_mappings if mapped else None) or ()):
        field = mapping.target_field
        if field.partition(".")[0] in RESERVED_FIELDS or not is_path(field):
            problems.append(
                _problem(
                    ("source_enrichment_config", "field_mappings", number, "target_field"),
                    f"{quote(field)} belongs to the system, or is no path. Choose another field.",
                )
            )
    return {
        "collection_ids": list(dict.fromkeys(row["collection_id"] for row in rows)),
        "cluster_type": kind,
        "vector_config": vector,
        "features": features,
        "attribute_config": attribute.model_dump() if attribute else None,
        "filters": request.filters,
        "description": request.description,
        "metadata": request.metadata,
        "enrich_source_collection": request.enrich_source_collection
        or bool(request.vector_config and request.vector_config.enrich_source),
        "source_enrichment_config": mapped.model_dump() if mapped else None,
        "llm_labeling": request.llm_labeling.model_dump() if request.llm_labeling else None,
    }, problems


def _vector_config(
    wh: Warehouse, place: RowMapping, rows: list[RowMapping], config: VectorConfig
) -> tuple[JsonObject, list[JsonObject], list[Problem]]:
    """Return a vector_config as it is stored, its features ({name, dimensions, weight}), and what is wrong."""
    problems: list[Problem] = []
    uris = list(dict.fromkeys(config.feature_uris or ([config.feature_uri] if config.feature_uri else [])))
    if not uris:
        problems.append(
            _problem(
                ("vector_config", "feature_uris"),
                "vector_config needs feature_uris, a list of features.",
                "missing",
            )
        )
    if config.multi_feature_strategy == "independent" or config.output_strategy == "per_feature":
        problems.append(
            _problem(
                ("vector_config", "multi_feature_strategy"),
                "Features are clustered together, into one result. For each by itself, create a cluster for each.",
            )
        )
    weights = config.feature_weights or {}
    if config.multi_feature_strategy == "weighted" and not weights:
        problems.append(
            _problem(
                ("vector_config", "feature_weights"),
                "Weights are not learned: send feature_weights, a number from 0 to 1 for each feature URI.",
            )
        )
    features: list[JsonObject] = []
    for number, uri in enumerate(uris):
        weight = weights.get(uri, 1.0)
        if not 0 <= weight <= 1:
            problems.append(
                _problem(("vector_config", "feature_weights", uri), "A weight is a number from 0 to 1.")
            )
        try:
            vector, _ = retriever_features.vector_of(wh, place, uri)
        except BadRequestError as error:
            problems.append(_problem(("vector_config", "feature_uris", number), error.message))
            continue
        reason = _unfit(wh, place, rows, vector.name)
        if reason is not None:
            problems.append(_problem(("vector_config", "feature_uris", number), f"{quote(uri)} {reason}"))
            continue
        features.append({"name": vector.name, "dimensions": vector.dimensions, "weight": weight})
    given = {
        **(getattr(config, _PARAMS_OF.get(config.clustering_method, ""), None) or {}),
        **(config.algorithm_params or {}),
    }
    if config.clustering_method is ClusteringMethod.GAUSSIAN_MIXTURE and "n_clusters" in given:
        given.setdefault("n_components", given["n_clusters"])
    params: JsonObject = {}
    try:
        params = PARAMS[config.clustering_method].model_validate(given).model_dump()
    except pydantic.ValidationError as error:
        problems += schema_problems(error, ("body", "vector_config", "algorithm_params"))
    if params.get("linkage") == "ward" and params["metric"] != "euclidean":
        problems.append(
            _problem(
                ("vector_config", "algorithm_params", "linkage"),
                f"linkage ward takes euclidean distances only, not {params['metric']}. Choose average, complete or "
                "single.",
            )
        )
    stored = config.model_dump(exclude={"feature_uri", *_PARAMS_OF.values()})
    return {**stored, "feature_uris": uris, "algorithm_params": params}, features, problems


def _unfit(wh: Warehouse, place: RowMapping, rows: list[RowMapping], name: str) -> str | None:
    """Say why the documents of these collections cannot be clustered by a vector, or None."""
    for row in rows:
        kept = collections.vector_indexes(wh.registry, place, row["feature_extractor"])
        index = next((index for index in kept if index.name == name), None)
        if index is None:
            return f"is not written by collection {row['collection_id']}; each collection must have it."
        if index.index.dimensions is None:
            return "holds words, not a vector of fixed length. Choose a dense feature."
    return None


def _attribute_problems(attributes: list[str], *, hierarchical: bool) -> list[Problem]:
    problems = [
        _problem(("attribute_config", "attributes", number), f"{quote(path)} is not a field or path.")
        for number, path in enumerate(attributes)
        if not is_path(path)
    ]
    if hierarchical:
        problems.append(
            _problem(
                ("attribute_config", "hierarchical_grouping"),
                "Clusters of clusters are not available. Leave it out: one cluster for each combination of values.",
            )
        )
    return problems


def check_labeling(wh: Warehouse, asked: LlmLabeling | None, kind: ClusterType) -> None:
    """Raise `BadRequestError` where labels by a language model are asked for that cannot be made."""
    if asked is None or not asked.enabled:
        return
    if kind is not ClusterType.VECTOR:
        raise BadRequestError(
            "The labels of a cluster by attributes are their values. Leave llm_labeling out."
        )
    for name in ("labeling_inputs", "response_shape", "candidate_labels"):
        if getattr(asked, name) is not None:
            raise BadRequestError(
                f"llm_labeling.{name} is not available. Leave it out; custom_prompt says what else is wanted."
            )
    if wh.language is None:
        raise BadRequestError(
            f"Labels by a language model cannot be made: {NOT_SET}. Without llm_labeling, labels are the terms that "
            "set a cluster's texts apart."
        )


def _problem(path: tuple[str | int, ...], message: str, kind: str = "value_error") -> Problem:
    return Problem(("body", *path), message, kind, BadRequestError.status)


def name_problems(name: str) -> list[Problem]:
    """Return what is wrong with the name of a cluster."""
    reserved = ("list", "enrich", "execute", "triggers")
    return names.check(name, ("body", "cluster_name"), id_prefix="clust", reserved=reserved)
