"""Running evaluations: query after query, each written down as it ends, so that a server that dies costs none twice.

A query that fails is skipped with its error, and is in no mean; so is one without a relevant document. Figures are
those of `relevance.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import failpoints, relevance, retrieve, retriever_plan
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import evaluation_datasets as datasets
from tessera.db.tables import evaluation_queries as outcomes
from tessera.db.tables import evaluations
from tessera.errors import TesseraError, ValidationError
from tessera.evaluations import end, outcomes_of, row_of, tell
from tessera.models.base import JsonObject
from tessera.models.evaluations import OPEN, EvaluationStatus
from tessera.models.tasks import TaskStatus

#: After so long another evaluation has its turn.
TURN_S = 5.0
#: An evaluation fails when so many tries in a row brought no query to its end. One that ended with its server, or by
#: a defect, weighs more than one by an error that may pass: five of those, or eight minutes of these.
_MOST_TRIES = 100
_WEIGHT_OF_A_CRASH = 20

_NO_JUDGEMENT = "The query has no relevant document, so no figure is defined for it."


def run(wh: Warehouse, evaluation_id: str, must_stop: Callable[[], bool]) -> None:
    """Bring an evaluation on until its end, until its turn is over or until it must stop. Can be repeated.

    Raises what may pass (a database or an engine that does not answer): it is to be run again later.
    """
    turn_ends = time.monotonic() + TURN_S
    with wh.db.write() as connection:
        row = row_of(connection, evaluation_id, evaluations.c.status.in_(OPEN))
        if row is None or not _may_try(connection, row):
            return
        dataset = sa.select(datasets.c.queries).where(datasets.c.dataset_id == row["dataset_id"])
        queries = connection.execute(dataset).scalar_one()
        ended = sa.select(outcomes.c.query_id).where(outcomes.c.evaluation_id == evaluation_id)
        done = set(connection.execute(ended).scalars())
    tries = row["tries"]
    try:
        # The right of the key that asked for it was checked when it did.
        principal = Principal.of_server(row["organization_id"], "read")
        plan, _ = retriever_plan.stored_plan(wh, principal, row["namespace_id"], row["retriever_id"])
        for place, query in enumerate(queries):
            if query["query_id"] in done:
                continue
            if must_stop() or time.monotonic() > turn_ends:
                _set_tries(wh, evaluation_id, tries)
                return
            came = _evaluate(wh, plan, query, row["config"])
            with wh.db.write() as connection:
                if not _note(connection, evaluation_id, place, query["query_id"], came):
                    return
            tries = 0
            failpoints.reach("evaluation.noted")
    except TesseraError as error:
        if error.retryable:
            _set_tries(wh, evaluation_id, tries + 1)
            raise
        _fail(wh, evaluation_id, error.message)
        return
    with wh.db.write() as connection:
        current = row_of(connection, evaluation_id, evaluations.c.status.in_(OPEN))
        if current is not None:
            _finish(connection, current)


def _may_try(connection: Connection, row: Mapping[Any, Any]) -> bool:
    """Count a try before it begins, for it may end with the server; False when there were enough."""
    if row["tries"] >= _MOST_TRIES:
        why = "No further query could be run, however often it was tried. The server's log says why."
        end(connection, row, why, TaskStatus.FAILED)
        return False
    connection.execute(
        sa.update(evaluations)
        .where(evaluations.c.evaluation_id == row["evaluation_id"])
        .values(tries=row["tries"] + _WEIGHT_OF_A_CRASH, updated_at=now())
    )
    return True


def _set_tries(wh: Warehouse, evaluation_id: str, tries: int) -> None:
    with wh.db.write() as connection:
        connection.execute(
            sa.update(evaluations).where(evaluations.c.evaluation_id == evaluation_id).values(tries=tries)
        )


def _fail(wh: Warehouse, evaluation_id: str, why: str) -> None:
    with wh.db.write() as connection:
        row = row_of(connection, evaluation_id, evaluations.c.status.in_(OPEN))
        if row is not None:
            end(connection, row, why, TaskStatus.FAILED)


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
    row = row_of(connection, evaluation_id, evaluations.c.status.in_(OPEN))
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
        .values(status=EvaluationStatus.IN_PROGRESS, updated_at=now(), tries=0, **counts)
    )
    tell(connection, {**row, **counts}, TaskStatus.IN_PROGRESS, "evaluate")
    return True


def _finish(connection: Connection, row: Mapping[Any, Any]) -> None:
    if not row["evaluated"]:
        first = next(
            (o["error"] for o in outcomes_of(connection, row["evaluation_id"])), "There was no query."
        )
        end(connection, row, f"No query could be evaluated. The first said: {first}", TaskStatus.FAILED)
        return
    each = [o["metrics_by_k"] for o in outcomes_of(connection, row["evaluation_id"]) if o["metrics_by_k"]]
    means = {
        str(k): {name: sum(q[str(k)][name] for q in each) / len(each) for name in row["config"]["metrics"]}
        for k in row["config"]["k_values"]
    }
    status = TaskStatus.COMPLETED_WITH_ERRORS if row["skipped"] else TaskStatus.COMPLETED
    end(connection, row, None, status, metrics_by_k=means)
