"""What a taxonomy says of documents: each is compared with the nodes by the taxonomy's retrievers, many at once.

A node is assigned where the retriever's score reaches the confidence that was asked for. In a hierarchy each node is
a collection; the deepest ones that come near enough are assigned, and with each of them those above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera.context import Warehouse
from tessera.db.tables import collections
from tessera.enrichment import Assignment, Tier, Verdict, label_of
from tessera.errors import BadRequestError, NotFoundError, TesseraError, quote
from tessera.filters import values_at
from tessera.models.retrievers import BudgetLimits, InputField
from tessera.models.taxonomies import (
    EnrichmentField,
    EnrichmentStyle,
    FlatConfig,
    HierarchicalConfig,
    HierarchicalNode,
    SourceType,
    TaxonomyInput,
)
from tessera.ports import Hit
from tessera.retriever_batches import Run, run_all
from tessera.retriever_definition import find as find_retriever
from tessera.retriever_features import vector_of
from tessera.retriever_plan import Plan
from tessera.taxonomy_definition import plain_path

#: Documents that are compared in one go.
BATCH = 200


@dataclass(frozen=True, slots=True)
class _Node:
    """A collection to compare with: by which retriever, with which inputs, and what it gives."""

    collection_id: str
    parent: str | None
    label: str
    plan: Plan
    inputs: tuple[TaxonomyInput, ...]
    fields: tuple[EnrichmentField, ...] | None


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """One version of a taxonomy, ready to be compared with."""

    taxonomy_id: str
    version: int
    is_flat: bool
    nodes: tuple[_Node, ...]

    @property
    def needs_vectors(self) -> bool:
        """Say whether documents are compared by vectors of their own."""
        return any(
            mapping.source_type is SourceType.VECTOR or mapping.path == "document_id"
            for node in self.nodes
            for mapping in node.inputs
        )


def ready(connection: Connection, place: RowMapping, row: Mapping[Any, Any]) -> Taxonomy:
    """Return the taxonomy of `row`, ready to be compared with. Raises `BadRequestError` when a retriever is gone."""
    config = row["config"]
    nodes: list[_Node] = []
    if config["taxonomy_type"] == "flat":
        flat = FlatConfig.model_validate(config)
        source = flat.source_collection
        fields = None if source.enrichment_fields is None else tuple(source.enrichment_fields)
        plan = _plan(connection, place, row, flat.retriever_id, source.collection_id)
        nodes.append(_Node(source.collection_id, None, "", plan, tuple(flat.input_mappings), fields))
    else:
        deep = HierarchicalConfig.model_validate(config)
        nodes += [_node(connection, place, row, deep, node) for node in deep.hierarchical_nodes or ()]
    return Taxonomy(
        row["taxonomy_id"], row["config_version"], config["taxonomy_type"] == "flat", tuple(nodes)
    )


def _node(
    connection: Connection,
    place: RowMapping,
    row: Mapping[Any, Any],
    config: HierarchicalConfig,
    node: HierarchicalNode,
) -> _Node:
    retriever = node.retriever_id or config.retriever_id
    assert retriever is not None  # checked when it was written
    mappings = node.input_mappings if node.input_mappings is not None else config.input_mappings
    return _Node(
        node.collection_id,
        node.parent_collection_id,
        node.label or _collection_name(connection, node.collection_id),
        _plan(connection, place, row, retriever, node.collection_id),
        tuple(mappings or ()),
        tuple(node.enrichment_fields or ()),
    )


def _collection_name(connection: Connection, collection_id: str) -> str:
    name = connection.execute(
        sa.select(collections.c.collection_name).where(collections.c.collection_id == collection_id)
    ).scalar()
    return str(name or collection_id)


def _plan(
    connection: Connection, place: RowMapping, row: Mapping[Any, Any], retriever_id: str, collection_id: str
) -> Plan:
    """Return a retriever, ready to run over the one collection."""
    try:
        found = find_retriever(connection, place["namespace_id"], retriever_id)
    except NotFoundError:
        raise BadRequestError(
            f"Taxonomy {quote(row['taxonomy_name'])} compares by the retriever {retriever_id}, which was deleted. POST "
            f"/v1/taxonomies/{row['taxonomy_id']}/versions with another one.",
            details={"taxonomy_id": row["taxonomy_id"], "retriever_id": retriever_id},
        ) from None
    definition = found["definition"]
    return Plan(
        place,
        "",
        [collection_id],
        definition["stages"],
        {name: InputField.model_validate(value) for name, value in definition["input_schema"].items()},
        limits=BudgetLimits(),
    )


def compare(
    wh: Warehouse,
    taxonomy: Taxonomy,
    hits: Sequence[Hit],
    *,
    top_k: int,
    min_confidence: float,
    style: EnrichmentStyle = EnrichmentStyle.COMBINED,
    inputs: Sequence[Mapping[str, Any]] | None = None,
) -> list[Verdict | TesseraError]:
    """Return what the taxonomy says of each document, or why it cannot say anything of it.

    `inputs` are those of each document where they are not made by the mappings. A document that lacks what a mapping
    names belongs to no node. No node is compared with itself.
    """
    runs: list[Run] = []
    places: list[tuple[int, _Node]] = []
    for number, hit in enumerate(hits):
        for node in taxonomy.nodes:
            made = _inputs(wh, node, hit) if inputs is None else inputs[number]
            if made is not None:
                runs.append(Run(node.plan, made, hit))
                places.append((number, node))
    near: list[dict[str, list[Hit]]] = [{} for _ in hits]
    failed: dict[int, TesseraError] = {}
    for (number, node), outcome in zip(places, run_all(wh, runs), strict=True):
        if isinstance(outcome, TesseraError):
            failed[number] = outcome
            continue
        near[number][node.collection_id] = [
            hit
            for hit in outcome
            if hit.document_id != hits[number].document_id and _score(hit) >= min_confidence
        ]
    out: list[Verdict | TesseraError] = []
    for number, found in enumerate(near):
        chosen = _flat(taxonomy, found) if taxonomy.is_flat else _deepest(taxonomy, found)
        verdict = Verdict(
            taxonomy.taxonomy_id,
            taxonomy.version,
            tuple(chosen[:top_k]),
            None if taxonomy.is_flat else style,
        )
        out.append(failed.get(number, verdict))
    return out


def _inputs(wh: Warehouse, node: _Node, hit: Hit) -> dict[str, Any] | None:
    """Return a retriever's inputs for a document; None when it lacks one of them."""
    made: dict[str, Any] = {}
    for mapping in node.inputs:
        path = plain_path(mapping.path or "")
        value: Any = None
        if mapping.source_type is SourceType.LITERAL:
            value = mapping.override
        elif mapping.source_type is SourceType.VECTOR:
            name = path if path in hit.vectors else vector_of(wh, node.plan.place, path)[0].name
            vector = hit.vectors.get(name)
            value = None if vector is None else [float(number) for number in vector]
        else:
            values = values_at(hit.payload, path)
            value = values[0] if values else None
        if value is None:
            return None
        made[mapping.input_key] = value
    return made


def _flat(taxonomy: Taxonomy, found: Mapping[str, Sequence[Hit]]) -> list[Assignment]:
    (node,) = taxonomy.nodes
    out = []
    for hit in found.get(node.collection_id, ()):
        label = label_of(hit.payload, node.fields)
        tier = Tier(node.collection_id, label, hit.document_id, _score(hit), hit.payload, node.fields)
        out.append(Assignment(hit.document_id, label, _score(hit), (tier,)))
    return out


def _score(hit: Hit) -> float:
    """Return how near a node is: 1 where a retriever only chooses, by conditions, and scores nothing."""
    return 1.0 if hit.score is None else hit.score


def _deepest(taxonomy: Taxonomy, found: Mapping[str, Sequence[Hit]]) -> list[Assignment]:
    """Return the nodes that came near enough and have none below them that did, best first."""
    nodes = {node.collection_id: node for node in taxonomy.nodes}
    passed = {name for name in nodes if found.get(name)}
    above: set[str] = set()
    ways: dict[str, list[str]] = {}
    for name in passed:
        way = [name]
        while (parent := nodes[way[0]].parent) is not None:
            way.insert(0, parent)
        ways[name] = way
        above.update(way[:-1])
    out = []
    for name in sorted(passed - above):
        tiers = tuple(_tier(nodes[step], found.get(step)) for step in ways[name])
        out.append(Assignment(name, nodes[name].label, _score(found[name][0]), tiers))
    return sorted(out, key=lambda each: (-each.score, each.node_id))


def _tier(node: _Node, found: Sequence[Hit] | None) -> Tier:
    if not found:
        return Tier(node.collection_id, node.label, fields=node.fields)
    best = found[0]
    return Tier(node.collection_id, node.label, best.document_id, _score(best), best.payload, node.fields)
