"""Lineage: the steps from an object to a document, and everything that was made of an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import collections, derivation, document_lists, documents, namespaces
from tessera.context import Principal, Warehouse
from tessera.db.tables import collections as collection_rows
from tessera.db.tables import objects as object_rows
from tessera.errors import NotFoundError
from tessera.filters import And, Condition, Filter
from tessera.models.base import PaginationResponse
from tessera.models.lineage import (
    CollectionCount,
    DecompositionNode,
    DecompositionTree,
    DocumentLineage,
    DocumentLineageResponse,
    LineageStep,
    ObjectDocumentsResponse,
)
from tessera.pagination import PageRequest, encode_cursor, paginate
from tessera.ports import Page


def of_document(
    wh: Warehouse, principal: Principal, namespace: str, collection: str, document_id: str
) -> DocumentLineageResponse:
    """Return every step from the root object to a document, or why it has none."""
    with wh.db.read() as connection:
        namespace_id, _ = documents.find_place(connection, principal, namespace, collection)
        row = collections.find(connection, namespace_id, collection)
    hit = documents.find(wh, namespace_id, row["collection_id"], document_id, with_vectors=False)
    payload = hit.payload
    known = derivation.lineage_of(payload)
    if not known and payload.get("root_object_id") is None and payload.get("source_object_id") is None:
        return DocumentLineageResponse(
            document_id=document_id,
            collection_id=row["collection_id"],
            message="The document was sent ready-made, without root_object_id and source_object_id: it comes from "
            "nothing in this namespace.",
        )
    chain = [LineageStep.model_validate(step) for step in known.get("chain") or ()]
    if not chain:
        chain = [
            LineageStep(
                collection_id=row["collection_id"],
                feature_extractor_id=_extractor_id(row),
                document_id=document_id,
                timestamp=payload.get("created_at"),
            )
        ]
    return DocumentLineageResponse(
        document_id=document_id,
        collection_id=row["collection_id"],
        lineage=DocumentLineage.model_validate({**documents.lineage(payload), "lineage_chain": chain}),
        depth=len(chain),
        total_steps=len(chain),
    )


def documents_of(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    object_id: str,
    page: PageRequest,
    collection_ids: Sequence[str] | None,
) -> ObjectDocumentsResponse:
    """Return the documents that were made of an object, in all collections or in the named ones."""
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        chosen = [
            collections.find(connection, namespace_id, each)["collection_id"] for each in collection_ids or ()
        ]
    of_object = _of_object(object_id)
    wanted: Filter = of_object
    if chosen:
        wanted = And((of_object, Condition("collection_id", "in", chosen, True)))
    after = page.position.get("a") if page.position is not None else None
    found = wh.views.page(
        namespace_id,
        Page(limit=page.limit, filter=wanted, offset=0 if after is not None else page.offset, after=after),
    )
    total = wh.views.count(namespace_id, wanted)
    if not total:
        _object_row(wh, namespace_id, object_id)
    pagination = paginate(wh, page, total, len(found.hits))
    pagination["next_cursor"] = (
        encode_cursor(wh, {"o": page.offset + len(found.hits), "a": found.next_after, "d": page.digest})
        if found.next_after is not None
        else None
    )
    return ObjectDocumentsResponse(
        object_id=object_id,
        documents=[documents.present(wh, namespace_id, hit.payload) for hit in found.hits],
        total=total,
        collections=_counts(wh, namespace_id, of_object, chosen),
        pagination=PaginationResponse.model_validate(pagination),
    )


def decomposition_tree(
    wh: Warehouse, principal: Principal, namespace: str, object_id: str, *, include_document_ids: bool
) -> DecompositionTree:
    """Return what was made of an object: collection under collection, as its documents were made of each other."""
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
    root = _Node()
    bucket_id = None
    total = 0
    wanted = _of_object(object_id)
    for hit in document_lists.scan(
        wh, namespace_id, wanted, ("_internal", "root_bucket_id"), "This decomposition tree"
    ):
        total += 1
        bucket_id = bucket_id or hit.payload.get("root_bucket_id")
        node = root
        for collection_id in _collection_path(hit.payload):
            node = node.children.setdefault(collection_id, _Node())
        node.document_ids.append(hit.document_id)
    row = None if total else _object_row(wh, namespace_id, object_id)
    named = _collections(wh, namespace_id)
    children = _nodes(root, named, 0, include_document_ids=include_document_ids)
    return DecompositionTree(
        object_id=object_id,
        bucket_id=row["bucket_id"] if row is not None else bucket_id,
        children=children,
        total_documents=total,
        total_collections=len(_within(root)),
        depth=_depth(root),
    )


# --- inside --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A collection in a tree: its documents at this place, and the collections that read them."""

    document_ids: list[str] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)


def _collection_path(payload: Mapping[str, Any]) -> list[str]:
    """Return the collections from the object's own down to the document's."""
    steps = [str(step["collection_id"]) for step in derivation.lineage_of(payload).get("chain") or ()]
    return steps or [str(payload["collection_id"])]


def _of_object(object_id: str) -> Condition:
    return Condition("root_object_id", "eq", object_id, True)


def _object_row(wh: Warehouse, namespace_id: str, object_id: str) -> Mapping[Any, Any]:
    with wh.db.read() as connection:
        row = (
            connection.execute(
                sa.select(object_rows).where(
                    object_rows.c.namespace_id == namespace_id, object_rows.c.object_id == object_id
                )
            )
            .mappings()
            .one_or_none()
        )
    if row is None:
        raise NotFoundError("object", object_id)
    return row


def _collections(wh: Warehouse, namespace_id: str) -> dict[str, Mapping[Any, Any]]:
    with wh.db.read() as connection:
        return {row["collection_id"]: row for row in _collection_rows(connection, namespace_id)}


def _collection_rows(connection: Connection, namespace_id: str) -> Sequence[Mapping[Any, Any]]:
    query = sa.select(collection_rows).where(collection_rows.c.namespace_id == namespace_id)
    return connection.execute(query.order_by(collection_rows.c.created_at)).mappings().all()


def _counts(
    wh: Warehouse, namespace_id: str, of_object: Filter, chosen: Sequence[str]
) -> list[CollectionCount]:
    """Count an object's documents collection by collection; those without any are left out."""
    counts = []
    for collection_id, row in _collections(wh, namespace_id).items():
        if chosen and collection_id not in chosen:
            continue
        mine = Condition("collection_id", "eq", collection_id, True)
        count = wh.views.count(namespace_id, And((of_object, mine)))
        if count:
            counts.append(
                CollectionCount(
                    collection_id=collection_id,
                    collection_name=row["collection_name"],
                    document_count=count,
                )
            )
    return counts


def _nodes(
    node: _Node, named: Mapping[str, Mapping[Any, Any]], tier: int, *, include_document_ids: bool
) -> list[DecompositionNode]:
    made = []
    for collection_id, child in sorted(node.children.items()):
        row: Mapping[Any, Any] = named.get(collection_id, {})
        made.append(
            DecompositionNode(
                collection_id=collection_id,
                collection_name=row.get("collection_name"),
                feature_extractor_id=_extractor_id(row) if row else None,
                tier=tier,
                document_count=len(child.document_ids),
                document_ids=sorted(child.document_ids) if include_document_ids else None,
                children=_nodes(child, named, tier + 1, include_document_ids=include_document_ids),
            )
        )
    return made


def _extractor_id(collection: Mapping[Any, Any]) -> str:
    extractor = collection["feature_extractor"]
    return f"{extractor['feature_extractor_name']}_{extractor['version']}"


def _within(node: _Node) -> set[str]:
    return set(node.children).union(*map(_within, node.children.values()))


def _depth(node: _Node) -> int:
    return max((1 + _depth(child) for child in node.children.values()), default=0)
