"""Derivation: what was made of a document, in the collections that read its collection, goes with it.

A source in `sources` is named by an id of its kind: an object by its own, a document of another collection by
``document:<id>``, a document that was sent ready-made by ``ready:<id>``. Whatever the user calls a document, no
kind can be taken for another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import events
from tessera.db.tables import sources

_DOCUMENT = "document:"
_READY = "ready:"

#: Ids in one statement; SQLite bounds the number of parameters.
_SLICE = 1000


def own_source(document_id: str) -> str:
    """Return the source id of a document that was sent ready-made: it is a source of its own."""
    return f"{_READY}{document_id}"


def document_source(document_id: str) -> str:
    """Return the source id of a document in the collections that read its collection."""
    return f"{_DOCUMENT}{document_id}"


def document_of(source_id: str) -> str | None:
    """Return the document that a source id names as a source of other documents; None for every other source."""
    return source_id.removeprefix(_DOCUMENT) if source_id.startswith(_DOCUMENT) else None


def plain_id(source_id: str) -> str:
    """Return the id of what a source is, an object's or a document's."""
    return document_of(source_id) or source_id.removeprefix(_READY)


def source_of(document_id: str, payload: Mapping[str, Any]) -> str:
    """Return the source that a document was made from, as its payload tells."""
    parent = lineage_of(payload).get("source_document_id")
    if parent is not None:
        return document_source(str(parent))
    return str(payload.get("source_object_id") or own_source(document_id))


def lineage_of(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an extraction wrote down about where a document comes from; empty when nothing did."""
    internal = payload.get("_internal")
    found = internal.get("lineage") if isinstance(internal, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def forget(connection: Connection, namespace_id: str, document_ids: Iterable[str]) -> list[str]:
    """Take everything that was derived from these documents, in every tier, off the tables; return its ids.

    They are to be deleted by the entry that deletes `document_ids` themselves. A batch that was still to process
    one of them does not find it any more.
    """
    gone: list[str] = []
    level = list(dict.fromkeys(document_ids))
    seen = set(level)
    while level:
        below: list[str] = []
        for start in range(0, len(level), _SLICE):
            ids = list(map(document_source, level[start : start + _SLICE]))
            below += forget_sources(connection, namespace_id, ids)
        level = [document_id for document_id in dict.fromkeys(below) if document_id not in seen]
        seen.update(level)
        gone += level
    return gone


def forget_sources(connection: Connection, namespace_id: str, source_ids: Sequence[str]) -> list[str]:
    """Take sources off the tables, tell the webhooks of the collections they were in; return what was made of them.

    Their documents are to be deleted by an entry of the same transaction, and what was derived of those with `forget`.
    """
    mine = sa.and_(sources.c.namespace_id == namespace_id, sources.c.source_id.in_(source_ids))
    found = [
        (collection_id, document_id)
        for collection_id, known in connection.execute(
            sa.select(sources.c.collection_id, sources.c.document_ids).where(mine)
        ).all()
        for document_id in known
    ]
    connection.execute(sa.delete(sources).where(mine))
    for collection_id, count in Counter(collection_id for collection_id, _ in found).items():
        events.documents_written(connection, namespace_id, collection_id, deleted=count)
    return [document_id for _, document_id in found]
