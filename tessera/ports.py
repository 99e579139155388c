"""The two ports: what Tessera needs of a vector engine, and of something that runs extraction.

Everything that crosses them is plain data, so that a request can travel to a host process, to a
Qdrant server or to a Ray worker without change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tessera.filters import Filter
from tessera.models import PayloadIndex

Payload = dict[str, Any]
Vector = npt.NDArray[np.float32]
Distance = Literal["cosine", "dot", "euclid", "manhattan"]
FusionMethod = Literal["rrf", "dbsf", "weighted", "max"]

#: Root fields that never leave the server as they are: the organization's secret id, the engine's shadows, and what
#: takes back what taxonomies wrote.
HIDDEN_FIELDS = frozenset(
    {"internal_id", "_s", "_internal", "_enriched", "namespace_id", "bucket_id", "object_id"}
)


@dataclass(frozen=True, slots=True)
class DenseVector:
    """A named vector of a view: `float32[dimensions]`, compared by `distance`."""

    name: str
    dimensions: int
    distance: Distance = "cosine"


@dataclass(frozen=True, slots=True)
class SparseText:
    """A keyword index of a view: the words of each document's root fields `fields`, weighed by BM25.

    The engine's adapter makes the vectors from payloads, so they stand in no log entry, follow every change of a
    text, and are there for whatever is written. A field is a text or an array of texts.
    """

    name: str
    fields: tuple[str, ...]

    @classmethod
    def all_of(cls, stored: Sequence[Mapping[str, Any]] | None) -> tuple[SparseText, ...]:
        """Read them from the column of a namespace's row that holds them; null means none."""
        return tuple(cls(row["name"], tuple(row["fields"])) for row in stored or ())


@dataclass(frozen=True, slots=True)
class View:
    """An index built from a namespace's log, and where it stands.

    `view_id` is the physical name: ``<namespace_id>-<generation>``, never reused, never the user's.
    `location` is a directory for the embedded engine and a base URL for a server. `secret` is the
    server's key, never part of ``repr``.
    """

    namespace_id: str
    view_id: str
    vectors: tuple[DenseVector, ...]
    location: str
    alias: str | None = None
    secret: str | None = field(default=None, repr=False)
    sparse: tuple[SparseText, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A document as the log holds it: final payload and the vectors that it has."""

    document_id: str
    payload: Payload
    vectors: Mapping[str, Vector] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One log entry, ready to apply; holds final values, so that applying it again changes nothing.

    An `artifact` entry names a local Arrow file (see ``tessera/log.py`` for its columns); `deletes`
    may accompany it. An `indexes` entry is the complete set from then on. A missing id to delete is
    as good as deleted. With `keeps_vectors` the entry brings payloads only: a document that exists keeps its
    vectors, one that does not is not made. A view passes over an index change that is `deferrable` when
    making the indexes would hold others up, and says so (`Mark.behind`).
    """

    seq: int
    kind: Literal["edit", "artifact", "indexes"]
    upserts: tuple[Document, ...] = ()
    deletes: tuple[str, ...] = ()
    artifact_path: str | None = None
    indexes: tuple[PayloadIndex, ...] | None = None
    deferrable: bool = False
    keeps_vectors: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a view has come: every entry up to `seq` is in it, `document_count` documents exactly.

    `durable` says whether this position is flushed to disk (survives power loss), `checked` whether all the
    view's files were compared with their checksums when it was opened. `behind` tells that an index change
    was passed over, or that a keyword index is missing, `tail` how many documents at most lie outside the vector
    graphs (all, without a graph).
    """

    view_id: str
    seq: int
    document_count: int
    durable: bool = False
    checked: bool = True
    behind: bool = False
    tail: int = 0


@dataclass(frozen=True, slots=True)
class Search:
    """Nearest documents to `vector` among those that `filter` lets through.

    `exact` scans; otherwise `ef` widens the graph search (engine default when None). A search of a `SparseText`
    has a `text` instead of a vector; it finds the documents that have one of its words.
    """

    vector_name: str
    vector: Vector | None
    limit: int
    filter: Filter | None = None
    offset: int = 0
    ef: int | None = None
    exact: bool = False
    with_vectors: bool = False
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One search of a fused ranking: its name in `Hit.signals`, its weight, and the least score that counts."""

    name: str
    weight: float = 1.0
    min_score: float | None = None


@dataclass(frozen=True, slots=True)
class Fusion:
    """How the rankings of searches become one (``tessera/fusion.py`` has the formulas); one alone stays as it is.

    `parts` go with the searches, in their order. Only the first `most` are wanted, all when it is None. `with_shares`
    asks of each search also what it gave a hit, before its weight.
    """

    parts: tuple[Part, ...]
    method: FusionMethod = "rrf"
    most: int | None = None
    with_shares: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Documents that `filter` lets through, by point id, or by `sort_path` (nulls last, ties by id).

    `after` is the cursor of the page before: the last point id, or (sort key, point id) as
    `PageResult.next_after` gave it. `fields` names all of the payloads that is wanted, by the first segment of a
    path (the ids always come too): what a scan does not need does not travel.
    """

    limit: int
    filter: Filter | None = None
    offset: int = 0
    after: Any = None
    sort_path: str | None = None
    descending: bool = False
    with_vectors: bool = False
    fields: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A found document. `score` is the engine's similarity, None for a listing.

    `signals` is what each search of a fused ranking says of it, by the feature that was searched.
    """

    document_id: str
    payload: Payload
    score: float | None = None
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    signals: Mapping[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class PageResult:
    hits: tuple[Hit, ...]
    next_after: Any = None


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What the engine itself says of a payload index: its type, its parameters, the points in it."""

    field_name: str
    type: str
    params: Mapping[str, Any]
    points: int


class ViewLost(Exception):
    """The view went away under a call (its host died); nothing is known of the call. Open it again and replay."""


class ViewDamaged(Exception):
    """The view's files are damaged, or are not those that its mark speaks of; it must be rebuilt from the log."""

    def __init__(self, view_id: str, reason: str) -> None:
        super().__init__(f"view {view_id}: {reason}")
        self.view_id = view_id
        self.reason = reason


class Vectors(Protocol):
    """A vector engine that holds views. Every method may be called from several threads.

    Errors: `QdrantError` when the engine fails or cannot be reached; `BadRequestError` for a filter
    or a sort that cannot be answered exactly (the message names the index that would help).
    """

    def open(self, view: View) -> Mark:
        """Make `view` if it does not exist, load it if it does, and tell how far it has come."""

    def apply(self, view: View, entries: Sequence[Entry]) -> Mark:
        """Apply `entries` in order. When it returns they are findable, not yet durable."""

    def apply_next(self, view: View, entry: Entry) -> Mark | None:
        """Apply `entry` behind what is being applied now; None when the one before it is not in the view then.

        An engine may refuse it always: whoever asks then waits for that one, and calls `apply`.
        """

    def flush(self, view: View) -> Mark:
        """Make everything applied durable, then move the durable mark."""

    def search(self, view: View, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer several searches at once, in their order."""

    def ranked(self, view: View, searches: Sequence[Search], fusion: Fusion) -> list[Hit]:
        """Answer several searches as one ranking, best first, each hit with its `signals`.

        The hits are those of `search`, fused by ``tessera.fusion.fused_hits``; what is not shown is not read.
        """

    def page(self, view: View, page: Page) -> PageResult:
        """List documents, exactly."""

    def count(self, view: View, filter: Filter | None = None) -> int:
        """Count documents, exactly."""

    def get(self, view: View, document_ids: Sequence[str], with_vectors: bool = False) -> list[Hit]:
        """Fetch by id; ids that do not exist are left out, the order is that of `document_ids`."""

    def indexes(self, view: View) -> list[IndexReport]:
        """Ask the engine which payload indexes it has. Our own shadow indexes are left out."""

    def release(self, view: View) -> None:
        """Flush the view, close it, and keep nothing of it in memory; `open` brings it back."""

    def drop(self, view: View) -> None:
        """Remove the view and all its files. Done already is as good as done; a build in it ends."""

    def builds_apart(self, view: View) -> bool:
        """Say whether a view of this kind is better built beside the one that answers than changed in place."""

    def begin(self, view: View, *, graph: bool, apart: bool) -> Mark:
        """Make `view` from nothing, to be filled: `apart` where that holds nobody up, with `graph` for `optimize`."""

    def optimize(self, view: View) -> Mark:
        """Build the vector graphs of a view that was begun for them; takes minutes and holds nobody up."""

    def settle(self, view: View) -> Mark:
        """End what `begin` began: the view, durable from here on, is opened where it is to answer."""

    def close(self) -> None:
        """Flush and close everything; the port cannot be used afterwards."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Where work runs, and on how much: `cluster` is ``ray://host:port``, None the server's own processes.

    On a cluster, callers with the same `pool` share workers: at least `min_workers` as long as there is
    work now and then, at most `max_workers`; without `autoscaling` a fixed number, the minimum.
    `gpus_per_worker` of 0 asks for none. `is_patient` waits minutes for a cluster that is not there.
    `token` is the cluster's, never part of ``repr``.
    """

    cluster: str | None = None
    token: str | None = field(default=None, repr=False)
    pool: str = "shared"
    min_workers: int = 0
    max_workers: int = 10
    autoscaling: bool = True
    gpu_type: str | None = None
    gpus_per_worker: int = 0
    dashboard_url: str | None = None
    is_patient: bool = False


#: The server's own worker processes.
HERE = Compute()


@dataclass(frozen=True, slots=True)
class Failed:
    """A call of the runner that did not bring a value: what went wrong, and whose fault it was.

    `kind` is one of ``causes.KINDS``: ``timeout``, ``crash``, ``memory`` (the worker's memory was used up), ``ours``.
    `crashed` tells a worker that died or ran out of time from an error that the function raised.
    """

    kind: str
    message: str
    crashed: bool = False
    retryable: bool = False


class Runner(Protocol):
    """Maps a function over batches in other processes; failures are values."""

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        timeout_s: float,
        compute: Compute = HERE,
        again: Callable[[Any, int], Any] | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[tuple[int, Any | Failed]]:
        """Yield ``(index, value or Failed)`` in the order of completion; a crash costs one item.

        `function` must be importable (a top-level function); items and values are pickled. An item that
        goes again because its cluster or its node was lost (the first run may still be going on there) is
        first replaced by ``again(item, number of the run)``. Once `stop` is set the iteration ends soon, and what
        is under way is given up; the server's own workers are stopped under it.

        Raises `ClusterError` when the place that `compute` names cannot be used at all.
        """

    def close(self) -> None:
        """Stop workers; calls under way end as `Failed`."""
