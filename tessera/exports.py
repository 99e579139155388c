"""Exports: the documents of a collection in one file, for as long as the link to it works.

The files lie below ``<namespace_id>/exports/<export_id>/`` and are swept when their time is over. Erasing removes all
exports of the namespace, and waits for one that is being written: it may have read what is erased.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import orjson
import sqlalchemy as sa

from tessera import collections, documents, namespaces
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import exports
from tessera.errors import BadRequestError, ConflictError, ForbiddenError, NotFoundError, storage_error
from tessera.filters import And, Condition, Filter, parse
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.collections import CollectionExportRequest, CollectionExportResponse, ExportFormat
from tessera.ports import Page

#: How long links work and files are kept.
LIFETIME_S = 3600
#: An export that is not done by then is given up.
WRITING_S = 600
#: Of a larger collection only a sample, or what a filter lets through, is exported in one request.
MAX_DOCUMENTS = 100_000
#: Documents read at once, and rows of a group in a Parquet file.
_PAGE = 500

_EXTENSIONS = {ExportFormat.JSON: "jsonl", ExportFormat.CSV: "csv", ExportFormat.PARQUET: "parquet"}
#: Parts of an answer that say nothing of the document itself.
_LEFT_OUT = ("document_blobs", "_internal", "vectors")

Row = Mapping[str, Any]


def export(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: CollectionExportRequest
) -> CollectionExportResponse:
    """Write documents of a collection into a file, as they are answered, and return a link to it.

    Vectors go into a file of their own. Links in the documents work as long as that to the file. Nested values are
    JSON in CSV and Parquet. Raises `BadRequestError` for more than `MAX_DOCUMENTS`.
    """
    asked = parse(request.filters)
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        row = collections.find(connection, namespace_id, identifier)
    mine = Condition("collection_id", "eq", row["collection_id"], True)
    within: Filter = mine if asked is None else And((mine, asked))
    count = min(wh.views.count(namespace_id, within), request.sample_size or MAX_DOCUMENTS + 1)
    if count > MAX_DOCUMENTS:
        raise BadRequestError(
            f"These are more than {MAX_DOCUMENTS} documents, which is what one export holds. Send filters that let "
            "fewer through, or a sample_size.",
            details={"max_documents": MAX_DOCUMENTS},
        )
    export_id = new_id("exp")
    _begin(wh, principal, namespace_id, export_id)
    folder = _folder(namespace_id, export_id)
    names = [f"documents.{_EXTENSIONS[request.format]}"]
    read = _Reading(wh, namespace_id, within, count, request)
    try:
        with _disk():
            _write(wh.blobs.new_path(f"{folder}/{names[0]}"), request.format, read.documents)
            if request.include_vectors:
                names.append(f"vectors.{_EXTENSIONS[request.format]}")
                _write(wh.blobs.new_path(f"{folder}/{names[1]}"), request.format, read.vectors)
        _end(wh, namespace_id, export_id)
    except BaseException:
        _remove(wh, namespace_id, export_id)
        raise
    links = [_link(wh, f"{namespace_id}/{export_id}/{name}") for name in names]
    return CollectionExportResponse(
        download_url=links[0],
        s3_path=f"{folder}/{names[0]}",
        format=request.format,
        document_count=read.count,
        file_size_bytes=wh.blobs.path(f"{folder}/{names[0]}").stat().st_size,
        exported_at=now(),
        vectors_download_url=links[1] if request.include_vectors else None,
        vectors_s3_path=f"{folder}/{names[1]}" if request.include_vectors else None,
    )


def file_of(
    wh: Warehouse, namespace_id: str, export_id: str, name: str, expires: int, signature: str
) -> Path:
    """Return the file that a link names. Raises `ForbiddenError` for one that is not ours or has expired."""
    key = f"{namespace_id}/{export_id}/{name}"
    if not hmac.compare_digest(_signature(wh, key, expires).encode(), signature.encode()):
        raise ForbiddenError(
            "This link was not made by this server, or was changed. Export again for a new one."
        )
    if expires < time.time():
        raise ForbiddenError("This link has expired. Export again for a new one.")
    with wh.db.read() as connection:
        there = connection.execute(
            sa.select(exports.c.export_id).where(exports.c.export_id == export_id, exports.c.is_done)
        ).scalar()
    path = wh.blobs.path(f"{_folder(namespace_id, export_id)}/{name}")
    if there is None or not path.is_file():
        raise NotFoundError("export", export_id)
    return path


def sweep(wh: Warehouse) -> None:
    """Remove exports whose time is over, and what a server that died left of one. Repeatable."""
    with wh.db.read() as connection:
        over = connection.execute(
            sa.select(exports.c.namespace_id, exports.c.export_id)
            .where(exports.c.expires_at < now())
            .limit(100)
        ).all()
    for row in over:
        _remove(wh, row.namespace_id, row.export_id)


def remove_all(wh: Warehouse, namespace_id: str) -> str | None:
    """Remove every export of a namespace; say what has to be waited for first."""
    with wh.db.read() as connection:
        mine = exports.c.namespace_id == namespace_id
        known = connection.execute(sa.select(exports).where(mine)).all()
    if any(not row.is_done and row.expires_at >= now() for row in known):
        return "an export that is being written"
    for row in known:
        if not _remove(wh, namespace_id, row.export_id):
            return "a backup"
    return None


# --- keeping -------------------------------------------------------------------------------------------


def _folder(namespace_id: str, export_id: str) -> str:
    return f"{namespace_id}/exports/{export_id}"


def _begin(wh: Warehouse, principal: Principal, namespace_id: str, export_id: str) -> None:
    with wh.db.write() as connection:
        namespaces.resolve(connection, principal, namespace_id)
        values = {"export_id": export_id, "namespace_id": namespace_id, "is_done": False}
        connection.execute(exports.insert().values(**values, expires_at=_in(WRITING_S)))


def _end(wh: Warehouse, namespace_id: str, export_id: str) -> None:
    with wh.db.write() as connection:
        done = connection.execute(
            sa.update(exports)
            .where(exports.c.export_id == export_id)
            .values(is_done=True, expires_at=_in(LIFETIME_S))
        ).rowcount
    if not done:
        raise ConflictError(
            f"The export took longer than {WRITING_S} s, or its namespace {namespace_id} was deleted. Export fewer "
            "documents at once."
        )


def _remove(wh: Warehouse, namespace_id: str, export_id: str) -> bool:
    """Remove an export's files, then its row; False while a backup runs."""
    folder = wh.blobs.path(_folder(namespace_id, export_id))
    for path in folder.iterdir() if folder.is_dir() else ():
        if not wh.blobs.remove(f"{_folder(namespace_id, export_id)}/{path.name}"):
            return False
    if folder.is_dir():
        folder.rmdir()
    with wh.db.write() as connection:
        connection.execute(sa.delete(exports).where(exports.c.export_id == export_id))
    return True


def _in(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _link(wh: Warehouse, key: str) -> str:
    expires = int(time.time()) + LIFETIME_S
    return f"{wh.base_url}/v1/exports/{key}?expires={expires}&signature={_signature(wh, key, expires)}"


def _signature(wh: Warehouse, key: str, expires: int) -> str:
    return hmac.new(wh.signing_key, f"export\n{key}\n{expires}".encode(), hashlib.sha256).hexdigest()


# --- reading -------------------------------------------------------------------------------------------


class _Reading:
    """Reads the documents of an export, page by page; `count` is how many there were in the end."""

    def __init__(
        self,
        wh: Warehouse,
        namespace_id: str,
        within: Filter,
        count: int,
        request: CollectionExportRequest,
    ) -> None:
        self._wh, self._namespace_id, self._within, self._request = wh, namespace_id, within, request
        self.count = count

    def documents(self) -> Iterator[Row]:
        """Yield each document as one flat row: what an answer has at its root."""
        shown = 0
        for hit in self._hits(with_vectors=False):
            shown += 1
            answer = documents.present(
                self._wh, self._namespace_id, hit.payload, select=self._request.select_fields
            )
            yield {name: value for name, value in answer.items() if name not in _LEFT_OUT}
        self.count = shown

    def vectors(self) -> Iterator[Row]:
        """Yield the vectors of each document, by name."""
        for hit in self._hits(with_vectors=True):
            yield {"document_id": hit.document_id, **{name: v.tolist() for name, v in hit.vectors.items()}}

    def _hits(self, *, with_vectors: bool) -> Iterator[Any]:
        left, after = self.count, None
        while left > 0:
            page = Page(limit=min(_PAGE, left), filter=self._within, after=after, with_vectors=with_vectors)
            found = self._wh.views.page(self._namespace_id, page)
            yield from found.hits
            left, after = left - len(found.hits), found.next_after
            if after is None:
                return


# --- writing -------------------------------------------------------------------------------------------


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error) or error from error


def _write(path: Path, form: ExportFormat, rows: Callable[[], Iterable[Row]]) -> None:
    """Write `rows` to `path`: as JSON, a row a line, and from that as a table, whose columns are known only then."""
    lines = path if form is ExportFormat.JSON else path.with_name(f"{path.name}.jsonl")
    columns: dict[str, set[str]] = {}
    with lines.open("wb") as file:
        for row in rows():
            for name, value in row.items():
                columns.setdefault(name, set()).add(_kind(value))
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        _sync(file)
    if form is ExportFormat.CSV:
        _write_csv(lines, path, columns)
    elif form is ExportFormat.PARQUET:
        _write_parquet(lines, path, columns)
    if lines is not path:
        lines.unlink()


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        return type(value).__name__
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "other"
    if isinstance(value, float):
        return "float"
    if isinstance(value, list) and value and all(type(item) is float for item in value):
        return "floats"
    return "other"


def _rows(lines: Path) -> Iterator[JsonObject]:
    with lines.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def _write_csv(lines: Path, path: Path, columns: Mapping[str, set[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in _rows(lines):
            writer.writerow([_cell(row.get(name)) for name in columns])
        _sync(file)


def _cell(value: Any) -> str:
    """Return a value as the text of a cell: a text as it is, nothing for null, all else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _write_parquet(lines: Path, path: Path, columns: Mapping[str, set[str]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {
        frozenset({"bool"}): pa.bool_(),
        frozenset({"int"}): pa.int64(),
        frozenset({"float"}): pa.float64(),
        frozenset({"int", "float"}): pa.float64(),
        frozenset({"str"}): pa.string(),
        frozenset({"floats"}): pa.list_(pa.float32()),
    }
    typed = {name: types.get(frozenset(kinds - {"NoneType"})) for name, kinds in columns.items()}
    schema = pa.schema([(name, kind or pa.string()) for name, kind in typed.items()])
    with path.open("wb") as file:
        with parquet.ParquetWriter(file, schema) as writer:
            for part in _parts(_rows(lines)):
                arrays = [
                    pa.array([_plain(row.get(name), typed[name]) for row in part], schema.field(name).type)
                    for name in schema.names
                ]
                writer.write_table(pa.table(arrays, schema=schema))
        _sync(file)


def _plain(value: Any, kind: Any) -> Any:
    """Return a value for its column; in a column of several kinds everything is JSON."""
    return value if value is None or kind is not None else orjson.dumps(value).decode()


def _parts(rows: Iterable[JsonObject]) -> Iterator[list[JsonObject]]:
    part: list[JsonObject] = []
    for row in rows:
        part.append(row)
        if len(part) == _PAGE:
            yield part
            part = []
    if part:
        yield part
