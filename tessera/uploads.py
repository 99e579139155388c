"""Uploads: a file is PUT to a signed URL of this server, confirmed, and from then on a blob of the namespace.

A PUT is written to a part that nothing names; complete and checked it is renamed below the upload's id, and the
row says what came. A server that dies in between leaves half an upload as nothing at all. Confirming makes the
file a blob, the object of it, and the upload COMPLETED, the last two in one transaction.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydantic
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import buckets, content, events, failpoints, idempotency, links, listing, objects, tasks
from tessera.blobs import Part
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import objects as object_rows
from tessera.db.tables import tasks as task_rows
from tessera.db.tables import uploads
from tessera.errors import (
    BadRequestError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    PayloadTooLargeError,
    Problem,
    StorageError,
    TesseraError,
    UnsupportedMediaTypeError,
    ValidationError,
    quote,
    raise_problems,
)
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.buckets import BLOB_TYPES, BucketSchema
from tessera.models.objects import CreateBlobRequest, CreateObjectRequest
from tessera.models.tasks import TaskStatus, TaskType
from tessera.models.uploads import (
    BatchConfirmRequest,
    BatchConfirmResponse,
    BatchUploadRequest,
    BatchUploadResponse,
    ConfirmUploadRequest,
    ConfirmUploadResponse,
    CreateUploadRequest,
    ListUploadsRequest,
    ListUploadsResponse,
    UploadListStats,
    UploadResponse,
)
from tessera.pagination import PageRequest
from tessera.validation import label, schema_problems

#: An upload that failed is kept so long for whoever wants to know.
KEPT_FOR = timedelta(days=30)
#: What has just expired may still be confirmed by a request that began in time.
_GRACE = timedelta(minutes=1)
#: Uploads that one sweep looks at.
_SWEPT_AT_ONCE = 200

_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+(\s*;.*)?", re.IGNORECASE)
_EXPIRED = "It was not confirmed before it expired; make a new upload."

Location = tuple[str | int, ...]


# --- create -------------------------------------------------------------------------------------------


def create(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    request: CreateUploadRequest,
    *,
    idempotency_key: str | None = None,
) -> UploadResponse:
    """Make an upload and the URL to PUT its file to. Durable; the file is a blob once it is confirmed.

    Everything that would be wrong with the object is said now. Sent again with the same `idempotency_key` it
    makes nothing and answers with the first one's upload and the same URL.
    """
    made = _create(wh, principal, namespace, bucket, [(request, ("body",))], idempotency_key, "uploads")
    return made[0]


def create_batch(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    request: BatchUploadRequest,
    *,
    idempotency_key: str | None = None,
) -> BatchUploadResponse:
    """Make up to 100 uploads: all of them, or none when one is not valid."""
    wanted: list[tuple[CreateUploadRequest, Location]] = [
        (
            item.model_copy(
                update={
                    "metadata": _merged(request.shared_metadata, item.metadata),
                    "object_metadata": _merged(request.shared_object_metadata, item.object_metadata),
                }
            ),
            ("body", "uploads", index),
        )
        for index, item in enumerate(request.uploads)
    ]
    made = _create(wh, principal, namespace, bucket, wanted, idempotency_key, "uploads/batch")
    return BatchUploadResponse(uploads=made, total=len(made))


def _merged(shared: JsonObject | None, own: JsonObject | None) -> JsonObject | None:
    return own if shared is None else {**shared, **(own or {})}


def _create(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    wanted: Sequence[tuple[CreateUploadRequest, Location]],
    idempotency_key: str | None,
    route: str,
) -> list[UploadResponse]:
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
    problems: list[Problem] = []
    rows = [_planned(wh, place, request, location, problems) for request, location in wanted]
    raise_problems(problems)
    answers = []
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        for index, (row, unique_key) in enumerate(rows):
            once = idempotency.once(
                principal,
                f"POST /v1/buckets/{place['bucket_id']}/{route}",
                idempotency_key
                if idempotency_key is None or len(rows) == 1
                else f"{idempotency_key}/{index}",
                [request.model_dump(mode="json") for request, _ in wanted],
            )
            twin = _twin(connection, row) if row["file_hash"] is not None else None
            upload_id = twin["upload_id"] if twin is not None else row["upload_id"]
            known = idempotency.claim(connection, once, upload_id) if once is not None else None
            if twin is not None and known in (None, upload_id):
                answers.append(_duplicate(wh, twin))
                continue
            if known is None:
                connection.execute(
                    uploads.insert().values({**row, **_skipped(connection, place, row, unique_key)})
                )
            answers.append(_answer(wh, _row(connection, place, known or upload_id, made=known), put_url=True))
    return answers


def _skipped(
    connection: Connection, bucket: RowMapping, row: Mapping[str, Any], unique_key: str | None
) -> dict[str, str]:
    """Return what is different about an upload whose object would be refused because another has its unique key."""
    if not row["create_object_on_confirm"]:
        return {}
    holder = objects.standing_for(connection, bucket, unique_key)
    if holder is None:
        return {}
    message = f"Object {holder} has this unique key already, and the bucket's policy is insert; nothing is to be sent."
    return {"status": "SKIPPED", "object_id": holder, "message": message}


def _planned(
    wh: Warehouse,
    bucket: RowMapping,
    request: CreateUploadRequest,
    location: Location,
    problems: list[Problem],
) -> tuple[dict[str, Any], str | None]:
    """Return the row of a new upload and the digest of its object's unique key; add what is wrong to `problems`."""

    def wrong(name: str, message: str, kind: str, status: int = 422) -> None:
        place = (*location, name)
        problems.append(Problem(place, f"{label(place)} {message}", kind, status))

    _check_declared(wh, request, wrong)
    media_type = request.content_type.strip().lower()
    makes_object = request.create_object_on_confirm is not False
    blob_property, blob_type = _destination(bucket, request, wrong, required=makes_object)
    if blob_type is not None and not _may_be(media_type, blob_type):
        wrong(
            "content_type",
            f"is {quote(media_type)}, but property {quote(blob_property)} is {blob_type}: "
            f"{content.FORMATS[blob_type]}.",
            "type_mismatch",
        )
    unique_key = None
    if makes_object and blob_property is not None:
        metadata = dict(request.object_metadata or {})
        found, unique_key = objects.check_fields(wh, bucket, blob_property, metadata)
        for problem in found:
            place = (*location, "object_metadata")
            problems.append(
                Problem(place, f"{label(place)}: {problem.message}", problem.kind, problem.status)
            )
    at = datetime.now(UTC)
    lifetime_s = request.presigned_url_expiration or 3600
    row = {
        "upload_id": new_id("upl"),
        "namespace_id": bucket["namespace_id"],
        "bucket_id": bucket["bucket_id"],
        "filename": request.filename,
        "content_type": request.content_type.strip(),
        "file_size_bytes": request.file_size_bytes,
        "file_hash": request.file_hash,
        "presigned_url_expiration": lifetime_s,
        "metadata": request.metadata,
        "create_object_on_confirm": makes_object,
        "object_metadata": request.object_metadata,
        "blob_property": blob_property,
        "blob_type": blob_type,
        "skip_duplicates": request.skip_duplicates is not False,
        "status": "PENDING",
        "created_at": _text(at),
        # Whole seconds: the signature carries them.
        "expires_at": _text(at.replace(microsecond=0) + timedelta(seconds=lifetime_s)),
    }
    return row, unique_key


def _check_declared(wh: Warehouse, request: CreateUploadRequest, wrong: Any) -> None:
    """Check what a request says of its file by itself."""
    name = request.filename
    if name in (".", "..") or not name.isprintable() or re.search(r"[\\/]", name) or name != name.strip():
        wrong(
            "filename",
            f"is {quote(name)}; a name without slashes, control characters and blanks at its ends is allowed "
            "(clip.mp4).",
            "filename",
        )
    media_type = request.content_type.strip().lower()
    if not _MEDIA_TYPE.fullmatch(media_type):
        wrong(
            "content_type",
            f"is {quote(request.content_type)}, which is no media type (video/mp4).",
            "content_type",
        )
    if request.file_size_bytes is not None and request.file_size_bytes > wh.settings.max_upload_bytes:
        wrong(
            "file_size_bytes",
            f"is {request.file_size_bytes}; at most {wh.settings.max_upload_bytes} bytes are taken (setting "
            "max_upload_bytes).",
            "too_large",
        )


def _destination(
    bucket: RowMapping, request: CreateUploadRequest, wrong: Any, *, required: bool
) -> tuple[str | None, str | None]:
    """Return the property that the file fills and its type; only an object needs one."""
    schema = BucketSchema.model_validate(bucket["bucket_schema"])
    fillable = [name for name, declared in schema.properties.items() if declared.type in BLOB_TYPES]
    name = request.blob_property
    if name is None:
        stem = request.filename.rpartition(".")[0] or request.filename
        name = fillable[0] if len(fillable) == 1 else stem if stem in fillable else None
    if name is None:
        if required:
            wrong(
                "blob_property",
                f"is needed: the bucket's properties for files are {', '.join(fillable) or 'none'}. Name one, or send "
                "create_object_on_confirm false.",
                "missing",
            )
        stated = (request.blob_type or "").lower()
        return None, stated if stated in BLOB_TYPES else None
    if name not in fillable:
        if required:
            wrong(
                "blob_property",
                f"is {quote(name)}; the bucket's properties for files are: {', '.join(fillable) or 'none'}.",
                "unknown_property",
            )
        return name, None
    declared = schema.properties[name].type.value
    if request.blob_type is not None and request.blob_type.lower() != declared:
        wrong(
            "blob_type",
            f"is {quote(request.blob_type)}, but property {quote(name)} is {declared} in the bucket's schema. Leave "
            "it out.",
            "type_mismatch",
        )
    return name, declared


def _may_be(media_type: str, blob_type: str) -> bool:
    plain = media_type.partition(";")[0].strip()
    # Words are words, whatever they are called; what says nothing is told by the bytes when they have come.
    if plain in (content.OCTET_STREAM, "binary/octet-stream") or blob_type == "text":
        return content.family(plain) in ("text", "other", "excel")
    return content.fits(plain, blob_type)


def _twin(connection: Connection, row: Mapping[Any, Any]) -> RowMapping | None:
    """Return the confirmed upload of the same content for the same purpose, if it still stands for anything."""
    if not row["skip_duplicates"]:
        return None
    same = sa.and_(
        uploads.c.bucket_id == row["bucket_id"],
        uploads.c.sha256 == (row.get("sha256") or row["file_hash"]),
        uploads.c.status == "COMPLETED",
        uploads.c.create_object_on_confirm == row["create_object_on_confirm"],
        uploads.c.upload_id != row["upload_id"],
    )
    if row["create_object_on_confirm"]:
        same &= uploads.c.blob_property == row["blob_property"]
        same &= uploads.c.object_id.in_(
            sa.select(object_rows.c.object_id).where(object_rows.c.bucket_id == row["bucket_id"])
        )
    return (
        connection.execute(sa.select(uploads).where(same).order_by(uploads.c.created_at).limit(1))
        .mappings()
        .one_or_none()
    )


def _duplicate(wh: Warehouse, twin: RowMapping) -> UploadResponse:
    return _answer(wh, twin).model_copy(
        update={
            "is_duplicate": True,
            "duplicate_of_upload_id": twin["upload_id"],
            "message": "A file with this content was uploaded before; nothing has to be sent. With skip_duplicates "
            "false it is uploaded again.",
        }
    )


# --- the PUT ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """A file on its way in, of at most `max_bytes`. Closing it leaves nothing behind, unless `keep` succeeded."""

    wh: Warehouse
    row: RowMapping
    part: Part
    max_bytes: int
    content_md5: bytes | None

    def close(self) -> None:
        """Drop what has come and was not kept."""
        self.part.discard()

    def write(self, data: bytes) -> None:
        """Take the next piece. Raises `BadRequestError` or `PayloadTooLargeError` when it is too much."""
        if self.part.size_bytes + len(data) > self.max_bytes:
            raise _too_much(self.wh, self.row, None)
        self.part.write(data)

    def keep(self) -> str:
        """Check what came, make it durable under the upload's id, and return its ETag (MD5, in hex).

        Raises `BadRequestError` when it is not what was declared, `ConflictError` when the upload has ended.
        """
        part, row = self.part, self.row
        if not part.size_bytes:
            raise BadRequestError("The file is empty; send its content as the body of the PUT.")
        if row["file_size_bytes"] not in (None, part.size_bytes):
            raise _too_much(self.wh, row, part.size_bytes)
        if self.content_md5 is not None and self.content_md5.hex() != part.md5:
            raise BadRequestError("What came does not have the digest in Content-MD5; send the file again.")
        if row["file_hash"] not in (None, part.sha256):
            raise BadRequestError(
                "What came does not have the SHA-256 that the upload declared as file_hash; nothing was kept.",
                details={"file_hash": row["file_hash"], "received": part.sha256},
            )
        part.finish()
        failpoints.reach("upload.received")
        key = _staged(row, part.sha256)
        self.wh.blobs.move(part.path, key)
        failpoints.reach("upload.staged")
        this = sa.and_(uploads.c.upload_id == row["upload_id"], uploads.c.status == "PENDING")
        with self.wh.db.write() as connection:
            before = connection.execute(sa.select(uploads.c.sha256).where(this)).one_or_none()
            connection.execute(
                sa.update(uploads)
                .where(this)
                .values(sha256=part.sha256, etag=part.md5, size_bytes=part.size_bytes)
            )
        if before is None:
            self.wh.blobs.path(key).unlink(missing_ok=True)
            raise _not_open(row["upload_id"])
        if before.sha256 not in (None, part.sha256):
            # An earlier PUT brought something else; the last one counts.
            self.wh.blobs.path(_staged(row, before.sha256)).unlink(missing_ok=True)
        return part.md5


def receive(
    wh: Warehouse,
    upload_id: str,
    expires: int,
    signature: str,
    *,
    content_type: str | None,
    content_length: int | None,
    content_md5: str | None,
) -> Arrival:
    """Check a PUT by its head alone, before anything of the file is read, and return what takes the file.

    Raises `ForbiddenError` for a URL that is not ours or has expired, `ConflictError` for an upload that has
    ended, `UnsupportedMediaTypeError`, `BadRequestError`, `PayloadTooLargeError`.
    """
    if not hmac.compare_digest(_signature(wh, upload_id, expires).encode(), signature.encode()):
        raise ForbiddenError("This link was not made by this server, or was changed. Make a new upload.")
    if expires < time.time():
        raise ForbiddenError("This link has expired. Make a new upload.")
    with wh.db.read() as connection:
        row = (
            connection.execute(sa.select(uploads).where(uploads.c.upload_id == upload_id))
            .mappings()
            .one_or_none()
        )
    if row is None:
        raise NotFoundError("upload", upload_id)
    if row["status"] != "PENDING":
        raise _not_open(upload_id)
    declared = row["content_type"].partition(";")[0].strip().lower()
    sent = (content_type or declared).partition(";")[0].strip().lower()
    if sent != declared:
        raise UnsupportedMediaTypeError(
            f"The upload was made for Content-Type: {declared}, not {quote(sent)}. Send that one, or make a new "
            "upload.",
            details={"supported": [declared]},
        )
    limit = wh.settings.max_upload_bytes
    if content_length is not None and (
        content_length > limit or row["file_size_bytes"] not in (None, content_length)
    ):
        raise _too_much(wh, row, content_length)
    digest: bytes | None = None
    if content_md5 is not None:
        try:
            digest = base64.b64decode(content_md5, validate=True)
        except (binascii.Error, ValueError):
            digest = b""
        if len(digest) != 16:
            raise BadRequestError("Content-MD5 is not the base64 of an MD5 digest.")
    return Arrival(wh, row, wh.blobs.new_part(), row["file_size_bytes"] or limit, digest)


def _too_much(wh: Warehouse, row: RowMapping, size: int | None) -> TesseraError:
    limit = wh.settings.max_upload_bytes
    if row["file_size_bytes"] is not None:
        came = "more" if size is None else f"{size} bytes"
        return BadRequestError(
            f"The upload declared a file_size_bytes of {row['file_size_bytes']}, and {came} came; nothing was kept.",
            details={"file_size_bytes": row["file_size_bytes"], "received": size},
        )
    return PayloadTooLargeError(
        f"The file is larger than {limit} bytes, the limit of this server (setting max_upload_bytes).",
        details={"max_upload_bytes": limit},
    )


def _not_open(upload_id: str) -> ConflictError:
    return ConflictError(
        f"Upload {upload_id} has ended: it was confirmed, deleted or has expired. Make a new one for another file."
    )


# --- confirm ------------------------------------------------------------------------------------------


def confirm(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    upload_id: str,
    request: ConfirmUploadRequest,
) -> ConfirmUploadResponse:
    """Confirm that the file has come, and make its object. Durable when it returns.

    Repeatable: a confirmed upload answers as the first time. Raises `BadRequestError` when nothing was PUT,
    when size or ETag differ, or when it has expired, and `ValidationError` when the file cannot be the blob.
    """
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        row: Mapping[Any, Any] = _row(connection, place, upload_id)
    if row["status"] == "SKIPPED":
        return _confirmed(row)
    _check_claims(row, request)
    if row["status"] == "COMPLETED":
        return _confirmed(row)
    if _status(row) != "PENDING":
        raise BadRequestError(f"Upload {upload_id} has expired. {_EXPIRED}")
    key = f"{row['namespace_id']}/blobs/{row['sha256']}"
    staged, kept = wh.blobs.path(_staged(row, row["sha256"])), wh.blobs.path(key)
    # Checked before it is a blob, so that what is refused can be PUT again.
    arrived, mime_type = _arrived(row, staged, kept)
    if arrived is staged:
        try:
            wh.blobs.move(staged, key)
        except StorageError:
            # Another request confirms the same upload and was faster.
            if not kept.is_file():
                raise
    failpoints.reach("upload.kept")
    row = {**row, "blob_key": key}
    new = _object(wh, principal, place, row)
    at = now()
    with wh.db.write() as connection:
        current = _row(connection, place, upload_id)
        if current["status"] == "COMPLETED":
            return _confirmed(current)
        if current["status"] != "PENDING" or current["sha256"] != row["sha256"]:
            raise ConflictError(
                f"Upload {upload_id} was changed by another request meanwhile. Read it and confirm it again."
            )
        twin = _twin(connection, row)
        object_id = twin["object_id"] if twin is not None else None
        if new is not None and object_id is None:
            objects.check_stored(wh, new.blobs)
            made = objects.insert(connection, place, new)
            object_id = made.row["object_id"]
            if made.is_new:
                events.object_changed(connection, "created", made.row)
        connection.execute(
            sa.update(uploads)
            .where(uploads.c.upload_id == upload_id)
            .values(
                status="COMPLETED",
                blob_key=key,
                mime_type=mime_type,
                object_id=object_id,
                duplicate_of_upload_id=twin["upload_id"] if twin is not None else None,
                message="The same file was confirmed before; its object stands for this upload too."
                if twin is not None and object_id is not None
                else None,
                completed_at=at,
            )
        )
        return _confirmed(_row(connection, place, upload_id))


def confirm_batch(
    wh: Warehouse, principal: Principal, namespace: str, bucket: str, request: BatchConfirmRequest
) -> BatchConfirmResponse:
    """Confirm up to 100 uploads, each by itself; the task that is returned has ended and says what became of each."""
    begun = now()
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
    done: list[JsonObject] = []
    failed: list[JsonObject] = []
    for index, item in enumerate(request.confirmations):
        upload_id = item.get("upload_id") if isinstance(item, dict) else None
        try:
            if not isinstance(upload_id, str):
                location = ("body", "confirmations", index, "upload_id")
                raise ValidationError([Problem(location, f"{label(location)} is required.", "missing")])
            try:
                one = ConfirmUploadRequest.model_validate(item)
            except pydantic.ValidationError as error:
                raise ValidationError(schema_problems(error, ("body", "confirmations", index))) from None
            answer = confirm(wh, principal, namespace, bucket, upload_id, one)
        except TesseraError as error:
            if error.status >= 500:
                raise
            failed.append(
                {"index": index, "upload_id": upload_id, "error": str(error), "error_type": error.type}
            )
        else:
            done.append(answer.model_dump(mode="json"))
    status = "COMPLETED" if not failed else "COMPLETED_WITH_ERRORS" if done else "FAILED"
    task_id = new_id("tsk")
    with wh.db.write() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        row = {
            "task_id": task_id,
            "organization_id": principal.organization_id,
            "namespace_id": place["namespace_id"],
            "task_type": TaskType.BUCKETS_UPLOADS_BATCH_CONFIRM,
            "status": status,
            "inputs": [
                str(item.get("upload_id")) for item in request.confirmations if isinstance(item, dict)
            ],
            "outputs": done,
            "additional_data": {"bucket_id": place["bucket_id"], "failed_confirmations": failed},
            "error": f"{len(failed)} of {len(request.confirmations)} failed; the first: {failed[0]['error']}"
            if failed
            else None,
            "created_at": begun,
            "updated_at": now(),
        }
        connection.execute(task_rows.insert().values(**row))
        task = tasks.answer(connection, row)
    return BatchConfirmResponse(
        task_id=task_id,
        status=TaskStatus(status),
        confirmations_count=len(request.confirmations),
        task=task,
        message=f"{len(done)} upload(s) were confirmed, {len(failed)} failed.",
    )


def _check_claims(row: Mapping[Any, Any], request: ConfirmUploadRequest) -> None:
    upload_id = row["upload_id"]
    if row["sha256"] is None:
        if _status(row) != "PENDING":
            raise BadRequestError(f"Upload {upload_id} has expired. {_EXPIRED}")
        raise BadRequestError(
            f"Nothing has been uploaded for {upload_id}. PUT the file to presigned_url, then confirm again."
        )
    if request.file_size_bytes not in (None, row["size_bytes"]):
        raise BadRequestError(
            f"file_size_bytes is {request.file_size_bytes}, but {row['size_bytes']} bytes came. PUT the file again.",
            details={"file_size_bytes": request.file_size_bytes, "received": row["size_bytes"]},
        )
    if request.etag is not None and request.etag.removeprefix("W/").strip('"').lower() != row["etag"]:
        raise BadRequestError(
            f"etag is {quote(request.etag)}, but what came has {row['etag']}. PUT the file again.",
            details={"etag": request.etag, "received": row["etag"]},
        )


def _arrived(row: Mapping[Any, Any], staged: Path, kept: Path) -> tuple[Path, str | None]:
    """Return where an upload's file lies, and its media type; refuse one that cannot be the blob.

    Another request that confirms the same upload may move the file from `staged` to `kept` at any moment, also
    while it is read here: what fails for that reason is read again where it lies now.
    """
    for path in (staged, kept):
        try:
            if path.is_file():
                return path, _fitting(row, path)
        except (OSError, ValidationError):
            if path.is_file():
                raise
    raise BadRequestError(f"The file of upload {row['upload_id']} is gone. PUT it to presigned_url again.")


def _fitting(row: Mapping[Any, Any], path: Path) -> str | None:
    """Return the file's media type; refuse one that cannot be the blob that it was uploaded for."""
    declared = row["content_type"].partition(";")[0].strip().lower()
    if row["blob_type"] is None:
        return content.sniff_file(path) or declared
    try:
        return content.identify(path, row["blob_type"], declared)
    except content.BadContent as error:
        raise ValidationError(
            [
                Problem(
                    ("path", "upload_id"),
                    f"The file of upload {row['upload_id']} {error.message} PUT another one, or make a new upload.",
                    f"data_{error.kind}",
                )
            ]
        ) from None


def _object(
    wh: Warehouse, principal: Principal, bucket: RowMapping, row: Mapping[Any, Any]
) -> objects.New | None:
    if not row["create_object_on_confirm"]:
        return None
    blob = CreateBlobRequest(property=row["blob_property"], upload_id=row["upload_id"])
    request = CreateObjectRequest(blobs=[blob], metadata=row["object_metadata"])
    return objects.prepare(wh, principal, bucket, request, uploaded=row)


def _confirmed(row: Mapping[Any, Any]) -> ConfirmUploadResponse:
    return ConfirmUploadResponse(
        upload_id=row["upload_id"],
        status=TaskStatus(row["status"]),
        etag=row["etag"],
        file_size_bytes=row["size_bytes"],
        file_hash=row["sha256"],
        verified_at=row["completed_at"],
        completed_at=row["completed_at"],
        object_id=row["object_id"],
        message=row["message"],
    )


# --- read, delete -------------------------------------------------------------------------------------


def get(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    upload_id: str,
    *,
    presigned_urls: bool = False,
) -> UploadResponse:
    """Return an upload; with `presigned_urls` a confirmed one carries a URL to GET its file."""
    with wh.db.read() as connection:
        row = _row(connection, buckets.resolve(connection, principal, namespace, bucket), upload_id)
    return _answer(wh, row, get_url=presigned_urls)


def list_(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    bucket: str,
    page: PageRequest,
    request: ListUploadsRequest,
) -> ListUploadsResponse:
    """List a bucket's uploads, the newest first unless sorted otherwise."""
    with wh.db.read() as connection:
        place = buckets.resolve(connection, principal, namespace, bucket)
        mine = uploads.c.bucket_id == place["bucket_id"]
        query = sa.select(uploads).where(mine).order_by(uploads.c.created_at.desc(), uploads.c.upload_id)
        total = connection.execute(sa.select(sa.func.count()).select_from(uploads).where(mine)).scalar_one()
        if not request.filters and not request.search and request.sort is None:
            rows: Sequence[Mapping[Any, Any]] = (
                connection.execute(query.limit(page.limit).offset(page.offset)).mappings().all()
            )
        else:
            listing.refuse_long_scan(wh, total, "uploads")
            with connection.execute(query) as scan:
                chosen = listing.choose(
                    (_searchable(row) for row in scan.mappings()),
                    filters=request.filters,
                    search=request.search,
                    search_in=("filename", "_metadata"),
                    sort=(request.sort.field, request.sort.direction) if request.sort else None,
                    id_field="upload_id",
                )
            total = len(chosen)
            rows = chosen[page.offset : page.offset + page.limit]
    results = [_answer(wh, row, get_url=bool(request.return_presigned_urls)) for row in rows]
    sizes = [result.file_size_bytes or 0 for result in results]
    statuses: dict[str, int] = {}
    for result in results:
        statuses[result.status] = statuses.get(result.status, 0) + 1
    return ListUploadsResponse(
        results=results,
        pagination=listing.stand(wh, page, total, len(results)),
        stats=UploadListStats(
            total_uploads=len(results),
            total_size_bytes=sum(sizes),
            uploads_by_status=statuses,
            avg_file_size_bytes=sum(sizes) / len(results) if results else 0.0,
            unique_buckets=1 if results else 0,
        ),
    )


def _searchable(row: RowMapping) -> dict[str, Any]:
    values = (row["metadata"] or {}).values()
    return {
        **row,
        "status": _status(row),
        "file_size_bytes": row["size_bytes"] or row["file_size_bytes"],
        "_metadata": "\n".join(map(str, values)),
    }


def delete(wh: Warehouse, principal: Principal, namespace: str, bucket: str, upload_id: str) -> None:
    """Delete an upload: its URL takes nothing any more. The object and the blob of a confirmed one stay."""
    with wh.db.write() as connection:
        row = _row(connection, buckets.resolve(connection, principal, namespace, bucket), upload_id)
        connection.execute(
            sa.update(uploads)
            .where(uploads.c.upload_id == upload_id, uploads.c.status == "PENDING")
            .values(status="FAILED", sha256=None)
        )
    if row["sha256"] is not None:
        wh.blobs.path(_staged(row, row["sha256"])).unlink(missing_ok=True)
    # Last, so that a kill in between leaves a row that the next try removes.
    with wh.db.write() as connection:
        connection.execute(sa.delete(uploads).where(uploads.c.upload_id == upload_id))


def sweep(wh: Warehouse) -> int:
    """Fail uploads that were not confirmed in time and remove what came for them; return how many there were.

    Failed ones are forgotten after a month. Repeatable.
    """
    with wh.db.read() as connection:
        late = (
            connection.execute(
                sa.select(uploads)
                .where(
                    uploads.c.status == "PENDING", uploads.c.expires_at < _text(datetime.now(UTC) - _GRACE)
                )
                .limit(_SWEPT_AT_ONCE)
            )
            .mappings()
            .all()
        )
        old = connection.execute(sa.select(uploads.c.upload_id).where(_is_old()).limit(1)).scalar()
    for row in late:
        if row["sha256"] is not None:
            wh.blobs.path(_staged(row, row["sha256"])).unlink(missing_ok=True)
    if late or old is not None:
        with wh.db.write() as connection:
            connection.execute(
                sa.update(uploads)
                .where(
                    uploads.c.upload_id.in_([row["upload_id"] for row in late]), uploads.c.status == "PENDING"
                )
                .values(status="FAILED", message=_EXPIRED, sha256=None, etag=None, size_bytes=None)
            )
            connection.execute(sa.delete(uploads).where(_is_old()))
    return len(late)


def _is_old() -> sa.ColumnElement[bool]:
    return sa.and_(
        uploads.c.status.in_(["FAILED", "SKIPPED"]),
        uploads.c.expires_at < _text(datetime.now(UTC) - KEPT_FOR),
    )


# --- inside -------------------------------------------------------------------------------------------


def _row(
    connection: Connection, bucket: RowMapping, upload_id: str, *, made: str | None = None
) -> RowMapping:
    return buckets.find_in(connection, bucket, uploads, "upload", upload_id, made=made)


def _staged(row: Mapping[Any, Any], sha256: str | None) -> str:
    return f"{row['namespace_id']}/uploads/{row['upload_id']}.{sha256}"


def _status(row: Mapping[Any, Any]) -> str:
    """Return an upload's status now; the sweep writes down later that one has expired."""
    expired = row["status"] == "PENDING" and row["expires_at"] < now()
    return "FAILED" if expired else str(row["status"])


def _signature(wh: Warehouse, upload_id: str, expires: int) -> str:
    return hmac.new(wh.signing_key, f"upload\n{upload_id}\n{expires}".encode(), hashlib.sha256).hexdigest()


def _put_url(wh: Warehouse, row: Mapping[Any, Any]) -> str:
    expires = int(datetime.fromisoformat(row["expires_at"]).timestamp())
    signature = _signature(wh, row["upload_id"], expires)
    return f"{wh.base_url}/v1/uploads/{row['upload_id']}?expires={expires}&signature={signature}"


def _answer(
    wh: Warehouse, row: Mapping[Any, Any], *, put_url: bool = False, get_url: bool = False
) -> UploadResponse:
    status = _status(row)
    url = None
    if put_url and status == "PENDING":
        url = _put_url(wh, row)
    elif get_url and row["blob_key"] is not None:
        url = links.sign(wh, row["namespace_id"], row["blob_key"])
    return UploadResponse(
        upload_id=row["upload_id"],
        bucket_id=row["bucket_id"],
        filename=row["filename"],
        content_type=row["content_type"],
        file_size_bytes=row["size_bytes"] or row["file_size_bytes"],
        presigned_url=url,
        presigned_url_expiration=row["presigned_url_expiration"],
        s3_key=f"{row['namespace_id']}/uploads/{row['upload_id']}/{row['filename']}",
        status=TaskStatus(status),
        metadata=row["metadata"],
        create_object_on_confirm=row["create_object_on_confirm"],
        object_metadata=row["object_metadata"],
        blob_property=row["blob_property"],
        blob_type=row["blob_type"],
        file_hash=row["sha256"] or row["file_hash"],
        skip_duplicates=row["skip_duplicates"],
        is_duplicate=row["duplicate_of_upload_id"] is not None,
        duplicate_of_upload_id=row["duplicate_of_upload_id"],
        skipped_unique_key=status == "SKIPPED",
        existing_object_id=row["object_id"] if status == "SKIPPED" else None,
        message=row["message"] or (_EXPIRED if status == "FAILED" else None),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        completed_at=row["completed_at"],
        verified_at=row["completed_at"],
        etag=row["etag"],
        object_id=row["object_id"],
    )


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
