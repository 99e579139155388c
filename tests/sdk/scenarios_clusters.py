"""Clusters with the generated classes; the same file for both releases."""

from __future__ import annotations

from typing import Any

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import TEXT_URI, unique
from scenarios_organizations import answered
from scenarios_taxonomies import Shop
from scenarios_typed import CONFIGURED, api, finished, refused


def new_cluster(shop: Shop, clusters: Any) -> Any:
    request = {
        "cluster_name": unique("cluster"),
        "collection_ids": [shop.topics],
        "cluster_type": "vector",
        "vector_config": {
            "feature_uris": [TEXT_URI],
            "clustering_method": "kmeans",
            "kmeans_parameters": {"n_clusters": 2},
        },
    }
    return answered(m.ClusterMetadata, clusters.create_cluster, m.CreateClusterRequest.from_dict(request))


def scenario_clusters() -> None:
    shop = Shop()
    clusters = api(mixpeek.ClustersApi, namespace=shop.namespace_id)
    executions = api(mixpeek.ClusterExecutionsApi, namespace=shop.namespace_id)
    made = new_cluster(shop, clusters)
    assert (made.cluster_type, made.input_collections, made.status) == ("vector", [shop.topics], "PENDING")
    task = answered(m.TaskResponse, clusters.execute_clustering_clusters, made.cluster_id)
    assert finished(task.task_id).status == "COMPLETED"

    run = answered(m.ClusterExecutionResult, executions.get_cluster_execution, made.cluster_id)
    assert (run.status, run.num_clusters, run.num_points) == ("completed", 2, 2)
    assert sorted(each.num_members for each in run.centroids) == [1, 1]
    same = answered(
        m.ClusterExecutionResult, executions.get_cluster_execution_by_run, made.cluster_id, run.run_id
    )
    assert same == run
    listed = answered(
        m.ListClusterExecutionsResponse,
        executions.list_cluster_executions,
        made.cluster_id,
        list_cluster_executions_request=m.ListClusterExecutionsRequest(),
    )
    assert (listed.total_count, listed.results[0].run_id) == (1, run.run_id)
    error = refused(
        exceptions.ApiException, executions.cancel_execution_clusters_id_run, made.cluster_id, run.run_id
    )
    assert error.status == 409

    stood = answered(m.ClusterModel, clusters.get_cluster, made.cluster_id)
    assert (stood.status, stood.num_clusters, stood.last_run_id) == ("COMPLETED", 2, run.run_id)
    found = answered(
        m.ListClustersResponse, clusters.list_clusters, list_clusters_request=m.ListClustersRequest()
    )
    assert [each.cluster_id for each in found.results] == [made.cluster_id]
    renamed = answered(
        m.ClusterMetadata,
        clusters.patch_cluster,
        made.cluster_id,
        m.PatchClusterRequest.from_dict({"cluster_name": unique("renamed")}),
    )
    assert renamed.cluster_id == made.cluster_id
    if CONFIGURED:
        groups = answered(m.ClusterGroupsResponse, clusters.get_cluster_groups, made.cluster_id)
        assert [each.member_count for each in groups.groups] == [1, 1]
        seen = clusters.get_cluster_visualization(made.cluster_id)
        assert len(seen["members"]) == 2
    else:
        request = {"clustering_ids": [made.cluster_id], "source_collection_id": shop.topics}
        told = answered(
            m.ClusteringEnrichmentResponse,
            clusters.apply_cluster_enrichment_enrich,
            m.ApplyClusterEnrichmentRequest.from_dict(request),
        )
        assert (told.processed, told.enriched, told.failed) == (2, 2, 0)
    clusters.delete_cluster(made.cluster_id)
    refused(exceptions.NotFoundException, clusters.get_cluster, made.cluster_id)
