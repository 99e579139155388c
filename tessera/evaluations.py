"""Datasets of judged queries, and evaluations: a retriever run over a dataset in the background.

What came of each query is written as it comes, so that a server that dies costs no query twice. Figures are those of
`relevance.py`. A query that fails is skipped with its error, and is in no mean; so is one without a relevant document.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    audit,
    names,
    namespaces,
    new_tasks,
    relevance,
    retrieve,
    retriever_definition,
    retriever_plan,
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
    TesseraError,
    ValidationError,
    quote,
    raise_problems,
)
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.evaluations import (
    CreateDatasetRequest,
    EvaluationConfig,
    EvaluationStatus,
    StartEvaluationRequest,
)
from tessera.models.tasks import TaskStatus, TaskType
from tessera.pagination import PageRequest

logger = logging.getLogger("tessera.evaluations")

_OPEN = (EvaluationStatus.PENDING, EvaluationStatus.IN_PROGRESS)
_NO_JUDGEMENT = "The query has no relevant document, so no figure is defined for it."


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
            _find_dataset(connection, place["namespace_id"], identifier), principal.organization_id
        )


def list_datasets(wh: Warehouse, principal: Principal, namespace: str, page: PageRequest) -> JsonObject:
    """List datasets, the newest first."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        rows, total = _page(connection, datasets, datasets.c.namespace_id == place["namespace_id"], page)
    shown = [_dataset(row, principal.organization_id) for row in rows]
    return {"datasets": shown, **_stand(page, total)}


def delete_dataset(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> JsonObject:
    """Delete a dataset; evaluations that have ended keep their figures. A 409 while one is under way."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = _find_dataset(connection, place["namespace_id"], identifier)
        busy = connection.execute(
            sa.select(evaluations.c.evaluation_id, evaluations.c.retriever_id).where(
                evaluations.c.dataset_id == row["dataset_id"], evaluations.c.status.in_(_OPEN)
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


def _find_dataset(connection: Connection, namespace_id: str, identifier: str) -> RowMapping:
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
    at, evaluation_id = now(), new_id("eval")
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        retriever = retriever_definition.find(connection, place["namespace_id"], identifier)
        dataset = _find_dataset(connection, place["namespace_id"], request.dataset_name)
        count = len(dataset["queries"])
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


def get(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, evaluation_id: str
) -> JsonObject:
    """Return an evaluation with what came of each query so far. Raises `NotFoundError`."""
    with wh.db.read() as connection:
        row = _find(connection, principal, namespace, identifier, evaluation_id)
        return {**_record(row), "query_results": [_outcome(o) for o in _outcomes(connection, evaluation_id)]}


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
            which &= evaluations.c.dataset_name == names.clean(dataset_name)
        rows, total = _page(connection, evaluations, which, page)
    return {"evaluations": [_record(row) for row in rows], **_stand(page, total)}


def cancel(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, evaluation_id: str
) -> JsonObject:
    """End an evaluation before its next query; what was evaluated stays. A 409 when it has ended."""
    with wh.db.write() as connection:
        row = _find(connection, principal, namespace, identifier, evaluation_id)
        if row["status"] not in _OPEN:
            raise ConflictError(
                f"Evaluation {evaluation_id} is {row['status']}; only one that has not ended can be cancelled.",
                details={"evaluation_id": evaluation_id, "status": row["status"]},
            )
        _end(connection, row, "The evaluation was cancelled.", TaskStatus.CANCELED)
        audit.record(connection, principal, "evaluation_cancelled", "evaluation", evaluation_id, {})
        row = _find(connection, principal, namespace, identifier, evaluation_id)
    return _record(row)


def _find(
    connection: Connection, principal: Principal, namespace: str, identifier: str, evaluation_id: str
) -> RowMapping:
    place = namespaces.resolve(connection, principal, namespace)
    retriever = retriever_definition.find(connection, place["namespace_id"], identifier)
    mine = evaluations.c.retriever_id == retriever["retriever_id"]
    row = _row(connection, evaluation_id, mine)
    if row is None:
        raise NotFoundError("evaluation", evaluation_id)
    return row


def _row(connection: Connection, evaluation_id: str, *which: sa.ColumnElement[bool]) -> RowMapping | None:
    wanted = sa.select(evaluations).where(evaluations.c.evaluation_id == evaluation_id, *which)
    return connection.execute(wanted).mappings().one_or_none()


def _outcomes(connection: Connection, evaluation_id: str) -> Sequence[RowMapping]:
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
    connection: Connection, table: sa.Table, which: sa.ColumnElement[bool], page: PageRequest
) -> tuple[Sequence[RowMapping], int]:
    total = connection.execute(sa.select(sa.func.count()).select_from(table).where(which)).scalar_one()
    key = next(iter(table.primary_key.columns))
    newest_first = sa.select(table).where(which).order_by(table.c.created_at.desc(), key)
    return connection.execute(newest_first.limit(page.limit).offset(page.offset)).mappings().all(), total


def _stand(page: PageRequest, total: int) -> JsonObject:
    return {"total": total, "page": page.offset // page.limit + 1, "page_size": page.limit}


# --- running -------------------------------------------------------------------------------------------


def due(connection: Connection) -> list[str]:
    """Return the evaluations that have not ended, the oldest first."""
    rows = sa.select(evaluations.c.evaluation_id).where(evaluations.c.status.in_(_OPEN))
    return list(connection.execute(rows.order_by(evaluations.c.created_at).limit(100)).scalars())


def run(wh: Warehouse, evaluation_id: str, stop: threading.Event) -> None:
    """Bring an evaluation to its end, or to the next query when `stop` is set. Can be repeated and resumed.

    Raises what may pass (a database or an engine that does not answer): it is to be run again later.
    """
    with wh.db.read() as connection:
        row = _row(connection, evaluation_id, evaluations.c.status.in_(_OPEN))
        if row is None:
            return
        dataset = _find_dataset(connection, row["namespace_id"], row["dataset_id"])
        done = {outcome["query_id"] for outcome in _outcomes(connection, evaluation_id)}
    principal = _as_organization(row["organization_id"])
    try:
        plan, _ = retriever_plan.stored_plan(wh, principal, row["namespace_id"], row["retriever_id"])
    except NotFoundError:
        return  # the retriever was deleted, and this with it
    for place, query in enumerate(dataset["queries"]):
        if query["query_id"] in done:
            continue
        if stop.is_set():
            return
        came = _evaluate(wh, plan, query, row["config"])
        with wh.db.write() as connection:
            if not _note(connection, evaluation_id, place, query["query_id"], came):
                return
    with wh.db.write() as connection:
        current = _row(connection, evaluation_id, evaluations.c.status.in_(_OPEN))
        if current is not None:
            _finish(connection, current)


def _as_organization(organization_id: str) -> Principal:
    """Return who runs what an organization's key has asked for; the key's right was checked when it did."""
    return Principal(
        key_id="",
        organization_id=organization_id,
        internal_id="",
        user_id="operator",
        permissions=frozenset({"read"}),
        actor_type="operator",
    )


def _evaluate(
    wh: Warehouse, plan: retriever_plan.Plan, query: Mapping[str, Any], config: Mapping[str, Any]
) -> JsonObject:
    judged = relevance.judgements(query["relevant_documents"], query["relevance_scores"])
    if not any(grade > 0 for grade in judged.values()):
        return {"error": _NO_JUDGEMENT}
    try:
        ranked = retrieve.ranking(wh, plan, query["query_input"], max(config["k_values"]))
    except ValidationError as error:
        return {"error": error.problems[0].message if error.problems else error.message}
    except TesseraError as error:
        if error.retryable:
            raise
        return {"error": error.message}
    if ranked.stopped is not None:
        return {"error": ranked.stopped}
    found = [hit.document_id for hit in ranked.hits]
    grades, ideal = relevance.grades_of(found, judged), list(judged.values())
    by_k = {
        str(k): {name: relevance.measure(grades, ideal, k, name) for name in config["metrics"]}
        for k in config["k_values"]
    }
    return {"retrieved": found, "metrics_by_k": by_k}


def _note(
    connection: Connection, evaluation_id: str, place: int, query_id: str, came: Mapping[str, Any]
) -> bool:
    """Write what came of a query; False when the evaluation has ended, or another server runs it too."""
    row = _row(connection, evaluation_id, evaluations.c.status.in_(_OPEN))
    key = {"evaluation_id": evaluation_id, "query_id": query_id}
    known = sa.select(outcomes.c.place).where(*(outcomes.c[name] == value for name, value in key.items()))
    if row is None or connection.execute(known).first() is not None:
        return False
    connection.execute(outcomes.insert().values(**key, place=place, **came))
    counts = {
        "evaluated": row["evaluated"] + ("error" not in came),
        "skipped": row["skipped"] + ("error" in came),
    }
    connection.execute(
        sa.update(evaluations)
        .where(evaluations.c.evaluation_id == evaluation_id)
        .values(status=EvaluationStatus.IN_PROGRESS, updated_at=now(), **counts)
    )
    _tell(connection, {**row, **counts}, TaskStatus.IN_PROGRESS, "evaluate")
    return True


def _finish(connection: Connection, row: Mapping[Any, Any]) -> None:
    if not row["evaluated"]:
        first = next((o["error"] for o in _outcomes(connection, row["evaluation_id"])), "There was no query.")
        _end(connection, row, f"No query could be evaluated. The first said: {first}", TaskStatus.FAILED)
        return
    each = [o["metrics_by_k"] for o in _outcomes(connection, row["evaluation_id"]) if o["metrics_by_k"]]
    means = {
        str(k): {name: sum(q[str(k)][name] for q in each) / len(each) for name in row["config"]["metrics"]}
        for k in row["config"]["k_values"]
    }
    status = TaskStatus.COMPLETED_WITH_ERRORS if row["skipped"] else TaskStatus.COMPLETED
    _end(connection, row, None, status, metrics_by_k=means)


def _end(
    connection: Connection, row: Mapping[Any, Any], error: str | None, status: TaskStatus, **more: Any
) -> None:
    at = now()
    ended = EvaluationStatus.FAILED if error else EvaluationStatus.COMPLETED
    connection.execute(
        sa.update(evaluations)
        .where(evaluations.c.evaluation_id == row["evaluation_id"])
        .values(status=ended, error=error, updated_at=at, completed_at=at, **more)
    )
    _tell(connection, row, status, "done", error)


def _tell(
    connection: Connection, row: Mapping[Any, Any], status: TaskStatus, stage: str, error: str | None = None
) -> None:
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
