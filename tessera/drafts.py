"""Drafts of objects: a request, checked as a whole against its bucket's schema, with nothing of it stored yet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from tessera import buckets, content, schemas, unique_keys
from tessera.context import Warehouse
from tessera.db.tables import uploads
from tessera.errors import Problem, quote
from tessera.fetching import SCHEMES, FetchError
from tessera.models.base import JsonObject
from tessera.models.buckets import BLOB_TYPES, BucketSchema, FieldType
from tessera.models.objects import CreateBlobRequest, CreateObjectRequest, LooseBlob, UpdateObjectRequest
from tessera.validation import label

#: Texts up to this size are kept in the row; longer ones become a blob.
MAX_INLINE_TEXT_BYTES = 256 * 1024

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """Content that is stored already: what a blob's entry says of it."""

    entry: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Remote:
    """Content behind a URL; `shown` is how answers show it, `again` asks for it although it came before."""

    url: str
    shown: str
    again: bool

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.url.encode()).hexdigest()


@dataclass(slots=True)
class Blob:
    """A blob that passed its checks and is not stored yet."""

    property: str
    type: FieldType
    content: content.Content | Kept | Remote
    filename: str | None
    key_prefix: str | None
    metadata: JsonObject


@dataclass(slots=True)
class Draft:
    """An object that is to be stored, or what is wrong with it."""

    key_prefix: str | None
    fields: dict[str, Any] = field(default_factory=dict)
    blobs: list[Blob] = field(default_factory=list)
    #: Digest of its values of the bucket's unique key.
    unique_key: str | None = None
    problems: list[Problem] = field(default_factory=list)


def check(
    wh: Warehouse,
    bucket: RowMapping,
    request: CreateObjectRequest | UpdateObjectRequest,
    fields: JsonObject,
    *,
    kept: set[str] | None = None,
    uploaded: Mapping[Any, Any] | None = None,
) -> Draft:
    """Check a request against its bucket's schema.

    `fields` are the object's own, `kept` the properties whose stored blobs stay, `uploaded` is an upload that
    is just being confirmed.
    """
    schema = BucketSchema.model_validate(bucket["bucket_schema"])
    draft = Draft(request.key_prefix)
    _take_fields(draft, schema, fields)
    blobs: list[tuple[Location, CreateBlobRequest]] = [
        (("body", "blobs", i), blob) for i, blob in enumerate(request.blobs or ())
    ]
    if request.blob is not None:
        named = _named_blob(schema, request.blob, draft.problems)
        if named is not None:
            blobs.append((("body", "blob"), named))
    blobs += _fields_as_blobs(draft, schema, {blob.property for _, blob in blobs})
    known = _uploads(wh, bucket, [blob.upload_id for _, blob in blobs if blob.upload_id is not None])
    if uploaded is not None:
        known[uploaded["upload_id"]] = uploaded
    seen: set[str] = set()
    for location, blob in blobs:
        if blob.property in seen:
            draft.problems.append(
                Problem(
                    (*location, "property"),
                    f"{label(location)}: property {quote(blob.property)} is given twice; a property holds one blob. "
                    "Use a property for each, or an object for each.",
                    "duplicate_property",
                )
            )
            continue
        seen.add(blob.property)
        again = request.force_remirror if blob.force_remirror is None else blob.force_remirror
        _take_blob(wh, draft, schema, blob, location, known, again=bool(again))
    _check_values(draft, schema)
    _check_required(draft, schema, seen | (kept or set()))
    key = buckets.unique_key(bucket)
    if key is not None:
        draft.unique_key = unique_keys.digest(key, schema, draft.fields, draft.problems)
    return draft


def _take_fields(draft: Draft, schema: BucketSchema, fields: JsonObject) -> None:
    draft.fields = dict(fields)
    if isinstance(fields.get("metadata"), dict):
        draft.fields["metadata"] = dict(fields["metadata"])
    for name in list(draft.fields):
        if name == "metadata":
            continue
        if schemas.is_reserved(name):
            draft.problems.append(
                Problem(
                    ("body", name),
                    f"{name[:100]} at the root is a field of the system; send yours inside `metadata`.",
                    "reserved_field",
                )
            )
    try:
        orjson.dumps(draft.fields)
    except TypeError as error:
        draft.problems.append(
            Problem(
                ("body",), f"The object's fields cannot be stored as JSON: {error}.", "fields_not_storable"
            )
        )
        draft.fields = {}
    for name, declared in schema.properties.items():
        if declared.type in BLOB_TYPES or declared.default is None:
            continue
        if not _has(draft.fields, name):
            draft.fields[name] = declared.default


def _named_blob(schema: BucketSchema, blob: LooseBlob, problems: list[Problem]) -> CreateBlobRequest | None:
    """Give a blob that names no property the bucket's only one."""
    candidates = [name for name, declared in schema.properties.items() if declared.type in BLOB_TYPES]
    if len(candidates) != 1:
        has = (
            f"several properties for blobs ({', '.join(candidates)})"
            if candidates
            else "no property for blobs"
        )
        problems.append(
            Problem(
                ("body", "blob"),
                f"`blob` names no property, and the bucket has {has}. Send "
                '"blobs": [{"property": …, "type": …, "data": …}].',
                "ambiguous_blob",
                400,
            )
        )
        return None
    return CreateBlobRequest(property=candidates[0], **blob.model_dump(exclude_none=True))


def _fields_as_blobs(
    draft: Draft, schema: BucketSchema, given: set[str]
) -> list[tuple[Location, CreateBlobRequest]]:
    """Take fields that the schema declares as blobs out of the fields: `{"text": "…"}` is as good as a blob."""
    found: list[tuple[Location, CreateBlobRequest]] = []
    nested = draft.fields.get("metadata")
    for name, declared in schema.properties.items():
        if declared.type not in BLOB_TYPES:
            continue
        if draft.fields.get(name) is not None:
            found.append((("body", name), CreateBlobRequest(property=name, data=draft.fields.pop(name))))
        elif name not in given and isinstance(nested, dict) and nested.get(name) is not None:
            value = nested.pop(name)
            found.append((("body", "metadata", name), CreateBlobRequest(property=name, data=value)))
    return found


class _BadBlob(Exception):
    """A blob that cannot be taken: which of its keys is wrong, and what a sentence goes on with after the place."""

    def __init__(self, key: str, message: str, kind: str, status: int = 422) -> None:
        super().__init__(message)
        self.key, self.message, self.kind, self.status = key, message, kind, status


def _take_blob(
    wh: Warehouse,
    draft: Draft,
    schema: BucketSchema,
    blob: CreateBlobRequest,
    location: Location,
    known_uploads: Mapping[str, Mapping[Any, Any]],
    *,
    again: bool,
) -> None:
    """Add a blob to the draft, or to its fields where the schema wants a value, or what is wrong with it."""
    try:
        kind = _declared_type(schema, blob)
        source = _source(blob)
        if kind in BLOB_TYPES:
            found, named = _content(wh, blob, source, kind, known_uploads, again=again)
        elif source == "upload_id":
            raise _BadBlob(
                "upload_id",
                f": property {quote(blob.property)} is {kind.value}, a value and no file. Send it in `data`.",
                "type_mismatch",
            )
        else:
            draft.fields[blob.property] = getattr(blob, source)
            return
    except _BadBlob as bad:
        # A field that stands for a blob is its own place; a blob has one for each of its keys.
        place = (*location, bad.key) if location[1] in ("blobs", "blob") else location
        draft.problems.append(Problem(place, f"{label(place)}{bad.message}", bad.kind, bad.status))
        return
    filename = _filename(named) if isinstance(named, str) else None
    draft.blobs.append(Blob(blob.property, kind, found, filename, blob.key_prefix, blob.metadata or {}))


def _declared_type(schema: BucketSchema, blob: CreateBlobRequest) -> FieldType:
    """Return the type of a blob's property in the schema, which the blob may only repeat."""
    declared = schema.properties.get(blob.property)
    if declared is None:
        known = ", ".join(f"{name} ({item.type.value})" for name, item in schema.properties.items()) or "none"
        raise _BadBlob(
            "property",
            f": the bucket has no property {quote(blob.property)}; its properties are: {known}.",
            "unknown_property",
        )
    if blob.type is not None and blob.type != declared.type:
        raise _BadBlob(
            "type",
            f": property {quote(blob.property)} is {declared.type.value} in the bucket's schema, not "
            f"{blob.type.value}. Send type {declared.type.value}, or leave it out.",
            "type_mismatch",
        )
    return declared.type


def _source(blob: CreateBlobRequest) -> str:
    """Return the one key that a blob has its content in."""
    given = [name for name in ("data", "url", "upload_id") if getattr(blob, name) is not None]
    if len(given) > 1:
        raise _BadBlob(given[1], f": {' and '.join(given)} are given; send exactly one of them.", "ambiguous")
    if not given:
        raise _BadBlob("data", " is required.", "missing")
    return given[0]


def _content(
    wh: Warehouse,
    blob: CreateBlobRequest,
    source: str,
    kind: FieldType,
    known_uploads: Mapping[str, Mapping[Any, Any]],
    *,
    again: bool,
) -> tuple[content.Content | Kept | Remote, object]:
    """Return a blob's content, checked as far as it is here, and the name of its file, if it has one."""
    value = getattr(blob, source)
    named = blob.filename or (blob.metadata or {}).get("filename")
    try:
        if source == "upload_id":
            row = known_uploads.get(value)
            problem = _upload_problem(row, value)
            if row is None or problem is not None:
                raise _BadBlob(source, f": {problem}", "upload", 400)
            return _uploaded(wh, row, kind), named or row["filename"]
        if isinstance(value, str) and (source == "url" or content.url_scheme(value) in SCHEMES):
            return Remote(value.strip(), wh.fetcher.check(value), again), named
        return content.decode(value, kind.value, max_bytes=wh.settings.max_body_bytes), named
    except content.BadContent as error:
        status = 400 if error.kind == "url" else 422
        raise _BadBlob(source, f" {error.message}", f"data_{error.kind}", status) from None
    except FetchError as error:
        raise _BadBlob(source, f" cannot be fetched: {error.message}", f"fetch_{error.kind}", 400) from None


def _uploads(wh: Warehouse, bucket: RowMapping, upload_ids: Sequence[str]) -> dict[str, Mapping[Any, Any]]:
    if not upload_ids:
        return {}
    with wh.db.read() as connection:
        rows = connection.execute(
            sa.select(uploads).where(
                uploads.c.upload_id.in_(upload_ids), uploads.c.bucket_id == bucket["bucket_id"]
            )
        ).mappings()
        return {row["upload_id"]: row for row in rows}


def _upload_problem(row: Mapping[Any, Any] | None, upload_id: str) -> str | None:
    if row is None:
        return f"this bucket has no upload {quote(upload_id)}."
    if row["blob_key"] is None:
        return (
            f"upload {upload_id} is {row['status']}. Confirm it first (POST …/uploads/{upload_id}/confirm); an "
            "upload for a blob is made with create_object_on_confirm false."
        )
    return None


def _uploaded(wh: Warehouse, row: Mapping[Any, Any], kind: FieldType) -> Kept:
    path = wh.blobs.path(row["blob_key"])
    if not path.is_file():
        raise content.BadContent("gone", "is an upload whose file is gone; upload it again.")
    declared = row["content_type"].partition(";")[0].strip().lower()
    return Kept(stored_file(path, row["blob_key"], kind, declared, row["filename"], row["sha256"]))


def stored_file(
    path: Path, key: str, kind: FieldType, declared: str | None, filename: str | None, sha256: str
) -> dict[str, Any]:
    """Return what a blob's entry says of the file `key`. Raises `content.BadContent` when it is not of type `kind`."""
    mime_type = content.identify(path, kind.value, declared)
    size_bytes = path.stat().st_size
    entry: dict[str, Any] = {
        "details": {
            "filename": _filename(filename) if filename else None,
            "size_bytes": size_bytes,
            "mime_type": mime_type,
            "hash": sha256,
        }
    }
    if kind is FieldType.TEXT and size_bytes <= MAX_INLINE_TEXT_BYTES:
        data = path.read_bytes()
        entry["text"] = data.decode(content.encoding_of(data))
    else:
        entry["blob_key"] = key
    return entry


def _filename(name: str) -> str | None:
    """Return the last part of a path without control characters: it may end up in a header."""
    last = re.split(r"[\\/]", name)[-1]
    return "".join(c for c in last if c.isprintable() and c != '"')[:255].strip(" .") or None


def _check_values(draft: Draft, schema: BucketSchema) -> None:
    """Check fields that the schema names, at the root or in `metadata`, against their types."""
    nested = draft.fields.get("metadata")
    places: list[tuple[Location, Mapping[str, Any]]] = [(("body",), draft.fields)]
    if isinstance(nested, dict):
        places.append((("body", "metadata"), nested))
    for location, fields in places:
        for name, declared in schema.properties.items():
            if declared.type in BLOB_TYPES or fields.get(name) is None:
                continue
            wrong = schemas.value_problem(declared, fields[name])
            if wrong is not None:
                place = (*location, name)
                draft.problems.append(Problem(place, f"{label(place)} {wrong}", "type_mismatch"))


def _check_required(draft: Draft, schema: BucketSchema, blobs: set[str]) -> None:
    for name, declared in schema.properties.items():
        if not declared.required or name in blobs or _has(draft.fields, name):
            continue
        how = (
            f'"blobs": [{{"property": "{name}", "type": "{declared.type.value}", "data": …}}]'
            if declared.type in BLOB_TYPES
            else f"`{name}` at the root or in `metadata`"
        )
        draft.problems.append(
            Problem(
                ("body", name),
                f"{name} ({declared.type.value}) is required by the bucket's schema. Send {how}.",
                "missing",
            )
        )


def _has(fields: Mapping[str, Any], name: str) -> bool:
    nested = fields.get("metadata")
    return fields.get(name) is not None or (isinstance(nested, dict) and nested.get(name) is not None)
