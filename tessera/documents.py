"""Documents: read and listed from the namespace's view, removed through its log.

A document's payload is one flat dictionary; `present` turns it into the shape that the API answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import (
    collections,
    content,
    derivation,
    events,
    links,
    locators,
    log,
    namespaces,
)
from tessera.context import Principal, Warehouse
from tessera.db.tables import document_edits, sources
from tessera.errors import BadRequestError, NotFoundError, quote
from tessera.filters import And, Condition, Filter, parse
from tessera.models.base import JsonObject
from tessera.models.documents import (
    BatchDeleteRequest,
    BatchDeleteResponse,
    DeletedDocument,
)
from tessera.models.tasks import GenericDeleteResponse
from tessera.ports import HIDDEN_FIELDS, Hit, Page, Vector

#: Root fields that stay at the root of an answer although the system writes them.
_SHOWN_SYSTEM_FIELDS = (
    "root_object_id",
    "root_bucket_id",
    "source_object_id",
    "created_at",
    "updated_at",
)
#: Keys of an answer that are the system's own, whatever a payload holds under the same name.
_OWN = frozenset({"document_id", "collection_id", "document_blobs"})
#: Keys of a payload that an answer does not have among its fields.
_NO_FIELDS = HIDDEN_FIELDS.union(_OWN, _SHOWN_SYSTEM_FIELDS)

#: Ids of documents to delete by a filter are read in pages of this size.
_DELETE_PAGE = 1000


# --- answering -----------------------------------------------------------------------------------------


def present(
    wh: Warehouse,
    namespace_id: str,
    payload: Mapping[str, Any],
    *,
    return_urls: bool = False,
    vectors: Mapping[str, Vector] | None = None,
    vector_names: Iterable[str] | None = None,
    select: Sequence[str] | None = None,
) -> JsonObject:
    """Return a document as the API answers it; the payload itself stays as it is.

    User fields and extractor outputs stand at the root, system fields in `_internal`. Every value
    ``blob://…`` of this namespace becomes a URL that is good for an hour; with `return_urls` the list
    `document_blobs` names it as `presigned_url` too. The URL of the file that the document comes from has a
    fragment that leads to the document's place in it. `vectors` are given as lists under `vectors`,
    `vector_names` sorted under `_vectors`. `select` are the paths to keep beside the ids.
    """
    place = locators.locator_of(payload)
    system = {name: payload[name] for name in _SHOWN_SYSTEM_FIELDS if name in payload}
    blobs: list[JsonObject] = []
    fields = {
        name: value if _is_plain(value) else _signed(wh, namespace_id, name, value, blobs)
        for name, value in payload.items()
        if name not in _NO_FIELDS
    }
    if place is not None:
        fields.setdefault(locators.FIELD, place.to_json())
        _lead_to(place, fields, blobs)
    if select:
        fields = _selected(fields, select)
    if return_urls:
        for blob in blobs:
            blob["presigned_url"] = blob["url"]
    answer: JsonObject = {
        **fields,
        "document_id": payload["document_id"],
        "collection_id": payload["collection_id"],
        **system,
        "document_blobs": blobs,
        "_internal": {
            "namespace_id": namespace_id,
            "document_id": payload["document_id"],
            "collection_id": payload["collection_id"],
            "created_at": payload.get("created_at"),
            "updated_at": payload.get("updated_at"),
            "lineage": lineage(payload),
        },
    }
    if vectors is not None:
        answer["vectors"] = {name: [float(x) for x in values] for name, values in vectors.items()}
    if vector_names is not None:
        answer["_vectors"] = sorted(vector_names)
    return answer


def lineage(payload: Mapping[str, Any]) -> JsonObject:
    """Return where a document comes from: its root object, what it was made of, and every step in between."""
    known = derivation.lineage_of(payload)
    return {
        "root_object_id": payload.get("root_object_id"),
        "root_bucket_id": payload.get("root_bucket_id"),
        "source_type": known.get("source_type") or "bucket",
        "source_object_id": payload.get("source_object_id"),
        "source_document_id": known.get("source_document_id"),
        "source_collection_id": known.get("source_collection_id"),
        "path": known.get("path"),
        "chain": known.get("chain"),
    }


def _is_plain(value: Any) -> bool:
    """Say whether a value can hold no blob: most do not, and a hit has many."""
    return (
        not value.startswith(links.SCHEME) if isinstance(value, str) else not isinstance(value, dict | list)
    )


def _signed(wh: Warehouse, namespace_id: str, path: str, value: Any, blobs: list[JsonObject]) -> Any:
    """Return `value` with every ``blob://`` in it signed; each one is added to `blobs` with its path."""
    if isinstance(value, str):
        url = links.resolve(wh, namespace_id, value)
        if url is None:
            return value
        blobs.append({"field": path, "url": url, **_role_and_type(wh, path, value)})
        return url
    if isinstance(value, dict):
        return {
            name: _signed(wh, namespace_id, f"{path}.{name}", item, blobs) for name, item in value.items()
        }
    if isinstance(value, list):
        return [_signed(wh, namespace_id, path, item, blobs) for item in value]
    return value


def _lead_to(place: locators.Locator, fields: JsonObject, blobs: list[JsonObject]) -> None:
    """Add the fragment of `place` to the URLs of the file that it is a place in."""
    fragment = locators.fragment(place)
    for name in locators.source_fields(place):
        for blob in blobs:
            if blob["field"] == name and fragment:
                blob["url"] = fields[name] = f"{blob['url']}#{fragment}"


def _role_and_type(wh: Warehouse, path: str, value: str) -> JsonObject:
    name = path.rsplit(".", 1)[-1]
    role = "thumbnail" if "thumbnail" in name else "source" if name.startswith("source_") else "artifact"
    if role == "thumbnail":
        return {"role": role, "type": "image"}
    kind = next((kind for kind in ("video", "image", "audio", "pdf") if kind in name), None)
    if name == locators.source_field("text"):
        kind = "text"
    return {"role": role, "type": kind or _kind_of_file(wh, value.removeprefix(links.SCHEME))}


def _kind_of_file(wh: Warehouse, key: str) -> str:
    try:
        with wh.blobs.path(key).open("rb") as file:
            mime_type = content.sniff(file.read(1024))
    except OSError:
        return "other"
    kind = content.family(mime_type or content.OCTET_STREAM)
    return kind if kind in ("video", "image", "audio", "pdf", "text") else "other"


def _selected(fields: Mapping[str, Any], select: Sequence[str]) -> JsonObject:
    """Keep the given paths of `fields`; a path that a document lacks is left out."""
    kept: JsonObject = {}
    for path in select:
        _keep(fields, path.split("."), kept)
    return kept


def _keep(source: Mapping[str, Any], path: Sequence[str], target: JsonObject) -> None:
    name, *rest = path
    if name not in source:
        return
    value = source[name]
    if not rest or not isinstance(value, Mapping):
        target[name] = value
        return
    below = target.setdefault(name, {})
    if isinstance(below, dict) and below is not value:
        _keep(value, rest, below)


# --- read ----------------------------------------------------------------------------------------------


def get(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    collection: str | None,
    document_id: str,
    *,
    return_urls: bool = False,
    return_vectors: bool = False,
    return_vector_names: bool = False,
) -> JsonObject:
    """Return a document of `collection`, or of any collection of the namespace when that is None."""
    with wh.db.read() as connection:
        namespace_id, collection_id = find_place(connection, principal, namespace, collection)
    hit = find(
        wh, namespace_id, collection_id, document_id, with_vectors=return_vectors or return_vector_names
    )
    return present(
        wh,
        namespace_id,
        hit.payload,
        return_urls=return_urls,
        vectors=hit.vectors if return_vectors else None,
        vector_names=hit.vectors if return_vector_names else None,
    )


# --- delete --------------------------------------------------------------------------------------------


def delete(
    wh: Warehouse, principal: Principal, namespace: str, collection: str, document_id: str
) -> GenericDeleteResponse:
    """Delete a document and what was derived from it. Durable, and no longer findable, when it returns.

    Its object stays, and brings it back when it is processed again.
    """
    with wh.db.read() as connection:
        namespace_id, collection_id = find_place(connection, principal, namespace, collection)
    assert collection_id is not None
    hit = find(wh, namespace_id, collection_id, document_id, with_vectors=False)
    _remove(wh, principal, namespace_id, collection_id, [with_source(hit)])
    return GenericDeleteResponse(message=f"Document {document_id} was deleted.")


def delete_batch(
    wh: Warehouse, principal: Principal, namespace: str, collection: str, request: BatchDeleteRequest
) -> BatchDeleteResponse:
    """Delete documents by id, or all that a filter lets through at this moment.

    Durable, and no longer findable, when it returns. Can be repeated: what is gone already counts as failed
    by id, and is not met again by a filter.
    """
    if (request.document_ids is None) == (request.filters is None):
        raise BadRequestError(
            "Send either document_ids or filters, one of the two. To delete all documents of a collection, delete the "
            "collection."
        )
    if request.filters is not None and parse(request.filters) is None:
        raise BadRequestError(
            "filters names no condition, which would delete every document of the collection. Name one, or delete the "
            "collection."
        )
    with wh.db.read() as connection:
        namespace_id, collection_id = find_place(connection, principal, namespace, collection)
    assert collection_id is not None
    if request.document_ids is None:
        found = list(all_found(wh, namespace_id, within_collection(collection_id, request.filters)))
        _remove(wh, principal, namespace_id, collection_id, found)
        return BatchDeleteResponse(
            deleted_count=len(found),
            failed_count=0,
            results=[],
            message=f"{len(found)} document(s) were deleted.",
        )
    wanted = list(dict.fromkeys(request.document_ids))
    found = [
        with_source(hit)
        for hit in wh.views.get(namespace_id, wanted)
        if hit.payload.get("collection_id") == collection_id
    ]
    _remove(wh, principal, namespace_id, collection_id, found)
    gone = {document_id for document_id, _ in found}
    results = [
        DeletedDocument(document_id=document_id, success=True)
        if document_id in gone
        else DeletedDocument(
            document_id=document_id, success=False, error=f"document {quote(document_id)} was not found."
        )
        for document_id in wanted
    ]
    failed = len(wanted) - len(gone)
    return BatchDeleteResponse(
        deleted_count=len(gone),
        failed_count=failed,
        results=results,
        message=f"{len(gone)} document(s) were deleted" + (f", {failed} were not found." if failed else "."),
    )


def sources_of(wh: Warehouse, namespace_id: str, document_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Return (document id, source id) of those documents that exist."""
    return [with_source(hit) for hit in wh.views.get(namespace_id, list(dict.fromkeys(document_ids)))]


def all_found(wh: Warehouse, namespace_id: str, within: Filter) -> Iterator[tuple[str, str]]:
    """Yield (document id, source id) of every document that the filter lets through now."""
    after = None
    while True:
        found = wh.views.page(namespace_id, Page(limit=_DELETE_PAGE, filter=within, after=after))
        yield from map(with_source, found.hits)
        after = found.next_after
        if after is None:
            return


def with_source(hit: Hit) -> tuple[str, str]:
    """Return (document id, source id) of a document."""
    return hit.document_id, derivation.source_of(hit.document_id, hit.payload)


def _remove(
    wh: Warehouse,
    principal: Principal,
    namespace_id: str,
    collection_id: str,
    found: Sequence[tuple[str, str]],
) -> None:
    """Log the deletion together with what the sources still have, then make it seen."""
    if not found:
        return
    with wh.db.write() as connection:
        namespaces.resolve(connection, principal, namespace_id)
        log.hold(connection, namespace_id)
        for start in range(0, len(found), _DELETE_PAGE):
            _forget(connection, sources.c.collection_id == collection_id, found[start : start + _DELETE_PAGE])
        gone = [document_id for document_id, _ in found]
        gone += derivation.forget(connection, namespace_id, gone)
        seq = log.append_edit(connection, namespace_id, deletes=gone)
    wh.views.apply(namespace_id, seq)


def forget(connection: Connection, namespace_id: str, found: Sequence[tuple[str, str]]) -> None:
    """Take documents, (document id, source id), of any collection of the namespace off their sources."""
    for start in range(0, len(found), _DELETE_PAGE):
        _forget(connection, sources.c.namespace_id == namespace_id, found[start : start + _DELETE_PAGE])


def _forget(connection: Connection, within: sa.ColumnElement[bool], found: Sequence[tuple[str, str]]) -> None:
    """Take documents off their sources.

    The input hash of a source goes too, so that processing it again brings its documents back.
    """
    gone = {document_id for document_id, _ in found}
    known = connection.execute(
        sa.select(sources).where(
            within,
            sources.c.source_id.in_(
                {source_id for _, source_id in found}
                | {derivation.own_source(document_id) for document_id in gone}
            ),
        )
    ).all()
    left = {
        (row.collection_id, row.source_id): [d for d in row.document_ids if d not in gone] for row in known
    }
    touched = {(row.collection_id, row.source_id) for row in known if gone.intersection(row.document_ids)}
    this = sa.and_(
        sources.c.collection_id == sa.bindparam("b_collection_id"),
        sources.c.source_id == sa.bindparam("b_source_id"),
    )
    keys = [
        {"b_collection_id": key[0], "b_source_id": key[1], "b_left": left[key]} for key in sorted(touched)
    ]
    fewer = [key for key in keys if key["b_left"]]
    if fewer:
        # What was changed of them by hand goes with them; where nothing is left, with the source.
        connection.execute(
            sa.delete(document_edits).where(
                document_edits.c.collection_id.in_({key["b_collection_id"] for key in fewer}),
                document_edits.c.document_id.in_(gone),
            )
        )
        connection.execute(
            sa.update(sources).where(this).values(document_ids=sa.bindparam("b_left"), input_hash=""), fewer
        )
    none = [key for key in keys if not key["b_left"]]
    if none:
        connection.execute(sa.delete(sources).where(this), none)
    went = Counter(
        (row.namespace_id, row.collection_id) for row in known for d in row.document_ids if d in gone
    )
    for place, count in went.items():
        events.documents_written(connection, *place, deleted=count)


# --- what others need too ------------------------------------------------------------------------------


def find_place(
    connection: Connection, principal: Principal, namespace: str, collection: str | None
) -> tuple[str, str | None]:
    """Return the ids of a namespace and of a collection in it, each given by id or name."""
    namespace_id: str = namespaces.resolve(connection, principal, namespace)["namespace_id"]
    if collection is None:
        return namespace_id, None
    return namespace_id, collections.find(connection, namespace_id, collection)["collection_id"]


def find(
    wh: Warehouse, namespace_id: str, collection_id: str | None, document_id: str, *, with_vectors: bool
) -> Hit:
    """Return a document as it is stored. Raises `NotFoundError`, also for one of another collection."""
    found = wh.views.get(namespace_id, [document_id], with_vectors)
    if not found or (collection_id is not None and found[0].payload.get("collection_id") != collection_id):
        raise NotFoundError("document", document_id)
    return found[0]


def within_collection(collection_id: str, filters: JsonObject | None) -> Filter:
    """Return the filter for those documents of a collection that `filters` let through."""
    mine = Condition("collection_id", "eq", collection_id, True)
    asked = parse(filters)
    return mine if asked is None else And((mine, asked))
