"""Views: which one answers for a namespace, how far it has come, and what to do when it is lost.

A view is opened on first use. It answers nothing before it has reached the head that the log had when
it was opened; after that every writer applies its own entry before it reports success, so a search
needs no look at the database. A view that is lost (its host died) is opened again and replayed from
its durable mark; one that is damaged is set aside and rebuilt from the log under a new generation.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from tessera import log
from tessera.blobs import Blobs
from tessera.db.engine import Database
from tessera.db.tables import doomed_views, namespaces
from tessera.errors import NotFoundError, QdrantError
from tessera.filters import Filter
from tessera.models import PayloadIndex
from tessera.ports import (
    DenseVector,
    Entry,
    Hit,
    IndexReport,
    Mark,
    Page,
    PageResult,
    Search,
    Vectors,
    View,
    ViewDamaged,
    ViewLost,
)

T = TypeVar("T")
logger = logging.getLogger("tessera.views")

#: Entries read from the log and sent to the engine at once.
REPLAY_ENTRIES = 50
#: How often applied entries are made durable (rule 8: every 50 entries or 1 s; the host counts entries).
FLUSH_INTERVAL_S = 1.0
#: A view that was being built when its server died is dropped after this time.
ABANDONED_AFTER_S = 24 * 3600.0
#: A reader waits so long for a view that somebody else is opening, replaying or rebuilding.
READ_PATIENCE_S = 25.0
#: The flusher passes over a view that is busy for longer; it comes by again.
_FLUSH_PATIENCE_S = 0.2


@dataclass(frozen=True, slots=True)
class Location:
    """Where a view lives: a directory or a server's URL, the server's key, the alias that users know it by."""

    location: str
    secret: str | None = field(default=None, repr=False)
    alias: str | None = None


#: From a view's name and the `place` column of its namespace to where the view is.
Locate = Callable[[str, Mapping[str, Any] | None], Location]


class _Open:
    """What is known of one namespace's view in this process. `lock` orders appliers and opening."""

    __slots__ = ("applied", "count", "gone", "lock", "ready", "view")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.view: View | None = None
        self.ready = False
        self.applied = 0
        self.count = 0
        self.gone = False


class Views:
    """The views of all namespaces.

    `locate` says, of a view's name and its namespace's `place`, where the view lives.
    """

    def __init__(
        self,
        db: Database,
        vectors: Vectors,
        blobs: Blobs,
        locate: Locate,
    ) -> None:
        self._db = db
        self._vectors = vectors
        self._blobs = blobs
        self._locate = locate
        self._open: dict[str, _Open] = {}
        self._open_lock = threading.Lock()
        #: Namespaces with entries that are applied but not yet durable.
        self._dirty: set[str] = set()
        self._stop = threading.Event()
        self._flusher = threading.Thread(target=self._flush_forever, name="view-flusher", daemon=True)
        self._flusher.start()

    # --- writing -----------------------------------------------------------------------------------

    def apply(self, namespace_id: str, seq: int | None = None) -> Mark:
        """Bring the view up to entry `seq` (the log's head when None); then it is findable.

        Can be repeated; returns at once when the view is that far already.
        Raises `QdrantError` when the engine cannot; the log keeps the entry and the next use applies it.
        """
        return self._apply(namespace_id, seq, patience_s=None)

    def _apply(self, namespace_id: str, seq: int | None, *, patience_s: float | None) -> Mark:
        state = self._state(namespace_id)
        if state.ready and seq is not None and state.applied >= seq:
            return Mark(state.view.view_id if state.view else "", state.applied, state.count)
        with self._attending(namespace_id, state, patience_s):
            for _ in range(3):
                try:
                    self._make_ready(namespace_id, state)
                    target = self._head(namespace_id) if seq is None else seq
                    self._catch_up(namespace_id, state, target)
                    assert state.view is not None
                    return Mark(state.view.view_id, state.applied, state.count)
                except ViewLost:
                    state.ready = False
                except ViewDamaged as damage:
                    self._set_aside(namespace_id, state, damage)
            raise QdrantError(
                "The namespace's index could not be brought up to date; try again.", retry_after_s=2
            )

    # --- reading -----------------------------------------------------------------------------------

    def search(self, namespace_id: str, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer `searches` together."""
        return self._reading(namespace_id, lambda view: self._vectors.search(view, searches))

    def page(self, namespace_id: str, page: Page) -> PageResult:
        """List documents, exactly."""
        return self._reading(namespace_id, lambda view: self._vectors.page(view, page))

    def get(self, namespace_id: str, document_ids: Sequence[str], with_vectors: bool = False) -> list[Hit]:
        """Fetch documents by id; absent ones are left out."""
        return self._reading(namespace_id, lambda view: self._vectors.get(view, document_ids, with_vectors))

    def count(self, namespace_id: str, filter: Filter | None = None) -> int:
        """Count documents, exactly."""
        return self._reading(namespace_id, lambda view: self._vectors.count(view, filter))

    def indexes(self, namespace_id: str) -> list[IndexReport]:
        """Ask the engine for its payload indexes."""
        return self._reading(namespace_id, self._vectors.indexes)

    def document_count(self, namespace_id: str, stored: int) -> int:
        """Return the exact count that goes with the applied position; `stored` when the view is closed.

        Never opens a view, so that a list of ten thousand namespaces costs nothing.
        """
        state = self._open.get(namespace_id)
        return state.count if state is not None and state.ready else stored

    def is_open(self, namespace_id: str) -> bool:
        """Say whether the view is open here or being opened; one that is not reads the log's head when it opens."""
        return namespace_id in self._open

    # --- placing -----------------------------------------------------------------------------------

    def view_at(
        self,
        namespace_id: str,
        view_id: str,
        vectors: tuple[DenseVector, ...],
        place: Mapping[str, Any] | None,
    ) -> View:
        """Return the view of that name as the engine must be told of it."""
        where = self._locate(view_id, place)
        return View(namespace_id, view_id, vectors, where.location, alias=where.alias, secret=where.secret)

    def provision(self, view: View, indexes: Sequence[PayloadIndex], seq: int) -> None:
        """Make `view` where it shall live, with the payload indexes that hold at entry `seq`; durable.

        Raises `AlreadyExistsError` when its alias is taken there, `QdrantError` when that place fails.
        Nothing refers to the view yet: the caller drops it when it does not keep it.
        """
        self._vectors.open(view)
        self._vectors.apply(view, [Entry(seq, "indexes", indexes=tuple(indexes))])
        self._vectors.flush(view)

    def drop(self, view: View) -> None:
        """Remove a view that no namespace refers to. Done already is as good as done."""
        self._vectors.drop(view)

    def forget(self, namespace_id: str) -> None:
        """Let the next use of the namespace look anew where its view is."""
        state = self._state(namespace_id)
        with state.lock:
            state.ready = False

    def renew(self, namespace_id: str) -> tuple[str, str]:
        """Build the view anew from the log, beside the one that answers, and let it answer; drop the old one.

        Searches go on meanwhile; whoever writes waits for the last entries only. Returns the ids of the old
        and the new view. A kill leaves the old one in force and the new one in `doomed_views`.

        Raises `QdrantError` when the engine failed under it; what was half built is dropped.
        """
        state = self._state(namespace_id)
        with self._db.write() as connection:
            row = connection.execute(
                sa.update(namespaces)
                .where(namespaces.c.namespace_id == namespace_id)
                .values(generation=namespaces.c.generation + 1)
                .returning(
                    namespaces.c.generation, namespaces.c.vectors, namespaces.c.place, namespaces.c.head
                )
            ).one_or_none()
            if row is None:
                raise NotFoundError("namespace", namespace_id)
            vectors = tuple(DenseVector(**vector) for vector in row.vectors)
            new = self.view_at(namespace_id, f"{namespace_id}-{row.generation}", vectors, row.place)
            connection.execute(doomed_views.insert().values(_doomed(new.view_id, namespace_id, row.place)))
        try:
            applied = self._vectors.open(new).seq
            for mark in self._replay(new, applied, row.head):
                applied = mark.seq
            with self._attending(namespace_id, state, None):
                for _ in self._replay(new, applied, self._head(namespace_id)):
                    pass
                mark = self._vectors.flush(new)
                old = self._switch(namespace_id, new, mark)
                state.view, state.applied, state.count = new, mark.seq, mark.document_count
                state.ready = True
                self._dirty.discard(namespace_id)
        except (ViewLost, ViewDamaged) as error:
            self._vectors.drop(new)
            raise QdrantError(
                f"The index of {namespace_id} could not be built anew; it is tried again.", retry_after_s=5
            ) from error
        self._vectors.drop(self.view_at(namespace_id, old, (), row.place))
        with self._db.write() as connection:
            connection.execute(sa.delete(doomed_views).where(doomed_views.c.view_id == old))
        return old, new.view_id

    def _switch(self, namespace_id: str, new: View, mark: Mark) -> str:
        """Let `new` answer from now on, in one transaction; return the id of the view that did."""
        with self._db.write() as connection:
            this = namespaces.c.namespace_id == namespace_id
            row = connection.execute(sa.select(namespaces.c.view_id, namespaces.c.place).where(this)).one()
            connection.execute(
                sa.update(namespaces)
                .where(this)
                .values(view_id=new.view_id, mark_seq=mark.seq, document_count=mark.document_count)
            )
            connection.execute(sa.delete(doomed_views).where(doomed_views.c.view_id == new.view_id))
            connection.execute(doomed_views.insert().values(_doomed(row.view_id, namespace_id, row.place)))
        return str(row.view_id)

    @contextmanager
    def quiet(self, namespace_id: str) -> Iterator[None]:
        """Let nothing be applied while the block runs: files that entries named until now can be removed."""
        state = self._state(namespace_id)
        with self._attending(namespace_id, state, None):
            yield

    # --- ending ------------------------------------------------------------------------------------

    def purge(
        self, namespace_id: str, view_ids: Sequence[str], place: Mapping[str, Any] | None = None
    ) -> None:
        """Forget the namespace and remove these views with all their files. Can be repeated."""
        state = self._state(namespace_id)
        with state.lock:
            state.gone, state.ready = True, False
            self._dirty.discard(namespace_id)
            for view_id in view_ids:
                self._vectors.drop(self.view_at(namespace_id, view_id, (), place))
        with self._open_lock:
            self._open.pop(namespace_id, None)

    def close(self) -> None:
        """Make everything durable and stop."""
        self._stop.set()
        self._flusher.join(timeout=5)
        self._flush_dirty(patience_s=5)

    # --- inside ------------------------------------------------------------------------------------

    def _state(self, namespace_id: str) -> _Open:
        state = self._open.get(namespace_id)
        if state is None:
            with self._open_lock:
                state = self._open.setdefault(namespace_id, _Open())
        return state

    @contextmanager
    def _attending(self, namespace_id: str, state: _Open, patience_s: float | None) -> Iterator[None]:
        """Hold the namespace's lock, and leave no trace of a namespace that turns out not to exist."""
        if not state.lock.acquire(timeout=-1 if patience_s is None else patience_s):
            # Threads that wait are missed by every other namespace.
            raise QdrantError(
                "The namespace's index is being brought up to date, which takes a while; try again.",
                retry_after_s=5,
            )
        try:
            if state.gone:
                raise NotFoundError("namespace", namespace_id)
            yield
        except NotFoundError:
            state.gone = True
            with self._open_lock:
                if self._open.get(namespace_id) is state:
                    del self._open[namespace_id]
            raise
        finally:
            state.lock.release()

    def _reading(self, namespace_id: str, call: Callable[[View], T]) -> T:
        state = self._state(namespace_id)
        for _ in range(3):
            if not state.ready:
                self._apply(namespace_id, None, patience_s=READ_PATIENCE_S)
            view = state.view
            assert view is not None
            try:
                return call(view)
            except ViewLost:
                with state.lock:
                    if state.view is view:
                        state.ready = False
            except ViewDamaged as damage:
                with state.lock:
                    if state.view is view:
                        self._set_aside(namespace_id, state, damage)
        raise QdrantError(
            "The namespace's index was lost while it was being read; try again.", retry_after_s=2
        )

    def _row(self, namespace_id: str) -> Any:
        with self._db.read() as connection:
            row = connection.execute(
                sa.select(
                    namespaces.c.view_id,
                    namespaces.c.vectors,
                    namespaces.c.head,
                    namespaces.c.mark_seq,
                    namespaces.c.checkpoint_seq,
                    namespaces.c.generation,
                    namespaces.c.place,
                ).where(namespaces.c.namespace_id == namespace_id)
            ).one_or_none()
        if row is None:
            raise NotFoundError("namespace", namespace_id)
        return row

    def _head(self, namespace_id: str) -> int:
        return int(self._row(namespace_id).head)

    def _make_ready(self, namespace_id: str, state: _Open) -> None:
        if state.ready:
            return
        row = self._row(namespace_id)
        vectors = tuple(DenseVector(**vector) for vector in row.vectors)
        view = self.view_at(namespace_id, row.view_id, vectors, row.place)
        mark = self._vectors.open(view)
        if mark.seq < row.mark_seq or mark.seq > row.head:
            # A mark is written after the flush it speaks of, so a view behind the database's mark is not the
            # one that was flushed: its directory was removed or replaced.
            raise ViewDamaged(
                view.view_id, f"it stands at entry {mark.seq}, the database says {row.mark_seq}"
            )
        if 0 < mark.seq < row.checkpoint_seq:
            raise ViewDamaged(
                view.view_id, f"it stands at entry {mark.seq}, inside the checkpoint at {row.checkpoint_seq}"
            )
        state.view, state.applied, state.count = view, mark.seq, mark.document_count
        self._catch_up(namespace_id, state, row.head)
        state.ready = True

    def _catch_up(self, namespace_id: str, state: _Open, target: int) -> None:
        assert state.view is not None
        for mark in self._replay(state.view, state.applied, target):
            state.applied, state.count = mark.seq, mark.document_count
            self._dirty.add(namespace_id)

    def _replay(self, view: View, applied: int, target: int) -> Iterator[Mark]:
        """Apply what lies between entry `applied` and `target`, and tell after each step how far the view is."""
        while applied < target:
            with self._db.read() as connection:
                try:
                    entries = log.read(
                        connection,
                        view.namespace_id,
                        after=applied,
                        limit=REPLAY_ENTRIES,
                        local_path=self._blobs.path,
                    )
                except log.Folded as folded:
                    raise ViewDamaged(view.view_id, str(folded)) from folded
            if not entries:
                break  # the log was removed with its namespace
            # A checkpoint is read as a whole; it is sent in pieces, so that no request takes too long.
            for start in range(0, len(entries), REPLAY_ENTRIES):
                mark = self._vectors.apply(view, entries[start : start + REPLAY_ENTRIES])
                applied = mark.seq
                yield mark

    def _set_aside(self, namespace_id: str, state: _Open, damage: ViewDamaged) -> None:
        """Give the namespace a fresh view, to be built from the log; the damaged one is dropped."""
        row = self._row(namespace_id)
        generation = row.generation + 1
        logger.warning("view %s is damaged (%s); rebuilding from the log", row.view_id, damage.reason)
        with self._db.write() as connection:
            connection.execute(
                sa.update(namespaces)
                .where(namespaces.c.namespace_id == namespace_id, namespaces.c.view_id == row.view_id)
                .values(view_id=f"{namespace_id}-{generation}", generation=generation, mark_seq=0)
            )
        state.ready = False
        self._vectors.drop(self.view_at(namespace_id, row.view_id, (), row.place))

    def _flush_forever(self) -> None:
        while not self._stop.wait(FLUSH_INTERVAL_S):
            self._flush_dirty(_FLUSH_PATIENCE_S)

    def _flush_dirty(self, patience_s: float) -> None:
        for namespace_id in list(self._dirty):
            state = self._open.get(namespace_id)
            if state is None:
                self._dirty.discard(namespace_id)
            elif state.lock.acquire(timeout=patience_s):
                try:
                    self._flush(namespace_id, state)
                finally:
                    state.lock.release()

    def _flush(self, namespace_id: str, state: _Open) -> None:
        self._dirty.discard(namespace_id)
        if not state.ready or state.view is None:
            return  # lost or gone; what was applied is in the log and is replayed
        try:
            mark = self._vectors.flush(state.view)
        except (ViewLost, ViewDamaged):
            state.ready = False  # whoever uses it next opens it, and sees what is the matter
        except Exception as error:  # noqa: BLE001  one view's trouble must not end the flusher of all
            logger.warning("view %s could not be flushed: %s", state.view.view_id, error)
            self._dirty.add(namespace_id)
        else:
            self._db.later(_record(namespace_id, mark))


def _doomed(view_id: str, namespace_id: str, place: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the row of a view that nobody will need; dropped when whoever made it must have ended."""
    due_at = (datetime.now(UTC) + timedelta(seconds=ABANDONED_AFTER_S)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"view_id": view_id, "namespace_id": namespace_id, "place": place, "due_at": due_at}


def _record(namespace_id: str, mark: Mark) -> Callable[[sa.Connection], None]:
    def write(connection: sa.Connection) -> None:
        connection.execute(
            sa.update(namespaces)
            .where(
                namespaces.c.namespace_id == namespace_id,
                namespaces.c.view_id == mark.view_id,
                namespaces.c.mark_seq <= mark.seq,
            )
            .values(mark_seq=mark.seq, document_count=mark.document_count)
        )

    return write
