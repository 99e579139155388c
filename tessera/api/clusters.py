"""Routes of clusters: what is clustered, its executions and what they found."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from tessera import cluster_results, clusters
from tessera.api.auth import Asking, require
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import NamespaceName, Wh
from tessera.models.base import JsonObject
from tessera.models.clusters import (
    CreateClusterRequest,
    EnrichRequest,
    ExecuteClusterRequest,
    ListClustersRequest,
    PatchClusterRequest,
    RelabelRequest,
    RenameRunRequest,
)
from tessera.models.tasks import TaskResponse

router = Router(tags=["Clusters"])
_read = [require("read")]

ClusterId = Annotated[str, Path(description="Cluster by id or name.", examples=["clust_0f3a9c5e77d1b2c4"])]
RunId = Annotated[str, Path(examples=["run_0f3a9c5e77d1b2c4"])]


@router.post("/v1/clusters")
def create_cluster(
    wh: Wh, asking: Asking, namespace: NamespaceName, body: CreateClusterRequest
) -> JsonObject:
    """Store what is to be clustered, and how; durable when answered. Nothing is clustered before it is executed."""
    return clusters.create(wh, asking, namespace, body)


@router.post("/v1/clusters/list", dependencies=_read)
def list_clusters(
    wh: Wh, asking: Asking, namespace: NamespaceName, page: Paging, body: ListClustersRequest | None = None
) -> JsonObject:
    """List clusters, the newest first."""
    return clusters.list_(wh, asking, namespace, page, body or ListClustersRequest())


@router.get("/v1/clusters")
def list_clusters_get(wh: Wh, asking: Asking, namespace: NamespaceName, page: Paging) -> JsonObject:
    """List clusters, the newest first."""
    return clusters.list_(wh, asking, namespace, page, ListClustersRequest())


@router.post("/v1/clusters/enrich")
def enrich(wh: Wh, asking: Asking, namespace: NamespaceName, body: EnrichRequest) -> JsonObject:
    """Write what clusters found last into the documents of a collection; durable and findable when answered."""
    return cluster_results.enrich(wh, asking, namespace, body)


@router.get("/v1/clusters/{cluster_id}")
def get_cluster(wh: Wh, asking: Asking, namespace: NamespaceName, cluster_id: ClusterId) -> JsonObject:
    """Return a cluster with what its last execution found."""
    return clusters.get(wh, asking, namespace, cluster_id)


@router.patch("/v1/clusters/{cluster_id}")
def patch_cluster(
    wh: Wh, asking: Asking, namespace: NamespaceName, cluster_id: ClusterId, body: PatchClusterRequest
) -> JsonObject:
    """Change name, description or metadata; durable when answered."""
    return clusters.patch(wh, asking, namespace, cluster_id, body)


@router.delete("/v1/clusters/{cluster_id}")
def delete_cluster(wh: Wh, asking: Asking, namespace: NamespaceName, cluster_id: ClusterId) -> JsonObject:
    """Delete a cluster and its executions; durable when answered. Fields of documents stay."""
    deleted = clusters.delete(wh, asking, namespace, cluster_id)
    return {"message": f"Cluster {deleted} was deleted.", "success": True, "cluster_id": deleted}


@router.post("/v1/clusters/{cluster_id}/execute")
def execute_cluster(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    cluster_id: ClusterId,
    body: ExecuteClusterRequest | None = None,
) -> TaskResponse:
    """Cluster the documents that are there now; accepted and durable when answered, done when the task says so."""
    return clusters.execute(wh, asking, namespace, cluster_id, body or ExecuteClusterRequest())


@router.get("/v1/clusters/{cluster_id}/groups")
def get_groups(wh: Wh, asking: Asking, namespace: NamespaceName, cluster_id: ClusterId) -> JsonObject:
    """Return the groups that the last completed execution found, the largest first."""
    return cluster_results.groups(wh, asking, namespace, cluster_id)


@router.get("/v1/clusters/{cluster_id}/visualization")
def get_visualization(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    cluster_id: ClusterId,
    max_points: Annotated[int, Query(ge=1, le=1_000_000)] = 10_000,
    centroids_only: bool = False,
    compact: bool = False,
    run_id: str | None = None,
) -> JsonObject:
    """Return a map of the documents in two dimensions (principal components), with the centres of the groups."""
    return cluster_results.visualization(
        wh,
        asking,
        namespace,
        cluster_id,
        run_id=run_id,
        max_points=max_points,
        centroids_only=centroids_only,
        compact=compact,
    )


@router.post("/v1/clusters/{cluster_id}/executions/list", dependencies=_read)
def list_executions(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    cluster_id: ClusterId,
    page: Paging,
    body: ListClustersRequest | None = None,
) -> JsonObject:
    """List executions, the newest first."""
    return cluster_results.list_(wh, asking, namespace, cluster_id, page, body or ListClustersRequest())


@router.get("/v1/clusters/{cluster_id}/executions")
def get_last_execution(wh: Wh, asking: Asking, namespace: NamespaceName, cluster_id: ClusterId) -> JsonObject:
    """Return the newest execution."""
    return cluster_results.get(wh, asking, namespace, cluster_id, None)


@router.get("/v1/clusters/{cluster_id}/executions/{run_id}")
def get_execution(
    wh: Wh, asking: Asking, namespace: NamespaceName, cluster_id: ClusterId, run_id: RunId
) -> JsonObject:
    """Return one execution: its state, its groups and how well they are apart."""
    return cluster_results.get(wh, asking, namespace, cluster_id, run_id)


@router.get("/v1/clusters/{cluster_id}/executions/{run_id}/data")
def get_execution_data(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    cluster_id: ClusterId,
    run_id: RunId,
    page: Paging,
    group: Annotated[str | None, Query(description="Members of this group only, such as cl_0.")] = None,
) -> JsonObject:
    """List the documents of an execution: group, distance from its centre, place on the map."""
    return cluster_results.data(wh, asking, namespace, cluster_id, run_id, page, group)


@router.post("/v1/clusters/{cluster_id}/executions/{run_id}/cancel")
def cancel_execution(
    wh: Wh, asking: Asking, namespace: NamespaceName, cluster_id: ClusterId, run_id: RunId
) -> JsonObject:
    """End an execution that waits or runs; nothing of it stays but that it was."""
    return cluster_results.cancel(wh, asking, namespace, cluster_id, run_id)


@router.patch("/v1/clusters/{cluster_id}/executions/{run_id}/labels")
def patch_labels(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    cluster_id: ClusterId,
    run_id: RunId,
    body: RelabelRequest,
) -> JsonObject:
    """Label groups of an execution by hand; an empty label takes that back. Durable when answered."""
    return cluster_results.relabel(wh, asking, namespace, cluster_id, run_id, body.labels)


@router.patch("/v1/clusters/{cluster_id}/executions/{run_id}/name")
def patch_run_name(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    cluster_id: ClusterId,
    run_id: RunId,
    body: RenameRunRequest,
) -> JsonObject:
    """Name an execution; durable when answered."""
    return cluster_results.rename(wh, asking, namespace, cluster_id, run_id, body.run_name)
