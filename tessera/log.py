"""The log of a namespace: append inside the caller's transaction, read in order, fold to a state.

An entry's number is ``head + 1`` of the namespace's row, taken as the last statement before the
insert, so that entries commit in the order of their numbers on any database. Entries hold *final
values by document id*; applying one again changes nothing.

A prefix of the log may have been folded into a **checkpoint** (`tessera.compaction`): entries of the usual
kinds numbered `checkpoint_first` to `checkpoint_seq`, the index set and then artifacts, which bring a new view
to where all entries up to `checkpoint_seq` brought the old one. Numbers behind it stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import artifact
from tessera.db.engine import Database, now
from tessera.db.tables import log_entries, namespaces
from tessera.errors import NotFoundError, Problem, ValidationError
from tessera.models import PayloadIndex
from tessera.ports import DenseVector, Document, Entry, Payload

#: Beyond either bound an edit travels as an artifact.
MAX_INLINE_DOCUMENTS = 100
MAX_INLINE_BYTES = 256 * 1024


class Folded(Exception):
    """What a reader would need next was folded into a checkpoint; it must begin again, with an empty view."""


def hold(connection: Connection, namespace_id: str) -> None:
    """Let nobody else append until this transaction ends: what it has read of the log and of sources stays so.

    To be called before any source is written, so that no two transactions wait for each other. SQLite has one writer
    anyway.
    """
    if connection.dialect.name != "sqlite":
        this = namespaces.c.namespace_id == namespace_id
        connection.execute(sa.select(namespaces.c.head).where(this).with_for_update())


def append_indexes(connection: Connection, namespace_id: str, indexes: Sequence[PayloadIndex]) -> int:
    """Append the complete index set that holds from now on; return the entry's number."""
    return _append(connection, namespace_id, "indexes", indexes_body(indexes), None)


def indexes_body(indexes: Sequence[PayloadIndex]) -> bytes:
    """Return the body of an entry that holds an index set."""
    return orjson.dumps([index.model_dump(mode="json") for index in indexes])


def append_edit(
    connection: Connection,
    namespace_id: str,
    *,
    upserts: Sequence[Document] = (),
    deletes: Sequence[str] = (),
    keeps_vectors: bool = False,
) -> int:
    """Append a small edit that travels inside the log; return the entry's number.

    With `keeps_vectors` it brings payloads only, final ones: see `tessera.ports.Entry`.

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
            **_flag(keeps_vectors),
        }
    )
    if len(upserts) > MAX_INLINE_DOCUMENTS or (upserts and len(body) > MAX_INLINE_BYTES):
        raise ValueError("an edit of this size belongs into an artifact")
    return _append(connection, namespace_id, "edit", body, None, len(upserts) + len(deletes))


def append_artifact(
    connection: Connection,
    namespace_id: str,
    artifact_key: str,
    *,
    deletes: Sequence[str] = (),
    documents: int = artifact.MAX_DOCUMENTS,
    keeps_vectors: bool = False,
) -> int:
    """Append an artifact that already is in blob storage, with the ids that it replaces for good.

    `documents` is how many it holds, as far as that is known: it decides when the log is folded. With
    `keeps_vectors` it brings payloads only.
    """
    body = orjson.dumps({"deletes": list(deletes), **_flag(keeps_vectors)})
    return _append(connection, namespace_id, "artifact", body, artifact_key, documents + len(deletes))


def _flag(keeps_vectors: bool) -> dict[str, bool]:
    return {"keeps_vectors": True} if keeps_vectors else {}


def _append(
    connection: Connection,
    namespace_id: str,
    kind: str,
    body: bytes,
    artifact_key: str | None,
    changes: int = 0,
) -> int:
    head = connection.execute(
        sa.update(namespaces)
        .where(namespaces.c.namespace_id == namespace_id)
        .values(head=namespaces.c.head + 1, logged_changes=namespaces.c.logged_changes + changes)
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
    """Return up to `limit` entries numbered above `after`, in order; from the start, all of a checkpoint.

    A checkpoint comes as a whole, however long: between its entries nobody can stop and go on.
    `local_path` turns an artifact's key into a file that this machine can map.

    Raises `Folded` when `after` lies within what a checkpoint has replaced: documents that were deleted
    between there and the checkpoint are not named any more.
    """
    mine = namespaces.c.namespace_id == namespace_id
    query = sa.select(
        log_entries, sa.select(namespaces.c.checkpoint_seq).where(mine).scalar_subquery().label("checkpoint")
    ).where(log_entries.c.namespace_id == namespace_id)
    if after == 0:
        place = connection.execute(
            sa.select(namespaces.c.checkpoint_first, namespaces.c.checkpoint_seq).where(mine)
        ).one_or_none()
        first, last = place if place is not None else (0, 0)
        query = query.where(log_entries.c.seq >= first).limit(max(limit, last - first + 1))
    else:
        query = query.where(log_entries.c.seq > after).limit(limit)
    rows = connection.execute(query.order_by(log_entries.c.seq)).all()
    if rows and 0 < after < rows[0].checkpoint:
        raise Folded(f"entry {after} lies before the checkpoint at {rows[0].checkpoint}")
    return [entry_of(row, local_path) for row in rows]


def artifact_at(
    connection: Connection, namespace_id: str, seq: int, *, local_path: Callable[[str], Path]
) -> Entry | None:
    """Return entry `seq` if it is an artifact that a view which has the entry before can go on with."""
    row = connection.execute(
        sa.select(log_entries)
        .join(namespaces, namespaces.c.namespace_id == log_entries.c.namespace_id)
        .where(
            log_entries.c.namespace_id == namespace_id,
            log_entries.c.seq == seq,
            log_entries.c.artifact_key.is_not(None),
            # Those of a checkpoint go on from the start of it, under the numbers of others.
            namespaces.c.checkpoint_seq < seq,
        )
    ).one_or_none()
    return None if row is None else entry_of(row, local_path)


def changed_since(
    connection: Connection,
    namespace_id: str,
    *,
    after: int,
    local_path: Callable[[str], Path],
    but_for: str,
) -> tuple[set[str], int]:
    """Return the documents that entries above `after` write or delete, and the number of the last of them.

    Artifacts whose key begins with `but_for` are not looked into. Raises `Folded` when there is no telling:
    entries above `after` were folded into a checkpoint.
    """
    checkpoint = connection.execute(
        sa.select(namespaces.c.checkpoint_seq).where(namespaces.c.namespace_id == namespace_id)
    ).scalar()
    if checkpoint is not None and checkpoint > after:
        raise Folded(f"entry {after} lies before the checkpoint at {checkpoint}")
    changed: set[str] = set()
    last = after
    mine = sa.and_(log_entries.c.namespace_id == namespace_id, log_entries.c.seq > after)
    for row in connection.execute(sa.select(log_entries).where(mine).order_by(log_entries.c.seq)).all():
        last = row.seq
        if row.kind == "indexes":
            continue
        value = orjson.loads(row.body)
        changed.update(value["deletes"])
        changed.update(item["document_id"] for item in value.get("upserts", ()))
        if row.artifact_key is not None and not row.artifact_key.startswith(but_for):
            changed |= artifact.document_ids(local_path(row.artifact_key))
    return changed, last


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


def touched(
    connection: Connection,
    namespace_id: str,
    document_ids: Set[str],
    *,
    after: int,
    before: int,
    local_path: Callable[[str], Path],
) -> bool:
    """Say whether an entry numbered above `after` and below `before` decides about one of the documents.

    Raises `Folded` when some of those entries are not there any more.
    """
    rows = connection.execute(
        sa.select(log_entries)
        .where(
            log_entries.c.namespace_id == namespace_id,
            log_entries.c.seq > after,
            log_entries.c.seq < before,
        )
        .order_by(log_entries.c.seq)
    ).all()
    if len(rows) != max(0, before - after - 1):
        raise Folded(f"entries between {after} and {before} were folded")
    for row in rows:
        if row.kind == "indexes":
            continue
        value = orjson.loads(row.body)
        if not document_ids.isdisjoint(value["deletes"]):
            return True
        if row.kind == "artifact":
            if not document_ids.isdisjoint(artifact.document_ids(local_path(row.artifact_key))):
                return True
        elif any(item["document_id"] in document_ids for item in value["upserts"]):
            return True
    return False


def newest_first(
    db: Database,
    namespace_id: str,
    *,
    last: int,
    page: int,
    local_path: Callable[[str], Path],
    pause: Callable[[], None] = lambda: None,
) -> Iterator[Entry]:
    """Yield the entries up to number `last`, the newest first, down to the start or the checkpoint.

    Each `page` of them is read in a transaction of its own; `pause` is called between two.
    """
    first = sa.select(namespaces.c.checkpoint_first).where(namespaces.c.namespace_id == namespace_id)
    below = last + 1
    while True:
        with db.read() as connection:
            rows = connection.execute(
                sa.select(log_entries)
                .where(
                    log_entries.c.namespace_id == namespace_id,
                    log_entries.c.seq < below,
                    log_entries.c.seq >= first.scalar_subquery(),
                )
                .order_by(log_entries.c.seq.desc())
                .limit(page)
            ).all()
        for row in rows:
            yield entry_of(row, local_path)
        if len(rows) < page:
            return
        below = rows[-1].seq
        pause()


def entry_of(row: Any, local_path: Callable[[str], Path]) -> Entry:
    """Return the entry that a row of `log_entries` holds."""
    value = orjson.loads(row.body)
    if row.kind == "indexes":
        return Entry(row.seq, "indexes", indexes=tuple(PayloadIndex.model_validate(item) for item in value))
    if row.kind == "artifact":
        return Entry(
            row.seq,
            "artifact",
            deletes=tuple(value["deletes"]),
            artifact_path=str(local_path(row.artifact_key)),
            keeps_vectors=value.get("keeps_vectors", False),
        )
    return Entry(
        row.seq,
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
        keeps_vectors=value.get("keeps_vectors", False),
    )


@dataclass(slots=True)
class State:
    """What a log says: the documents that exist and the indexes in force."""

    documents: dict[str, Document] = field(default_factory=dict)
    indexes: tuple[PayloadIndex, ...] = ()
    seq: int = 0


def fold(entries: Iterable[Entry], state: State | None = None) -> State:
    """Fold `entries`, in order, into a new state that begins with `state`.

    Pure but for reading artifacts. What survives is decided by `survivors`, as in compaction.
    """
    before = state or State()
    ordered = list(entries)
    decided: set[str] = set()
    alone = _Alone()
    newest = {document.document_id: document for document in survivors(reversed(ordered), decided, alone)}
    kept = {
        document_id: alone.put_on(document)
        for document_id, document in before.documents.items()
        if document_id not in decided
    }
    indexes = (entry.indexes for entry in reversed(ordered) if entry.indexes is not None)
    return State(
        {**kept, **dict(reversed(newest.items()))},
        next(indexes, before.indexes),
        ordered[-1].seq if ordered else before.seq,
    )


class _Alone:
    """Payloads that came without vectors, until the entry is met that has these: where each one lies."""

    def __init__(self) -> None:
        self._places: dict[str, Payload | tuple[str, int]] = {}
        self._artifacts = artifact.Payloads()

    def note(self, document: Document, path: str | None, number: int) -> None:
        """Remember the payload of `document`, unless a newer one is known; those of artifacts stay there."""
        if document.document_id not in self._places:
            self._places[document.document_id] = document.payload if path is None else (path, number)

    def forget(self, document_id: str) -> None:
        self._places.pop(document_id, None)

    def put_on(self, document: Document) -> Document:
        """Return `document` with the payload that came after it, if one did."""
        place = self._places.pop(document.document_id, None)
        if place is None:
            return document
        return replace(document, payload=self._artifacts.at(*place) if isinstance(place, tuple) else place)


def survivors(
    newest_first: Iterable[Entry], decided: set[str], alone: _Alone | None = None
) -> Iterator[Document]:
    """Yield each document that exists after the entries, once, with its final value; the newest first.

    `newest_first` are entries from the last to the first; the ids that they decide about are added to
    `decided`. Memory holds those ids, one artifact, and small edits that brought payloads alone, however long the
    log is. `alone` holds in the end what came alone for documents that these entries do not bring. Within one entry
    deletes come first, so that an id which an artifact brings again survives.
    """
    waiting = _Alone() if alone is None else alone
    for entry in newest_first:
        for path, number, document in _backwards(entry):
            if document.document_id in decided:
                continue
            if entry.keeps_vectors:
                waiting.note(document, path, number)
            else:
                decided.add(document.document_id)
                yield waiting.put_on(document)
        for document_id in entry.deletes:
            decided.add(document_id)
            waiting.forget(document_id)


def _backwards(entry: Entry) -> Iterator[tuple[str | None, int, Document]]:
    """Yield the documents of an entry, the last first, each with its artifact and its number in there."""
    if entry.artifact_path is not None:
        documents = [document for part in artifact.read(entry.artifact_path) for document in part]
        for number in range(len(documents) - 1, -1, -1):
            yield entry.artifact_path, number, documents[number]
    for number in range(len(entry.upserts) - 1, -1, -1):
        yield None, number, entry.upserts[number]


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
