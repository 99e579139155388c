"""Retrievers: created from stages in any of the API's shapes, executed stage by stage.

Everything about a retriever that can be wrong is found when it is created; what depends on the inputs
is found when it is executed, before anything is searched.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pydantic
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, content, documents, limits, media, names, namespaces, templates
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import collections, retrievers
from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    NotFoundError,
    Problem,
    UnavailableError,
    ValidationError,
    quote,
    raise_problems,
)
from tessera.extraction import configured
from tessera.extractors.base import BadSample, SparseOutput, VectorOutput
from tessera.filters import And, Condition, Filter, parse, values_at
from tessera.ids import new_id
from tessera.models import PayloadIndex
from tessera.models.retrievers import (
    AdhocExecuteRequest,
    CreateRetrieverRequest,
    ExecuteRequest,
    InputField,
    PatchRetrieverRequest,
    SearchDocumentsRequest,
)
from tessera.pagination import PageRequest, decode_cursor, encode_cursor, paginate
from tessera.plan import effective_indexes, stored_indexes
from tessera.ports import HIDDEN_FIELDS, Failed, Hit, Page, SparseText, Vector
from tessera.registry import Registry
from tessera.stages.base import QueryInput, QueryVector, Stage, StageContext
from tessera.validation import schema_problems

Location = tuple[str | int, ...]

#: Keys of a stage that are not parameters where a stage is written flat.
_STAGE_KEYS = frozenset(
    {"type", "stage_id", "stage_name", "stage_type", "config", "version", "batch_size", "description"}
    | {"feature_extractor", "collection_ids", "parameters"}
)

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
                "cache_config": request.cache_config,
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


def patch(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: PatchRetrieverRequest
) -> dict[str, Any]:
    """Change a retriever's metadata; absent fields stay."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = dict(find(connection, place["namespace_id"], identifier))
        given = request.model_dump(exclude_unset=True)
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
            {"fields": sorted(request.model_fields_set)},
        )
    return _answer(row)


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
class _Plan:
    """A retriever, ready to run in its namespace."""

    place: RowMapping
    retriever_id: str
    collection_ids: list[str]
    stages: list[dict[str, Any]]
    fields: dict[str, InputField]


def execute(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    request: ExecuteRequest,
    *,
    return_urls: bool = False,
    return_vectors: bool = False,
) -> dict[str, Any]:
    """Run a stored retriever and answer its documents, best first, with statistics of every stage."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        definition = row["definition"]
        wanted = request.collection_identifiers
        if not wanted:
            # A collection deleted since then simply has no documents any more.
            found = definition["collection_ids"] or _all_collections(connection, place["namespace_id"])
        else:
            own = definition["collection_ids"] if principal.through is not None else None
            found, problems = _collections(connection, place["namespace_id"], wanted, own)
            raise_problems(problems)
    fields = {name: InputField.model_validate(value) for name, value in definition["input_schema"].items()}
    plan = _Plan(place, row["retriever_id"], found, definition["stages"], fields)
    return _run(wh, plan, request, return_urls=return_urls, return_vectors=return_vectors)


def execute_adhoc(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    request: AdhocExecuteRequest,
    *,
    return_urls: bool = False,
    return_vectors: bool = False,
) -> dict[str, Any]:
    """Run stages that are not stored; the answer is that of `execute`."""
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
    plan = _Plan(place, "", found, stages, fields)
    return _run(wh, plan, request, return_urls=return_urls, return_vectors=return_vectors)


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
    )


def _run(
    wh: Warehouse, plan: _Plan, request: ExecuteRequest, *, return_urls: bool, return_vectors: bool
) -> dict[str, Any]:
    started = time.perf_counter()
    inputs = _inputs(plan.fields, request.inputs)
    context = _context(wh, plan, inputs, request.filters)
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
        before = time.perf_counter()
        params = _params(stage, spec, {"INPUT": inputs, "STAGE": results, "CONTEXT": {}}, index)
        count_in = passed
        narrowed = stage.narrow(params, context) if hits is None else None
        if narrowed is not None:
            context = replace(context, within=And((context.within, narrowed)))
            passed = wh.views.count(namespace_id, context.within)
        else:
            hits = stage.run(hits, params, context)
            passed = len(hits)
        name = spec["stage_name"] if spec["stage_name"] not in statistics else f"{spec['stage_name']}_{index}"
        results[name] = {"count": passed}
        statistics[name] = {
            "input_count": count_in,
            "output_count": passed,
            "duration_ms": round((time.perf_counter() - before) * 1000, 3),
            "efficiency": passed / count_in if count_in else 0.0,
            "cache_hit": False,
            "error": None,
        }
    offset, limit = _cut(wh, request, lambda: _asked(plan, inputs, request))
    total = passed
    if hits is None:
        shown = list(context.page(Page(limit=limit, offset=offset, filter=context.within)).hits)
    else:
        shown = hits[offset : offset + limit]
    if return_vectors and shown:
        full = {
            hit.document_id: hit.vectors
            for hit in wh.views.get(namespace_id, [h.document_id for h in shown], True)
        }
    else:
        full = {}
    answered = [
        {
            **documents.present(
                wh,
                namespace_id,
                hit.payload,
                return_urls=return_urls or bool(request.return_urls),
                vectors=full.get(hit.document_id),
            ),
            "score": hit.score,
        }
        for hit in shown
    ]
    elapsed_ms = round((time.perf_counter() - started) * 1000, 3)
    more = offset + limit < total
    cursor = encode_cursor(wh, {"o": offset + limit, "r": _asked(plan, inputs, request)}) if more else None
    return {
        "execution_id": new_id("exec"),
        "retriever_id": plan.retriever_id,
        "status": "completed",
        "documents": answered,
        "results": answered,
        "pagination": {
            "total": total,
            "page": offset // limit + 1,
            "page_size": limit,
            "total_pages": -(-total // limit),
            "next_cursor": cursor,
            "has_more": more,
        },
        "stage_statistics": {"stages": statistics, "total_time_ms": elapsed_ms, "credits_used": 0.0},
        "budget": {"credits_used": 0.0, "credits_limit": None, "time_elapsed_ms": elapsed_ms},
        "cache_hit": False,
        "error": None,
    }


def _asked(plan: _Plan, inputs: Mapping[str, Any], request: ExecuteRequest) -> str:
    """Return a digest of all that decides the ranking: a cursor is good for this very search only."""
    asked = [
        plan.place["namespace_id"],
        plan.retriever_id or plan.stages,
        sorted(plan.collection_ids),
        inputs,
        request.filters or None,
    ]
    return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _context(
    wh: Warehouse, plan: _Plan, inputs: Mapping[str, Any], filters: Mapping[str, Any] | None
) -> StageContext:
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


@lru_cache(maxsize=1024)
def _indexes(user: bytes, added: bytes) -> Mapping[str, PayloadIndex]:
    """Return the indexes in force by field; both arguments are JSON as a namespace's row holds it."""
    return {
        index.field_name: index
        for index in effective_indexes(
            stored_indexes(orjson.loads(user)), stored_indexes(orjson.loads(added))
        )
    }


def _params(stage: Stage, spec: Mapping[str, Any], scope: Mapping[str, Any], index: int) -> Any:
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


def _cut(wh: Warehouse, request: ExecuteRequest, asked: Callable[[], str]) -> tuple[int, int]:
    """Return (offset, limit) of the answer from `limit` and the pagination method; a cursor must be that of `asked`."""
    pagination = request.pagination or {}
    method = pagination.get("method", "cursor")

    def number(name: str, default: int, low: int, high: int) -> int:
        value = pagination.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValidationError(
                [
                    Problem(
                        ("body", "pagination", name),
                        f"pagination.{name} is {quote(value)}; a whole number from {low} to {high} is needed.",
                        "range",
                    )
                ]
            )
        return value

    if method == "cursor":
        limit = request.limit or number("limit", number("page_size", 10, 1, 500), 1, 500)
        cursor = pagination.get("cursor")
        if not cursor:
            page = number("page_number", 1, 1, 10_000)
            return (page - 1) * limit, limit
        value = decode_cursor(wh, str(cursor))
        if value.get("r") != asked() or not isinstance(value.get("o"), int):
            raise BadRequestError(
                "pagination.cursor belongs to another retriever, other inputs or other filters. Send what it came "
                "with, or start again without a cursor."
            )
        return value["o"], limit
    if method == "offset":
        size = request.limit or number("page_size", 10, 1, 500)
        return (number("page_number", 1, 1, 10_000) - 1) * size, size
    raise ValidationError(
        [
            Problem(
                ("body", "pagination", "method"),
                f"pagination.method is {quote(method)}; allowed here: 'cursor', 'offset'.",
                "enum",
            )
        ]
    )


# --- query vectors -------------------------------------------------------------------------------------


def _embed(wh: Warehouse, plan: _Plan, uri: str, query: QueryInput) -> QueryVector:
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


def _words(wh: Warehouse, plan: _Plan, query: QueryInput) -> QueryVector:
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


def _query_document(wh: Warehouse, plan: _Plan, document_id: object) -> Hit:
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
    wh: Warehouse, plan: _Plan, document_ids: Sequence[str], uri: str | None
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
