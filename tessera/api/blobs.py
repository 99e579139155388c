"""Files of blobs under signed, short-lived URLs: the signature stands for the key."""

from __future__ import annotations

import time
from typing import Annotated

import sqlalchemy as sa
from fastapi import Path, Query
from fastapi.responses import FileResponse
from starlette.responses import Response

from tessera import content, links
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.db.tables import namespaces
from tessera.errors import NotFoundError

router = Router(tags=["Blobs"])

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
    responses={206: {"description": "The range that was asked for."}},
)
def get_blob(
    wh: Wh,
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
    with path.open("rb") as file:
        head = file.read(4096)
    mime_type = content.sniff(head) or (
        "text/plain; charset=utf-8" if _is_text(head) else content.OCTET_STREAM
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
            "Cache-Control": f"private, max-age={max(0, expires - int(time.time()))}, immutable",
        },
    )


def _is_text(head: bytes) -> bool:
    if b"\x00" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # cut inside a character
    return True
