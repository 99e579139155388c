"""Files of exports under signed, short-lived URLs: the signature stands for the key."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from fastapi.responses import FileResponse

from tessera import exports
from tessera.api.routing import Router
from tessera.api.scope import Wh

router = Router(tags=["Collections"])

_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}


@router.get("/v1/exports/{namespace_id}/{export_id}/{name}", response_class=FileResponse)
def get_export(
    wh: Wh,
    namespace_id: Annotated[str, Path(max_length=64)],
    export_id: Annotated[str, Path(max_length=64)],
    name: Annotated[str, Path(max_length=64)],
    expires: Annotated[int, Query(description="Unix time, part of the signed URL.")],
    signature: Annotated[str, Query(max_length=128, description="Part of the signed URL.")],
) -> FileResponse:
    """Return a file of an export. The URL comes from the export's answer and works for an hour without a key."""
    path = exports.file_of(wh, namespace_id, export_id, name, expires, signature)
    return FileResponse(
        path,
        media_type=_TYPES[name.rpartition(".")[2]],
        filename=name,
        headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-store"},
    )
