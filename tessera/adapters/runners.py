"""Both runners behind one port: `compute` says whether work goes to a cluster or to this server's processes.

Each is made when the first work for it comes: a server without clusters loads nothing of Ray.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tessera.ports import HERE, Compute, Failed, Runner


class RoutedRunner:
    """`Runner` over two others."""

    def __init__(self, here: Callable[[], Runner], clusters: Callable[[], Runner]) -> None:
        self._make = {"here": here, "clusters": clusters}
        self._made: dict[str, Runner] = {}
        self._lock = threading.Lock()

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
        """See `Runner.map`."""
        name = "here" if compute.cluster is None else "clusters"
        with self._lock:
            if name not in self._made:
                self._made[name] = self._make[name]()
            runner = self._made[name]
        return runner.map(function, items, timeout_s=timeout_s, compute=compute, again=again, stop=stop)

    def close(self) -> None:
        """See `Runner.close`."""
        with self._lock:
            made = list(self._made.values())
        for runner in made:
            runner.close()
