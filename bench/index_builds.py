"""Searches while a payload index or a vector graph is built beside: the views' part of P7, with recall.

Everything below HTTP: the log in SQLite, views, host processes. A neighbour in the same host is searched as well.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tessera import artifact, log
from tessera.adapters.qdrant.edge import EdgeVectors
from tessera.blobs import Blobs
from tessera.db.engine import Database, now
from tessera.db.tables import metadata, namespaces
from tessera.filters import Condition, Filter
from tessera.models import INDEX_PARAMS, IndexType, PayloadIndex
from tessera.ports import Document, Search
from tessera.views import Location, Views

DIMENSIONS = 384
CLUSTERS = 2000
PER_ARTIFACT = 2000
WORDS = ["amber", "basalt", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jetty"]


class Place:
    """Namespaces with their log, blobs and views in one folder."""

    def __init__(self, folder: Path) -> None:
        self.db = Database(f"sqlite:///{folder / 'db.sqlite3'}")
        metadata.create_all(self.db.engine)
        self.blobs = Blobs(folder / "blobs")
        self.vectors = EdgeVectors(1, 8, folder / "run")
        self.views = Views(
            self.db,
            self.vectors,
            self.blobs,
            lambda view, _place: Location(str(folder / "views" / view)),
            graph_from_bytes=1 << 50,
        )
        self.centers = np.random.default_rng(0).standard_normal((CLUSTERS, DIMENSIONS)).astype(np.float32)

    def create(self, namespace_id: str, documents: int) -> np.ndarray:
        """Fill a namespace with clustered vectors and return them, `float32[documents, 384]`, normalised."""
        with self.db.write() as connection:
            connection.execute(
                namespaces.insert().values(
                    namespace_id=namespace_id,
                    organization_id="org_bench",
                    namespace_name=namespace_id,
                    feature_extractors=[],
                    user_indexes=[],
                    added_indexes=[],
                    vectors=[{"name": "v", "dimensions": DIMENSIONS, "distance": "cosine"}],
                    vector_inference_map={},
                    infrastructure={},
                    view_id=f"{namespace_id}-1",
                    created_at=now(),
                    updated_at=now(),
                )
            )
            log.append_indexes(connection, namespace_id, [_index("share", "integer")])
        vectors = self.near(documents, seed=1)
        rng = np.random.default_rng(2)
        for start in range(0, documents, PER_ARTIFACT):
            key = f"{namespace_id}/artifacts/{start}"
            block = [
                Document(
                    f"doc_{n}",
                    {"document_id": f"doc_{n}", "share": n % 1000, "text": " ".join(rng.choice(WORDS, 40))},
                    {"v": vectors[n]},
                )
                for n in range(start, min(start + PER_ARTIFACT, documents))
            ]
            artifact.write(self.blobs.new_path(key), block, {"v": DIMENSIONS})
            with self.db.write() as connection:
                log.append_artifact(connection, namespace_id, key)
        self.views.apply(namespace_id)
        return vectors

    def near(self, count: int, seed: int) -> np.ndarray:
        """Return vectors scattered about the common centers, normalised."""
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((count, DIMENSIONS), dtype=np.float32)
        found = self.centers[rng.integers(0, CLUSTERS, count)] + 0.7 * noise
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def close(self) -> None:
        self.views.close()
        self.vectors.close()
        self.db.close()


def trigger_index(place: Place, namespace_id: str) -> None:
    """Add a text index as PATCH does; over many documents a view is built beside."""
    with place.db.write() as connection:
        seq = log.append_indexes(
            connection, namespace_id, [_index("share", "integer"), _index("text", "text")]
        )
    place.views.apply(namespace_id, seq)


def trigger_graph(place: Place, namespace_id: str) -> None:
    """Let the namespace's vectors be more than may be scanned."""
    place.views._graph_from_bytes = 2**20  # noqa: SLF001
    place.views.request_build(namespace_id)


def main(arguments: list[str] | None = None) -> None:
    """Print p50, p99 and the longest search: idle, while an index is built, while a graph is built; and recall."""
    logging.basicConfig(format="  %(message)s")
    logging.getLogger("tessera.views").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=60_000)
    documents = parser.parse_args([] if arguments is None else arguments).documents
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        try:
            vectors = place.create("ns_large", documents)
            place.create("ns_neighbour", 500)
            queries = place.near(200, seed=9)
            print(
                f"searches of {documents:,} x {DIMENSIONS} (and of a neighbour of 500 in the same host), ms"
            )
            idle = _Searching(place, queries).run_for(6)
            print(f"  idle:                     {idle}")
            for name, trigger in (("an index is built", trigger_index), ("a graph is built", trigger_graph)):
                searching = _Searching(place, queries)
                began = time.perf_counter()
                trigger(place, "ns_large")
                searching.run_until(lambda: place.views.wait_for_build("ns_large", 0.05))
                print(f"  while {name + ':':20}{searching}; {time.perf_counter() - began:.1f} s")
            after = _Searching(place, queries).run_for(6)
            print(f"  with the graph:           {after}")
            _print_recall(place, vectors, queries)
        finally:
            place.close()


class _Searching:
    """Two clients that search without pause, and what they saw."""

    def __init__(self, place: Place, queries: np.ndarray) -> None:
        self._place, self._queries = place, queries
        self._stop = threading.Event()
        self.took: dict[str, list[float]] = {"ns_large": [], "ns_neighbour": []}
        self._threads = [threading.Thread(target=self._search, args=(name,)) for name in self.took]
        for thread in self._threads:
            thread.start()

    def _search(self, namespace_id: str) -> None:
        number = 0
        while not self._stop.is_set():
            query = self._queries[number % len(self._queries)]
            number += 1
            began = time.perf_counter()
            self._place.views.search(namespace_id, [Search("v", query, 10)])
            self.took[namespace_id].append((time.perf_counter() - began) * 1000)

    def run_for(self, seconds: float) -> _Searching:
        time.sleep(seconds)
        return self._end()

    def run_until(self, done: Callable[[], bool]) -> _Searching:
        while not done():
            pass
        return self._end()

    def _end(self) -> _Searching:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self

    def __str__(self) -> str:
        return ", neighbour ".join(
            f"p50 {statistics.median(each):.1f} p99 {np.percentile(each, 99):.1f} max {max(each):.0f} (n={len(each)})"
            for each in self.took.values()
        )


def _print_recall(place: Place, vectors: np.ndarray, queries: np.ndarray) -> None:
    shares = np.arange(len(vectors)) % 1000
    for name, below in (("all", 1000), ("20 %", 200), ("1 %", 10), ("0.1 %", 1)):
        filter: Filter | None = Condition("share", "lt", below) if below < 1000 else None
        among = np.flatnonzero(shares < below)
        found, took = 0, []
        for query in queries:
            began = time.perf_counter()
            (hits,) = place.views.search("ns_large", [Search("v", query, 10, filter)])
            took.append((time.perf_counter() - began) * 1000)
            best = among[np.argsort(vectors[among] @ query)[::-1][:10]]
            found += len({f"doc_{n}" for n in best} & {hit.document_id for hit in hits})
        print(
            f"  {name:>5} of the documents: recall@10 {found / (min(10, len(among)) * len(queries)):.4f}, "
            f"p50 {statistics.median(took):.1f} ms"
        )


def _index(field_name: str, type: str) -> PayloadIndex:
    schema = INDEX_PARAMS[IndexType(type)]().model_dump()
    return PayloadIndex(field_name=field_name, type=IndexType(type), field_schema=schema)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
