"""The local runner: worker processes on this machine (pebble), where a crash costs one item."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import queue
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tessera.ports import HERE, Compute, Failed

_STOPPED = Failed("ours", "The workers were stopped.", retryable=True)

#: How often somebody who waits for results looks whether they are still wanted.
_LOOK_S = 0.1
#: A worker that was asked to end and did not (it may be stopped) is killed after so long.
_KILL_AFTER_S = 0.5

#: So many pools may break under an item that waits before it fails.
_POOLS_PER_ITEM = 3


class LocalRunner:
    """`workers` processes, started on first use, that keep what they loaded between items.

    Several threads may map at the same time; they share the workers.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: Any = None
        self._lock = threading.Lock()
        self._closed = False
        self._callers: set[queue.SimpleQueue[concurrent.futures.Future[Any] | None]] = set()

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
        waiting: dict[concurrent.futures.Future[Any], int] = {}
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
                        future = self._running_pool().schedule(
                            function, args=[items[index]], timeout=timeout_s
                        )
                    except RuntimeError:  # closed, or broken between the two
                        yield index, _STOPPED
                        continue
                    waiting[future] = index
                    future.add_done_callback(done.put)
                if waiting:
                    try:
                        ready = done.get(timeout=_LOOK_S)
                    except queue.Empty:
                        continue
                    if ready is None:
                        # A closed pool ends what its workers do, but never what still waits for one.
                        for index in list(waiting.values()):
                            yield index, _STOPPED
                        waiting.clear()
                    elif ready in waiting:
                        index = waiting.pop(ready)
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

    def _running_pool(self) -> Any:
        from pebble import CONSTS, ProcessPool

        CONSTS.term_timeout = _KILL_AFTER_S
        with self._lock:
            if self._closed:
                raise RuntimeError("the runner is closed")
            if self._pool is not None and not self._pool.active:
                # A broken pool leaves the workers that still live behind.
                self._pool.stop()
                self._pool.join()
                self._pool = None
            if self._pool is None:
                self._pool = ProcessPool(
                    max_workers=self._workers,
                    initializer=_prepare_worker,
                    context=multiprocessing.get_context("spawn"),
                )
            return self._pool


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
        return Failed("limit", f"The work took longer than {timeout_s:g} s.", crashed=True)
    except ProcessExpired as error:
        return Failed(
            "ours", f"The worker process ended with status {error.exitcode}.", crashed=True, retryable=True
        )
    except Exception as error:  # noqa: BLE001  by the port's contract whatever the function raised is a value
        return Failed("ours", f"{type(error).__name__}: {error}")


def _prepare_worker() -> None:
    """Ignore Ctrl-C (the server drains first), end at once when told to, and on Linux die with the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler in Python would wait for the end of whatever native code runs.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
