"""Views: which one answers for a namespace, how far it has come, what to do when it is lost, and the one builder.

A view is opened on first use. It answers nothing before it has reached the head that the log had when
it was opened; after that every writer applies its own entry before it reports success, so a search
needs no look at the database. A view that is lost (its host died) is opened again and replayed from
its durable mark; one that is damaged is set aside and rebuilt from the log under a new generation.

The builder makes a view beside the one that answers (log, graphs, what came meanwhile) and switches one row:
for vector graphs, for payload indexes over many documents, for a keyword index that it lacks, and for a view whose
files cannot be checked because its server was killed while it was written to. Nobody waits for it; a build that is
killed is thrown away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from tessera import failpoints, log
from tessera.blobs import Blobs
from tessera.db.engine import Database, now
from tessera.db.tables import doomed_views, namespaces
from tessera.errors import NotFoundError, QdrantError, TesseraError
from tessera.filters import Filter
from tessera.models import PayloadIndex
from tessera.ports import (
    DenseVector,
    Entry,
    Fusion,
    Hit,
    IndexReport,
    Mark,
    Page,
    PageResult,
    Search,
    SparseText,
    Vectors,
    View,
    ViewDamaged,
    ViewLost,
)

T = TypeVar("T")
logger = logging.getLogger("tessera.views")

#: Entries read from the log and sent to the engine at once.
REPLAY_ENTRIES = 50
#: How often applied entries are made durable (the host counts entries: at least every 50). Where a flush takes long,
#: less often, so that flushes take this part of the time at most: searches wait for the engine meanwhile.
FLUSH_INTERVAL_S = 1.0
FLUSH_LATEST_S = 10.0
FLUSH_SHARE = 0.01
#: A reader waits so long for a view that somebody else is opening, replaying or rebuilding.
READ_PATIENCE_S = 25.0
#: Namespaces about which something is kept in memory; beyond it, what was not used for longest is let go.
KEPT_STATES = 4096
#: Above this many documents a payload index is made in a new view beside (a text index of 20,000: 1.3 s).
INDEX_IN_PLACE_DOCUMENTS = 2_000
#: A view whose files cannot be checked is made anew before it answers, if that takes about a second; else beside it.
REBUILD_AT_ONCE_DOCUMENTS = 5_000
REBUILD_AT_ONCE_ENTRIES = 2_000
#: Graphs are built again when this part of the documents that they hold has come or changed since.
GRAPH_TAIL = 0.5
#: A build goes on to its next step when it is no more entries behind than this.
CLOSE_ENOUGH_ENTRIES = 20
#: Rounds of catching up before a build gives up on a namespace that is written to faster than it can follow.
CATCH_UP_ROUNDS = 200
#: The view before a switch is kept for longer than any request takes.
GRACE_S = 90.0
#: A build that failed is tried again after this long, if somebody uses the namespace then.
BUILD_AGAIN_S = 60.0
#: When a view is to be dropped that is being built: never, unless its server ends.
_UNFINISHED = "9999-12-31T23:59:59.999999Z"


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

    __slots__ = (
        "behind",
        "damage",
        "edits",
        "flush_from",
        "gone",
        "known",
        "lock",
        "mark",
        "openings",
        "ready",
        "rest_until",
        "used_at",
        "view",
    )

    def __init__(self) -> None:
        self.lock = threading.RLock()
        #: Held by whoever reckons a change from what the view holds.
        self.edits = threading.Lock()
        self.view: View | None = None
        self.ready = False
        self.mark = Mark("", 0, 0)
        self.gone = False
        #: Whether an entry could not be applied: then every use tries to catch up.
        self.behind = False
        #: Damage that was told, perhaps for the only time, and is not treated yet.
        self.damage: ViewDamaged | None = None
        self.openings = 0
        self.used_at = time.monotonic()
        #: Whether this process has had the view open before: what it lost since, it lost whole.
        self.known = False
        #: Until when (monotonic) no build is begun, because one failed.
        self.rest_until = 0.0
        #: From when on (monotonic) the view may be flushed again.
        self.flush_from = 0.0

    @property
    def applied(self) -> int:
        return self.mark.seq

    @property
    def count(self) -> int:
        return self.mark.document_count


class _Overtaken(Exception):
    """The namespace's view is another one now, or the namespace is gone: what was built is for nobody."""


class Views:
    """The views of all namespaces.

    `locate` says, of a view's name and its namespace's `place`, where the view lives. A view gets graphs when the
    vectors (of one name) outside of any take more than `graph_from_bytes`; below, scanning them is fast and exact.
    """

    def __init__(
        self,
        db: Database,
        vectors: Vectors,
        blobs: Blobs,
        locate: Locate,
        *,
        graph_from_bytes: int = 200 * 2**20,
    ) -> None:
        self._db = db
        self._vectors = vectors
        self._blobs = blobs
        self._locate = locate
        self._graph_from_bytes = graph_from_bytes
        self._open: dict[str, _Open] = {}
        self._open_lock = threading.Lock()
        #: Namespaces with entries that are applied but not yet durable.
        self._dirty: set[str] = set()
        self._stop = threading.Event()
        #: Namespaces that want a build, in the order in which they asked; the first is under way.
        self._wanted: dict[str, None] = {}
        self._build_change = threading.Condition(threading.RLock())
        self._builder: threading.Thread | None = None
        self._building: set[View] = set()
        #: Set when no view is to be built any more, because the server ends.
        self._builds_end = threading.Event()
        with self._db.write() as connection:
            # Builds that were under way when an earlier server ended are thrown away.
            connection.execute(
                sa.update(doomed_views).where(doomed_views.c.due_at == _UNFINISHED).values(due_at=now())
            )
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
            return state.mark
        ahead = None if seq is None else self._apply_ahead(namespace_id, state, seq)
        with self._attending(namespace_id, state, patience_s):
            for _ in range(3):
                try:
                    self._make_ready(namespace_id, state)
                    if ahead is not None:
                        taken, ahead = ahead, None
                        self._take_over(namespace_id, state, taken)
                    target = self._head(namespace_id) if seq is None else seq
                    self._catch_up(namespace_id, state, target)
                    state.behind = False
                    if self._wants_build(state):
                        self.request_build(namespace_id)
                    return state.mark
                except ViewLost:
                    state.ready = False
                except ViewDamaged as damage:
                    self._set_aside(namespace_id, state, damage)
                except Exception:
                    # Whoever failed, the engine or the database: the log may hold what the view does not.
                    state.behind = True
                    raise
            raise QdrantError(
                "The namespace's index could not be brought up to date; try again.", retry_after_s=2
            )

    def _apply_ahead(
        self, namespace_id: str, state: _Open, seq: int
    ) -> tuple[int, Mark] | ViewDamaged | None:
        """Have the engine go on with artifact `seq` once it has the entry before, for which another thread waits.

        From that one's answer to the next one's request the engine would stand still, for 3 to 15 ms of the 35 that a
        thousand documents take it. Returns which opening of the view took it, and the mark; or damage, which may have
        been told for the only time. Whatever else goes wrong is met again where entries are applied in their order.
        """
        view, openings = state.view, state.openings
        if view is None or not state.ready or state.applied >= seq - 1:
            return None
        try:
            with self._db.read() as connection:
                entry = log.artifact_at(connection, namespace_id, seq, local_path=self._blobs.path)
            if entry is None:
                return None
            mark = self._vectors.apply_next(view, entry)
        except ViewDamaged as damage:
            return damage
        except Exception:  # noqa: BLE001  see above
            return None
        return None if mark is None else (openings, mark)

    def _take_over(self, namespace_id: str, state: _Open, taken: tuple[int, Mark] | ViewDamaged) -> None:
        """Count what `_apply_ahead` applied, unless the view was opened again since, or replaced by another.

        Raises the damage that was found instead.
        """
        if isinstance(taken, ViewDamaged):
            raise taken
        openings, mark = taken
        assert state.view is not None
        same = openings == state.openings and mark.view_id == state.view.view_id
        if same and state.applied < mark.seq:
            state.mark = mark
            self._dirty.add(namespace_id)

    # --- reading -----------------------------------------------------------------------------------

    def search(self, namespace_id: str, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer `searches` together."""
        return self._reading(namespace_id, lambda view: self._vectors.search(view, searches))

    def ranked(self, namespace_id: str, searches: Sequence[Search], fusion: Fusion) -> list[Hit]:
        """Answer `searches` as one ranking."""
        return self._reading(namespace_id, lambda view: self._vectors.ranked(view, searches, fusion))

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

    def position(self, namespace_id: str) -> tuple[str, int] | None:
        """Return the view that answers here and the entry up to which it has been applied; None while none does.

        What is read afterwards holds at least that much.
        """
        state = self._open.get(namespace_id)
        if state is None or not state.ready or state.behind or state.view is None:
            return None
        return state.view.view_id, state.applied

    def document_count(self, namespace_id: str, stored: int) -> int:
        """Return the exact count that goes with the applied position; `stored` when the view is closed.

        Never opens a view, so that a list of ten thousand namespaces costs nothing.
        """
        state = self._open.get(namespace_id)
        return state.count if state is not None and state.ready else stored

    def is_open(self, namespace_id: str) -> bool:
        """Say whether the view is open here or being opened; one that is not reads the log's head when it opens."""
        return namespace_id in self._open

    # --- building ----------------------------------------------------------------------------------

    def request_build(self, namespace_id: str) -> None:
        """Have the namespace's view built anew beside the one that answers, and return at once.

        The new one has graphs if it is large enough, and all payload indexes of the log. One build runs at a time.
        """
        if self._builds_end.is_set() or time.monotonic() < self._state(namespace_id).rest_until:
            return
        with self._build_change:
            self._wanted.setdefault(namespace_id)
            if self._builder is None:
                self._builder = threading.Thread(target=self._build_wanted, name="view-builder", daemon=True)
                self._builder.start()
            self._build_change.notify_all()

    def wait_for_build(self, namespace_id: str, timeout_s: float) -> bool:
        """Wait until no build of the namespace is wanted or under way; False when that takes longer."""
        with self._build_change:
            return self._build_change.wait_for(
                lambda: namespace_id not in self._wanted or self._builds_end.is_set(), timeout_s
            )

    def renew(self, namespace_id: str) -> None:
        """Have the view made of the log as it is now before this returns; whoever searches notices nothing.

        The one that answered until then stays in `doomed_views`. On a server it is dropped first, and readers wait.
        Raises `QdrantError` when it cannot be made now.
        """
        for _ in range(3):
            self._apply(namespace_id, None, patience_s=None)
            state = self._state(namespace_id)
            view = state.view
            assert view is not None
            try:
                if self._vectors.builds_apart(view):
                    self._build(namespace_id, state)
                else:
                    with state.lock:
                        self._set_aside(
                            namespace_id, state, ViewDamaged(view.view_id, "its log was rewritten")
                        )
                    self._apply(namespace_id, None, patience_s=None)
            except (_Overtaken, ViewLost, ViewDamaged):
                continue
            return
        raise QdrantError(f"The index of {namespace_id} could not be made anew; try again.", retry_after_s=5)

    @contextmanager
    def quiet(self, namespace_id: str) -> Iterator[None]:
        """Let nothing be applied to the view that answers while the block runs.

        But for an artifact that was handed on ahead: if its file goes away, it is met again in its order.
        """
        state = self._state(namespace_id)
        with self._attending(namespace_id, state, None):
            yield

    @contextmanager
    def editing(self, namespace_id: str) -> Iterator[None]:
        """Let one change at a time be reckoned from what the view holds; the log tells of those of other servers."""
        with self._state(namespace_id).edits:
            yield

    def _wants_build(self, state: _Open) -> bool:
        """Say whether the open view should be replaced: an index change waits or is missing, or its graphs lag."""
        assert state.view is not None
        if not self._vectors.builds_apart(state.view):
            return False
        return state.mark.behind or self._wants_graph(state.view, state.mark)

    def _wants_graph(self, view: View, mark: Mark) -> bool:
        width = 4 * max((vector.dimensions for vector in view.vectors), default=0)
        inside = mark.document_count - mark.tail
        return mark.tail * width > self._graph_from_bytes and mark.tail > GRAPH_TAIL * inside

    def _build_wanted(self) -> None:
        while not self._builds_end.is_set():
            with self._build_change:
                self._build_change.wait_for(lambda: self._wanted or self._builds_end.is_set())
                if self._builds_end.is_set():
                    return
                namespace_id = next(iter(self._wanted))
            state = self._state(namespace_id)
            try:
                self._apply(namespace_id, None, patience_s=None)
                self._build(namespace_id, state)
            except (NotFoundError, _Overtaken):
                logger.info("the view that was built for %s is not needed any more", namespace_id)
            except Exception as error:  # noqa: BLE001  one namespace's trouble must not end the builder of all
                if not self._builds_end.is_set():
                    state.rest_until = time.monotonic() + BUILD_AGAIN_S
                    logger.warning("no view could be built for %s: %s", namespace_id, error)
            finally:
                with self._build_change:
                    self._wanted.pop(namespace_id, None)
                    if state.ready and not state.gone and self._wants_build(state):
                        self.request_build(namespace_id)  # there was more to do before this one ended
                    self._build_change.notify_all()

    def _build(self, namespace_id: str, state: _Open, *, apart: bool = True) -> None:
        """Build a view from the log beside the one that answers, and switch to it.

        Writes are held for the last few entries and one transaction. Raises what went wrong, after throwing the
        new view away; the one that answers stays. A small one need not be made in a process `apart`.
        """
        old = state.view
        assert old is not None
        graph = self._large_enough(old, state.mark)
        row, view = self._reserve(namespace_id, old)
        with self._build_change:
            self._building.add(view)
        began = time.monotonic()
        try:
            if self._builds_end.is_set():
                raise _Overtaken
            failpoints.reach("build.reserved")
            mark = self._vectors.begin(view, graph=graph, apart=apart)
            mark = self._follow(namespace_id, view, mark)
            failpoints.reach("build.filled")
            if graph:
                self._vectors.optimize(view)
                mark = self._follow(namespace_id, view, mark)
            failpoints.reach("build.optimized")
            durable = self._vectors.settle(view)
            mark = self._follow(namespace_id, view, durable)
            with state.lock:
                held = time.monotonic()
                self._switch(namespace_id, state, old, view, mark, durable)
            failpoints.reach("build.switched")
        except BaseException:
            self._throw_away(view, row.place)
            raise
        finally:
            with self._build_change:
                self._building.discard(view)
        ended = time.monotonic()
        logger.info(
            "view %s replaces %s: %d documents%s in %.1f s, writes held for %.0f ms",
            view.view_id,
            old.view_id,
            mark.document_count,
            " and graphs" if graph else "",
            ended - began,
            (ended - held) * 1000,
        )

    def _large_enough(self, view: View, mark: Mark) -> bool:
        """Say whether the view is to have graphs: scanning all its vectors (of one name) would be slow."""
        width = 4 * max((vector.dimensions for vector in view.vectors), default=0)
        return mark.document_count * width > self._graph_from_bytes

    def _reserve(self, namespace_id: str, old: View) -> tuple[Any, View]:
        """Take the next generation for a view to be built; a server that finds it unfinished drops it."""
        with self._db.write() as connection:
            row = connection.execute(
                sa.update(namespaces)
                .where(namespaces.c.namespace_id == namespace_id, namespaces.c.view_id == old.view_id)
                .values(generation=namespaces.c.generation + 1)
                .returning(namespaces.c.generation, namespaces.c.place)
            ).one_or_none()
            if row is None:
                raise _Overtaken
            view_id = f"{namespace_id}-{row.generation}"
            connection.execute(_doom(view_id, namespace_id, row.place, _UNFINISHED))
        return row, self.view_at(namespace_id, view_id, old.vectors, row.place, old.sparse)

    def _follow(self, namespace_id: str, view: View, mark: Mark) -> Mark:
        """Apply what the log has beyond `mark` to a view that is being built, until hardly anything is left."""
        for _ in range(CATCH_UP_ROUNDS):
            if self._builds_end.is_set():
                raise _Overtaken
            head = self._head(namespace_id)
            mark = self._replay(namespace_id, view, mark, head)
            if self._head(namespace_id) - mark.seq <= CLOSE_ENOUGH_ENTRIES:
                return mark
        raise QdrantError("The namespace is written to faster than a new view of it can follow.")

    def _switch(
        self, namespace_id: str, state: _Open, old: View, view: View, mark: Mark, durable: Mark
    ) -> None:
        """Let `view` answer for the namespace from now on. The caller holds the namespace's lock."""
        if state.gone or state.view is not old:
            raise _Overtaken
        for reached in self._replaying(namespace_id, view, mark, self._head(namespace_id), deferring=True):
            mark = reached
        if state.ready and state.applied == mark.seq and state.count != mark.document_count:
            # Both are folds of one log: one of them is wrong, and it is not the one that was just made of it.
            logger.error(
                "view %s held %d documents where the log has %d",
                old.view_id,
                state.count,
                mark.document_count,
            )
        with self._build_change:
            # From here on it is not dropped as one that is being built: it may answer for the namespace already.
            if self._builds_end.is_set():
                raise _Overtaken
            self._building.discard(view)
        with self._db.write() as connection:
            row = connection.execute(
                sa.update(namespaces)
                .where(namespaces.c.namespace_id == namespace_id, namespaces.c.view_id == old.view_id)
                .values(view_id=view.view_id, mark_seq=durable.seq, document_count=mark.document_count)
                .returning(namespaces.c.place)
            ).one_or_none()
            if row is None:
                raise _Overtaken
            connection.execute(sa.delete(doomed_views).where(doomed_views.c.view_id == view.view_id))
            connection.execute(_doom(old.view_id, namespace_id, row.place, _in(GRACE_S)))
        state.view, state.mark, state.ready, state.known = view, mark, True, True
        self._dirty.add(namespace_id)

    def _throw_away(self, view: View, place: Mapping[str, Any] | None) -> None:
        """Drop a view that was not finished; if that fails, whoever drops doomed views does it."""
        this = doomed_views.c.view_id == view.view_id
        try:
            with self._db.write() as connection:
                connection.execute(sa.update(doomed_views).where(this).values(due_at=now()))
            self._vectors.drop(view)
            with self._db.write() as connection:
                connection.execute(sa.delete(doomed_views).where(this))
        except (TesseraError, sa.exc.SQLAlchemyError, ViewLost, OSError) as error:
            logger.warning("view %s, which was not finished, stays for now: %s", view.view_id, error)

    # --- placing -----------------------------------------------------------------------------------

    def view_at(
        self,
        namespace_id: str,
        view_id: str,
        vectors: tuple[DenseVector, ...],
        place: Mapping[str, Any] | None,
        sparse: tuple[SparseText, ...] = (),
    ) -> View:
        """Return the view of that name as the engine must be told of it."""
        where = self._locate(view_id, place)
        return View(namespace_id, view_id, vectors, where.location, where.alias, where.secret, sparse)

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

    def end_builds(self) -> None:
        """Throw away what is being built, which may take hours, and build nothing more; all else goes on."""
        self._builds_end.set()
        with self._build_change:
            building = list(self._building)
            self._build_change.notify_all()
        for view in building:
            try:
                self._vectors.drop(view)
            except TesseraError as error:
                logger.warning("view %s, which was not finished, stays for now: %s", view.view_id, error)

    def close(self) -> None:
        """Make everything durable and stop; what is being built is thrown away."""
        self.end_builds()
        self._stop.set()
        if self._builder is not None:
            self._builder.join(timeout=10)
        self._flusher.join(timeout=5)
        self._flush_dirty()

    # --- inside ------------------------------------------------------------------------------------

    def _state(self, namespace_id: str) -> _Open:
        state = self._open.get(namespace_id)
        if state is None:
            with self._open_lock:
                state = self._open.setdefault(namespace_id, _Open())
        state.used_at = time.monotonic()
        return state

    def _retire(self) -> None:
        """Let go of what was not used for longest, but for what is at work or not yet durable.

        Whoever holds such a state still opens the view anew through it, at the position where it was.
        """
        with self._open_lock:
            surplus = len(self._open) - KEPT_STATES * 7 // 8
            oldest = sorted(self._open.items(), key=lambda item: item[1].used_at)[:surplus]
        for namespace_id, state in oldest:
            if namespace_id in self._dirty or not state.lock.acquire(blocking=False):
                continue
            try:
                with self._open_lock:
                    if self._open.get(namespace_id) is state:
                        del self._open[namespace_id]
                state.ready = False
                if state.view is not None:
                    self._vectors.release(state.view)
            except Exception as error:  # noqa: BLE001  one view's trouble must not end the flusher of all
                logger.warning("view %s was not let go: %s", namespace_id, error)
            finally:
                state.lock.release()

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
        for _ in range(3):
            state = self._state(namespace_id)
            openings = state.openings
            if not state.ready:
                self._apply(namespace_id, None, patience_s=READ_PATIENCE_S)
                openings = state.openings
            elif state.behind:
                # What is in the view can be read even when it cannot be written to, say on a full disk.
                with suppress(QdrantError):
                    self._apply(namespace_id, None, patience_s=READ_PATIENCE_S)
            view = state.view
            assert view is not None
            try:
                found = call(view)
                if state.openings == openings:
                    return found
                # Opened again under the call, which may have seen it while it was still being replayed.
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
                    namespaces.c.sparse_vectors,
                    namespaces.c.head,
                    namespaces.c.mark_seq,
                    namespaces.c.checkpoint_seq,
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
        if state.damage is not None:
            raise state.damage
        row = self._row(namespace_id)
        vectors = tuple(DenseVector(**vector) for vector in row.vectors)
        sparse = SparseText.all_of(row.sparse_vectors)
        view = self.view_at(namespace_id, row.view_id, vectors, row.place, sparse)
        state.openings += 1
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
        state.view, state.mark = view, mark
        unchecked = not (mark.checked or state.known)
        if not (unchecked and self._made_anew(namespace_id, state, row.head)):
            try:
                self._catch_up(namespace_id, state, row.head)
            except QdrantError as error:
                if unchecked:
                    raise ViewDamaged(
                        view.view_id, f"its files are unchecked, and {error.message}"
                    ) from error
                raise
        state.ready = state.known = True

    def _made_anew(self, namespace_id: str, state: _Open, head: int) -> bool:
        """Say whether a view was replaced whose server was killed while it was written to.

        Its files cannot be checked, and the log is right whatever became of them. Where making it anew takes
        more than about a second, that is done beside it and the view answers until then.
        """
        assert state.view is not None
        if not self._vectors.builds_apart(state.view):
            return False
        if state.count > REBUILD_AT_ONCE_DOCUMENTS or head > REBUILD_AT_ONCE_ENTRIES:
            self.request_build(namespace_id)
            return False
        view_id = state.view.view_id
        try:
            self._build(namespace_id, state, apart=False)
        except NotFoundError:
            raise
        except _Overtaken:
            raise ViewLost(f"view {view_id} was replaced while it was made anew") from None
        except (TesseraError, ViewLost, ViewDamaged) as error:
            logger.warning("view %s could not be made anew: %s", view_id, error)
            return False
        return True

    def _catch_up(self, namespace_id: str, state: _Open, target: int) -> None:
        assert state.view is not None
        if state.applied >= target:
            return
        deferring = self._vectors.builds_apart(state.view)
        for mark in self._replaying(namespace_id, state.view, state.mark, target, deferring=deferring):
            state.mark = mark
            self._dirty.add(namespace_id)

    def _replay(self, namespace_id: str, view: View, mark: Mark, target: int) -> Mark:
        for reached in self._replaying(namespace_id, view, mark, target, deferring=False):
            mark = reached
        return mark

    def _replaying(
        self, namespace_id: str, view: View, mark: Mark, target: int, *, deferring: bool
    ) -> Iterator[Mark]:
        """Apply the entries from `mark` up to `target`, and yield the mark after each portion.

        With `deferring` the view passes over indexes that many documents would have to be looked through for.
        """
        final: tuple[PayloadIndex, ...] | None = None
        while mark.seq < target:
            with self._db.read() as connection:
                if mark.seq == 0:
                    final = log.last_indexes(connection, namespace_id, target)
                try:
                    entries = log.read(
                        connection,
                        namespace_id,
                        after=mark.seq,
                        limit=REPLAY_ENTRIES,
                        local_path=self._blobs.path,
                    )
                except log.Folded as folded:
                    if not self._vectors.builds_apart(view):
                        # Another server may have brought the view further, and folded what is not read here yet:
                        # opened again, it tells.
                        self._vectors.release(view)
                        raise ViewLost(str(folded)) from folded
                    raise ViewDamaged(view.view_id, str(folded)) from folded
            if not entries:
                return  # the log was removed with its namespace
            if final is not None:
                # A view from nothing is made with the indexes that hold in the end, before its first document.
                entries = [_with_indexes(e, final) if e.seq <= target else e for e in entries]
            elif deferring and mark.document_count > INDEX_IN_PLACE_DOCUMENTS:
                entries = [replace(e, deferrable=True) if e.indexes is not None else e for e in entries]
            for portion in _portions(entries):
                mark = self._vectors.apply(view, portion)
                yield mark
                if mark.seq >= target:
                    break  # what was read beyond it has writers of its own, who would wait for each other

    def _set_aside(self, namespace_id: str, state: _Open, damage: ViewDamaged) -> None:
        """Give the namespace a fresh view, to be built from the log; the damaged one is dropped.

        When the database cannot be written to now, whoever uses the view next does it.
        """
        state.ready, state.damage = False, damage
        with self._db.write() as connection:
            row = connection.execute(
                sa.update(namespaces)
                .where(namespaces.c.namespace_id == namespace_id, namespaces.c.view_id == damage.view_id)
                .values(generation=namespaces.c.generation + 1, mark_seq=0)
                .returning(namespaces.c.generation, namespaces.c.place)
            ).one_or_none()
            if row is not None:
                fresh_id = f"{namespace_id}-{row.generation}"
                connection.execute(
                    sa.update(namespaces)
                    .where(namespaces.c.namespace_id == namespace_id)
                    .values(view_id=fresh_id)
                )
                # Whoever is killed from here on leaves a directory that the next server drops.
                connection.execute(_doom(damage.view_id, namespace_id, row.place, now()))
        state.damage = None
        if row is None:
            return  # it is another one's turn already, or the namespace is gone
        logger.warning("view %s is damaged (%s); rebuilding from the log", damage.view_id, damage.reason)
        failpoints.reach("set_aside.decided")
        # A directory of the new name can only be a stranger's.
        for view_id in (fresh_id, damage.view_id):
            self._vectors.drop(self.view_at(namespace_id, view_id, (), row.place))
        with self._db.write() as connection:
            connection.execute(sa.delete(doomed_views).where(doomed_views.c.view_id == damage.view_id))

    def _flush_forever(self) -> None:
        while not self._stop.wait(FLUSH_INTERVAL_S):
            self._flush_dirty(only_due=True)
            if len(self._open) > KEPT_STATES:
                self._retire()

    def _flush_dirty(self, *, only_due: bool = False) -> None:
        for namespace_id in list(self._dirty):
            state = self._open.get(namespace_id)
            if state is None:
                self._dirty.discard(namespace_id)
            elif not only_due or time.monotonic() >= state.flush_from:
                self._flush(namespace_id, state)

    def _flush(self, namespace_id: str, state: _Open) -> None:
        """Make durable what was applied; whoever applies more meanwhile is not held up, and has it flushed later."""
        self._dirty.discard(namespace_id)
        view = state.view
        if not state.ready or view is None:
            return  # lost or gone; what was applied is in the log and is replayed
        began = time.monotonic()
        try:
            mark = self._vectors.flush(view)
        except ViewLost:
            with state.lock:
                if state.view is view:
                    state.ready = False  # whoever uses it next opens it
        except ViewDamaged as damage:
            self._treat(namespace_id, state, view, damage)
        except Exception as error:  # noqa: BLE001  one view's trouble must not end the flusher of all
            logger.warning("view %s could not be flushed: %s", view.view_id, error)
            self._dirty.add(namespace_id)
        else:
            ended = time.monotonic()
            state.flush_from = ended + min(FLUSH_LATEST_S, (ended - began) / FLUSH_SHARE)
            self._db.later(_record(namespace_id, mark))

    def _treat(self, namespace_id: str, state: _Open, view: View, damage: ViewDamaged) -> None:
        """Set aside a view that was found damaged by nobody who waits; the next use of it builds it anew."""
        with state.lock:
            if state.view is not view or state.gone:
                return
            try:
                self._set_aside(namespace_id, state, damage)
            except Exception as error:  # noqa: BLE001  one view's trouble must not end the flusher of all
                logger.warning("damaged view %s could not be set aside yet: %s", view.view_id, error)


def _portions(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Cut `entries` into what is sent at once: an artifact alone, of others so many that no request takes long."""
    portion: list[Entry] = []
    for entry in entries:
        if portion and (entry.artifact_path is not None or len(portion) == REPLAY_ENTRIES):
            yield portion
            portion = []
        portion.append(entry)
        if entry.artifact_path is not None:
            yield portion
            portion = []
    if portion:
        yield portion


def _with_indexes(entry: Entry, final: tuple[PayloadIndex, ...]) -> Entry:
    return entry if entry.indexes is None else replace(entry, indexes=final)


def _doom(view_id: str, namespace_id: str, place: Mapping[str, Any] | None, due_at: str) -> sa.Insert:
    return doomed_views.insert().values(
        view_id=view_id, namespace_id=namespace_id, place=place, due_at=due_at
    )


def _in(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


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
