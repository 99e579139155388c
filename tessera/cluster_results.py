"""What executions of clusters found: read as numbers, groups, members and a map; renamed, cancelled, written back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import audit, cluster_enrichment, cluster_runs, clusters, collections, listing, namespaces
from tessera.cluster_artifacts import Found, artifact_key, read
from tessera.context import Principal, Warehouse
from tessera.db.tables import cluster_runs as rows
from tessera.errors import BadRequestError, ConflictError, NotFoundError, quote
from tessera.models.base import JsonObject
from tessera.models.clusters import EnrichRequest, ListClustersRequest
from tessera.models.tasks import TaskStatus
from tessera.pagination import PageRequest

#: Longest label that a user gives, and longest name of an execution.
LABEL_CHARS, RUN_NAME_CHARS = 200, 120


def get(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, run_id: str | None
) -> JsonObject:
    """Return an execution of a cluster, the newest without a `run_id`."""
    with wh.db.read() as connection:
        cluster = _cluster(connection, principal, namespace, identifier)
        return _answer(_run(connection, cluster["cluster_id"], run_id))


def list_(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    page: PageRequest,
    request: ListClustersRequest,
) -> JsonObject:
    """List a cluster's executions, the newest first unless sorted otherwise."""
    with wh.db.read() as connection:
        cluster = _cluster(connection, principal, namespace, identifier)
        mine = sa.select(rows).where(rows.c.cluster_id == cluster["cluster_id"])
        found = connection.execute(mine.order_by(rows.c.created_at.desc(), rows.c.run_id)).mappings()
        answers = [_answer(row) for row in found.all()]
    chosen = listing.choose(
        answers,
        filters=request.filters,
        search=request.search,
        search_in=("run_id", "error_message", "run_name"),
        sort=(request.sort.field, request.sort.direction) if request.sort else None,
        id_field="run_id",
    )
    shown, stand = listing.cut(wh, page, chosen)
    states = [each["status"] for each in shown]
    took = [_milliseconds(each) for each in shown if each["completed_at"]]
    return {
        "results": shown,
        "pagination": stand,
        "total_count": len(chosen),
        "stats": {
            "total_executions": len(shown),
            "executions_by_status": {state: states.count(state) for state in sorted(set(states))},
            "avg_execution_time_ms": sum(took) / len(took) if took else 0.0,
            "total_documents_clustered": sum(each["num_points"] for each in shown),
            "avg_num_clusters": sum(each["num_clusters"] for each in shown) / len(shown) if shown else 0.0,
        },
    }


def cancel(wh: Warehouse, principal: Principal, namespace: str, identifier: str, run_id: str) -> JsonObject:
    """End an execution that waits or runs; what it found is dropped. One that has ended is a 409."""
    with wh.db.write() as connection:
        cluster = _cluster(connection, principal, namespace, identifier)
        run = _run(connection, cluster["cluster_id"], run_id)
        if not cluster_runs.end(connection, run["run_id"], "Cancelled.", status=TaskStatus.CANCELED):
            raise ConflictError(
                f"Execution {run_id} is {run['status']}; only one that waits or runs can be cancelled.",
                details={"run_id": run_id, "status": run["status"]},
            )
        audit.record(
            connection, principal, "cluster_updated", "cluster", cluster["cluster_id"], {"cancelled": run_id}
        )
    wh.jobs.wake()
    return {
        "run_id": run_id,
        "cluster_id": cluster["cluster_id"],
        "task_id": run["task_id"],
        "status": "failed",
    }


def data(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    run_id: str,
    page: PageRequest,
    cluster_id: str | None,
) -> JsonObject:
    """List what an execution found of each document; of one group only with `cluster_id` (``cl_0``)."""
    with wh.db.read() as connection:
        cluster = _cluster(connection, principal, namespace, identifier)
        run = _run(connection, cluster["cluster_id"], run_id)
    found = _found(wh, run)
    labels = _labels(run)
    label = _number(run, cluster_id)
    indexes = [index for index in range(len(found)) if label is None or found.labels[index] == label]
    shown, stand = listing.cut(wh, page, [{"index": index} for index in indexes])
    return {
        "cluster_id": cluster["cluster_id"],
        "run_id": run_id,
        "results": [_member(found, each["index"], labels) for each in shown],
        "pagination": stand,
        "total_count": len(indexes),
    }


def groups(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> JsonObject:
    """Return the groups of a cluster's last completed execution, the largest first."""
    with wh.db.read() as connection:
        cluster = _cluster(connection, principal, namespace, identifier)
        run = _completed(connection, cluster["cluster_id"], None)
    labels = _labels(run)
    found = [
        {
            "cluster_id": each["cluster_id"],
            "label": labels[each["cluster_id"]],
            "summary": each.get("summary"),
            "keywords": each["keywords"],
            "member_count": each["num_members"],
        }
        for each in run["result"]["centroids"]
    ]
    return {
        "cluster_id": cluster["cluster_id"],
        "run_id": run["run_id"],
        "total_groups": len(found),
        "total_documents": run["result"]["num_points"],
        "member_counts_stale": bool(run["result"].get("has_erased")),
        "groups": found,
    }


def visualization(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    *,
    run_id: str | None,
    max_points: int,
    centroids_only: bool,
    compact: bool,
) -> JsonObject:
    """Return a map: a place for each group and document on the two axes along which the vectors differ most.

    Of more than `max_points` documents every so-manieth is shown.
    """
    with wh.db.read() as connection:
        cluster = _cluster(connection, principal, namespace, identifier)
        run = _completed(connection, cluster["cluster_id"], run_id)
    if cluster["definition"]["cluster_type"] != "vector":
        raise BadRequestError(
            "A cluster of attributes has no map: its documents were compared by values, not vectors."
        )
    labels = _labels(run)
    found = _found(wh, run)
    step = max(1, -(-len(found) // max_points))
    indexes = [] if centroids_only else list(range(0, len(found), step))
    centroids = [
        {
            "cluster_id": each["cluster_id"],
            "label": labels[each["cluster_id"]],
            "num_members": each["num_members"],
            "x": each["x"],
            "y": each["y"],
        }
        for each in run["result"]["centroids"]
    ]
    answer: JsonObject = {
        "cluster_id": cluster["cluster_id"],
        "run_id": run["run_id"],
        "method": "pca",
        "dimensions": 2,
        "centroids": centroids,
        "total_points": len(found),
        "returned_points": len(indexes),
    }
    members = [_member(found, index, labels) for index in indexes]
    if compact:
        answer["members"] = {
            "document_ids": [each["document_id"] for each in members],
            "cluster_ids": [each["cluster_id"] for each in members],
            "x": [each["x"] for each in members],
            "y": [each["y"] for each in members],
        }
    else:
        answer["members"] = members
    return answer


def relabel(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    run_id: str,
    given: Mapping[str, str],
) -> JsonObject:
    """Give groups of an execution labels of one's own; an empty one takes one's own back. Durable when answered."""
    with wh.db.write() as connection:
        cluster = _cluster(connection, principal, namespace, identifier)
        clusters.hold_run(connection, run_id)
        run = _completed(connection, cluster["cluster_id"], run_id)
        overrides = dict(run["result"].get("label_overrides") or {})
        for name, label in given.items():
            _number(run, name)
            if len(label.strip()) > LABEL_CHARS:
                raise BadRequestError(f"The label of {quote(name)} has more than {LABEL_CHARS} characters.")
            overrides[name] = label.strip()
        overrides = {name: label for name, label in overrides.items() if label}
        _change_result(connection, principal, run, label_overrides=overrides)
    return {"cluster_id": cluster["cluster_id"], "run_id": run_id, "label_overrides": overrides}


def rename(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, run_id: str, name: str
) -> JsonObject:
    """Name an execution; an empty name takes it away. Durable when answered."""
    name = name.strip()
    if len(name) > RUN_NAME_CHARS:
        raise BadRequestError(f"run_name has {len(name)} characters; at most {RUN_NAME_CHARS} are allowed.")
    with wh.db.write() as connection:
        cluster = _cluster(connection, principal, namespace, identifier)
        clusters.hold_run(connection, run_id)
        run = _completed(connection, cluster["cluster_id"], run_id)
        _change_result(connection, principal, run, run_name=name or None)
    return {"cluster_id": cluster["cluster_id"], "run_id": run_id, "run_name": name or None}


def enrich(wh: Warehouse, principal: Principal, namespace: str, request: EnrichRequest) -> JsonObject:
    """Write what clusters found last into the documents of a collection. Durable and findable when answered.

    Can be repeated. Fields that a user has set by hand stay.
    """
    names = request.clustering_ids or ([request.clustering_id] if request.clustering_id else [])
    if not names:
        raise BadRequestError("Send clustering_ids, the ids of the clusters whose results are to be written.")
    runs = []
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        collection_id = collections.find(connection, place["namespace_id"], request.source_collection_id)[
            "collection_id"
        ]
        if request.target_collection_id is not None:
            target = collections.find(connection, place["namespace_id"], request.target_collection_id)
            if target["collection_id"] != collection_id:
                raise BadRequestError(
                    "Results are written into the documents that were clustered. Leave target_collection_id out."
                )
        for name in names:
            cluster = clusters.find(connection, place["namespace_id"], name)
            run = dict(_completed(connection, cluster["cluster_id"], None))
            runs.append({**run, "definition": cluster["definition"]})
    processed = enriched = 0
    for run in runs:
        found = _found(wh, run)
        processed += found.collection_ids.count(collection_id)
        enriched += cluster_enrichment.enrich(wh, run, run["result"], found, collection_id)
    with wh.db.write() as connection:
        namespaces.resolve(connection, principal, namespace)
        changes = {"enriched_by": [run["cluster_id"] for run in runs], "documents": enriched}
        audit.record(connection, principal, "collection_updated", "collection", collection_id, changes)
    size = cluster_enrichment.PORTION
    return {
        "processed": processed,
        "enriched": enriched,
        "failed": processed - enriched,
        "batches": -(-processed // size),
    }


# --- rows ----------------------------------------------------------------------------------------------


def _cluster(
    connection: Connection, principal: Principal, namespace: str, identifier: str
) -> Mapping[Any, Any]:
    place = namespaces.resolve(connection, principal, namespace)
    return clusters.find(connection, place["namespace_id"], identifier)


def _run(connection: Connection, cluster_id: str, run_id: str | None) -> Mapping[Any, Any]:
    if run_id is None:
        newest = clusters.last_run(connection, cluster_id)
        if newest is None:
            raise NotFoundError("cluster execution", cluster_id)
        return newest
    this = sa.select(rows).where(rows.c.cluster_id == cluster_id, rows.c.run_id == run_id)
    found = connection.execute(this).mappings().one_or_none()
    if found is None:
        raise NotFoundError("cluster execution", run_id)
    return found


def _completed(connection: Connection, cluster_id: str, run_id: str | None) -> Mapping[Any, Any]:
    """Return an execution that has results, the newest of these without a `run_id`."""
    if run_id is not None:
        run = _run(connection, cluster_id, run_id)
        if run["status"] != "completed":
            raise ConflictError(
                f"Execution {run_id} is {run['status']} and has no results.",
                details={"run_id": run_id, "status": run["status"]},
            )
        return run
    newest = clusters.last_run(connection, cluster_id, "completed")
    if newest is None:
        raise ConflictError(
            f"Cluster {cluster_id} has no completed execution. POST /v1/clusters/{cluster_id}/execute begins one; wait "
            "for its task.",
            details={"cluster_id": cluster_id},
        )
    return newest


def _change_result(
    connection: Connection, principal: Principal, run: Mapping[Any, Any], **values: Any
) -> None:
    connection.execute(
        sa.update(rows).where(rows.c.run_id == run["run_id"]).values(result={**run["result"], **values})
    )
    changes = {"run_id": run["run_id"], "fields": sorted(values)}
    audit.record(connection, principal, "cluster_updated", "cluster", run["cluster_id"], changes)


def _found(wh: Warehouse, run: Mapping[Any, Any]) -> Found:
    if run["status"] != "completed":
        raise ConflictError(f"Execution {run['run_id']} is {run['status']} and has no results.")
    try:
        return read(wh.blobs.path(artifact_key(run["namespace_id"], run["run_id"])))
    except FileNotFoundError:
        raise NotFoundError("result of the cluster execution", run["run_id"]) from None


def _labels(run: Mapping[Any, Any]) -> dict[str, str | None]:
    overrides = run["result"].get("label_overrides") or {}
    return {
        each["cluster_id"]: overrides.get(each["cluster_id"], each["label"])
        for each in run["result"]["centroids"]
    }


def _number(run: Mapping[Any, Any], cluster_id: str | None) -> int | None:
    """Return the number of a group by its id. Raises `BadRequestError` for one that the execution did not find."""
    if cluster_id is None:
        return None
    known = [each["cluster_id"] for each in run["result"]["centroids"]] if run["result"] else []
    if cluster_id not in known:
        raise BadRequestError(
            f"{quote(cluster_id)} is no group of execution {run['run_id']}; it has {len(known)}: "
            f"{', '.join(known[:20]) or 'none'}.",
            details={"cluster_id": cluster_id[:100]},
        )
    return int(cluster_id[3:])


def _member(found: Found, index: int, labels: Mapping[str, str | None]) -> JsonObject:
    label = found.labels[index]
    name = f"cl_{label}" if label >= 0 else None
    x, y = found.points[index]
    return {
        "document_id": found.document_ids[index],
        "collection_id": found.collection_ids[index],
        "cluster_id": name,
        "label": labels.get(name) if name else None,
        "is_noise": name is None,
        "distance_to_centroid": cluster_enrichment.number(found.distances[index]),
        "x": x,
        "y": y,
    }


def _answer(row: Mapping[Any, Any]) -> JsonObject:
    result = row["result"] or {}
    centroids = result.get("centroids")
    labels = _labels(row) if row["result"] else {}
    source, taken, noise = result.get("source_documents"), result.get("num_points"), result.get("noise")
    return {
        "run_id": row["run_id"],
        "cluster_id": row["cluster_id"],
        "task_id": row["task_id"],
        "status": row["status"],
        "mode": "full",
        "run_name": result.get("run_name"),
        "num_clusters": len(centroids or ()),
        "num_points": taken or 0,
        "noise_points": noise,
        "metrics": result.get("metrics"),
        "centroids": centroids
        and [
            {
                "cluster_id": each["cluster_id"],
                "num_members": each["num_members"],
                "label": labels[each["cluster_id"]],
                "summary": each.get("summary"),
                "keywords": each["keywords"],
            }
            for each in centroids
        ],
        "label_overrides": result.get("label_overrides") or {},
        "llm_labeling": result.get("llm_labeling"),
        "member_counts_stale": bool(result.get("has_erased")),
        "source_documents": source,
        "vectors_retrieved": taken,
        "vectors_clustered": None if taken is None or noise is None else taken - noise,
        "index_gap": None if source is None or taken is None else source - taken,
        "created_at": row["created_at"],
        "completed_at": row["completed_at"],
        "error_message": row["error"],
        "llm_labeling_errors": None,
    }


def _milliseconds(answer: Mapping[str, Any]) -> float:
    took = datetime.fromisoformat(answer["completed_at"]) - datetime.fromisoformat(answer["created_at"])
    return took.total_seconds() * 1000
