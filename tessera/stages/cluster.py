"""Group hits by their vectors while a query waits: what an answer is about, without groups that were made before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import AliasChoices, Field, field_validator

from tessera import clustering
from tessera.errors import BadRequestError
from tessera.models.clusters import PARAMS, ClusteringMethod
from tessera.ports import HIDDEN_FIELDS, Hit
from tessera.stages.base import Equipment, Stage, StageContext, StageParams, collected, common_collection
from tessera.stages.deduplicate import text_of
from tessera.stages.mmr import of_one_kind

#: Most hits that are compared while somebody waits; more are clustered by POST /v1/clusters.
MAX_CLUSTERED = 1000
#: Of a hit's text so many characters make labels.
_TEXT_CHARS = 4_000
_ALGORITHMS = Literal["hdbscan", "kmeans", "dbscan", "agglomerative", "spectral", "gaussian_mixture"]
#: What parameters of a method are called here.
_COUNTED = {
    "kmeans": "n_clusters",
    "agglomerative": "n_clusters",
    "spectral": "n_clusters",
    "gaussian_mixture": "n_components",
    "hdbscan": "min_cluster_size",
    "dbscan": "min_samples",
}


class ClusterParams(StageParams):
    """How hits are grouped, and what is answered.

    hdbscan and dbscan find out how many groups there are (`min_cluster_size`, cut to a third of the hits); the others
    make `n_clusters`, a tenth of the hits and at most 8 unless it is given. Without `algorithm` it is kmeans where
    `n_clusters` is given, else hdbscan. `feature_uri` names the vectors that are compared.
    """

    algorithm: _ALGORITHMS | None = None
    n_clusters: int | None = Field(
        None, ge=2, le=100, validation_alias=AliasChoices("n_clusters", "num_clusters")
    )
    min_cluster_size: int = Field(5, ge=2, le=100)
    feature_uri: str | None = Field(None, max_length=500)
    output_mode: Literal["clusters", "labeled", "representatives"] = "clusters"
    include_centroids: bool = True
    max_members_per_cluster: int = Field(50, ge=1, le=500)

    @field_validator("feature_uri", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        # The official client states its default, the text "null".
        return None if value in ("null", "") else value

    def method(self) -> ClusteringMethod:
        """Return the method that runs."""
        return ClusteringMethod(self.algorithm or ("kmeans" if self.n_clusters else "hdbscan"))


class Cluster(Stage):
    stage_id = "cluster"
    category = "reduce"
    description = (
        "Groups hits by their vectors, and answers the groups, the hits with their group, or one hit of each."
    )
    icon = "chart-scatter"
    names_features = ("feature_uri",)
    Params = ClusterParams

    def is_installed(self) -> bool:
        """Say whether scikit-learn is there."""
        return clustering.is_installed()

    def lacks(self, parameters: Mapping[str, Any], equipment: Equipment) -> str | None:
        """Return that scikit-learn is not installed, and the command that installs it."""
        return None if clustering.is_installed() else clustering.MISSING

    def run(self, hits: list[Hit] | None, params: ClusterParams, context: StageContext) -> list[Hit]:
        """Return groups, the largest first, or hits, as `output_mode` says.

        ``clusters``: a result for each group with `cluster_id`, `cluster_label`, `keywords`, `member_count`, the
        `members` that lie nearest to its centre, and that `centroid`. Its `document_id` is ``cluster_<number>``: it is
        no stored document. ``labeled``: all hits in their order with `cluster_id` and `cluster_label` (null for one
        that belongs to no group, or has no vector) and `cluster_score`, its distance from the centre.
        ``representatives``: of each group the hit that lies nearest to its centre, with the same fields.
        """
        found = collected(hits, context)
        if len(found) > MAX_CLUSTERED:
            raise BadRequestError(
                f"cluster would compare {len(found):,} documents; at most {MAX_CLUSTERED:,} are compared. Let the "
                "stage before it leave less, or make a cluster of the collection (POST /v1/clusters)."
            )
        stored = of_one_kind(context.vectors([hit.document_id for hit in found], params.feature_uri))
        placed = [number for number, hit in enumerate(found) if hit.document_id in stored]
        groups = _grouped([found[number] for number in placed], stored, params) if placed else _NO_GROUPS
        context.work.metadata |= {
            "algorithm": params.method().value,
            "clusters": len(groups.centers),
            "noise": int((groups.labels < 0).sum()),
            "without_vector": len(found) - len(placed),
        }
        if params.output_mode == "labeled":
            of_hit = dict(zip(placed, range(len(placed)), strict=True))
            return [_labelled(hit, groups, of_hit.get(number)) for number, hit in enumerate(found)]
        near = [groups.nearest(number) for number in range(len(groups.centers))]
        if params.output_mode == "representatives":
            return [_labelled(found[placed[members[0]]], groups, members[0]) for members in near]
        return [
            _summary(number, [found[placed[member]] for member in members], groups, params)
            for number, members in enumerate(near)
        ]


class _Groups:
    """Which group each row belongs to (-1: none), its distance from the centre, and what groups are about."""

    def __init__(
        self,
        labels: clustering.Integers,
        distances: clustering.Floats,
        centers: clustering.Floats,
        keywords: Mapping[int, list[str]],
    ) -> None:
        self.labels, self.distances, self.centers, self.keywords = labels, distances, centers, keywords

    def nearest(self, number: int) -> list[int]:
        """Return the rows of a group, those next to its centre first; of equal ones the better hit."""
        rows = np.flatnonzero(self.labels == number)
        return [int(row) for row in rows[np.argsort(self.distances[rows], kind="stable")]]

    def about(self, number: int) -> dict[str, Any]:
        """Return what is told of a group."""
        label = clustering.label_of(self.keywords.get(number, []), number)
        return {"cluster_id": f"cl_{number}", "cluster_label": label}


_NO_GROUPS = _Groups(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 0), np.float32), {})


def _grouped(hits: Sequence[Hit], stored: Mapping[str, Any], params: ClusterParams) -> _Groups:
    from threadpoolctl import threadpool_limits

    rows = np.stack([stored[hit.document_id] for hit in hits])
    block = {"dimensions": rows.shape[1], "weight": 1.0}
    vectors = clustering.blended(rows, [block], normalize=True)
    method, count = params.method(), len(hits)
    if method in (ClusteringMethod.HDBSCAN, ClusteringMethod.DBSCAN):
        wanted = max(2, min(params.min_cluster_size, count // 3))
    else:
        wanted = params.n_clusters or max(2, min(8, count // 10))
    given: dict[str, Any] = {_COUNTED[method]: wanted}
    if method is ClusteringMethod.GAUSSIAN_MIXTURE:
        given["covariance_type"] = "diag"  # a full one has a million numbers for each group
    # Of this thread only: answers stay the same however many processors there are.
    try:
        with threadpool_limits(1, user_api="openmp"):
            labels = clustering.assign(method, PARAMS[method].model_validate(given).model_dump(), vectors)
    except (ValueError, RuntimeError) as error:
        # What scikit-learn says of vectors that do not suit a method: all of them equal, for one.
        raise BadRequestError(f"cluster: {method} refused these vectors: {error}"[:1000]) from None
    centers = clustering.centers(vectors, labels, "mean")
    distances = clustering.distances(vectors, labels, centers)
    texts = [text_of(hit.payload, [])[:_TEXT_CHARS] for hit in hits]
    return _Groups(labels, distances, centers, clustering.terms(texts, labels.tolist()))


def _labelled(hit: Hit, groups: _Groups, row: int | None) -> Hit:
    told: dict[str, Any] = {"cluster_id": None, "cluster_label": None, "cluster_score": None}
    if row is not None and groups.labels[row] >= 0:
        told = {**groups.about(int(groups.labels[row])), "cluster_score": float(groups.distances[row])}
    return replace(hit, payload={**hit.payload, **told})


def _summary(number: int, members: Sequence[Hit], groups: _Groups, params: ClusterParams) -> Hit:
    payload = {
        "document_id": f"cluster_{number}",
        "collection_id": common_collection(members),
        **groups.about(number),
        "keywords": groups.keywords.get(number, []),
        "member_count": len(members),
        "members": [_shown(hit) for hit in members[: params.max_members_per_cluster]],
    }
    if params.include_centroids:
        payload["centroid"] = groups.centers[number].tolist()
    return Hit(str(payload["document_id"]), payload)


def _shown(hit: Hit) -> dict[str, Any]:
    """Return a hit as it lies in a group: what a document shows, and its score."""
    shown = {name: value for name, value in hit.payload.items() if name not in HIDDEN_FIELDS}
    return shown if hit.score is None else {**shown, "score": hit.score}
