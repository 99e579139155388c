"""The embedded vector engine: Qdrant Edge shards in host processes, behind the `Vectors` port.

Edge's calls hold the interpreter's lock (building a graph of 50,000 vectors: 41 s), so the shards live in
child processes. This side places views on hosts, sends requests from any thread, and starts a host again
when one dies. What a host's death means for a caller: a write raises `ViewLost`; a read is repeated once
by itself when the view comes back at the very position where it was, else it raises `ViewLost` too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import platform
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from tessera.adapters.qdrant import pipe
from tessera.errors import BadRequestError, DeadlineError, EngineFullError, QdrantError
from tessera.filters import Filter
from tessera.ports import (
    Entry,
    Fusion,
    Hit,
    IndexReport,
    Mark,
    Page,
    PageResult,
    Search,
    View,
    ViewDamaged,
    ViewLost,
)

HOST_MODULE: Final = "tessera.adapters.qdrant.edge_host"
#: So many hosts that crashed (were not killed from outside) over one view within the window: it is to blame.
CRASHES_TO_BLAME: Final = 2
BLAME_WINDOW_S: Final = 600.0
#: A host that does not end by itself within this time after it was asked to is killed.
STOP_PATIENCE_S: Final = 30.0
#: Graphs of ten million vectors take hours.
BUILD_PATIENCE_S: Final = 24 * 3600.0

_LINUX = platform.system() == "Linux"

T = TypeVar("T")
logger = logging.getLogger("tessera.edge")


class _HostDied(Exception):
    """The host ended before it answered; becomes `ViewLost` or `QdrantError` before a caller sees it."""


class _Starter:
    """Starts processes from one thread that lives as long as this process.

    Linux sends the parent-death signal when the starting *thread* ends: a host started from a request's
    thread was killed with it.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="edge-host-starter", daemon=True).start()

    def _run(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - for the caller; without this thread no host can start
                future.set_exception(error)

    def call(self, job: Callable[[], T]) -> T:
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future.result()


_starter: _Starter | None = None
_starter_lock = threading.Lock()


def _the_starter() -> _Starter:
    """Return the process's one starter; its thread must outlive every warehouse opened here."""
    global _starter  # noqa: PLW0603
    with _starter_lock:
        if _starter is None:
            _starter = _Starter()
        return _starter


class _Host:
    """One host process and the requests that wait for it."""

    def __init__(
        self,
        record_directory: Path,
        *,
        max_open_views: int,
        max_scan_documents: int,
        max_resident_mib: int,
        on_death: Callable[[_Host, set[str], int], None],
        is_builder: bool = False,
    ) -> None:
        self.views: set[str] = set()
        self._on_death = on_death
        self._lock = threading.Lock()
        #: Held while a message is on its way. Never together with `_lock`, which the reader needs: a host that
        #: waits to be read reads nothing itself, and a sender that kept the reader from reading would wait for ever.
        self._sending = threading.Lock()
        self._pending: dict[int, tuple[str, Future[Any]]] = {}
        self._blamed: set[str] = set()
        self._dead = False
        self._is_ending = False
        self._ids = itertools.count(1)
        try:
            self._connection, theirs = socket.socketpair()
        except OSError as error:
            raise _not_started(error) from error
        command = [
            sys.executable, "-m", HOST_MODULE,
            "--socket", str(theirs.fileno()),
            "--parent", str(os.getpid()),
            "--max-open-views", str(max_open_views),
            "--max-scan-documents", str(max_scan_documents),
            "--max-resident-mib", str(max_resident_mib),
            *(["--builder"] if is_builder else []),
        ]  # fmt: skip
        try:
            self.process = _the_starter().call(
                lambda: subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # Where `-m` finds this very package, installed or not.
                    cwd=Path(__file__).parents[3],
                )
            )
        except OSError as error:
            self._connection.close()
            raise _not_started(error) from error
        finally:
            theirs.close()
        try:
            self._record = _record_process(record_directory, self.process.pid)
        except OSError as error:
            # Unrecorded it could outlive this server and hold its views.
            self._connection.close()
            self.process.kill()
            self.process.wait()
            raise _not_started(error) from error
        threading.Thread(target=self._read, name=f"edge-host-{self.process.pid}", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._dead

    @property
    def waiting(self) -> int:
        return len(self._pending)

    def request(self, operation: str, view: View | None, arguments: Any, timeout_s: float) -> Any:
        """Send a request and wait for its answer.

        Raises `_HostDied`, `DeadlineError`, or what the host answered with.
        """
        future: Future[Any] = Future()
        view_id = view.view_id if view is not None else ""
        request_id = next(self._ids)
        message = pipe.packed((request_id, operation, view, arguments))
        with self._lock:
            if self._dead:
                raise _HostDied
            self._pending[request_id] = (view_id, future)
        try:
            with self._sending:
                self._connection.sendall(message)
        except OSError:
            with self._lock:
                self._pending.pop(request_id, None)
                self._dead = True  # the reader has not seen it yet; a next request must not come here
            raise _HostDied from None
        try:
            outcome, value = future.result(timeout=timeout_s)
        except FutureTimeout:
            raise DeadlineError(
                f"The vector engine did not answer within {timeout_s:g} s.", retry_after_s=5
            ) from None
        if outcome != pipe.OK:
            _raise_answer(outcome, value, view_id)
        return value

    def _read(self) -> None:
        """Hand answers to those who wait, until the host ends; then tell those who still do."""
        try:
            self._hand_out()
        except Exception:
            # Memory was short, say. Nobody can tell whose answers are lost with it, and all would wait in vain: the
            # host ends, and what it was asked is asked again. Killed from here, it is no view's fault.
            self.process.kill()
            logger.exception("An answer of vector host %d could not be read; it is ended.", self.process.pid)
        with self._lock:
            self._dead = True
            waiting, self._pending = self._pending, {}
        self._connection.close()
        status = self.process.wait()
        self._record.unlink(missing_ok=True)
        if not self._is_ending:
            blamed = self._blamed or {view_id for view_id, _ in waiting.values() if view_id}
            self._on_death(self, blamed, status)
        for _, future in waiting.values():
            future.set_exception(_HostDied())

    def _hand_out(self) -> None:
        """Hand answers to those who wait, until there are no more."""
        incoming = pipe.Incoming()
        while True:
            try:
                data = self._connection.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                return
            for request_id, outcome, value in incoming.feed(data):
                with self._lock:
                    view_id, future = self._pending.pop(request_id, ("", None))
                    if outcome == pipe.PANIC and future is not None:
                        # It is about to end; nobody should ask it anything more, and who waits for this
                        # answer hears of it with all others, once it is known whose fault it was.
                        self._dead = True
                        self._blamed.add(view_id)
                        self._pending[request_id] = view_id, future
                        future = None
                if future is not None:
                    future.set_result((outcome, value))

    def kill(self) -> None:
        """End the host at once; what it holds is lost. Returns when its files are free."""
        self._is_ending = True
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask the host to close its views and end; kill it when it does not."""
        try:
            self.request("stop", None, None, STOP_PATIENCE_S)
        except (_HostDied, DeadlineError, QdrantError):
            self.process.kill()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(timeout=STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._record.unlink(missing_ok=True)


def _not_started(error: OSError) -> QdrantError:
    kind = EngineFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else QdrantError
    return kind(f"A vector host could not be started: {error.strerror}. Try again.", retry_after_s=2)


def _raise_answer(outcome: str, value: Any, view_id: str) -> NoReturn:
    if outcome == pipe.BAD_REQUEST:
        message, details = value
        raise BadRequestError(message, details=details)
    if outcome == pipe.DAMAGED:
        raise ViewDamaged(view_id, value)
    if outcome == pipe.LOST:
        raise ViewLost(value)
    if outcome == pipe.FULL:
        raise EngineFullError(value, retry_after_s=5)
    raise QdrantError(value, retry_after_s=2)


# --- processes that an earlier server left behind ------------------------------------------------------


def _process_identity(pid: int) -> str | None:
    """Return the start time of a process that is a vector host, None when there is none of that id."""
    if _LINUX:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            # The command's name stands in parentheses and may hold blanks; start time is the 22nd field.
            status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, UnicodeDecodeError):
            return None
        is_host = HOST_MODULE.encode() in command.split(b"\0") and status[0] not in "ZX"
        return status[19] if is_host else None
    answer = subprocess.run(
        ["ps", "-p", str(pid), "-o", "lstart=,command="], capture_output=True, text=True, check=False
    ).stdout
    return answer[:24].strip() if HOST_MODULE in answer else None


def _record_process(directory: Path, pid: int) -> Path:
    """Note that `pid` is a host, with its start time, so that a later server can end it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"edge-host-{pid}.json"
    started: str | None = None
    for _ in range(200):  # between fork and exec the child still bears this process's name
        started = _process_identity(pid)
        if started is not None:
            break
        time.sleep(0.001)
    path.write_text(json.dumps({"pid": pid, "started": started}))
    return path


def end_orphans(directory: Path) -> int:
    """End the hosts that an earlier server recorded in `directory` and left running; return how many.

    Only for the owner of the data directory: it alone may conclude that a recorded host is nobody's.
    A process id that was given to another program meanwhile is left alone (its start time differs).
    """
    ended = 0
    for path in directory.glob("edge-host-*.json"):
        try:
            record = json.loads(path.read_text())
            pid, started = int(record["pid"]), record["started"]
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            continue
        if started is not None and _process_identity(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while _process_identity(pid) == started and time.monotonic() < deadline:
                time.sleep(0.01)
            ended += 1
        path.unlink(missing_ok=True)
    return ended


# --- the port ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Placed:
    """Where a view is, and the last entry that was acknowledged for it."""

    host: _Host
    seq: int


class EdgeVectors:
    """`Vectors` over Qdrant Edge. `View.location` is the view's directory.

    `hosts` processes hold at most `max_open_views` shards in all; the least recently used is closed for
    the next. `run_directory` keeps the record of running hosts: hosts that a killed server left behind are
    ended before any view is opened, so the caller must hold the data directory's lock.
    Above `max_resident_mib`, all hosts together, they give memory back when a view is opened.
    `max_scan_documents` bounds what a filter or a sort may look at without an index.
    """

    def __init__(
        self,
        hosts: int,
        max_open_views: int,
        run_directory: Path,
        *,
        max_scan_documents: int = 100_000,
        max_resident_mib: int = 1024,
        read_timeout_s: float = 60.0,
        write_timeout_s: float = 600.0,
    ) -> None:
        self._slots: list[_Host | None] = [None] * hosts
        self._views_per_host = max(1, max_open_views // hosts)
        self._run_directory = run_directory
        self._max_scan = max_scan_documents
        self._resident_mib_per_host = max(1, max_resident_mib // hosts)
        self._read_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s
        self._lock = threading.Lock()
        self._placed: dict[str, _Placed] = {}
        self._crashes: dict[str, list[float]] = {}
        #: One opening of a view at a time.
        self._opening: dict[str, threading.Lock] = {}
        #: Processes that each build one view.
        self._builders: dict[str, _Host] = {}
        self._closed = False
        orphans = end_orphans(run_directory)
        if orphans:
            logger.warning("ended %d vector hosts that an earlier server left behind", orphans)

    # --- the port ----------------------------------------------------------------------------------

    def open(self, view: View) -> Mark:
        """Load `view`, or make it, and tell how far it has come.

        Can be repeated. Raises `ViewDamaged` when its files cannot be trusted, also after two hosts have
        crashed over it.
        """
        with self._opening_lock(view):
            return self._open(view, {})

    def apply(self, view: View, entries: Sequence[Entry]) -> Mark:
        """Apply `entries` in order; entries that the view has already are passed over."""
        mark: Mark = self._write(view, "apply", tuple(entries))
        self._note_position(view, mark)
        return mark

    def apply_next(self, view: View, entry: Entry) -> Mark | None:
        """Queue `entry` in the host behind what it applies to the view now."""
        mark: Mark | None = self._write(view, "apply_next", (entry,))
        if mark is not None:
            self._note_position(view, mark)
        return mark

    def _note_position(self, view: View, mark: Mark) -> None:
        placed = self._placed.get(view.view_id)
        if placed is not None:
            placed.seq = max(placed.seq, mark.seq)

    def flush(self, view: View) -> Mark:
        """Make everything applied durable, then move the mark."""
        mark: Mark = self._write(view, "flush", None)
        return mark

    def search(self, view: View, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer several searches at once; those of other threads that wait for this view join them."""
        found = self._read(view, "search", (tuple(searches), None))
        return [_hits(packed) for packed in found]

    def ranked(self, view: View, searches: Sequence[Search], fusion: Fusion) -> list[Hit]:
        """Answer several searches as one ranking, fused in the host; they join others as those of `search` do."""
        return _hits(self._read(view, "search", (tuple(searches), fusion)))

    def page(self, view: View, page: Page) -> PageResult:
        """List documents, exactly."""
        packed, next_after = self._read(view, "page", page)
        return PageResult(tuple(_hits(packed)), next_after)

    def count(self, view: View, filter: Filter | None = None) -> int:
        """Count documents, exactly."""
        return int(self._read(view, "count", filter))

    def get(self, view: View, document_ids: Sequence[str], with_vectors: bool = False) -> list[Hit]:
        """Fetch by id, in the order of `document_ids`; absent ones are left out."""
        return _hits(self._read(view, "get", (tuple(document_ids), with_vectors)))

    def indexes(self, view: View) -> list[IndexReport]:
        """Ask the engine which payload indexes it has, shadows left out."""
        reports: list[IndexReport] = self._read(view, "indexes", None)
        return reports

    def release(self, view: View) -> None:
        """Close the view in its host, flushed, and forget where it was."""
        with self._opening_lock(view):
            placed = self._placed.get(view.view_id)
            if placed is not None:
                with contextlib.suppress(_HostDied):
                    placed.host.request("release", view, None, self._write_timeout_s)
                self._forget(view, placed.host)
        with self._lock:
            self._opening.pop(view.view_id, None)

    def drop(self, view: View) -> None:
        """Remove the view's directory. Can be repeated; the process of a build in it is killed."""
        self._end_builder(view)
        with self._opening_lock(view):
            for last in (False, True):
                host = self._host_for(view)
                try:
                    host.request("drop", view, None, self._write_timeout_s)
                    break
                except _HostDied:
                    if last:
                        raise QdrantError("A vector host died while it removed a view.") from None
            with self._lock:
                host.views.discard(view.view_id)
                self._placed.pop(view.view_id, None)
                self._crashes.pop(view.view_id, None)
        with self._lock:
            self._opening.pop(view.view_id, None)

    def builds_apart(self, view: View) -> bool:
        """Say yes: the engine builds graphs and indexes in one go, holding its process."""
        return True

    def begin(self, view: View, *, graph: bool, apart: bool) -> Mark:
        """Make `view`, `apart` in a process of its own; what was left in its directory goes away."""
        self.drop(view)
        if not apart:
            with self._opening_lock(view):
                return self._open(view, {"graph": graph})
        builder = self._start_host(is_builder=True)
        with self._lock:
            closed, self._builders[view.view_id] = self._closed, builder
        if closed:
            self._end_builder(view)
            raise QdrantError("The vector engine is closed.")
        with self._opening_lock(view):
            return self._open(view, {"graph": graph})

    def optimize(self, view: View) -> Mark:
        """Build the graphs in the view's own process, which does nothing else meanwhile."""
        mark: Mark = self._write(view, "optimize", None, timeout_s=BUILD_PATIENCE_S)
        return mark

    def settle(self, view: View) -> Mark:
        """Close the view in its own process, and open it in one of those that answer; it is durable then."""
        with self._lock:
            apart = view.view_id in self._builders
        if not apart:
            return self.flush(view)
        self._write(view, "hand_over", None)
        self._end_builder(view)
        with self._opening_lock(view):
            return replace(self._open(view, {"trusted": True}), durable=True)

    def close(self) -> None:
        """Flush and close every view and end the hosts; what is being built is thrown away by who had it built."""
        with self._lock:
            self._closed = True
            builders, self._builders = list(self._builders.values()), {}
        for builder in builders:
            builder.kill()
        with self._lock:
            hosts = [host for host in self._slots if host is not None]
            self._slots = [None] * len(self._slots)
            self._placed.clear()
        for host in hosts:
            host.stop()

    # --- inside ------------------------------------------------------------------------------------

    def _opening_lock(self, view: View) -> threading.Lock:
        with self._lock:
            return self._opening.setdefault(view.view_id, threading.Lock())

    def _open(self, view: View, how: Mapping[str, bool], expected_seq: int | None = None) -> Mark:
        """Open the view in a host. One that is not at `expected_seq` is not placed: nobody may read the past there."""
        for last in (False, True):
            self._raise_if_to_blame(view)
            host = self._host_for(view)
            try:
                mark: Mark = host.request("open", view, how, self._write_timeout_s)
            except _HostDied:
                if last:
                    raise QdrantError(
                        f"Two vector hosts ended while they opened view {view.view_id}; their messages are "
                        "in the server's log.",
                        retry_after_s=5,
                    ) from None
                continue
            except ViewDamaged:
                self._forget(view, host)
                raise
            with self._lock:
                if expected_seq is not None and mark.seq != expected_seq:
                    self._placed.pop(view.view_id, None)
                    raise ViewLost(
                        f"view {view.view_id} came back at entry {mark.seq}, it was at {expected_seq}"
                    )
                self._placed[view.view_id] = _Placed(host, mark.seq)
                host.views.add(view.view_id)  # someone who heard late that it was lost may have taken it out
            return mark
        raise AssertionError("unreachable")

    def _write(self, view: View, operation: str, arguments: Any, timeout_s: float | None = None) -> Any:
        placed = self._placed.get(view.view_id)
        if placed is None:
            raise ViewLost(f"view {view.view_id} is not open")
        try:
            return placed.host.request(operation, view, arguments, timeout_s or self._write_timeout_s)
        except _HostDied:
            raise ViewLost(f"the host of view {view.view_id} died") from None
        except (ViewDamaged, ViewLost):
            self._forget(view, placed.host, placed)
            raise

    def _read(self, view: View, operation: str, arguments: Any) -> Any:
        for last in (False, True):
            placed = self._placed.get(view.view_id)
            if placed is None:
                raise ViewLost(f"view {view.view_id} is not open")
            try:
                return placed.host.request(operation, view, arguments, self._read_timeout_s)
            except _HostDied:
                if last:
                    raise ViewLost(f"the host of view {view.view_id} died twice over one request") from None
                self._come_back(view, placed)
            except (ViewDamaged, ViewLost):
                self._forget(view, placed.host, placed)
                raise
        raise AssertionError("unreachable")

    def _come_back(self, view: View, lost: _Placed) -> None:
        """Open a lost view in another host, if it comes back where it was; else raise `ViewLost`."""
        with self._opening_lock(view):
            now = self._placed.get(view.view_id)
            if now is not None and now is not lost and now.host.alive:
                return  # someone else has been here
            self._open(view, {}, lost.seq)

    def _forget(self, view: View, host: _Host, lost: _Placed | None = None) -> None:
        """Forget that `host` has the view, unless it was `lost` and that host has opened it again by now."""
        with self._lock:
            placed = self._placed.get(view.view_id)
            is_here = placed is not None and placed.host is host
            if is_here and lost is not None and placed is not lost:
                return
            host.views.discard(view.view_id)
            if is_here:
                del self._placed[view.view_id]

    def _host_for(self, view: View) -> _Host:
        """Return the live host of `view`, or the one with the fewest views (started if need be)."""
        with self._lock:
            if self._closed:
                raise QdrantError("The vector engine is closed.")
            builder = self._builders.get(view.view_id)
            if builder is not None:
                if not builder.alive:
                    del self._builders[view.view_id]
                    raise ViewLost(f"the process that built view {view.view_id} died")
                return builder
            for host in self._slots:
                if host is not None and host.alive and view.view_id in host.views:
                    return host
            free = [n for n, host in enumerate(self._slots) if host is None or not host.alive]
            running = [host for host in self._slots if host is not None and host.alive]
            chosen = min(running, key=lambda host: (len(host.views), host.waiting), default=None)
            if chosen is None or (free and chosen.views):
                chosen = self._start_host()
                self._slots[free[0]] = chosen
            chosen.views.add(view.view_id)
            return chosen

    def _start_host(self, *, is_builder: bool = False) -> _Host:
        return _Host(
            self._run_directory,
            max_open_views=self._views_per_host,
            max_scan_documents=self._max_scan,
            max_resident_mib=self._resident_mib_per_host,
            on_death=self._note_death,
            is_builder=is_builder,
        )

    def _end_builder(self, view: View) -> None:
        """Kill the process in which `view` is built, if there is one."""
        with self._lock:
            builder = self._builders.pop(view.view_id, None)
        if builder is not None:
            builder.kill()

    def _note_death(self, host: _Host, view_ids: set[str], status: int) -> None:
        if self._closed:
            return
        logger.warning("vector host %d ended with status %d", host.process.pid, status)
        # SIGKILL comes from outside (an operator, the memory killer) and says nothing about the views.
        if status in (0, -signal.SIGKILL):
            return
        with self._lock:
            for view_id in view_ids:
                self._crashes.setdefault(view_id, []).append(time.monotonic())

    def _raise_if_to_blame(self, view: View) -> None:
        with self._lock:
            recent = [
                when
                for when in self._crashes.get(view.view_id, ())
                if when > time.monotonic() - BLAME_WINDOW_S
            ]
            if len(recent) < CRASHES_TO_BLAME:
                return
            del self._crashes[view.view_id]
        raise ViewDamaged(view.view_id, f"{len(recent)} vector hosts crashed while they worked on it")


def _hits(packed: Sequence[tuple[Any, ...]]) -> list[Hit]:
    return [Hit(*item) for item in packed]
