"""Files of blobs under signed, short-lived URLs: the signature stands for the key."""

from __future__ import annotations

import re
import time
from typing import Annotated

import sqlalchemy as sa
from fastapi import Path, Query, Request
from fastapi.responses import FileResponse
from starlette.responses import Response

from tessera import content, links
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.db.tables import namespaces
from tessera.errors import NotFoundError, RangeNotSatisfiableError

router = Router(tags=["Blobs"])

_RANGES = re.compile(
    r"bytes\s*=\s*((?:\d{1,18}-\d{0,18}|-\d{1,18})(?:\s*,\s*(?:\d{1,18}-\d{0,18}|-\d{1,18})){0,9})",
    re.ASCII | re.IGNORECASE,
)

#: What a browser may show by itself; everything else is a download. SVG and HTML could run scripts.
_SHOWN = frozenset({"image", "video", "audio"})
_EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "application/pdf": "pdf",
    "text/plain": "txt",
}


@router.api_route(
    "/v1/blobs/{namespace_id}/blobs/{digest}",
    methods=["GET", "HEAD"],
    response_class=FileResponse,
    responses={
        206: {"description": "The range that was asked for."},
        304: {"description": "The file that If-None-Match names."},
        416: {"description": "The file is shorter than the range that was asked for."},
    },
)
def get_blob(
    wh: Wh,
    request: Request,
    namespace_id: Annotated[str, Path(max_length=64)],
    digest: Annotated[str, Path(max_length=128)],
    expires: Annotated[int, Query(description="Unix time, part of the signed URL.")],
    signature: Annotated[str, Query(max_length=128, description="Part of the signed URL.")],
) -> Response:
    """Return a file, or a range of it. The URL comes from another answer and works for an hour without a key."""
    key = f"{namespace_id}/blobs/{digest}"
    owner = links.verify(wh, key, expires, signature)
    with wh.db.read() as connection:
        exists = connection.execute(
            sa.select(namespaces.c.namespace_id).where(namespaces.c.namespace_id == owner)
        ).scalar()
    path = wh.blobs.path(key)
    if exists is None or not path.is_file():
        raise NotFoundError("blob", digest)
    caching = {
        # Content is named by its digest: under this URL it never changes.
        "ETag": f'"{digest}"',
        "Cache-Control": f"private, max-age={max(0, expires - int(time.time()))}, immutable",
    }
    if _is_known(request.headers.get("if-none-match"), digest):
        return Response(status_code=304, headers=caching)
    _settle_range(request, path.stat().st_size)
    with path.open("rb") as file:
        head = file.read(4096)
    charset = content.encoding_of(head).removesuffix("-sig")
    mime_type = content.sniff_file(path) or (
        f"text/plain; charset={charset}" if content.begins_as_text(head) else content.OCTET_STREAM
    )
    plain = mime_type.partition(";")[0]
    shown = content.family(plain) in _SHOWN
    return FileResponse(
        path,
        media_type=mime_type,
        filename=f"{digest[:16]}.{_EXTENSIONS.get(plain, 'bin')}",
        content_disposition_type="inline" if shown else "attachment",
        headers={
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cross-Origin-Resource-Policy": "same-site",
            **caching,
        },
    )


def _is_known(if_none_match: str | None, digest: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or f'"{digest}"' in tags


def _settle_range(request: Request, size_bytes: int) -> None:
    """Refuse ranges of which the file has nothing; take away what is no range, so that all of it is sent.

    So says RFC 9110 (14.2): a header that is not valid is as good as none.
    """
    given = request.headers.get("range")
    if given is None:
        return
    match = _RANGES.fullmatch(given.strip())
    ranges = [part.strip().split("-") for part in match[1].split(",")] if match else []
    valid = match is not None and all(not b or not a or int(a) <= int(b) for a, b in ranges)
    if not valid:
        request.scope["headers"] = [(k, v) for k, v in request.scope["headers"] if k != b"range"]
    elif all(int(a) >= size_bytes if a else not int(b) for a, b in ranges):
        error = RangeNotSatisfiableError(
            f"The file has {size_bytes} bytes; the range asked for begins behind them."
        )
        error.size_bytes = size_bytes
        raise error
