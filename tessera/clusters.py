"""Clusters: defined, read, listed, renamed, deleted and asked to run; `cluster_runs.py` runs them.

Everything about a cluster that can be wrong without looking at documents is found when it is created, how many
documents there are when it is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    audit,
    clustering,
    events,
    limits,
    listing,
    names,
    namespaces,
    new_tasks,
    tasks,
)
from tessera.cluster_artifacts import artifact_key, drop_parts
from tessera.cluster_definition import check_labeling, definition_of, name_problems
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import cluster_runs, cluster_triggers, clusters
from tessera.db.tables import tasks as task_rows
from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    quote,
    raise_problems,
)
from tessera.filters import And, Condition, Filter, Or, parse
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.clusters import (
    ClusterType,
    CreateClusterRequest,
    ExecuteClusterRequest,
    ListClustersRequest,
    PatchClusterRequest,
)
from tessera.models.tasks import TaskResponse, TaskType
from tessera.models.webhooks import EventType
from tessera.pagination import PageRequest

#: What a run's state is called where a cluster tells of it.
TASK_STATUS = {
    "pending": "PENDING",
    "processing": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
}
#: Executions of one cluster that wait or run at a time; the next has to wait for its predecessor's end.
OPEN = ("pending", "processing")


def create(wh: Warehouse, principal: Principal, namespace: str, request: CreateClusterRequest) -> JsonObject:
    """Store a cluster. Raises with everything that is wrong at once; a taken name is a 409."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        return answer(connection, add(wh, connection, principal, place, request))


def add(
    wh: Warehouse,
    connection: Connection,
    principal: Principal,
    place: RowMapping,
    request: CreateClusterRequest,
) -> JsonObject:
    """Add a cluster to the transaction of `connection`, and return its row. Raises as `create` does."""
    at, cluster_id = now(), new_id("clust")
    name = names.clean(request.cluster_name) if request.cluster_name else cluster_id
    definition, problems = definition_of(wh, connection, place, request)
    if request.cluster_name:
        problems += name_problems(name)
    raise_problems(problems)
    _refuse_taken(connection, place["namespace_id"], name)
    row = {
        "cluster_id": cluster_id,
        "namespace_id": place["namespace_id"],
        "cluster_name": name,
        "definition": definition,
        "created_at": at,
        "updated_at": at,
    }
    limits.check_quota(wh, connection, principal, "clusters")
    connection.execute(clusters.insert().values(**row))
    audit.record(connection, principal, "cluster_created", "cluster", cluster_id, {"name": name})
    _tell(connection, EventType.CLUSTER_CREATED, row)
    return row


def get(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> JsonObject:
    """Return a cluster by id or name, with what its last execution found."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        return answer(connection, find(connection, place["namespace_id"], identifier))


def list_(
    wh: Warehouse, principal: Principal, namespace: str, page: PageRequest, request: ListClustersRequest
) -> JsonObject:
    """List clusters, the newest first unless sorted otherwise; `search` finds a part of id, name or description."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        rows = connection.execute(
            sa.select(clusters)
            .where(clusters.c.namespace_id == place["namespace_id"])
            .order_by(clusters.c.created_at.desc(), clusters.c.cluster_id)
        ).mappings()
        of_namespace = cluster_runs.c.namespace_id == place["namespace_id"]
        latest = _newest(connection, of_namespace)
        done = _newest(connection, of_namespace & (cluster_runs.c.status == "completed"))
        answers = [
            _shown(row, latest.get(row["cluster_id"]), done.get(row["cluster_id"])) for row in rows.all()
        ]
    chosen = listing.choose(
        answers,
        filters=request.filters,
        search=request.search,
        search_in=("cluster_id", "cluster_name", "description"),
        sort=(request.sort.field, request.sort.direction) if request.sort else None,
        id_field="cluster_id",
    )
    shown, stand = listing.cut(wh, page, chosen)
    found = sum(each["num_clusters"] or 0 for each in chosen)
    documents = sum(each["num_documents_clustered"] or 0 for each in chosen)
    states = [each["status"] for each in chosen]
    return {
        "results": shown,
        "pagination": stand,
        "total_count": len(chosen),
        "total": len(chosen),
        "stats": {
            "total_clusters": len(chosen),
            "total_documents": documents,
            "avg_documents_per_cluster": documents / found if found else 0.0,
            "clusters_by_status": {state: states.count(state) for state in sorted(set(states))},
        },
    }


def patch(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: PatchClusterRequest
) -> JsonObject:
    """Change name, description or metadata; absent fields stay. What is clustered, and how, is fixed."""
    given = request.model_dump(exclude_unset=True)
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = dict(find(connection, place["namespace_id"], identifier))
        if not given:
            return answer(connection, row)
        name = names.clean(given.pop("cluster_name", None) or row["cluster_name"])
        if name != row["cluster_name"]:
            raise_problems(name_problems(name))
            _refuse_taken(connection, place["namespace_id"], name)
        row |= {"cluster_name": name, "definition": {**row["definition"], **given}, "updated_at": now()}
        connection.execute(
            sa.update(clusters)
            .where(clusters.c.cluster_id == row["cluster_id"])
            .values(cluster_name=name, definition=row["definition"], updated_at=row["updated_at"])
        )
        changed = {"fields": sorted(request.model_fields_set)}
        audit.record(connection, principal, "cluster_updated", "cluster", row["cluster_id"], changed)
        _tell(connection, EventType.CLUSTER_UPDATED, row)
        return answer(connection, row)


def delete(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> str:
    """Delete a cluster with its executions and triggers, and return its id. What documents were enriched with stays.

    Raises `ConflictError` while an execution waits or runs.
    """
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        cluster_id = row["cluster_id"]
        runs = connection.execute(
            sa.select(cluster_runs.c.run_id).where(cluster_runs.c.cluster_id == cluster_id)
        ).scalars()
        keys = [artifact_key(place["namespace_id"], run_id) for run_id in runs.all()]
        _refuse_open(connection, cluster_id, "deleted")
    for key in keys:
        drop_parts(wh.blobs.path(key))
        # Files first: rows without a file say so, a file without a row would never be found again.
        if not wh.blobs.remove(key):
            raise ConflictError(
                "A backup is being made of this server's files; delete the cluster when it has ended."
            )
    with wh.db.write() as connection:
        namespaces.resolve(connection, principal, namespace)
        hold(connection, cluster_id)
        _refuse_open(connection, cluster_id, "deleted")
        of_cluster = cluster_triggers.c.cluster_id == cluster_id
        for trigger in connection.execute(sa.select(cluster_triggers).where(of_cluster)).mappings().all():
            told = {"cluster_id": cluster_id, "trigger_type": trigger["trigger_type"]}
            events.emit(
                connection, row["namespace_id"], EventType.TRIGGER_DELETED, trigger["trigger_id"], told
            )
        connection.execute(sa.delete(clusters).where(clusters.c.cluster_id == cluster_id))
        audit.record(
            connection, principal, "cluster_deleted", "cluster", cluster_id, {"name": row["cluster_name"]}
        )
        _tell(connection, EventType.CLUSTER_DELETED, row)
    return str(cluster_id)


def execute(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: ExecuteClusterRequest
) -> TaskResponse:
    """Ask for an execution and return its task: accepted and durable. COMPLETED means that its results can be read.

    Raises `BadRequestError` where there are more documents than the method takes, `ConflictError` while another
    execution of this cluster is under way.
    """
    if request.mode != "full":
        raise BadRequestError(
            f"mode {quote(request.mode)} is not available: every execution clusters all documents anew. Leave it out, "
            'or send "full".'
        )
    parse(request.filters)
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        _refuse_open(connection, row["cluster_id"], "executed again")
    check_labeling(wh, request.llm_labeling, ClusterType(row["definition"]["cluster_type"]))
    own = request.model_dump(include={"filters", "sample_size", "llm_labeling"}, exclude_none=True)
    if row["definition"]["cluster_type"] == ClusterType.VECTOR and not clustering.is_installed():
        raise BadRequestError(clustering.MISSING)
    check_size(row["definition"], own, wh.views.count(place["namespace_id"], within(row["definition"], own)))
    with wh.db.write() as connection:
        namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], row["cluster_id"])
        hold(connection, row["cluster_id"])
        _refuse_open(connection, row["cluster_id"], "executed again")
        task_id = begin(connection, place["organization_id"], row, own)
        audit.record(
            connection, principal, "cluster_executed", "cluster", row["cluster_id"], {"task_id": task_id}
        )
        task = connection.execute(sa.select(task_rows).where(task_rows.c.task_id == task_id)).mappings().one()
        shown = tasks.answer(connection, task)
    wh.jobs.wake()
    return shown


def hold(connection: Connection, cluster_id: str) -> None:
    """Let no other transaction begin an execution of a cluster, or delete it, until this one has ended.

    On SQLite writers stand in line anyway.
    """
    this = sa.select(clusters.c.cluster_id).where(clusters.c.cluster_id == cluster_id)
    connection.execute(this.with_for_update())


def hold_run(connection: Connection, run_id: str) -> None:
    """Let no other transaction change what an execution found until this one has ended: read it afterwards."""
    this = sa.select(cluster_runs.c.run_id).where(cluster_runs.c.run_id == run_id)
    connection.execute(this.with_for_update())


def begin(
    connection: Connection,
    organization_id: str,
    row: Mapping[Any, Any],
    own: JsonObject,
    *,
    trigger_id: str | None = None,
) -> str:
    """Add an execution and its task, in the transaction of `connection`, and return the task's id."""
    at, run_id = now(), new_id("run")
    about = {"cluster_id": row["cluster_id"], "run_id": run_id, "stage": "queued"}
    task_id = new_tasks.add(
        connection,
        organization_id,
        row["namespace_id"],
        TaskType.CLUSTER_BUILD,
        [row["cluster_id"]],
        about,
        at,
    )
    connection.execute(
        cluster_runs.insert().values(
            run_id=run_id,
            cluster_id=row["cluster_id"],
            namespace_id=row["namespace_id"],
            task_id=task_id,
            status="pending",
            crashes=0,
            request=own,
            created_at=at,
            trigger_id=trigger_id,
        )
    )
    return task_id


def find(connection: Connection, namespace_id: str, identifier: str) -> RowMapping:
    """Return the row of a cluster by id, else by name. Raises `NotFoundError`."""
    c = clusters.c
    found = (
        connection.execute(
            sa.select(clusters).where(
                c.namespace_id == namespace_id,
                sa.or_(c.cluster_id == identifier, c.cluster_name == names.clean(identifier)),
            )
        )
        .mappings()
        .all()
    )
    if not found:
        raise NotFoundError("cluster", identifier)
    return next((row for row in found if row["cluster_id"] == identifier), found[0])


def last_run(connection: Connection, cluster_id: str, *states: str) -> RowMapping | None:
    """Return the newest execution of a cluster, of those in `states` if any are named."""
    chosen = cluster_runs.c.cluster_id == cluster_id
    if states:
        chosen &= cluster_runs.c.status.in_(states)
    newest = (
        sa.select(cluster_runs)
        .where(chosen)
        .order_by(cluster_runs.c.created_at.desc(), cluster_runs.c.run_id)
    )
    return connection.execute(newest.limit(1)).mappings().one_or_none()


def within(definition: Mapping[str, Any], own: Mapping[str, Any]) -> Filter:
    """Return the filter of the documents that an execution takes."""
    of_collections = [Condition("collection_id", "eq", each, True) for each in definition["collection_ids"]]
    mine: Filter = of_collections[0] if len(of_collections) == 1 else Or(tuple(of_collections))
    asked = parse(own.get("filters") or definition["filters"])
    return mine if asked is None else And((mine, asked))


def sample_size(definition: Mapping[str, Any], own: Mapping[str, Any]) -> int | None:
    """Return how many documents an execution takes at most; None for all."""
    found = own.get("sample_size") or (definition["vector_config"] or {}).get("sample_size")
    return int(found) if found else None


def check_size(definition: Mapping[str, Any], own: Mapping[str, Any], count: int) -> None:
    """Raise `BadRequestError` where an execution over `count` documents would take none, or too many."""
    if count == 0:
        raise BadRequestError(
            "There is no document to cluster: the collections are empty, or the filters let none through."
        )
    count = min(count, sample_size(definition, own) or count)
    method = definition["vector_config"]["clustering_method"] if definition["vector_config"] else None
    most = clustering.MAX_DOCUMENTS[method] if method else clustering.MAX_DOCUMENTS["kmeans"]
    width = sum(block["dimensions"] for block in definition.get("features") or ()) or 1
    most = min(most, clustering.MAX_NUMBERS // width)
    if count > most:
        raise BadRequestError(
            f"These are {count:,} documents; {method or 'attribute clustering'} takes at most {most:,}. Send filters "
            "that let fewer through, a sample_size, or use kmeans, which takes most.",
            details={"documents": count, "max_documents": most, "clustering_method": method},
        )


def answer(connection: Connection, row: Mapping[Any, Any]) -> JsonObject:
    """Return a cluster as the API shows it: what both clients read, the one at creation and the other later."""
    latest = last_run(connection, row["cluster_id"])
    done = latest if latest is not None and latest["status"] == "completed" else None
    if done is None and latest is not None:
        done = last_run(connection, row["cluster_id"], "completed")
    return _shown(row, latest, done)


def _newest(connection: Connection, chosen: sa.ColumnElement[bool]) -> dict[str, RowMapping]:
    """Return the newest of the `chosen` executions of each cluster, by its id."""
    c = cluster_runs.c
    place = sa.func.row_number().over(partition_by=c.cluster_id, order_by=(c.created_at.desc(), c.run_id))
    numbered = sa.select(c.run_id, place.label("place")).where(chosen).subquery()
    rows = connection.execute(
        sa.select(cluster_runs).join(numbered, numbered.c.run_id == c.run_id).where(numbered.c.place == 1)
    ).mappings()
    return {row["cluster_id"]: row for row in rows}


def _shown(row: Mapping[Any, Any], latest: RowMapping | None, done: RowMapping | None) -> JsonObject:
    definition = row["definition"]
    vector, attribute = definition["vector_config"], definition["attribute_config"]
    result = done["result"] if done is not None else None
    return {
        "cluster_id": row["cluster_id"],
        "cluster_name": row["cluster_name"],
        "description": definition.get("description"),
        "namespace_id": row["namespace_id"],
        "collection_ids": definition["collection_ids"],
        "input_collections": definition["collection_ids"],
        "cluster_type": definition["cluster_type"],
        "vector_config": vector,
        "attribute_config": attribute,
        "filters": definition["filters"],
        "feature_uris": vector and vector["feature_uris"],
        "multi_feature_strategy": vector and vector["multi_feature_strategy"],
        "effective_feature_method": vector and vector["effective_feature_method"],
        "clustered_attributes": attribute and attribute["attributes"],
        "algorithm": vector["clustering_method"] if vector else "attribute_based",
        "algorithm_params": vector and vector["algorithm_params"],
        "output_collection_ids": [],
        "output_collection_names": [],
        "enrich_source": definition["enrich_source_collection"],
        "enrich_source_collection": definition["enrich_source_collection"],
        "source_enrichment_config": definition["source_enrichment_config"],
        "llm_labeling": _labeling(definition),
        "llm_labeling_errors": _labeling_errors(result),
        "hierarchy_detected": False,
        "num_clusters": result and len(result["centroids"]),
        "num_documents_clustered": result and result["num_points"],
        "cluster_stats": result
        and {
            "num_clusters": len(result["centroids"]),
            "noise_points": result["noise"],
            "silhouette_score": (result["metrics"] or {}).get("silhouette_score"),
        },
        "execution_time_seconds": result and result["seconds"],
        "status": TASK_STATUS[latest["status"]] if latest is not None else "PENDING",
        "task_id": latest and latest["task_id"],
        "last_execution_task_id": latest and latest["task_id"],
        "last_run_id": done and done["run_id"],
        "last_executed_at": latest and latest["created_at"],
        "completed_at": done and done["completed_at"],
        "metadata": definition.get("metadata"),
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


def _labeling(definition: Mapping[str, Any]) -> JsonObject | None:
    """Return what is asked of labels, but for the model's name: clients know those of some vendors only."""
    asked = definition.get("llm_labeling")
    return asked and {name: value for name, value in asked.items() if name not in ("model_name", "provider")}


def _labeling_errors(result: Mapping[str, Any] | None) -> list[str] | None:
    """Return why groups of the last result have labels of terms although others were asked for."""
    told = (result or {}).get("llm_labeling")
    return told and ([told["error"]] if told["error"] else [])


# --- rows ----------------------------------------------------------------------------------------------


def _refuse_open(connection: Connection, cluster_id: str, verb: str) -> None:
    latest = last_run(connection, cluster_id, *OPEN)
    if latest is not None:
        raise ConflictError(
            f"Cluster {cluster_id} has an execution under way ({latest['run_id']}), and cannot be {verb} before it has "
            f"ended. Wait for task {latest['task_id']}, or cancel it (POST /v1/clusters/{cluster_id}/executions/"
            f"{latest['run_id']}/cancel).",
            details={"run_id": latest["run_id"], "task_id": latest["task_id"]},
        )


def _refuse_taken(connection: Connection, namespace_id: str, name: str) -> None:
    taken = connection.execute(
        sa.select(clusters.c.cluster_id).where(
            clusters.c.namespace_id == namespace_id, clusters.c.cluster_name == name
        )
    ).scalar()
    if taken:
        raise AlreadyExistsError(
            f"A cluster named {quote(name)} exists in this namespace ({taken}). Choose another name, or delete "
            "that one.",
            details={"resource": "cluster", "id": taken},
        )


def _tell(connection: Connection, event_type: EventType, row: Mapping[Any, Any]) -> None:
    metadata = {"cluster_name": row["cluster_name"]}
    events.emit(connection, row["namespace_id"], event_type, row["cluster_id"], metadata)
