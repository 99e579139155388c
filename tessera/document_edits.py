"""What users change of documents by hand: one, several, or all that a filter lets through.

A change is a flat object: a name replaces the field at the root, a path with dots one field inside and nothing
beside it. What goes into the log is the final payload alone (vectors stay where they are), resolved to ids.
What was changed of a document that an extractor made is also written down in `document_edits`, by path, in the
transaction that logs it: whoever commits another extraction of its source puts it over what that brought.

An edit reads the view, so it is valid only while nobody else decides about the same documents: the log says in
the same transaction whether anybody did since, and then the edit is made anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import (
    artifact,
    collections,
    derivation,
    documents,
    enrichment_requests,
    events,
    links,
    log,
    namespaces,
    ready_documents,
)
from tessera.context import Principal, Warehouse
from tessera.db.engine import insert_or_replace, now
from tessera.db.tables import document_edits, sources
from tessera.enrichment import KEPT
from tessera.errors import BadRequestError, NotFoundError, Problem, QdrantError, quote, raise_problems
from tessera.extraction import write_documents
from tessera.filters import MAX_PATH_CHARS, is_path
from tessera.models.base import JsonObject
from tessera.models.documents import (
    BatchUpdateRequest,
    BatchUpdateResponse,
    BulkUpdateRequest,
    BulkUpdateResponse,
    UpdatedDocument,
)
from tessera.plan import RESERVED_FIELDS
from tessera.ports import Document, Hit, Payload

#: Root fields that the system writes; the user's own names are all others.
SYSTEM_FIELDS = RESERVED_FIELDS
#: Most fields in one change.
MAX_CHANGES = 1000
#: Objects and lists inside each other, path and value together; engines read no more than about a hundred.
MAX_DEPTH = 48
#: An edit is made anew so often when others decide about the same documents in between.
_TRIES = 30
#: Ids in one statement; SQLite bounds the number of parameters.
_IDS = 1000

Location = tuple[str | int, ...]
#: Value by path, as a user changes it.
Changes = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to become of one document: `changes`, over its fields or, when it `replaces`, instead of them."""

    changes: Changes
    replaces: bool = False


@dataclass(slots=True)
class _Made:
    """What becomes of documents: payloads by id, and why others are not edited.

    `changed` are to be logged; `noted` is what was changed by hand of extracted ones in all, where that is new.
    """

    payloads: dict[str, Payload] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    changed: list[Document] = field(default_factory=list)
    noted: dict[str, Changes] = field(default_factory=dict)


class Overtaken(Exception):
    """Somebody else decided about one of the documents since they were read."""


# --- what the API offers -------------------------------------------------------------------------------


def edit_one(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    collection: str | None,
    document_id: str,
    body: JsonObject,
    *,
    replaces: bool,
) -> JsonObject:
    """Merge `body` into a document, or let it take the place of the document's own fields; return the document.

    Durable and findable when it returns. Can be repeated: what is so already writes nothing. System fields may
    stand in the body as they are in the document, so that what was read can be sent back; another value of one
    is a `ValidationError`.
    """
    with wh.db.read() as connection:
        namespace_id, collection_id = documents.find_place(connection, principal, namespace, collection)
    hit = documents.find(wh, namespace_id, collection_id, document_id, with_vectors=False)
    shown = documents.present(wh, namespace_id, hit.payload)
    theirs = {name: value for name, value in body.items() if not _is_shown(shown, name, value)}
    changes = read_changes(wh, namespace_id, theirs, ("body",))
    made = _edit(
        wh, principal, namespace_id, hit.payload["collection_id"], {document_id: Edit(changes, replaces)}
    )
    if document_id in made.refused:
        raise BadRequestError(made.refused[document_id])
    if document_id not in made.payloads:
        raise NotFoundError("document", document_id)
    return documents.present(wh, namespace_id, made.payloads[document_id])


def add_fields(wh: Warehouse, namespace_id: str, collection_id: str, fields: Mapping[str, JsonObject]) -> int:
    """Give documents that exist the `fields` that the server found out about them; return how many those are.

    Nobody's edit by hand: a field that a user has set stays as it is, and another extraction begins without them.
    Durable and findable when it returns. Can be repeated: what is so already writes nothing.
    """
    made = _edit(wh, None, namespace_id, collection_id, {key: Edit(value) for key, value in fields.items()})
    return len(made.payloads)


def edit_bulk(
    wh: Warehouse, principal: Principal, namespace: str, collection: str, request: BulkUpdateRequest
) -> BulkUpdateResponse:
    """Give all documents that the filters let through at this moment (all of the collection, without) one change.

    Durable and findable when it returns; up to then portion after portion is. Can be repeated.
    """
    updated = _edit_found(wh, principal, namespace, collection, request.filters, request.update_data)
    return BulkUpdateResponse(updated_count=updated, message=f"{updated} document(s) were updated.")


def edit_batch(
    wh: Warehouse, principal: Principal, namespace: str, collection: str, request: BatchUpdateRequest
) -> BatchUpdateResponse:
    """Give each named document a change of its own, or all that the filters let through the same one.

    Durable and findable when it returns. Can be repeated.
    """
    if request.updates is None:
        if request.filters is None or request.update_data is None:
            raise BadRequestError(
                "Send updates, a list of {document_id, update_data}, or filters together with update_data."
            )
        updated = _edit_found(wh, principal, namespace, collection, request.filters, request.update_data)
        return BatchUpdateResponse(
            updated_count=updated, failed_count=0, results=[], message=f"{updated} document(s) were updated."
        )
    if request.filters is not None or request.update_data is not None:
        raise BadRequestError(
            "updates names each document and its change; filters and update_data are the other way. Send either."
        )
    with wh.db.read() as connection:
        namespace_id, collection_id = documents.find_place(connection, principal, namespace, collection)
    assert collection_id is not None
    edits = _named_edits(wh, namespace_id, request)
    made = _edit(wh, principal, namespace_id, collection_id, edits)
    results = [_result(document_id, made) for document_id in edits]
    failed = len(edits) - len(made.payloads)
    return BatchUpdateResponse(
        updated_count=len(made.payloads),
        failed_count=failed,
        results=results,
        message=f"{len(made.payloads)} document(s) were updated"
        + (f", {failed} were not." if failed else "."),
    )


def _named_edits(wh: Warehouse, namespace_id: str, request: BatchUpdateRequest) -> dict[str, Edit]:
    edits: dict[str, Edit] = {}
    problems: list[Problem] = []
    for number, update in enumerate(request.updates or ()):
        location = ("body", "updates", number)
        if update.document_id in edits:
            problems.append(
                Problem(
                    (*location, "document_id"),
                    f"document_id {quote(update.document_id)} is in updates twice; put its changes together.",
                    "duplicate",
                )
            )
        place = (*location, "update_data")
        edits[update.document_id] = Edit(read_changes(wh, namespace_id, update.update_data, place, problems))
    raise_problems(problems)
    return edits


def _result(document_id: str, made: _Made) -> UpdatedDocument:
    if document_id in made.payloads:
        return UpdatedDocument(document_id=document_id, success=True)
    error = made.refused.get(document_id) or f"document {quote(document_id)} was not found."
    return UpdatedDocument(document_id=document_id, success=False, error=error)


def _edit_found(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    collection: str,
    filters: JsonObject | None,
    update_data: JsonObject,
) -> int:
    """Edit what a filter finds, in portions of an artifact's size, and return how many documents that were."""
    with wh.db.read() as connection:
        namespace_id, collection_id = documents.find_place(connection, principal, namespace, collection)
    assert collection_id is not None
    change = Edit(read_changes(wh, namespace_id, update_data, ("body", "update_data")))
    if not change.changes:
        return 0
    # All ids before the first change: it may be what lets a document no longer through, or now.
    found = documents.all_found(wh, namespace_id, documents.within_collection(collection_id, filters))
    document_ids = [document_id for document_id, _ in found]
    updated = 0
    for portion in _portions(iter(document_ids)):
        made = _edit(wh, principal, namespace_id, collection_id, dict.fromkeys(portion, change))
        if made.refused:
            document_id, reason = next(iter(made.refused.items()))
            raise BadRequestError(
                f"Document {document_id}: {reason} {updated + len(made.payloads)} document(s) were updated before."
            )
        updated += len(made.payloads)
    return updated


def _portions(document_ids: Iterator[str]) -> Iterator[list[str]]:
    while portion := list(islice(document_ids, artifact.MAX_DOCUMENTS)):
        yield portion


# --- what is asked -------------------------------------------------------------------------------------


def _is_shown(shown: JsonObject, name: str, value: Any) -> bool:
    """Say whether a system field stands in the body as the document shows it, where null is no value."""
    return name in SYSTEM_FIELDS and _is_same(_without_nulls(shown.get(name)), _without_nulls(value))


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls(item) for name, item in value.items() if item is not None}


def read_changes(
    wh: Warehouse,
    namespace_id: str,
    given: JsonObject,
    location: Location,
    problems: list[Problem] | None = None,
) -> dict[str, Any]:
    """Check a change as it was sent, and return it by path; links that we signed become what they stand for.

    What is wrong joins `problems`, or is raised as one `ValidationError` without them.
    """
    found: list[Problem] = [] if problems is None else problems
    if len(given) > MAX_CHANGES:
        found.append(
            Problem(
                location, f"One change has at most {MAX_CHANGES:,} fields, not {len(given):,}.", "too_long"
            )
        )
        given = {}
    for path, value in given.items():
        problem = _change_problem(given, path, value)
        if problem is not None:
            found.append(Problem((*location, path), problem[1], problem[0]))
    if problems is None:
        raise_problems(found)
    return {path: _stored(wh, namespace_id, value) for path, value in given.items()}


def _change_problem(given: JsonObject, path: str, value: Any) -> tuple[str, str] | None:
    """Return (kind, message) of what is wrong with one field of a change, or None."""
    if path.partition(".")[0] in SYSTEM_FIELDS:
        return "system_field", (
            f"{quote(path)} belongs to the system and cannot be changed. Leave it out; fields of your own have other "
            "names, or stand below metadata."
        )
    if not is_path(path):
        return "field", (
            f"{quote(path)} is not a field: a path is names with dots between them, at most {MAX_PATH_CHARS} "
            "characters, without empty parts and without []."
        )
    if path.count(".") + _depth(value) > MAX_DEPTH:
        return "too_deep", f"{quote(path)} would nest deeper than {MAX_DEPTH} levels."
    above = next((prefix for prefix in _above(path) if prefix in given), None)
    if above is not None:
        return (
            "conflict",
            f"{quote(path)} lies inside {quote(above)}, which is changed as well; send it in there.",
        )
    return None


def _above(path: str) -> Iterator[str]:
    """Yield the paths that lead to what `path` lies in, the innermost first."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _stored(wh: Warehouse, namespace_id: str, value: Any) -> Any:
    """Return `value` as it is stored: a link that an answer showed, sent back, would expire there."""
    if isinstance(value, str):
        return links.unsigned(wh, namespace_id, value) or value
    if isinstance(value, dict):
        return {name: _stored(wh, namespace_id, item) for name, item in value.items()}
    if isinstance(value, list):
        return [_stored(wh, namespace_id, item) for item in value]
    return value


# --- pure ----------------------------------------------------------------------------------------------


class Blocked(Exception):
    """A path leads through a value that has no fields."""


def with_changes(payload: Payload, changes: Changes, *, by_force: bool = False) -> Payload:
    """Return `payload` with each value of `changes` at its path; `payload` itself stays as it is.

    Raises `Blocked` where a path leads through a list, a text or a number; `by_force` such a value gives way.
    """
    changed = dict(payload)
    for path, value in changes.items():
        here = changed
        *parents, last = path.split(".")
        for depth, segment in enumerate(parents):
            below = here.get(segment)
            if not isinstance(below, dict):
                if below is not None and not by_force:
                    kind = "a list" if isinstance(below, list) else "a plain value"
                    raise Blocked(
                        f"{quote(path)} cannot be set, because {'.'.join(parents[: depth + 1])} is {kind} there. "
                        "Change that field as a whole."
                    )
                below = {}
            here[segment] = here = dict(below)
        here[last] = value
    return changed


def merged(edits: Changes, changes: Changes) -> dict[str, Any]:
    """Return what was changed by hand in all, when `changes` come after `edits`."""
    result = {
        path: value for path, value in edits.items() if not any(above in changes for above in _above(path))
    }
    for path, value in changes.items():
        above = next((known for known in _above(path) if known in result), None)
        if above is None:
            result[path] = value
        else:
            inside = result[above] if isinstance(result[above], dict) else {}
            result[above] = with_changes(inside, {path[len(above) + 1 :]: value}, by_force=True)
    return result


def _is_same(one: Any, other: Any) -> bool:
    """Say whether two values are the same JSON; for Python true is 1 and 2.0 is 2."""
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


def edited(payload: Payload, edit: Edit) -> Payload:
    """Return what a document's payload becomes, but for its time of change. Raises `Blocked`."""
    if not edit.replaces:
        return with_changes(payload, edit.changes)
    system = {name: value for name, value in payload.items() if name in SYSTEM_FIELDS}
    return with_changes(system, edit.changes)


def _made(
    edits: Mapping[str, Edit],
    hits: Sequence[Hit],
    known: Mapping[str, Changes],
    twins: Collection[tuple[str, str]],
    largest: int,
) -> _Made:
    """Reckon what becomes of the documents `hits`, of at most `largest` bytes.

    `known` has what was changed by hand before of each of them that was extracted.
    """
    made = _Made()
    for hit in hits:
        edit, before = edits[hit.document_id], known.get(hit.document_id)
        noted: Changes | None = None
        if before is not None:
            edit = Edit(with_twins(edit.changes, twins), edit.replaces)
            if edit.replaces:
                different = with_twins(dict(_different(hit.payload, edit.changes)), twins)
                edit = Edit(merged(edit.changes, different), replaces=True)
                # What was set before stays so, as it is now; what was left out is the extraction's again.
                kept = {path: found[0] for path in before if (found := _value_in(edit.changes, path))}
                noted = merged(kept, different)
            else:
                noted = merged(before, edit.changes)
            if _is_same(noted, before):
                noted = None
        try:
            payload = edited(hit.payload, edit)
        except Blocked as blocked:
            made.refused[hit.document_id] = str(blocked)
            continue
        if not _is_same(payload, hit.payload):
            payload["updated_at"] = now()
            if KEPT in payload:
                # What taxonomies said was said of what it was.
                payload[KEPT] = {**payload[KEPT], "signature": None}
        size = len(orjson.dumps(payload))
        if size > largest:
            made.refused[hit.document_id] = (
                f"With this change the document would have {size:,} bytes, more than {largest:,} (setting "
                "max_body_bytes)."
            )
            continue
        made.payloads[hit.document_id] = payload
        if noted is not None:
            made.noted[hit.document_id] = noted
        # Logged also when only noted, so that whoever edits it at the same time sees that.
        if noted is not None or not _is_same(payload, hit.payload):
            made.changed.append(Document(hit.document_id, payload))
    return made


def _different(payload: Payload, changes: Changes, inside: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of what `payload` has not, or not so: the innermost field whose value says so."""
    for path, value in changes.items():
        found = _value_in(payload, path)
        if found and _is_same(found[0], value):
            continue
        whole = found[0] if found else None
        if (
            isinstance(whole, dict)
            and isinstance(value, dict)
            and whole.keys() <= value.keys()
            and all("." not in name and is_path(f"{inside}{path}.{name}") for name in value)
        ):
            yield from _different(whole, value, f"{inside}{path}.")
        else:
            yield f"{inside}{path}", value


def with_twins(changes: Changes, twins: Collection[tuple[str, str]]) -> dict[str, Any]:
    """Return `changes` with both names of every field that extracted documents carry under two.

    ``metadata.category`` is passed through as ``category`` too, and filters may name either.
    """
    result = dict(changes)
    for one, other in (*twins, *((other, one) for one, other in twins)):
        found = _value_in(changes, one)
        if found and not any(_overlap(other, path) for path in changes):
            result[other] = found[0]
    return result


def _value_in(changes: Changes, path: str) -> list[Any]:
    """Return the new value at `path`, in a list; an empty one when it is not changed."""
    if path in changes:
        return [changes[path]]
    for above, whole in changes.items():
        if path.startswith(f"{above}."):
            inside: Any = whole
            for segment in path[len(above) + 1 :].split("."):
                if not isinstance(inside, dict) or segment not in inside:
                    return []
                inside = inside[segment]
            return [inside]
    return []


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


# --- what an extraction needs of it --------------------------------------------------------------------


def of_documents(
    connection: Connection, collection_id: str, document_ids: Collection[str]
) -> dict[str, Changes]:
    """Return what was changed by hand of those documents where anything was."""
    found: dict[str, Changes] = {}
    ids = sorted(document_ids)
    for start in range(0, len(ids), _IDS):
        rows = connection.execute(
            sa.select(document_edits.c.document_id, document_edits.c.fields).where(
                document_edits.c.collection_id == collection_id,
                document_edits.c.document_id.in_(ids[start : start + _IDS]),
            )
        )
        found |= {row.document_id: row.fields for row in rows}
    return found


def forget(connection: Connection, collection_id: str, document_ids: Collection[str]) -> None:
    """Forget what was changed by hand of documents that exist no more."""
    ids = sorted(document_ids)
    for start in range(0, len(ids), _IDS):
        connection.execute(
            sa.delete(document_edits).where(
                document_edits.c.collection_id == collection_id,
                document_edits.c.document_id.in_(ids[start : start + _IDS]),
            )
        )


# --- storing -------------------------------------------------------------------------------------------


def _edit(
    wh: Warehouse,
    principal: Principal | None,
    namespace_id: str,
    collection_id: str,
    edits: Mapping[str, Edit],
) -> _Made:
    """Log what becomes of the documents that exist, at most an artifact's worth, and make it findable.

    Without a `principal` it is the server that adds fields.
    """
    for _ in range(_TRIES):
        with wh.views.editing(namespace_id):
            read_at = wh.views.apply(namespace_id).seq
            hits = [
                hit
                for hit in wh.views.get(namespace_id, list(edits))
                if hit.payload.get("collection_id") == collection_id
            ]
            try:
                made, seq = _log(wh, principal, namespace_id, collection_id, edits, hits, read_at)
            except (Overtaken, log.Folded):
                continue
        if seq is not None:
            wh.views.apply(namespace_id, seq)
        return made
    raise QdrantError(
        "Others change the same documents faster than this edit can be made; try again.", retry_after_s=1
    )


def _log(
    wh: Warehouse,
    principal: Principal | None,
    namespace_id: str,
    collection_id: str,
    edits: Mapping[str, Edit],
    hits: Sequence[Hit],
    read_at: int,
) -> tuple[_Made, int | None]:
    """Write the entries and what was changed by hand in one transaction; raise `Overtaken` when it is too late."""
    with wh.db.read() as connection:
        collection = collections.find(connection, namespace_id, collection_id)
        extracted = _extracted(connection, collection_id, hits)
        known = of_documents(connection, collection_id, extracted)
    if principal is None:
        edits = {key: _but_for(edit, known.get(key, {})) for key, edit in edits.items()}
        extracted = {}
    largest = wh.settings.max_body_bytes
    made = _made(edits, hits, {i: known.get(i, {}) for i in extracted}, _twins(collection), largest)
    if not made.changed:
        return made, None

    has_taxonomies = False

    def also(connection: Connection) -> None:
        nonlocal has_taxonomies
        if principal is not None:
            namespaces.resolve(connection, principal, namespace_id)
        collections.find(connection, namespace_id, collection_id)
        _note(connection, namespace_id, collection_id, extracted, made.noted)
        has_taxonomies = enrichment_requests.note_written(connection, namespace_id, collection_id)

    seq = log_payloads(wh, namespace_id, collection_id, made.changed, {*made.payloads}, read_at, also)
    if has_taxonomies:
        wh.jobs.wake()
    return made, seq


def log_payloads(
    wh: Warehouse,
    namespace_id: str,
    collection_id: str,
    changed: Sequence[Document],
    decided: Set[str],
    read_at: int,
    also: Callable[[Connection], None],
) -> int:
    """Log new payloads of documents that exist, with what `also` writes in the same transaction; return the entry.

    They were reckoned from what the view held at entry `read_at`. Raises `Overtaken` when somebody has decided about
    one of the documents `decided` since, or `Folded` when nobody can say any more.
    """
    keys = () if _fits_inline(changed) else _write(wh, namespace_id, collection_id, changed)
    is_logged = False
    try:
        with wh.db.write() as connection:
            also(connection)
            first, last = _append(wh, connection, namespace_id, changed, keys)
            between = {"after": read_at, "before": first}
            if log.touched(connection, namespace_id, decided, **between, local_path=wh.blobs.path):
                raise Overtaken
            events.documents_written(
                connection, namespace_id, collection_id, written=len(changed), are_edits=True
            )
        is_logged = True
    except sa.exc.IntegrityError as error:
        raise Overtaken from error  # a source that it refers to is gone: so are its documents
    finally:
        if not is_logged:
            for key in keys:
                wh.blobs.path(key).unlink(missing_ok=True)
    return last


def _but_for(edit: Edit, by_hand: Changes) -> Edit:
    """Return an edit without the fields that a user has set."""
    return Edit(
        {
            path: value
            for path, value in edit.changes.items()
            if not any(_overlap(path, own) for own in by_hand)
        }
    )


def _append(
    wh: Warehouse,
    connection: Connection,
    namespace_id: str,
    changed: Sequence[Document],
    keys: Sequence[str],
) -> tuple[int, int]:
    """Append the entries and return the numbers of the first and the last."""
    if not keys:
        seq = log.append_edit(connection, namespace_id, upserts=changed, keeps_vectors=True)
        return seq, seq
    ready_documents.check_there(wh, keys)
    numbers = [
        log.append_artifact(
            connection,
            namespace_id,
            key,
            documents=0 if number else len(changed),
            keeps_vectors=True,
        )
        for number, key in enumerate(keys)
    ]
    return numbers[0], numbers[-1]


def _fits_inline(changed: Sequence[Document]) -> bool:
    if len(changed) > log.MAX_INLINE_DOCUMENTS:
        return False
    return sum(len(orjson.dumps(document.payload)) + 256 for document in changed) <= log.MAX_INLINE_BYTES


def _write(
    wh: Warehouse, namespace_id: str, collection_id: str, changed: Sequence[Document]
) -> tuple[str, ...]:
    key = f"{namespace_id}/artifacts/ready/{collection_id}/{secrets.token_hex(16)}"
    return write_documents(wh.blobs, key, (), changed)


def _extracted(connection: Connection, collection_id: str, hits: Sequence[Hit]) -> dict[str, str]:
    """Return the source of each document that was extracted from one; what was sent ready-made has none."""
    named = dict(map(documents.with_source, hits))
    ready = {derivation.own_source(document_id): document_id for document_id in named}
    existing: set[str] = set()
    wanted = sorted({*named.values(), *ready})
    for start in range(0, len(wanted), _IDS):
        existing.update(
            connection.execute(
                sa.select(sources.c.source_id).where(
                    sources.c.collection_id == collection_id,
                    sources.c.source_id.in_(wanted[start : start + _IDS]),
                )
            ).scalars()
        )
    own = {ready[source_id] for source_id in existing & ready.keys()}
    return {
        document_id: source_id
        for document_id, source_id in named.items()
        if document_id not in own and source_id in existing
    }


def _note(
    connection: Connection,
    namespace_id: str,
    collection_id: str,
    extracted: Mapping[str, str],
    noted: Mapping[str, Changes],
) -> None:
    """Write down what was changed by hand, for the next extraction of its source."""
    insert_or_replace(
        connection,
        document_edits,
        [
            {
                "namespace_id": namespace_id,
                "collection_id": collection_id,
                "document_id": document_id,
                "source_id": extracted[document_id],
                "fields": dict(fields),
            }
            for document_id, fields in noted.items()
        ],
    )


def _twins(collection: RowMapping) -> list[tuple[str, str]]:
    """Return (path, other path) of each field that documents of the collection carry under two names."""
    pairs = []
    for item in collection["feature_extractor"].get("field_passthrough") or ():
        path = item["source_path"].removeprefix("$.").removeprefix("payload.")
        target = item.get("target_path") or path.rsplit(".", 1)[-1]
        if target != path:
            pairs.append((path, target))
    return pairs
