"""Clusters: what is clustered by which method, and the parameters of each method."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from tessera.models.base import JsonObject, Model

#: Longest name of a cluster.
NAME_CHARS = 255
#: Seed of every method that draws at random, unless a request says another.
SEED = 42


class ClusterType(StrEnum):
    """By which of their properties documents come together."""

    VECTOR = "vector"
    ATTRIBUTE = "attribute"


class ClusteringMethod(StrEnum):
    """The methods of a vector cluster, all of scikit-learn."""

    KMEANS = "kmeans"
    DBSCAN = "dbscan"
    HDBSCAN = "hdbscan"
    AGGLOMERATIVE = "agglomerative"
    SPECTRAL = "spectral"
    GAUSSIAN_MIXTURE = "gaussian_mixture"
    MEAN_SHIFT = "mean_shift"
    OPTICS = "optics"


Metric = Literal["euclidean", "cosine", "manhattan", "l1", "l2", "chebyshev", "minkowski"]


class KMeansParams(Model):
    """k-means."""

    n_clusters: int = Field(8, ge=2, le=1000)
    max_iter: int = Field(300, ge=1, le=10_000)
    random_state: int = Field(SEED, ge=0, le=2**32 - 1)
    n_init: int = Field(10, ge=1, le=100)
    tol: float = Field(1e-4, ge=0)
    init: Literal["k-means++", "random"] = "k-means++"
    algorithm: Literal["lloyd", "elkan"] = "lloyd"


class DbscanParams(Model):
    """DBSCAN."""

    eps: float = Field(0.5, gt=0)
    min_samples: int = Field(5, ge=1)
    metric: Metric = "euclidean"
    leaf_size: int = Field(30, ge=1)


class HdbscanParams(Model):
    """HDBSCAN."""

    min_cluster_size: int = Field(5, ge=2)
    min_samples: int | None = Field(None, ge=1)
    cluster_selection_epsilon: float = Field(0.0, ge=0)
    max_cluster_size: int | None = Field(None, ge=1)
    metric: Metric = "euclidean"
    alpha: float = Field(1.0, gt=0)
    cluster_selection_method: Literal["eom", "leaf"] = "eom"
    allow_single_cluster: bool = False


class AgglomerativeParams(Model):
    """Agglomerative clustering. `affinity` is an older name of `metric`."""

    n_clusters: int = Field(2, ge=2, le=1000)
    metric: Literal["euclidean", "l1", "l2", "manhattan", "cosine"] = Field("euclidean", alias="affinity")
    linkage: Literal["ward", "complete", "average", "single"] = "ward"
    distance_threshold: float | None = Field(None, gt=0)


class SpectralParams(Model):
    """Spectral clustering."""

    n_clusters: int = Field(8, ge=2, le=1000)
    random_state: int = Field(SEED, ge=0, le=2**32 - 1)
    n_init: int = Field(10, ge=1, le=100)
    gamma: float = Field(1.0, gt=0)
    affinity: Literal["rbf", "nearest_neighbors"] = "rbf"
    n_neighbors: int = Field(10, ge=1)
    assign_labels: Literal["kmeans", "discretize"] = "kmeans"


class GaussianMixtureParams(Model):
    """A mixture of normal distributions. `n_clusters` is another name of `n_components`."""

    n_components: int = Field(1, ge=1, le=1000)
    covariance_type: Literal["full", "tied", "diag", "spherical"] = "full"
    tol: float = Field(1e-3, ge=0)
    reg_covar: float = Field(1e-6, ge=0)
    max_iter: int = Field(100, ge=1, le=10_000)
    n_init: int = Field(1, ge=1, le=100)
    init_params: Literal["kmeans", "random"] = "kmeans"
    random_state: int = Field(SEED, ge=0, le=2**32 - 1)


class MeanShiftParams(Model):
    """Mean shift."""

    bandwidth: float | None = Field(None, gt=0)
    bin_seeding: bool = False
    min_bin_freq: int = Field(1, ge=1)
    cluster_all: bool = True
    max_iter: int = Field(300, ge=1, le=10_000)


class OpticsParams(Model):
    """OPTICS."""

    min_samples: int = Field(5, ge=2)
    max_eps: float | None = Field(None, gt=0)
    metric: Metric = "minkowski"
    p: float = Field(2, ge=1)
    cluster_method: Literal["xi", "dbscan"] = "xi"
    eps: float | None = Field(None, gt=0)
    xi: float = Field(0.05, gt=0, lt=1)
    predecessor_correction: bool = True
    min_cluster_size: int | None = Field(None, ge=2)
    leaf_size: int = Field(30, ge=1)


PARAMS: dict[ClusteringMethod, type[Model]] = {
    ClusteringMethod.KMEANS: KMeansParams,
    ClusteringMethod.DBSCAN: DbscanParams,
    ClusteringMethod.HDBSCAN: HdbscanParams,
    ClusteringMethod.AGGLOMERATIVE: AgglomerativeParams,
    ClusteringMethod.SPECTRAL: SpectralParams,
    ClusteringMethod.GAUSSIAN_MIXTURE: GaussianMixtureParams,
    ClusteringMethod.MEAN_SHIFT: MeanShiftParams,
    ClusteringMethod.OPTICS: OpticsParams,
}


class VectorConfig(Model):
    """A clustering by vectors: which features, and by which method."""

    feature_uris: list[str] | None = Field(None, min_length=1, max_length=8)
    feature_uri: str | None = Field(None, description="One feature; older form of feature_uris.")
    clustering_method: ClusteringMethod
    sample_size: int | None = Field(
        None, ge=2, le=1_000_000, description="Documents to take; a sample by seed where there are more."
    )
    algorithm_params: JsonObject | None = Field(None, description="Parameters of the method.")
    kmeans_parameters: JsonObject | None = None
    dbscan_parameters: JsonObject | None = None
    hdbscan_parameters: JsonObject | None = None
    multi_feature_strategy: Literal["concatenate", "independent", "weighted"] = "concatenate"
    normalize_features: bool = True
    feature_weights: dict[str, float] | None = None
    output_strategy: Literal["single", "per_feature"] = "single"
    effective_feature_method: Literal["mean", "median", "medoid"] = "mean"
    enrich_source: bool = False


class AttributeConfig(Model):
    """A clustering by values: documents with the same combination of them come together."""

    attributes: list[str] = Field(min_length=1, max_length=8)
    hierarchical_grouping: bool = False
    aggregation_method: str | None = None


class FieldMapping(Model):
    """Which part of a result goes into which field of a document."""

    source_field: Literal[
        "cluster_id", "cluster_label", "distance_to_centroid", "member_count", "keywords", "x", "y"
    ]
    target_field: str = Field(min_length=1, max_length=255)


class SourceEnrichmentConfig(Model):
    """The fields that documents get; without it cluster_id, cluster_label and distance_to_centroid."""

    field_mappings: list[FieldMapping] | None = Field(None, min_length=1, max_length=20)


class LlmLabeling(Model):
    """Labels by the language model of the settings, instead of terms. `provider` has no effect: there is one endpoint.

    A `model_name` that the operator does not offer stands for the model of the server. `custom_prompt` replaces what
    the model is asked, `labeling_context` tells it what the documents are.
    """

    enabled: bool = False
    provider: str | None = Field(None, max_length=100)
    model_name: str | None = Field(None, max_length=200)
    include_summary: bool = True
    include_keywords: bool = True
    max_samples_per_cluster: int = Field(10, ge=1, le=20)
    sample_text_max_length: int = Field(200, ge=50, le=500)
    custom_prompt: str | None = Field(None, min_length=1, max_length=10_000)
    labeling_context: str | None = Field(None, max_length=2000)
    labeling_inputs: JsonObject | None = Field(None, description="Not available: labels are made of texts.")
    response_shape: Any = Field(None, description="Not available: a label, a summary and keywords.")
    candidate_labels: Any = Field(None, description="Not available: name them in custom_prompt.")

    @field_validator("max_samples_per_cluster", "sample_text_max_length", mode="before")
    @classmethod
    def _default(cls, value: Any, info: ValidationInfo) -> Any:
        # One release of the official client sends null for the default.
        return cls.model_fields[str(info.field_name)].default if value is None else value


class CreateClusterRequest(Model):
    """What is to be clustered. Nothing is until it is executed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "cluster_name": "topics",
                    "collection_ids": ["col_0f3a9c5e77d1b2c4"],
                    "cluster_type": "vector",
                    "vector_config": {
                        "feature_uris": ["mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"],
                        "clustering_method": "kmeans",
                        "algorithm_params": {"n_clusters": 5},
                    },
                }
            ]
        }
    )

    collection_ids: list[str] = Field(min_length=1, max_length=50)
    cluster_name: str | None = Field(None, max_length=NAME_CHARS)
    description: str | None = Field(None, max_length=10_000)
    cluster_type: ClusterType | None = None
    vector_config: VectorConfig | None = None
    attribute_config: AttributeConfig | None = None
    filters: JsonObject | None = None
    llm_labeling: LlmLabeling | None = None
    enrich_source_collection: bool = False
    source_enrichment_config: SourceEnrichmentConfig | None = None
    metadata: JsonObject | None = None


class PatchClusterRequest(Model):
    """What may change: never what is clustered, and how."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"cluster_name": "topics of 2026"}]})

    cluster_name: str | None = Field(None, max_length=NAME_CHARS)
    description: str | None = Field(None, max_length=10_000)
    metadata: JsonObject | None = None


class ExecuteClusterRequest(Model):
    """What this one execution does otherwise than the cluster says."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"sample_size": 1000}]})

    mode: Literal["full", "assign", "composite"] = "full"
    filters: JsonObject | None = None
    sample_size: int | None = Field(None, ge=2, le=1_000_000)
    llm_labeling: LlmLabeling | None = None


class Sort(Model):
    """By which field, and which way."""

    field: str = Field(max_length=255)
    direction: Literal["asc", "desc"] = "asc"


class ListClustersRequest(Model):
    """Which clusters, or executions, to list; the newest first unless sorted otherwise."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"search": "topics"}]})

    filters: JsonObject | None = None
    sort: Sort | None = None
    search: str | None = Field(None, max_length=1000)


class EnrichRequest(Model):
    """Which clusters' last results are written into the documents of a collection."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"clustering_ids": ["clust_0f3a9c5e77d1b2c4"], "source_collection_id": "col_0f3a9c5e77d1b2c4"}
            ]
        }
    )

    clustering_ids: list[str] | None = Field(None, min_length=1, max_length=20)
    clustering_id: str | None = Field(None, description="One of them; older form.")
    source_collection_id: str
    target_collection_id: str | None = None
    batch_size: int = Field(1000, ge=1)
    parallelism: int = Field(1, ge=1, description="Taken and not needed: portions are written one by one.")


class RelabelRequest(Model):
    """Labels by group; an empty one takes the label by hand back."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"labels": {"cl_0": "Rain and tents"}}]})

    labels: dict[str, str] = Field(min_length=1, max_length=1000)


class RenameRunRequest(Model):
    """The name of an execution; an empty one takes it away."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"run_name": "with five groups"}]})

    run_name: str
