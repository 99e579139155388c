"""Retrievers: created from stages in any of the API's shapes, executed stage by stage.

Everything about a retriever that can be wrong is found when it is created; what depends on the inputs
is found when it is executed, before anything is searched.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pydantic
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, content, documents, limits, links, media, names, namespaces, templates
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import collections, retrievers
from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    NotFoundError,
    Problem,
    TesseraError,
    UnavailableError,
    ValidationError,
    quote,
    raise_problems,
)
from tessera.extraction import configured
from tessera.extractors.base import BadSample, SparseOutput, VectorOutput
from tessera.filters import And, Condition, Filter, parse, values_at
from tessera.ids import new_id, point_id
from tessera.models import PayloadIndex
from tessera.models.retrievers import (
    AdhocExecuteRequest,
    CacheConfig,
    CloneRetrieverRequest,
    CreateRetrieverRequest,
    ExecuteRequest,
    InputField,
    PatchRetrieverRequest,
    SearchDocumentsRequest,
)
from tessera.pagination import PageRequest, paginate
from tessera.plan import effective_indexes, stored_indexes
from tessera.ports import HIDDEN_FIELDS, Failed, Hit, Page, SparseText, Vector
from tessera.registry import Registry
from tessera.result_cache import Kept
from tessera.retriever_pages import Cut, Ranked, following, position_after, read_cut
from tessera.stages.base import QueryInput, QueryVector, Stage, StageContext
from tessera.validation import schema_problems

Location = tuple[str | int, ...]

#: Keys of a stage that are not parameters where a stage is written flat.
_STAGE_KEYS = frozenset(
    {"type", "stage_id", "stage_name", "stage_type", "config", "version", "batch_size", "description"}
    | {"feature_extractor", "collection_ids", "parameters"}
)

#: What of a retriever no PATCH changes.
FIXED_FIELDS = ("stages", "input_schema", "collection_identifiers", "budget_limits", "cache_config")

#: A picture in a query, decoded, may not be larger than this.
MAX_QUERY_IMAGE_BYTES = 16 * 2**20
#: A text in a query that comes as content, likewise.
MAX_QUERY_TEXT_BYTES = 2**20
#: Longest time to decode a query image.
QUERY_IMAGE_TIMEOUT_S = 20.0
#: What a search by words is answered where there is nothing to search.
_NO_WORDS = (
    "This namespace has no keyword index: none of its extractors writes texts. Search by a vector, or create a "
    "namespace with one that does, for example text_extractor."
)


# --- stages, normalised --------------------------------------------------------------------------------


def normalise_stage(
    wh: Warehouse, raw: Mapping[str, Any], index: int
) -> tuple[dict[str, Any], list[Problem]]:
    """Return a stage in the API's first shape, whichever of the four it came in, and what is wrong with it.

    Shapes: ``{stage_name, stage_type, config: {stage_id, parameters}}``; ``{stage_type, stage_id, parameters}``;
    ``{stage_name: "knn_search", parameters}``; ``{type: "feature_search", query, …}``.
    """
    location: Location = ("body", "stages", index)
    config = raw.get("config") if isinstance(raw.get("config"), Mapping) else {}
    assert isinstance(config, Mapping)
    stage_id = config.get("stage_id") or raw.get("stage_id") or raw.get("type") or raw.get("stage_name")
    parameters = config.get("parameters", raw.get("parameters"))
    if parameters is None:
        parameters = {key: value for key, value in raw.items() if key not in _STAGE_KEYS}
    stage = wh.registry.stage(str(stage_id)) if stage_id else None
    if stage is None:
        known = ", ".join(sorted(wh.registry.stages))
        return {}, [
            Problem(
                (*location, "stage_id"),
                f"Stage {quote(stage_id)} is not known. Known stages: {known}.",
                "unknown_stage",
            )
        ]
    if not isinstance(parameters, Mapping):
        return {}, [Problem((*location, "parameters"), "`parameters` is an object.", "type")]
    parameters = stage.normalise(dict(parameters))
    problems = templates.check(parameters, (*location, "parameters"))
    wrong = _parameter_problems(stage, parameters, (*location, "parameters"))
    problems += wrong or stage.problems(parameters, (*location, "parameters"))
    name = raw.get("stage_name") or stage.stage_id
    return {
        "stage_name": str(name),
        "stage_type": stage.category,
        "config": {"stage_id": stage.stage_id, "parameters": parameters},
        "parameters": parameters,
        "batch_size": raw.get("batch_size"),
        "description": raw.get("description"),
    }, problems


def _parameter_problems(stage: Stage, parameters: Mapping[str, Any], location: Location) -> list[Problem]:
    """Check parameters against the stage's model; a value that is a template is checked when it is filled in."""
    try:
        stage.Params.model_validate(parameters)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
        return schema_problems([item for item in found if not templates.is_template(item["input"])], location)
    return []


def _input_fields(raw: Mapping[str, Any] | None) -> tuple[dict[str, InputField], list[Problem]]:
    """Read an input schema, with or without its ``properties`` wrapper."""
    schema = raw or {}
    wrapped = schema.get("properties")
    if isinstance(wrapped, Mapping) and not isinstance(wrapped.get("type"), str):
        schema = wrapped
    fields: dict[str, InputField] = {}
    problems: list[Problem] = []
    for name, value in schema.items():
        try:
            fields[name] = InputField.model_validate(value)
        except pydantic.ValidationError as error:
            problems += schema_problems(error, ("body", "input_schema", name))
    return fields, problems


# --- create, read, change, delete ----------------------------------------------------------------------


def create(
    wh: Warehouse, principal: Principal, namespace: str, request: CreateRetrieverRequest
) -> dict[str, Any]:
    """Store a retriever. Raises with everything that is wrong at once; a taken name is a 409."""
    at = now()
    retriever_name = names.clean(request.retriever_name)
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        namespace_id = place["namespace_id"]
        stages, fields, problems = _checked(
            wh, place, request.stages, request.input_schema, declared=request.input_schema is not None
        )
        problems += _join_problems(connection, namespace_id, request.stages, stages)
        found, unknown = _collections(connection, namespace_id, request.collection_identifiers)
        problems += unknown + _name_problems(retriever_name)
        taken = connection.execute(
            sa.select(retrievers.c.retriever_id).where(
                retrievers.c.namespace_id == namespace_id,
                retrievers.c.retriever_name == retriever_name,
            )
        ).scalar()
        if not problems and taken:
            raise AlreadyExistsError(
                f"A retriever named {quote(retriever_name)} exists in this namespace ({taken}). Choose another "
                "name, or delete that one.",
                details={"resource": "retriever", "id": taken},
            )
        raise_problems(problems)
        row = {
            "retriever_id": new_id("ret"),
            "namespace_id": namespace_id,
            "retriever_name": retriever_name,
            "description": request.description,
            "definition": {
                "collection_identifiers": request.collection_identifiers,
                "collection_ids": found,
                "stages": stages,
                "input_schema": {name: field.model_dump(exclude_none=True) for name, field in fields.items()},
                "budget_limits": request.budget_limits,
                "cache_config": request.cache_config.model_dump() if request.cache_config else None,
                "tags": request.tags,
                "visibility": request.visibility,
                "display_config": request.display_config,
            },
            "version": 1,
            "created_at": at,
            "updated_at": at,
        }
        limits.check_quota(wh, connection, principal, "retrievers")
        connection.execute(retrievers.insert().values(**row))
        audit.record(
            connection,
            principal,
            "retriever_created",
            "retriever",
            row["retriever_id"],
            {"name": row["retriever_name"]},
        )
    return _answer(row)


def get(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> dict[str, Any]:
    """Return a retriever by id or name."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        return _answer(find(connection, place["namespace_id"], identifier))


def list_(
    wh: Warehouse, principal: Principal, namespace: str, page: PageRequest, body: Mapping[str, Any]
) -> dict[str, Any]:
    """List retrievers, newest first; `search` is a substring of name or description."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        condition = retrievers.c.namespace_id == place["namespace_id"]
        search = body.get("search")
        if isinstance(search, str) and search:
            condition &= sa.or_(
                retrievers.c.retriever_name.icontains(search, autoescape=True),
                retrievers.c.description.icontains(search, autoescape=True),
            )
        total = connection.execute(
            sa.select(sa.func.count()).select_from(retrievers).where(condition)
        ).scalar_one()
        rows = (
            connection.execute(
                sa.select(retrievers)
                .where(condition)
                .order_by(retrievers.c.created_at.desc(), retrievers.c.retriever_id)
                .limit(page.limit)
                .offset(page.offset)
            )
            .mappings()
            .all()
        )
    return {
        "results": [_answer(row) for row in rows],
        "total": total,
        "total_count": total,
        "pagination": paginate(wh, page, total, len(rows)),
    }


def clone(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: CloneRetrieverRequest
) -> dict[str, Any]:
    """Store another retriever like this one, under a name of its own; what the request states replaces what it has.

    Everything is checked as for a new one; a taken name is a 409.
    """
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        source = find(connection, place["namespace_id"], identifier)
    definition = source["definition"]
    inherited = {
        name: definition[name]
        for name in CreateRetrieverRequest.model_fields
        if name in definition and name not in ("collection_ids", "retriever_name")
    }
    # By id: a name may stand for another collection by now.
    inherited |= {
        "collection_identifiers": definition["collection_ids"],
        "description": source["description"],
    }
    stated = request.model_dump(exclude_none=True)
    made = create(wh, principal, namespace, CreateRetrieverRequest.model_validate({**inherited, **stated}))
    return {**made, "retriever": made, "source_retriever_id": source["retriever_id"]}


def patch(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: PatchRetrieverRequest
) -> dict[str, Any]:
    """Change a retriever's metadata; absent fields stay. What it does is fixed: another value of that is refused."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = dict(find(connection, place["namespace_id"], identifier))
        raise_problems(_fixed_problems(wh, row, request))
        given = request.model_dump(exclude_unset=True, exclude=set(FIXED_FIELDS))
        if not given:
            return _answer(row)
        name = names.clean(given.pop("retriever_name", None) or row["retriever_name"])
        if name != row["retriever_name"]:
            raise_problems(_name_problems(name))
            taken = connection.execute(
                sa.select(retrievers.c.retriever_id).where(
                    retrievers.c.namespace_id == place["namespace_id"], retrievers.c.retriever_name == name
                )
            ).scalar()
            if taken:
                raise AlreadyExistsError(
                    f"A retriever named {quote(name)} exists in this namespace ({taken}). Choose another name.",
                    details={"resource": "retriever", "id": taken},
                )
            row["retriever_name"] = name
        if "description" in given:
            row["description"] = given.pop("description")
        row["definition"] = {**row["definition"], **given}
        row["updated_at"] = now()
        connection.execute(
            sa.update(retrievers)
            .where(retrievers.c.retriever_id == row["retriever_id"])
            .values(
                retriever_name=row["retriever_name"],
                description=row["description"],
                definition=row["definition"],
                updated_at=row["updated_at"],
            )
        )
        audit.record(
            connection,
            principal,
            "retriever_updated",
            "retriever",
            row["retriever_id"],
            {"fields": sorted(request.model_fields_set.difference(FIXED_FIELDS))},
        )
    return _answer(row)


def _fixed_problems(wh: Warehouse, row: Mapping[str, Any], request: PatchRetrieverRequest) -> list[Problem]:
    """Return a problem for each field that is fixed and would change; sent back as it was read it is none."""
    definition = row["definition"]
    problems = []
    for name in FIXED_FIELDS:
        value = getattr(request, name)
        if value is None or value == definition.get(name):
            continue
        if name == "collection_identifiers" and value == definition["collection_ids"]:
            continue
        if (
            name == "stages"
            and [normalise_stage(wh, raw, n)[0] for n, raw in enumerate(value)] == (definition["stages"])
        ):
            continue
        problems.append(
            Problem(
                ("body", name),
                f"{name} of a retriever is fixed when it is created. POST /v1/retrievers/{row['retriever_id']}/clone "
                f"makes another one with other {name}.",
                "fixed",
                BadRequestError.status,
            )
        )
    return problems


def delete(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> str:
    """Delete a retriever and return its id."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        connection.execute(sa.delete(retrievers).where(retrievers.c.retriever_id == row["retriever_id"]))
        audit.record(
            connection,
            principal,
            "retriever_deleted",
            "retriever",
            row["retriever_id"],
            {"name": row["retriever_name"]},
        )
    return str(row["retriever_id"])


def stage_catalogue(wh: Warehouse, category: str | None = None) -> list[dict[str, Any]]:
    """Describe every stage that can be used, with the JSON schema of its parameters."""
    return [
        {
            "stage_id": stage.stage_id,
            "description": stage.description,
            "category": stage.category,
            "icon": stage.icon,
            "parameter_schema": stage.Params.model_json_schema(),
        }
        for _, stage in sorted(wh.registry.stages.items())
        if category is None or stage.category == category
    ]


# --- execute -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """A retriever, ready to run in its namespace.

    `cache_ttl_s` is how long a result may be kept, null when it may not; `version` changes with the retriever.
    """

    place: RowMapping
    retriever_id: str
    collection_ids: list[str]
    stages: list[dict[str, Any]]
    fields: dict[str, InputField]
    cache_ttl_s: float | None = None
    version: str = ""


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


def stored_plan(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    wanted: Sequence[str] | None = None,
) -> tuple[Plan, RowMapping]:
    """Return a stored retriever, ready to run over its collections or those that are `wanted`, and its row."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        definition = row["definition"]
        if not wanted:
            # A collection deleted since then simply has no documents any more.
            found = definition["collection_ids"] or _all_collections(connection, place["namespace_id"])
        else:
            own = definition["collection_ids"] if principal.through is not None else None
            found, problems = _collections(connection, place["namespace_id"], wanted, own)
            raise_problems(problems)
    fields = {name: InputField.model_validate(value) for name, value in definition["input_schema"].items()}
    ttl_s = _cache_ttl_s(definition.get("cache_config"))
    return Plan(
        place, row["retriever_id"], found, definition["stages"], fields, ttl_s, row["updated_at"]
    ), row


def _cache_ttl_s(config: Mapping[str, Any] | None) -> float | None:
    if not config:
        return None
    try:
        read = CacheConfig.model_validate(config)
    except pydantic.ValidationError:
        return None  # of a release that took anything: then nothing is kept
    return read.ttl_seconds if read.enabled else None


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
    plan = _adhoc_plan(wh, principal, namespace, request)
    return _run(wh, plan, _asked_for(wh, plan, request, return_urls, return_vectors, skip_cache=True))


def _adhoc_plan(wh: Warehouse, principal: Principal, namespace: str, request: AdhocExecuteRequest) -> Plan:
    wanted = list(request.collection_identifiers or [])
    for stage in request.stages:
        ids = stage.get("collection_ids")
        if isinstance(ids, list):
            wanted.extend(str(identifier) for identifier in ids)
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        stages, fields, problems = _checked(wh, place, request.stages, request.input_schema, declared=False)
        problems += _join_problems(connection, place["namespace_id"], request.stages, stages)
        found, unknown = _collections(connection, place["namespace_id"], wanted)
        raise_problems(problems + unknown)
        if not wanted:
            found = _all_collections(connection, place["namespace_id"])
    return Plan(place, "", found, stages, fields)


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
        plan = _adhoc_plan(wh, principal, namespace, request)
    return _events(wh, plan, _asked_for(wh, plan, request, return_urls, return_vectors, skip_cache=True))


def _events(wh: Warehouse, plan: Plan, asked: Asked) -> Iterator[dict[str, Any]]:
    note = _Note(wh, plan, asked)
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
                "budget_used": {"credits_used": 0.0, "time_elapsed_ms": note.elapsed_ms()},
            }
        body = _body(wh, plan, asked, ranked, note, is_hit=False)
    except TesseraError as error:
        note.failed(error)
        told = {"type": error.type, "message": error.message, "status": error.status}
        yield {"event_type": "execution_error", **common, "error": told}
        return
    note.completed(ranked, body)
    yield {"event_type": "execution_complete", **common, **body}


def _asked_for(
    wh: Warehouse,
    plan: Plan,
    request: ExecuteRequest,
    return_urls: bool,
    return_vectors: bool,
    skip_cache: bool,
) -> Asked:
    inputs = _inputs(plan.fields, request.inputs)
    cut = read_cut(wh, request.pagination or {}, request.limit, lambda: _digest(plan, inputs, request))
    return Asked(request, inputs, cut, return_urls or bool(request.return_urls), return_vectors, skip_cache)


def _run(wh: Warehouse, plan: Plan, asked: Asked) -> Answered:
    note = _Note(wh, plan, asked)
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
    note.completed(ranked, body)
    if place is None or plan.cache_ttl_s is None:
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
    told = [ranked.total, ranked.offset, [[hit.document_id, hit.score, hit.payload] for hit in ranked.hits]]
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
    context = context_of(wh, plan, asked.inputs, asked.request.filters)
    hits: list[Hit] | None = None
    #: Documents that the stages so far let through; `hits` is None while nobody had to read them.
    passed = 0
    statistics: dict[str, Any] = {}
    results: dict[str, Any] = {}
    namespace_id = plan.place["namespace_id"]
    for index, spec in enumerate(plan.stages):
        stage = wh.registry.stage(spec["config"]["stage_id"])
        if stage is None:
            raise BadRequestError(
                f"Stage {quote(spec['config']['stage_id'])} of this retriever is not installed any more."
            )
        name = spec["stage_name"] if spec["stage_name"] not in statistics else f"{spec['stage_name']}_{index}"
        yield Step(index, name)
        before = time.perf_counter()
        params = stage_params(stage, spec, {"INPUT": asked.inputs, "STAGE": results, "CONTEXT": {}}, index)
        count_in = passed
        within = stage.narrow(params, context) if hits is None else None
        if within is not None:
            context = narrowed(context, within)
            passed = wh.views.count(namespace_id, context.within)
        else:
            hits = stage.run(hits, params, context)
            passed = len(hits)
        results[name] = {"count": passed}
        statistics[name] = {
            "input_count": count_in,
            "output_count": passed,
            "duration_ms": round((time.perf_counter() - before) * 1000, 3),
            "efficiency": passed / count_in if count_in else 0.0,
            "cache_hit": False,
            "error": None,
        }
        yield Step(index, name, statistics[name], hits)
    return _page_of(hits, passed, asked.cut, context, namespace_id, statistics)


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
            "score": hit.score,
        }
        for hit in hits
    ]


def _body(
    wh: Warehouse, plan: Plan, asked: Asked, ranked: Ranked, note: _Note, *, is_hit: bool
) -> dict[str, Any]:
    answered = _presented(wh, plan, asked, ranked.hits)
    elapsed_ms = note.elapsed_ms()
    return {
        "execution_id": note.execution_id,
        "retriever_id": plan.retriever_id,
        "status": "completed",
        "documents": answered,
        "results": answered,
        "pagination": following(wh, asked.cut, ranked, lambda: _digest(plan, asked.inputs, asked.request)),
        "stage_statistics": {
            "stages": {name: {**told, "cache_hit": is_hit} for name, told in ranked.statistics.items()},
            "total_time_ms": elapsed_ms,
            "credits_used": 0.0,
        },
        "budget": {"credits_used": 0.0, "credits_limit": None, "time_elapsed_ms": elapsed_ms},
        "cache_hit": is_hit,
        "error": None,
    }


class _Note:
    """What is noted of one execution: when it began, how it ended."""

    def __init__(self, wh: Warehouse, plan: Plan, asked: Asked) -> None:
        self.execution_id = new_id("exec")
        self._wh, self._plan, self._asked = wh, plan, asked
        self._begun, self._created_at = time.perf_counter(), now()

    def elapsed_ms(self) -> float:
        return round((time.perf_counter() - self._begun) * 1000, 3)

    def completed(self, ranked: Ranked, body: Mapping[str, Any]) -> None:
        self._write(
            status="completed",
            statistics=body["stage_statistics"],
            pagination=body["pagination"],
            error=None,
            total_returned=len(ranked.hits),
            cache_hit=body["cache_hit"],
        )

    def failed(self, error: TesseraError) -> None:
        self._write(
            status="failed",
            statistics={"stages": {}, "total_time_ms": self.elapsed_ms(), "credits_used": 0.0},
            pagination=None,
            error=error.message,
            total_returned=0,
            cache_hit=False,
        )

    def _write(self, **told: Any) -> None:
        if not self._plan.retriever_id or self._wh.executions is None:
            return  # stages that are not stored have no log
        inputs = orjson.dumps(self._asked.inputs, option=orjson.OPT_SORT_KEYS)
        self._wh.executions.note(
            {
                "execution_id": self.execution_id,
                "retriever_id": self._plan.retriever_id,
                "total_stages": len(self._plan.stages),
                "inputs_hash": hashlib.sha256(inputs).hexdigest()[:16],
                "duration_ms": self.elapsed_ms(),
                "created_at": self._created_at,
                "completed_at": now(),
                **told,
            }
        )


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


def context_of(
    wh: Warehouse, plan: Plan, inputs: Mapping[str, Any], filters: Mapping[str, Any] | None
) -> StageContext:
    """Return what the first stage may use: the plan's collections, of which `filters` leave some documents."""
    namespace_id = plan.place["namespace_id"]
    within: Filter = Condition("collection_id", "in", list(plan.collection_ids), True)
    if filters:
        asked = parse(filters, inputs=inputs, location=("body", "filters"))
        if asked is not None:
            within = And((within, asked))
    place = plan.place
    return StageContext(
        within=within,
        indexes=_indexes(orjson.dumps(place["user_indexes"]), orjson.dumps(place["added_indexes"])),
        inputs=inputs,
        search=lambda searches: wh.views.search(namespace_id, searches),
        page=lambda page: wh.views.page(namespace_id, page),
        embed=lambda uri, query: _embed(wh, plan, uri, query),
        words=lambda query: _words(wh, plan, query),
        text_features=lambda: _text_features(wh, plan.place),
        collection=lambda identifier: _other_collection(wh, namespace_id, identifier),
        vectors=lambda document_ids, uri: _vectors(wh, plan, document_ids, uri),
    )


def narrowed(context: StageContext, within: Filter) -> StageContext:
    """Return `context` with every read limited to `within` too."""
    return replace(context, within=And((context.within, within)))


@lru_cache(maxsize=1024)
def _indexes(user: bytes, added: bytes) -> Mapping[str, PayloadIndex]:
    """Return the indexes in force by field; both arguments are JSON as a namespace's row holds it."""
    return {
        index.field_name: index
        for index in effective_indexes(
            stored_indexes(orjson.loads(user)), stored_indexes(orjson.loads(added))
        )
    }


def stage_params(stage: Stage, spec: Mapping[str, Any], scope: Mapping[str, Any], index: int) -> Any:
    """Return a stage's parameters with the values of `scope` filled in. Raises `ValidationError`."""
    location: Location = ("stages", index, "parameters")
    parameters = spec["config"]["parameters"]
    later = {name: value for name, value in parameters.items() if name in stage.per_document}
    try:
        # Everything in one go: what an input holds is never read as a template itself. What waits for a document
        # stays, but inputs that it names must be there now.
        filled = later | templates.render({k: v for k, v in parameters.items() if k not in later}, scope)
        for root, path in templates.references(later):
            if root != "DOC":
                templates.render("{{" + ".".join((root, *path)) + "}}", scope)
    except templates.Unresolved as error:
        raise ValidationError(
            [
                Problem(
                    location,
                    f"{{{{{error.expression}}}}} in stage {spec['stage_name']!r} has no value. Give the input in "
                    "`inputs`, or a default for it in `input_schema`.",
                    "template",
                )
            ]
        ) from None
    except templates.TooLong:
        raise ValidationError(
            [
                Problem(
                    location,
                    f"A text of stage {spec['stage_name']!r} is longer than {templates.MAX_OUTPUT_CHARS} characters "
                    "with its inputs filled in.",
                    "too_long",
                )
            ]
        ) from None
    try:
        return stage.Params.model_validate(filled)
    except pydantic.ValidationError as error:
        raise ValidationError(schema_problems(error, location)) from None


def _inputs(fields: Mapping[str, InputField], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs with defaults filled in; raise for each required one that is missing."""
    inputs = dict(given)
    problems = []
    for name, field in fields.items():
        if inputs.get(name) is not None:
            if field.enum and inputs[name] not in field.enum:
                allowed = ", ".join(quote(value) for value in field.enum)
                problems.append(
                    Problem(
                        ("body", "inputs", name),
                        f"Input {name} is {quote(inputs[name])}; allowed: {allowed}.",
                        "enum",
                    )
                )
        elif field.default is not None:
            inputs[name] = field.default
        elif field.required:
            problems.append(
                Problem(
                    ("body", "inputs", name),
                    f'Input {name} ({field.type}) is required. Send it as {{"inputs": {{"{name}": …}}}}.',
                    "missing",
                )
            )
        else:
            inputs.setdefault(name, None)
    raise_problems(problems)
    return inputs


# --- query vectors -------------------------------------------------------------------------------------


def _embed(wh: Warehouse, plan: Plan, uri: str, query: QueryInput) -> QueryVector:
    vector, extractor = _vector_of(wh, plan.place, uri)
    if isinstance(vector, SparseOutput):
        return _words(wh, plan, query)
    if query.kind == "vector":
        if query.value.shape != (vector.dimensions,):
            raise BadRequestError(
                f"The query vector has {query.value.size} numbers; {uri} holds vectors of {vector.dimensions}."
            )
        return QueryVector(vector.name, query.value)
    if query.kind == "document":
        stored = _query_document(wh, plan, query.value).vectors.get(vector.name)
        if stored is None:
            raise BadRequestError(
                f"Document {quote(query.value)} has no vector {vector.name}; choose another feature_uri."
            )
        return QueryVector(vector.name, np.asarray(stored, dtype=np.float32))
    query = _told(query)
    try:
        if query.kind == "text":
            return QueryVector(vector.name, extractor.embed_query(vector, "text", _text(query.value)))
        data = _image_bytes(query.value)
        with tempfile.TemporaryDirectory(prefix="tessera-query-") as folder:
            picture = _settled_picture(wh, data, Path(folder))
            return QueryVector(vector.name, extractor.embed_query(vector, "image", picture))
    except BadSample as error:
        raise BadRequestError(
            f"{uri} cannot take this query: {error.message}",
            details={"feature_uri": uri, "input": query.kind},
        ) from error


def _words(wh: Warehouse, plan: Plan, query: QueryInput) -> QueryVector:
    """Return a search of the namespace's keyword index for the words of a text, or of a stored document."""
    indexes = SparseText.all_of(plan.place["sparse_vectors"])
    if not indexes:
        raise BadRequestError(_NO_WORDS)
    query = _told(query)
    if query.kind == "text":
        return QueryVector(indexes[0].name, None, _text(query.value))
    if query.kind == "document":
        payload = _query_document(wh, plan, query.value).payload
        values = [value for name in indexes[0].fields for value in values_at(payload, name)]
        texts = [value for value in values if isinstance(value, str)]
        if not any(text.strip() for text in texts):
            raise BadRequestError(f"Document {quote(query.value)} has no text; choose another feature_uri.")
        return QueryVector(indexes[0].name, None, "\n".join(texts))
    raise BadRequestError(
        f"The keyword index is searched by a text or a document, not by {query.kind}.",
        details={"input": query.kind},
    )


def _query_document(wh: Warehouse, plan: Plan, document_id: object) -> Hit:
    found = wh.views.get(plan.place["namespace_id"], [str(document_id)], True)
    # A document of a collection that this retriever does not read must look like one that does not exist.
    if not found or found[0].payload.get("collection_id") not in plan.collection_ids:
        raise NotFoundError("document", str(document_id))
    return found[0]


def _told(query: QueryInput) -> QueryInput:
    """Return what a query given as content is: a text when it is a data URI of one, else a picture."""
    if query.kind != "content":
        return query
    if not isinstance(query.value, str) or not query.value.lower().startswith("data:text/"):
        return QueryInput("image", query.value)
    try:
        data = content.decode(query.value, "text", max_bytes=MAX_QUERY_TEXT_BYTES).data
    except content.BadContent as error:
        raise BadRequestError(f"The query text {error.message}", details={"reason": error.kind}) from None
    return QueryInput("text", data.decode())


def _settled_picture(wh: Warehouse, data: bytes, folder: Path) -> Path:
    """Return a picture file in `folder` that holds what models see of `data`, decoded in a process of its own.

    Raises `BadSample` for what is no picture, or one that takes its decoder too much.
    """
    given, settled = folder / "given", folder / "settled.png"
    given.write_bytes(data)
    ((_, outcome),) = wh.decoder.map(
        media.settle_picture, [(str(given), str(settled))], timeout_s=QUERY_IMAGE_TIMEOUT_S
    )
    if isinstance(outcome, Failed):
        if outcome.kind == "ours":
            raise UnavailableError(
                f"The query image cannot be decoded now: {outcome.message} Send the request again.",
                retry_after_s=1,
            )
        raise BadSample(
            outcome.kind,
            "Decoding it takes more time or memory than is allowed, or ends the decoder. Send a smaller or a whole "
            "picture.",
        )
    if outcome is not None:
        raise BadSample(*outcome)
    return settled


def _other_collection(wh: Warehouse, namespace_id: str, identifier: str) -> Filter:
    with wh.db.read() as connection:
        found, problems = _collections(connection, namespace_id, [identifier])
    if problems:
        raise BadRequestError(problems[0].message, details={"collection": identifier[:200]})
    return Condition("collection_id", "in", found, True)


def _vectors(
    wh: Warehouse, plan: Plan, document_ids: Sequence[str], uri: str | None
) -> dict[str, Mapping[str, Vector]]:
    """Return the vectors of documents by id and name; only that of the feature `uri` when it is named."""
    name = _vector_of(wh, plan.place, uri)[0].name if uri else None
    return {
        hit.document_id: {key: value for key, value in hit.vectors.items() if name in (None, key)}
        for hit in wh.views.get(plan.place["namespace_id"], document_ids, True)
    }


def _vector_of(wh: Warehouse, place: RowMapping, uri: str) -> tuple[Any, Any]:
    """Return the vector output that `uri` names in this namespace, and the extractor that embeds for it."""
    features = _features(wh, place)
    for known, vector, extractor in features:
        if uri in (known, vector.name):
            return vector, extractor
    try:
        address = wh.registry.resolve_feature(uri)
    except (LookupError, ValueError) as error:
        address, reason = None, str(error)
    else:
        reason = "none of this namespace's extractors writes it"
    for _, vector, extractor in features:
        if address is not None and vector.name == address.name:
            return vector, extractor
    names = ", ".join(known for known, _, _ in features) or "none"
    raise BadRequestError(
        f"feature_uri {quote(uri)} is not a feature of this namespace ({reason}). Its features: {names}.",
        details={"feature_uri": uri[:200], "features": [known for known, _, _ in features]},
    )


def _features(wh: Warehouse, place: RowMapping) -> tuple[tuple[str, Any, Any], ...]:
    """Return (URI, vector output, extractor) for every vector and keyword index of the namespace."""
    return _features_of(
        wh.registry,
        orjson.dumps(place["feature_extractors"]),
        orjson.dumps(place["vector_inference_map"]),
        frozenset(index.name for index in SparseText.all_of(place["sparse_vectors"])),
    )


@lru_cache(maxsize=1024)
def _features_of(
    registry: Registry, extractors: bytes, running: bytes, sparse: frozenset[str]
) -> tuple[tuple[str, Any, Any], ...]:
    # A namespace's extractors and models are fixed when it is made; asking for them looks for files.
    found = []
    models = orjson.loads(running)
    for entry in orjson.loads(extractors):
        extractor, params = configured(
            registry,
            entry["feature_extractor_name"],
            entry["version"],
            entry.get("params") or {},
            models,
        )
        outputs = extractor.outputs(params)
        kept = [words for words in outputs.sparse if words.name in sparse]
        named: list[VectorOutput | SparseOutput] = [*outputs.vectors, *kept]
        for vector in named:
            uri = f"mixpeek://{entry['feature_extractor_name']}@{entry['version']}/{vector.inference_name}"
            found.append((uri, vector, extractor))
    return tuple(found)


def _text_features(wh: Warehouse, place: RowMapping) -> list[str]:
    return [
        uri
        for uri, vector, _ in _features(wh, place)
        if isinstance(vector, VectorOutput) and "text" in vector.query_inputs
    ]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRequestError(f"The query text is {quote(value)}; a text that is not blank is needed.")
    return value


def _image_bytes(value: Any) -> bytes:
    """Decode a picture given as base64 or as a data URI."""
    try:
        return content.decode(value, "image", max_bytes=MAX_QUERY_IMAGE_BYTES).data
    except content.BadContent as error:
        if error.kind == "url":
            raise BadRequestError(
                "The query image is a URL; queries fetch nothing. Send the picture itself, as base64 or as a data URI.",
                details={"reason": error.kind},
            ) from None
        raise BadRequestError(f"The query image {error.message}", details={"reason": error.kind}) from None


# --- rows ----------------------------------------------------------------------------------------------


def _checked(
    wh: Warehouse,
    place: RowMapping,
    raw_stages: Sequence[Mapping[str, Any]],
    raw_schema: Mapping[str, Any] | None,
    *,
    declared: bool,
) -> tuple[list[dict[str, Any]], dict[str, InputField], list[Problem]]:
    """Normalise stages and inputs and find everything that is wrong with them and with how they fit together."""
    fields, problems = _input_fields(raw_schema)
    stages = []
    for index, raw in enumerate(raw_stages):
        stage, wrong = normalise_stage(wh, raw, index)
        problems += wrong
        if not stage:
            continue
        stages.append(stage)
        before = [earlier["stage_name"] for earlier in stages[:-1]]
        problems += _reference_problems(
            stage["parameters"],
            fields if declared else None,
            before,
            index,
            wh.registry.stages[stage["config"]["stage_id"]].per_document,
        )
        if stage["config"]["stage_id"] == "feature_search" and not wrong:
            problems += _feature_problems(wh, place, stage["parameters"], index)
    return stages, fields, problems


def _reference_problems(
    parameters: Mapping[str, Any],
    fields: Mapping[str, InputField] | None,
    before: Sequence[str],
    index: int,
    per_document: frozenset[str],
) -> list[Problem]:
    """Return a problem for each expression that can never have a value. `fields` is None when none are declared."""
    problems = []
    found = {
        (root, path, name in per_document)
        for name, value in parameters.items()
        for root, path in templates.references(value)
    }
    for root, path, for_each in sorted(found):
        expression = "{{" + ".".join((root, *path)) + "}}"
        if root == "INPUT":
            if fields is None or path[0] in fields:
                continue
            why = f"is not in input_schema, which has: {', '.join(fields) or 'nothing'}."
        elif for_each:
            if root == "DOC" and path[0] not in HIDDEN_FIELDS:
                continue
            why = "has no value here, which sees inputs and the fields that a document shows."
        elif root == "STAGE":
            if path[0] in before and path[1:] == ("count",):
                continue
            known = ", ".join("{{STAGE." + name + ".count}}" for name in before) or "nothing, it is the first"
            why = f"has no value in this stage; of the stages before it has {known}."
        else:
            why = "has no value in this stage, which sees inputs and the stages before it."
        problems.append(
            Problem(("body", "stages", index, "parameters"), f"{expression} {why}", "unknown_input")
        )
    return problems


def _feature_problems(
    wh: Warehouse, place: RowMapping, parameters: Mapping[str, Any], index: int
) -> list[Problem]:
    problems = []
    searches = parameters.get("searches")
    for number, search in enumerate(searches if isinstance(searches, list) else ()):
        if not isinstance(search, Mapping):
            continue  # an input that holds the whole search
        uri = search.get("feature_uri") or search.get("feature_address")
        if search.get("lexical") is True and not place["sparse_vectors"]:
            where: Location = ("body", "stages", index, "parameters", "searches", number, "lexical")
            problems.append(Problem(where, _NO_WORDS, "no_keyword_index", 400))
        if uri is None or templates.is_template(uri):
            continue
        try:
            _vector_of(wh, place, str(uri))
        except BadRequestError as error:
            problems.append(
                Problem(
                    ("body", "stages", index, "parameters", "searches", number, "feature_uri"),
                    error.message,
                    "unknown_feature",
                    400,
                )
            )
    return problems


def _join_problems(
    connection: Connection,
    namespace_id: str,
    raw_stages: Sequence[Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
) -> list[Problem]:
    """Return a problem for each collection to join from that is not in this namespace."""
    if len(stages) != len(raw_stages):
        return []  # one of them is unknown: told, and the numbers of the others are not theirs any more
    problems: list[Problem] = []
    for index, stage in enumerate(stages):
        target = stage["parameters"].get("target_collection_id")
        if stage["config"]["stage_id"] == "document_enrich" and isinstance(target, str):
            location = ("body", "stages", index, "parameters", "target_collection_id")
            _, unknown = _collections(connection, namespace_id, [target])
            problems += [
                replace(problem, location=location, message=f"target_collection_id: {problem.message}")
                for problem in unknown
            ]
    return problems


def _name_problems(name: str) -> list[Problem]:
    return names.check(
        name, ("body", "retriever_name"), id_prefix="ret", reserved=("list", "execute", "stages")
    )


def _collections(
    connection: Connection, namespace_id: str, identifiers: Sequence[str], among: Sequence[str] | None = None
) -> tuple[list[str], list[Problem]]:
    """Resolve collection ids or names, in order; a problem for each that does not exist here, or not `among` these."""
    if not identifiers:
        return [], []
    rows = connection.execute(
        sa.select(collections.c.collection_id, collections.c.collection_name).where(
            collections.c.namespace_id == namespace_id,
            sa.or_(
                collections.c.collection_id.in_(identifiers), collections.c.collection_name.in_(identifiers)
            ),
        )
    ).all()
    by_id = {row.collection_id: row.collection_id for row in rows}
    by_name = {row.collection_name: row.collection_id for row in rows}
    found: list[str] = []
    problems: list[Problem] = []
    for index, identifier in enumerate(identifiers):
        known = by_id.get(identifier) or by_name.get(identifier)
        if known is None or (among and known not in among):
            problems.append(
                Problem(
                    ("body", "collection_identifiers", index),
                    f"Collection {quote(identifier)} was not found in this namespace. POST /v1/collections/list lists "
                    "them.",
                    "not_found",
                    400,
                )
            )
        elif known not in found:
            found.append(known)
    return found, problems


def _all_collections(connection: Connection, namespace_id: str) -> list[str]:
    return list(
        connection.execute(
            sa.select(collections.c.collection_id).where(collections.c.namespace_id == namespace_id)
        ).scalars()
    )


#: Built once: building a statement takes longer than running it.
_BY_ID_OR_NAME = sa.select(retrievers).where(
    retrievers.c.namespace_id == sa.bindparam("namespace_id"),
    sa.or_(
        retrievers.c.retriever_id == sa.bindparam("identifier"),
        retrievers.c.retriever_name == sa.bindparam("identifier"),
    ),
)


def find(connection: Connection, namespace_id: str, identifier: str) -> RowMapping:
    """Return the row of the retriever with this id, or else of this name. Raises `NotFoundError`."""
    rows = (
        connection.execute(_BY_ID_OR_NAME, {"namespace_id": namespace_id, "identifier": identifier})
        .mappings()
        .all()
    )
    for row in rows:
        if row["retriever_id"] == identifier:
            return row
    if rows:
        return rows[0]
    raise NotFoundError("retriever", identifier)


def _answer(row: Mapping[str, Any] | RowMapping) -> dict[str, Any]:
    definition = row["definition"]
    return {
        "retriever_id": row["retriever_id"],
        "retriever_name": row["retriever_name"],
        "description": row["description"],
        "collection_identifiers": definition["collection_identifiers"],
        "collection_ids": definition["collection_ids"],
        "stages": definition["stages"],
        "input_schema": definition["input_schema"],
        "budget_limits": definition["budget_limits"],
        "cache_config": definition["cache_config"],
        "tags": definition["tags"] or [],
        "visibility": definition["visibility"],
        "display_config": definition["display_config"],
        "fusion": None,
        "version": row["version"],
        "is_published": False,
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
