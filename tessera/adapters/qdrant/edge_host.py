"""A host process: owns open Qdrant Edge shards and answers for them over a pipe.

Started as ``python -m tessera.adapters.qdrant.edge_host``; see `tessera.adapters.qdrant.edge`, which starts
it. Edge holds the interpreter's lock during its calls, so shards live here and not in the server.

One thread does everything: it drains the pipe, answers searches that wait for one view as one batch, then
does one slice of each longer piece of work, and starts again. A view's directory holds ``shard/`` (Edge's
files), ``mark.json`` (how far the view has come, moved only after a flush) and ``checksums.json``: of all files
while nothing is written (made at close, and a moment after the last write), else of those that no write changes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import importlib.metadata
import itertools
import logging
import os
import platform
import queue
import select
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import qdrant_edge

from tessera import collector, failpoints
from tessera.adapters.qdrant import packing, pipe
from tessera.adapters.qdrant.packing import Layout
from tessera.adapters.qdrant.translate import Translator
from tessera.adapters.qdrant.view import (
    Bare,
    EngineIndex,
    LiveView,
    Point,
    Query,
    Record,
    Standing,
    Steps,
    finish,
    sparse_recipe,
)
from tessera.errors import BadRequestError, EngineFullError, QdrantError, storage_trouble
from tessera.ports import Hit, Mark, PageResult, Payload, View, ViewDamaged, ViewLost

#: 0.7.2 and 0.8.0 lose every point that was not flushed when their process is killed; 0.9.0 loses none.
OLDEST_EDGE: Final = (0, 9, 0)
#: The durable mark moves after so many entries, or so long after the first of them: where flushes are slow, so much
#: longer that those take no more than this part of the time. The server asks for it by itself, a little earlier: this
#: is for when it does not.
FLUSH_ENTRIES: Final = 50
FLUSH_AFTER_S: Final = 1.5
FLUSH_LATEST_S: Final = 15.0
FLUSH_SHARE: Final = 0.005
#: From so many written points on, files are synced by a thread before the engine flushes, which holds its process.
SYNC_AHEAD_POINTS: Final = 200
#: Below this size vectors are searched without a graph, exactly: 100,000 of 384 dimensions are 150 MB.
INDEXING_THRESHOLD_KB: Final = 200_000
#: A view that was begun for graphs gets one for every vector storage above this size.
GRAPH_THRESHOLD_KB: Final = 1_000
#: Links of a point in a graph, candidates while it is built, and the size (KB) below which what a filter lets
#: through is scanned instead.
GRAPH_M: Final = 16
GRAPH_EF_CONSTRUCT: Final = 128
FULL_SCAN_KB: Final = 20_000
#: A graph is searched with the least of these widths that finds so much of the ten nearest of sampled queries.
GRAPH_WIDTHS: Final = (64, 128, 256, 512, 1024)
GRAPH_RECALL: Final = 0.995
GRAPH_SAMPLE: Final = 48
#: The checksums of a view are made when nothing was written for this long, in slices of so many bytes.
SEAL_AFTER_S: Final = 2.0
SEAL_SLICE_BYTES: Final = 4 * 2**20
#: How much a builder gives way to whoever serves.
BUILDER_NICENESS: Final = 10
#: A directory that another process still holds is tried again for this long.
LOCK_PATIENCE_S: Final = 2.0
#: The memory mappings of this process are counted once in so many openings; counting 50,000 takes 50 ms.
COUNT_MAPPINGS_EVERY: Final = 8
#: A write begins only with so much room left: Edge writes through memory mappings of files with holes, and a disk
#: that has no block for a hole ends the process (SIGBUS) instead of refusing the call.
ROOM_BYTES: Final = 64 * 2**20
#: As above, for what writes little: loading a view, and making durable what it has taken.
LITTLE_ROOM_BYTES: Final = 8 * 2**20
#: Exit status after a panic of the engine.
PANIC_STATUS: Final = 70

_MARK, _CHECKSUMS, _SHARD = "mark.json", "checksums.json", "shard"
_LASTING = (
    "*/segment.json",
    "*/version.info",
    "*/mutable_id_tracker.*",
    "*/*/page_*.dat",
    "*/*/*/chunk_*.mmap",
    "*/id_tracker.mappings",
    "*/vector_storage*/matrix.dat",
    "*/vector_index*/*",
)
#: What no write changes any more, in segments that the engine has finished (they have this mapping of ids).
_FINISHED_MAPPING = "id_tracker.mappings"
_FINISHED = (
    _FINISHED_MAPPING,
    "vector_storage*/matrix.dat",
    "vector_index*/*",
    "payload_storage/page_*.dat",
    "payload_index/*/point_to_values.bin",
    "payload_index/*/values_to_points.bin",
)
_FULL_MESSAGE = (
    "The disk that holds the namespace's index is full. Free space and try again; what was acknowledged is in the log "
    "and is applied then."
)
_PLACEHOLDER = "_none"
#: The engine's name of the vector that has none.
_UNNAMED = ""
#: With more collections than this in one view, each search filters by collection.
_MOST_VALUES = 10_000
_BLOCK = 64 * 1024
_ZEROS = bytes(_BLOCK)

logger = logging.getLogger("tessera.edge_host")


class Panic(BaseException):
    """The engine panicked; nothing that it holds in memory can be trusted any more."""


@contextlib.contextmanager
def _edge_call() -> Iterator[None]:
    """Turn what Edge raises into `QdrantError`, and a panic (not an `Exception`) into `Panic`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, Panic):
        raise
    except Exception as error:  # Edge raises bare `Exception`
        raise QdrantError(f"The vector engine failed: {_first_line(error)}") from error
    except BaseException as panic:
        raise Panic(_first_line(panic)) from panic


def _is_short_of_room(error: BaseException) -> bool:
    """Say whether the disk is full, or no file can be opened: what was met says nothing about the view's files."""
    return storage_trouble(error) in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


def _require_room(view: View, room_bytes: int = ROOM_BYTES) -> None:
    """Raise `EngineFullError` when the disk of the view has too little room left to write to it."""
    place = Path(view.location)
    found = os.statvfs(next(folder for folder in (place, *place.parents) if folder.exists()))
    if found.f_bavail * found.f_frsize < room_bytes:
        raise EngineFullError(
            f"The disk that holds the namespace's index has less than {room_bytes // 2**20} MiB free. Free space and "
            "try again; what was acknowledged is in the log and is applied then."
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


# --- the engine ----------------------------------------------------------------------------------------


class EdgeEngine:
    """One open shard, as `tessera.adapters.qdrant.view` wants an engine."""

    # 6,000 at once are a gap of 300 ms for searches, 40 one of 2; the work is the same.
    write_slice = 40
    # The host has one thread.
    is_still = True

    def __init__(
        self, shard: qdrant_edge.EdgeShard, translator: Translator, unnamed: str | None = None
    ) -> None:
        self._shard = shard
        self._translator = translator
        #: The vector that the shard holds without a name (`packing.unnamed_vector`); here all have theirs.
        self._unnamed = unnamed

    def _engine_name(self, name: str) -> str:
        return _UNNAMED if name == self._unnamed else name

    def _to_engine(self, vectors: Mapping[str, Any]) -> Any:
        """Return vectors as the engine takes them: the unnamed one by itself, half as dear as in a dictionary."""
        if self._unnamed is None:
            return dict(vectors)
        if len(vectors) == 1 and self._unnamed in vectors:
            return vectors[self._unnamed]
        return {self._engine_name(name): vector for name, vector in vectors.items()}

    def _from_engine(self, vector: Any) -> dict[str, Any]:
        if self._unnamed is None or vector is None:
            return vector if isinstance(vector, dict) else {}
        if not isinstance(vector, dict):
            return {self._unnamed: vector}
        return {self._unnamed if name == _UNNAMED else name: value for name, value in vector.items()}

    def _record(self, record: qdrant_edge.Record) -> Record:
        return Record(str(record.id), record.payload, None, self._from_engine(record.vector))

    def upsert(self, points: Sequence[Point]) -> None:
        with _edge_call():
            self._shard.update(
                qdrant_edge.UpdateOperation.upsert_points(
                    [qdrant_edge.Point(p.point_id, self._to_engine(p.vectors), p.payload) for p in points]
                )
            )

    def delete(self, point_ids: Sequence[str]) -> None:
        with _edge_call():
            self._shard.update(qdrant_edge.UpdateOperation.delete_points(list(point_ids)))

    def set_payload(self, point_ids: Sequence[str], key: str | None, payload: Payload) -> None:
        with _edge_call():
            self._shard.update(qdrant_edge.UpdateOperation.set_payload(list(point_ids), payload, key))

    def overwrite_payloads(self, payloads: Mapping[str, Payload]) -> None:
        with _edge_call():
            for point_id, payload in payloads.items():
                self._shard.update(qdrant_edge.UpdateOperation.overwrite_payload([point_id], payload))

    def set_vectors(self, vectors: Mapping[str, Mapping[str, Any]]) -> None:
        points = [
            qdrant_edge.PointVectors(point_id, self._to_engine(named)) for point_id, named in vectors.items()
        ]
        if points:
            with _edge_call():
                self._shard.update(qdrant_edge.UpdateOperation.update_vectors(points))

    def drop_vectors(self, point_ids: Sequence[str], name: str) -> None:
        if point_ids:
            with _edge_call():
                self._shard.update(
                    qdrant_edge.UpdateOperation.delete_vectors(list(point_ids), [self._engine_name(name)])
                )

    def scroll(
        self, filter: Any | None, start: str | None, limit: int, with_payload: bool, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        with _edge_call():
            found, following = self._shard.scroll(
                qdrant_edge.ScrollRequest(
                    offset=start,
                    limit=limit,
                    filter=filter,
                    with_payload=with_payload,
                    with_vector=with_vectors,
                )
            )
        return list(map(self._record, found)), None if following is None else str(following)

    def query_batch(self, queries: Sequence[Query]) -> list[list[Record] | Bare]:
        order = brought_together(queries)
        if order is not None:
            found = self.query_batch([queries[place] for place in order])
            return [records for _, records in sorted(zip(order, found, strict=True), key=itemgetter(0))]
        with _edge_call():
            answers = self._shard.query_batch(
                qdrant_edge.QueryBatchRequest(
                    [
                        qdrant_edge.QueryRequest(
                            query=qdrant_edge.Query.Nearest(
                                query.vector, using=self._engine_name(query.vector_name)
                            ),
                            limit=query.limit,
                            offset=query.offset,
                            filter=query.filter,
                            with_payload=not query.is_bare,
                            with_vector=query.with_vectors,
                            params=qdrant_edge.SearchParams(hnsw_ef=query.ef, exact=query.exact),
                        )
                        for query in queries
                    ]
                )
            )
        return [
            _bare(answer)
            if query.is_bare
            else [
                Record(str(hit.id), hit.payload or {}, hit.score, self._from_engine(hit.vector))
                for hit in answer
            ]
            for query, answer in zip(queries, answers, strict=True)
        ]

    def count(self, filter: Any | None) -> int:
        with _edge_call():
            return self._shard.count(qdrant_edge.CountRequest(exact=True, filter=filter))

    def retrieve(self, point_ids: Sequence[str], with_payload: bool, with_vectors: bool) -> list[Record]:
        with _edge_call():
            found = self._shard.retrieve(list(point_ids), with_payload, with_vectors)
        return list(map(self._record, found))

    def existing(self, point_ids: Sequence[str]) -> int:
        with _edge_call():
            return len(self._shard.retrieve(list(point_ids), False, False))

    def points(self) -> int:
        with _edge_call():
            return self._shard.info().points_count

    def create_index(self, path: str, params: Any) -> None:
        with _edge_call():
            self._shard.update(qdrant_edge.UpdateOperation.create_field_index(path, params))

    def drop_index(self, path: str) -> None:
        with _edge_call():
            self._shard.update(qdrant_edge.UpdateOperation.delete_field_index(path))

    def index_info(self) -> dict[str, EngineIndex]:
        with _edge_call():
            schema = self._shard.info().payload_schema
        indexes = {}
        for path, stated in schema.items():
            type_name, params = self._translator.index_report(stated.data_type, stated.params)
            indexes[path] = EngineIndex(type_name, params, stated.points)
        return indexes

    def values(self, path: str, documents: int) -> set[str] | None:
        """Return the values at the keyword-indexed `path`; None unless each of `documents` has exactly one."""
        if not documents:
            return set()
        try:
            with _edge_call():
                found = self._shard.facet(qdrant_edge.FacetRequest(path, limit=_MOST_VALUES, exact=True)).hits
        except QdrantError:
            return None  # there is no index on it (yet)
        complete = len(found) < _MOST_VALUES and sum(value.count for value in found) == documents
        return {str(value.value) for value in found} if complete else None

    def flush(self) -> None:
        with _edge_call():
            self._shard.flush()

    def optimize(self) -> bool:
        """Build graphs where the configuration asks for them; say whether one was built."""
        with _edge_call():
            while self._shard.optimize():
                pass
            return bool(self._shard.info().indexed_vectors_count)

    def close(self) -> None:
        with _edge_call():
            self._shard.close()


def brought_together(queries: Sequence[Query]) -> list[int] | None:
    """Return the order in which queries that differ in their vector alone are neighbours; None when they are already.

    The engine searches neighbours in one pass: their filter is evaluated once, and what it lets through is read once.
    """
    first: dict[Query, int] = {}
    kinds = [query._replace(vector=None, filter=id(query.filter)) for query in queries]
    for place, kind in enumerate(kinds):
        first.setdefault(kind, place)
    order = sorted(range(len(kinds)), key=lambda place: first[kinds[place]])
    return None if order == list(range(len(kinds))) else order


def _bare(answer: Sequence[Any]) -> Bare:
    """Return a ranking alone. As numbers ids cost less than half of what they do as text."""
    return Bare([hit.id.int for hit in answer], [hit.score for hit in answer])


# --- a view's directory --------------------------------------------------------------------------------


def _write_durably(path: Path, value: object) -> None:
    """Replace `path` by the JSON of `value`; after a crash it holds the old or the new, whole."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(orjson.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    failpoints.reach("flush.mark")
    part.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> Steps[list[int]]:
    """Return size and CRC-32 of a file. Blocks of zeros are left out: Edge's files are mostly holes."""
    seen = 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        crc = position = 0
        while position < size:
            end = size
            if hasattr(os, "SEEK_DATA"):
                try:
                    position = os.lseek(descriptor, position, os.SEEK_DATA)
                except OSError:
                    break  # nothing but a hole is left
                end = os.lseek(descriptor, position, os.SEEK_HOLE)
                position -= position % _BLOCK
            while position < end:
                block = os.pread(descriptor, _BLOCK, position)
                if not block:
                    break
                if block != _ZEROS[: len(block)]:
                    crc = zlib.crc32(block, zlib.crc32(position.to_bytes(8, "little"), crc))
                position += _BLOCK
                seen += _BLOCK
                if seen % SEAL_SLICE_BYTES == 0:
                    yield
        return [size, crc]
    finally:
        os.close(descriptor)


def _all_checksums(directory: Path) -> Steps[dict[str, list[int]]]:
    """Return what `_checksum` says of every file, by its path in the directory."""
    sums = {_MARK: (yield from _checksum(directory / _MARK))}
    for parent, _, names in os.walk(directory / _SHARD):
        for name in names:
            path = Path(parent, name)
            sums[str(path.relative_to(directory))] = yield from _checksum(path)
        yield
    return sums


@dataclass(slots=True)
class OpenView:
    """A view whose shard is loaded. `flush_at` is when its mark must move, None while nothing waits.

    `is_marked` says that the mark on disk is that of a flushed shard, but for entries applied since.
    `sealed` says that nothing was written since the checksums of all files were noted, `sums` is what was noted
    last, `seal_at` when that is to be done (again). `checked` is what opening found.
    """

    directory: Path
    live: LiveView
    engine: EdgeEngine
    checked: bool
    sums: dict[str, list[int]]
    flush_at: float | None = None
    is_marked: bool = False
    seal_at: float | None = None
    sealed: bool = False
    #: From when on it may be flushed again, unless it is asked for, or many entries wait.
    flush_from: float = 0.0

    def unseal(self) -> None:
        """Take back the checksums of what writes change; called before the first write.

        Nothing is synced: should the list come back after a loss of power, the view is rebuilt for no need.
        """
        self.seal_at = None
        if not self.sealed:
            return
        path = self.directory / _CHECKSUMS
        lasting = _finished_files(self.directory)
        kept = {name: sum for name, sum in self.sums.items() if name in lasting}
        try:
            if kept:
                part = path.with_name(path.name + ".part")
                part.write_bytes(orjson.dumps({"complete": False, "files": kept}))
                part.rename(path)
        except OSError as error:
            logger.warning(
                "what no write changes of view %s is checked no more: %s", self.live.view.view_id, error
            )
            kept = {}
        if not kept:
            path.unlink(missing_ok=True)
        self.sealed = False

    def seal(self) -> Steps[None]:
        """Note what all files look like, slice by slice; a write in between makes it void."""
        self.seal_at = None
        sums = yield from _all_checksums(self.directory)
        _write_durably(self.directory / _CHECKSUMS, {"complete": True, "files": sums})
        self.sums = sums
        self.sealed = True

    def mark(self, *, durable: bool = False) -> Mark:
        """Return where the view stands."""
        return replace(self.live.mark(durable=durable), checked=self.checked)

    def flush(self) -> None:
        """Make everything applied durable, then move the mark."""
        if self.sealed:
            return
        _require_room(self.live.view, LITTLE_ROOM_BYTES)
        began = time.monotonic()
        self.live.flush()
        failpoints.reach("flush.files")
        self.write_mark()
        self.flush_at = None
        self.is_marked = True
        ended = time.monotonic()
        self.seal_at = ended + SEAL_AFTER_S
        self.flush_from = ended + min(FLUSH_LATEST_S, (ended - began) / FLUSH_SHARE)

    def write_mark(self) -> None:
        """Write how far the view has come."""
        mark = _mark_of(self.live.view, self.live.standing)
        _write_durably(self.directory / _MARK, {**mark, "files": _lasting_files(self.directory)})

    def close(self) -> None:
        """Flush, close the shard, and note what its files look like, to be checked when it is opened."""
        if self.live.unflushed_entries or not self.is_marked:
            self.flush()
            self.sealed = False
        self.engine.close()
        if not self.sealed:
            finish(self.seal())

    def hand_over(self) -> None:
        """Flush and close for another host of this server, which trusts what it opens next."""
        self.flush()
        self.engine.close()


def _finished_files(directory: Path) -> set[str]:
    """Return the files that no write changes any more: vectors, graphs and payloads of finished segments."""
    found: list[Path] = []
    for mapping in (directory / _SHARD / "segments").glob(f"*/{_FINISHED_MAPPING}"):
        for pattern in _FINISHED:
            found += mapping.parent.glob(pattern)
    return {str(path.relative_to(directory)) for path in found}


def _lasting_files(directory: Path) -> list[str]:
    """Return the files of documents and vectors that come and stay.

    After a kill there are no checksums, and Edge starts over in silence when, say, the mapping of ids is gone.
    """
    found: list[Path] = []
    for pattern in _LASTING:
        found += (directory / _SHARD / "segments").glob(pattern)
    return sorted(str(path.relative_to(directory)) for path in found)


def _mark_of(view: View, standing: Standing) -> dict[str, Any]:
    return {
        "format": 1,
        "view_id": view.view_id,
        "vectors": [[vector.name, vector.dimensions, vector.distance] for vector in view.vectors],
        **standing.to_json(),
    }


def open_view(view: View, *, max_scan_documents: int, graph: bool = False, trusted: bool = False) -> OpenView:
    """Load the view in its directory, or make it (for graphs, if they are to be built).

    `trusted` leaves the checksums out, for a view that another host of this server has just handed over.

    Raises `ViewDamaged` when files are missing, changed or not those of this view, and `QdrantError` when
    another process holds the directory.
    """
    directory = Path(view.location)
    failpoints.reach("view.open", f"view.open/{view.view_id}", f"view.open/{view.namespace_id}")
    _require_room(view, LITTLE_ROOM_BYTES)
    translator = Translator(qdrant_edge)
    standing = _read_standing(view, directory)
    fresh = standing is None
    clean, sums = (False, {}) if trusted else _verify_checksums(view, directory)
    if standing is None:
        directory.mkdir(parents=True, exist_ok=True)
        standing = Standing(layout=Layout.KEY, sparse=sparse_recipe(view.sparse))
        _write_durably(directory / _MARK, _mark_of(view, standing))
    shard_directory = directory / _SHARD
    try:
        vectors = translator.vector_params(view.vectors)
        unnamed = packing.unnamed_vector(standing.layout, vectors)
        config = _config(
            vectors if unnamed is None else vectors[unnamed], translator.sparse_params(view.sparse), graph
        )
        shard = _load_or_create(view, shard_directory, config, may_create=standing.seq == 0)
        engine = EdgeEngine(shard, translator, unnamed)
        count = engine.count(None)
        collections = engine.values("collection_id", count)
    except Panic as panic:
        if _is_short_of_room(panic):
            raise QdrantError(f"The vector engine failed: {panic}") from panic
        raise ViewDamaged(view.view_id, f"the engine panics on its files ({panic})") from panic
    if clean and count != standing.document_count:
        raise ViewDamaged(
            view.view_id, f"it holds {count} documents where its mark says {standing.document_count}"
        )
    # After a kill the shard may be ahead of its mark; every change keeps this number exact from here.
    standing.document_count = count
    live = LiveView(
        view,
        engine,
        translator,
        standing,
        max_scan_documents=max_scan_documents,
        collections=collections,
    )
    opened = OpenView(directory, live, engine, checked=clean or fresh or trusted, sums=sums, is_marked=clean)
    opened.seal_at = time.monotonic() + SEAL_AFTER_S
    return opened


def _read_standing(view: View, directory: Path) -> Standing | None:
    """Return what the mark says, None for a view that does not exist yet."""
    try:
        raw = (directory / _MARK).read_bytes()
    except FileNotFoundError:
        if (directory / _SHARD).exists():
            raise ViewDamaged(view.view_id, "its mark is missing") from None
        return None
    try:
        stored = orjson.loads(raw)
        standing = Standing.from_json(stored)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ViewDamaged(view.view_id, f"its mark cannot be read ({_first_line(error)})") from error
    if stored.get("view_id") != view.view_id:
        raise ViewDamaged(view.view_id, f"its mark is that of view {stored.get('view_id')!r}")
    if stored.get("vectors") != [[v.name, v.dimensions, v.distance] for v in view.vectors]:
        raise ViewDamaged(view.view_id, "it was made for other vectors")
    missing = [name for name in stored.get("files", ()) if not (directory / name).exists()]
    if missing:
        raise ViewDamaged(view.view_id, f"{len(missing)} of its files are missing: {missing[0]}")
    return standing


def _verify_checksums(view: View, directory: Path) -> tuple[bool, dict[str, list[int]]]:
    """Compare files with what was noted of them; say whether that was all of them, and what was noted.

    A complete list goes away before the shard is loaded, because that changes files.
    """
    path = directory / _CHECKSUMS
    try:
        stated = orjson.loads(path.read_bytes())
        complete, expected = stated.get("complete", True), dict(stated.get("files", stated))
    except FileNotFoundError:
        return False, {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ViewDamaged(view.view_id, "its list of checksums cannot be read") from error
    if complete:
        actual = finish(_all_checksums(directory))
    else:
        there = [name for name in expected if (directory / name).exists()]
        actual = {name: finish(_checksum(directory / name)) for name in there}
    if actual != expected:
        changed = sorted(
            name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name)
        )
        raise ViewDamaged(view.view_id, f"{len(changed)} files are not what they were: {changed[0]}")
    if complete:
        path.unlink()
        _sync(directory)
    return complete, expected


def graph_widths(engine: EdgeEngine, view: View, document_count: int) -> dict[str, int]:
    """Return for each vector how wide its graph is to be searched so that sampled queries find nearly all.

    Half of the queries are documents of the view, half lie between two of them, where no document is. 0 means
    that no width up to the largest was enough (uniform random vectors are like that): scan instead.
    """
    rng = np.random.default_rng(document_count)
    records: list[Record] = []
    for _ in range(GRAPH_SAMPLE):
        start = str(uuid.UUID(bytes=rng.bytes(16)))
        found, _ = engine.scroll(None, start, 1, False, True)
        records += found
    widths = {}
    for name in (vector.name for vector in view.vectors):
        points = [np.asarray((r.vectors or {})[name]) for r in records if name in (r.vectors or {})]
        between = [(one + other) / 2 for one, other in itertools.pairwise(points)]
        queries = [point.astype(np.float32) for point in (*points[::2], *between[::2])]
        widths[name] = _width(engine, name, queries)
    return widths


def _width(engine: EdgeEngine, name: str, queries: Sequence[Any]) -> int:
    def nearest(ef: int | None) -> list[set[int]]:
        batch = [Query(name, query, 10, 0, None, ef, ef is None, False, is_bare=True) for query in queries]
        return [set(answer.numbers) for answer in engine.query_batch(batch) if isinstance(answer, Bare)]

    right = nearest(None)
    wanted = sum(map(len, right))
    for ef in GRAPH_WIDTHS:
        if sum(len(a & b) for a, b in zip(right, nearest(ef), strict=True)) >= GRAPH_RECALL * wanted:
            return ef
    return 0


def _load_or_create(
    view: View, directory: Path, config: qdrant_edge.EdgeConfig, *, may_create: bool
) -> qdrant_edge.EdgeShard:
    if not directory.exists():
        if not may_create:
            raise ViewDamaged(view.view_id, "its files are missing")
        _require_room(view)
        return _create(directory, config)
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            with _edge_call():
                return qdrant_edge.EdgeShard.load(str(directory))
        except QdrantError as error:
            if "WouldBlock" in error.message:
                if time.monotonic() > deadline:
                    raise QdrantError(
                        f"The directory of view {view.view_id} is held by another process: {view.location}",
                        retry_after_s=5,
                    ) from error
                time.sleep(0.05)
            elif _is_short_of_room(error):
                raise
            elif may_create:
                # Killed while it was being made: nothing that was in it was ever called durable.
                shutil.rmtree(directory)
                return _create(directory, config)
            else:
                raise ViewDamaged(view.view_id, error.message) from error


def _create(directory: Path, config: qdrant_edge.EdgeConfig) -> qdrant_edge.EdgeShard:
    with _edge_call():
        return qdrant_edge.EdgeShard.create(str(directory), config)


def _config(vectors: Any, sparse: dict[str, Any], graph: bool) -> qdrant_edge.EdgeConfig:
    """Return how a shard is made. `vectors` are the parameters of an unnamed vector, or of each by its name."""
    return qdrant_edge.EdgeConfig(
        vectors=vectors or None,
        # Edge wants at least one vector, even of a view that only lists and filters.
        sparse_vectors=sparse or (None if vectors else {_PLACEHOLDER: qdrant_edge.EdgeSparseVectorParams()}),
        hnsw_config=qdrant_edge.HnswIndexConfig(
            m=GRAPH_M,
            ef_construct=GRAPH_EF_CONSTRUCT,
            full_scan_threshold=FULL_SCAN_KB,
            max_indexing_threads=max(1, (os.cpu_count() or 2) // 2),
        ),
        optimizers=qdrant_edge.EdgeOptimizersConfig(
            indexing_threshold=GRAPH_THRESHOLD_KB if graph else INDEXING_THRESHOLD_KB,
            default_segment_number=1,
        ),
        max_search_threads=1,  # else eight threads a shard
    )


def drop_directory(directory: Path) -> None:
    """Remove a view's directory. A kill in between, or an `OSError`, leaves a part that the next call removes."""
    trash = directory.with_name(directory.name + ".dropped")
    if trash.exists():
        shutil.rmtree(trash)
    with contextlib.suppress(FileNotFoundError):
        directory.rename(trash)
        failpoints.reach("drop.renamed")
        shutil.rmtree(trash)


# --- requests ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Job:
    """A piece of work under way for one or (searches) several requests."""

    request_ids: list[int]
    view_id: str
    steps: Steps[Any]
    answer: Callable[[Any], list[Any]]
    #: Each request alone, for when a batch of several fails because of one of them.
    retry: list[tuple[int, View, Any]] = field(default_factory=list)


Request = tuple[int, str, View, Any]

_WRITES = frozenset({"open", "apply", "apply_next", "flush", "release", "drop", "optimize", "hand_over"})


class _NotOpen(Exception):
    """This host does not have the view; becomes `ViewLost` at the other end."""


def count_mappings() -> int:
    """Return how many memory mappings this process has, 0 where the system does not tell."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0


def most_mappings() -> int | None:
    """Return how many mappings are few enough to go on opening views, None where the system does not tell.

    Linux grants a process 65,530. An open view takes about 130, one with 40 indexes 700, and a view that
    is refused the next one fails in the middle of what it does.
    """
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text()) * 3 // 4
    except (OSError, ValueError):
        return None


def resident_bytes() -> int:
    """Return how much memory this process holds, mapped files included; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def forget_mapped_pages(folder: str) -> None:
    """Let go of the pages of every shared mapping of a file below a folder of that name.

    What is in them stays in the file and in the system's cache, from which they come back when they are touched
    (Linux: MADV_DONTNEED on a shared mapping); elsewhere nothing happens.
    """
    dont_need: Final = 4
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    part = f"/{folder}/".encode()
    for line in lines:
        if part in line:
            addresses, permissions, _ = line.split(b" ", 2)
            if permissions.endswith(b"s"):
                start, end = (int(address, 16) for address in addresses.split(b"-"))
                advise(start, end - start, dont_need)


class Syncer:
    """A thread that brings the files of views to the disk; the loop polls it to learn of what is done.

    Whatever the engine has written through its mappings lies in the system's cache, and Edge keeps its process while
    it waits for the disk. What was synced here it finds done. An error is the engine's to notice: the system tells
    every holder of a file.
    """

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[tuple[str, Path]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._thread: threading.Thread | None = None

    def fileno(self) -> int:
        """Return the descriptor that is readable when something is done."""
        return self._wake.fileno()

    def want(self, view_id: str, folder: Path) -> None:
        """Have everything below `folder` synced."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="syncer", daemon=True)
            self._thread.start()
        self._wanted.put((view_id, folder))

    def done(self) -> list[str]:
        """Return the views that have been synced since the last call."""
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)
        found = []
        while not self._done.empty():
            found.append(self._done.get())
        return found

    def _run(self) -> None:
        while True:
            view_id, folder = self._wanted.get()
            for parent, _, names in os.walk(folder):
                for name in names:
                    # The engine removes files of its own meanwhile.
                    with contextlib.suppress(OSError):
                        _sync(Path(parent, name))
            self._done.put(view_id)
            self._waker.send(b"1")


class Host:
    """The loop: what arrives, what is under way, which views are open."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        max_open_views: int,
        max_scan_documents: int,
        max_mappings: int | None = None,
        max_resident_bytes: int | None = None,
    ) -> None:
        self._connection = connection
        self._incoming = pipe.Incoming()
        self._max_open = max_open_views
        self._max_scan = max_scan_documents
        self._max_mappings = max_mappings
        self._max_resident = max_resident_bytes
        self._openings = 0
        self._views: OrderedDict[str, OpenView] = OrderedDict()
        #: Where each view stood when it was closed to make room; it may be opened again without asking.
        self._closed_at: dict[str, int] = {}
        self._reads: deque[Request] = deque()
        self._writes: OrderedDict[str, deque[Request]] = OrderedDict()
        self._reading: list[Job] = []
        self._writing: OrderedDict[str, Job] = OrderedDict()
        self._sealing: tuple[str, Steps[None]] | None = None
        #: Flushes whose files are being synced, with the requests that wait for them.
        self._flushing: dict[str, tuple[View, list[int]]] = {}
        self._syncer = Syncer()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._syncer, select.POLLIN)
        self._stop_request: int | None = None

    def serve(self) -> None:
        """Run until the other end closes the pipe or asks to stop."""
        while self._receive():
            self._start_reads()
            self._step_reads()
            self._step_write()
            self._flush_due()
            self._end_flushes()
            self._seal_due()
            at_work = self._writes or self._writing or self._reading or self._flushing
            if self._stop_request is not None and not at_work:
                self._close_all()
                self._reply(self._stop_request, pipe.OK, None)
                return

    # --- the pipe ----------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Take in everything that has arrived; wait only when there is nothing else to do."""
        busy = (
            self._reading
            or self._writing
            or self._writes
            or self._sealing is not None
            or (self._stop_request is not None and not self._flushing)
        )
        if not self._poll.poll(0 if busy else self._patience_ms()):
            return True
        while True:
            try:
                data = self._connection.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not data:
                return False
            for request_id, operation, view, arguments in self._incoming.feed(data):
                self._take(request_id, operation, view, arguments)

    def _patience_ms(self) -> float | None:
        due = [
            at
            for opened in self._views.values()
            for at in (opened.flush_at, opened.seal_at)
            if at is not None
        ]
        return max(0.0, (min(due) - time.monotonic()) * 1000) if due else None

    def _take(self, request_id: int, operation: str, view: View, arguments: Any) -> None:
        if operation == "stop":
            self._stop_request = request_id
        elif operation in _WRITES:
            self._writes.setdefault(view.view_id, deque()).append((request_id, operation, view, arguments))
        else:
            self._reads.append((request_id, operation, view, arguments))

    def _reply(self, request_id: int, outcome: str, value: Any) -> None:
        self._connection.sendall(pipe.packed((request_id, outcome, value)))

    def _fail(self, request_ids: Sequence[int], error: BaseException) -> None:
        outcome: tuple[str, Any]
        if isinstance(error, BadRequestError):
            outcome = pipe.BAD_REQUEST, (error.message, error.details)
        elif isinstance(error, ViewDamaged):
            outcome = pipe.DAMAGED, error.reason
        elif isinstance(error, _NotOpen | ViewLost):
            outcome = pipe.LOST, str(error)
        elif isinstance(error, Panic):
            outcome = pipe.PANIC, f"The vector engine panicked: {error}"
        elif isinstance(error, EngineFullError) or storage_trouble(error) in (errno.ENOSPC, errno.EDQUOT):
            outcome = pipe.FULL, error.message if isinstance(error, EngineFullError) else _FULL_MESSAGE
        elif isinstance(error, QdrantError):
            outcome = pipe.FAILED, error.message
        else:
            outcome = pipe.FAILED, f"The vector host failed: {type(error).__name__}: {_first_line(error)}"
            # A failing disk is named in the message; anything else is a defect of ours.
            logger.error(
                "request failed: %s", error, exc_info=error if storage_trouble(error) is None else None
            )
        for request_id in request_ids:
            self._reply(request_id, *outcome)

    # --- reading -----------------------------------------------------------------------------------

    def _start_reads(self) -> None:
        """Turn waiting reads into jobs; searches that wait for one view become one."""
        searches: dict[str, list[tuple[int, View, Any]]] = {}
        while self._reads:
            request_id, operation, view, arguments = self._reads.popleft()
            if operation == "search":
                searches.setdefault(view.view_id, []).append((request_id, view, arguments))
            else:
                self._start_read(request_id, operation, view, arguments)
        for waiting in searches.values():
            self._start_searches(waiting)

    def _start_read(self, request_id: int, operation: str, view: View, arguments: Any) -> None:
        try:
            live = self._live(view)
        except (_NotOpen, ViewDamaged, QdrantError, OSError) as error:
            self._fail([request_id], error)
            return
        steps, answer = self._read_steps(live, operation, arguments)
        self._reading.append(Job([request_id], view.view_id, steps, answer))

    def _start_searches(self, waiting: list[tuple[int, View, Any]]) -> None:
        request_ids = [request_id for request_id, _, _ in waiting]
        view = waiting[0][1]
        try:
            live = self._live(view)
        except (_NotOpen, ViewDamaged, QdrantError, OSError) as error:
            self._fail(request_ids, error)
            return
        questions = [question for _, _, question in waiting]

        def answer(found: list[Any]) -> list[Any]:
            return [
                list(map(_pack, hits)) if fusion is None else _pack(hits)
                for hits, (_, fusion) in zip(found, questions, strict=True)
            ]

        steps = live.answers(questions)
        retry = waiting if len(waiting) > 1 else []
        self._reading.append(Job(request_ids, view.view_id, steps, answer, retry))

    @staticmethod
    def _read_steps(
        live: LiveView, operation: str, arguments: Any
    ) -> tuple[Steps[Any], Callable[[Any], list[Any]]]:
        if operation == "page":
            return live.page(arguments), _pack_page
        if operation == "count":
            return live.count(arguments), lambda found: [found]
        if operation == "get":
            return _at_once(lambda: live.get(*arguments)), lambda hits: [_pack(hits)]
        if operation == "indexes":
            return _at_once(live.indexes), lambda reports: [reports]
        raise ValueError(f"unknown operation {operation!r}")

    def _step_reads(self) -> None:
        jobs, self._reading = self._reading, []
        for job in jobs:
            try:
                next(job.steps)
                self._reading.append(job)
            except StopIteration as done:
                for request_id, value in zip(job.request_ids, job.answer(done.value), strict=True):
                    self._reply(request_id, pipe.OK, value)
            except Panic as panic:
                self._die(job.request_ids, panic)
            except Exception as error:  # noqa: BLE001 - one request's error must not end the host
                if job.retry:
                    for request in job.retry:
                        self._start_searches([request])
                else:
                    self._fail(job.request_ids, self._examined(job.view_id, error))

    def _examined(self, view_id: str, error: Exception) -> Exception:
        """Tell an engine error that damaged files explain from one that the request explains.

        Requests are checked before they reach the engine, so an engine error is rare enough to read the
        whole view once.
        """
        if not isinstance(error, QdrantError) or view_id not in self._views or _is_short_of_room(error):
            return error
        engine = self._views[view_id].engine
        try:
            start: str | None = None
            seen = 0
            while True:
                records, start = engine.scroll(None, start, 1000, True, True)
                seen += len(records)
                if start is None:
                    break
            if seen != self._views[view_id].live.standing.document_count:
                return ViewDamaged(view_id, f"{seen} of its documents can be read ({error.message})")
        except QdrantError as damage:
            return ViewDamaged(view_id, damage.message)
        return error

    # --- writing -----------------------------------------------------------------------------------

    def _step_write(self) -> None:
        """Do one slice for the view whose turn it is."""
        if self._writes:
            for view_id in [name for name in self._writes if name not in self._writing]:
                queue = self._writes[view_id]
                self._start_write(*queue.popleft())
                if not queue:
                    del self._writes[view_id]
        if not self._writing:
            return
        view_id, job = self._writing.popitem(last=False)
        try:
            next(job.steps)
            self._writing[view_id] = job  # to the end: other views have their turn first
        except StopIteration as done:
            self._applied(view_id)
            self._reply(job.request_ids[0], pipe.OK, done.value)
        except Panic as panic:
            self._die(job.request_ids, panic)
        except Exception as error:  # noqa: BLE001 - one entry's error must not end the host
            self._applied(view_id)
            if isinstance(error, QdrantError | OSError | ViewLost):
                self._let_go(view_id)
            self._fail(job.request_ids, error)

    def _start_write(self, request_id: int, operation: str, view: View, arguments: Any) -> None:
        try:
            if operation in ("apply", "apply_next"):
                _require_room(view)
                live = self._live(view)
                if operation == "apply_next" and live.standing.seq < arguments[0].seq - 1:
                    self._reply(
                        request_id, pipe.OK, None
                    )  # what it was queued behind has failed, or is not here yet
                    return
                steps = live.apply(arguments)
                if any(entry.seq > live.standing.seq for entry in arguments):
                    self._unseal(view.view_id)
                self._writing[view.view_id] = Job([request_id], view.view_id, steps, lambda mark: [mark])
                return
            if operation == "open":
                answer: Mark | None = self._open(view, **arguments).mark()
            elif operation == "optimize":
                answer = self._optimize(view)
            elif operation == "hand_over":
                answer = self._hand_over(view)
            elif operation == "flush":
                self._want_flush(view, [request_id])
                return
            elif operation == "release":
                self._release(view)
                answer = None
            else:
                self._drop(view)
                answer = None
        except Panic as panic:
            self._die([request_id], panic)
        except Exception as error:  # noqa: BLE001 - one request's error must not end the host
            self._fail([request_id], error)
        else:
            self._reply(request_id, pipe.OK, answer)

    def _want_flush(self, view: View, request_ids: list[int]) -> None:
        """Flush the view now, or once its files are synced: searches and writes go on meanwhile."""
        if view.view_id in self._flushing:
            self._flushing[view.view_id][1].extend(request_ids)
            return
        opened = self._views.get(view.view_id)
        if opened is None or opened.live.unflushed_points < SYNC_AHEAD_POINTS:
            self._flush_now(view, request_ids)
            return
        self._flushing[view.view_id] = view, request_ids
        self._syncer.want(view.view_id, opened.directory / _SHARD)

    def _end_flushes(self) -> None:
        for view_id in self._syncer.done() if self._flushing else ():
            self._flush_now(*self._flushing.pop(view_id))

    def _flush_now(self, view: View, request_ids: list[int]) -> None:
        try:
            mark = self._flush(view)
        except Panic as panic:
            self._die(request_ids, panic)
        except Exception as error:  # noqa: BLE001 - one view's error must not end the host
            if not request_ids and not isinstance(error, _NotOpen):
                # The mark stays where it was, and nothing is lost: what follows it is in the log.
                logger.warning("view %s could not be flushed: %s", view.view_id, error)
            self._fail(request_ids, error)
        else:
            for request_id in request_ids:
                self._reply(request_id, pipe.OK, mark)

    def _flush(self, view: View) -> Mark:
        opened = self._views.get(view.view_id)
        if opened is None:  # closed to make room, which flushed it
            opened = self._reopen(view)
        if opened.live.unflushed_entries or not opened.is_marked:
            try:
                opened.flush()
            except EngineFullError:
                raise  # nothing was tried
            except (QdrantError, OSError):
                self._let_go(view.view_id)
                raise
        return opened.mark(durable=True)

    def _optimize(self, view: View) -> Mark:
        """Build the graphs of a view that is built apart, and find out how wide each is to be searched."""
        live = self._live(view)
        self._unseal(view.view_id)
        opened = self._views[view.view_id]
        if opened.engine.optimize():
            live.standing.graphs = graph_widths(opened.engine, view, live.standing.document_count)
        live.standing.tail = 0
        opened.flush()
        return opened.mark(durable=True)

    def _hand_over(self, view: View) -> Mark:
        self._live(view)
        self._unseal(view.view_id)
        opened = self._views.pop(view.view_id)
        opened.hand_over()
        return opened.mark(durable=True)

    def _unseal(self, view_id: str) -> None:
        """Make ready for a write; checksums that are being made of the view are void."""
        self._end_sealing(view_id)
        self._views[view_id].unseal()

    def _seal_due(self) -> None:
        """Do one slice of noting what the files of a view look like to which nothing was written lately."""
        if self._sealing is None:
            now = time.monotonic()
            for view_id, opened in self._views.items():
                if opened.seal_at is not None and opened.seal_at <= now and view_id not in self._writing:
                    self._sealing = view_id, opened.seal()
                    break
            else:
                return
        view_id, steps = self._sealing
        try:
            next(steps)
        except StopIteration:
            self._sealing = None
        except OSError as error:
            # Without checksums the view is checked less when it is opened; nothing is lost.
            self._sealing = None
            logger.warning("the files of view %s could not be read: %s", view_id, error)

    def _release(self, view: View) -> None:
        self._end_reads(view.view_id)
        if view.view_id in self._views:
            self._close(view.view_id)
        self._closed_at.pop(view.view_id, None)

    def _drop(self, view: View) -> None:
        self._end_reads(view.view_id)
        opened = self._views.pop(view.view_id, None)
        self._end_sealing(view.view_id)
        self._closed_at.pop(view.view_id, None)
        if opened is not None:
            with contextlib.suppress(QdrantError):
                opened.engine.close()
        drop_directory(Path(view.location))

    def _let_go(self, view_id: str) -> None:
        """Close a view whose engine failed to write; whoever uses it next opens it at its mark and replays.

        Qdrant's segments refuse every write after one that failed until they are loaded again, and what a flush
        that failed would have written is not kept for the next one.
        """
        self._end_reads(view_id)
        self._end_sealing(view_id)
        opened = self._views.pop(view_id, None)
        if opened is not None:
            with contextlib.suppress(QdrantError):
                opened.engine.close()

    def _end_sealing(self, view_id: str) -> None:
        if self._sealing is not None and self._sealing[0] == view_id:
            self._sealing = None

    def _end_reads(self, view_id: str) -> None:
        for job in [job for job in self._reading if job.view_id == view_id]:
            self._reading.remove(job)
            self._fail(job.request_ids, _NotOpen("the view was closed"))

    def _applied(self, view_id: str) -> None:
        opened = self._views.get(view_id)
        # Also after an entry that failed: the engine keeps the first part of it.
        if opened is not None and not opened.sealed and opened.flush_at is None:
            opened.flush_at = max(time.monotonic() + FLUSH_AFTER_S, opened.flush_from)

    def _flush_due(self) -> None:
        now = time.monotonic()
        for view_id, opened in list(self._views.items()):
            late = opened.flush_at is not None and opened.flush_at <= now
            many = opened.live.unflushed_entries >= FLUSH_ENTRIES
            if (late or many) and view_id not in self._flushing:
                opened.flush_at = now + FLUSH_AFTER_S  # when the next try is due, should this one fail
                self._want_flush(opened.live.view, [])

    # --- open views --------------------------------------------------------------------------------

    def _open(self, view: View, *, graph: bool = False, trusted: bool = False) -> OpenView:
        opened = self._views.get(view.view_id)
        if opened is not None and not (opened.directory / _MARK).exists():
            # The directory was removed under an open shard: what is in memory is all there is.
            self._end_reads(view.view_id)
            self._end_sealing(view.view_id)
            del self._views[view.view_id]
            with contextlib.suppress(QdrantError):
                opened.engine.close()
            raise ViewDamaged(view.view_id, "its directory was removed")
        if opened is None:
            self._make_room()
            opened = open_view(view, max_scan_documents=self._max_scan, graph=graph, trusted=trusted)
            self._views[view.view_id] = opened
            self._closed_at.pop(view.view_id, None)
            self._give_memory_back(view.view_id)
        self._views.move_to_end(view.view_id)
        return opened

    def _reopen(self, view: View) -> OpenView:
        """Open a view that was closed here to make room; it must stand where it stood."""
        stood_at = self._closed_at.get(view.view_id)
        if stood_at is None:
            raise _NotOpen(f"view {view.view_id} is not open in this host")
        opened = self._open(view)
        if opened.live.standing.seq != stood_at:
            raise ViewDamaged(view.view_id, f"it stands at entry {opened.live.standing.seq}, not {stood_at}")
        return opened

    def _live(self, view: View) -> LiveView:
        opened = self._views.get(view.view_id)
        if opened is None:
            opened = self._reopen(view)
        self._views.move_to_end(view.view_id)
        return opened.live

    def _make_room(self) -> None:
        busy = {job.view_id for job in self._reading} | set(self._writing)
        idle = [view_id for view_id in self._views if view_id not in busy]
        while len(self._views) >= self._max_open and idle:
            self._close(idle.pop(0))
        self._openings += 1
        if self._max_mappings is None or self._openings % COUNT_MAPPINGS_EVERY:
            return
        while idle and count_mappings() > self._max_mappings:
            for _ in range(1 + len(idle) // 4):
                self._close(idle.pop(0))

    def _give_memory_back(self, fresh: str) -> None:
        """Stay below the bound: let go of pages first, which come back from the system's cache, then of views.

        Edge reads the files of payload indexes whole when it loads a view, some 30 MiB of which a small one
        needs little. All views but `fresh` and those at work may be closed, the least recently used first.
        """
        if self._max_resident is None or resident_bytes() <= self._max_resident:
            return
        forget_mapped_pages(_SHARD)
        busy = {job.view_id for job in self._reading} | set(self._writing) | {fresh}
        idle = [view_id for view_id in self._views if view_id not in busy]
        while idle and resident_bytes() > self._max_resident:
            for _ in range(1 + len(idle) // 4):
                self._close(idle.pop(0))

    def _close(self, view_id: str) -> None:
        self._end_sealing(view_id)
        opened = self._views.pop(view_id)
        try:
            opened.close()
            self._closed_at[view_id] = opened.live.standing.seq
        except (QdrantError, OSError) as error:
            logger.warning("view %s could not be closed cleanly: %s", view_id, error)

    def _close_all(self) -> None:
        for view_id in list(self._views):
            try:
                self._close(view_id)
            except Panic as panic:
                logger.error("view %s: the engine panicked while closing: %s", view_id, panic)

    def _die(self, request_ids: Sequence[int], panic: Panic) -> None:
        """Tell who asked, and end: after a panic nothing in this process can be trusted."""
        with contextlib.suppress(OSError):
            self._fail(request_ids, panic)
        os._exit(PANIC_STATUS)


def _at_once(call: Callable[[], Any]) -> Steps[Any]:
    """Return work of a single step."""
    yield from ()
    return call()


def _pack(hits: Sequence[Hit]) -> list[tuple[Any, ...]]:
    """Return hits as plain tuples, which pickle in a fraction of the time."""
    return [(hit.document_id, hit.payload, hit.score, hit.vectors, hit.signals) for hit in hits]


def _pack_page(result: PageResult) -> list[Any]:
    return [(_pack(result.hits), result.next_after)]


# --- the process ---------------------------------------------------------------------------------------


def die_with_parent(parent_pid: int) -> None:
    """Ask Linux to end this process when the thread that started it ends; elsewhere EOF has to do.

    A thread that waits for EOF cannot run while Edge holds the interpreter: an orphan held its directory
    for 21 s that way, with this signal for 0.1 s.
    """
    if platform.system() == "Linux":
        set_parent_death_signal: Final = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)  # the parent ended before the signal was set


def check_edge_version() -> None:
    """End with a message when the installed Qdrant Edge is one that loses data."""
    version = importlib.metadata.version("qdrant-edge-py")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if numbers < OLDEST_EDGE:
        oldest = ".".join(map(str, OLDEST_EDGE))
        sys.exit(
            f"qdrant-edge-py {version} loses points when it is killed; install {oldest} or newer: "
            f"pip install 'qdrant-edge-py>={oldest}'"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve on an inherited socket until it is closed."""
    parser = argparse.ArgumentParser(prog="tessera.adapters.qdrant.edge_host")
    parser.add_argument("--socket", type=int, required=True, help="file descriptor to serve on")
    parser.add_argument("--parent", type=int, required=True, help="process id to die with")
    parser.add_argument("--max-open-views", type=int, required=True)
    parser.add_argument("--max-scan-documents", type=int, required=True)
    parser.add_argument("--max-resident-mib", type=int, required=True)
    parser.add_argument("--builder", action="store_true", help="give way to whoever serves")
    options = parser.parse_args(arguments)
    # Ctrl-C and a service manager's SIGTERM reach every process; the server decides when hosts end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(options.parent)
    check_edge_version()
    if options.builder:
        os.nice(BUILDER_NICENESS)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    host = Host(
        socket.socket(fileno=options.socket),
        max_open_views=options.max_open_views,
        max_scan_documents=options.max_scan_documents,
        max_mappings=most_mappings(),
        max_resident_bytes=options.max_resident_mib * 2**20,
    )
    collector.calm()
    host.serve()


if __name__ == "__main__":
    main()
