"""Triggers of clusters: kept, listed, paused; and fired when their time has come.

A trigger is due when its row says so (`due_at`). Every server looks; the one whose conditional UPDATE meets the row
first begins the execution in the same transaction, so that none is begun twice or lost. A time that was missed, because
no server ran or the last execution still does, is made up for once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pydantic
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, clusters, collections, events, names, namespaces, schedules
from tessera.cluster_schedules import Schedule, checked, columns, first_due, next_due, stored
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import cluster_runs as run_rows
from tessera.db.tables import cluster_triggers
from tessera.db.tables import clusters as cluster_rows
from tessera.db.tables import namespaces as namespace_rows
from tessera.errors import BadRequestError, NotFoundError, Problem, quote, raise_problems
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.cluster_triggers import (
    CreateTriggerRequest,
    CronSchedule,
    EventSchedule,
    ExecutionConfig,
    ListTriggersRequest,
    ListTriggersResponse,
    TriggerHistoryItem,
    TriggerHistoryRequest,
    TriggerHistoryResponse,
    TriggerModel,
    TriggerStatus,
    TriggerType,
    UpdateTriggerRequest,
)
from tessera.models.clusters import ClusteringMethod, ClusterType, CreateClusterRequest
from tessera.models.webhooks import EventType
from tessera.validation import schema_problems

#: So many executions in a row may fail before their trigger stops.
MAX_FAILURES = 5
#: Most triggers of one cluster.
MAX_TRIGGERS = 20
#: Triggers that one look fires at most; the next comes at once.
_AT_ONCE = 50
#: Names of methods in `execution_config` beside those of clusters.
_ALGORITHMS = {"hierarchical": ClusteringMethod.AGGLOMERATIVE.value}
_SORTED_BY = {"next_scheduled_at": "due_at", "execution_count": "executions"}

_t = cluster_triggers.c


def create(
    wh: Warehouse, principal: Principal, namespace: str, request: CreateTriggerRequest
) -> TriggerModel:
    """Store a trigger, with a cluster of its own where it names none. Durable when answered.

    Raises with everything that is wrong with the schedule, or with the cluster, at once.
    """
    if (request.cluster_id is None) == (request.execution_config is None):
        raise BadRequestError(
            "Send either cluster_id, a cluster that exists, or execution_config, of which one is made."
        )
    if request.status is TriggerStatus.FAILED:
        raise BadRequestError('A trigger begins as "active", "paused" or "disabled".')
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        schedule = checked(connection, place, request.trigger_type, request.schedule_config)
        if request.cluster_id is not None:
            cluster: Mapping[Any, Any] = clusters.find(connection, place["namespace_id"], request.cluster_id)
            clusters.hold(connection, cluster["cluster_id"])
            _refuse_many(connection, cluster["cluster_id"])
        else:
            assert request.execution_config is not None
            asked = _cluster_of(wh, connection, place, request.execution_config)
            cluster = clusters.add(wh, connection, principal, place, asked)
        at = now()
        row = {
            "trigger_id": new_id("trg"),
            "cluster_id": cluster["cluster_id"],
            "namespace_id": place["namespace_id"],
            "trigger_type": request.trigger_type,
            "description": request.description,
            "status": request.status,
            "event_counter": 0,
            "executions": 0,
            "failures": 0,
            "created_by": principal.user_id,
            "created_at": at,
            "updated_at": at,
            **columns(schedule),
        }
        row["due_at"] = first_due(schedule, at) if request.status is TriggerStatus.ACTIVE else None
        connection.execute(cluster_triggers.insert().values(**row))
        _changed(
            connection, principal, row, EventType.TRIGGER_CREATED, {"trigger_created": row["trigger_id"]}
        )
        shown = _answer(_find(connection, place["namespace_id"], row["trigger_id"]), place)
    wh.jobs.wake()
    return shown


def get(wh: Warehouse, principal: Principal, namespace: str, trigger_id: str) -> TriggerModel:
    """Return a trigger. Raises `NotFoundError`."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        return _answer(_find(connection, place["namespace_id"], trigger_id), place)


def list_(
    wh: Warehouse, principal: Principal, namespace: str, request: ListTriggersRequest
) -> ListTriggersResponse:
    """List triggers of a namespace, the newest first unless sorted otherwise."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        chosen = _t.namespace_id == place["namespace_id"]
        if request.cluster_id is not None:
            named = sa.or_(
                cluster_rows.c.cluster_id == request.cluster_id,
                cluster_rows.c.cluster_name == names.clean(request.cluster_id),
            )
            mine = cluster_rows.c.namespace_id == place["namespace_id"]
            chosen &= _t.cluster_id.in_(sa.select(cluster_rows.c.cluster_id).where(mine, named))
        if request.trigger_type is not None:
            chosen &= _t.trigger_type == request.trigger_type
        if request.status is not None:
            chosen &= _t.status == request.status
        total = connection.execute(sa.select(sa.func.count()).select_from(cluster_triggers).where(chosen))
        column = _t[_SORTED_BY.get(request.sort_by, request.sort_by)]
        # Engines differ in where nulls go: without a value last, either way.
        order = (column.is_(None), column.desc() if request.direction == "desc" else column, _t.trigger_id)
        rows = connection.execute(
            _with_cluster().where(chosen).order_by(*order).offset(request.offset).limit(request.limit)
        ).mappings()
        return ListTriggersResponse(
            results=[_answer(row, place) for row in rows],
            total=total.scalar_one(),
            offset=request.offset,
            limit=request.limit,
        )


def update(
    wh: Warehouse, principal: Principal, namespace: str, trigger_id: str, request: UpdateTriggerRequest
) -> TriggerModel:
    """Change schedule, description or status; absent fields stay. Durable when answered."""
    given = request.model_fields_set
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = _find(connection, place["namespace_id"], trigger_id, lock=True)
        values: JsonObject = {}
        if "description" in given:
            values["description"] = request.description
        schedule = stored(row)
        if request.schedule_config is not None:
            schedule = checked(connection, place, TriggerType(row["trigger_type"]), request.schedule_config)
            values |= {**columns(schedule), "event_counter": 0, "cooldown_until": None}
        if request.status is TriggerStatus.FAILED:
            raise BadRequestError(
                'status "failed" is set by the server; send "active", "paused" or "disabled".'
            )
        status = request.status or TriggerStatus(row["status"])
        if request.schedule_config is not None or status != row["status"]:
            values |= _in_status(row, schedule, status)
        if values:
            _write(connection, row, values)
            told = EventType.TRIGGER_UPDATED
            _changed(
                connection, principal, row, told, {"trigger_updated": trigger_id, "fields": sorted(given)}
            )
        shown = _answer(_find(connection, place["namespace_id"], trigger_id), place)
    wh.jobs.wake()
    return shown


def set_status(
    wh: Warehouse, principal: Principal, namespace: str, trigger_id: str, status: TriggerStatus
) -> TriggerModel:
    """Pause a trigger or let it go on; can be repeated. What came due while it rested is not made up for."""
    event = EventType.TRIGGER_PAUSED if status is TriggerStatus.PAUSED else EventType.TRIGGER_RESUMED
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = _find(connection, place["namespace_id"], trigger_id, lock=True)
        if row["status"] != status:
            _write(connection, row, _in_status(row, stored(row), status))
            _changed(connection, principal, row, event, {"trigger_id": trigger_id, "status": status})
        shown = _answer(_find(connection, place["namespace_id"], trigger_id), place)
    wh.jobs.wake()
    return shown


def delete(wh: Warehouse, principal: Principal, namespace: str, trigger_id: str) -> None:
    """Delete a trigger; its cluster and what it executed stay. Durable when answered."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = _find(connection, place["namespace_id"], trigger_id)
        connection.execute(sa.delete(cluster_triggers).where(_t.trigger_id == trigger_id))
        _changed(connection, principal, row, EventType.TRIGGER_DELETED, {"trigger_deleted": trigger_id})


def history(
    wh: Warehouse, principal: Principal, namespace: str, trigger_id: str, request: TriggerHistoryRequest
) -> TriggerHistoryResponse:
    """List the executions that a trigger began, the newest first."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        _find(connection, place["namespace_id"], trigger_id)
        chosen = run_rows.c.trigger_id == trigger_id
        if request.status_filter is not None:
            chosen &= run_rows.c.status == request.status_filter
        total = connection.execute(
            sa.select(sa.func.count()).select_from(run_rows).where(chosen)
        ).scalar_one()
        rows = connection.execute(
            sa.select(run_rows)
            .where(chosen)
            .order_by(run_rows.c.created_at.desc(), run_rows.c.run_id)
            .offset(request.offset)
            .limit(request.limit)
        ).mappings()
        return TriggerHistoryResponse(
            trigger_id=trigger_id,
            executions=[_item(row) for row in rows],
            total=total,
            offset=request.offset,
            limit=request.limit,
        )


# --- firing --------------------------------------------------------------------------------------------


def fire_due(wh: Warehouse, at: str) -> int:
    """Begin an execution for each trigger that is due at `at`, and return how many were begun.

    One whose cluster has an execution under way stays due until that has ended.
    """
    is_busy = sa.exists().where(run_rows.c.cluster_id == _t.cluster_id, run_rows.c.status.in_(clusters.OPEN))
    due = (
        sa.select(_t.trigger_id)
        .where(_t.status == TriggerStatus.ACTIVE, _t.due_at <= at, ~is_busy)
        .order_by(_t.due_at, _t.trigger_id)
        .limit(_AT_ONCE)
    )
    with wh.db.read() as connection:
        found = connection.execute(due).scalars().all()
    fired = 0
    for trigger_id in found:
        try:
            with wh.db.write() as connection:
                fired += _fire(connection, trigger_id, at)
        except ValueError as error:
            # Its time zone is unknown on this machine, say. Left as it is, it would hold up all others.
            failed = {
                "status": TriggerStatus.FAILED,
                "due_at": None,
                "last_error": f"The schedule is {error}.",
            }
            with wh.db.write() as connection:
                this = sa.and_(_t.trigger_id == trigger_id, _t.status == TriggerStatus.ACTIVE)
                connection.execute(sa.update(cluster_triggers).where(this).values(**failed))
    return fired


def _fire(connection: Connection, trigger_id: str, at: str) -> bool:
    joined = (
        sa.select(cluster_triggers, cluster_rows.c.cluster_name, namespace_rows.c.organization_id)
        .join(cluster_rows, cluster_rows.c.cluster_id == _t.cluster_id)
        .join(namespace_rows, namespace_rows.c.namespace_id == _t.namespace_id)
        .where(_t.trigger_id == trigger_id, _t.status == TriggerStatus.ACTIVE, _t.due_at <= at)
    )
    row = connection.execute(joined).mappings().one_or_none()
    if row is None:
        return False
    clusters.hold(connection, row["cluster_id"])
    if clusters.last_run(connection, row["cluster_id"], *clusters.OPEN) is not None:
        return False
    schedule = stored(row)
    values: JsonObject = {
        "due_at": next_due(schedule, row["due_at"], at),
        "last_triggered_at": at,
        "event_counter": 0,
        "executions": _t.executions + 1,
        "last_status": "pending",
    }
    if isinstance(schedule, EventSchedule) and schedule.cooldown_seconds:
        until = schedules.read(at) + timedelta(seconds=schedule.cooldown_seconds)
        values |= {"last_cooldown_at": at, "cooldown_until": schedules.written(until)}
    # On PostgreSQL another server may have fired it since it was read.
    still_due = sa.and_(
        _t.trigger_id == trigger_id, _t.status == TriggerStatus.ACTIVE, _t.due_at == row["due_at"]
    )
    if not connection.execute(sa.update(cluster_triggers).where(still_due).values(**values)).rowcount:
        return False
    task_id = clusters.begin(connection, row["organization_id"], row, {}, trigger_id=trigger_id)
    connection.execute(
        sa.update(cluster_triggers).where(_t.trigger_id == trigger_id).values(last_task_id=task_id)
    )
    _tell(connection, EventType.TRIGGER_FIRED, row, task_id=task_id)
    return True


def ended(connection: Connection, run: Mapping[str, Any], status: str, error: str | None) -> None:
    """Note how an execution ended at the trigger that began it, if one did and is there still.

    One that was ``cancelled`` by somebody says nothing of the trigger; too many failures in a row end it.
    """
    if run["trigger_id"] is None:
        return
    this = _t.trigger_id == run["trigger_id"]
    row = connection.execute(sa.select(cluster_triggers).where(this)).mappings().one_or_none()
    if row is None:
        return
    values: JsonObject = {"last_status": status, "last_error": error}
    if status == "completed":
        values["failures"] = 0
    elif status == "failed":
        values["failures"] = row["failures"] + 1
        if values["failures"] >= MAX_FAILURES and row["status"] == TriggerStatus.ACTIVE:
            values |= {"status": TriggerStatus.FAILED, "due_at": None}
    connection.execute(sa.update(cluster_triggers).where(this).values(**values))
    is_good = status == "completed"
    event = EventType.TRIGGER_EXECUTION_COMPLETED if is_good else EventType.TRIGGER_EXECUTION_FAILED
    _tell(connection, event, row, task_id=run["task_id"], run_id=run["run_id"])


def _in_status(row: Mapping[Any, Any], schedule: Schedule, status: TriggerStatus) -> JsonObject:
    """Return what changes with status or schedule: when it is due, and that failures are forgiven."""
    values: JsonObject = {"status": status, "due_at": None}
    if status is TriggerStatus.ACTIVE:
        at = now()
        try:
            values |= {"due_at": next_due(schedule, at, at)}
        except ValueError as error:
            # What was right when it was stored: this machine, say, does not know its time zone.
            raise BadRequestError(
                f"The trigger stays {row['status']}: its schedule_config ({_told(schedule)}) is {error}. PATCH "
                f'/v1/clusters/triggers/{row["trigger_id"]} with another schedule_config and status "active".'
            ) from None
        if row["status"] != TriggerStatus.ACTIVE:
            values["failures"] = 0
    return values


def _told(schedule: Schedule) -> str:
    if isinstance(schedule, CronSchedule):
        return f"{quote(schedule.cron_expression)} in {quote(schedule.timezone)}"
    return "of another kind"


# --- the cluster of a trigger --------------------------------------------------------------------------


def _cluster_of(
    wh: Warehouse, connection: Connection, place: RowMapping, given: ExecutionConfig
) -> CreateClusterRequest:
    """Return the request for a cluster as `execution_config` describes it.

    Without feature_uris it takes the main vector of the first collection.
    """
    config = dict(given.config)
    algorithm = config.pop("algorithm", None)
    method = _ALGORITHMS.get(str(algorithm), str(algorithm))
    where = ("body", "execution_config", "config")
    if method not in list(ClusteringMethod):
        known = ", ".join([*ClusteringMethod, *_ALGORITHMS])
        given_as = "missing" if algorithm is None else quote(algorithm)
        message = f"algorithm is {given_as}; send one of {known}."
        raise_problems([Problem((*where, "algorithm"), message, "missing" if algorithm is None else "enum")])
    uris = config.pop("feature_uris", None) or config.pop("feature_uri", None)
    if isinstance(uris, str):
        uris = [uris]
    if uris is None:
        first = collections.find(connection, place["namespace_id"], given.collection_ids[0])
        kept = collections.vector_indexes(wh.registry, place, first["feature_extractor"])
        uris = [index.feature_uri for index in kept if index.index.dimensions is not None][:1]
    if not uris:
        raise BadRequestError(
            f"Collection {quote(given.collection_ids[0])} has no vectors to cluster by. Create a cluster with "
            "attribute_config, and send its cluster_id."
        )
    vector = {"feature_uris": uris, "clustering_method": method, "algorithm_params": config}
    asked = {
        "collection_ids": given.collection_ids,
        "cluster_type": ClusterType.VECTOR,
        "vector_config": vector,
    }
    try:
        return CreateClusterRequest.model_validate(asked)
    except pydantic.ValidationError as error:
        raise_problems(schema_problems(error, where))
        raise


def _refuse_many(connection: Connection, cluster_id: str) -> None:
    count = sa.select(sa.func.count()).select_from(cluster_triggers).where(_t.cluster_id == cluster_id)
    if connection.execute(count).scalar_one() >= MAX_TRIGGERS:
        raise BadRequestError(
            f"Cluster {cluster_id} has {MAX_TRIGGERS} triggers, which is the most. Delete one, or change it.",
            details={"max_triggers": MAX_TRIGGERS},
        )


# --- rows ----------------------------------------------------------------------------------------------


def _with_cluster() -> Any:
    return sa.select(cluster_triggers, cluster_rows.c.definition).join(
        cluster_rows, cluster_rows.c.cluster_id == _t.cluster_id
    )


def _find(connection: Connection, namespace_id: str, trigger_id: str, *, lock: bool = False) -> RowMapping:
    """Return the row of a trigger with its cluster's definition. Raises `NotFoundError`."""
    asked = _with_cluster().where(_t.namespace_id == namespace_id, _t.trigger_id == trigger_id)
    if lock:
        asked = asked.with_for_update(of=cluster_triggers)
    found: RowMapping | None = connection.execute(asked).mappings().one_or_none()
    if found is None:
        raise NotFoundError("cluster trigger", trigger_id)
    return found


def _write(connection: Connection, row: Mapping[Any, Any], values: Mapping[str, Any]) -> None:
    connection.execute(
        sa.update(cluster_triggers)
        .where(_t.trigger_id == row["trigger_id"])
        .values(**values, updated_at=now())
    )


def _changed(
    connection: Connection,
    principal: Principal,
    row: Mapping[Any, Any],
    event_type: EventType,
    changes: Mapping[str, Any],
) -> None:
    """Write down that a trigger was changed: for the audit log a change of its cluster."""
    audit.record(connection, principal, "cluster_updated", "cluster", row["cluster_id"], changes)
    _tell(connection, event_type, row)


def _tell(connection: Connection, event_type: EventType, row: Mapping[Any, Any], **more: Any) -> None:
    metadata = {"cluster_id": row["cluster_id"], "trigger_type": row["trigger_type"], **more}
    events.emit(connection, row["namespace_id"], event_type, row["trigger_id"], metadata)


def _answer(row: Mapping[Any, Any], place: Mapping[Any, Any]) -> TriggerModel:
    definition = row["definition"]
    vector = definition["vector_config"]
    config = (
        {
            # k-means has a parameter of that name itself.
            **vector["algorithm_params"],
            "algorithm": vector["clustering_method"],
            "feature_uris": vector["feature_uris"],
        }
        if vector
        else {"algorithm": "attribute_based", **definition["attribute_config"]}
    )
    return TriggerModel(
        trigger_id=row["trigger_id"],
        cluster_id=row["cluster_id"],
        namespace_id=row["namespace_id"],
        internal_id=place["organization_id"],
        execution_config=ExecutionConfig(collection_ids=definition["collection_ids"], config=config),
        trigger_type=row["trigger_type"],
        schedule_config=row["schedule"],
        status=row["status"],
        last_triggered_at=row["last_triggered_at"],
        last_execution_job_id=row["last_task_id"],
        next_scheduled_at=row["due_at"],
        execution_count=row["executions"],
        consecutive_failures=row["failures"],
        last_execution_status=row["last_status"],
        last_execution_error=row["last_error"],
        event_counter=row["event_counter"],
        last_cooldown_at=row["last_cooldown_at"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        created_by=row["created_by"],
        description=row["description"],
    )


def _item(row: Mapping[Any, Any]) -> TriggerHistoryItem:
    result = row["result"]
    took = (
        schedules.read(row["completed_at"]) - schedules.read(row["created_at"])
        if row["completed_at"]
        else None
    )
    return TriggerHistoryItem(
        job_id=row["task_id"],
        run_id=row["run_id"],
        triggered_at=row["created_at"],
        status=row["status"],
        execution_time_ms=None if took is None else round(took.total_seconds() * 1000),
        error=row["error"],
        num_clusters=len(result["centroids"]) if result else None,
        num_documents=result["num_points"] if result else None,
    )
