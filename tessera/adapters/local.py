"""The local runner: worker processes on this machine (pebble), where a crash costs one item."""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tessera import alarms
from tessera.ports import HERE, Compute, Failed

logger = logging.getLogger("tessera.runner")

_STOPPED = Failed("ours", "The workers were stopped.", retryable=True)
_STOOD_STILL = Failed("ours", "The workers stood still.", crashed=True, retryable=True)

#: How a worker ends that was refused memory (EX_OSERR of sysexits.h).
_OUT_OF_MEMORY = 71
#: So much of what an error says is kept.
_MESSAGE_CHARS = 4000
#: How often somebody who waits for results looks whether they are still wanted.
_LOOK_S = 0.1
#: A worker that was asked to end and did not (it may be stopped) is killed after so long.
_KILL_AFTER_S = 0.5

#: So many pools may break under an item that waits before it fails.
_POOLS_PER_ITEM = 3
#: A pool that brings nothing for so long beyond an item's time limit has a worker that stands still, or died,
#: with the pool's own lock in its hands: pebble can stop no worker then, and its other workers get no work.
_SILENCE_S = 30.0


class _Pulse:
    """Whether a pool is alive: what it has, when it last finished something, the longest limit of any item.

    Its lock is its own: a pool's threads call `finished`, also while somebody waits for their end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._heard = 0.0
        self._longest_s = 0.0

    def given(self, timeout_s: float) -> None:
        with self._lock:
            if not self._under_way:
                self._heard, self._longest_s = time.monotonic(), 0.0
            self._under_way += 1
            self._longest_s = max(self._longest_s, timeout_s)

    def finished(self) -> None:
        with self._lock:
            self._under_way -= 1
            self._heard = time.monotonic()

    def is_silent(self) -> bool:
        """Whether something should have ended by now, by itself or because its time was up."""
        with self._lock:
            waited_s = time.monotonic() - self._heard
            return self._under_way > 0 and waited_s > self._longest_s + _SILENCE_S


class LocalRunner:
    """`workers` processes, started on first use, that keep what they loaded between items.

    Each has at most `memory_mib` of memory, on Linux; without, or elsewhere, there is no bound.

    Several threads may map at the same time; they share the workers.
    """

    def __init__(self, workers: int, memory_mib: int = 0) -> None:
        self._workers = workers
        self._memory_bytes = memory_mib * 2**20
        self._pool: Any = None
        self._lock = threading.Lock()
        self._starter = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="runner")
        self._closed = False
        self._callers: set[queue.SimpleQueue[concurrent.futures.Future[Any] | None]] = set()
        self._pulse = _Pulse()

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
        """Yield ``(index, value or Failed)`` in the order of completion; `compute` can only be `HERE`.

        At most two items a worker are under way for one caller, so that a long batch leaves room for
        others and an early end of the iteration leaves little behind. When it ends early, or `stop` is set,
        the workers that hold its items are stopped.
        """
        #: The index of each item under way, and the pool that has it.
        waiting: dict[concurrent.futures.Future[Any], tuple[int, Any]] = {}
        #: Futures that are done, and None when the runner is closed.
        done: queue.SimpleQueue[concurrent.futures.Future[Any] | None] = queue.SimpleQueue()
        with self._lock:
            self._callers.add(done)
        following = iter(enumerate(items))
        more = True
        repeated: list[int] = []
        tries: Counter[int] = Counter()
        try:
            while (more or repeated or waiting) and not (stop is not None and stop.is_set()):
                while (more or repeated) and len(waiting) < 2 * self._workers:
                    index = repeated.pop() if repeated else next(following, (-1, None))[0]
                    if index < 0:
                        more = False
                        continue
                    try:
                        pool, future = self._schedule(function, items[index], timeout_s)
                    except RuntimeError:  # closed, or broken between the two
                        yield index, _STOPPED
                        continue
                    waiting[future] = (index, pool)
                    future.add_done_callback(done.put)
                if waiting:
                    try:
                        ready = done.get(timeout=_LOOK_S)
                    except queue.Empty:
                        for future in self._forsaken(waiting):
                            index, _ = waiting.pop(future)
                            tries[index] += 1
                            if tries[index] <= _POOLS_PER_ITEM:
                                repeated.append(index)
                            else:
                                yield index, _STOOD_STILL
                        continue
                    if ready is None:
                        # A closed pool ends what its workers do, but never what still waits for one.
                        for index, _ in list(waiting.values()):
                            yield index, _STOPPED
                        waiting.clear()
                    elif ready in waiting:
                        index, _ = waiting.pop(ready)
                        tries[index] += 1
                        if _is_pool_broken(ready) and tries[index] <= _POOLS_PER_ITEM:
                            repeated.append(index)
                        else:
                            yield index, _outcome(ready, timeout_s)
        finally:
            with self._lock:
                self._callers.discard(done)
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Stop the workers; what they were doing ends as `Failed`."""
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
            for done in self._callers:
                done.put(None)
        if pool is not None:
            pool.stop()
            pool.join(timeout=10)
        self._starter.shutdown()

    def _schedule(
        self, function: Callable[[Any], Any], item: Any, timeout_s: float
    ) -> tuple[Any, concurrent.futures.Future[Any]]:
        """Give an item to the pool; raises `RuntimeError` when that takes none."""
        with self._lock:
            pool = self._running_pool()
            pulse = self._pulse
            future = pool.schedule(_bounded, args=[function, item], timeout=timeout_s)
            pulse.given(timeout_s)
        future.add_done_callback(lambda _: pulse.finished())
        return pool, future

    def _forsaken(
        self, waiting: Mapping[concurrent.futures.Future[Any], tuple[int, Any]]
    ) -> list[concurrent.futures.Future[Any]]:
        """Return the futures that nobody will end, because their pool was replaced; replace one that is silent."""
        with self._lock:
            if self._pool is not None and self._pulse.is_silent():
                self._give_up_pool()
            return [
                future
                for future, (_, pool) in waiting.items()
                if pool is not self._pool and not future.done()
            ]

    def _running_pool(self) -> Any:
        """Return a pool that works. The caller holds the lock."""
        from pebble import CONSTS, ProcessPool

        CONSTS.term_timeout = _KILL_AFTER_S
        if self._closed:
            raise RuntimeError("the runner is closed")
        if self._pool is not None and not self._pool.active:
            self._give_up_pool()
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self._workers,
                initializer=_prepare_worker,
                initargs=[self._memory_bytes],
                context=multiprocessing.get_context("spawn"),
            )
            # Its workers die with the thread that started them (see `_prepare_worker`): no caller's may that be.
            self._starter.submit(lambda pool: pool.active, self._pool).result()
        return self._pool

    def _give_up_pool(self) -> None:
        """Stop the workers that a broken pool leaves behind. The caller holds the lock."""
        pool, self._pool, self._pulse = self._pool, None, _Pulse()
        pool.stop()
        pool.join()


def _bounded(function: Callable[[Any], Any], item: Any) -> Any:
    """Call `function`; where memory gives out, end the process: who knows what else lacks some by then."""
    try:
        return function(item)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)


def _is_pool_broken(future: concurrent.futures.Future[Any]) -> bool:
    """Whether the pool lost a worker that held no item, and gave up with all that waited.

    It cannot know what that worker's death left locked, so it is replaced; no item was the cause.
    """
    from concurrent.futures.process import BrokenProcessPool

    return not future.cancelled() and isinstance(future.exception(), BrokenProcessPool)


def _outcome(future: concurrent.futures.Future[Any], timeout_s: float) -> Any | Failed:
    from pebble import ProcessExpired

    try:
        return future.result()
    except concurrent.futures.CancelledError:
        return Failed("ours", "The work was cancelled.", retryable=True)
    except TimeoutError:
        return Failed("timeout", f"The work took longer than {timeout_s:g} s.", crashed=True)
    except ProcessExpired as error:
        if error.exitcode == alarms.STATUS:
            return Failed(
                "timeout", "A decoder did not come back from one page or one picture.", crashed=True
            )
        if error.exitcode == _OUT_OF_MEMORY:
            return Failed(
                "memory",
                "The work needed more memory than a worker may use (worker_memory_mib).",
                crashed=True,
                retryable=True,
            )
        return Failed(
            "crash",
            f"The worker process ended with status {_told(error.exitcode)}.",
            crashed=True,
            retryable=True,
        )
    except Exception as error:  # noqa: BLE001  by the port's contract whatever the function raised is a value
        logger.warning("work in a worker raised %s%s", type(error).__name__, _where(error))
        return Failed("ours", f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS])


def _where(error: Exception) -> str:
    """Return the places that an error in a worker came through; what it says may quote somebody's text."""
    lines = str(getattr(error, "traceback", "")).splitlines()
    return "".join(f"\n{line}" for line in lines if line.startswith('  File "'))


def _told(status: int) -> str:
    """Return the status of a process with the name of the signal that ended it, if one did."""
    try:
        return f"{status} ({signal.Signals(-status).name})" if status < 0 else str(status)
    except ValueError:
        return str(status)


def _prepare_worker(memory_bytes: int) -> None:
    """Ignore Ctrl-C (the server drains first), end at once when told to, and on Linux die with the server.

    What decodes files of strangers is bounded: its memory, where the system can (Linux counts what is really
    asked for in RLIMIT_DATA), and that a crash leaves no image of it on the disk.
    """
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler in Python would wait for the end of whatever native code runs.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    alarms.allow()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if memory_bytes:
            _, most = resource.getrlimit(resource.RLIMIT_DATA)
            bound = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
            resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
