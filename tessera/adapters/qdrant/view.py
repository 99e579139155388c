"""One view over one place in a Qdrant engine: apply log entries, search, list, count, exactly.

Shared by the embedded engine and the server; each supplies an `Engine`. Everything that may take long is
a generator that stops after each slice and returns its answer at the end, so that a host can answer
queries in between; `finish` runs one to its end.

Filters are always exact: `Translator.split` gives the engine what it answers exactly, and the rest is
evaluated here over the documents that the engine part lets through.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import pickle
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import orjson

from tessera import failpoints, ids
from tessera.adapters.qdrant import packing
from tessera.adapters.qdrant.packing import Layout, Shadow
from tessera.adapters.qdrant.translate import (
    FOLDED_FIELDS,
    INT64_MAX,
    INT64_MIN,
    SHADOW_KEY,
    Translator,
    can_be_addressed,
    engine_path,
    is_datetime,
    is_geo_point,
    is_uuid,
    path_segments,
    shadow_path,
)
from tessera.adapters.qdrant.words import RECIPE, words_asked, words_of
from tessera.errors import BadRequestError, QdrantError
from tessera.filters import SEARCH, And, Condition, Filter, Test, helpful_type, predicate, values_at
from tessera.fusion import Fused, fused_hits
from tessera.models import IndexType, PayloadIndex
from tessera.ports import (
    Document,
    Entry,
    Fusion,
    Hit,
    IndexReport,
    Mark,
    Page,
    PageResult,
    Payload,
    Search,
    SparseText,
    View,
    ViewLost,
)

#: Points in one read of those that are looked through for a new index.
LOOK_SLICE = 40
#: Points in one read of a scan.
SCAN_SLICE = 1000
#: From so many hits for each one that is shown on, payloads are read afterwards: one that is read by its id costs
#: half as much again as one that comes with its search.
BARE_FROM = 2
#: A read is given up when the basis of its filters changed so often under it.
READ_TRIES = 5

if TYPE_CHECKING:
    from tessera.artifact import Part

T = TypeVar("T")
#: Work that stops after each slice and returns its answer at the end.
Steps = Generator[None, None, T]
#: The searches of one request, and how they become one ranking; with None each is answered by itself.
Question = tuple[Sequence[Search], Fusion | None]


class Unsteady(QdrantError):
    """Every try of a read was overtaken by a change of indexes. Without writers beside it, it succeeds."""


def finish(steps: Steps[T]) -> T:
    """Run `steps` to the end and return what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            answer: T = done.value
            return answer


class Point(NamedTuple):
    """A point to write; vectors are memory of float32 numbers (`_numbers`), or the engine's sparse."""

    point_id: str
    vectors: Mapping[str, Any]
    payload: Payload


class Record(NamedTuple):
    """A point as read. `payload` is None and `vectors` empty where they were not asked for."""

    point_id: str
    payload: Payload | None
    score: float | None = None
    vectors: Mapping[str, Any] | None = None


class Bare(NamedTuple):
    """A ranking of points of which nothing was read: the numbers of their ids (`uuid.UUID.int`), and their scores."""

    numbers: list[int]
    scores: list[float]


class Query(NamedTuple):
    """One nearest-neighbour query in the engine's terms; `filter` and a sparse `vector` are objects of the engine."""

    vector_name: str
    vector: Any
    limit: int
    offset: int
    filter: Any | None
    ef: int | None
    exact: bool
    with_vectors: bool
    is_bare: bool = False


class EngineIndex(NamedTuple):
    """A payload index as the engine states it."""

    type: str
    params: Mapping[str, Any]
    points: int


class Engine(Protocol):
    """What a view needs of Qdrant. Filters and index parameters are the engine's own objects.

    Errors are `QdrantError`. Deleting what is not there succeeds. `write_slice` is how many points are written at
    once; queries are answered in between. An engine `is_still` when nothing changes between two calls of one step:
    what a query has ranked can be read after it.
    """

    write_slice: int
    is_still: bool

    def upsert(self, points: Sequence[Point]) -> None: ...

    def delete(self, point_ids: Sequence[str]) -> None: ...

    def set_payload(self, point_ids: Sequence[str], key: str | None, payload: Payload) -> None:
        """Merge `payload` into the object at `key` of existing points, at their root when it is None."""

    def overwrite_payloads(self, payloads: Mapping[str, Payload]) -> None:
        """Replace the payloads of existing points, by point id; their vectors stay."""

    def set_vectors(self, vectors: Mapping[str, Mapping[str, Any]]) -> None:
        """Set named vectors of existing points, by point id; their other vectors and payloads stay."""

    def drop_vectors(self, point_ids: Sequence[str], name: str) -> None:
        """Remove the vector `name` of existing points; those that lack it stay as they are."""

    def scroll(
        self, filter: Any | None, start: str | None, limit: int, with_payload: bool, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        """Return points by id from `start` on (inclusive), and the id to go on with."""

    def query_batch(self, queries: Sequence[Query]) -> list[list[Record] | Bare]:
        """Answer each query; only an engine that `is_still` is asked for a `Bare` one."""

    def count(self, filter: Any | None) -> int: ...

    def retrieve(self, point_ids: Sequence[str], with_payload: bool, with_vectors: bool) -> list[Record]: ...

    def existing(self, point_ids: Sequence[str]) -> int:
        """Return how many of these points, all different, there are."""

    def points(self) -> int | None:
        """Return how many points there are in all, None where only counting them would tell."""

    def create_index(self, path: str, params: Any) -> None: ...

    def drop_index(self, path: str) -> None: ...

    def index_info(self) -> dict[str, EngineIndex]: ...

    def flush(self) -> None: ...


@dataclass(slots=True)
class Standing:
    """How far a view has come, and what is known of its contents; stored with the durable mark."""

    seq: int = 0
    document_count: int = 0
    indexes: tuple[PayloadIndex, ...] = ()
    irregular: set[str] = field(default_factory=set)
    #: Whether an index change was passed over, to be made in a new view.
    behind: bool = False
    #: Documents written since the graphs were built; without graphs all of them.
    tail: int = 0
    #: For each vector with a graph how wide it is to be searched (`ef`); 0: the graph is not good enough, scan.
    graphs: dict[str, int] = field(default_factory=dict)
    #: How the points hold their documents.
    layout: Layout = Layout.FIELDS
    #: The keyword indexes that the view has, as `sparse_recipe` spells them.
    sparse: list[list[Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return {
            "seq": self.seq,
            "document_count": self.document_count,
            "indexes": [index.model_dump(mode="json") for index in self.indexes],
            "irregular": sorted(self.irregular),
            "behind": self.behind,
            "tail": self.tail,
            "graphs": self.graphs,
            "packed": packing.to_mark(self.layout),
            "sparse": self.sparse,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Standing:
        """Read what `to_json` wrote. Raises `ValueError` (or a subclass) when it cannot be right."""
        seq, count, irregular = value.get("seq"), value.get("document_count"), value.get("irregular")
        if not isinstance(seq, int) or not isinstance(count, int) or seq < 0 or count < 0:
            raise ValueError("seq and document_count must be whole numbers of at least 0")
        if not isinstance(irregular, list) or not isinstance(value.get("indexes"), list):
            raise ValueError("indexes and irregular must be lists")
        indexes = tuple(PayloadIndex.model_validate(item) for item in value["indexes"])
        # A mark of the first release has no graphs, so all its documents lie outside of any.
        behind, tail, graphs = value.get("behind", False), value.get("tail", count), value.get("graphs", {})
        if not isinstance(behind, bool) or not isinstance(tail, int) or not isinstance(graphs, dict):
            raise ValueError("behind, tail and graphs are not what they should be")
        layout = packing.from_mark(value.get("packed", False))  # the first releases say nothing of it
        wide = {str(name): int(ef) for name, ef in graphs.items()}
        sparse = value.get("sparse", [])  # there was none before release 0.4
        if not isinstance(sparse, list):
            raise ValueError("sparse must be a list")
        return cls(seq, count, indexes, set(map(str, irregular)), behind, tail, wide, layout, sparse)


def sparse_recipe(sparse: Sequence[SparseText]) -> list[list[Any]]:
    """Return what keyword indexes are made of, as JSON: equal recipes give equal vectors."""
    return [[one.name, list(one.fields), RECIPE] for one in sparse]


# --- what the indexes see ------------------------------------------------------------------------------


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX


def _is_float(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_folded(value: object) -> bool:
    return isinstance(value, str) and value == value.casefold()


_SEES: dict[IndexType, Callable[[Any], bool]] = {
    IndexType.KEYWORD: lambda value: isinstance(value, str),
    IndexType.TEXT: lambda value: isinstance(value, str),
    IndexType.INTEGER: _is_int,
    IndexType.FLOAT: _is_float,
    IndexType.BOOL: lambda value: isinstance(value, bool),
    IndexType.DATETIME: lambda value: isinstance(value, str) and is_datetime(value),
    IndexType.UUID: lambda value: isinstance(value, str) and is_uuid(value),
    IndexType.GEO: is_geo_point,
}


class _Field:
    """An indexed field: looks at documents for what its index sees, and for case-folded copies."""

    __slots__ = ("_last", "_looked", "folds", "name", "root", "sees", "segments")

    def __init__(self, index: PayloadIndex) -> None:
        self.name = index.field_name
        self.segments = tuple(index.field_name.split("."))
        self.root = self.segments[0]
        is_folded = index.type == IndexType.KEYWORD and index.field_name in FOLDED_FIELDS
        self.sees = _is_folded if is_folded else _SEES[index.type]
        self.folds = index.type == IndexType.KEYWORD and not is_folded
        #: The string at the root that was looked at last, and what was found: ids and categories come in rows.
        self._last: str | None = None
        self._looked: tuple[Shadow | None, bool] = None, True

    def look(self, payload: Payload) -> tuple[Shadow | None, bool]:
        """Return the case-folded strings at the path (None when there are none), and if all is regular.

        Regular means: no array of objects lies on the way, and every value that is not null is one that
        the index sees. An array of nothing but nulls is irregular too: the engine takes it for a value.
        """
        node: Any = payload.get(self.root)
        if type(node) is str and len(self.segments) == 1:
            if node != self._last:
                self._last, self._looked = node, (self._folded((node,)), self.sees(node))
            return self._looked
        node = payload
        for segment in self.segments:
            if isinstance(node, dict):
                node = node.get(segment)
                if node is None:
                    return None, True
            elif isinstance(node, list):
                if any(isinstance(item, dict | list) for item in node):
                    return self._folded(values_at(payload, self.name)), False
                return None, True
            else:
                return None, True
        if isinstance(node, list):
            present = [item for item in node if item is not None]
            if not present:
                return None, not node
            return self._folded(present), all(map(self.sees, present))
        return self._folded((node,)), self.sees(node)

    def _folded(self, values: Iterable[Any]) -> Shadow | None:
        if not self.folds:
            return None
        folded = [value.casefold() for value in values if isinstance(value, str)]
        # A lone string instead of an array of one: what is stored is most of the cost of a write.
        return folded[0] if len(folded) == 1 else folded or None


def _roots(fields: Iterable[_Field]) -> set[str]:
    """Return the root fields of `fields`, but for one with a quotation mark, which the engine has no spelling for."""
    return {indexed.root for indexed in fields if '"' not in indexed.root}


# --- sorting -------------------------------------------------------------------------------------------

_NUMBER, _STRING, _OTHER, _MISSING = 0, 1, 2, 3


def sort_key(document: Payload, path: str) -> tuple[int, Any]:
    """Return (class, value) by which a document is sorted: number < string < other < missing.

    Of several values the first counts. Strings go by code point, other values by their JSON.
    """
    for value in values_at(document, path):
        if value is None:
            continue
        if _is_float(value):
            return _NUMBER, value
        if isinstance(value, str):
            return _STRING, value
        return _OTHER, orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    return _MISSING, 0


class _Descending:
    """Turns an order around, so that ties can still go upwards."""

    __slots__ = ("key",)

    def __init__(self, key: tuple[int, Any]) -> None:
        self.key = key

    def __lt__(self, other: _Descending) -> bool:
        return other.key < self.key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and other.key == self.key

    __hash__ = None  # type: ignore[assignment]


def _place(key: tuple[int, Any], document_id: str, descending: bool) -> tuple[bool, Any, str]:
    """Return the place in the order: missing ones last both ways, ties by document id."""
    return key[0] == _MISSING, _Descending(key) if descending else key, document_id


# --- the view ------------------------------------------------------------------------------------------


class LiveView:
    """A view that is open. One thread at a time; generators of one view may be interleaved, writes not.

    `collections` holds the id of every collection that has a document in the view, and may hold more; None
    when that is not known, as where others write too. A search over all of them needs no filter.
    """

    def __init__(
        self,
        view: View,
        engine: Engine,
        translator: Translator,
        standing: Standing,
        *,
        max_scan_documents: int = 100_000,
        collections: set[str] | None = None,
    ) -> None:
        self.view = view
        self.engine = engine
        self.standing = standing
        self.unflushed_entries = 0
        self.unflushed_points = 0
        self._count_is_known = True
        self._collections = collections
        self._translator = translator
        self._max_scan = max_scan_documents
        self._vectors = {vector.name: vector for vector in view.vectors}
        self._layout = standing.layout
        # A view from before is without the index, or has another; until it is replaced nobody can search by it.
        self._has_sparse = standing.sparse == sparse_recipe(view.sparse)
        self._sparse = view.sparse if self._has_sparse else ()
        self._text_fields = tuple({name for sparse in self._sparse for name in sparse.fields})
        self._index_changes = 0
        self._use(standing.indexes)

    def mark(self, *, durable: bool = False) -> Mark:
        """Return where the view stands."""
        standing = self.standing
        return Mark(
            self.view.view_id,
            standing.seq,
            standing.document_count,
            durable,
            behind=standing.behind or not self._has_sparse,
            tail=min(standing.tail, standing.document_count),
        )

    def _use(self, indexes: Sequence[PayloadIndex]) -> None:
        """Trust `indexes` from now on, for documents to come and for filters."""
        self.standing.indexes = tuple(indexes)
        self._indexes = {index.field_name: index for index in indexes}
        self._fields = [_Field(index) for index in indexes]
        self._roots = _roots(self._fields)
        # At last: on a server a read that begins meanwhile must not take the old ones for what goes with this number.
        self._index_changes += 1

    # --- writing -----------------------------------------------------------------------------------

    def apply(self, entries: Sequence[Entry]) -> Steps[Mark]:
        """Apply `entries` in order, slice by slice. Entries that the view has already are passed over.

        Raises `ViewLost` at an entry that is not the next one: whoever opens the view again learns where it stands.
        """
        for entry in entries:
            stands_at = self.standing.seq
            if entry.seq <= stands_at:
                continue
            # From nothing it begins with the log's first entry, which after a fold has another number than 1.
            if 0 < stands_at < entry.seq - 1:
                raise ViewLost(
                    f"view {self.view.view_id} stands at entry {stands_at}, and was given entry {entry.seq} next"
                )
            self._count_again()
            try:
                yield from self._apply(entry)
            except BaseException:
                # The engine keeps the first part of a write that failed: count again, do not guess.
                self._count_is_known = False
                with contextlib.suppress(QdrantError):
                    self._count_again()
                raise
            self.standing.seq = entry.seq
            self.unflushed_entries += 1
        return self.mark()

    def _count_again(self) -> None:
        """Make sure that the count is exact; an engine that could not be reached left it unknown."""
        if not self._count_is_known:
            self.standing.document_count = self.engine.count(None)
            self._count_is_known = True

    def _apply(self, entry: Entry) -> Steps[None]:
        size = self.engine.write_slice
        for start in range(0, len(entry.deletes), size):
            self._delete(entry.deletes[start : start + size])
            yield
        if entry.indexes is not None:
            if entry.deferrable and self._is_costly(entry.indexes):
                self.standing.behind = True
            else:
                yield from self._change_indexes(entry.indexes)
                self.standing.behind = False
        for start in range(0, len(entry.upserts), size):
            some = entry.upserts[start : start + size]
            self._rewrite(some) if entry.keeps_vectors else self._write(self._points(some))
            yield
        if entry.artifact_path is not None:
            from tessera import artifact  # its libraries are slow to load, and many views never need them

            written: dict[str, None] = {}
            before = self.standing.document_count
            for part in artifact.parts(entry.artifact_path):
                for start in range(0, len(part.document_ids), size):
                    rows = range(start, min(start + size, len(part.document_ids)))
                    written |= dict.fromkeys(
                        self._rewrite([part.document(row) for row in rows])
                        if entry.keeps_vectors
                        else self._write(self._points_of(part, rows))
                    )
                    yield
            # Where the engine says by itself how many it holds, and that many more, nothing is missing.
            came = self.standing.document_count - before
            if self.engine.points() is None or came != len(written):
                self._count_back(entry, list(written))

    def _count_back(self, entry: Entry, point_ids: list[str]) -> None:
        """Make sure that the engine has what it acknowledged, before a next entry deletes of it.

        A batch that says COMPLETED was counted, not believed: 7 ms for 2,000 documents, beside 80 to write them.
        """
        found = sum(
            self.engine.existing(point_ids[start : start + SCAN_SLICE])
            for start in range(0, len(point_ids), SCAN_SLICE)
        )
        if found != len(point_ids):
            raise QdrantError(
                f"The vector engine has {found} of the {len(point_ids)} documents of entry {entry.seq} that it "
                "acknowledged."
            )

    def _point_id(self, document_id: str) -> str:
        return ids.point_id(self.view.namespace_id, document_id)

    def _existing(self, point_ids: Sequence[str]) -> int:
        if self.standing.document_count == 0:
            return 0
        return self.engine.existing(point_ids)

    def _delete(self, document_ids: Sequence[str]) -> None:
        point_ids = list(dict.fromkeys(map(self._point_id, document_ids)))
        existing = self._existing(point_ids)
        if existing:
            self.engine.delete(point_ids)
            self.standing.document_count -= existing

    def _points(self, documents: Sequence[Document]) -> dict[str, Point]:
        """Return the points of `documents`, by their ids."""
        points = {}
        for document in documents:
            vectors: dict[str, Any] = {name: _numbers(vector) for name, vector in document.vectors.items()}
            vectors |= self._words(document.payload)
            point_id = self._point_id(document.document_id)
            points[point_id] = Point(point_id, vectors, self._stored(document.document_id, document.payload))
        return points

    def _points_of(self, part: Part, rows: range) -> dict[str, Point]:
        """Return the points of some documents of an artifact, of which no objects are made in between."""
        points = {}
        columns = [
            (name, column.numbers.reshape(-1).data, column.numbers.shape[1], column.present)
            for name, column in part.vectors.items()
        ]
        for row in rows:
            document_id, text = part.document_ids[row], part.payloads[row]
            payload: Payload = orjson.loads(text)
            vectors: dict[str, Any] = {
                name: numbers[row * size : (row + 1) * size]
                for name, numbers, size, present in columns
                if present is None or present[row]
            }
            if self._sparse:
                vectors |= self._words(payload)
            point_id = self._point_id(document_id)
            points[point_id] = Point(point_id, vectors, self._stored(document_id, payload, text))
        return points

    def _write(self, points: dict[str, Point]) -> list[str]:
        """Write `points`, at most a slice of them, and return their ids."""
        before = self.engine.points()
        existing = self._existing(list(points)) if before is None else 0
        self.engine.upsert(list(points.values()))
        failpoints.reach("apply.slice")
        after = self.engine.points()
        came = len(points) - existing if before is None or after is None else after - before
        self.standing.document_count += came
        self.standing.tail += len(points)
        self.unflushed_points += len(points)
        return list(points)

    def _rewrite(self, documents: Sequence[Document]) -> list[str]:
        """Replace the payloads of those of `documents` that exist, and return the point ids of these."""
        payloads = {
            self._point_id(document.document_id): self._stored(document.document_id, document.payload)
            for document in documents
        }
        found = self.engine.retrieve(list(payloads), with_payload=False, with_vectors=False)
        existing = {record.point_id for record in found}
        if existing:
            self.engine.overwrite_payloads({i: payload for i, payload in payloads.items() if i in existing})
            self._set_words(documents, existing)
            failpoints.reach("apply.slice")
        # The engine takes them out of its graphs: a point with an indexed field is moved when it changes.
        self.standing.tail += len(existing)
        self.unflushed_points += len(existing)
        return sorted(existing)

    def _words(self, payload: Payload) -> dict[str, Any]:
        """Return the sparse vectors of a document's texts; none of a keyword index that it has no word for."""
        if not any(name in payload for name in self._text_fields):
            return {}
        found = ((sparse.name, words_of(payload, sparse.fields)) for sparse in self._sparse)
        return {name: self._translator.sparse_vector(*words) for name, words in found if words is not None}

    def _set_words(self, documents: Sequence[Document], existing: set[str]) -> None:
        """Bring the keyword indexes to the texts of those of `documents` that exist."""
        words = {
            self._point_id(document.document_id): self._words(document.payload) for document in documents
        }
        for sparse in self._sparse:
            kept = {
                i: {sparse.name: found[sparse.name]} for i, found in words.items() if sparse.name in found
            }
            self.engine.set_vectors({i: vectors for i, vectors in kept.items() if i in existing})
            self.engine.drop_vectors(sorted(existing - kept.keys()), sparse.name)

    def _stored(self, document_id: str, payload: Payload, text: bytes | None = None) -> Payload:
        """Return the payload of a document as it is stored, and note what the indexes do not see of it.

        `text` is the payload's JSON, where that is known.
        """
        if payload.get("document_id") != document_id:
            payload, text = {**payload, "document_id": document_id}, None
        self._note_collection(payload.get("collection_id"))
        shadows: dict[str, Shadow] = {}
        for indexed in self._fields:
            if indexed.root not in payload:
                continue
            folded, regular = indexed.look(payload)
            if folded is not None:
                shadows[indexed.name] = folded
            if not regular:
                self.standing.irregular.add(indexed.name)
        return packing.stored(self._layout, payload, shadows, self._roots, text)

    def _is_costly(self, wanted: Sequence[PayloadIndex]) -> bool:
        """Say whether `wanted` asks for an index over documents that exist; the engine makes it in one go."""
        old = {index.field_name: _definition(index) for index in self.standing.indexes}
        return self.standing.document_count > 0 and any(
            old.get(index.field_name) != _definition(index) for index in wanted
        )

    def _note_collection(self, collection_id: object) -> None:
        if self._collections is None:
            return
        if isinstance(collection_id, str):
            self._collections.add(collection_id)
        else:
            self._collections = None

    def _change_indexes(self, wanted: Sequence[PayloadIndex]) -> Steps[None]:
        """Bring the engine's payload indexes to exactly `wanted`, with shadows and what is irregular."""
        old = {index.field_name: _definition(index) for index in self.standing.indexes}
        kept = [index for index in wanted if old.get(index.field_name) == _definition(index)]
        fresh = [index for index in wanted if old.get(index.field_name) != _definition(index)]
        self._use(kept)  # until the change is complete, filters on the other fields are evaluated here
        self.standing.irregular.intersection_update(index.field_name for index in kept)
        keep = {path_segments(path) for index in kept for path, _ in self._engine_indexes(index)}
        present = {path_segments(path): path for path in self.engine.index_info()}
        for segments, path in present.items():
            if segments not in keep:  # dropped, changed, or left behind by a change that was cut short
                self.engine.drop_index(path)
                yield
        if fresh and self.standing.document_count:
            yield from self._look_back(fresh)
        for index in fresh:
            for path, params in self._engine_indexes(index):
                self.engine.create_index(path, params)
                yield
        for index in kept:
            for path, params in self._engine_indexes(index):
                if path_segments(path) not in present:
                    self.engine.create_index(path, params)
                    yield
        self._use(wanted)

    def _engine_indexes(self, index: PayloadIndex) -> Iterator[tuple[str, Any]]:
        if not can_be_addressed(index.field_name):
            return
        yield engine_path(index.field_name), self._translator.index_params(index)
        if index.type == IndexType.KEYWORD and index.field_name not in FOLDED_FIELDS:
            yield shadow_path(index.field_name), self._translator.shadow_params()

    def _look_back(self, fresh: Sequence[PayloadIndex]) -> Steps[None]:
        """Give the documents that exist already what new indexes need."""
        fields = [_Field(index) for index in fresh]
        roots = _roots(fields) if self._layout else set()
        start: str | None = None
        while True:
            records, start = self.engine.scroll(None, start, LOOK_SLICE, True, False)
            # Documents with equal values (a category, say) are written together.
            groups: dict[bytes, tuple[Payload, list[str]]] = {}
            for record in records:
                payload = self._document(record)
                shadows: dict[str, Shadow] = {}
                for indexed in fields:
                    folded, regular = indexed.look(payload)
                    if folded is not None:
                        shadows[indexed.name] = folded
                    if not regular:
                        self.standing.irregular.add(indexed.name)
                more = packing.hide({root: payload[root] for root in roots if root in payload}, shadows)
                if more:
                    groups.setdefault(orjson.dumps(more), (more, []))[1].append(record.point_id)
            for more, point_ids in groups.values():
                beside = more.pop(SHADOW_KEY, None)
                if beside:
                    self.engine.set_payload(point_ids, SHADOW_KEY, beside)
                if more:
                    self.engine.set_payload(point_ids, None, more)
            yield
            if start is None:
                return

    def flush(self) -> None:
        """Make everything applied durable in the engine; the caller then moves the mark."""
        self._count_again()
        self.engine.flush()
        self.unflushed_entries = 0
        self.unflushed_points = 0

    # --- reading -----------------------------------------------------------------------------------

    def search(self, searches: Sequence[Search]) -> Steps[list[list[Hit]]]:
        """Answer `searches`; what the engine can answer alone goes to it as one batch."""
        return self._steady(lambda: self._search(searches))

    def ranked(self, searches: Sequence[Search], fusion: Fusion) -> Steps[list[Hit]]:
        """Answer `searches` as one ranking; of documents that it does not show none are read."""
        found = yield from self.answers([(searches, fusion)])
        ranking: list[Hit] = found[0]
        return ranking

    def answers(self, questions: Sequence[Question]) -> Steps[list[Any]]:
        """Answer each of `questions` as `search` or `ranked` would; all searches go to the engine as one batch."""
        return self._steady(lambda: self._answers(questions))

    def page(self, page: Page) -> Steps[PageResult]:
        """List documents by point id, or sorted."""
        found = yield from self._steady(lambda: self._page(page))
        if page.fields is None:
            return found
        wanted = {"document_id", "collection_id", *page.fields}
        return replace(found, hits=tuple(_with_fields(hit, wanted) for hit in found.hits))

    def count(self, filter: Filter | None) -> Steps[int]:
        """Count the documents that `filter` lets through."""
        return self._steady(lambda: self._count(filter))

    def _steady(self, read: Callable[[], Steps[T]]) -> Steps[T]:
        """Read again when what the filters were split by changed on the way.

        Writes come between the slices of a read, on a server at any moment: one may bring a value that an
        index does not see, or change the indexes, after the engine's part of a filter was chosen.
        """
        for number in range(READ_TRIES):
            basis = self._basis()
            # The last try stops for nobody: in a host, which has one thread, no write comes between.
            last = number == READ_TRIES - 1
            answer = finish(read()) if last else (yield from read())
            if self._basis() == basis:
                return answer
        raise Unsteady("The namespace's indexes are changing; try again.", retry_after_s=1)

    def _basis(self) -> tuple[int, int, int]:
        """Return what changes with everything by which filters are split; a read begins and ends on the same."""
        known = self._collections
        return self._index_changes, len(self.standing.irregular), -1 if known is None else len(known)

    def _search(self, searches: Sequence[Search]) -> Steps[list[list[Hit]]]:
        answers = yield from self._answers([(searches, None)])
        rankings: list[list[Hit]] = answers[0]
        return rankings

    def _answers(self, questions: Sequence[Question]) -> Steps[list[Any]]:
        bare = [self._is_bare(*question) for question in questions for _ in question[0]]
        found = yield from self._found([search for searches, _ in questions for search in searches], bare)
        rest = iter(found)
        return [self._answer([next(rest) for _ in searches], fusion) for searches, fusion in questions]

    def _is_bare(self, searches: Sequence[Search], fusion: Fusion | None) -> bool:
        """Say whether documents are read after they are ranked, because few of those that are found are shown."""
        if fusion is None or fusion.most is None or not self.engine.is_still:
            return False
        if any(search.with_vectors for search in searches):
            return False
        return sum(search.limit for search in searches) >= BARE_FROM * fusion.most

    def _answer(self, found: Sequence[list[Hit] | Bare], fusion: Fusion | None) -> Any:
        if fusion is None:
            return found
        read = [ranking for ranking in found if not isinstance(ranking, Bare)]
        if len(read) == len(found):
            return fused_hits(read, fusion)
        known = {_number(self._point_id(hit.document_id)): hit for ranking in read for hit in ranking}
        rankings = [
            ranking
            if isinstance(ranking, Bare)
            else Bare(
                [_number(self._point_id(hit.document_id)) for hit in ranking],
                [hit.score or 0.0 for hit in ranking],
            )
            for ranking in found
        ]
        fused = Fused(rankings, fusion)
        missing = [number for number in fused.candidates if number not in known]
        if missing:
            records = self.engine.retrieve([str(uuid.UUID(int=number)) for number in missing], True, False)
            known |= {_number(record.point_id): self._hit(record) for record in records}
        return fused.hits(known)

    def _found(self, searches: Sequence[Search], bare: Sequence[bool]) -> Steps[list[list[Hit] | Bare]]:
        """Return what each of `searches` finds, those that are `bare` without its documents."""
        answers: list[list[Hit] | Bare] = [[] for _ in searches]
        places: list[int] = []
        queries: list[Query] = []
        split = self._split if len(searches) == 1 else self._splitting()
        for place, search in enumerate(searches):
            if not self._check_vector(search) or search.limit <= 0:
                continue
            engine_filter, residual = split(search.filter)
            if residual is not None:
                narrowed = yield from self._narrow(search, engine_filter, residual)
                if isinstance(narrowed, list):
                    answers[place] = narrowed
                    continue
                engine_filter = narrowed
            places.append(place)
            query = self._query(search, engine_filter, search.limit, search.offset)
            queries.append(query._replace(is_bare=bare[place]))
        if queries:
            for place, ranking in zip(places, self.engine.query_batch(queries), strict=True):
                answers[place] = ranking if isinstance(ranking, Bare) else list(map(self._hit, ranking))
        return answers

    def _query(self, search: Search, filter: Any | None, limit: int, offset: int) -> Query:
        ef, exact = search.ef, search.exact
        if ef is None and not exact and search.vector_name in self.standing.graphs:
            # Deep pages need a wider search: it cannot bring more than `ef` hits in the right order.
            wide = self.standing.graphs[search.vector_name]
            ef, exact = max(wide, 2 * (limit + offset)), wide == 0
        words = None if search.text is None else words_asked(search.text)
        return Query(
            search.vector_name,
            np.asarray(search.vector, dtype=np.float32)
            if words is None
            else self._translator.sparse_vector(*words),
            limit,
            offset,
            filter,
            ef,
            exact,
            search.with_vectors,
        )

    def _check_vector(self, search: Search) -> bool:
        """Refuse a search that cannot be; say whether it can find anything at all."""
        if search.vector_name in [sparse.name for sparse in self.view.sparse]:
            return self._check_text(search)
        declared = self._vectors.get(search.vector_name)
        if declared is None:
            known = ", ".join(sorted(self._vectors)) or "none"
            raise BadRequestError(
                f"There is no vector {search.vector_name!r} in this namespace; it has: {known}."
            )
        if search.vector is None:
            raise BadRequestError(f"{search.vector_name!r} is searched by a vector, not by words.")
        size = len(search.vector)
        if size != declared.dimensions:
            raise BadRequestError(
                f"The query vector has {size} dimensions, {search.vector_name!r} has {declared.dimensions}."
            )
        return True

    def _check_text(self, search: Search) -> bool:
        if search.text is None:
            raise BadRequestError(f"{search.vector_name!r} is searched by words, not by a vector.")
        if not self._has_sparse:
            raise QdrantError(
                "The keyword index of this namespace, which is from an earlier release, is still being made; "
                "try again.",
                retry_after_s=5,
            )
        return words_asked(search.text) is not None

    def _narrow(self, search: Search, engine_filter: Any | None, residual: Filter) -> Steps[Any]:
        """Return what was found, or the engine filter that stands for the whole filter."""
        wanted = search.offset + search.limit
        self._check_scan(engine_filter, residual)
        # A filter that lets much through is met by the nearest few: no need to look at every document.
        ahead = max(64, 4 * wanted)
        (nearest,) = self.engine.query_batch([self._query(search, engine_filter, ahead, 0)])
        assert not isinstance(nearest, Bare)
        holds = self._test(residual)
        passing = [hit for hit in map(self._hit, nearest) if holds(hit.payload)]
        if len(passing) >= wanted or (len(nearest) < ahead and self._finds_all(search)):
            return passing[search.offset : wanted]
        point_ids: list[str] = []
        for records in self._scan(engine_filter):
            point_ids += [record.point_id for record in records if holds(self._document(record))]
            yield
        return self._translator.has_ids(point_ids) if point_ids else []

    @staticmethod
    def _finds_all(search: Search) -> bool:
        """Say whether fewer hits than asked for means that there are no others (a graph may miss some)."""
        return search.exact or search.text is not None

    def _page(self, page: Page) -> Steps[PageResult]:
        engine_filter, residual = self._split(page.filter)
        if page.sort_path is not None:
            return (yield from self._sorted_page(page, engine_filter, residual))
        if page.after is not None and not isinstance(page.after, str):
            raise BadRequestError("The cursor belongs to a listing with another order.")
        if residual is None:
            return self._plain_page(page, engine_filter)
        self._check_scan(engine_filter, residual)
        holds = self._test(residual)
        hits: list[Hit] = []
        skip, more = page.offset, False
        for records in self._scan(engine_filter, start=page.after, with_vectors=page.with_vectors):
            for record in records:
                if record.point_id == page.after:
                    continue
                hit = self._hit(record)
                if not holds(hit.payload):
                    continue
                if skip > 0:
                    skip -= 1
                elif len(hits) < page.limit:
                    hits.append(hit)
                else:
                    more = True
                    break
            if more:
                break
            yield
        return self._result(hits, more)

    def _plain_page(self, page: Page, engine_filter: Any | None) -> PageResult:
        start, skip = page.after, page.offset
        if skip > 0:
            passed = 1 if start is not None else 0  # the cursor's own document may lie at the start
            ids_ahead, _ = self.engine.scroll(engine_filter, start, skip + passed + 1, False, False)
            if passed and (not ids_ahead or ids_ahead[0].point_id != start):
                passed = 0
            if len(ids_ahead) <= skip + passed:
                return PageResult(())
            start = ids_ahead[skip + passed].point_id
        # One more than asked for tells whether there are more, one the cursor's own document.
        records, _ = self.engine.scroll(engine_filter, start, page.limit + 2, True, page.with_vectors)
        if skip == 0 and records and records[0].point_id == page.after:
            records = records[1:]
        return self._result(
            [self._hit(record) for record in records[: page.limit]], len(records) > page.limit
        )

    def _result(self, hits: list[Hit], more: bool) -> PageResult:
        return PageResult(tuple(hits), self._point_id(hits[-1].document_id) if more and hits else None)

    def _sorted_page(
        self, page: Page, engine_filter: Any | None, residual: Filter | None
    ) -> Steps[PageResult]:
        assert page.sort_path is not None
        found = self._superset_size(engine_filter)
        if found > self._max_scan:
            raise BadRequestError(
                f"Sorting by {page.sort_path!r} would look at {found:,} documents, more than "
                f"{self._max_scan:,}; narrow the listing by a filter on an indexed field "
                f"({self._known_indexes()})."
            )
        holds = None if residual is None else self._test(residual)
        floor = self._cursor_place(page)
        keep = page.offset + page.limit + 1
        best: list[tuple[tuple[bool, Any, str], tuple[int, Any], str]] = []
        for records in self._scan(engine_filter):
            candidates = []
            for record in records:
                payload = self._document(record)
                if holds is not None and not holds(payload):
                    continue
                key = sort_key(payload, page.sort_path)
                place = _place(key, payload["document_id"], page.descending)
                if floor is None or floor < place:
                    candidates.append((place, key, record.point_id))
            best = heapq.nsmallest(keep, itertools.chain(best, candidates), key=lambda item: item[0])
            yield
        chosen = best[page.offset : page.offset + page.limit]
        found_records = (
            {
                record.point_id: record
                for record in self.engine.retrieve([item[2] for item in chosen], True, page.with_vectors)
            }
            if chosen
            else {}
        )
        hits = [self._hit(found_records[item[2]]) for item in chosen if item[2] in found_records]
        more = len(best) == keep and bool(chosen)
        cursor = [*chosen[-1][1], chosen[-1][0][2]] if more else None
        return PageResult(tuple(hits), cursor)

    @staticmethod
    def _cursor_place(page: Page) -> tuple[bool, Any, str] | None:
        if page.after is None:
            return None
        match page.after:
            case [int(kind), value, str(document_id)] if kind in (_NUMBER, _STRING, _OTHER, _MISSING):
                is_text = kind in (_STRING, _OTHER)
                if isinstance(value, str) if is_text else _is_float(value):
                    return _place((kind, value), document_id, page.descending)
        raise BadRequestError("The cursor belongs to a listing with another order.")

    def _count(self, filter: Filter | None) -> Steps[int]:
        engine_filter, residual = self._split(filter)
        if residual is None:
            return self._superset_size(engine_filter)
        self._check_scan(engine_filter, residual)
        holds = self._test(residual)
        total = 0
        for records in self._scan(engine_filter):
            total += sum(holds(self._document(record)) for record in records)
            yield
        return total

    def get(self, document_ids: Sequence[str], with_vectors: bool) -> list[Hit]:
        """Fetch documents in the order asked for; absent ones are left out."""
        point_ids = [self._point_id(document_id) for document_id in document_ids]
        if not point_ids:
            return []
        records = self.engine.retrieve(list(dict.fromkeys(point_ids)), True, with_vectors)
        hits = {record.point_id: self._hit(record) for record in records}
        return [hits[point_id] for point_id in point_ids if point_id in hits]

    def indexes(self) -> list[IndexReport]:
        """Report the payload indexes that the engine has, in the order in which they were declared."""
        stated = {path_segments(path): found for path, found in self.engine.index_info().items()}
        reports = []
        for index in self.standing.indexes:
            found = stated.get(path_segments(engine_path(index.field_name)))
            if found is not None:
                reports.append(IndexReport(index.field_name, found.type, found.params, found.points))
        return reports

    # --- inside ------------------------------------------------------------------------------------

    def _split(self, filter: Filter | None) -> tuple[Any | None, Filter | None]:
        if filter is not None:
            filter = self._narrowing(filter)
        return self._translator.split(filter, self._indexes, self.standing.irregular)

    def _splitting(self) -> Callable[[Filter | None], tuple[Any | None, Filter | None]]:
        """Return `_split` for one batch: filters that are equal become one and the same object of the engine's."""
        known: dict[bytes, tuple[Any | None, Filter | None]] = {}
        basis = self._basis()

        def split(filter: Filter | None) -> tuple[Any | None, Filter | None]:
            nonlocal basis
            if filter is None:
                return None, None
            if basis != self._basis():  # a write came between
                basis = self._basis()
                known.clear()
            # A filter holds lists, so it is no key; equal ones that are pickled apart are only asked apart.
            key = pickle.dumps(filter, protocol=5)
            if key not in known:
                known[key] = self._split(filter)
            return known[key]

        return split

    def _narrowing(self, filter: Filter) -> Filter | None:
        """Return `filter` without the choice of collections when every document's is among the chosen.

        The engine would test each document: on 100,000 of them half as long again as the search itself.
        """
        if isinstance(filter, And):
            children = [kept for child in filter.children if (kept := self._narrowing(child)) is not None]
            if len(children) == len(filter.children):
                return filter
            return And(tuple(children)) if children else None
        if self._collections is None or not isinstance(filter, Condition):
            return filter
        if filter.path != "collection_id" or not filter.case_sensitive or filter.operator not in ("in", "eq"):
            return filter
        chosen = filter.value if filter.operator == "in" else [filter.value]
        if not isinstance(chosen, list) or not all(isinstance(value, str) for value in chosen):
            return filter
        return None if self._collections.issubset(chosen) else filter

    def _test(self, residual: Filter) -> Test:
        return predicate(residual, self._indexes)

    def _superset_size(self, engine_filter: Any | None) -> int:
        if engine_filter is None and self._count_is_known:
            return self.standing.document_count
        return self.engine.count(engine_filter)

    def _check_scan(self, engine_filter: Any | None, residual: Filter) -> None:
        found = self._superset_size(engine_filter)
        if found > self._max_scan:
            raise BadRequestError(
                f"This filter would have to look at {found:,} documents, more than {self._max_scan:,}; "
                f"{_remedy(residual, self._indexes, self.standing.irregular)}"
            )

    def _known_indexes(self) -> str:
        return ", ".join(sorted(self._indexes)[:8]) or "there is none yet"

    def _scan(
        self, engine_filter: Any | None, start: str | None = None, with_vectors: bool = False
    ) -> Iterator[list[Record]]:
        while True:
            records, start = self.engine.scroll(engine_filter, start, SCAN_SLICE, True, with_vectors)
            yield records
            if start is None:
                return

    def _document(self, record: Record) -> Payload:
        return packing.document_of(self._layout, record.payload or {})

    def _hit(self, record: Record) -> Hit:
        payload = self._document(record)
        # Keyword indexes are made from the payload, and are no vectors of the document's own.
        vectors = {
            name: np.asarray(vector, dtype=np.float32)
            for name, vector in (record.vectors or {}).items()
            if name in self._vectors
        }
        return Hit(payload["document_id"], payload, record.score, vectors)


def _number(point_id: str) -> int:
    return uuid.UUID(point_id).int


def _numbers(vector: Any) -> memoryview:
    """Return the memory of a vector's numbers: made into objects one by one, they are never all there at once."""
    return np.ascontiguousarray(vector, dtype=np.float32).data


def _with_fields(hit: Hit, wanted: set[str]) -> Hit:
    return replace(hit, payload={name: value for name, value in hit.payload.items() if name in wanted})


def _definition(index: PayloadIndex) -> tuple[IndexType, bytes]:
    return index.type, orjson.dumps(index.field_schema, option=orjson.OPT_SORT_KEYS)


def _conditions(filter: Filter) -> Iterator[Condition]:
    if isinstance(filter, Condition):
        yield filter
    else:
        for child in filter.children:
            yield from _conditions(child)


def _remedy(residual: Filter, indexes: Mapping[str, PayloadIndex], irregular: set[str]) -> str:
    """Say which index would let the engine answer, naming the field."""
    advice: list[str] = []
    for condition in _conditions(residual):
        path = condition.path
        if condition.operator == SEARCH:
            text = "search looks into every document; a retriever with feature_search finds by meaning among many"
        elif path in irregular:
            text = f"{path!r} holds values that its {indexes[path].type} index does not see"
        elif path in indexes:
            text = f"the {indexes[path].type} index on {path!r} cannot answer {condition.operator!r}"
        elif type := helpful_type(condition):
            text = f"add a {type} index on {path!r}"
        else:
            text = f"no index on {path!r} can answer {condition.operator!r}"
        if text not in advice:
            advice.append(text)
    return "; ".join(advice[:4]) + ", or narrow the filter by an indexed field."
