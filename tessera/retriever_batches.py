"""One retriever, or several, run for many inputs at once: what all of them search goes to the engine together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tessera.context import Warehouse
from tessera.errors import TesseraError
from tessera.fusion import fused_hits
from tessera.ports import Fusion, Hit, Page, Search
from tessera.retriever_context import context_of, installed, narrowed, read_inputs, stage_params
from tessera.retriever_features import vector_of
from tessera.retriever_plan import Plan
from tessera.stages.base import QueryInput, QueryVector, StageContext, Work

#: Searches in one call; each brings up to a few hundred documents.
_SEARCHES = 128
#: Documents that a retriever which only chooses gives, at most.
_READ = 100


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a retriever with `inputs`, for the sake of the document `about`, whose own vectors it may use."""

    plan: Plan
    inputs: Mapping[str, Any]
    about: Hit | None = None


class _Searches(Exception):
    """A run has come to a search whose answer is not there yet."""

    def __init__(self, searches: Sequence[Search]) -> None:
        super().__init__()
        self.searches = searches


@dataclass(slots=True)
class _State:
    """How far a run is: the answers to its searches so far, and the queries that were turned into vectors."""

    answers: list[list[list[Hit]]] = field(default_factory=list)
    vectors: dict[tuple[str, str, str], QueryVector] = field(default_factory=dict)


def run_all(wh: Warehouse, runs: Sequence[Run]) -> list[list[Hit] | TesseraError]:
    """Return the documents of each run, or why it has none.

    Every run goes until it searches; those searches go together, and then each goes on with its answer: it begins
    anew, and what it asked before is answered from memory. So a stage that searches costs few calls for all runs
    together. Stages whose answers another server gives are asked once for each run, in a run by itself.
    """
    found: dict[int, list[Hit] | TesseraError] = {}
    states = {number: _State() for number in range(len(runs))}
    while states:
        waiting: dict[int, Sequence[Search]] = {}
        for number, state in states.items():
            try:
                found[number] = _run(wh, runs[number], state)
            except _Searches as asked:
                waiting[number] = asked.searches
            except TesseraError as error:
                if error.retryable:
                    raise
                found[number] = error
        _answer(wh, runs, states, waiting)
        states = {number: states[number] for number in waiting}
    return [found[number] for number in range(len(runs))]


def _answer(
    wh: Warehouse, runs: Sequence[Run], states: Mapping[int, _State], waiting: Mapping[int, Sequence[Search]]
) -> None:
    numbers = list(waiting)
    while numbers:
        some: list[int] = []
        count = 0
        while numbers and (not some or count + len(waiting[numbers[0]]) <= _SEARCHES):
            some.append(numbers.pop(0))
            count += len(waiting[some[-1]])
        namespace_id = runs[some[0]].plan.place["namespace_id"]
        rankings = iter(wh.views.search(namespace_id, [each for n in some for each in waiting[n]]))
        for number in some:
            states[number].answers.append([next(rankings) for _ in waiting[number]])


def _run(wh: Warehouse, run: Run, state: _State) -> list[Hit]:
    plan = run.plan
    inputs = read_inputs(plan.fields, run.inputs)
    stages = [installed(wh, spec) for spec in plan.stages]
    context = context_of(wh, plan, inputs, None)
    if all(stage.is_repeatable and not stage.needs_language for stage in stages):
        left = iter(state.answers)

        def search(searches: Sequence[Search]) -> list[list[Hit]]:
            known = next(left, None)
            if known is None:
                raise _Searches(searches)
            return known

        def ranked(searches: Sequence[Search], fusion: Fusion) -> list[Hit]:
            return fused_hits(search(searches), fusion)

        context = replace(context, search=search, ranked=ranked)
    context = replace(context, embed=lambda uri, query: _embedded(wh, run, state, uri, query, context))
    hits: list[Hit] | None = None
    results: dict[str, Any] = {}
    for index, (stage, spec) in enumerate(zip(stages, plan.stages, strict=True)):
        params = stage_params(stage, spec, {"INPUT": inputs, "STAGE": results, "CONTEXT": {}}, index)
        within = stage.narrow(params, context) if hits is None else None
        if within is not None:
            context = narrowed(context, within)
            continue
        hits = stage.run(hits, params, replace(context, work=Work()))
        results[spec["stage_name"]] = {"count": len(hits)}
    if hits is None:  # all that the stages did was to choose by fields
        return list(context.page(Page(limit=_READ, filter=context.within)).hits)
    return hits


def _embedded(
    wh: Warehouse, run: Run, state: _State, uri: str, query: QueryInput, context: StageContext
) -> QueryVector:
    """Return what to search with: a vector that the document has already, or one that is made, once in a run."""
    if query.kind == "text" and isinstance(query.value, list):
        # A retriever for texts that is given the vector of one.
        query = QueryInput("vector", np.asarray(query.value, dtype=np.float32))
    about = run.about
    if query.kind == "document" and about is not None and query.value == about.document_id:
        vector, _ = vector_of(wh, run.plan.place, uri)
        if vector.name in about.vectors:
            return QueryVector(vector.name, np.asarray(about.vectors[vector.name], dtype=np.float32))
    if query.kind not in ("text", "image", "content"):
        return context_of(wh, run.plan, context.inputs, None).embed(uri, query)
    key = (uri, query.kind, str(query.value))
    if key not in state.vectors:
        state.vectors[key] = context_of(wh, run.plan, context.inputs, None).embed(uri, query)
    return state.vectors[key]
