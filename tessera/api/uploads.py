"""Routes of uploads, and the one that takes the file itself: signed, without a key, streamed to disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tessera import uploads
from tessera.api.auth import Asking
from tessera.api.buckets import Bucket
from tessera.api.objects import IdempotencyKey
from tessera.api.paging import page_parameter
from tessera.api.routing import Router
from tessera.api.scope import NamespaceId, Wh
from tessera.context import Warehouse
from tessera.errors import RequestTimeoutError, TesseraError
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
    UploadResponse,
)
from tessera.pagination import PageRequest

router = Router(tags=["Uploads"])

UploadId = Annotated[str, Path(max_length=64, examples=["upl_0f3a9c5e77d1b2c4"])]
TwentyRows = Annotated[PageRequest, Depends(page_parameter(20))]

#: Pieces of a file are gathered to this size, so that a change of thread is worth it.
_PIECE_BYTES = 2**20
#: Of a file that is refused so much is read on, for a client that looks for the answer only when it has sent it.
_DISCARDED_BYTES = 4 * 2**20


@router.post("/v1/buckets/{bucket_identifier}/uploads")
def create_upload(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    body: CreateUploadRequest,
    idempotency_key: IdempotencyKey = None,
) -> UploadResponse:
    """Make an upload and the URL to PUT its file to; durable. The file counts once it is confirmed."""
    return uploads.create(wh, asking, namespace, bucket_identifier, body, idempotency_key=idempotency_key)


@router.post("/v1/buckets/{bucket_identifier}/uploads/batch")
def create_uploads_batch(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    body: BatchUploadRequest,
    idempotency_key: IdempotencyKey = None,
) -> BatchUploadResponse:
    """Make up to 100 uploads, all of them or none; durable."""
    return uploads.create_batch(
        wh, asking, namespace, bucket_identifier, body, idempotency_key=idempotency_key
    )


@router.post("/v1/buckets/{bucket_identifier}/uploads/list")
def list_uploads(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    page: TwentyRows,
    body: ListUploadsRequest | None = None,
) -> ListUploadsResponse:
    """List a bucket's uploads, the newest first unless sorted otherwise."""
    return uploads.list_(wh, asking, namespace, bucket_identifier, page, body or ListUploadsRequest())


@router.get("/v1/buckets/{bucket_identifier}/uploads")
def list_uploads_get(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, page: TwentyRows
) -> ListUploadsResponse:
    """List a bucket's uploads, the newest first."""
    return uploads.list_(wh, asking, namespace, bucket_identifier, page, ListUploadsRequest())


@router.post("/v1/buckets/{bucket_identifier}/uploads/confirm/batch")
def confirm_uploads_batch(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    body: BatchConfirmRequest,
) -> BatchConfirmResponse:
    """Confirm up to 100 uploads, each by itself; what is confirmed is durable when answered."""
    return uploads.confirm_batch(wh, asking, namespace, bucket_identifier, body)


@router.post("/v1/buckets/{bucket_identifier}/uploads/{upload_id}/confirm")
def confirm_upload(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    upload_id: UploadId,
    body: ConfirmUploadRequest | None = None,
    is_async: Annotated[
        bool, Query(alias="async", description="Accepted; it is done when answered, either way.")
    ] = False,
) -> ConfirmUploadResponse:
    """Confirm that a file has come, and make its object; both durable when answered. A batch processes it."""
    return uploads.confirm(
        wh, asking, namespace, bucket_identifier, upload_id, body or ConfirmUploadRequest()
    )


@router.get("/v1/buckets/{bucket_identifier}/uploads/{upload_id}")
def get_upload(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    upload_id: UploadId,
    return_presigned_urls: Annotated[
        bool, Query(description="Give a confirmed file a URL to GET it, good for an hour without a key.")
    ] = False,
) -> UploadResponse:
    """Return an upload."""
    return uploads.get(
        wh, asking, namespace, bucket_identifier, upload_id, presigned_urls=return_presigned_urls
    )


@router.delete("/v1/buckets/{bucket_identifier}/uploads/{upload_id}", status_code=204)
def delete_upload(
    wh: Wh, asking: Asking, namespace: NamespaceId, bucket_identifier: Bucket, upload_id: UploadId
) -> None:
    """Delete an upload and what came for it; the object and the file of a confirmed one stay. Durable."""
    uploads.delete(wh, asking, namespace, bucket_identifier, upload_id)


@router.put(
    "/v1/uploads/{upload_id}",
    response_class=Response,
    responses={
        200: {
            "description": "All of the file has come; ETag is its MD5.",
            "headers": {"ETag": {"schema": {"type": "string"}}},
        },
        408: {"description": "The file did not come in time."},
    },
)
async def put_file(
    wh: Wh,
    request: Request,
    upload_id: UploadId,
    expires: Annotated[int, Query(description="Unix time, part of the signed URL.")],
    signature: Annotated[str, Query(max_length=128, description="Part of the signed URL.")],
    content_type: Annotated[str | None, Header(description="As the upload declared it, or none.")] = None,
    content_md5: Annotated[str | None, Header(description="Base64 of the file's MD5, to be checked.")] = None,
) -> Response:
    """Take a file, as the body itself. The URL comes from the upload and works without a key until it expires.

    Durable when answered; half a file is never kept. The last of several PUTs counts.
    """
    declared = request.headers.get("content-length", "")
    body = _Body(wh, request)
    try:
        arrival = await run_in_threadpool(
            uploads.receive,
            wh,
            upload_id,
            expires,
            signature,
            content_type=content_type,
            content_length=int(declared) if declared.isdigit() else None,
            content_md5=content_md5,
        )
        try:
            async with asyncio.timeout(wh.settings.upload_timeout_s):
                async for piece in body.pieces():
                    await run_in_threadpool(arrival.write, piece)
            etag = await run_in_threadpool(arrival.keep)
        finally:
            arrival.close()
    except TimeoutError:
        raise RequestTimeoutError(
            f"The file did not come within {wh.settings.upload_timeout_s:g} s, or paused longer than "
            f"{wh.settings.upload_idle_s:g} s; nothing was kept."
        ) from None
    except TesseraError:
        # Whoever asked whether to send it at all has not begun.
        if "expect" not in request.headers:
            await body.discard()
        raise
    return Response(status_code=200, headers={"ETag": f'"{etag}"'})


class _Body:
    """The body of a request as it comes; the loop serves others in between."""

    def __init__(self, wh: Warehouse, request: Request) -> None:
        self._stream = aiter(request.stream())
        self._idle_s = wh.settings.upload_idle_s
        self._has_ended = False

    async def _next(self) -> bytes | None:
        async with asyncio.timeout(self._idle_s):
            chunk = await anext(self._stream, None)
        self._has_ended = chunk is None
        return chunk

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield pieces of about a mebibyte. Raises `TimeoutError` after a pause that is too long."""
        gathered = bytearray()
        while (chunk := await self._next()) is not None:
            gathered += chunk
            if len(gathered) >= _PIECE_BYTES:
                yield bytes(gathered)
                gathered.clear()
        if gathered:
            yield bytes(gathered)

    async def discard(self) -> None:
        """Read on without keeping anything: a client that is still sending would not see the answer."""
        seen = 0
        with contextlib.suppress(TimeoutError):
            # In all no longer than one pause: who drips is told, too.
            async with asyncio.timeout(self._idle_s):
                while not self._has_ended and seen < _DISCARDED_BYTES:
                    seen += len(await self._next() or b"")
