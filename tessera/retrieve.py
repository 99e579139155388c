"""Retrievers, executed stage by stage: at once or as a stream, anew or from what was kept of the last time.

What depends on the inputs and is wrong is found before anything is searched.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson

from tessera import documents, links, taxonomy_execution
from tessera.budget import BudgetSpent
from tessera.context import Principal, Warehouse
from tessera.errors import TesseraError, quote
from tessera.execution_note import Note, budget_told, statistics_of
from tessera.ids import point_id
from tessera.models.retrievers import (
    AdhocExecuteRequest,
    ExecuteRequest,
    SearchDocumentsRequest,
)
from tessera.ports import Hit, Page
from tessera.result_cache import Kept
from tessera.retriever_context import context_of, installed, narrowed, read_inputs, stage_params
from tessera.retriever_pages import Cut, Ranked, following, position_after, read_cut
from tessera.retriever_plan import Plan, adhoc_plan, stored_plan
from tessera.stages.base import StageContext, Work


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to an execution, and what its headers say: HIT, MISS or BYPASS, and the ETag where there is one."""

    body: dict[str, Any]
    cache_status: str = "BYPASS"
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What one execution asks for beside the retriever: how its answer is cut, and what is shown of documents."""

    request: ExecuteRequest
    inputs: dict[str, Any]
    cut: Cut
    return_urls: bool = False
    return_vectors: bool = False
    skip_cache: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """A stage that begins (`statistics` is null) or has ended, with the documents that it left, if they were read."""

    index: int
    name: str
    statistics: dict[str, Any] | None = None
    hits: list[Hit] | None = None
    credits: float = 0.0


def execute(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    request: ExecuteRequest,
    *,
    return_urls: bool = False,
    return_vectors: bool = False,
    skip_cache: bool = False,
) -> Answered:
    """Run a stored retriever and answer its documents, best first, with statistics of every stage.

    With a ``cache_config`` the result may be one that was read before, if nothing was written to the namespace since.
    """
    plan, _ = stored_plan(wh, principal, namespace, identifier, request.collection_identifiers)
    return _run(wh, plan, _asked_for(wh, plan, request, return_urls, return_vectors, skip_cache))


def execute_adhoc(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    request: AdhocExecuteRequest,
    *,
    return_urls: bool = False,
    return_vectors: bool = False,
) -> Answered:
    """Run stages that are not stored; the answer is that of `execute`, and nothing is kept."""
    plan = adhoc_plan(wh, principal, namespace, request)
    return _run(wh, plan, _asked_for(wh, plan, request, return_urls, return_vectors, skip_cache=True))


def ranking(wh: Warehouse, plan: Plan, inputs: Mapping[str, Any], depth: int) -> Ranked:
    """Return the best `depth` of a plan's hits. Nothing is kept of it, and it is in no log of executions."""
    request = ExecuteRequest(inputs=dict(inputs), limit=depth)
    return _last(_steps(wh, plan, _asked_for(wh, plan, request, False, False, skip_cache=True)))


def search_documents(
    wh: Warehouse, principal: Principal, namespace: str, request: SearchDocumentsRequest
) -> dict[str, Any]:
    """Search collections by a text, over every feature that takes one."""
    return execute_adhoc(
        wh,
        principal,
        namespace,
        AdhocExecuteRequest(
            stages=[
                {
                    "stage_id": "feature_search",
                    "parameters": {"query": "{{INPUT.query}}", "limit": request.page_size},
                }
            ],
            inputs={"query": request.query},
            filters=request.filters,
            limit=request.page_size,
            collection_identifiers=request.collection_ids or None,
        ),
    ).body


def stream(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str | None,
    request: ExecuteRequest,
    *,
    return_urls: bool = False,
    return_vectors: bool = False,
) -> Iterator[dict[str, Any]]:
    """Run a retriever (stages that are not stored, without `identifier`) and yield its events as they come.

    ``stage_start`` and ``stage_complete`` for each stage, then ``execution_complete`` with the whole answer, or
    ``execution_error``. What is wrong with the request itself is raised before the first of them.
    """
    if identifier is not None:
        plan, _ = stored_plan(wh, principal, namespace, identifier, request.collection_identifiers)
    else:
        assert isinstance(request, AdhocExecuteRequest)
        plan = adhoc_plan(wh, principal, namespace, request)
    return _events(wh, plan, _asked_for(wh, plan, request, return_urls, return_vectors, skip_cache=True))


def _events(wh: Warehouse, plan: Plan, asked: Asked) -> Iterator[dict[str, Any]]:
    note = Note(wh, plan, asked.inputs)
    common = {"execution_id": note.execution_id, "total_stages": len(plan.stages)}
    steps = _steps(wh, plan, asked)
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as ended:
                ranked: Ranked = ended.value
                break
            event = {**common, "stage_name": step.name, "stage_index": step.index}
            if step.statistics is None:
                yield {"event_type": "stage_start", **event}
                continue
            shown = (step.hits or ())[: asked.cut.limit]
            yield {
                "event_type": "stage_complete",
                **event,
                "documents": _presented(wh, plan, asked, shown),
                "statistics": step.statistics,
                "budget_used": {
                    "credits_used": step.credits,
                    "time_elapsed_ms": note.elapsed_ms(),
                },
            }
        body = _body(wh, plan, asked, ranked, note, is_hit=False)
    except TesseraError as error:
        note.failed(error)
        told = {"type": error.type, "message": error.message, "status": error.status}
        yield {"event_type": "execution_error", **common, "error": told}
        return
    note.ended(ranked, body)
    if ranked.stopped is None:
        yield {"event_type": "execution_complete", **common, **body}
        return
    told = {"type": "BudgetExceededError", "message": ranked.stopped, "status": 200}
    yield {**common, **body, "event_type": "execution_error", "error": told}


def _asked_for(
    wh: Warehouse,
    plan: Plan,
    request: ExecuteRequest,
    return_urls: bool,
    return_vectors: bool,
    skip_cache: bool,
) -> Asked:
    inputs = read_inputs(plan.fields, request.inputs)
    cut = read_cut(wh, request.pagination or {}, request.limit, lambda: _digest(plan, inputs, request))
    return Asked(request, inputs, cut, return_urls or bool(request.return_urls), return_vectors, skip_cache)


def _run(wh: Warehouse, plan: Plan, asked: Asked) -> Answered:
    note = Note(wh, plan, asked.inputs)
    # Before anything is searched: what is written from here on is not hidden by what is kept under it.
    place = _position(wh, plan, asked)
    try:
        key = _cache_key(plan, asked) if place is not None else b""
        namespace_id = plan.place["namespace_id"]
        kept = wh.results.get(namespace_id, place, key) if place is not None else None
        if kept is not None:
            ranked, etag = pickle.loads(kept.packed), kept.etag  # noqa: S301  packed by this process
        else:
            ranked, etag = _last(_steps(wh, plan, asked)), None
        # Links are signed for each answer.
        body = _body(wh, plan, asked, ranked, note, is_hit=kept is not None)
    except TesseraError as error:
        note.failed(error)
        raise
    note.ended(ranked, body)
    if place is None or plan.cache_ttl_s is None or ranked.stopped is not None or not ranked.is_repeatable:
        return Answered(body)
    if etag is None:
        etag = _etag(ranked)
        wh.results.put(namespace_id, place, key, Kept(pickle.dumps(ranked), etag), plan.cache_ttl_s)
    return Answered(body, "MISS" if kept is None else "HIT", f'W/"{etag}{_age_of_links(body)}"')


def _position(wh: Warehouse, plan: Plan, asked: Asked) -> tuple[Any, ...] | None:
    """Return where the namespace stands, for a result that may be kept; None when it must be read anew.

    The log's head was read with the retriever's row. A view that is behind it is about to change, or another server
    has brought it on: what would be read now is kept under no position.
    """
    if plan.cache_ttl_s is None or asked.skip_cache or asked.return_vectors:
        return None
    position = wh.views.position(plan.place["namespace_id"])
    if position is None or position[1] < plan.place["head"]:
        return None
    return position


def _cache_key(plan: Plan, asked: Asked) -> bytes:
    """Return a digest of all that decides the answer beside what the namespace holds."""
    request = asked.request
    told = [
        plan.retriever_id,
        plan.version,
        plan.collection_ids,
        asked.inputs,
        request.filters,
        request.limit,
        request.pagination,
    ]
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).digest()


def _etag(ranked: Ranked) -> str:
    """Return a digest of what was found: the same after a write that changed none of it."""
    shown = [[hit.document_id, hit.score, hit.payload, hit.signals] for hit in ranked.hits]
    facets = [told["metadata"] for told in ranked.statistics.values() if "metadata" in told]
    told = [ranked.total, ranked.offset, shown, facets]
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)).hexdigest()[:24]


def _age_of_links(body: Mapping[str, Any]) -> str:
    """Return what makes an ETag end before the links of its answer do; "" for one without links."""
    if not any(document["document_blobs"] for document in body["documents"]):
        return ""
    return f"-{int(time.time() // (links.LIFETIME_S / 2))}"


def _last(steps: Generator[Step, None, Ranked]) -> Ranked:
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            ranked: Ranked = ended.value
            return ranked


def _steps(wh: Warehouse, plan: Plan, asked: Asked) -> Generator[Step, None, Ranked]:
    """Run the stages one after the other; yield each when it begins and when it has ended."""
    context = replace(
        context_of(wh, plan, asked.inputs, asked.request.filters),
        taxonomy=partial(taxonomy_execution.run_stage, wh, plan.place),
    )
    budget = context.budget
    hits: list[Hit] | None = None
    #: Documents that the stages so far let through; `hits` is None while nobody had to read them.
    passed = 0
    statistics: dict[str, Any] = {}
    results: dict[str, Any] = {}
    is_repeatable = True
    namespace_id = plan.place["namespace_id"]
    for index, spec in enumerate(plan.stages):
        stage = installed(wh, spec)
        name = spec["stage_name"] if spec["stage_name"] not in statistics else f"{spec['stage_name']}_{index}"
        yield Step(index, name)
        before = time.perf_counter()
        params = stage_params(stage, spec, {"INPUT": asked.inputs, "STAGE": results, "CONTEXT": {}}, index)
        count_in = passed
        work = Work()
        within = stage.narrow(params, context) if hits is None else None
        try:
            if within is not None:
                context = narrowed(context, within)
                passed = wh.views.count(namespace_id, context.within)
            else:
                hits = stage.run(hits, params, replace(context, work=work))
                passed = len(hits)
            spent = budget.spent() if index + 1 < len(plan.stages) else None
        except BudgetSpent as error:
            spent, passed = error.message, 0
        stopped = _stopped(spent, name, f"{index + 1} of {len(plan.stages)}") if spent else None
        is_repeatable &= work.is_repeatable
        results[name] = {"count": passed}
        statistics[name] = statistics_of(count_in, passed, before, work, stopped)
        yield Step(index, name, statistics[name], hits if stopped is None else [], budget.credits_used)
        if stopped is not None:
            # What a later stage would have kept back is not shown.
            return Ranked([], 0, 0, asked.cut.limit, False, statistics, stopped, budget.credits_used)
    ranked = _page_of(hits, passed, asked.cut, context, namespace_id, statistics)
    return replace(ranked, credits=budget.credits_used, is_repeatable=is_repeatable)


def _stopped(spent: str, name: str, place: str) -> str:
    return (
        f"The budget of this execution is spent: {spent}. It ended in stage {quote(name)}, {place}; raise "
        "budget_limits, or let earlier stages leave less."
    )


def _page_of(
    hits: list[Hit] | None,
    total: int,
    cut: Cut,
    context: StageContext,
    namespace_id: str,
    statistics: dict[str, Any],
) -> Ranked:
    """Return the page of the stages' documents that `cut` asks for; they are read only now when `hits` is null."""
    limit = cut.limit
    if hits is not None:
        offset = cut.offset if cut.after is None else position_after(hits, cut.after)
        shown = hits[offset : offset + limit]
        return Ranked(shown, total, offset, limit, offset + limit < total, statistics)
    if cut.after is None:
        page = context.page(Page(limit=limit, offset=cut.offset, filter=context.within))
        return Ranked(list(page.hits), total, cut.offset, limit, cut.offset + limit < total, statistics)
    last = point_id(namespace_id, cut.after.document_id)
    page = context.page(Page(limit=limit, filter=context.within, after=last))
    return Ranked(list(page.hits), total, None, limit, page.next_after is not None, statistics)


def _presented(wh: Warehouse, plan: Plan, asked: Asked, hits: Sequence[Hit]) -> list[dict[str, Any]]:
    namespace_id = plan.place["namespace_id"]
    full: dict[str, Any] = {}
    if asked.return_vectors and hits:
        found = wh.views.get(namespace_id, [hit.document_id for hit in hits], True)
        full = {hit.document_id: hit.vectors for hit in found}
    return [
        {
            **documents.present(
                wh,
                namespace_id,
                hit.payload,
                return_urls=asked.return_urls,
                vectors=full.get(hit.document_id),
            ),
            **_signals(hit),
            "score": hit.score,
        }
        for hit in hits
    ]


def _signals(hit: Hit) -> dict[str, Any]:
    """Return what each search says of a hit, as `features`, unless the document has a field of that name."""
    return {} if hit.signals is None or "features" in hit.payload else {"features": dict(hit.signals)}


def _body(
    wh: Warehouse, plan: Plan, asked: Asked, ranked: Ranked, note: Note, *, is_hit: bool
) -> dict[str, Any]:
    answered = _presented(wh, plan, asked, ranked.hits)
    elapsed_ms = note.elapsed_ms()
    credits_used = 0.0 if is_hit else ranked.credits
    found = [
        told["metadata"]["facets"]
        for told in ranked.statistics.values()
        if "facets" in told.get("metadata", ())
    ]
    return {
        "execution_id": note.execution_id,
        "retriever_id": plan.retriever_id,
        "status": "completed" if ranked.stopped is None else "failed",
        "documents": answered,
        "results": answered,
        "pagination": following(wh, asked.cut, ranked, lambda: _digest(plan, asked.inputs, asked.request)),
        "stage_statistics": {
            "stages": {name: {**told, "cache_hit": is_hit} for name, told in ranked.statistics.items()},
            "total_time_ms": elapsed_ms,
            "credits_used": credits_used,
        },
        **({"facets": found[-1]} if found else {}),
        "budget": budget_told(credits_used, elapsed_ms, plan.limits),
        "cache_hit": is_hit,
        "error": ranked.stopped,
    }


def _digest(plan: Plan, inputs: Mapping[str, Any], request: ExecuteRequest) -> str:
    """Return a digest of all that decides the ranking: a cursor is good for this very search only."""
    told = [
        plan.place["namespace_id"],
        plan.retriever_id or plan.stages,
        sorted(plan.collection_ids),
        inputs,
        request.filters or None,
    ]
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
