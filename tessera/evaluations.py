"""Datasets of judged queries, and evaluations of retrievers on them: asked for, read, cancelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    audit,
    names,
    namespaces,
    new_tasks,
    retriever_definition,
)
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import evaluation_datasets as datasets
from tessera.db.tables import evaluation_queries as outcomes
from tessera.db.tables import evaluations
from tessera.db.tables import tasks as task_rows
from tessera.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    Problem,
    quote,
    raise_problems,
)
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.evaluations import (
    OPEN,
    CreateDatasetRequest,
    EvaluationConfig,
    EvaluationStatus,
    StartEvaluationRequest,
)
from tessera.models.tasks import TaskStatus, TaskType
from tessera.pagination import PageRequest

#: Queries times the largest k of one evaluation: its record names the documents at each.
_MOST_PLACES = 500_000


# --- datasets ------------------------------------------------------------------------------------------


def create_dataset(
    wh: Warehouse, principal: Principal, namespace: str, request: CreateDatasetRequest
) -> JsonObject:
    """Store a dataset; durable when answered. A taken name is a 409, a query id that comes twice a 422."""
    raise_problems(_dataset_problems(request))
    at, name = now(), names.clean(request.dataset_name)
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        taken = connection.execute(
            sa.select(datasets.c.dataset_id).where(
                datasets.c.namespace_id == place["namespace_id"], datasets.c.dataset_name == name
            )
        ).scalar()
        if taken:
            raise AlreadyExistsError(
                f"A dataset named {quote(name)} exists in this namespace ({taken}). Choose another name, or delete "
                "that one.",
                details={"resource": "dataset", "id": taken},
            )
        row = {
            "dataset_id": new_id("ds"),
            "namespace_id": place["namespace_id"],
            "dataset_name": name,
            "description": request.description,
            "queries": [query.model_dump() for query in request.queries],
            "metadata": request.metadata,
            "created_at": at,
            "updated_at": at,
        }
        connection.execute(datasets.insert().values(**row))
        told = {"name": name, "queries": len(request.queries)}
        audit.record(connection, principal, "dataset_created", "dataset", row["dataset_id"], told)
    return _dataset(row, principal.organization_id)


def _dataset_problems(request: CreateDatasetRequest) -> list[Problem]:
    seen: dict[str, int] = {}
    problems = names.check(
        names.clean(request.dataset_name), ("body", "dataset_name"), id_prefix="ds", reserved=()
    )
    for place, query in enumerate(request.queries):
        first = seen.setdefault(query.query_id, place)
        if first != place:
            problems.append(
                Problem(
                    ("body", "queries", place, "query_id"),
                    f"query_id {quote(query.query_id)} is that of query {first} too; give each query its own.",
                    "duplicate",
                )
            )
    return problems


def get_dataset(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> JsonObject:
    """Return a dataset by id or name. Raises `NotFoundError`."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        return _dataset(
            find_dataset(connection, place["namespace_id"], identifier), principal.organization_id
        )


def list_datasets(wh: Warehouse, principal: Principal, namespace: str, page: PageRequest) -> JsonObject:
    """List datasets, the newest first, without their queries: those of a hundred could fill the memory."""
    counted = sa.func.json_array_length(datasets.c.queries).label("query_count")
    columns = [column for column in datasets.c if column.name != "queries"]
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        mine = datasets.c.namespace_id == place["namespace_id"]
        rows, total = _page(connection, [*columns, counted], mine, page)
    shown = [{**row, "queries": [], "internal_id": principal.organization_id} for row in rows]
    return {"datasets": shown, **_stand(page, total)}


def delete_dataset(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> JsonObject:
    """Delete a dataset; evaluations that have ended keep their figures. A 409 while one is under way."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find_dataset(connection, place["namespace_id"], identifier)
        busy = connection.execute(
            sa.select(evaluations.c.evaluation_id, evaluations.c.retriever_id).where(
                evaluations.c.dataset_id == row["dataset_id"], evaluations.c.status.in_(OPEN)
            )
        ).first()
        if busy is not None:
            raise ConflictError(
                f"Evaluation {busy.evaluation_id} is using this dataset. Wait for its end, or cancel it: POST "
                f"/v1/retrievers/{busy.retriever_id}/evaluations/{busy.evaluation_id}/cancel.",
                details={"evaluation_id": busy.evaluation_id},
            )
        connection.execute(sa.delete(datasets).where(datasets.c.dataset_id == row["dataset_id"]))
        audit.record(
            connection,
            principal,
            "dataset_deleted",
            "dataset",
            row["dataset_id"],
            {"name": row["dataset_name"]},
        )
    return {
        "message": f"Dataset {row['dataset_id']} was deleted.",
        "success": True,
        "dataset_id": row["dataset_id"],
    }


def find_dataset(connection: Connection, namespace_id: str, identifier: str) -> RowMapping:
    """Return a dataset by id or name. Raises `NotFoundError`."""
    named = sa.or_(datasets.c.dataset_id == identifier, datasets.c.dataset_name == names.clean(identifier))
    rows = connection.execute(
        sa.select(datasets).where(datasets.c.namespace_id == namespace_id, named)
    ).mappings()
    found = sorted(rows, key=lambda row: row["dataset_id"] != identifier)
    if not found:
        raise NotFoundError("dataset", identifier)
    return found[0]


def _dataset(row: Mapping[Any, Any], organization_id: str) -> JsonObject:
    return {**row, "query_count": len(row["queries"]), "internal_id": organization_id}


# --- evaluations ---------------------------------------------------------------------------------------


def start(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: StartEvaluationRequest
) -> JsonObject:
    """Write down an evaluation to run, with its task. Durable when answered."""
    config = request.evaluation_config or EvaluationConfig()
    deepest = max(config.k_values)
    at, evaluation_id = now(), new_id("eval")
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        retriever = retriever_definition.find(connection, place["namespace_id"], identifier)
        dataset = find_dataset(connection, place["namespace_id"], request.dataset_name)
        count = len(dataset["queries"])
        if count * deepest > _MOST_PLACES:
            raise_problems([_too_deep(count, deepest)])
        task_id = new_tasks.add(
            connection,
            place["organization_id"],
            place["namespace_id"],
            TaskType.EVALUATIONS_RUN,
            [evaluation_id],
            {"evaluation_id": evaluation_id, "stage": "queued", "total": count, "done": 0, "failed": 0},
            at,
        )
        connection.execute(
            evaluations.insert().values(
                evaluation_id=evaluation_id,
                retriever_id=retriever["retriever_id"],
                namespace_id=place["namespace_id"],
                organization_id=place["organization_id"],
                dataset_id=dataset["dataset_id"],
                dataset_name=dataset["dataset_name"],
                config={
                    "k_values": sorted(set(config.k_values)),
                    "metrics": list(dict.fromkeys(config.metrics)),
                },
                status=EvaluationStatus.PENDING,
                task_id=task_id,
                query_count=count,
                created_at=at,
                updated_at=at,
            )
        )
        told = {"retriever_id": retriever["retriever_id"], "dataset_id": dataset["dataset_id"]}
        audit.record(connection, principal, "evaluation_started", "evaluation", evaluation_id, told)
    wh.jobs.wake()
    return {"task_id": task_id, "evaluation_id": evaluation_id, "created_at": at}


def _too_deep(queries: int, k: int) -> Problem:
    return Problem(
        ("body", "evaluation_config", "k_values"),
        f"{queries} queries to a depth of {k} are more than {_MOST_PLACES} places; let k be at most "
        f"{_MOST_PLACES // queries} for this dataset, or make it smaller.",
        "value_error",
    )


def get(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, evaluation_id: str
) -> JsonObject:
    """Return an evaluation with what came of each query so far. Raises `NotFoundError`."""
    with wh.db.read() as connection:
        row = _find(connection, principal, namespace, identifier, evaluation_id)
        return {
            **_record(row),
            "query_results": [_outcome(o) for o in outcomes_of(connection, evaluation_id)],
        }


def list_(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    page: PageRequest,
    status: EvaluationStatus | None,
    dataset_name: str | None,
) -> JsonObject:
    """List a retriever's evaluations, the newest first."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        retriever = retriever_definition.find(connection, place["namespace_id"], identifier)
        which = evaluations.c.retriever_id == retriever["retriever_id"]
        if status is not None:
            which &= evaluations.c.status == status
        if dataset_name is not None:
            named = evaluations.c.dataset_name == names.clean(dataset_name)
            which &= sa.or_(named, evaluations.c.dataset_id == dataset_name)
        rows, total = _page(connection, list(evaluations.c), which, page)
    return {"evaluations": [_record(row) for row in rows], **_stand(page, total)}


def cancel(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, evaluation_id: str
) -> JsonObject:
    """End an evaluation before its next query; what was evaluated stays. A 409 when it has ended."""
    with wh.db.write() as connection:
        row = _find(connection, principal, namespace, identifier, evaluation_id)
        if row["status"] not in OPEN:
            raise ConflictError(
                f"Evaluation {evaluation_id} is {row['status']}; only one that has not ended can be cancelled.",
                details={"evaluation_id": evaluation_id, "status": row["status"]},
            )
        end(connection, row, "The evaluation was cancelled.", TaskStatus.CANCELED)
        audit.record(connection, principal, "evaluation_cancelled", "evaluation", evaluation_id, {})
        row = _find(connection, principal, namespace, identifier, evaluation_id)
    return _record(row)


def due(wh: Warehouse) -> list[str]:
    """Return evaluations that have not ended, first the one that was not worked on for the longest time."""
    rows = sa.select(evaluations.c.evaluation_id).where(evaluations.c.status.in_(OPEN))
    with wh.db.read() as connection:
        return list(connection.execute(rows.order_by(evaluations.c.updated_at).limit(100)).scalars())


def end(
    connection: Connection, row: Mapping[Any, Any], error: str | None, status: TaskStatus, **more: Any
) -> None:
    """Write down that an evaluation and its task have ended."""
    at = now()
    ended = EvaluationStatus.FAILED if error else EvaluationStatus.COMPLETED
    connection.execute(
        sa.update(evaluations)
        .where(evaluations.c.evaluation_id == row["evaluation_id"])
        .values(status=ended, error=error, updated_at=at, completed_at=at, **more)
    )
    tell(connection, row, status, "done", error)


def tell(
    connection: Connection, row: Mapping[Any, Any], status: TaskStatus, stage: str, error: str | None = None
) -> None:
    """Write into an evaluation's task how far it is."""
    counts = {
        "total": row["query_count"],
        "done": row["evaluated"] + row["skipped"],
        "failed": row["skipped"],
    }
    connection.execute(
        sa.update(task_rows)
        .where(task_rows.c.task_id == row["task_id"])
        .values(
            status=status,
            error=error,
            outputs=[row["evaluation_id"]] if status.startswith("COMPLETED") else [],
            additional_data={"evaluation_id": row["evaluation_id"], "stage": stage, **counts},
            updated_at=now(),
        )
    )


def _find(
    connection: Connection, principal: Principal, namespace: str, identifier: str, evaluation_id: str
) -> RowMapping:
    place = namespaces.resolve(connection, principal, namespace)
    retriever = retriever_definition.find(connection, place["namespace_id"], identifier)
    mine = evaluations.c.retriever_id == retriever["retriever_id"]
    row = row_of(connection, evaluation_id, mine)
    if row is None:
        raise NotFoundError("evaluation", evaluation_id)
    return row


def row_of(connection: Connection, evaluation_id: str, *which: sa.ColumnElement[bool]) -> RowMapping | None:
    """Return an evaluation's row, if it is one of `which`."""
    wanted = sa.select(evaluations).where(evaluations.c.evaluation_id == evaluation_id, *which)
    return connection.execute(wanted).mappings().one_or_none()


def outcomes_of(connection: Connection, evaluation_id: str) -> Sequence[RowMapping]:
    """Return what came of the queries of an evaluation so far, in the order of the dataset."""
    rows = sa.select(outcomes).where(outcomes.c.evaluation_id == evaluation_id).order_by(outcomes.c.place)
    return connection.execute(rows).mappings().all()


def _outcome(row: Mapping[Any, Any]) -> JsonObject:
    found = row["retrieved"]
    return {
        "query_id": row["query_id"],
        "status": "skipped" if row["error"] else "evaluated",
        "error": row["error"],
        "retrieved_count": None if found is None else len(found),
        "retrieved_documents": found,
        "metrics_by_k": row["metrics_by_k"],
    }


def _record(row: Mapping[Any, Any]) -> JsonObject:
    by_k = row["metrics_by_k"]
    return {
        **row,
        "internal_id": row["organization_id"],
        "total_queries": row["query_count"],
        "evaluated_queries": row["evaluated"],
        "skipped_queries": row["skipped"],
        "overall_metrics": by_k[str(max(row["config"]["k_values"]))] if by_k else None,
        "error_message": row["error"],
    }


def _page(
    connection: Connection,
    columns: Sequence[sa.ColumnElement[Any]],
    which: sa.ColumnElement[bool],
    page: PageRequest,
) -> tuple[Sequence[RowMapping], int]:
    """Return a page of rows, the newest first, and how many there are; `columns` begin with the table's id."""
    total = connection.execute(sa.select(sa.func.count(columns[0])).where(which)).scalar_one()
    newest_first = sa.select(*columns).where(which).order_by(sa.desc("created_at"), columns[0])
    return connection.execute(newest_first.limit(page.limit).offset(page.offset)).mappings().all(), total


def _stand(page: PageRequest, total: int) -> JsonObject:
    return {"total": total, "page": page.offset // page.limit + 1, "page_size": page.limit}
