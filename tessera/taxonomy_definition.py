"""What a taxonomy is made of: its configuration read in any of the API's spellings, all problems found at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import names, retriever_definition
from tessera.context import Warehouse
from tessera.db.tables import collections, taxonomies, taxonomy_versions
from tessera.errors import BadRequestError, NotFoundError, Problem, ValidationError, quote
from tessera.filters import is_path, parse
from tessera.models.base import JsonObject
from tessera.models.taxonomies import (
    EnrichmentField,
    FlatConfig,
    HierarchicalConfig,
    HierarchicalNode,
    InferenceStrategy,
    SourceType,
    TaxonomyApplication,
    TaxonomyInput,
)
from tessera.plan import RESERVED_FIELDS
from tessera.ports import HIDDEN_FIELDS
from tessera.retriever_features import vector_of
from tessera.validation import schema_problems

#: The stage that runs a taxonomy; a taxonomy's own retriever has none.
STAGE = "taxonomy_enrich"

Location = tuple[str | int, ...]


# --- finding -------------------------------------------------------------------------------------------


def find(
    connection: Connection, namespace_id: str, identifier: str, version: int | None = None
) -> RowMapping:
    """Return a taxonomy by id, else by name, with the `config` of `version` or of its newest one.

    `config_version` says which that is. Raises `NotFoundError`, also for a version that there is not.
    """
    chosen = taxonomies.c.version if version is None else sa.literal(version)
    rows = (
        connection.execute(
            sa.select(
                taxonomies,
                taxonomy_versions.c.config,
                taxonomy_versions.c.version.label("config_version"),
            )
            .outerjoin(
                taxonomy_versions,
                sa.and_(
                    taxonomy_versions.c.taxonomy_id == taxonomies.c.taxonomy_id,
                    taxonomy_versions.c.version == chosen,
                ),
            )
            .where(
                taxonomies.c.namespace_id == namespace_id,
                sa.or_(
                    taxonomies.c.taxonomy_id == identifier,
                    taxonomies.c.taxonomy_name == names.clean(identifier),
                ),
            )
        )
        .mappings()
        .all()
    )
    if not rows:
        raise NotFoundError("taxonomy", identifier)
    row = next((row for row in rows if row["taxonomy_id"] == identifier), rows[0])
    if row["config_version"] is None:
        raise NotFoundError("taxonomy version", f"{identifier}@{version}")
    return row


def name_problems(name: str) -> list[Problem]:
    """Return what is wrong with a name for a taxonomy."""
    return names.check(
        name, ("body", "taxonomy_name"), id_prefix="tax", reserved=("list", "execute", "from-documents")
    )


# --- reading -------------------------------------------------------------------------------------------


def read_config(
    wh: Warehouse, connection: Connection, place: RowMapping, raw: Mapping[str, Any]
) -> tuple[JsonObject, list[Problem]]:
    """Return a configuration as it is stored, names resolved to ids, and everything that is wrong with it."""
    location: Location = ("body", "config")
    if raw.get("step_analytics") is not None:
        return {}, [_not_available((*location, "step_analytics"), "step_analytics")]
    kind = raw.get("taxonomy_type") or _told_by_keys(raw)
    model: type[FlatConfig] | type[HierarchicalConfig]
    if kind not in ("flat", "hierarchical"):
        return {}, [
            Problem(
                (*location, "taxonomy_type"),
                f"taxonomy_type is {quote(kind)}; allowed: flat, hierarchical.",
                "enum",
            )
        ]
    model = FlatConfig if kind == "flat" else HierarchicalConfig
    try:
        config = model.model_validate(raw)
    except pydantic.ValidationError as error:
        return {}, schema_problems(error, location)
    reading = _Reading(wh, connection, place)
    if isinstance(config, FlatConfig):
        reading.flat(config, location)
    else:
        reading.hierarchical(config, location)
    return config.model_dump(mode="json"), reading.problems


def _told_by_keys(raw: Mapping[str, Any]) -> str:
    deep = ("hierarchical_nodes", "inference_strategy", "inference_collections")
    return "hierarchical" if any(raw.get(name) is not None for name in deep) else "flat"


def _not_available(location: Location, name: str, why: str = "") -> Problem:
    return Problem(
        location, f"{name} is not available in this version{why}; leave it out.", "not_available", 400
    )


class _Reading:
    """Checks one configuration against what its namespace holds; names in it become ids."""

    def __init__(self, wh: Warehouse, connection: Connection, place: RowMapping) -> None:
        self._wh, self._connection, self._place = wh, connection, place
        self.problems: list[Problem] = []

    def flat(self, config: FlatConfig, location: Location) -> None:
        source = config.source_collection
        source.collection_id = self._collection(
            source.collection_id, (*location, "source_collection", "collection_id")
        )
        self._fields(source.enrichment_fields, (*location, "source_collection", "enrichment_fields"))
        inputs = self._inputs(config.input_mappings, (*location, "input_mappings"))
        config.retriever_id = self._retriever(config.retriever_id, inputs, (*location, "retriever_id"))

    def hierarchical(self, config: HierarchicalConfig, location: Location) -> None:
        nodes = [*(config.hierarchical_nodes or ())]
        where: Location = (*location, "hierarchical_nodes")
        for number, node in enumerate(nodes):
            node.collection_id = self._collection(node.collection_id, (*where, number, "collection_id"))
            if node.parent_collection_id is not None:
                node.parent_collection_id = self._collection(
                    node.parent_collection_id, (*where, number, "parent_collection_id")
                )
        if config.inference_strategy is not None or config.inference_collections is not None:
            nodes = self._inferred(config, nodes, location)
        if self.problems:
            return
        self._tree(nodes, where)
        defaults = self._inputs(config.input_mappings or [], (*location, "input_mappings"))
        if config.retriever_id is not None:
            config.retriever_id = self._retriever(config.retriever_id, None, (*location, "retriever_id"))
        for number, node in enumerate(nodes):
            self._node(config, node, defaults, (*where, number))
        config.hierarchical_nodes = nodes

    def _node(
        self, config: HierarchicalConfig, node: HierarchicalNode, defaults: list[str], location: Location
    ) -> None:
        self._fields(node.enrichment_fields, (*location, "enrichment_fields"))
        own = node.input_mappings
        inputs = defaults if own is None else self._inputs(own, (*location, "input_mappings"))
        identifier = node.retriever_id or config.retriever_id
        if identifier is None:
            self._add(
                (*location, "retriever_id"),
                "A node needs a retriever: its own retriever_id, or one of the taxonomy for all nodes.",
                "missing",
            )
            return
        found = self._retriever(identifier, inputs, (*location, "retriever_id"))
        if node.retriever_id is not None:
            node.retriever_id = found

    # --- parts -------------------------------------------------------------------------------------------

    def _add(self, location: Location, message: str, kind: str, status: int = 422) -> None:
        self.problems.append(Problem(location, message, kind, status))

    def _collection(self, identifier: str, location: Location) -> str:
        found, unknown = retriever_definition.collections_named(
            self._connection, self._place["namespace_id"], [identifier]
        )
        self.problems += [
            Problem(location, problem.message, problem.kind, problem.status) for problem in unknown
        ]
        return found[0] if found else identifier

    def _inputs(self, mappings: Sequence[TaxonomyInput], location: Location) -> list[str]:
        """Check how inputs are made of a document, and return the names of those that are."""
        for number, mapping in enumerate(mappings):
            here: Location = (*location, number)
            path = plain_path(mapping.path or "")
            if mapping.source_type is SourceType.LITERAL:
                if mapping.override is None:
                    self._add((*here, "override"), "A literal input needs `override`, its value.", "missing")
            elif mapping.source_type is SourceType.VECTOR:
                self._vector(path, (*here, "path"))
            elif not is_path(path) or path.split(".")[0] in HIDDEN_FIELDS:
                self._add(
                    (*here, "path"),
                    f"path {quote(mapping.path)} of input {quote(mapping.input_key)} is no field of a document: names "
                    "with dots between them are, for example metadata.title.",
                    "path",
                )
        return [mapping.input_key for mapping in mappings]

    def _vector(self, path: str, location: Location) -> None:
        if path in {vector["name"] for vector in self._place["vectors"]}:
            return
        try:
            vector_of(self._wh, self._place, path)
        except BadRequestError as error:
            self._add(location, error.message, "unknown_feature", 400)

    def _fields(self, fields: Sequence[EnrichmentField] | None, location: Location) -> None:
        for number, field in enumerate(fields or ()):
            for name, path in (("field_path", field.field_path), ("target_field", field.target_field)):
                if path is not None and (not is_path(path) or path.split(".")[0] in HIDDEN_FIELDS):
                    self._add(
                        (*location, number, name),
                        f"{name} {quote(path)} is no field: write names with dots between them.",
                        "path",
                    )
            target = (field.target_field or field.field_path).split(".")[0]
            if target in RESERVED_FIELDS:
                self._add(
                    (*location, number, "target_field"),
                    f"{quote(target)} is the document's own; name another target_field.",
                    "system_field",
                )

    def _retriever(self, identifier: str, inputs: Sequence[str] | None, location: Location) -> str:
        """Check that a retriever is there and can be given what it needs; return its id."""
        try:
            row = retriever_definition.find(self._connection, self._place["namespace_id"], identifier)
        except NotFoundError:
            self._add(
                location,
                f"Retriever {quote(identifier)} was not found in this namespace. POST /v1/retrievers/list lists them.",
                "not_found",
                400,
            )
            return identifier
        if any(stage["config"]["stage_id"] == STAGE for stage in row["definition"]["stages"]):
            self._add(
                location,
                f"Retriever {quote(identifier)} runs a taxonomy itself ({STAGE}); choose one that only searches.",
                "recursion",
            )
        if inputs is not None:
            self._needs(identifier, row["definition"]["input_schema"], inputs, location)
        return str(row["retriever_id"])

    def _needs(
        self, identifier: str, schema: Mapping[str, Any], inputs: Sequence[str], location: Location
    ) -> None:
        missing = [
            name
            for name, field in schema.items()
            if field.get("required") and field.get("default") is None and name not in inputs
        ]
        if missing:
            self._add(
                location,
                f"Retriever {quote(identifier)} requires the input(s) {', '.join(missing)}; input_mappings gives "
                f"{', '.join(inputs) or 'none'}. Add a mapping with that input_key.",
                "missing_input",
            )

    # --- trees -------------------------------------------------------------------------------------------

    def _tree(self, nodes: Sequence[HierarchicalNode], location: Location) -> None:
        if not nodes:
            self._add(
                location,
                "A hierarchical taxonomy needs hierarchical_nodes, or inference_strategy schema with "
                "inference_collections.",
                "missing",
            )
            return
        parents: dict[str, str | None] = {}
        for number, node in enumerate(nodes):
            if node.collection_id in parents:
                self._add(
                    (*location, number, "collection_id"),
                    f"Collection {node.collection_id} is a node twice; each is one node.",
                    "duplicate",
                )
            parents[node.collection_id] = node.parent_collection_id
        for number, node in enumerate(nodes):
            parent = node.parent_collection_id
            if parent is not None and parent not in parents:
                self._add(
                    (*location, number, "parent_collection_id"),
                    f"Parent {quote(parent)} is no node of this taxonomy; add it, or leave parent_collection_id out.",
                    "unknown_parent",
                )
            elif _is_round(node.collection_id, parents):
                self._add(
                    (*location, number, "parent_collection_id"),
                    f"Node {node.collection_id} is its own ancestor; a tree has a root.",
                    "cycle",
                )

    def _inferred(
        self, config: HierarchicalConfig, nodes: list[HierarchicalNode], location: Location
    ) -> list[HierarchicalNode]:
        """Return `nodes` and, before them, those that the strategy makes of collections that are no node yet."""
        lacking = {
            InferenceStrategy.CLUSTER: "it would need the results of a clustering of these collections",
            InferenceStrategy.LLM: "it would need a language model to name parents",
        }
        strategy = config.inference_strategy or InferenceStrategy.SCHEMA
        if strategy in lacking:
            self._add(
                (*location, "inference_strategy"),
                f"inference_strategy {strategy.value} is not available: {lacking[strategy]}. Use schema, or write "
                "hierarchical_nodes out with their parents.",
                "not_available",
                400,
            )
            return nodes
        if not config.inference_collections:
            self._add(
                (*location, "inference_collections"),
                "inference_strategy schema needs inference_collections, the collections to put in order.",
                "missing",
            )
            return nodes
        where: Location = (*location, "inference_collections")
        found = [
            self._collection(name, (*where, number))
            for number, name in enumerate(config.inference_collections)
        ]
        config.inference_collections = found
        if self.problems:
            return nodes
        rows = self._connection.execute(
            sa.select(
                collections.c.collection_id, collections.c.collection_name, collections.c.output_schema
            ).where(collections.c.collection_id.in_(found))
        ).all()
        labels = {row.collection_id: row.collection_name for row in rows}
        schemas = {row.collection_id: frozenset(row.output_schema["properties"]) for row in rows}
        explicit = {node.collection_id for node in nodes}
        parents = parents_by_schema({name: schemas[name] for name in found})
        return [
            HierarchicalNode(collection_id=name, parent_collection_id=parent, label=labels[name])
            for name, parent in parents.items()
            if name not in explicit
        ] + nodes


# --- applications --------------------------------------------------------------------------------------


def read_applications(
    connection: Connection, namespace_id: str, given: Sequence[Any]
) -> tuple[list[JsonObject], list[Problem]]:
    """Return a collection's `taxonomy_applications` as they are stored, and everything that is wrong with them."""
    stored: list[JsonObject] = []
    problems: list[Problem] = []
    for number, raw in enumerate(given):
        location: Location = ("body", "taxonomy_applications", number)
        try:
            application = TaxonomyApplication.model_validate(raw)
        except pydantic.ValidationError as error:
            problems += schema_problems(error, location)
            continue
        if application.target_collection_id is not None:
            why = ", documents are enriched where they are"
            problems.append(_not_available((*location, "target_collection_id"), "target_collection_id", why))
        if application.scroll_filters:
            try:
                parse(application.scroll_filters, location=(*location, "scroll_filters"))
            except ValidationError as error:
                problems += error.problems
        try:
            application.taxonomy_id = find(connection, namespace_id, application.taxonomy_id)["taxonomy_id"]
        except NotFoundError:
            problems.append(
                Problem(
                    (*location, "taxonomy_id"),
                    f"Taxonomy {quote(application.taxonomy_id)} was not found in this namespace. POST "
                    "/v1/taxonomies/list lists them.",
                    "not_found",
                    400,
                )
            )
        if any(known["taxonomy_id"] == application.taxonomy_id for known in stored):
            problems.append(
                Problem(
                    (*location, "taxonomy_id"),
                    f"Taxonomy {quote(application.taxonomy_id)} is applied twice; once is enough.",
                    "duplicate",
                )
            )
        stored.append(application.model_dump(mode="json"))
    return stored, problems


def _is_round(start: str, parents: Mapping[str, str | None]) -> bool:
    here, seen = parents.get(start), set()
    while here is not None and here not in seen:
        if here == start:
            return True
        seen.add(here)
        here = parents.get(here)
    return False


def parents_by_schema(schemas: Mapping[str, frozenset[str]]) -> dict[str, str | None]:
    """Return the parent of each collection: the one with the most fields whose fields it has all, and more.

    What is general has few fields; what is special has those and others. Ties go to the one named first.
    """
    parents: dict[str, str | None] = {}
    for name, fields in schemas.items():
        above = [other for other, theirs in schemas.items() if theirs and theirs < fields]
        parents[name] = max(above, key=lambda other: len(schemas[other])) if above else None
    return parents


def plain_path(path: str) -> str:
    """Return a path into a document without the prefixes that the API allows."""
    for prefix in ("$.", "payload.", "features.", "vectors."):
        path = path.removeprefix(prefix)
    return path
