"""The Ray runner: extraction on Ray clusters, each behind a child process that holds the connection.

Ray is never imported here. A connection of Ray's client that broke cannot be used again and may hang in its
calls, so it lives in a child (``ray_child.py``) that is thrown away with it: this side sends it items, hears
its beats, kills it when it falls silent, starts another and sends again what had not come back.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import os
import pickle
import queue
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from tessera.adapters import ray_child as wire
from tessera.config import child_environment
from tessera.errors import ClusterError
from tessera.ports import HERE, Compute, Failed

logger = logging.getLogger("tessera.ray")

#: A child from which nothing was heard for so long hangs: it is killed.
SILENCE_S: Final = 45.0
#: A child that is not connected by then is killed. On a cold cluster the first session takes up to 40 s.
CONNECT_TIMEOUT_S: Final = 60.0
#: How long connecting is tried again when the cluster has never answered this server: a wrong address is
#: told soon.
FIRST_PATIENCE_S: Final = 8.0
#: And how long when it has answered before, or must have: heads are replaced within minutes.
PATIENCE_S: Final = 300.0
#: An item whose cluster was lost under it goes again so many times, one whose worker died so many.
LOSSES, CRASHES = 5, 1
#: A connection that nobody used for so long is closed, and its workers are given back.
IDLE_S: Final = 900.0


class _Child:
    """One child process and the calls that wait for it."""

    def __init__(self, compute: Compute, probes: Mapping[str, str]) -> None:
        assert compute.cluster is not None
        self.lost: str | None = None
        self.heard = time.monotonic()
        self.used = time.monotonic()
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[Any]] = {}
        self._tickets = itertools.count(1)
        ours, theirs = socket.socketpair()
        self._pipe = Connection(ours.detach())
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", wire.__name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Nothing of the server's own settings and secrets is needed there.
                env={k: v for k, v in child_environment().items() if not k.startswith("TESSERA_")},
                # Where `-m` finds this very package, installed or not.
                cwd=Path(__file__).parents[2],
            )
        self._send(wire.Hello(compute.cluster, compute.token, probes))

    def await_ready(self, stop: threading.Event) -> wire.Ready | wire.Refused | wire.Unreachable:
        """Return what became of the connection."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        try:
            while not self._pipe.poll(0.2):
                if stop.is_set():
                    return wire.Unreachable("the server is stopping")
                if time.monotonic() > deadline:
                    return wire.Unreachable(
                        f"The Ray cluster took no session within {CONNECT_TIMEOUT_S:g} s."
                    )
            answer = pickle.loads(self._pipe.recv_bytes())  # noqa: S301  from our own child
        except (EOFError, OSError):
            return wire.Unreachable(f"The process of the Ray connection ended with {self.process.wait(5)}.")
        if isinstance(answer, wire.Ready):
            self.heard = time.monotonic()
            threading.Thread(target=self._read, name="ray-reader", daemon=True).start()
        return answer  # type: ignore[no-any-return]

    def submit(
        self, results: queue.SimpleQueue[Any], pool: wire.Pool, call: bytes, timeout_s: float
    ) -> int | None:
        """Send a call and return its ticket, under which `results` will hear of it; None when the child is gone."""
        with self._lock:
            if self.lost is not None:
                return None
            ticket = next(self._tickets)
            self._waiting[ticket] = results
            self.used = time.monotonic()
        self._send(wire.Submit(ticket, pool, call, timeout_s))
        return ticket

    def cancel(self, ticket: int) -> None:
        with self._lock:
            if self._waiting.pop(ticket, None) is None:
                return
        self._send(wire.Cancel(ticket))

    def is_idle(self) -> bool:
        with self._lock:
            return not self._waiting and time.monotonic() - self.used > IDLE_S

    def close(self, reason: str) -> None:
        """Let the child give back its workers, then end it."""
        self._send(wire.Close())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wire.CLOSE_S + 1)
        self.end(reason)

    def end(self, reason: str) -> None:
        """Kill the child (its workers end with it) and tell everybody who waits."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)
        with self._lock:
            if self.lost is None:
                self.lost = reason
            waiting, self._waiting = self._waiting, {}
        for results in set(waiting.values()):
            results.put(wire.Lost(self.lost))

    def _send(self, message: Any) -> None:
        # A child that is gone is noticed by the reader.
        with contextlib.suppress(OSError), self._lock:
            self._pipe.send_bytes(pickle.dumps(message))

    def _read(self) -> None:
        reason = "The process of the Ray connection ended."
        try:
            while True:
                if not self._pipe.poll(1.0):
                    if time.monotonic() - self.heard > SILENCE_S:
                        reason = f"Nothing was heard of the Ray cluster for {SILENCE_S:g} s."
                        break
                    continue
                message = pickle.loads(self._pipe.recv_bytes())  # noqa: S301  from our own child
                self.heard = time.monotonic()
                if isinstance(message, wire.Lost):
                    reason = message.message
                    break
                if isinstance(message, wire.Done | wire.Crashed | wire.Impossible):
                    with self._lock:
                        results = self._waiting.pop(message.ticket, None)
                        self.used = self.heard
                    if results is not None:
                        results.put(message)
        except (EOFError, OSError):
            pass
        self.end(reason)


class _Cluster:
    """The connection to one cluster, made on first use and again after a loss."""

    def __init__(self, compute: Compute, probes: Mapping[str, str]) -> None:
        self._compute = compute
        self._probes = probes
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._answered = False
        #: Of the last failure: when, and what.
        self._failed: tuple[float, str] = (0.0, "")

    def child(self, compute: Compute, stop: threading.Event) -> _Child | None:
        """Return the connected child, or None when `stop` was set meanwhile. Raises `ClusterError`."""
        asked = time.monotonic()
        with self._lock:
            if self._child is not None and self._child.lost is None:
                return self._child
            if self._failed[0] > asked:
                # Another batch tried while this one waited for the lock; it need not be tried in turn.
                raise ClusterError(self._failed[1])
            patience_s = PATIENCE_S if self._answered or compute.is_patient else FIRST_PATIENCE_S
            try:
                self._child = self._connected(asked + patience_s, stop)
            except ClusterError as error:
                self._failed = (time.monotonic(), error.message)
                raise
            self._answered = True
            return self._child

    def _connected(self, deadline: float, stop: threading.Event) -> _Child | None:
        pause_s, failures = 1.0, 0
        while not stop.is_set():
            child = _Child(self._compute, self._probes)
            answer = child.await_ready(stop)
            if isinstance(answer, wire.Ready):
                logger.info("connected to %s (%s)", self._compute.cluster, answer.description)
                return child
            child.end(answer.message)
            if isinstance(answer, wire.Refused):
                raise ClusterError(answer.message)
            failures += answer.answered
            # A head that answers gets another chance even when its first failure took all the time.
            if time.monotonic() + pause_s > deadline and failures != 1:
                raise ClusterError(answer.message)
            logger.warning("%s; next try in %g s", answer.message, pause_s)
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, 15.0)
        return None

    def sweep(self) -> None:
        """Close the connection when nobody has used it for long."""
        child = self._child
        if child is not None and child.is_idle():
            child.close("The connection was not used.")

    def close(self) -> None:
        child = self._child
        if child is not None:
            child.close("The server is stopping.")


class RayRunner:
    """`Runner` on Ray clusters; which one, and how many workers there, the `compute` of each call says.

    `directories` are those that workers must see under the same path: blobs, models, files of extractors.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories
        self._lock = threading.Lock()
        self._clusters: dict[tuple[str | None, str | None], _Cluster] = {}
        self._sweeper: threading.Thread | None = None
        self._closed = threading.Event()
        #: Files that a worker must see, and what is in them.
        self._probes: dict[str, str] = {}

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
        """Yield ``(index, value or Failed)`` in the order of completion; see `Runner.map`.

        Raises `ClusterError` when the cluster cannot be used at all.
        """
        cluster = self._cluster(compute)
        pool = _pool(compute)
        stop = stop or self._closed
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        #: (index, item, times lost, times crashed)
        todo = deque((index, item, 0, 0) for index, item in enumerate(items))
        under_way: dict[int, tuple[int, Any, int, int]] = {}
        child: _Child | None = None
        try:
            while todo or under_way:
                if child is None or child.lost is not None:
                    # Whoever was told of the loss sends its items again, on the next connection.
                    todo.extendleft(self._lost(under_way, again))
                    for index, _, losses, _ in [entry for entry in todo if entry[2] > LOSSES]:
                        todo = deque(entry for entry in todo if entry[0] != index)
                        yield index, Failed("ours", f"The cluster was lost {losses} times.", True, True)
                    child = cluster.child(compute, stop) if todo else None
                    if child is None:
                        return
                while todo and len(under_way) < 2 * compute.max_workers:
                    ticket = child.submit(results, pool, pickle.dumps((function, todo[0][1])), timeout_s)
                    if ticket is None:
                        break
                    under_way[ticket] = todo.popleft()
                if child.lost is not None:
                    continue
                try:
                    message = results.get(timeout=1.0)
                except queue.Empty:
                    if self._closed.is_set() or stop.is_set():
                        return
                    continue
                if isinstance(message, wire.Lost) or message.ticket not in under_way:
                    continue
                index, item, losses, crashes = under_way.pop(message.ticket)
                if isinstance(message, wire.Done):
                    yield index, _value(message.answer)
                elif isinstance(message, wire.Impossible):
                    raise ClusterError(message.message)
                elif message.timed_out:
                    yield (
                        index,
                        Failed("timeout", f"The work took longer than {timeout_s:g} s.", crashed=True),
                    )
                elif crashes < CRASHES:
                    # Machines of a cluster come and go: the first time, nobody blames the item.
                    todo.appendleft((index, _next(item, losses + crashes + 1, again), losses, crashes + 1))
                else:
                    yield (
                        index,
                        Failed(
                            "crash", f"The Ray worker ended: {message.message}", crashed=True, retryable=True
                        ),
                    )
        finally:
            if child is not None:
                for ticket in under_way:
                    child.cancel(ticket)

    def close(self) -> None:
        """End all connections; workers on the clusters end with them."""
        self._closed.set()
        with self._lock:
            clusters = list(self._clusters.values())
        for cluster in clusters:
            cluster.close()
        for path in self._probes:
            Path(path).unlink(missing_ok=True)

    def _written_probes(self) -> Mapping[str, str]:
        """Write a file into each directory that exists: whoever sees it sees the server's own files."""
        for directory in self._directories:
            path = str(directory.resolve() / f".seen-by-ray-{os.getpid()}")
            if directory.is_dir() and path not in self._probes:
                content = secrets.token_hex(16)
                Path(path).write_text(content)
                self._probes[path] = content
        return self._probes

    def _lost(
        self, under_way: dict[int, tuple[int, Any, int, int]], again: Callable[[Any, int], Any] | None
    ) -> list[tuple[int, Any, int, int]]:
        lost = [
            (index, _next(item, losses + crashes + 1, again), losses + 1, crashes)
            for index, item, losses, crashes in under_way.values()
        ]
        under_way.clear()
        return lost

    def _cluster(self, compute: Compute) -> _Cluster:
        if importlib.util.find_spec("ray") is None:
            raise ClusterError(
                f"Extraction should run on {compute.cluster}, but this server lacks Ray. Install it with "
                "`pip install 'tessera[ray]'`, or take ray_head_node_url out of the configuration."
            )
        key = (compute.cluster, compute.token)
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("the runner is closed")
            if key not in self._clusters:
                self._clusters[key] = _Cluster(compute, self._written_probes())
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._sweep, name="ray-sweeper", daemon=True)
                self._sweeper.start()
            return self._clusters[key]

    def _sweep(self) -> None:
        while not self._closed.wait(30.0):
            with self._lock:
                clusters = list(self._clusters.values())
            for cluster in clusters:
                cluster.sweep()


def _pool(compute: Compute) -> wire.Pool:
    return wire.Pool(
        name=compute.pool,
        min_workers=compute.min_workers,
        max_workers=compute.max_workers,
        autoscaling=compute.autoscaling,
        gpu_type=compute.gpu_type,
        gpus_per_worker=compute.gpus_per_worker,
    )


def _next(item: Any, number: int, again: Callable[[Any, int], Any] | None) -> Any:
    return item if again is None else again(item, number)


def _value(answer: bytes) -> Any | Failed:
    succeeded, value = pickle.loads(answer)  # noqa: S301  a cluster is trusted as the server's own workers are
    return value if succeeded else Failed("ours", value)
