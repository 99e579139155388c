"""P4: executing a retriever with a filter that leaves a fifth, a hundredth, a thousandth, beside chromadb's server.

Both hold the same vectors, ids and fields, and are asked the same over plain connections, by one client and by
eight. Tessera has an integer index on each field, chromadb indexes every field by itself. Floor: 8 times chromadb's
queries a second, and recall of at least 0.99, at every selectivity. Record: 20 times.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from bench.clustered import Clustered, K, clustered, document_id, number_of, payload
from bench.load import Load, load
from bench.place import BATCH, Place
from bench.servers import CHROMA_COLLECTIONS, chroma, tessera
from bench.wire import Wire, in_parallel

ROUNDS, SECONDS = 5, 2.0
DOCUMENTS, QUERIES = 50_000, 100
CLIENTS = (1, 8)
#: How many documents have each value of a field is one in so many.
FIELDS = {"fifth": 5, "hundredth": 100, "thousandth": 1000}


def main(*, small: bool = False) -> None:
    """Print queries a second of both sides and recall, for each selectivity and number of clients."""
    documents, rounds, seconds = (20_000, 2, 0.7) if small else (DOCUMENTS, ROUNDS, SECONDS)
    data = clustered(documents, QUERIES)
    with (
        tempfile.TemporaryDirectory() as folder,
        tessera(Path(folder) / "tessera") as ours,
        chroma(Path(folder) / "chroma") as theirs,
    ):
        place = Place(
            ours, "p4", payload_indexes=[{"field_name": name, "type": "integer"} for name in FIELDS]
        )
        place.fill(data.vectors, fields=_fields)
        collection = _fill_chroma(theirs, data)
        path = place.retriever(K)
        print(
            f"P4 {documents:,} x 384 in Tessera and in chromadb's server, a filter on one field of each document"
        )
        for name, parts in FIELDS.items():
            mine = [_our_request(place.wire(), path, data, name, parts, n) for n in range(QUERIES)]
            other = [_their_request(theirs, collection, data, name, parts, n) for n in range(QUERIES)]
            found = [_found(place.wire(), one, _our_ids) for one in mine]
            against = [_found(Wire(theirs), one, _their_ids) for one in other]
            for clients in CLIENTS:
                pairs = [
                    (
                        load(place.wire, clients, seconds, mine),
                        load(lambda: Wire(theirs), clients, seconds, other),
                    )
                    for _ in range(rounds)
                ]
                _print(name, parts, clients, pairs)
            print(
                f"      recall@10 {_recall(found, data, parts):.3f} and {_recall(against, data, parts):.3f} "
                f"(hardness {data.hardness:.2f})"
            )


def _fields(number: int) -> dict[str, Any]:
    return {**payload(number), **{name: number % parts for name, parts in FIELDS.items()}}


def _our_request(wire: Wire, path: str, data: Clustered, name: str, parts: int, number: int) -> bytes:
    filters = {"AND": [{"field": name, "operator": "eq", "value": number % parts}]}
    request = wire.request(path, {"inputs": {"v": data.queries[number]}, "filters": filters, "limit": K})
    wire.close()
    return request


def _their_request(
    client: httpx.Client, collection: str, data: Clustered, name: str, parts: int, number: int
) -> bytes:
    wire = Wire(client)
    request = wire.request(
        f"/api/v2{CHROMA_COLLECTIONS}/{collection}/query",
        {
            "query_embeddings": [data.queries[number]],
            "where": {name: number % parts},
            "n_results": K,
            "include": ["metadatas", "distances"],
        },
    )
    wire.close()
    return request


def _found(wire: Wire, request: bytes, ids: Callable[[Any], list[str]]) -> list[int]:
    wire.send(request)
    answer = orjson.loads(wire.receive())
    wire.close()
    return [number_of(one) for one in ids(answer)]


def _our_ids(answer: Any) -> list[str]:
    return [document["document_id"] for document in answer["documents"]]


def _their_ids(answer: Any) -> list[str]:
    ids: list[str] = answer["ids"][0]
    return ids


def _recall(found: list[list[int]], data: Clustered, parts: int) -> float:
    hits = wanted = 0
    for number, answer in enumerate(found):
        among = np.arange(number % parts, len(data.vectors), parts)
        near = among[np.argsort(-(data.vectors[among] @ data.queries[number]), kind="stable")[:K]]
        hits += len(set(answer) & set(near.tolist()))
        wanted += len(near)
    return hits / wanted


def _fill_chroma(client: httpx.Client, data: Clustered) -> str:
    made = client.post(
        CHROMA_COLLECTIONS, json={"name": "p4-filtered", "configuration": {"hnsw": {"space": "cosine"}}}
    )
    collection: str = made.raise_for_status().json()["id"]

    def put(wire: Wire, start: int) -> None:
        numbers = range(start, min(start + BATCH, len(data.vectors)))
        wire.post(
            f"/api/v2{CHROMA_COLLECTIONS}/{collection}/upsert",
            {
                "ids": [document_id(number) for number in numbers],
                "embeddings": [data.vectors[number] for number in numbers],
                "metadatas": [_fields(number) for number in numbers],
            },
        )

    starts = range(0, len(data.vectors), BATCH)
    in_parallel(2, lambda: Wire(client), ((lambda wire, start=start: put(wire, start)) for start in starts))
    return collection


def _print(name: str, parts: int, clients: int, pairs: list[tuple[Load, Load]]) -> None:
    mine, theirs = (statistics.median(one.per_second for one in side) for side in zip(*pairs, strict=True))
    ratios = [a.per_second / b.per_second for a, b in pairs]
    errors = sum(a.errors for a, _ in pairs), sum(b.errors for _, b in pairs)
    median = statistics.median(ratios)
    print(
        f"   {100 / parts:g} % ({name}), {clients} clients: {mine:,.0f} a second, chromadb {theirs:,.0f}; "
        f"{median:.1f}x ({min(ratios):.1f} to {max(ratios):.1f}; floor 8 {'holds' if median >= 8 else 'MISSED'}, "
        f"record 20); p50 {statistics.median(a.ms(0.5) for a, _ in pairs):.1f} and "
        f"{statistics.median(b.ms(0.5) for _, b in pairs):.1f} ms; errors {errors[0]} and {errors[1]}"
    )


if __name__ == "__main__":
    main()
