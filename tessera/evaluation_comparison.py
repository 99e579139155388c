"""Two evaluations on one dataset, query by query: what differs, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import namespaces, significance
from tessera.context import Principal, Warehouse
from tessera.db.tables import evaluations, retrievers
from tessera.errors import BadRequestError, ConflictError, NotFoundError, Problem, quote, raise_problems
from tessera.evaluations import outcomes_of, row_of
from tessera.models.base import JsonObject
from tessera.models.evaluations import CompareEvaluationsRequest, EvaluationStatus

#: A p below this is called a difference.
LEVEL = 0.05
#: What is decided by unless the request says otherwise, where both evaluations have it.
_USUAL_METRIC, _USUAL_K = "ndcg", 10
#: Figures of two rankings that are equal may differ in their last digits.
_SAME = 1e-9


def compare(
    wh: Warehouse, principal: Principal, namespace: str, request: CompareEvaluationsRequest
) -> JsonObject:
    """Compare two completed evaluations over the queries that both evaluated.

    Raises `NotFoundError`, `ConflictError` for one that is not complete, and `BadRequestError` for two datasets.
    """
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        ids = request.baseline_evaluation_id, request.candidate_evaluation_id
        sides = [_completed(connection, place["namespace_id"], each) for each in ids]
        _check_alike(sides)
        each = [
            {row["query_id"]: row["metrics_by_k"] for row in outcomes_of(connection, side["evaluation_id"])}
            for side in sides
        ]
        named = [_named(connection, side) for side in sides]
    figures = _figures(sides)
    decided = _decided(figures, request)
    # In the order of the dataset; both have all its queries.
    both = [query_id for query_id in each[0] if each[0][query_id] and each[1].get(query_id)]
    compared = set(both)
    left_out = [query_id for query_id in each[0] if query_id not in compared]
    if not both:
        raise ConflictError(
            "There is no query that both evaluations could evaluate; their records say why each was skipped."
        )
    baseline, candidate = (
        np.array([[side[query_id][str(k)][metric] for metric, k in figures] for query_id in both])
        for side in each
    )
    told = _told(figures, baseline, candidate)
    at = figures.index(decided)
    answer = {
        "dataset_id": sides[0]["dataset_id"],
        "dataset_name": sides[0]["dataset_name"],
        "baseline": named[0],
        "candidate": named[1],
        "compared_queries": len(both),
        "left_out_queries": left_out,
        "decided_by": told[at],
        "verdict": _verdict(told[at], len(both)),
        "figures": told,
        "queries": _queries(both, baseline[:, at], candidate[:, at], request.query_limit),
    }
    return {**answer, "message": _message(answer)}


def _completed(connection: Connection, namespace_id: str, evaluation_id: str) -> RowMapping:
    row = row_of(connection, evaluation_id, evaluations.c.namespace_id == namespace_id)
    if row is None:
        raise NotFoundError("evaluation", evaluation_id)
    if row["status"] != EvaluationStatus.COMPLETED:
        raise ConflictError(
            f"Evaluation {evaluation_id} is {row['status']}; only completed ones can be compared. "
            f"GET /v1/tasks/{row['task_id']} tells how far it is.",
            details={"evaluation_id": evaluation_id, "status": row["status"]},
        )
    return row


def _check_alike(sides: Sequence[RowMapping]) -> None:
    one, other = sides
    if one["evaluation_id"] == other["evaluation_id"]:
        raise BadRequestError(
            f"Both are evaluation {one['evaluation_id']}. Name two: their figures are compared query by query."
        )
    if one["dataset_id"] != other["dataset_id"]:
        raise BadRequestError(
            f"The evaluations are on two datasets, {quote(one['dataset_name'])} ({one['dataset_id']}) and "
            f"{quote(other['dataset_name'])} ({other['dataset_id']}). Evaluate both retrievers on one.",
            details={"datasets": [one["dataset_id"], other["dataset_id"]]},
        )


def _named(connection: Connection, side: RowMapping) -> JsonObject:
    name = sa.select(retrievers.c.retriever_name).where(retrievers.c.retriever_id == side["retriever_id"])
    return {
        "evaluation_id": side["evaluation_id"],
        "retriever_id": side["retriever_id"],
        "retriever_name": connection.execute(name).scalar_one(),
        "evaluated_queries": side["evaluated"],
        "skipped_queries": side["skipped"],
        "completed_at": side["completed_at"],
    }


def _figures(sides: Sequence[RowMapping]) -> list[tuple[str, int]]:
    """Return metric and k of what both have, by metric."""
    one, other = (side["config"] for side in sides)
    found = [
        (metric, k)
        for metric in one["metrics"]
        if metric in other["metrics"]
        for k in one["k_values"]
        if k in other["k_values"]
    ]
    if not found:
        raise BadRequestError(
            "The evaluations have no metric at one k in common. Start both with the same evaluation_config."
        )
    return found


def _decided(figures: Sequence[tuple[str, int]], request: CompareEvaluationsRequest) -> tuple[str, int]:
    metrics = [request.metric] if request.metric else list(dict.fromkeys(metric for metric, _ in figures))
    metric = _USUAL_METRIC if _USUAL_METRIC in metrics else metrics[0]
    ks = [k for each, k in figures if each == metric]
    k = request.k or (_USUAL_K if _USUAL_K in ks else max(ks, default=0))
    if (metric, k) not in figures:
        shown = ", ".join(f"{each}@{k}" for each, k in figures)
        where = "k" if request.k and ks else "metric"
        message = f"Not both evaluations have {metric}{f'@{k}' if k else ''}. What both have: {shown}."
        raise_problems([Problem(("body", where), message, "value_error")])
    return metric, k


def _told(
    figures: Sequence[tuple[str, int]], baseline: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]
) -> list[JsonObject]:
    differences = candidate - baseline
    means = zip(baseline.mean(axis=0), candidate.mean(axis=0), differences.mean(axis=0), strict=True)
    tests = zip(significance.p_values(differences), significance.intervals(differences), strict=True)
    told = []
    for (metric, k), column, (one, other, difference), (p, interval) in zip(
        figures, differences.T, means, tests, strict=True
    ):
        wins, losses = int(np.sum(column > _SAME)), int(np.sum(column < -_SAME))
        told.append(
            {
                "metric": metric,
                "k": k,
                "baseline": float(one),
                "candidate": float(other),
                "difference": float(difference),
                "interval_95": None if interval is None else list(interval),
                "p_value": p,
                "wins": wins,
                "losses": losses,
                "ties": len(column) - wins - losses,
            }
        )
    return told


def _verdict(figure: Mapping[str, Any], queries: int) -> str:
    if queries < significance.FEWEST:
        return "too_few_queries"
    if figure["p_value"] >= LEVEL:
        return "no_difference_shown"
    return "candidate_better" if figure["difference"] > 0 else "baseline_better"


def _queries(
    query_ids: Sequence[str], baseline: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any], limit: int
) -> list[JsonObject]:
    differences = candidate - baseline
    # Stable: what differs by the same stays in the order of the dataset.
    order = np.argsort(-np.abs(differences), kind="stable")[:limit]
    return [
        {
            "query_id": query_ids[at],
            "baseline": float(baseline[at]),
            "candidate": float(candidate[at]),
            "difference": float(differences[at]),
        }
        for at in order
    ]


def _message(answer: Mapping[str, Any]) -> str:
    """Say in a sentence what came out, and no more than that."""
    by, queries = answer["decided_by"], answer["compared_queries"]
    figure = f"{by['metric']}@{by['k']}"
    stand = f"{by['baseline']:.4f} against {by['candidate']:.4f} over {queries} queries"
    if answer["verdict"] == "too_few_queries":
        return f"{figure} is {stand}. Fewer than {significance.FEWEST} queries can show no difference; judge more."
    low, high = by["interval_95"]
    chance = (
        f"difference {by['difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, p {by['p_value']:.4f}"
    )
    if answer["verdict"] == "no_difference_shown":
        return (
            f"{figure} is {stand}: {chance}. No difference is shown; that does not show that there is none."
        )
    better = answer["candidate" if answer["verdict"] == "candidate_better" else "baseline"]
    return f"{figure} is {stand}: {chance}. {quote(better['retriever_name'])} is better."
