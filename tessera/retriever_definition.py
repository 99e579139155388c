"""What a retriever is made of: stages in any of the API's shapes, inputs, collections; all problems found at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pydantic
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import names, schemas, templates
from tessera.context import Principal, Warehouse
from tessera.db.tables import collections, retrievers, taxonomies
from tessera.errors import BadRequestError, ForbiddenError, NotFoundError, Problem, quote
from tessera.models.buckets import BLOB_TYPES, FieldType, SchemaField
from tessera.models.retrievers import InputField
from tessera.ports import HIDDEN_FIELDS
from tessera.retriever_features import NO_WORDS, vector_of
from tessera.scopes import check_administers
from tessera.secret_store import secret_names
from tessera.stages.base import Equipment, Stage
from tessera.validation import schema_problems

Location = tuple[str | int, ...]
#: Categories of stages as requests write them; answers say reduce for a group.
STAGE_TYPES = ("filter", "sort", "reduce", "group", "apply", "enrich")
#: Keys of a stage that are not parameters where a stage is written flat.
_STAGE_KEYS = frozenset(
    {"type", "stage_id", "stage_name", "stage_type", "config", "version", "batch_size", "description"}
    | {"feature_extractor", "collection_ids", "parameters"}
)
#: Types of inputs that a stage reads in more than one form.
_TEXTS = frozenset({"string", "text"})
_CHECKED_WHERE_USED = frozenset({"document_reference", *BLOB_TYPES}) - _TEXTS
#: A property of each type, made once: every execution checks its inputs.
_OF_TYPE = {str(kind): SchemaField(type=kind) for kind in FieldType}


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
    if not stage_id and wh.registry.stage(str(raw.get("stage_type"))) is not None:
        stage_id = raw["stage_type"]
    stage = wh.registry.stage(str(stage_id)) if stage_id else None
    if stage is None:
        known = ", ".join(sorted(available_stages(wh)))
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
    problems = _type_problems(wh, raw, location)
    for key, value in parameters.items():
        problems += templates.check(value, (*location, "parameters", key), stage.words)
    wrong = _parameter_problems(stage, parameters, (*location, "parameters"))
    problems += wrong or stage.problems(parameters, (*location, "parameters"))
    lack = stage.lacks(parameters, equipment_of(wh))
    if lack is not None:
        problems.append(Problem((*location, "stage_id"), lack, "not_available", BadRequestError.status))
    name = raw.get("stage_name") or stage.stage_id
    return {
        "stage_name": str(name),
        "stage_type": stage.category,
        "config": {"stage_id": stage.stage_id, "parameters": parameters},
        "parameters": parameters,
        "batch_size": raw.get("batch_size"),
        "description": raw.get("description"),
    }, problems


def equipment_of(wh: Warehouse) -> Equipment:
    """Return what this server has for stages that need more than documents."""
    return Equipment(wh.language, wh.registry.models, wh.fetcher)


def available_stages(wh: Warehouse) -> dict[str, Stage]:
    """Return the stages that a retriever of this server may use, by id."""
    return {
        name: stage
        for name, stage in wh.registry.stages.items()
        if (wh.language is not None or not stage.needs_language) and stage.is_installed()
    }


def _type_problems(wh: Warehouse, raw: Mapping[str, Any], location: Location) -> list[Problem]:
    """Return a problem for a ``stage_type`` that is no category (guides write a stage's id there, too)."""
    stated = raw.get("stage_type")
    if stated is None or stated in STAGE_TYPES or wh.registry.stage(str(stated)) is not None:
        return []
    return [
        Problem(
            (*location, "stage_type"),
            f"stage_type {quote(stated)} is not known; write one of {', '.join(STAGE_TYPES)}, or leave it out.",
            "enum",
        )
    ]


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
        place: Location = ("body", "input_schema", name)
        try:
            field = fields[name] = InputField.model_validate(value)
        except pydantic.ValidationError as error:
            problems += schema_problems(error, place)
            continue
        for index, allowed in enumerate(field.enum or ()):
            if (wrong := _type_problem(field, allowed)) is not None:
                message = f"A value of the enum of input {quote(name)} {wrong}"
                problems.append(Problem((*place, "enum", index), message, "enum"))
        if field.default is not None and (wrong := input_problem(field, field.default)) is not None:
            message = f"The default of input {quote(name)} {wrong}"
            problems.append(Problem((*place, "default"), message, "default"))
    return fields, problems


def input_problem(field: InputField, value: object) -> str | None:
    """Return what is wrong with a value for an input, as the end of a sentence; None when nothing is.

    Files and references to documents are checked where they are used, and so are lists and objects in the place of a
    text (a vector, say): which of them are taken is for the stage to know.
    """
    wrong = _type_problem(field, value)
    if wrong is None and field.enum and value not in field.enum:
        return f"is {quote(value)}; allowed: {', '.join(quote(each) for each in field.enum)}."
    return wrong


def _type_problem(field: InputField, value: object) -> str | None:
    if field.type in _CHECKED_WHERE_USED:
        return None
    if field.type in _TEXTS and isinstance(value, list | dict):
        return None
    return schemas.value_problem(_OF_TYPE[field.type], value)


def checked_stages(
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
        kind = wh.registry.stages[stage["config"]["stage_id"]]
        if not wrong:
            problems += _named_feature_problems(wh, place, kind, stage["parameters"], index)
        problems += _reference_problems(
            stage["parameters"], fields if declared else None, before, index, kind
        )
        for path, searching in kind.searches_in(stage["parameters"]):
            if not wrong:
                problems += _feature_problems(
                    wh, place, searching, ("body", "stages", index, "parameters", *path)
                )
    return stages, fields, problems


def _reference_problems(
    parameters: Mapping[str, Any],
    fields: Mapping[str, InputField] | None,
    before: Sequence[str],
    index: int,
    stage: Stage,
) -> list[Problem]:
    """Return a problem for each expression that can never have a value. `fields` is None when none are declared."""
    problems = []
    found = {
        (root, path, name in stage.per_document, name in stage.secret_in)
        for name, value in parameters.items()
        for root, path in templates.references(value)
    }
    for root, path, for_each, is_sealed in sorted(found):
        expression = "{{" + ".".join((root, *path)) + "}}"
        if root == "INPUT":
            if fields is None or path[0] in fields:
                continue
            why = f"is not in input_schema, which has: {', '.join(fields) or 'nothing'}."
        elif root == "SECRET":
            if is_sealed and len(path) == 1:
                continue
            places = ", ".join(sorted(stage.secret_in)) or "no parameter of this stage"
            why = f"cannot stand here; secrets, as {{{{secrets.name}}}}, are taken by {places}."
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


def _named_feature_problems(
    wh: Warehouse, place: RowMapping, stage: Stage, parameters: Mapping[str, Any], index: int
) -> list[Problem]:
    """Return a problem for each feature that a stage compares by and that this namespace has not."""
    problems = []
    for key in stage.names_features:
        uri = parameters.get(key)
        # The official client states a default, the text "null".
        if not isinstance(uri, str) or uri in ("", "null") or templates.is_template(uri):
            continue
        try:
            vector_of(wh, place, uri, key)
        except BadRequestError as error:
            where: Location = ("body", "stages", index, "parameters", key)
            problems.append(Problem(where, error.message, "unknown_feature", 400))
    return problems


def _feature_problems(
    wh: Warehouse, place: RowMapping, parameters: Mapping[str, Any], location: Location
) -> list[Problem]:
    problems = []
    searches = parameters.get("searches")
    for number, search in enumerate(searches if isinstance(searches, list) else ()):
        if not isinstance(search, Mapping):
            continue  # an input that holds the whole search
        uri = search.get("feature_uri") or search.get("feature_address")
        if search.get("lexical") is True and not place["sparse_vectors"]:
            where: Location = (*location, "searches", number, "lexical")
            problems.append(Problem(where, NO_WORDS, "no_keyword_index", 400))
        if uri is None or templates.is_template(uri):
            continue
        try:
            vector_of(wh, place, str(uri))
        except BadRequestError as error:
            problems.append(
                Problem(
                    (*location, "searches", number, "feature_uri"),
                    error.message,
                    "unknown_feature",
                    400,
                )
            )
    return problems


def join_problems(
    connection: Connection,
    wh: Warehouse,
    namespace_id: str,
    raw_stages: Sequence[Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
    own: Sequence[str],
) -> list[Problem]:
    """Return a problem for each collection or taxonomy that a stage names and that is not in this namespace.

    A search names some of the retriever's `own` (all of the namespace when there are none): it narrows what is read.
    """
    if len(stages) != len(raw_stages):
        return []  # one of them is unknown: told, and the numbers of the others are not theirs any more
    problems: list[Problem] = []

    def check(location: Location, named: Sequence[str], among: Sequence[str] | None) -> None:
        _, unknown = collections_named(connection, namespace_id, named, among)
        problems.extend(
            replace(problem, location=location, message=f"{location[-1]}: {problem.message}")
            for problem in unknown
        )

    for index, spec in enumerate(stages):
        stage, parameters = wh.registry.stages[spec["config"]["stage_id"]], spec["parameters"]
        here: Location = ("body", "stages", index, "parameters")
        for key in stage.names_collections:
            if isinstance(parameters.get(key), str):
                check((*here, key), [parameters[key]], None)
        for path, named in _narrowing(stage, parameters):
            check((*here, *path), named, own)
            if any(map(templates.is_template, named)):
                problems.append(
                    Problem((*here, *path), "Collections are written out, not taken from inputs.", "template")
                )
        for key in stage.names_taxonomies:
            if isinstance(parameters.get(key), str):
                problems += _taxonomy_problems(connection, namespace_id, parameters[key], (*here, key))
    return problems


def _narrowing(stage: Stage, parameters: Mapping[str, Any]) -> Iterator[tuple[Location, list[str]]]:
    """Yield where searches name the collections that they read, and their ids or names."""
    places: list[tuple[Location, Any]] = []
    for path, searching in stage.searches_in(parameters):
        searches = searching.get("searches")
        places.append((path, searching))
        places += [
            ((*path, "searches", number), search)
            for number, search in enumerate(searches if isinstance(searches, list) else ())
        ]
    for path, holder in places:
        named = holder.get("collection_identifiers") if isinstance(holder, Mapping) else None
        if isinstance(named, list):
            yield (*path, "collection_identifiers"), [str(name) for name in named]


def _taxonomy_problems(
    connection: Connection, namespace_id: str, identifier: str, location: Location
) -> list[Problem]:
    known = connection.execute(
        sa.select(taxonomies.c.taxonomy_id).where(
            taxonomies.c.namespace_id == namespace_id,
            sa.or_(taxonomies.c.taxonomy_id == identifier, taxonomies.c.taxonomy_name == identifier),
        )
    ).first()
    if known is not None or templates.is_template(identifier):
        return []
    return [
        Problem(
            location,
            f"Taxonomy {quote(identifier)} was not found in this namespace. POST /v1/taxonomies/list lists them.",
            "not_found",
            400,
        )
    ]


def secret_problems(
    connection: Connection, wh: Warehouse, principal: Principal, stages: Sequence[Mapping[str, Any]]
) -> list[Problem]:
    """Return a problem for each secret that stages name and that is not there.

    Raises `ForbiddenError` when somebody names one who may not read the list of them either: a stage sends it where
    its author wants.
    """
    problems: list[Problem] = []
    for index, spec in enumerate(stages):
        wanted = wh.registry.stages[spec["config"]["stage_id"]].secrets_in(spec["parameters"])
        if not wanted:
            continue
        check_administers(principal, "organization")
        if "admin" not in principal.permissions:
            raise ForbiddenError(
                "A stage that names a secret sends it to another server; only a key with permission admin may store "
                "or run such a stage. Whoever may read can execute it once it is stored."
            )
        problems += [
            Problem(
                ("body", "stages", index, "parameters"),
                f"There is no secret {quote(name)}. POST /v1/organizations/secrets makes one.",
                "unknown_secret",
                BadRequestError.status,
            )
            for name in sorted(wanted - secret_names(connection, principal.organization_id))
        ]
    return problems


def name_problems(name: str) -> list[Problem]:
    """Return what is wrong with a name for a retriever."""
    return names.check(
        name,
        ("body", "retriever_name"),
        id_prefix="ret",
        reserved=("list", "execute", "stages", "evaluations"),
    )


def collections_named(
    connection: Connection, namespace_id: str, identifiers: Sequence[str], among: Sequence[str] | None = None
) -> tuple[list[str], list[Problem]]:
    """Resolve collection ids or names, in order; a problem for each that does not exist here, or not `among` these."""
    if not identifiers:
        return [], []
    cleaned = [names.clean(identifier) for identifier in identifiers]
    rows = connection.execute(
        sa.select(collections.c.collection_id, collections.c.collection_name).where(
            collections.c.namespace_id == namespace_id,
            sa.or_(collections.c.collection_id.in_(cleaned), collections.c.collection_name.in_(cleaned)),
        )
    ).all()
    by_id = {row.collection_id: row.collection_id for row in rows}
    by_name = {row.collection_name: row.collection_id for row in rows}
    found: list[str] = []
    problems: list[Problem] = []
    for index, identifier in enumerate(cleaned):
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


def all_collections(connection: Connection, namespace_id: str) -> list[str]:
    """Return the ids of all collections of a namespace."""
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
    named = {"namespace_id": namespace_id, "identifier": names.clean(identifier)}
    rows = connection.execute(_BY_ID_OR_NAME, named).mappings().all()
    for row in rows:
        if row["retriever_id"] == identifier:
            return row
    if rows:
        return rows[0]
    raise NotFoundError("retriever", identifier)
