"""From a request about a namespace to the plan of it, or to every problem with it at once.

Pure: no database, no engine, no clock. A plan holds what the row of the namespace and its first log
entry will say; whether the name is free is the transaction's business.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import orjson
import pydantic

from tessera import names
from tessera.errors import Problem, TesseraError, quote, raise_problems
from tessera.extractors.base import BadSample
from tessera.models import INDEX_PARAMS, IndexType, JsonObject, Model, PayloadIndex, PayloadIndexConfig
from tessera.models.namespaces import (
    BaseFeatureExtractorModel,
    ComputeTier,
    CreateNamespaceRequest,
    NamespaceInfrastructure,
    NamespaceType,
    PatchNamespaceRequest,
    UpdateNamespaceRequest,
)
from tessera.registry import Registry
from tessera.validation import label, schema_problems

Location = tuple[str | int, ...]
M = TypeVar("M", bound=Model)

#: Fields that the system writes at the root of every document; users cannot index them.
PROTECTED_FIELDS = frozenset(
    {
        "internal_id",
        "namespace_id",
        "collection_id",
        "document_id",
        "bucket_id",
        "object_id",
        "root_object_id",
        "root_bucket_id",
        "source_object_id",
        "created_at",
        "updated_at",
    }
)
#: Root fields of documents that are the system's own: what a user sends under such a name is not stored.
RESERVED_FIELDS = PROTECTED_FIELDS | {
    "document_blobs",
    "vectors",
    "score",
    "_internal",
    "_vectors",
    "_s",
    "_taxonomies",
    "_enriched",
}

#: What every namespace indexes for itself: the tenant, and the fields by which documents are listed and
#: deleted. Kept small, because each index costs about 10 ms when a namespace is first used.
SYSTEM_INDEXES: tuple[PayloadIndex, ...] = tuple(
    PayloadIndex(
        field_name=name,
        type=IndexType.KEYWORD,
        field_schema={"type": "keyword", "is_tenant": name == "internal_id"},
        is_protected=True,
    )
    for name in ("internal_id", "collection_id", "root_object_id", "source_object_id")
)

#: Names that the routes below ``/v1/namespaces/`` take.
RESERVED_NAMES = frozenset({"templates", "migrations", "plugins", "list", "standalone", "stats"})

#: Longest list of a request about a namespace.
_MOST_ITEMS = 1000

#: Root key of the copies that the engine keeps beside a document's own fields.
_INTERNAL_ROOT = "_s"


@dataclass(frozen=True, slots=True)
class NamespacePlan:
    """A namespace as it will be: what was asked for, normalised, and what follows from it.

    `user_indexes` stand in the order sent; `added_indexes` are those that extractors, then the system,
    need. `vectors` are ``{name, dimensions, distance}``, `sparse_vectors` the keyword indexes ``{name, fields}``;
    `vector_inference_map` names for each the model that really runs. `infrastructure` is None when none was sent.
    """

    namespace_name: str
    description: str | None
    namespace_type: str
    feature_extractors: tuple[JsonObject, ...]
    user_indexes: tuple[PayloadIndex, ...]
    added_indexes: tuple[PayloadIndex, ...]
    vectors: tuple[JsonObject, ...]
    sparse_vectors: tuple[JsonObject, ...]
    vector_inference_map: Mapping[str, str]
    infrastructure: NamespaceInfrastructure | None
    auto_create_indexes: bool

    @property
    def indexes(self) -> tuple[PayloadIndex, ...]:
        """The complete index set, as the log and the engine hold it."""
        return effective_indexes(self.user_indexes, self.added_indexes)


@dataclass(frozen=True, slots=True)
class NamespaceChange:
    """What a PATCH or PUT changes; only what differs from the present is in `values`.

    `values` may hold ``namespace_name``, ``description``, ``user_indexes``, ``auto_create_indexes`` and
    ``infrastructure`` (a `NamespaceInfrastructure`).
    """

    values: Mapping[str, Any] = field(default_factory=dict)


def plan_namespace(body: object, registry: Registry) -> NamespacePlan:
    """Plan the namespace that `body`, the decoded JSON of a create request, asks for.

    Raises `ValidationError` with everything that is wrong, or `BadRequestError` where only a
    combination is refused (a protected field, an index that contradicts an extractor's).
    """
    problems: list[Problem] = []
    body = _take_alias(body, problems)
    request, found = _validated(CreateNamespaceRequest, body, ("body",))
    problems += found
    pieces = _Pieces.of(request, body)

    name = _checked_name(pieces.namespace_name, problems)
    problems += _text_problems(pieces.description, ("body", "description"))
    extractors = _plan_extractors(pieces.feature_extractors, registry, problems)
    user_indexes = _plan_indexes(pieces.payload_indexes, extractors.indexes, (), problems)
    if pieces.infrastructure is not None:
        problems += _infrastructure_problems(pieces.infrastructure, None)

    raise_problems(_in_order(problems, CreateNamespaceRequest))
    assert request is not None and name is not None
    return NamespacePlan(
        namespace_name=name,
        description=request.description,
        namespace_type=(request.namespace_type or NamespaceType.STANDARD).value,
        feature_extractors=tuple(extractors.registered),
        user_indexes=tuple(user_indexes),
        added_indexes=(*extractors.indexes, *SYSTEM_INDEXES),
        vectors=tuple(extractors.vectors.values()),
        sparse_vectors=tuple(extractors.sparse.values()),
        vector_inference_map=extractors.inference,
        infrastructure=request.infrastructure,
        auto_create_indexes=bool(request.auto_create_indexes),
    )


def plan_patch(body: object, current: Mapping[str, Any]) -> NamespaceChange:
    """Plan what a PATCH with `body` changes in the namespace whose row is `current`.

    An absent key changes nothing; null clears the description and removes all user indexes. Raises as
    `plan_namespace` does.
    """
    return _plan_change(PatchNamespaceRequest, body, current)


def plan_update(body: object, current: Mapping[str, Any]) -> NamespaceChange:
    """Plan what a PUT with `body` sets: name and payload indexes; what it leaves out stays."""
    return _plan_change(UpdateNamespaceRequest, body, current)


def effective_indexes(
    user_indexes: Sequence[PayloadIndex], added_indexes: Sequence[PayloadIndex]
) -> tuple[PayloadIndex, ...]:
    """Return the index set in force: the user's first; an added one only where the user named no such field."""
    named = {index.field_name for index in user_indexes}
    return (*user_indexes, *(index for index in added_indexes if index.field_name not in named))


def stored_indexes(rows: Iterable[JsonObject]) -> tuple[PayloadIndex, ...]:
    """Read indexes back from the row that keeps them."""
    return tuple(PayloadIndex.model_construct(**{**row, "type": IndexType(row["type"])}) for row in rows)


def can_be_indexed(field_name: str) -> bool:
    """Say whether a user might index this field."""
    return not _field_name_problems(field_name, ("field_name",)) and len(field_name) <= 255


def without_auto(
    added_indexes: Sequence[PayloadIndex], user_indexes: Sequence[PayloadIndex], *, keep: bool
) -> tuple[PayloadIndex, ...]:
    """Return `added_indexes` without those made by themselves on fields that the user indexes, or (not `keep`) any."""
    named = {index.field_name for index in user_indexes}
    return tuple(
        index for index in added_indexes if not index.is_auto or (keep and index.field_name not in named)
    )


# --- reading a request piece by piece ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The parts of a request that are well formed by themselves, so that each can be checked further."""

    namespace_name: str | None = None
    description: str | None = None
    feature_extractors: Sequence[tuple[int, BaseFeatureExtractorModel]] = ()
    payload_indexes: Sequence[tuple[int, PayloadIndexConfig]] = ()
    infrastructure: NamespaceInfrastructure | None = None

    @classmethod
    def of(cls, request: Model | None, body: object) -> _Pieces:
        if request is not None:
            return cls(
                request.namespace_name,  # type: ignore[attr-defined]
                getattr(request, "description", None),
                tuple(enumerate(getattr(request, "feature_extractors", ()))),
                tuple(enumerate(request.payload_indexes or ())),  # type: ignore[attr-defined]
                getattr(request, "infrastructure", None),
            )
        given = body if isinstance(body, dict) else {}
        name, description = given.get("namespace_name"), given.get("description")
        return cls(
            name if isinstance(name, str) and name else None,
            description if isinstance(description, str) else None,
            _well_formed(BaseFeatureExtractorModel, given.get("feature_extractors")),
            _well_formed(PayloadIndexConfig, given.get("payload_indexes")),
            _validated(NamespaceInfrastructure, given.get("infrastructure"), ())[0],
        )


def _well_formed(model: type[M], items: object) -> tuple[tuple[int, M], ...]:
    if not isinstance(items, list):
        return ()
    # Longer lists are refused as they are; a body has room for millions.
    read = ((number, _validated(model, item, ())[0]) for number, item in enumerate(items[:_MOST_ITEMS]))
    return tuple((number, item) for number, item in read if item is not None)


def _validated(model: type[M], value: object, location: Location) -> tuple[M | None, list[Problem]]:
    try:
        return model.model_validate(value), []
    except pydantic.ValidationError as error:
        return None, schema_problems(error, location)


def _take_alias(body: object, problems: list[Problem]) -> object:
    """Read `name`, which a high-level client sends, as `namespace_name`."""
    if not isinstance(body, dict) or "name" not in body:
        return body
    if body.get("namespace_name") is None:
        return {**body, "namespace_name": body["name"]}
    if body["name"] is not None and body["name"] != body["namespace_name"]:
        problems.append(
            Problem(
                ("body", "name"),
                f"name is another spelling of namespace_name, but {quote(body['name'])} is not "
                f"{quote(body['namespace_name'])}. Send namespace_name alone.",
                "name_mismatch",
            )
        )
    return body


def _in_order(problems: Sequence[Problem], model: type[Model]) -> list[Problem]:
    """Sort problems into the order of the request's fields, so that an answer reads from top to bottom."""
    rank = {name: number for number, name in enumerate(model.model_fields)}

    def key(problem: Problem) -> tuple[int, int]:
        field_name = problem.location[1] if len(problem.location) > 1 else ""
        index = problem.location[2] if len(problem.location) > 2 else 0
        return rank.get(str(field_name), -1), index if isinstance(index, int) else 0

    return sorted(problems, key=key)


# --- names and texts ---------------------------------------------------------------------------------


def _checked_name(name: str | None, problems: list[Problem]) -> str | None:
    if name is None:
        return None
    name = names.clean(name)
    problems += names.check(name, ("body", "namespace_name"), id_prefix="ns", reserved=RESERVED_NAMES)
    return name


def _text_problems(text: str | None, location: Location) -> list[Problem]:
    if text is not None and "\x00" in text:
        return [Problem(location, f"{label(location)} holds a NUL character; remove it.", "nul_character")]
    return []


# --- extractors --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Extractors:
    registered: list[JsonObject] = field(default_factory=list)
    indexes: list[PayloadIndex] = field(default_factory=list)
    vectors: dict[str, JsonObject] = field(default_factory=dict)
    sparse: dict[str, JsonObject] = field(default_factory=dict)
    inference: dict[str, str] = field(default_factory=dict)


def _plan_extractors(
    requested: Sequence[tuple[int, BaseFeatureExtractorModel]], registry: Registry, problems: list[Problem]
) -> _Extractors:
    plan = _Extractors()
    taken: dict[str, str] = {}
    for number, item in requested:
        location: Location = ("body", "feature_extractors", number)
        problem = _unknown_extractor(item, registry, location)
        if problem is not None:
            problems.append(problem)
            continue
        extractor = registry.extractor(item.feature_extractor_name, item.version)
        spelling = f"{item.feature_extractor_name} {item.version}"
        if extractor.name in taken:
            earlier = taken[extractor.name]
            what = (
                f"{spelling} is named twice"
                if earlier == spelling
                else f"{spelling} and {earlier} are two spellings of one extractor"
            )
            problems.append(
                Problem(location, f"{label(location)}: {what}; keep one of them.", "duplicate_extractor")
            )
            continue
        taken[extractor.name] = spelling
        found = _params_problems(item.params, location)
        try:
            params = extractor.Params.sent(item.params or {})
        except pydantic.ValidationError as error:
            found += schema_problems(error, (*location, "params"))
        if found:
            problems += found
            continue
        try:
            outputs = extractor.outputs(params)
        except (TesseraError, BadSample) as error:
            # A model that was asked for by its id is not installed; the message names the command.
            problems.append(Problem((*location, "params"), error.message, "model_not_installed"))
            continue
        plan.registered.append(
            {
                "feature_extractor_name": item.feature_extractor_name,
                "version": item.version,
                "params": item.params,
            }
        )
        for vector in outputs.vectors:
            plan.vectors[vector.name] = {
                "name": vector.name,
                "dimensions": vector.dimensions,
                "distance": vector.distance,
            }
            plan.inference[vector.name] = vector.model_id
        for words in outputs.sparse:
            # One index for the words of all extractors, so that their scores can be compared.
            known = plan.sparse.setdefault(words.name, {"name": words.name, "fields": []})
            known["fields"] += [name for name in words.fields if name not in known["fields"]]
        _add_needed(plan.indexes, outputs.indexes)
    return plan


def _add_needed(indexes: list[PayloadIndex], needed: Sequence[PayloadIndex]) -> None:
    """Add what one extractor needs; of two that need the same field, the first decides its parameters."""
    known = {index.field_name for index in indexes} | {index.field_name for index in SYSTEM_INDEXES}
    for index in needed:
        if index.field_name not in known:
            indexes.append(index.model_copy(update={"is_protected": True}))
            known.add(index.field_name)


def _params_problems(params: JsonObject | None, location: Location) -> list[Problem]:
    """Refuse parameters that could not be stored: they are echoed as they were sent."""
    place = (*location, "params")
    try:
        text = orjson.dumps(params)
    except orjson.JSONEncodeError:
        reason = "an integer beyond 64 bits, half a surrogate pair, or nesting without end"
        return [Problem(place, f"{label(place)} holds what cannot be kept: {reason}.", "params_not_storable")]
    if b"\\u0000" in text:
        return [Problem(place, f"{label(place)} holds a NUL character; remove it.", "nul_character")]
    return []


# --- payload indexes ---------------------------------------------------------------------------------


def _plan_indexes(
    requested: Sequence[tuple[int, PayloadIndexConfig]],
    needed: Sequence[PayloadIndex],
    sent_back: Sequence[PayloadIndex],
    problems: list[Problem],
) -> list[PayloadIndex]:
    """Return the user's indexes; `needed` are those of extractors, `sent_back` those ignored when sent back."""
    indexes: list[PayloadIndex] = []
    first_at: dict[str, int] = {}
    by_name = {index.field_name: index for index in needed}
    ignored = {(index.field_name, index.type) for index in sent_back}
    for number, config in requested:
        location: Location = ("body", "payload_indexes", number)
        name = config.field_name
        if config.is_protected and (name, config.type) in ignored:
            continue
        found = _field_name_problems(name, (*location, "field_name"))
        if name in first_at:
            found.append(
                Problem(
                    (*location, "field_name"),
                    f"payload_indexes[{number}]: field_name {quote(name)} is already indexed by "
                    f"payload_indexes[{first_at[name]}]; a field has one index, remove one of the two.",
                    "duplicate_field_name",
                )
            )
        first_at.setdefault(name, number)
        if name in by_name and by_name[name].type != config.type:
            found.append(
                Problem(
                    (*location, "type"),
                    f"payload_indexes[{number}]: {quote(name)} is indexed as {by_name[name].type} for a chosen "
                    f"feature extractor, not as {config.type}. Leave this entry out or send type "
                    f"{by_name[name].type}.",
                    "contradicts_extractor",
                    400,
                )
            )
        schema = _complete_schema(config, location, found)
        problems += found
        if not found:
            indexes.append(PayloadIndex(field_name=name, type=config.type, field_schema=schema))
    return indexes


def _field_name_problems(name: str, location: Location) -> list[Problem]:
    def problem(reason: str, kind: str, status: int = 422) -> list[Problem]:
        return [Problem(location, f"{label(location)} {quote(name)} {reason}", kind, status)]

    segments = name.split(".")
    if name in PROTECTED_FIELDS:
        return problem(
            "is a field of the system and cannot be indexed by users; protected are "
            f"{', '.join(sorted(PROTECTED_FIELDS))}. Index a field of your own, such as metadata.{name}.",
            "protected_field",
            400,
        )
    if not all(segment.strip() for segment in segments):
        return problem("has an empty segment; write dots only between names.", "empty_segment")
    if "[]" in name:
        return problem("holds '[]', which is reserved; arrays are searched without it.", "reserved_path")
    if any(c in '"\\' or not (c.isprintable() or unicodedata.category(c) == "Zs") for c in name):
        return problem(
            "holds a quote, a backslash or a control character; rename the field.", "path_characters"
        )
    if segments[0] == _INTERNAL_ROOT:
        return problem(
            f"begins with {_INTERNAL_ROOT!r}, which is reserved; rename the field.", "reserved_path"
        )
    return []


def _complete_schema(config: PayloadIndexConfig, location: Location, problems: list[Problem]) -> JsonObject:
    """Return the parameters of the outer type, defaults filled in; keys of other types are ignored."""
    place = (*location, "field_schema")
    given = config.field_schema or {}
    declared = given.get("type")
    if isinstance(declared, str) and declared != config.type and declared in IndexType.__members__.values():
        problems.append(
            Problem(
                (*place, "type"),
                f"{label(place)}.type is {quote(declared)}, but type is {quote(config.type.value)}; send the "
                "same in both or leave field_schema out.",
                "type_mismatch",
            )
        )
        return {}
    model = INDEX_PARAMS[config.type]
    own = {key: given[key] for key in model.model_fields if key != "type" and given.get(key) is not None}
    params, found = _validated(model, own, place)
    problems += found
    if params is None:
        return {}
    schema: JsonObject = params.model_dump(mode="json")
    if config.type == IndexType.INTEGER and not (schema["lookup"] or schema["range"]):
        problems.append(
            Problem(
                place,
                f"{label(place)}: lookup and range are both false, so the index could answer nothing; set one.",
                "useless_index",
            )
        )
    if config.type == IndexType.TEXT and schema["min_token_len"] > schema["max_token_len"]:
        problems.append(
            Problem(
                place,
                f"{label(place)}: min_token_len {schema['min_token_len']} is greater than max_token_len "
                f"{schema['max_token_len']}, so no word could be indexed; raise max_token_len.",
                "useless_index",
            )
        )
    return schema


# --- infrastructure ----------------------------------------------------------------------------------


def _infrastructure_problems(
    infrastructure: NamespaceInfrastructure, stored: Mapping[str, Any] | None
) -> list[Problem]:
    """Check the tier's rules; `stored` is the present infrastructure, whose key an omitted one stands for."""
    root: Location = ("body", "infrastructure")
    tier = infrastructure.compute_tier
    dedicated = tier != ComputeTier.SHARED
    problems: list[Problem] = []

    def missing(name: str, reason: str, kind: str = "missing_for_tier") -> None:
        problems.append(Problem((*root, name), f"infrastructure.{name} is required {reason}.", kind))

    if dedicated and infrastructure.qdrant_collection is None:
        missing("qdrant_collection", f"for compute_tier {tier.value!r}: 3 to 128 characters")
    for name, shape in _URLS.items():
        url = getattr(infrastructure, name)
        if url is None:
            if dedicated and name in ("qdrant_url", "ray_head_node_url"):
                missing(name, f"for compute_tier {tier.value!r}: {shape.example}")
        else:
            problems += _url_problems(url, (*root, name), shape)
    if infrastructure.qdrant_api_key is None and not keeps_key(infrastructure, stored):
        if dedicated:
            missing("qdrant_api_key", f"for compute_tier {tier.value!r}: the key of the Qdrant at qdrant_url")
        elif infrastructure.qdrant_url is not None:
            missing("qdrant_api_key", "with qdrant_url: the key of that Qdrant", "missing_with_url")
    if tier == ComputeTier.DEDICATED_GPU:
        if infrastructure.gpu_type is None:
            missing("gpu_type", f"for compute_tier {tier.value!r}, such as 'A100'")
        if "gpus_per_worker" not in infrastructure.model_fields_set:
            missing("gpus_per_worker", f"for compute_tier {tier.value!r}: 1 to 8")
        elif infrastructure.gpus_per_worker < 1:
            problems.append(
                Problem(
                    (*root, "gpus_per_worker"),
                    f"infrastructure.gpus_per_worker is {infrastructure.gpus_per_worker}; compute_tier "
                    f"{tier.value!r} needs 1 to 8.",
                    "too_small_for_tier",
                )
            )
    if infrastructure.min_workers > infrastructure.max_workers:
        problems.append(
            Problem(
                (*root, "min_workers"),
                f"infrastructure.min_workers {infrastructure.min_workers} is greater than max_workers "
                f"{infrastructure.max_workers}.",
                "bounds_crossed",
            )
        )
    for name in ("qdrant_collection", "gpu_type", "s3_plugin_bucket", "s3_plugin_prefix", "description"):
        problems += _text_problems(getattr(infrastructure, name), (*root, name))
    return problems


def keeps_token(infrastructure: NamespaceInfrastructure, stored: Mapping[str, Any] | None) -> bool:
    """Say whether the Ray token that is stored stays in force: none is sent, and the head is the same."""
    return (
        infrastructure.ray_auth_token is None
        and infrastructure.ray_head_node_url is not None
        and stored is not None
        and stored.get("ray_head_node_url") == infrastructure.ray_head_node_url
        and "ray_auth_token" in stored
    )


def keeps_key(infrastructure: NamespaceInfrastructure, stored: Mapping[str, Any] | None) -> bool:
    """Say whether the key that is stored stays in force: none is sent, and the URL is the same."""
    return (
        infrastructure.qdrant_api_key is None
        and infrastructure.qdrant_url is not None
        and stored is not None
        and stored.get("qdrant_url") == infrastructure.qdrant_url
        and "qdrant_api_key" in stored
    )


@dataclass(frozen=True, slots=True)
class _UrlShape:
    schemes: tuple[str, ...]
    needs_port: bool
    example: str


_URLS: Mapping[str, _UrlShape] = {
    "qdrant_url": _UrlShape(("http", "https"), False, "http://host:6333"),
    "ray_head_node_url": _UrlShape(("ray",), True, "ray://host:10001"),
    "ray_dashboard_url": _UrlShape(("http", "https"), False, "http://host:8265"),
}


def _url_problems(url: str, location: Location, shape: _UrlShape) -> list[Problem]:
    """Check a URL's form. It is not quoted: a wrong one may hold a password where none belongs."""
    path = label(location)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return [Problem(location, f"{path} is not a URL; write it like {shape.example}.", "url")]
    if "@" in parts.netloc or parts.query or parts.fragment:
        return [
            Problem(
                location,
                f"{path} holds credentials, a query or a fragment; write it like {shape.example} and send a key "
                "as qdrant_api_key.",
                "url_credentials",
            )
        ]
    wrong = (
        parts.scheme not in shape.schemes
        or not host
        or (shape.needs_port and port is None)
        or not url.isprintable()
        or " " in url
    )
    if wrong:
        return [
            Problem(
                location,
                f"{path} must be {' or '.join(f'{scheme}://' for scheme in shape.schemes)} with a host"
                f"{' and a port' if shape.needs_port else ''}, like {shape.example}.",
                "url",
            )
        ]
    return []


# --- changes -----------------------------------------------------------------------------------------


def _plan_change(
    model: type[PatchNamespaceRequest] | type[UpdateNamespaceRequest],
    body: object,
    current: Mapping[str, Any],
) -> NamespaceChange:
    problems: list[Problem] = []
    body = _take_alias(body, problems)
    request, found = _validated(model, body, ("body",))
    problems += found
    pieces = _Pieces.of(request, body)

    name = _checked_name(pieces.namespace_name, problems)
    problems += _text_problems(pieces.description, ("body", "description"))
    added = [index for index in stored_indexes(current["added_indexes"]) if not index.is_auto]
    system = {index.field_name for index in SYSTEM_INDEXES}
    needed = [index for index in added if index.field_name not in system]
    user_indexes = _plan_indexes(pieces.payload_indexes, needed, added, problems)
    if pieces.infrastructure is not None:
        problems += _infrastructure_problems(pieces.infrastructure, current["infrastructure"])
    raise_problems(_in_order(problems, model))

    assert request is not None
    given = request.model_fields_set
    values: dict[str, Any] = {}
    if name is not None and name != current["namespace_name"]:
        values["namespace_name"] = name
    if "payload_indexes" in given and tuple(user_indexes) != stored_indexes(current["user_indexes"]):
        values["user_indexes"] = tuple(user_indexes)
    if isinstance(request, PatchNamespaceRequest):
        if "description" in given and request.description != current["description"]:
            values["description"] = request.description
        auto = request.auto_create_indexes
        if auto is not None and auto != current["auto_create_indexes"]:
            values["auto_create_indexes"] = auto
        if request.infrastructure is not None:
            values["infrastructure"] = request.infrastructure
    return NamespaceChange(values)


def _unknown_extractor(
    item: BaseFeatureExtractorModel, registry: Registry, location: Location
) -> Problem | None:
    versions = registry.versions(item.feature_extractor_name)
    if not versions:
        known = ", ".join(registry.extractor_names())
        return Problem(
            (*location, "feature_extractor_name"),
            f"{label(location)}: feature extractor {quote(item.feature_extractor_name)} is not known; known are "
            f"{known}.{registry.trouble(item.feature_extractor_name)}",
            "unknown_extractor",
        )
    if item.version not in versions:
        return Problem(
            (*location, "version"),
            f"{label(location)}: {item.feature_extractor_name} has no version {quote(item.version)}; known are "
            f"{', '.join(versions)}.",
            "unknown_version",
        )
    return None
