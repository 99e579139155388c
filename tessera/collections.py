"""Collections: which extractor reads which buckets or collections, what goes in, and what its documents will hold.

Everything about a collection is decided when it is created, in `_plan`; its output schema is known then,
and a batch has nothing left to refuse but the content of single objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    audit,
    buckets,
    enrichment_requests,
    events,
    filters,
    limits,
    listing,
    locators,
    log,
    names,
    namespaces,
    taxonomy_definition,
    tiers,
)
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import batch_rows, collections, sources
from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    Problem,
    ValidationError,
    quote,
    raise_problems,
)
from tessera.extractors.base import Extractor, Outputs, VectorOutput
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.buckets import BLOB_TYPES, BucketSchema, FieldType, SchemaField
from tessera.models.collections import (
    CloneCollectionRequest,
    CloneCollectionResponse,
    CollectionFeature,
    CollectionListStats,
    CollectionResponse,
    CollectionVectorIndex,
    CreateCollectionRequest,
    DescribeFeaturesResponse,
    FeatureExtractorAnswer,
    FeatureExtractorConfig,
    FieldPassthrough,
    InputMapping,
    ListCollectionsRequest,
    ListCollectionsResponse,
    PatchCollectionRequest,
    SourceAnswer,
    SourceConfig,
    VectorIndex,
)
from tessera.models.tasks import GenericDeleteResponse, TaskStatus
from tessera.models.taxonomies import ApplyTaxonomyRequest, ApplyTaxonomyResponse
from tessera.pagination import PageRequest
from tessera.plan import PROTECTED_FIELDS, effective_indexes, stored_indexes
from tessera.ports import SparseText
from tessera.registry import Registry
from tessera.taxonomy_definition import read_applications
from tessera.validation import schema_problems

#: Words that routes below ``/v1/collections/`` take.
RESERVED_NAMES = frozenset({"list", "features", "import"})
PASSTHROUGH = "passthrough_extractor"
#: What a PATCH refuses, and what this version does not have.
FIXED = ("source", "feature_extractor", "input_schema", "output_schema")
LATER = (
    "cluster_applications",
    "alert_applications",
    "retriever_enrichments",
    "schedule",
)

#: Root fields of a document's answer that no passthrough may write.
_SYSTEM_FIELDS = PROTECTED_FIELDS | {"document_blobs", "vectors", "score"}

Location = tuple[str | int, ...]
_EXTRACTOR: Location = ("body", "feature_extractor")


# --- create --------------------------------------------------------------------------------------------


def create(
    wh: Warehouse, principal: Principal, namespace: str, request: CreateCollectionRequest
) -> CollectionResponse:
    """Create a collection. Durable when it returns, with its output schema; nothing is extracted yet.

    Raises with everything that is wrong at once; a taken name is a 409, so a repeated call makes no second one.
    """
    at = now()
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        # Nothing that it reads is deleted from here on.
        log.hold(connection, place["namespace_id"])
        name = names.clean(request.collection_name)
        plan = _plan(wh.registry, connection, place, request)
        plan.problems += _name_problems(name)
        taken = _id_of_name(connection, place["namespace_id"], name)
        if taken and not plan.problems:
            plan.problems.append(_taken(name, taken))
        raise_problems(plan.problems)
        row = {
            "collection_id": new_id("col"),
            "namespace_id": place["namespace_id"],
            "collection_name": name,
            "description": request.description,
            "source": plan.source,
            "feature_extractor": plan.extractor,
            "input_schema": plan.input_schema,
            "output_schema": plan.output_schema,
            "schema_version": 1,
            "schema_synced_at": None,
            "enabled": request.enabled,
            "metadata": request.metadata or {},
            "taxonomy_applications": plan.applications or None,
            "created_at": at,
            "updated_at": at,
        }
        limits.check_quota(wh, connection, principal, "collections")
        connection.execute(collections.insert().values(**row))
        audit.record(
            connection,
            principal,
            "collection_created",
            "collection",
            str(row["collection_id"]),
            {"name": name},
        )
        events.collection_changed(connection, "created", row)
    return _answer(wh, place, row, 0)


def clone(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: CloneCollectionRequest
) -> CloneCollectionResponse:
    """Create a collection like another one, but for what the request gives. Durable when it returns.

    It has no documents; a trigger processes all that it reads. A taken name is a 409.
    """
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
    copied = ("source", "feature_extractor", "description", "enabled", "metadata", "taxonomy_applications")
    like: JsonObject = {name: row[name] for name in copied}
    if request.source is None:
        like["input_schema"] = row["input_schema"]
    given = request.model_dump(exclude_unset=True, exclude_none=True)
    created = create(wh, principal, namespace, CreateCollectionRequest.model_validate({**like, **given}))
    return CloneCollectionResponse(collection=created, source_collection_id=row["collection_id"])


def get(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> CollectionResponse:
    """Return a collection by id or name."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        counts = _document_counts(connection, [row["collection_id"]])
    return _answer(wh, place, row, counts.get(row["collection_id"], 0))


def list_(
    wh: Warehouse, principal: Principal, namespace: str, page: PageRequest, request: ListCollectionsRequest
) -> ListCollectionsResponse:
    """List collections, oldest first unless sorted otherwise."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        query = (
            sa.select(collections)
            .where(collections.c.namespace_id == place["namespace_id"])
            .order_by(collections.c.created_at, collections.c.collection_id)
        )
        rows = connection.execute(query).mappings().all()
        chosen = listing.choose(
            rows,
            filters=request.filters,
            search=request.search,
            search_in=("collection_id", "collection_name", "description"),
            sort=(request.sort.field, request.sort.direction) if request.sort else None,
            case_sensitive=bool(request.case_sensitive),
            id_field="collection_id",
        )
        shown, pagination = listing.cut(wh, page, chosen)
        counts = _document_counts(connection, [row["collection_id"] for row in shown])
    results = [_answer(wh, place, row, counts.get(row["collection_id"], 0)) for row in shown]
    documents = sum(result.document_count for result in results)
    return ListCollectionsResponse(
        results=results,
        pagination=pagination,
        total_count=len(chosen),
        stats=CollectionListStats(
            total_documents=documents,
            avg_documents_per_collection=documents / len(results) if results else 0.0,
            total_feature_extractors=len(
                {result.feature_extractor.feature_extractor_id for result in results}
            ),
        ),
    )


def patch(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: PatchCollectionRequest
) -> CollectionResponse:
    """Change what is given of name, description, enabled and metadata; nothing else can change.

    What is fixed is refused; other keys are ignored, as in every request.
    """
    given = request.model_fields_set
    extra = request.model_extra or {}
    problems = [
        Problem(
            ("body", name),
            f"{name} of a collection is fixed when it is created. Clone the collection with another one (POST "
            "/v1/collections/<id>/clone), and delete this one.",
            "fixed",
            BadRequestError.status,
        )
        for name in FIXED
        if name in extra
    ]
    problems += [_not_available(name) for name in LATER if extra.get(name)]
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        values: dict[str, Any] = {}
        if request.collection_name is not None:
            name = names.clean(request.collection_name)
            if name != row["collection_name"]:
                values["collection_name"] = name
                problems += _name_problems(name)
                taken = _id_of_name(connection, place["namespace_id"], name)
                if taken and not problems:
                    problems.append(_taken(name, taken))
        if "description" in given and request.description != row["description"]:
            values["description"] = request.description
        if request.enabled is not None and request.enabled != row["enabled"]:
            values["enabled"] = request.enabled
        if "metadata" in given and (request.metadata or {}) != row["metadata"]:
            values["metadata"] = request.metadata or {}
        if "taxonomy_applications" in given:
            applications, wrong = read_applications(
                connection, place["namespace_id"], request.taxonomy_applications or ()
            )
            problems += wrong
            if applications != (row["taxonomy_applications"] or []):
                values["taxonomy_applications"] = applications or None
        raise_problems(problems)
        if values:
            connection.execute(
                sa.update(collections)
                .where(collections.c.collection_id == row["collection_id"])
                .values(**values, updated_at=now())
            )
            audit.record(
                connection,
                principal,
                "collection_updated",
                "collection",
                row["collection_id"],
                {"fields": sorted(values)},
            )
        row = find(connection, place["namespace_id"], row["collection_id"])
        if "taxonomy_applications" in values:
            ids = [application["taxonomy_id"] for application in row["taxonomy_applications"] or ()]
            enrichment_requests.request(connection, place, row, ids)
        if values:
            events.collection_changed(connection, "updated", row, fields=sorted(values))
        counts = _document_counts(connection, [row["collection_id"]])
    if "taxonomy_applications" in values:
        wh.jobs.wake()
    return _answer(wh, place, row, counts.get(row["collection_id"], 0))


def apply_taxonomy(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: ApplyTaxonomyRequest
) -> ApplyTaxonomyResponse:
    """Have the documents of a collection compared anew, and return the task. Accepted and durable when it returns.

    Raises `BadRequestError` for a taxonomy that is not in the collection's `taxonomy_applications`.
    """
    filters.parse(request.scroll_filters, location=("body", "scroll_filters"))
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        taxonomy_id = taxonomy_definition.find(connection, place["namespace_id"], request.taxonomy_id)[
            "taxonomy_id"
        ]
        applied = [
            application["taxonomy_id"]
            for application in row["taxonomy_applications"] or ()
            if application["execution_mode"] != "on_demand"
        ]
        if taxonomy_id not in applied:
            raise BadRequestError(
                f"Taxonomy {quote(request.taxonomy_id)} is not applied to collection "
                f"{quote(row['collection_name'])}; applied are: {', '.join(applied) or 'none'}. PATCH "
                f"/v1/collections/{row['collection_id']} with taxonomy_applications puts it there.",
                details={"taxonomy_id": taxonomy_id, "applied": applied},
            )
        count = _document_counts(connection, [row["collection_id"]]).get(row["collection_id"], 0)
        task_id = enrichment_requests.request(
            connection, place, row, [taxonomy_id], request.scroll_filters or None
        )
    wh.jobs.wake()
    return ApplyTaxonomyResponse(
        task_id=task_id,
        status=TaskStatus.PENDING.value,
        collection_id=row["collection_id"],
        taxonomy_id=taxonomy_id,
        estimated_documents=count,
    )


def delete(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> GenericDeleteResponse:
    """Delete a collection with its documents. Durable, and no longer findable, when it returns.

    The objects that they came from stay. What a batch under way still makes for it is dropped. Refused while
    another collection reads it: so no document is ever left without what it was made of.
    """
    seq: int | None = None
    with wh.db.write() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        row = find(connection, namespace_id, identifier)
        collection_id = row["collection_id"]
        log.hold(connection, namespace_id)
        _refuse_while_read(connection, row)
        documents = [
            document_id
            for ids in connection.execute(
                sa.select(sources.c.document_ids).where(sources.c.collection_id == collection_id)
            ).scalars()
            for document_id in ids
        ]
        connection.execute(sa.delete(sources).where(sources.c.collection_id == collection_id))
        connection.execute(
            sa.update(batch_rows)
            .where(
                batch_rows.c.namespace_id == namespace_id,
                batch_rows.c.collection_id == collection_id,
                batch_rows.c.status == "PENDING",
            )
            .values(
                status="SKIPPED",
                error_kind="superseded",
                error_message="The collection was deleted.",
                updated_at=now(),
            )
        )
        enrichment_requests.cancel(connection, collection_id)
        connection.execute(sa.delete(collections).where(collections.c.collection_id == collection_id))
        audit.record(
            connection,
            principal,
            "collection_deleted",
            "collection",
            collection_id,
            {"name": row["collection_name"]},
        )
        events.collection_changed(connection, "deleted", row, documents_deleted=len(documents))
        if documents:
            seq = log.append_edit(connection, namespace_id, deletes=documents)
    if seq is not None:
        wh.views.apply(namespace_id, seq)
    return GenericDeleteResponse(
        message=f"Collection {row['collection_name']} and its {len(documents)} document(s) were deleted."
    )


def _refuse_while_read(connection: Connection, row: RowMapping) -> None:
    reads = tiers.fed_by_collections(connection, row["namespace_id"], disabled_too=True)
    readers = [reader for reader, feeding in reads.items() if row["collection_id"] in feeding]
    if readers:
        names_of = connection.execute(
            sa.select(collections.c.collection_name).where(collections.c.collection_id.in_(readers[:5]))
        ).scalars()
        more = f" and {len(readers) - 5} more" if len(readers) > 5 else ""
        raise ConflictError(
            f"Collection {quote(row['collection_name'])} is read by {len(readers)} collection(s): "
            f"{', '.join(sorted(names_of))}{more}. Delete them first; their documents go with them.",
            details={"resource": "collection", "id": row["collection_id"], "read_by": readers[:100]},
        )


def features(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str
) -> DescribeFeaturesResponse:
    """Describe the vectors that a retriever can search in this collection, the main one first."""
    answer = get(wh, principal, namespace, identifier)
    config = answer.feature_extractor
    return DescribeFeaturesResponse(
        features=[
            CollectionFeature(
                feature_address=item.feature_uri,
                feature_uri=item.feature_uri,
                feature_extractor_name=config.feature_extractor_name,
                version=config.version,
                vector_index=item.index,
                primary=number == 0,
            )
            for number, item in enumerate(answer.vector_indexes)
        ]
    )


def find(connection: Connection, namespace_id: str, identifier: str) -> RowMapping:
    """Return the row of a collection by id, else by name. Raises `NotFoundError`."""
    found = (
        connection.execute(
            sa.select(collections).where(
                collections.c.namespace_id == namespace_id,
                sa.or_(
                    collections.c.collection_id == identifier,
                    collections.c.collection_name == names.clean(identifier),
                ),
            )
        )
        .mappings()
        .all()
    )
    if not found:
        raise NotFoundError("collection", identifier)
    return next((row for row in found if row["collection_id"] == identifier), found[0])


# --- planning ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Plan:
    """What a request decides about a collection, or everything that is wrong with it."""

    #: As it is stored; empty when the sources cannot be read.
    source: JsonObject = field(default_factory=dict)
    input_schema: JsonObject = field(default_factory=dict)
    extractor: JsonObject = field(default_factory=dict)
    output_schema: JsonObject = field(default_factory=dict)
    applications: list[JsonObject] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def _plan(
    registry: Registry, connection: Connection, place: RowMapping, request: CreateCollectionRequest
) -> _Plan:
    plan = _Plan()
    plan.problems += [_not_available(name) for name in LATER if getattr(request, name)]
    plan.applications, wrong = read_applications(
        connection, place["namespace_id"], request.taxonomy_applications or ()
    )
    plan.problems += wrong
    schema = _source_schema(connection, place["namespace_id"], request, plan)
    if request.input_schema is not None:
        schema = BucketSchema(properties={**schema.properties, **request.input_schema.properties})
    plan.input_schema = schema.model_dump(mode="json", exclude_unset=True)
    config = request.feature_extractor
    registered = _registered(registry, place, config, plan.problems)
    if registered is None:
        return plan
    implementation, entry = registered
    params = {**(entry.get("params") or {}), **(config.params or {})}
    outputs = _outputs(implementation, place, config, params, plan.problems)
    if outputs is None or not plan.source:
        return plan
    is_fed = plan.source["type"] == "collection"
    mappings = _mappings(implementation, schema, config, plan.problems, is_fed=is_fed)
    passthrough = _passthrough(config, outputs, plan.problems)
    everything = bool(config.include_all_source_fields) or (
        implementation.name == PASSTHROUGH and not passthrough
    )
    plan.extractor = {
        "feature_extractor_name": config.feature_extractor_name,
        "version": config.version,
        "params": params or None,
        "parameters": config.parameters,
        "input_mappings": mappings,
        "field_passthrough": [item.model_dump(mode="json") for item in passthrough],
        "include_all_source_fields": everything,
    }
    plan.output_schema = _output_schema(schema, outputs, passthrough, everything)
    return plan


def _not_available(name: str) -> Problem:
    return Problem(
        ("body", name),
        f"{name} is not available in this version; leave it out.",
        "not_available",
        BadRequestError.status,
    )


def _source_schema(
    connection: Connection, namespace_id: str, request: CreateCollectionRequest, plan: _Plan
) -> BucketSchema:
    """Find the sources, which join the plan, and return the properties of all of them together."""
    source, kind = request.source, request.source.kind()
    try:
        wanted = parse_source_filters(source.source_filters, ("body", "source", "source_filters"))
    except ValidationError as error:
        plan.problems += error.problems
        wanted = None
    plan.problems += _source_problems(source)
    if kind not in ("bucket", "collection") or not source.identifiers(kind):
        return BucketSchema(properties={})
    name = f"{kind}_ids"
    if kind == "bucket":
        rows = [buckets.find(connection, namespace_id, each) for each in source.identifiers(kind)]
    else:
        rows = _feeding(connection, namespace_id, request, plan)
    plan.source = {"type": kind, name: list(dict.fromkeys(row[f"{kind}_id"] for row in rows))}
    if kind == "collection":
        roots = [b for row in rows for b in _root_buckets(row["source"])]
        plan.source["inherited_bucket_ids"] = list(dict.fromkeys(roots))
    if wanted is not None:
        plan.source["source_filters"] = {"filters": _logical(filters.to_json(wanted))}
    schema = "bucket_schema" if kind == "bucket" else "output_schema"
    named = [(row[f"{kind}_name"], row[schema]) for row in rows]
    return _united(named, ("body", "source", name), kind, plan.problems)


def _source_problems(source: SourceConfig) -> list[Problem]:
    """Return what is wrong with a source before it is looked up."""
    kind = source.kind()
    if kind not in ("bucket", "collection"):
        message = (
            f"source.type is {quote(kind)}; in this version a collection reads buckets, "
            '{"type": "bucket", "bucket_ids": [...]}, or other collections, {"type": "collection", '
            '"collection_ids": [...]}.'
        )
        return [Problem(("body", "source", "type"), message, "not_available", BadRequestError.status)]
    problems = []
    other = "collection" if kind == "bucket" else "bucket"
    if source.identifiers(other):
        message = (
            f"source names {other}s, but its type is {kind}. A collection reads one kind: leave {other}_ids out, "
            "or make a collection for each."
        )
        problems.append(Problem(("body", "source", f"{other}_ids"), message, "ambiguous"))
    if not source.identifiers(kind):
        message = f"source.{kind}_ids is required: one or more {kind} ids or names."
        problems.append(Problem(("body", "source", f"{kind}_ids"), message, "missing"))
    return problems


def _united(
    schemas: Iterable[tuple[str, JsonObject]], location: Location, kind: str, problems: list[Problem]
) -> BucketSchema:
    """Return the properties of all schemas, each given with its source's name; one name has one type."""
    properties: dict[str, SchemaField] = {}
    for source_name, schema in schemas:
        for name, declared in BucketSchema.model_validate(schema).properties.items():
            known = properties.setdefault(name, declared)
            if known.type != declared.type:
                problems.append(
                    Problem(
                        location,
                        f"Property {quote(name)} is {known.type.value} in one source {kind} and "
                        f"{declared.type.value} in {quote(source_name)}. Make a collection for each.",
                        "schemas_differ",
                    )
                )
    return BucketSchema(properties=properties)


def _feeding(
    connection: Connection, namespace_id: str, request: CreateCollectionRequest, plan: _Plan
) -> list[RowMapping]:
    """Return the collections that feed the new one. A circle and a chain that is too long are problems."""
    location: Location = ("body", "source", "collection_ids")
    own = names.clean(request.collection_name)
    rows = []
    for identifier in request.source.identifiers("collection"):
        if names.clean(identifier) == own and _id_of_name(connection, namespace_id, own) is None:
            message = (
                f"Collection {quote(own)} would read itself. Name other collections; what a collection makes cannot be "
                "what it reads, not by way of others either."
            )
            plan.problems.append(Problem(location, message, "cycle"))
            continue
        rows.append(find(connection, namespace_id, identifier))
    reads = tiers.fed_by_collections(connection, namespace_id, disabled_too=True)
    longest = max((_tiers_below(reads, row["collection_id"]) for row in rows), default=0)
    if longest >= tiers.MAX_TIERS:
        message = (
            f"The collection would be in tier {longest}; chains of at most {tiers.MAX_TIERS} collections are allowed. "
            "Read a collection nearer to the buckets."
        )
        plan.problems.append(Problem(location, message, "too_many_tiers"))
    return rows


def _tiers_below(reads: Mapping[str, Sequence[str]], collection_id: str) -> int:
    """Return in how many tiers a collection and all that feeds it stand."""
    below: set[str] = set()
    waiting = [collection_id]
    while waiting:
        new = waiting.pop()
        if new not in below:
            below.add(new)
            waiting += reads.get(new, ())
    within = {c: [f for f in feeding if f in below] for c, feeding in reads.items() if c in below}
    return len(tiers.sort(within, [c for c in below if c not in within]))


def _root_buckets(source: Mapping[str, Any]) -> list[str]:
    return list(source.get("inherited_bucket_ids") or source.get("bucket_ids") or ())


def parse_source_filters(given: JsonObject | None, location: Location) -> filters.Filter | None:
    """Parse source filters: a filter, or one under the key ``filters``. Raises `ValidationError`."""
    if given is not None and set(given) <= {"filters"}:
        return filters.parse(given.get("filters"), location=(*location, "filters"))
    return filters.parse(given, location=location)


def _logical(filter: JsonObject) -> JsonObject:
    """Return a filter as one with a logical root: the clients read no other."""
    return filter if filter.keys() & {"AND", "OR", "NOT"} else {"AND": [filter]}


def _registered(
    registry: Registry, place: RowMapping, config: FeatureExtractorConfig, problems: list[Problem]
) -> tuple[Extractor, Mapping[str, Any]] | None:
    """Find the extractor among the namespace's, whichever of its names and version spellings is used."""
    name, version = config.feature_extractor_name, config.version
    own = ", ".join(
        f"{entry['feature_extractor_name']} {entry['version']}" for entry in place["feature_extractors"]
    )
    versions = registry.versions(name)
    if not versions:
        problems.append(
            Problem(
                (*_EXTRACTOR, "feature_extractor_name"),
                f"Feature extractor {quote(name)} is not known. This namespace has: {own}.{registry.trouble(name)}",
                "unknown_extractor",
            )
        )
        return None
    if version not in versions:
        problems.append(
            Problem(
                (*_EXTRACTOR, "version"),
                f"{name} has no version {quote(version)}; its versions are: {', '.join(versions)}.",
                "unknown_version",
            )
        )
        return None
    implementation = registry.extractor(name, version)
    for entry in place["feature_extractors"]:
        there = registry.find(entry["feature_extractor_name"], entry["version"])
        if there is not None and there.name == implementation.name:
            return implementation, entry
    problems.append(
        Problem(
            _EXTRACTOR,
            f"{name} {version} is not one of this namespace's extractors, which are: {own}. They are fixed when a "
            "namespace is created; use one of them, or create a namespace with this one.",
            "foreign_extractor",
            BadRequestError.status,
        )
    )
    return None


def _outputs(
    implementation: Extractor,
    place: RowMapping,
    config: FeatureExtractorConfig,
    params: Mapping[str, Any],
    problems: list[Problem],
) -> Outputs | None:
    """Return what the extractor writes with these parameters; its vectors must be those of the namespace."""
    try:
        checked = implementation.Params.sent({**params, **(config.parameters or {})})
    except pydantic.ValidationError as error:
        problems += schema_problems(error, (*_EXTRACTOR, "parameters"))
        return None
    outputs = implementation.outputs(checked)
    vectors = {vector["name"]: vector for vector in place["vectors"]}
    models = place["vector_inference_map"]
    for vector in outputs.vectors:
        there = vectors.get(vector.name)
        same = (
            there is not None
            and there["dimensions"] == vector.dimensions
            and models.get(vector.name, vector.model_id) == vector.model_id
        )
        if not same:
            has = f"holds vectors of {models.get(vector.name)} there" if there else "is not among its vectors"
            problems.append(
                Problem(
                    (*_EXTRACTOR, "parameters"),
                    f"With these parameters {vector.name} comes from {vector.model_id} ({vector.dimensions} numbers), "
                    f"but it {has}: the vectors of a namespace are fixed when it is created. Leave the parameter out "
                    "that chooses another model, or create a namespace with it.",
                    "vectors_differ",
                    BadRequestError.status,
                )
            )
    return outputs


def _mappings(
    implementation: Extractor,
    schema: BucketSchema,
    config: FeatureExtractorConfig,
    problems: list[Problem],
    *,
    is_fed: bool,
) -> dict[str, str] | list[JsonObject] | None:
    """Check the input mappings, or find them when there are none: each input takes the one property that fits."""
    given = config.input_mappings
    if not given:
        return _found_mappings(implementation, schema, problems)
    location: Location = (*_EXTRACTOR, "input_mappings")
    entries: list[tuple[Location, InputMapping]] = (
        [((*location, key), InputMapping(input_key=key, path=path)) for key, path in given.items()]
        if isinstance(given, dict)
        else [((*location, number), item) for number, item in enumerate(given)]
    )
    for place, mapping in entries:
        problems += _mapping_problems(implementation, schema, mapping, place, is_fed=is_fed)
    if isinstance(given, dict):
        return given
    return [item.model_dump(mode="json") for item in given]


def _found_mappings(
    implementation: Extractor, schema: BucketSchema, problems: list[Problem]
) -> dict[str, str] | None:
    found: dict[str, str] = {}
    # An input that takes anything needs nothing: the object's fields are enough for it.
    inputs = {key: types for key, types in implementation.inputs.items() if types}
    if not inputs:
        return None
    for key, types in inputs.items():
        fitting = [name for name, item in schema.properties.items() if _takes(types, item.type)]
        blobs = [name for name in fitting if schema.properties[name].type in BLOB_TYPES]
        candidates = blobs or fitting
        if key in candidates:
            found[key] = key
        elif len(candidates) == 1:
            found[key] = candidates[0]
        elif candidates:
            problems.append(
                Problem(
                    (*_EXTRACTOR, "input_mappings"),
                    f"Input {quote(key)} could be any of {', '.join(candidates)}. Name one: "
                    f'"input_mappings": {{"{key}": "{candidates[0]}"}}.',
                    "ambiguous_input",
                )
            )
            return None
    if not found:
        wanted = "; ".join(f"{key} takes {', '.join(types)}" for key, types in inputs.items())
        problems.append(
            Problem(
                (*_EXTRACTOR, "input_mappings"),
                f"None of the source's properties ({_described(schema)}) fits an input of "
                f"{implementation.name}: {wanted}.",
                "no_input",
            )
        )
        return None
    return found


def _mapping_problems(
    implementation: Extractor,
    schema: BucketSchema,
    mapping: InputMapping,
    location: Location,
    *,
    is_fed: bool,
) -> list[Problem]:
    key, inputs = mapping.input_key, implementation.inputs
    if inputs and key not in inputs:
        return [
            Problem(
                location,
                f"{implementation.name} has no input {quote(key)}; its inputs are: {', '.join(inputs)}.",
                "unknown_input",
            )
        ]
    types = inputs.get(key, ())
    if mapping.source_type == "vector":
        return [
            Problem(
                location,
                f"Input {quote(key)}: source_type vector is not available in this version; use payload or literal.",
                "not_available",
                BadRequestError.status,
            )
        ]
    if mapping.source_type == "literal":
        if isinstance(mapping.override, str | int | float) and _takes(types, FieldType.STRING):
            return []
        return [
            Problem(
                location,
                f"Input {quote(key)}: a literal needs `override`, a text or a number, and an input that takes text.",
                "literal",
            )
        ]
    path = _plain(mapping.path or "").removeprefix("blobs.")
    if not path or not all(path.split(".")):
        return [
            Problem(
                location,
                f"Input {quote(key)}: {quote(mapping.path)} is not a path. Name one of the source's properties "
                f"({_described(schema)}), or metadata.<field>.",
                "path",
            )
        ]
    if is_fed and _is_link(schema, path):
        return []
    return _path_problems(schema, key, types, path, location)


def _path_problems(
    schema: BucketSchema, key: str, types: Sequence[str], path: str, location: Location
) -> list[Problem]:
    declared = _declared(schema, path)
    if declared is not None:
        if _takes(types, declared.type):
            return []
        wrong = f"property {quote(path)} is {declared.type.value}"
    elif path.startswith("metadata."):
        if _takes(types, FieldType.STRING):
            return []
        wrong = f"{quote(path)} is a plain value"
    else:
        return [
            Problem(
                location,
                f"Input {quote(key)}: the source's schema has no property {quote(path)}; its properties are: "
                f"{_described(schema)}. Fields outside the schema are named metadata.<field>.",
                "unknown_property",
            )
        ]
    return [Problem(location, f"Input {quote(key)} takes {', '.join(types)}, but {wrong}.", "input_type")]


def _is_link(schema: BucketSchema, path: str) -> bool:
    """Say whether a field of a document may link to a file that an extractor made, such as ``thumbnail_url``."""
    declared = _declared(schema, path)
    return declared is not None and declared.type is FieldType.STRING and path.endswith("_url")


def _takes(types: Sequence[str], given: FieldType) -> bool:
    """Say whether an input that accepts `types` can read a property: a plain value is read as its text."""
    return not types or given.value in types or ("text" in types and given not in BLOB_TYPES)


def _declared(schema: BucketSchema, path: str) -> SchemaField | None:
    """Return what the schema says about `path`, at the root or as ``metadata.<property>``."""
    if path.startswith("metadata.") and "metadata" not in schema.properties:
        path = path.removeprefix("metadata.")
    first, *rest = path.split(".")
    here = schema.properties.get(first)
    for part in rest:
        here = (here.properties or {}).get(part) if here is not None else None
    return here


def _described(schema: BucketSchema) -> str:
    return ", ".join(f"{name} ({item.type.value})" for name, item in schema.properties.items()) or "none"


def _plain(path: str) -> str:
    """Return a source path without the prefixes that the API allows."""
    return path.removeprefix("$.").removeprefix("payload.")


def _passthrough(
    config: FeatureExtractorConfig, outputs: Outputs, problems: list[Problem]
) -> list[FieldPassthrough]:
    """Check passthrough entries and fill in their targets.

    The default target, the last part of the path, gives way to the whole path where the system or the
    extractor writes a field of that name; a target that was asked for is refused there.
    """
    found: list[FieldPassthrough] = []
    taken: dict[str, str] = {}
    for number, item in enumerate(config.field_passthrough or ()):
        location: Location = (*_EXTRACTOR, "field_passthrough", number)
        path = _plain(item.source_path)
        if not all(path.split(".")) or "[" in path:
            problems.append(
                Problem(
                    (*location, "source_path"),
                    f"source_path {quote(item.source_path)} is not a path: names separated by single dots are, for "
                    "example metadata.category.",
                    "path",
                )
            )
            continue
        target = item.target_path or path.rsplit(".", 1)[-1]
        root = target.split(".")[0]
        ours = root in _SYSTEM_FIELDS or root.startswith("_")
        made = root in outputs.fields or (root == locators.FIELD and bool(outputs.fields))
        written = "the system" if ours else "the extractor" if made else None
        if written and item.target_path is None and path.split(".")[0] != root:
            target, written = path, None
        if written or not all(target.split(".")) or "[" in target:
            why = f"{root} is written by {written}" if written else "it is not a path"
            problems.append(
                Problem(
                    (*location, "target_path"),
                    f"target_path {quote(target)} cannot be used: {why}. Choose another, for example "
                    f"metadata.{path.rsplit('.', 1)[-1]}.",
                    "target_path",
                    BadRequestError.status if ours else 422,
                )
            )
            continue
        if taken.setdefault(target, path) != path:
            problems.append(
                Problem(
                    (*location, "target_path"),
                    f"{taken[target]} and {path} would both be stored as {quote(target)}. Give one a target_path.",
                    "duplicate_target",
                )
            )
            continue
        found.append(item.model_copy(update={"target_path": target}))
    return found


def _output_schema(
    schema: BucketSchema, outputs: Outputs, passthrough: Iterable[FieldPassthrough], everything: bool
) -> JsonObject:
    properties: dict[str, JsonObject] = {}
    if everything:
        properties.update(
            {
                name: item.model_dump(mode="json", exclude_unset=True)
                for name, item in schema.properties.items()
            }
        )
    for item in passthrough:
        declared = _declared(schema, _plain(item.source_path))
        assert item.target_path is not None
        properties[item.target_path] = (
            declared.model_dump(mode="json", exclude_unset=True)
            if declared is not None
            else {"type": FieldType.STRING.value}
        )
    for name, output in outputs.fields.items():
        properties[name] = {"type": output.type, "description": output.description}
    if outputs.fields:
        where = "Where in its source the document lies: a time, a page, a range of characters or a region."
        properties[locators.FIELD] = {"type": "object", "description": where}
    return {"properties": properties}


# --- inside --------------------------------------------------------------------------------------------


def _name_problems(name: str) -> list[Problem]:
    return names.check(name, ("body", "collection_name"), id_prefix="col", reserved=RESERVED_NAMES)


def _id_of_name(connection: Connection, namespace_id: str, name: str) -> str | None:
    found: str | None = connection.execute(
        sa.select(collections.c.collection_id).where(
            collections.c.namespace_id == namespace_id, collections.c.collection_name == name
        )
    ).scalar()
    return found


def _taken(name: str, collection_id: str) -> Problem:
    return Problem(
        ("body", "collection_name"),
        f"A collection named {quote(name)} exists in this namespace ({collection_id}). Use that one, or choose "
        "another name.",
        "name_taken",
        AlreadyExistsError.status,
    )


def _document_counts(connection: Connection, collection_ids: Sequence[str]) -> dict[str, int]:
    return {
        collection_id: int(count or 0)
        for collection_id, count in connection.execute(
            sa.select(sources.c.collection_id, sa.func.sum(sa.func.json_array_length(sources.c.document_ids)))
            .where(sources.c.collection_id.in_(collection_ids))
            .group_by(sources.c.collection_id)
        )
    }


def _answer(
    wh: Warehouse, place: RowMapping, row: Mapping[Any, Any], document_count: int
) -> CollectionResponse:
    config = row["feature_extractor"]
    parameters = config.get("parameters")
    indexes = effective_indexes(stored_indexes(place["user_indexes"]), stored_indexes(place["added_indexes"]))
    return CollectionResponse(
        collection_id=row["collection_id"],
        collection_name=row["collection_name"],
        namespace_id=row["namespace_id"],
        description=row["description"],
        source=SourceAnswer.model_validate(row["source"]),
        schema_version=row["schema_version"],
        last_schema_sync=row["schema_synced_at"],
        feature_extractor=FeatureExtractorAnswer(
            feature_extractor_name=config["feature_extractor_name"],
            version=config["version"],
            feature_extractor_id=f"{config['feature_extractor_name']}_{config['version']}",
            params=config.get("params"),
            # The clients decode parameters by their type; with it named, any other key is accepted.
            parameters={"extractor_type": config["feature_extractor_name"], **parameters}
            if parameters
            else parameters,
            input_mappings=config.get("input_mappings"),
            field_passthrough=config.get("field_passthrough") or [],
            include_all_source_fields=bool(config.get("include_all_source_fields")),
        ),
        input_schema=BucketSchema.model_validate(row["input_schema"]),
        output_schema=BucketSchema.model_validate(row["output_schema"]),
        vector_indexes=vector_indexes(wh.registry, place, config),
        payload_indexes=[index.model_dump(mode="json") for index in indexes],
        enabled=row["enabled"],
        metadata=row["metadata"] or {},
        document_count=document_count,
        taxonomy_applications=list(map(_application, row["taxonomy_applications"] or ())),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _application(stored: JsonObject) -> JsonObject:
    """Return an application as answers have it; the clients know no other mode than materialize."""
    if stored["execution_mode"] == "on_demand":
        return {**stored, "execution_mode": None, "is_on_demand": True}
    return stored


def vector_indexes(
    registry: Registry, place: RowMapping, config: Mapping[str, Any]
) -> list[CollectionVectorIndex]:
    """Return the vectors that documents of a collection with the extractor `config` have, the main one first."""
    name, version = config["feature_extractor_name"], config["version"]
    if version not in registry.versions(name):
        return []  # an extractor that was installed when the collection was made, and is not any more
    implementation = registry.extractor(name, version)
    given = {**(config.get("params") or {}), **(config.get("parameters") or {})}
    outputs = implementation.outputs(implementation.Params.model_validate(given))
    spelled = next(
        (
            f"{entry['feature_extractor_name']}@{entry['version']}"
            for entry in place["feature_extractors"]
            if entry["version"] in registry.versions(entry["feature_extractor_name"])
            and registry.extractor(entry["feature_extractor_name"], entry["version"]).name
            == implementation.name
        ),
        f"{name}@{version}",
    )
    dense = [
        CollectionVectorIndex(
            name=vector.name,
            feature_uri=f"mixpeek://{spelled}/{vector.inference_name}",
            description=_long(vector),
            index=VectorIndex(
                name=vector.name,
                description=_long(vector),
                dimensions=vector.dimensions,
                distance=vector.distance,
                supported_inputs=list(vector.query_inputs),
                inference_name=vector.inference_name,
                inference_service_id=vector.model_id,
            ),
        )
        for vector in outputs.vectors
    ]
    kept = {words.name for words in SparseText.all_of(place["sparse_vectors"])}
    sparse = [
        CollectionVectorIndex(
            name=words.name,
            feature_uri=f"mixpeek://{spelled}/{words.inference_name}",
            description=words.description,
            index=VectorIndex(
                name=words.name,
                description=words.description,
                dimensions=None,
                type="sparse",
                distance="dot",
                supported_inputs=["text"],
                inference_name=words.inference_name,
                inference_service_id=f"qdrant/{words.inference_name}",
            ),
        )
        for words in outputs.sparse
        if words.name in kept
    ]
    return [*dense, *sparse]


def _long(vector: VectorOutput) -> str:
    """Return a description of at least ten characters: the clients refuse shorter ones."""
    return (
        vector.description
        if len(vector.description) >= 10
        else f"{vector.description} vector of {vector.model_id}"
    )
