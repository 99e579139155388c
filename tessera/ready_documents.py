"""Ready-made documents: vectors and fields that the user brings, past every extractor.

They go through the log like all others, so they are durable and findable when the call returns. Each is a
source of its own in its collection: counted, listed and deleted with it, and no extraction ever removes it.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    collections,
    derivation,
    documents,
    enrichment_requests,
    events,
    idempotency,
    limits,
    log,
    names,
    namespaces,
)
from tessera.context import Principal, Warehouse
from tessera.db.engine import insert_for_each, is_among, now
from tessera.db.tables import sources
from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    Problem,
    StorageUnavailableError,
    quote,
    raise_problems,
)
from tessera.extraction import write_documents
from tessera.models.base import JsonObject
from tessera.models.documents import (
    CreateDocumentRequest,
    UpsertDocument,
    UpsertDocumentsRequest,
    UpsertDocumentsResponse,
)
from tessera.plan import RESERVED_FIELDS
from tessera.ports import DenseVector, Document, SparseText, Vector

#: Longest id that a user may choose, in characters.
MAX_ID_CHARS = 255
#: Vectors that are turned into arrays by one call.
_CONVERTED_AT_ONCE = 100
#: A number of a vector takes at most so many bytes in an inline entry (``-1.1754943508222875e-38,``).
_INLINE_BYTES_PER_NUMBER = 24

#: Words that routes below ``…/documents/`` take.
_RESERVED_IDS = frozenset({"list", "batch", "bulk", "aggregate", "search", "upsert"})
#: Ids of which nothing can be wrong but that they are a word of the API's paths: nearly all.
_PLAIN_ID = re.compile(rf"(?!ns_)[A-Za-z0-9_-]{{1,{MAX_ID_CHARS}}}", re.ASCII)
#: The form of ids that the system gives.
_GIVEN_ID = re.compile(r"doc_[0-9a-f]{32}")
#: Fields by which a document says where it comes from; the only system fields that a user may write.
_LINEAGE = ("root_object_id", "root_bucket_id", "source_object_id")

Location = tuple[str | int, ...]


@dataclass(slots=True)
class _Sent:
    """A document as it was sent. `named` tells that its sender chose the id."""

    document_id: str
    named: bool
    fields: JsonObject
    lineage: JsonObject
    vectors: Mapping[str, Any]
    location: Location
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where documents go: the namespace's row, the collection's, and the vectors that a document may have."""

    namespace: RowMapping
    collection: RowMapping
    vectors: Mapping[str, DenseVector]
    #: Every spelling of a vector: its name, its feature URI, the last part of that.
    spellings: Mapping[str, str]


# --- what the API offers -------------------------------------------------------------------------------


def create(
    wh: Warehouse, principal: Principal, namespace: str, collection: str, request: CreateDocumentRequest
) -> tuple[JsonObject, list[str]]:
    """Store one document and return it with the names of fields that were not kept.

    Durable and findable when it returns. With a `document_id` of the sender's it can be repeated: a document of
    that id is replaced as a whole; without one, each call makes another.
    """
    fields = dict(request.model_extra or {})
    vectors: dict[str, Any] = dict(request.vectors or {})
    for feature in request.features or ():
        fields |= feature.payload or {}
        vectors |= feature.vectors or {}
    if request.metadata is not None:
        fields["metadata"] = request.metadata
    sent = _Sent(
        request.document_id if request.document_id is not None else f"doc_{secrets.token_hex(16)}",
        request.document_id is not None,
        fields,
        {name: getattr(request, name) for name in _LINEAGE},
        vectors,
        ("body",),
    )
    place = _find_place(wh, principal, namespace, collection)
    if request.collection_id not in (
        None,
        collection,
        place.collection["collection_id"],
        place.collection["collection_name"],
    ):
        raise BadRequestError(
            f"The path names collection {quote(collection)}, the body {quote(request.collection_id)}. Leave "
            "collection_id out of the body, or send the same one."
        )
    (document,) = _store(wh, principal, place, [sent], None)
    return documents.present(wh, place.namespace["namespace_id"], document.payload), sent.dropped


def upsert(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    request: UpsertDocumentsRequest,
    checked: Callable[[], object] = lambda: None,
) -> UpsertDocumentsResponse:
    """Store up to 1,000 documents under the ids that their sender chose, all of them or none.

    Durable and findable when it returns. Can be repeated: a document whose id exists in the collection is
    replaced as a whole. `checked` is called when what follows is mostly waiting.
    """
    if request.collection_id is None:
        raise BadRequestError(
            "collection_id is required: name the collection, by id or name, that the documents belong to. There is no "
            "default collection.",
            details={"field": "collection_id"},
        )
    place = _find_place(wh, principal, namespace, request.collection_id)
    sent = [_sent(document, number) for number, document in enumerate(request.documents)]
    _check_ids(sent)
    has_words = _finds_words(place)
    key = request.options.idempotency_key if request.options else None
    once = idempotency.once(
        principal,
        f"POST /v1/namespaces/{place.namespace['namespace_id']}/documents/upsert",
        key,
        _plain(request) if key else None,
    )
    stored = _store(wh, principal, place, sent, once, checked)
    return UpsertDocumentsResponse(
        inserted=len(stored),
        document_ids=[document.document_id for document in stored],
        dropped_payload_fields={item.document_id: item.dropped for item in sent if item.dropped},
        unsearchable_document_ids=[
            document.document_id
            for document in stored
            if not (document.vectors or has_words(document.payload))
        ],
    )


def _plain(request: UpsertDocumentsRequest) -> JsonObject:
    """Return what the request means as plain JSON values."""
    plain = request.model_dump(exclude={"options"})
    for document in plain["documents"]:
        for name, vector in document["vectors"].items():
            if isinstance(vector, np.ndarray):
                document["vectors"][name] = vector.tolist()
    return plain


# --- what was sent -------------------------------------------------------------------------------------


def _sent(document: UpsertDocument, number: int) -> _Sent:
    fields = dict(document.payload or {})
    if document.metadata is not None:
        fields["metadata"] = document.metadata
    lineage = {name: getattr(document, name) for name in _LINEAGE}
    return _Sent(document.document_id, True, fields, lineage, document.vectors, ("body", "documents", number))


def _check_ids(sent: Sequence[_Sent]) -> None:
    """Refuse one id twice: which of the two should win?"""
    seen: dict[str, int] = {}
    problems = []
    for number, item in enumerate(sent):
        first = seen.setdefault(item.document_id, number)
        if first != number:
            problems.append(
                Problem(
                    (*item.location, "document_id"),
                    f"document_id {quote(item.document_id)} is that of documents[{first}] too; send each id once.",
                    "duplicate",
                )
            )
    raise_problems(problems)


def _find_place(wh: Warehouse, principal: Principal, namespace: str, collection: str) -> _Place:
    with wh.db.read() as connection:
        row = namespaces.resolve(connection, principal, namespace)
        found = collections.find(connection, row["namespace_id"], collection)
    declared = {vector["name"]: DenseVector(**vector) for vector in row["vectors"]}
    vectors: dict[str, DenseVector] = {}
    spellings: dict[str, str] = {}
    for index in collections.vector_indexes(wh.registry, row, found["feature_extractor"]):
        if index.name in declared:
            vectors[index.name] = declared[index.name]
            for spelling in (index.feature_uri.rpartition("/")[2], index.feature_uri, index.name):
                spellings[spelling] = index.name
    return _Place(row, found, vectors, spellings)


def _finds_words(place: _Place) -> Callable[[Mapping[str, Any]], bool]:
    """Return the test whether the namespace's keyword index has anything to find a payload by."""
    names = [name for index in SparseText.all_of(place.namespace["sparse_vectors"]) for name in index.fields]
    return lambda payload: any(isinstance(payload.get(name), str | list) and payload[name] for name in names)


def _made(place: _Place, sent: Sequence[_Sent], internal_id: str) -> list[Document]:
    """Return the documents to log. Raises with everything that is wrong with any of them."""
    problems: list[Problem] = []
    for item in sent:
        problems += _id_problems(item)
    vectors = _vectors(place, sent, problems)
    raise_problems(problems)
    at = now()
    system = {
        "collection_id": place.collection["collection_id"],
        "namespace_id": place.namespace["namespace_id"],
        "internal_id": internal_id,
        "created_at": at,
        "updated_at": at,
    }
    made = []
    for item, named in zip(sent, vectors, strict=True):
        if not RESERVED_FIELDS.isdisjoint(item.fields):
            item.dropped = sorted(RESERVED_FIELDS & item.fields.keys())
            item.fields = {name: value for name, value in item.fields.items() if name not in RESERVED_FIELDS}
        lineage = {name: value for name, value in item.lineage.items() if value is not None}
        payload = {**item.fields, **lineage, **system, "document_id": item.document_id}
        made.append(Document(item.document_id, payload, named))
    return made


def _id_problems(item: _Sent) -> list[Problem]:
    if _PLAIN_ID.fullmatch(item.document_id) and item.document_id.lower() not in _RESERVED_IDS:
        return []
    location = (*item.location, "document_id")
    if not 1 <= len(item.document_id) <= MAX_ID_CHARS:
        return [
            Problem(
                location,
                f"document_id has {len(item.document_id)} characters; 1 to {MAX_ID_CHARS} are allowed.",
                "length",
            )
        ]
    return names.check(item.document_id, location, id_prefix="ns", reserved=_RESERVED_IDS)


def _vectors(place: _Place, sent: Sequence[_Sent], problems: list[Problem]) -> list[dict[str, Vector]]:
    """Return each document's vectors by their full names; all of one name are converted together."""
    found: list[dict[str, Vector]] = [{} for _ in sent]
    groups: dict[str, list[tuple[int, str]]] = {}
    for number, item in enumerate(sent):
        taken: set[str] = set()
        for spelling in item.vectors:
            name = place.spellings.get(spelling)
            if name is None or name in taken:
                problems.append(_spelling_problem(place, (*item.location, "vectors", spelling), name))
            else:
                taken.add(name)
                groups.setdefault(name, []).append((number, spelling))
    for name, members in groups.items():
        size = place.vectors[name].dimensions
        # A few at a time: one call for a thousand holds every other thread up for several milliseconds.
        for start in range(0, len(members), _CONVERTED_AT_ONCE):
            some = members[start : start + _CONVERTED_AT_ONCE]
            values = [sent[number].vectors[spelling] for number, spelling in some]
            rows = _rows(values, size)
            for position, (number, spelling) in enumerate(some):
                if rows is not None:
                    found[number][name] = rows[position]
                    continue
                location = (*sent[number].location, "vectors", spelling)
                row = _one(values[position], location, size, problems)
                if row is not None:
                    found[number][name] = row
    return found


def _rows(values: Sequence[Any], size: int) -> Vector | None:
    """Return ``float32[n, size]`` of vectors when all are well-formed and of one form, else None: look at each one."""
    kind = type(values[0])
    if kind is str:
        return _all_texts(values, size)
    if kind is list:
        return _all_lists(values, size)
    return _all_arrays(values, size)


def _all_arrays(values: Sequence[Any], size: int) -> Vector | None:
    """Return ``float32[n, size]`` of arrays that the body's parser made, which has looked at their numbers."""
    if not all(type(value) is np.ndarray and value.shape == (size,) for value in values):
        return None
    return np.array(values, dtype=np.float32)


def _all_lists(values: Sequence[Any], size: int) -> Vector | None:
    """Return ``float32[n, size]`` of vectors that are all well-formed lists, else None: look at each one."""
    if not all(type(value) is list and len(value) == size for value in values):
        return None
    # numpy would take true, null and "1.5" for numbers as well.
    if not set(map(type, chain.from_iterable(values))) <= {int, float}:
        return None
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        rows = np.array(values, dtype=np.float32)
    return rows if np.isfinite(rows).all() else None


def _all_texts(values: Sequence[Any], size: int) -> Vector | None:
    """Return ``float32[n, size]`` of vectors that are all well-formed base64, else None: look at each one."""
    try:
        decoded = [binascii.a2b_base64(value, strict_mode=True) for value in values]
    except (binascii.Error, TypeError, ValueError):
        return None
    if any(len(raw) != 4 * size for raw in decoded):
        return None
    rows = np.frombuffer(b"".join(decoded), dtype="<f4").reshape(-1, size).astype(np.float32, copy=False)
    return rows if np.isfinite(rows).all() else None


def _one(value: Any, location: Location, size: int, problems: list[Problem]) -> Vector | None:
    """Convert one vector; what is wrong with it joins `problems`."""
    if isinstance(value, str):
        row = _decoded(value)
        if row is None:
            problems.append(
                Problem(location, "A vector as text is base64 of little-endian float32 numbers.", "vector")
            )
            return None
    elif isinstance(value, np.ndarray):
        row = value.astype(np.float32)
    elif isinstance(value, list) and set(map(type, value)) <= {int, float}:
        with np.errstate(over="ignore"):
            row = np.array(value, dtype=np.float32)
    else:
        problems.append(
            Problem(
                location,
                f"A vector is a list of {size} numbers, or base64 of as many float32; sparse vectors and several "
                "vectors under one name are not available in this version.",
                "vector",
            )
        )
        return None
    if row.shape != (size,):
        problems.append(
            Problem(location, f"This vector has {row.size} numbers; {size} are needed.", "dimensions")
        )
    elif not np.isfinite(row).all():
        problems.append(
            Problem(location, "This vector holds NaN, infinity or a number beyond float32.", "vector")
        )
    else:
        return row
    return None


def _decoded(text: str) -> Vector | None:
    try:
        raw = base64.b64decode(text, validate=True)
        return np.frombuffer(raw, dtype="<f4").astype(np.float32, copy=False)
    except (binascii.Error, ValueError):
        return None


def _spelling_problem(place: _Place, location: Location, name: str | None) -> Problem:
    if name is not None:
        return Problem(location, f"This is vector {name} once more; send it under one name.", "duplicate")
    known = ", ".join(f"{vector.name} ({vector.dimensions})" for vector in place.vectors.values())
    return Problem(
        location,
        f"{quote(location[-1])} is not a vector of collection {quote(place.collection['collection_name'])}; "
        + (f"it has, with their dimensions: {known}." if known else "its extractor has none."),
        "unknown_vector",
    )


# --- storing -------------------------------------------------------------------------------------------


def _store(
    wh: Warehouse,
    principal: Principal,
    place: _Place,
    sent: Sequence[_Sent],
    once: idempotency.Once | None,
    checked: Callable[[], object] = lambda: None,
) -> list[Document]:
    """Log the documents with what they are counted by, in one transaction, and make them findable."""
    made = _made(place, sent, principal.internal_id)
    checked()
    namespace_id = place.namespace["namespace_id"]
    named = [item.document_id for item in sent if item.named]
    _check_not_extracted(wh, namespace_id, named)
    keys = () if _fits_inline(made) else _write(wh, place, made)
    is_first = has_taxonomies = False
    try:
        with wh.db.write() as connection:
            row = namespaces.resolve(connection, principal, namespace_id)
            log.hold(connection, namespace_id)
            collection_id = collections.find(connection, namespace_id, place.collection["collection_id"])[
                "collection_id"
            ]
            if once is None or idempotency.claim(connection, once, collection_id) is None:
                known = _check_elsewhere(connection, namespace_id, collection_id, named)
                limits.check_quota(wh, connection, principal, "documents", len(made) - known)
                _record(connection, namespace_id, collection_id, made)
                if keys:
                    check_there(wh, keys)
                    # Counted once, whatever the number of files: it decides when the log is folded.
                    for number, key in enumerate(keys):
                        count = 0 if number else len(made)
                        seq = log.append_artifact(connection, namespace_id, key, documents=count)
                else:
                    seq = log.append_edit(connection, namespace_id, upserts=made)
                events.documents_written(connection, namespace_id, collection_id, written=len(made))
                has_taxonomies = enrichment_requests.note_written(connection, namespace_id, collection_id)
                is_first = True
            else:
                seq = row["head"]  # it is in the log already, at the latest there
    finally:
        if not is_first:
            for key in keys:
                wh.blobs.path(key).unlink(missing_ok=True)
    wh.views.apply(namespace_id, seq)
    if has_taxonomies:
        wh.jobs.wake()
    return made


def _fits_inline(made: Sequence[Document]) -> bool:
    if len(made) > log.MAX_INLINE_DOCUMENTS:
        return False
    numbers = sum(vector.size for document in made for vector in document.vectors.values())
    if numbers * _INLINE_BYTES_PER_NUMBER > log.MAX_INLINE_BYTES:
        return False
    payloads = sum(len(orjson.dumps(document.payload)) + 1024 for document in made)
    return numbers * _INLINE_BYTES_PER_NUMBER + payloads <= log.MAX_INLINE_BYTES


def _write(wh: Warehouse, place: _Place, made: Sequence[Document]) -> tuple[str, ...]:
    """Write the documents beside the artifacts of extractions, under a name that nobody else makes."""
    namespace_id, collection_id = place.namespace["namespace_id"], place.collection["collection_id"]
    key = f"{namespace_id}/artifacts/ready/{collection_id}/{secrets.token_hex(16)}"
    return write_documents(wh.blobs, key, tuple(place.vectors.values()), made)


def check_there(wh: Warehouse, keys: Sequence[str]) -> None:
    """Refuse to name a file that was taken for what a killed server left, because this request took so long."""
    if not all(wh.blobs.path(key).exists() for key in keys):
        raise StorageUnavailableError(
            "The request took so long that what it had written was cleared away; nothing of it was kept. Send it again."
        )


def _check_not_extracted(wh: Warehouse, namespace_id: str, document_ids: Sequence[str]) -> None:
    """Refuse the id of a document that was extracted from an object: its next extraction would undo this."""
    given = [document_id for document_id in document_ids if _GIVEN_ID.fullmatch(document_id)]
    if not given:
        return
    existing = {hit.document_id for hit in wh.views.get(namespace_id, given)}
    if not existing:
        return
    with wh.db.read() as connection:
        ours = _known(connection, namespace_id, sorted(existing))
    extracted = sorted(existing - ours.keys())
    if extracted:
        raise AlreadyExistsError(
            f"Document {extracted[0]} was extracted from an object, whose next processing would replace it again. "
            "Change the object and process it, or choose an id of your own.",
            details={"resource": "document", "id": extracted[0]},
        )


def _check_elsewhere(
    connection: Connection, namespace_id: str, collection_id: str, document_ids: Sequence[str]
) -> int:
    """Return how many of the ids exist in the collection; refuse ids that another one has."""
    known = _known(connection, namespace_id, document_ids)
    elsewhere = sorted(document_id for document_id, place in known.items() if place != collection_id)
    if elsewhere:
        raise AlreadyExistsError(
            f"Document {quote(elsewhere[0])} exists in another collection of this namespace. Ids are unique in a "
            "namespace: choose another, or delete that document first.",
            details={"resource": "document", "id": elsewhere[0][:128]},
        )
    return len(known)


def _known(connection: Connection, namespace_id: str, document_ids: Sequence[str]) -> dict[str, str]:
    """Return the collection of each ready-made document that exists, by its id."""
    if not document_ids:
        return {}
    source = sources.c.source_id
    asked = [derivation.own_source(document_id) for document_id in document_ids]
    found = connection.execute(
        sa.select(source, sources.c.collection_id).where(
            sources.c.namespace_id == namespace_id, is_among(connection, source, asked)
        )
    )
    start = len(derivation.own_source(""))
    return {source_id[start:]: collection_id for source_id, collection_id in found}


def _record(connection: Connection, namespace_id: str, collection_id: str, made: Sequence[Document]) -> None:
    def row(document_id: Any) -> dict[str, Any]:
        return {
            "namespace_id": namespace_id,
            "collection_id": collection_id,
            "source_id": derivation.own_source("") + document_id,
            "input_hash": "",
            "plan_hash": "",
            "document_ids": [document_id],
        }

    insert_for_each(connection, sources, [document.document_id for document in made], row)
