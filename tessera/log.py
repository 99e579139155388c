"""The log of a namespace: append inside the caller's transaction, read in order, fold to a state.

An entry's number is ``head + 1`` of the namespace's row, taken as the last statement before the
insert, so that entries commit in the order of their numbers on any database. Entries hold *final
values by document id*; applying one again changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import artifact
from tessera.db.engine import now
from tessera.db.tables import log_entries, namespaces
from tessera.errors import NotFoundError, Problem, ValidationError
from tessera.models import PayloadIndex
from tessera.ports import DenseVector, Document, Entry

#: Beyond either bound an edit travels as an artifact.
MAX_INLINE_DOCUMENTS = 100
MAX_INLINE_BYTES = 256 * 1024


def append_indexes(connection: Connection, namespace_id: str, indexes: Sequence[PayloadIndex]) -> int:
    """Append the complete index set that holds from now on; return the entry's number."""
    body = orjson.dumps([index.model_dump(mode="json") for index in indexes])
    return _append(connection, namespace_id, "indexes", body, None)


def append_edit(
    connection: Connection,
    namespace_id: str,
    *,
    upserts: Sequence[Document] = (),
    deletes: Sequence[str] = (),
) -> int:
    """Append a small edit that travels inside the log; return the entry's number.

    Raises `ValueError` beyond `MAX_INLINE_DOCUMENTS` or `MAX_INLINE_BYTES`: write an artifact then.
    """
    body = orjson.dumps(
        {
            "upserts": [
                {
                    "document_id": document.document_id,
                    "payload": document.payload,
                    "vectors": {name: vector.tolist() for name, vector in document.vectors.items()},
                }
                for document in upserts
            ],
            "deletes": list(deletes),
        }
    )
    if len(upserts) > MAX_INLINE_DOCUMENTS or (upserts and len(body) > MAX_INLINE_BYTES):
        raise ValueError("an edit of this size belongs into an artifact")
    return _append(connection, namespace_id, "edit", body, None)


def append_artifact(
    connection: Connection, namespace_id: str, artifact_key: str, *, deletes: Sequence[str] = ()
) -> int:
    """Append an artifact that already is in blob storage, with the ids that it replaces for good."""
    return _append(
        connection, namespace_id, "artifact", orjson.dumps({"deletes": list(deletes)}), artifact_key
    )


def _append(
    connection: Connection, namespace_id: str, kind: str, body: bytes, artifact_key: str | None
) -> int:
    head = connection.execute(
        sa.update(namespaces)
        .where(namespaces.c.namespace_id == namespace_id)
        .values(head=namespaces.c.head + 1)
        .returning(namespaces.c.head)
    ).scalar()
    if head is None:
        raise NotFoundError("namespace", namespace_id)
    connection.execute(
        log_entries.insert().values(
            namespace_id=namespace_id,
            seq=head,
            kind=kind,
            body=body,
            artifact_key=artifact_key,
            created_at=now(),
        )
    )
    return int(head)


def read(
    connection: Connection,
    namespace_id: str,
    *,
    after: int,
    limit: int,
    local_path: Callable[[str], Path],
) -> list[Entry]:
    """Return up to `limit` entries numbered above `after`, in order.

    `local_path` turns an artifact's key into a file that this machine can map.
    """
    rows = connection.execute(
        sa.select(log_entries)
        .where(log_entries.c.namespace_id == namespace_id, log_entries.c.seq > after)
        .order_by(log_entries.c.seq)
        .limit(limit)
    )
    return [_entry(row.seq, row.kind, row.body, row.artifact_key, local_path) for row in rows]


def last_indexes(connection: Connection, namespace_id: str, up_to: int) -> tuple[PayloadIndex, ...] | None:
    """Return the index set in force at entry `up_to`, None when none was ever logged."""
    body = connection.execute(
        sa.select(log_entries.c.body)
        .where(
            log_entries.c.namespace_id == namespace_id,
            log_entries.c.kind == "indexes",
            log_entries.c.seq <= up_to,
        )
        .order_by(log_entries.c.seq.desc())
        .limit(1)
    ).scalar()
    if body is None:
        return None
    return tuple(PayloadIndex.model_validate(item) for item in orjson.loads(body))


def _entry(
    seq: int, kind: str, body: bytes, artifact_key: str | None, local_path: Callable[[str], Path]
) -> Entry:
    value = orjson.loads(body)
    if kind == "indexes":
        return Entry(seq, "indexes", indexes=tuple(PayloadIndex.model_validate(item) for item in value))
    if kind == "artifact":
        assert artifact_key is not None
        return Entry(
            seq, "artifact", deletes=tuple(value["deletes"]), artifact_path=str(local_path(artifact_key))
        )
    return Entry(
        seq,
        "edit",
        upserts=tuple(
            Document(
                item["document_id"],
                item["payload"],
                {name: np.asarray(vector, dtype=np.float32) for name, vector in item["vectors"].items()},
            )
            for item in value["upserts"]
        ),
        deletes=tuple(value["deletes"]),
    )


@dataclass(slots=True)
class State:
    """What a log says: the documents that exist and the indexes in force."""

    documents: dict[str, Document] = field(default_factory=dict)
    indexes: tuple[PayloadIndex, ...] = ()
    seq: int = 0


def fold(entries: Iterable[Entry], state: State | None = None) -> State:
    """Fold `entries` into `state`. Pure but for reading artifacts; replay, compaction and tests share it.

    Within one entry deletes come first, so that an id which an artifact brings again survives.
    """
    state = state or State()
    for entry in entries:
        for document_id in entry.deletes:
            state.documents.pop(document_id, None)
        if entry.indexes is not None:
            state.indexes = entry.indexes
        for document in entry.upserts:
            state.documents[document.document_id] = document
        if entry.artifact_path is not None:
            for documents in artifact.read(entry.artifact_path):
                for document in documents:
                    state.documents[document.document_id] = document
        state.seq = entry.seq
    return state


def check_documents(documents: Sequence[Document], vectors: Mapping[str, DenseVector]) -> None:
    """Refuse documents that a view could not hold: unknown vectors, wrong dimensions, values not finite.

    Raises `ValidationError` that names the document and the vector. Called before anything is logged.
    """
    problems: list[Problem] = []
    for document in documents:
        for name, values in document.vectors.items():
            location = ("documents", document.document_id, "vectors", name)
            declared = vectors.get(name)
            if declared is None:
                known = ", ".join(sorted(vectors)) or "none"
                problems.append(
                    Problem(location, f"Vector {name!r} is not one of this namespace's: {known}.")
                )
            elif values.shape != (declared.dimensions,):
                problems.append(
                    Problem(
                        location,
                        f"Vector {name!r} has shape {list(values.shape)}; {declared.dimensions} numbers are needed.",
                    )
                )
            elif not math.isfinite(float(np.sum(values, dtype=np.float64))):
                problems.append(Problem(location, f"Vector {name!r} holds NaN or infinity."))
    if problems:
        raise ValidationError(problems)
