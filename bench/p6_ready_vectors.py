"""P6: ready-made vectors in, durable and findable, beside Qdrant Edge in this process and chromadb's server.

All three get the same vectors, ids and fields, a thousand at once; the two servers as JSON over four
connections, and over their second way in, vectors as base64. Edge flushes each thousand, as an answered
upsert is durable. Floor: 0.6 times Edge's rate and 3 times chromadb's. Record: 0.85 times Edge's.
"""

from __future__ import annotations

import base64
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench import raw_edge
from bench.clustered import Floats, clustered, document_id, number_of, payload
from bench.place import BATCH, VECTOR, Place
from bench.servers import CHROMA_COLLECTIONS, chroma, tessera
from bench.wire import Wire, in_parallel

ROUNDS = 7
DOCUMENTS = 10_000
CONNECTIONS = 4


def main() -> None:
    """Print documents a second of each side and the ratios."""
    data = clustered(DOCUMENTS, 20)
    with (
        tempfile.TemporaryDirectory() as folder,
        tessera(Path(folder) / "tessera") as ours,
        chroma(Path(folder) / "chroma") as theirs,
    ):
        rates: list[list[float]] = []
        for number in range(ROUNDS):
            place = Place(ours, f"p6-{number}")
            encoded = Place(ours, f"p6-{number}-base64")
            for one in (place, encoded):
                one.fill(data.vectors[:1])  # the view is made, as it is in a namespace that is used
            rates.append(
                [
                    _rate(lambda place=place: place.fill(data.vectors, CONNECTIONS)),
                    _rate(lambda place=encoded: _fill_base64(place, data.vectors)),
                    _rate(lambda n=number: _raw(Path(folder) / f"raw-{n}", data.vectors)),
                    _rate(lambda n=number: _chroma(theirs, f"p6-{n}", data.vectors)),
                ]
            )
            _check(place, data.queries[0], int(data.truth[0][0]))
            _check(encoded, data.queries[0], int(data.truth[0][0]))
    names = ("Tessera, JSON", "Tessera, base64", "raw Edge", "chromadb's server")
    for name, side in zip(names, zip(*rates, strict=True), strict=True):
        print(f"P6 {name}: {statistics.median(side):,.0f} documents/s ({min(side):,.0f} to {max(side):,.0f})")
    for mine, name in ((0, "JSON"), (1, "base64")):
        for other, against, floor in ((2, "raw Edge", "0.6, record 0.85"), (3, "chromadb's server", "3")):
            ratios = [row[mine] / row[other] for row in rates]
            print(
                f"   {name} beside {against}: {statistics.median(ratios):.2f}x "
                f"({min(ratios):.2f} to {max(ratios):.2f}; floor {floor})"
            )


def _rate(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return DOCUMENTS / (time.perf_counter() - began)


def _fill_base64(place: Place, vectors: Floats) -> None:
    path = f"/v1/namespaces/{place.namespace_id}/documents/upsert"

    def put(wire: Wire, body: Any) -> None:
        for document in body["documents"]:
            document["vectors"] = {VECTOR: _base64(document["vectors"][VECTOR])}
        wire.post(path, body)

    in_parallel(
        CONNECTIONS,
        place.wire,
        ((lambda wire, body=body: put(wire, body)) for body in place.upserts(vectors)),
    )


def _base64(vector: Floats) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode()


def _raw(folder: Path, vectors: Floats) -> None:
    shard = raw_edge.create(folder)
    raw_edge.put(shard, vectors)
    shard.close()
    shutil.rmtree(folder)


def _chroma(client: httpx.Client, name: str, vectors: Floats) -> None:
    made = client.post(
        CHROMA_COLLECTIONS, json={"name": name, "configuration": {"hnsw": {"space": "cosine"}}}
    )
    path = f"/api/v2{CHROMA_COLLECTIONS}/{made.raise_for_status().json()['id']}/upsert"

    def put(wire: Wire, start: int) -> None:
        numbers = range(start, min(start + BATCH, len(vectors)))
        wire.post(
            path,
            {
                "ids": [document_id(number) for number in numbers],
                "embeddings": [vectors[number] for number in numbers],
                "metadatas": [payload(number) for number in numbers],
            },
        )

    in_parallel(
        CONNECTIONS,
        lambda: Wire(client),
        ((lambda wire, start=start: put(wire, start)) for start in range(0, len(vectors), BATCH)),
    )


def _check(place: Place, query: Floats, nearest: int) -> None:
    """What was put in is there: the count, and the nearest of a query."""
    wire = place.wire()
    answer = wire.post(place.retriever(10), {"inputs": {"v": query}, "limit": 10})
    assert number_of(answer["documents"][0]["document_id"]) == nearest
    listed = wire.post(f"/v1/collections/{place.collection_id}/documents/list", {"limit": 1})
    assert listed["pagination"]["total"] == DOCUMENTS, listed["pagination"]


if __name__ == "__main__":
    main()
