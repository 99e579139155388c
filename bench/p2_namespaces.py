"""P2: ten thousand namespaces on one machine, a thousand of them with documents.

Floor: 4 GiB resident in all processes, ready again within 20 s. Record: 2 GiB, 10 s, and the first query to a
namespace that nobody used since the start within 150 ms (p95).
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

from bench.clustered import clustered
from bench.place import URI, Place
from bench.servers import tessera
from bench.wire import Wire

NAMESPACES, FILLED, DOCUMENTS, COLD = 10_000, 1_000, 20, 200
SMALL = (1_000, 100, 20, 60)


def main(small: bool = False) -> None:
    """Make the namespaces, and print memory, the time of a restart and of first queries."""
    namespaces, filled, documents, cold = SMALL if small else (NAMESPACES, FILLED, DOCUMENTS, COLD)
    data = clustered(documents, cold)
    query = {
        "stage_id": "feature_search",
        "parameters": {"feature_uri": URI, "query": {"vector": "{{INPUT.v}}"}},
    }
    with tempfile.TemporaryDirectory() as folder:
        data_directory = Path(folder) / "tessera"
        with tessera(data_directory) as client:
            began = time.perf_counter()
            _create(client, namespaces - filled)
            made_s = time.perf_counter() - began
            began = time.perf_counter()
            places = [Place(client, f"filled-{number}") for number in range(filled)]
            for place in places:
                place.fill(data.vectors, connections=1)
            filled_s = time.perf_counter() - began
            before = _resident_mib()
            began = time.perf_counter()
        stop_s = time.perf_counter() - began
        began = time.perf_counter()
        with tessera(data_directory) as client:
            client.get("/v1/namespaces?limit=1").raise_for_status()
            ready_s = time.perf_counter() - began
            after = _resident_mib()
            times = []
            for number, place in enumerate(random.Random(7).sample(places, cold)):
                wire = Wire(client, X_Namespace=place.namespace_id)
                began = time.perf_counter()
                answer = wire.post(
                    "/v1/retrievers/execute",
                    {"stages": [query], "inputs": {"v": data.queries[number]}, "limit": 10},
                )
                times.append((time.perf_counter() - began) * 1000)
                assert len(answer["documents"]) == 10
                wire.close()
            used = _resident_mib()
            began = time.perf_counter()
            listed = client.get("/v1/namespaces?limit=1000").raise_for_status().json()
            list_ms = (time.perf_counter() - began) * 1000
            assert listed["total_count"] == namespaces
    times.sort()
    print(
        f"P2 {namespaces:,} namespaces made in {made_s:.0f} s, {filled:,} with {documents} documents each in "
        f"{filled_s:.0f} s: {before:,.0f} MiB resident (floor 4,096, record 2,048)"
    )
    print(
        f"   stopped in {stop_s:.1f} s, first 200 again after {ready_s:.2f} s (floor 20, record 10) with "
        f"{after:,.0f} MiB; after {cold} cold queries {used:,.0f} MiB"
    )
    print(
        f"   first query to a cold namespace: p50 {statistics.median(times):.0f} ms, "
        f"p95 {times[int(0.95 * len(times))]:.0f} ms, max {times[-1]:.0f} ms (record p95 150); "
        f"a list of 1,000 namespaces: {list_ms:.0f} ms"
    )


def _create(client: httpx.Client, count: int) -> None:
    extractor = {"feature_extractor_name": "text_extractor", "version": "v1"}
    wire = Wire(client)
    for number in range(count):
        wire.post("/v1/namespaces", {"namespace_name": f"empty-{number}", "feature_extractors": [extractor]})
    wire.close()


def _resident_mib() -> float:
    """Return the resident memory of all of this process's descendants: server, vector hosts, workers."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,rss="], capture_output=True, text=True, check=True)
    rows = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    ours, size = {os.getpid()}, 0
    while len(ours) != size:
        size = len(ours)
        ours |= {pid for pid, parent, _ in rows if parent in ours}
    return sum(rss for pid, _, rss in rows if pid in ours and pid != os.getpid()) / 1024


if __name__ == "__main__":
    main(small=True)
