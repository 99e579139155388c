"""P5: executing a retriever from 8 clients at once, beside the same from one; and from 32.

Floor: 8 clients get 1.5 times as many answers a second as one, and 32 no error. Record: with 8, p99 at most 5 times
p50. Over two sizes: where a search costs little most of it is the server's own work, where it costs much the engine's.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import orjson

from bench.clustered import K, clustered, number_of, recall
from bench.load import Load, load
from bench.place import Place
from bench.servers import tessera

ROUNDS, SECONDS = 7, 3.0
SIZES, QUERIES = (10_000, 100_000), 100
CLIENTS = (1, 8, 32)


def main(*, small: bool = False) -> None:
    """Print answers a second by number of clients, their ratio, and what the slowest hundredth took."""
    rounds, seconds = (3, 1.0) if small else (ROUNDS, SECONDS)
    for documents in SIZES:
        data = clustered(documents, QUERIES)
        with tempfile.TemporaryDirectory() as folder, tessera(Path(folder) / "tessera") as client:
            place = Place(client, "p5")
            place.fill(data.vectors)
            path, wire = place.retriever(K), place.wire()
            requests = [wire.request(path, {"inputs": {"v": query}, "limit": K}) for query in data.queries]
            found = []
            for request in requests:
                wire.send(request)
                answer = orjson.loads(wire.receive())
                found.append([number_of(document["document_id"]) for document in answer["documents"]])
            turns: list[list[Load]] = [
                [load(place.wire, clients, seconds, requests) for clients in CLIENTS] for _ in range(rounds)
            ]
        print(f"P5 execute over {documents:,} x 384, recall@10 {recall(found, data):.3f}")
        for clients, side in zip(CLIENTS, zip(*turns, strict=True), strict=True):
            print(
                f"   {clients:2} clients: {statistics.median(one.per_second for one in side):,.0f} a second, "
                f"p50 {statistics.median(one.ms(0.5) for one in side):.1f} ms, "
                f"p99 {statistics.median(one.ms(0.99) for one in side):.1f} ms, "
                f"errors {sum(one.errors for one in side)}"
            )
        ratios = [turn[1].per_second / turn[0].per_second for turn in turns]
        tails = [turn[1].ms(0.99) / turn[1].ms(0.5) for turn in turns]
        median = statistics.median(ratios)
        print(
            f"   8 beside 1: {median:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}; floor 1.5 "
            f"{'holds' if median >= 1.5 else 'MISSED'}); p99 over p50 with 8: {statistics.median(tails):.1f}x "
            f"({min(tails):.1f} to {max(tails):.1f}; record 5)"
        )


if __name__ == "__main__":
    main()
