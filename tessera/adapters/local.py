"""The local runner: worker processes on this machine (pebble), where a crash costs one item."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tessera.ports import HERE, Compute, Failed


class LocalRunner:
    """`workers` processes, started on first use, that keep what they loaded between items.

    Several threads may map at the same time; they share the workers.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: Any = None
        self._lock = threading.Lock()
        self._closed = False

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
        others and an early end of the iteration leaves little behind.
        """
        waiting: dict[concurrent.futures.Future[Any], int] = {}
        following = iter(enumerate(items))
        exhausted = False
        try:
            while True:
                while not exhausted and len(waiting) < 2 * self._workers:
                    index, item = next(following, (-1, None))
                    if index < 0:
                        exhausted = True
                        break
                    pool = self._running_pool()
                    waiting[pool.schedule(function, args=[item], timeout=timeout_s)] = index
                if not waiting:
                    return
                done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), _outcome(future, timeout_s)
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Stop the workers; what they were doing ends as `Failed`."""
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            pool.stop()
            pool.join(timeout=10)

    def _running_pool(self) -> Any:
        from pebble import ProcessPool

        with self._lock:
            if self._closed:
                raise RuntimeError("the runner is closed")
            if self._pool is None or not self._pool.active:
                self._pool = ProcessPool(
                    max_workers=self._workers,
                    initializer=_prepare_worker,
                    context=multiprocessing.get_context("spawn"),
                )
            return self._pool


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
    """Ignore Ctrl-C (the server drains first), and on Linux die with the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
