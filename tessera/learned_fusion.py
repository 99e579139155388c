"""Weights of searches learned from interactions: of one retriever, by what its executions showed and people chose.

An execution with `fusion` ``learned`` notes what each search said of each document that it showed. Here that is put
together with the interactions that name the execution; `click_model` estimates. Where there are too few, the weights
that the retriever states are used, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera.click_model import Shown, estimate
from tessera.context import Warehouse
from tessera.db.tables import impressions, interactions
from tessera.stages.base import Learned

#: Interactions that are read, and executions that are learned from; the newest.
MOST_INTERACTIONS = 20_000
MOST_EXECUTIONS = 2_000
#: It is estimated anew when the number of interactions has changed by such a part.
_AGAIN = 0.05
#: So many interactions are read in a few milliseconds.
_FEW = 1_000
#: Estimates held for each server.
_HELD = 1024
_IDS = 500


def weights_of(
    wh: Warehouse,
    retriever_id: str,
    names: Sequence[str],
    stated: Sequence[float],
    rewards: Collection[str],
    least: int,
) -> Learned:
    """Return the weight of each of the searches `names` of a retriever, 1 in all.

    `rewards` are the types of interactions that speak for a document, `least` how many executions need one.
    """
    if not retriever_id:
        return Learned(tuple(stated), 0, "only a stored retriever has interactions to learn from")
    key = (retriever_id, tuple(names), tuple(stated), tuple(sorted(rewards)), least)
    with wh.db.read() as connection:
        count = connection.execute(
            sa.select(sa.func.count())
            .select_from(interactions)
            .where(interactions.c.retriever_id == retriever_id)
        ).scalar_one()
        held: tuple[int, Learned] | None = wh.learned.get(key)
        if held is not None:
            # As long as too few speak for a document each one counts, while reading all of them costs little.
            certain = 0 if held[1].fallback is None else _FEW
            tolerated = _AGAIN * max(0, held[0] - certain)
            if abs(count - held[0]) <= tolerated:
                return held[1]
        chosen = _chosen(connection, retriever_id, rewards) if count else {}
        lists = _lists(connection, retriever_id, chosen, names)
    learned = _learned(lists, stated, rewards, least)
    if len(wh.learned) >= _HELD:
        wh.learned.clear()
    wh.learned[key] = count, learned
    return learned


def _chosen(connection: Connection, retriever_id: str, rewards: Collection[str]) -> dict[str, set[str]]:
    """Return the documents that interactions speak for, by execution, the newest executions first."""
    rows = connection.execute(
        sa.select(interactions.c.execution_id, interactions.c.feature_id, interactions.c.interaction_type)
        .where(interactions.c.retriever_id == retriever_id, interactions.c.execution_id.is_not(None))
        .order_by(interactions.c.created_at.desc(), interactions.c.interaction_id)
        .limit(MOST_INTERACTIONS)
    )
    chosen: dict[str, set[str]] = {}
    for execution_id, document_id, types in rows:
        if not set(types).isdisjoint(rewards) and (execution_id in chosen or len(chosen) < MOST_EXECUTIONS):
            chosen.setdefault(execution_id, set()).add(document_id)
    return chosen


def _lists(
    connection: Connection, retriever_id: str, chosen: Mapping[str, set[str]], names: Sequence[str]
) -> list[Shown]:
    """Return each list that was shown and of which something was chosen, with the scores of the searches `names`."""
    by_execution: dict[str, list[Any]] = {}
    ids = list(chosen)
    for start in range(0, len(ids), _IDS):
        rows = connection.execute(
            sa.select(impressions)
            .where(
                impressions.c.execution_id.in_(ids[start : start + _IDS]),
                impressions.c.retriever_id == retriever_id,
            )
            .order_by(impressions.c.execution_id, impressions.c.position)
        )
        for row in rows:
            by_execution.setdefault(row.execution_id, []).append(row)
    lists = []
    for execution_id, shown in by_execution.items():
        rows_chosen = tuple(n for n, row in enumerate(shown) if row.document_id in chosen[execution_id])
        if rows_chosen and len(rows_chosen) < len(shown):
            scores = np.array([[float(row.signals.get(name, 0.0)) for name in names] for row in shown])
            positions = np.array([float(row.position) for row in shown])
            lists.append(Shown(scores, positions, rows_chosen))
    return lists


def _learned(
    lists: Sequence[Shown], stated: Sequence[float], rewards: Collection[str], least: int
) -> Learned:
    if len(lists) < least:
        said = " or ".join(sorted(rewards))
        return Learned(
            tuple(stated),
            len(lists),
            f"{len(lists)} of {least} executions (min_interactions) have a {said} on a hit of theirs",
        )
    total = sum(stated)
    prior = np.array(stated) / total if total > 0 else np.full(len(stated), 1 / len(stated))
    found = np.maximum(estimate(lists, prior).weights, 0.0)
    if not found.any():
        return Learned(tuple(stated), len(lists), "what was chosen speaks against every search")
    return Learned(tuple(round(float(weight), 6) for weight in found / found.sum()), len(lists), None)
