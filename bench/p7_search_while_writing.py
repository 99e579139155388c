"""P7: searches and health while documents come in and while a payload index is built, beside the same when idle.

Floor: p99 at most 3 times that of the idle server, and no answer of ``/v1/health`` over 250 ms. Record: 2 times.
Each load comes from a process of its own, so that the clock of the searches is nobody else's.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.clustered import Floats, K, clustered, number_of, recall
from bench.place import Place
from bench.servers import tessera
from bench.wire import Wire

ROUNDS = 5
DOCUMENTS, INCOMING, SECONDS = 20_000, 4_000, 3.0
_processes = multiprocessing.get_context("fork")


def main() -> None:
    """Print p99 of searches and the longest answer of health: idle, while ingesting, while an index is built."""
    data = clustered(DOCUMENTS + INCOMING, 100)
    loads: dict[str, Callable[[Place], None] | None] = {
        "idle": None,
        "ingest": lambda place: _ingest(place, data.vectors[DOCUMENTS:]),
        "index": _build_indexes,
    }
    with tempfile.TemporaryDirectory() as folder, tessera(Path(folder) / "tessera") as client:
        place = Place(client, "p7")
        place.fill(data.vectors)  # all of them: what comes in later is there already, so the truth stays
        path, wire = place.retriever(K), place.wire()

        def search(number: int) -> list[int]:
            answer = wire.post(path, {"inputs": {"v": data.queries[number % 100]}, "limit": K})
            return [number_of(document["document_id"]) for document in answer["documents"]]

        found = [search(number) for number in range(100)]
        p99: dict[str, list[float]] = {name: [] for name in loads}
        gaps: dict[str, list[float]] = {name: [] for name in loads}
        counts = dict.fromkeys(loads, 0)
        for _ in range(ROUNDS):
            for name, load in loads.items():
                with _beside(load, place), _health(client) as slowest:
                    times = _times(search)
                    gaps[name].append(slowest())
                p99[name].append(sorted(times)[int(0.99 * len(times))])
                counts[name] += len(times)
    idle = statistics.median(p99["idle"])
    print(
        f"P7 {DOCUMENTS + INCOMING:,} x 384, recall@10 {recall(found, data):.3f}; idle p99 {idle:.1f} ms, "
        f"longest health {max(gaps['idle']):.0f} ms"
    )
    for name in ("ingest", "index"):
        ratios = [a / b for a, b in zip(p99[name], p99["idle"], strict=True)]
        print(
            f"   {name}: p99 {statistics.median(p99[name]):.1f} ms over {counts[name]} searches, "
            f"{statistics.median(ratios):.1f}x idle ({min(ratios):.1f} to {max(ratios):.1f}; floor 3, record 2); "
            f"longest health {statistics.median(gaps[name]):.0f} ms, at worst {max(gaps[name]):.0f} (floor 250)"
        )


def _times(search: Callable[[int], Any]) -> list[float]:
    times, ends = [], time.perf_counter() + SECONDS
    while time.perf_counter() < ends:
        began = time.perf_counter()
        search(len(times))
        times.append((time.perf_counter() - began) * 1000)
    return times


@contextmanager
def _beside(load: Callable[[Place], None] | None, place: Place) -> Iterator[None]:
    """Run `load` again and again in another process for as long as the block lasts."""
    if load is None:
        yield
        return
    stop = _processes.Event()

    def run() -> None:
        while not stop.is_set():
            load(place)

    process = _processes.Process(target=run)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(60)
        assert process.exitcode == 0, f"the load ended with {process.exitcode}"


@contextmanager
def _health(client: httpx.Client) -> Iterator[Callable[[], float]]:
    """Ask for health every 10 ms from another process; yield a function that ends it and returns the longest answer."""
    ours, theirs = _processes.Pipe()

    def run() -> None:
        wire, slowest = Wire(client), 0.0
        while not theirs.poll(0.01):
            began = time.perf_counter()
            wire.get("/v1/health")
            slowest = max(slowest, (time.perf_counter() - began) * 1000)
        theirs.send(slowest)

    process = _processes.Process(target=run)
    process.start()

    def ended() -> float:
        ours.send(None)
        slowest: float = ours.recv()
        return slowest

    try:
        yield ended
    finally:
        process.join(30)


def _ingest(place: Place, vectors: Floats) -> None:
    """Upsert what is there already once more: the same work, the same answers of searches."""
    wire = place.wire()
    for body in place.upserts(vectors, first=DOCUMENTS):
        wire.post(f"/v1/namespaces/{place.namespace_id}/documents/upsert", body)
    wire.close()


def _build_indexes(place: Place) -> None:
    """Have a keyword and a text index built, then dropped."""
    wire = place.wire()
    index = [{"field_name": "category", "type": "keyword"}, {"field_name": "title", "type": "text"}]
    for wanted in (index, []):
        wire.post(f"/v1/namespaces/{place.namespace_id}", {"payload_indexes": wanted}, method="PATCH")
    wire.close()


if __name__ == "__main__":
    main()
