"""Which rows a tier of a batch has, which of them are next, and how they are cut into chunks.

A tier's rows are planned from the documents of the tiers before it. Of the rows that are still to be done a window
is read at a time; what the source filters refuse or what has not changed ends here, the others become chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from tessera import derivation, filters, tiers
from tessera.context import Warehouse
from tessera.db.engine import insert_missing, now
from tessera.db.tables import batch_rows, namespaces, objects, sources
from tessera.enrichment import SHOWN
from tessera.extraction import ChunkJob, ChunkRow, configured
from tessera.ingest_attempt import Attempt, Stop, Watch, check_attempt
from tessera.ingest_commit import close_left_out, close_unchanged, end_rows
from tessera.models.batches import Tier
from tessera.plan import PROTECTED_FIELDS
from tessera.ports import HIDDEN_FIELDS
from tessera.registry import Registry
from tessera.source_content import (
    as_filtered,
    digest,
    input_hash,
    inputs_of,
    is_of_another_kind,
    lacking,
    passthrough_of,
)

#: A source to process: an object's row, or what `pending_documents` makes of a document, with what is known of its
#: own documents from before.
Row = Mapping[Any, Any]
#: A chunk closes at either bound, so that a kill costs little and progress is seen.
CHUNK_ROWS = 64
CHUNK_BYTES = 8 * 2**20
#: Rows that are planned and held in memory at once; a batch may be much larger.
WINDOW_ROWS = 1024
#: In one transaction the documents of so many sources at most become rows of the next tier, and about so many rows.
PLAN_SOURCES = 1000
PLAN_ROWS = 10_000


def plan_tier(wh: Warehouse, attempt: Attempt, tier: Tier, stop: Stop) -> None:
    """Make a row for each document that the batch has in the collections that feed the tier.

    Can be repeated: rows that exist stay as they are.
    """
    with wh.db.read() as connection:
        reads = tiers.fed_by_collections(connection, attempt.namespace_id, disabled_too=True)
    before = {c for earlier in attempt.tiers[: tier.tier_num] for c in earlier.collection_ids}
    for collection_id in tier.collection_ids:
        for feeding in reads.get(collection_id, ()):
            after = "" if feeding in before else None
            while after is not None and not stop.is_set():
                after = _plan_sources(wh, attempt, collection_id, feeding, after)


def _plan_sources(
    wh: Warehouse, attempt: Attempt, collection_id: str, feeding: str, after: str
) -> str | None:
    """Make rows of `collection_id` for the documents of some sources of `feeding`; return where to go on."""
    row_of_source = sa.and_(
        sources.c.collection_id == batch_rows.c.collection_id, sources.c.source_id == batch_rows.c.object_id
    )
    with wh.db.write() as connection:
        check_attempt(connection, attempt)
        page = connection.execute(
            sa.select(sources.c.source_id, sources.c.document_ids)
            .select_from(batch_rows.join(sources, row_of_source))
            .where(
                batch_rows.c.batch_id == attempt.batch_id,
                batch_rows.c.collection_id == feeding,
                batch_rows.c.status == "COMPLETED",
                batch_rows.c.object_id > after,
            )
            .order_by(batch_rows.c.object_id)
            .limit(PLAN_SOURCES)
        ).all()
        made: list[dict[str, Any]] = []
        last = None
        for source in page:
            ids = map(derivation.document_source, source.document_ids)
            made += [row_of(attempt.batch_id, attempt.namespace_id, collection_id, item) for item in ids]
            last = source.source_id
            if len(made) >= PLAN_ROWS:
                break
        insert_missing(connection, batch_rows, made)
    return last if len(made) >= PLAN_ROWS or len(page) == PLAN_SOURCES else None


def row_of(
    batch_id: str, namespace_id: str, collection_id: str, source_id: str, *, is_there: bool = True
) -> dict[str, Any]:
    """Return a row of a batch that is still to be done; one whose object is not there is not done at all."""
    return {
        "batch_id": batch_id,
        "collection_id": collection_id,
        "object_id": source_id,
        "namespace_id": namespace_id,
        "status": "PENDING" if is_there else "SKIPPED",
        "error_kind": None if is_there else "superseded",
        "error_message": None if is_there else "The object was deleted.",
        "attempts": 0,
        "documents": 0,
        "updated_at": now(),
    }


def is_full(rows: int, size_bytes: int, *, reads_elsewhere: bool) -> bool:
    """Say whether a chunk with so many rows closes; what one source leads to elsewhere may take as long as many."""
    return reads_elsewhere or rows >= CHUNK_ROWS or size_bytes >= CHUNK_BYTES


def cut_into_chunks(
    wh: Warehouse,
    attempt: Attempt,
    collection: RowMapping,
    pending: Sequence[Row],
    plan_hash: str,
) -> list[ChunkJob]:
    """Cut pending rows into chunks; rows whose source did not change, or is of another kind, are closed at once.

    Where an extractor reads elsewhere every row is a chunk of its own, and none is known not to have changed.
    """
    extractor = collection["feature_extractor"]
    implementation = wh.registry.extractor(extractor["feature_extractor_name"], extractor["version"])
    reads_elsewhere, accepted = implementation.reads_elsewhere, implementation.inputs
    mappings = extractor.get("input_mappings")
    chunks: list[ChunkJob] = []
    rows: list[ChunkRow] = []
    size = 0
    unchanged: dict[str, int] = {}
    others: dict[str, int] = {}

    def close() -> None:
        nonlocal rows, size
        if rows:
            # The first row names the chunk: it is in no other one of this attempt.
            name = f"{attempt.batch_id}-{attempt.number}-{collection['collection_id']}-{rows[0].object_id}"
            chunks.append(
                ChunkJob(
                    namespace_id=attempt.namespace_id,
                    collection_id=collection["collection_id"],
                    extractor_name=extractor["feature_extractor_name"],
                    extractor_version=extractor["version"],
                    params=params_of(extractor, attempt.locked),
                    running=attempt.running,
                    vectors=attempt.vectors,
                    rows=tuple(rows),
                    artifact_key=f"{attempt.namespace_id}/artifacts/{name}",
                    blobs_root=str(wh.settings.blobs_path),
                    models_dir=str(wh.settings.models_path),
                    extractors_dir=str(wh.settings.extractors_path),
                    offline=wh.settings.offline,
                    fetcher=wh.fetcher if reads_elsewhere else None,
                )
            )
        rows, size = [], 0

    for item in pending:
        row = _chunk_row(wh, attempt, collection, item)
        if is_of_another_kind(accepted, mappings, row.inputs, is_document="payload" in item):
            others[item["object_id"]] = item["version"]
            continue
        known = (item["input_hash"], item["plan_hash"])
        if known == (input_hash(row), plan_hash) and not reads_elsewhere:
            unchanged[item["object_id"]] = len(item["document_ids"])
            continue
        rows.append(row)
        size += item["size_bytes"]
        if is_full(len(rows), size, reads_elsewhere=reads_elsewhere):
            close()
    close()
    if others:
        lacks = " and ".join(lacking(mappings, {})) or f"an input ({', '.join(accepted)})"
        message = f"It has nothing that the collection takes: it lacks {lacks}."
        close_left_out(wh, attempt, collection["collection_id"], others, "missing_input", message)
    if unchanged:
        close_unchanged(wh, attempt, collection["collection_id"], unchanged)
    return chunks


def pending_objects(wh: Warehouse, attempt: Attempt, collection_id: str) -> Sequence[Row]:
    """Return the next objects to process, each with what is known of its documents from before."""
    with wh.db.read() as connection:
        return (
            connection.execute(
                sa.select(objects, sources.c.input_hash, sources.c.plan_hash, sources.c.document_ids)
                .select_from(
                    batch_rows.join(objects, objects.c.object_id == batch_rows.c.object_id).outerjoin(
                        sources,
                        sa.and_(
                            sources.c.collection_id == batch_rows.c.collection_id,
                            sources.c.source_id == batch_rows.c.object_id,
                        ),
                    )
                )
                .where(
                    batch_rows.c.batch_id == attempt.batch_id,
                    batch_rows.c.collection_id == collection_id,
                    batch_rows.c.status == "PENDING",
                    batch_rows.c.due_at.is_(None),
                )
                .order_by(objects.c.created_at, objects.c.object_id)
                .limit(WINDOW_ROWS)
            )
            .mappings()
            .all()
        )


def pending_documents(wh: Warehouse, attempt: Attempt, collection_id: str) -> Sequence[Row]:
    """Return the next documents to process, as they are at a position of the log that is noted in the watch.

    Rows of documents that are gone are closed.
    """
    mine = sa.and_(
        batch_rows.c.batch_id == attempt.batch_id,
        batch_rows.c.collection_id == collection_id,
        batch_rows.c.status == "PENDING",
        batch_rows.c.due_at.is_(None),
    )
    known = sa.and_(
        sources.c.collection_id == batch_rows.c.collection_id, sources.c.source_id == batch_rows.c.object_id
    )
    while True:
        with wh.db.read() as connection:
            this = namespaces.c.namespace_id == attempt.namespace_id
            head = connection.execute(sa.select(namespaces.c.head).where(this)).scalar()
            rows = connection.execute(
                sa.select(
                    batch_rows.c.object_id, sources.c.input_hash, sources.c.plan_hash, sources.c.document_ids
                )
                .select_from(batch_rows.outerjoin(sources, known))
                .where(mine)
                .order_by(batch_rows.c.object_id)
                .limit(WINDOW_ROWS)
            ).all()
        if not rows or head is None:
            return ()
        wh.views.apply(attempt.namespace_id, head)
        attempt.pace.watch = Watch(head)
        asked = {str(derivation.document_of(row.object_id)): row for row in rows}
        hits = wh.views.get(attempt.namespace_id, list(asked))
        found = {hit.document_id for hit in hits}
        gone = [row.object_id for document_id, row in asked.items() if document_id not in found]
        if gone:
            which = sa.and_(batch_rows.c.collection_id == collection_id, batch_rows.c.object_id.in_(gone))
            why = {"error_kind": "superseded", "error_message": "The document was deleted."}
            end_rows(wh, attempt, "extract", which, status="SKIPPED", **why)
        if hits:
            return [_document_row(hit.payload, asked[hit.document_id], head) for hit in hits]


def _document_row(payload: Mapping[str, Any], known: Any, position: int) -> Row:
    fields = {
        name: value
        for name, value in payload.items()
        if name not in HIDDEN_FIELDS and name not in PROTECTED_FIELDS and name != SHOWN
    }
    return {
        "object_id": known.object_id,
        "version": position,
        "fields": fields,
        "blobs": (),
        "bucket_id": payload.get("root_bucket_id"),
        "size_bytes": len(orjson.dumps(fields)),
        "input_hash": known.input_hash,
        "plan_hash": known.plan_hash,
        "document_ids": known.document_ids,
        "payload": payload,
    }


def let_through(
    wh: Warehouse, attempt: Attempt, collection: RowMapping, rows: Sequence[Row]
) -> Sequence[Row]:
    """Return the rows that the collection's source filters let through; the others end, and have no documents."""
    wanted = filters.parse((collection["source"].get("source_filters") or {}).get("filters"))
    if wanted is None or not rows:
        return rows
    test = filters.predicate(wanted)
    passed = [row for row in rows if test(as_filtered(row))]
    kept = {row["object_id"] for row in passed}
    refused = {row["object_id"]: row["version"] for row in rows if row["object_id"] not in kept}
    if refused:
        message = "The collection's source_filters leave it out."
        close_left_out(wh, attempt, collection["collection_id"], refused, "filtered", message)
    return passed


def params_of(extractor: Mapping[str, Any], locked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the collection's parameters; what the namespace locked wins, because it decides the vectors."""
    return {
        **(extractor.get("params") or {}),
        **(extractor.get("parameters") or {}),
        **locked.get(extractor["feature_extractor_name"], {}),
    }


def plan_hash_of(wh: Warehouse, attempt: Attempt, collection: RowMapping) -> str:
    """Return the digest of everything of a collection that decides what documents it makes of a source."""
    return plan_digest(wh.registry, collection["feature_extractor"], attempt.locked, attempt.running)


def plan_digest(
    registry: Registry,
    extractor: Mapping[str, Any],
    locked: Mapping[str, Mapping[str, Any]],
    running: Mapping[str, str],
) -> str:
    """Return the digest of an extractor with its parameters, as a collection has it, and of the models that run."""
    implementation, params = configured(
        registry,
        extractor["feature_extractor_name"],
        extractor["version"],
        params_of(extractor, locked),
        running,
    )
    outputs = implementation.outputs(params)
    code = registry.code_of(implementation.name)
    return digest(
        {
            "extractor": implementation.name,
            "params": params.model_dump(mode="json"),
            "models": [[vector.name, vector.model_id, vector.dimensions] for vector in outputs.vectors],
            # A file that was changed makes other documents of the same source.
            **({"code": code} if code is not None else {}),
        }
    )


def _chunk_row(wh: Warehouse, attempt: Attempt, collection: RowMapping, item: Row) -> ChunkRow:
    extractor = collection["feature_extractor"]
    fields: dict[str, Any] = item["fields"]
    implementation = wh.registry.extractor(extractor["feature_extractor_name"], extractor["version"])
    inputs = inputs_of(
        attempt.namespace_id, implementation.inputs, extractor.get("input_mappings"), fields, item["blobs"]
    )
    return ChunkRow(
        object_id=item["object_id"],
        object_version=item["version"],
        inputs=inputs,
        passthrough=passthrough_of(extractor, fields, item["blobs"]),
        lacks=lacking(extractor.get("input_mappings"), inputs),
        **_origin(attempt, item),
    )


def _origin(attempt: Attempt, item: Row) -> dict[str, Mapping[str, Any]]:
    """Return the system fields and the lineage of what is made of a source."""
    system: dict[str, Any] = {"namespace_id": attempt.namespace_id, "internal_id": attempt.internal_id}
    parent = item.get("payload")
    if parent is None:
        named = ("object_id", "root_object_id", "source_object_id")
        system |= dict.fromkeys(named, item["object_id"])
        system |= dict.fromkeys(("bucket_id", "root_bucket_id"), item["bucket_id"])
        return {"system": system, "lineage": {"source_type": "bucket", "path": item["bucket_id"]}}
    for name, root in (("object_id", "root_object_id"), ("bucket_id", "root_bucket_id")):
        if parent.get(root) is not None:
            system |= {name: parent[root], root: parent[root]}
    known = derivation.lineage_of(parent)
    # One that was made by an older release, or came ready-made, says nothing of the steps before it.
    step = {
        "collection_id": parent["collection_id"],
        "document_id": parent["document_id"],
        "timestamp": parent.get("created_at"),
    }
    path = [parent.get("root_bucket_id"), parent["collection_id"]]
    return {
        "system": system,
        "lineage": {
            "source_type": "collection",
            "source_document_id": parent["document_id"],
            "source_collection_id": parent["collection_id"],
            "path": known.get("path") or "/".join(part for part in path if part),
            "chain": known.get("chain") or [step],
        },
    }
