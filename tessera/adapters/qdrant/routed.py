"""Both vector engines behind one port: a view goes to the engine that its location names.

A location that is a URL is a Qdrant server, any other a directory of Qdrant Edge. Servers are contacted, and
their client library is imported, only when the first view there is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from tessera.filters import Filter
from tessera.ports import Entry, Fusion, Hit, IndexReport, Mark, Page, PageResult, Search, Vectors, View


class RoutedVectors:
    """`Vectors` over two others, each made on first use.

    With `start_edge` the embedded engine is made at once: it ends what an earlier server left running.
    """

    def __init__(
        self, edge: Callable[[], Vectors], server: Callable[[], Vectors], *, start_edge: bool
    ) -> None:
        self._make = {"edge": edge, "server": server}
        self._made: dict[str, Vectors] = {}
        self._lock = threading.Lock()
        if start_edge:
            self._engine("edge")

    def open(self, view: View) -> Mark:
        """See `Vectors.open`."""
        return self._for(view).open(view)

    def apply(self, view: View, entries: Sequence[Entry]) -> Mark:
        """See `Vectors.apply`."""
        return self._for(view).apply(view, entries)

    def apply_next(self, view: View, entry: Entry) -> Mark | None:
        """See `Vectors.apply_next`."""
        return self._for(view).apply_next(view, entry)

    def flush(self, view: View) -> Mark:
        """See `Vectors.flush`."""
        return self._for(view).flush(view)

    def search(self, view: View, searches: Sequence[Search]) -> list[list[Hit]]:
        """See `Vectors.search`."""
        return self._for(view).search(view, searches)

    def ranked(self, view: View, searches: Sequence[Search], fusion: Fusion) -> list[Hit]:
        """See `Vectors.ranked`."""
        return self._for(view).ranked(view, searches, fusion)

    def page(self, view: View, page: Page) -> PageResult:
        """See `Vectors.page`."""
        return self._for(view).page(view, page)

    def count(self, view: View, filter: Filter | None = None) -> int:
        """See `Vectors.count`."""
        return self._for(view).count(view, filter)

    def get(self, view: View, document_ids: Sequence[str], with_vectors: bool = False) -> list[Hit]:
        """See `Vectors.get`."""
        return self._for(view).get(view, document_ids, with_vectors)

    def indexes(self, view: View) -> list[IndexReport]:
        """See `Vectors.indexes`."""
        return self._for(view).indexes(view)

    def release(self, view: View) -> None:
        """See `Vectors.release`."""
        self._for(view).release(view)

    def drop(self, view: View) -> None:
        """See `Vectors.drop`."""
        self._for(view).drop(view)

    def builds_apart(self, view: View) -> bool:
        """See `Vectors.builds_apart`."""
        return self._for(view).builds_apart(view)

    def begin(self, view: View, *, graph: bool, apart: bool) -> Mark:
        """See `Vectors.begin`."""
        return self._for(view).begin(view, graph=graph, apart=apart)

    def optimize(self, view: View) -> Mark:
        """See `Vectors.optimize`."""
        return self._for(view).optimize(view)

    def settle(self, view: View) -> Mark:
        """See `Vectors.settle`."""
        return self._for(view).settle(view)

    def close(self) -> None:
        """Close both."""
        with self._lock:
            made, self._made = list(self._made.values()), {}
        for engine in made:
            engine.close()

    def _for(self, view: View) -> Vectors:
        return self._engine("server" if view.location.startswith(("http://", "https://")) else "edge")

    def _engine(self, name: str) -> Vectors:
        engine = self._made.get(name)
        if engine is None:
            with self._lock:
                engine = self._made.get(name)
                if engine is None:
                    engine = self._made[name] = self._make[name]()
        return engine
