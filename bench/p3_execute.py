"""P3: executing a retriever of one vector stage, beside the same query to Qdrant Edge in this process.

Key, JSON and payloads included. Floor: p50 at most 2.0 times the raw query's + 2 ms. Record: 1.3 times + 0.5 ms.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import raw_edge
from bench.clustered import K, clustered, number_of, recall
from bench.place import Place
from bench.servers import tessera

ROUNDS = 9
DOCUMENTS = 100_000
QUERIES = 60


def main() -> None:
    """Print both p50, what the one takes more, and the recall of both."""
    data = clustered(DOCUMENTS, QUERIES)
    with tempfile.TemporaryDirectory() as folder, tessera(Path(folder) / "tessera") as client:
        place = Place(client, "p3")
        place.fill(data.vectors)
        path, wire = place.retriever(K), place.wire()
        shard = raw_edge.create(Path(folder) / "raw")
        raw_edge.put(shard, data.vectors)

        def ours(number: int) -> list[int]:
            answer = wire.post(path, {"inputs": {"v": data.queries[number]}, "limit": K})
            return [number_of(document["document_id"]) for document in answer["documents"]]

        def raw(number: int) -> list[int]:
            return raw_edge.query(shard, data.queries[number], K)

        sides: tuple[Callable[[int], list[int]], ...] = (ours, raw)
        found = [[side(number) for number in range(QUERIES)] for side in sides]
        rounds: list[list[float]] = []
        for _ in range(ROUNDS):
            # One query each in turn: what else the machine does hits both.
            taken: list[list[float]] = [[], []]
            for number in range(QUERIES):
                for times, side in zip(taken, sides, strict=True):
                    times.append(_ms(side, number))
            rounds.append([statistics.median(times) for times in taken])
        shard.close()
    mine, theirs = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratios = [a / b for a, b in rounds]
    more = [a - b for a, b in rounds]
    floors = [a - (2.0 * b + 2) for a, b in rounds]
    print(
        f"P3 execute over {DOCUMENTS:,} x 384: p50 {mine:.2f} ms, raw query {theirs:.2f} ms; "
        f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"{statistics.median(more):+.2f} ms ({min(more):+.2f} to {max(more):+.2f})"
    )
    print(
        f"   recall@10 {recall(found[0], data):.3f} and {recall(found[1], data):.3f} (hardness {data.hardness:.2f}); "
        f"floor 2.0x + 2 ms = {2 * theirs + 2:.2f} ms {'holds' if statistics.median(floors) <= 0 else 'MISSED'}, "
        f"record 1.3x + 0.5 ms = {1.3 * theirs + 0.5:.2f} ms"
    )


def _ms(call: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
