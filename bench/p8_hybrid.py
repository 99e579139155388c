"""P8: a hybrid search (vector and words, fused), beside the same two queries to Qdrant Edge in this process.

Key, JSON, payloads and fusion included. Floor: p50 at most 1.6 times the sum of the raw queries. Record: 1.3 times.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

from bench.clustered import DIMENSIONS, Floats, K, clustered, document_id, number_of, payload
from bench.place import BATCH, URI, VECTOR, Place
from bench.servers import tessera
from bench.wire import in_parallel
from tessera.adapters.qdrant.edge_host import INDEXING_THRESHOLD_KB
from tessera.adapters.qdrant.words import words_asked, words_of

ROUNDS = 7
DOCUMENTS = 100_000
QUERIES = 60
TOP = 100
WORDS, VOCABULARY = 30, 20_000


def main() -> None:
    """Print both p50, how they compare, and how much the answers have in common."""
    data = clustered(DOCUMENTS, QUERIES)
    texts, asked = _texts(DOCUMENTS), _asked(QUERIES)
    with tempfile.TemporaryDirectory() as folder, tessera(Path(folder) / "tessera") as client:
        place = Place(client, "p8")
        began = time.perf_counter()
        _fill(place, data.vectors, texts)
        filled_s = time.perf_counter() - began
        path, wire = _retriever(place), place.wire()
        shard = _raw(Path(folder) / "raw", data.vectors, texts)

        def ours(number: int) -> list[int]:
            inputs = {"v": data.queries[number], "q": asked[number]}
            answer = wire.post(path, {"inputs": inputs, "limit": K})
            return [number_of(document["document_id"]) for document in answer["documents"]]

        def dense(number: int) -> list[int]:
            return _query(shard, edge.Query.Nearest(data.queries[number], using="v"))

        def sparse(number: int) -> list[int]:
            words = words_asked(asked[number])
            assert words is not None
            return _query(shard, edge.Query.Nearest(edge.SparseVector(*words), using="bm25"))

        sides: tuple[Callable[[int], list[int]], ...] = (ours, dense, sparse)
        found = [[side(number) for number in range(QUERIES)] for side in sides]
        rounds: list[list[float]] = []
        for _ in range(ROUNDS):
            taken: list[list[float]] = [[], [], []]
            for number in range(QUERIES):
                for times, side in zip(taken, sides, strict=True):
                    times.append(_ms(side, number))
            rounds.append([statistics.median(times) for times in taken])
        shard.close()
    mine, by_vector, by_words = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratios = [a / (b + c) for a, b, c in rounds]
    right = statistics.fmean(len(set(got) & set(_fused(d, s))) / K for got, d, s in zip(*found, strict=True))
    print(
        f"P8 hybrid over {DOCUMENTS:,} x {DIMENSIONS} and {WORDS} words each: p50 {mine:.2f} ms, raw queries "
        f"{by_vector:.2f} + {by_words:.2f} ms; {statistics.median(ratios):.2f}x "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(
        f"   {right:.3f} of the ten that the raw answers fuse to; put in at {DOCUMENTS / filled_s:,.0f} documents/s; "
        f"floor 1.6x {'holds' if statistics.median(ratios) <= 1.6 else 'MISSED'}, record 1.3x"
    )


def _texts(count: int) -> list[str]:
    rng = np.random.default_rng(11)
    numbers = np.minimum(rng.zipf(1.3, (count, WORDS)), VOCABULARY)
    return [" ".join(f"w{number}x" for number in row) for row in numbers]


def _asked(count: int) -> list[str]:
    rng = np.random.default_rng(12)
    return [" ".join(f"w{number}x" for number in rng.integers(20, 400, 3)) for _ in range(count)]


def _fill(place: Place, vectors: Floats, texts: list[str]) -> None:
    def bodies() -> Any:
        for start in range(0, len(vectors), BATCH):
            yield {
                "collection_id": place.collection_id,
                "documents": [
                    {
                        "document_id": document_id(number),
                        "vectors": {VECTOR: vectors[number]},
                        "payload": {**payload(number), "text": texts[number]},
                    }
                    for number in range(start, start + BATCH)
                ],
            }

    path = f"/v1/namespaces/{place.namespace_id}/documents/upsert"
    in_parallel(2, place.wire, ((lambda wire, body=body: wire.post(path, body)) for body in bodies()))


def _retriever(place: Place) -> str:
    searches = [
        {"feature_uri": URI, "query": {"vector": "{{INPUT.v}}"}, "top_k": TOP},
        {"feature_uri": URI, "query": "{{INPUT.q}}", "lexical": True, "top_k": TOP},
    ]
    made = place.wire().post(
        "/v1/retrievers",
        {
            "retriever_name": "hybrid",
            "collection_identifiers": [place.collection_id],
            "stages": [
                {"stage_id": "feature_search", "parameters": {"searches": searches, "final_top_k": K}}
            ],
            "input_schema": {
                "v": {"type": "array", "required": True},
                "q": {"type": "text", "required": True},
            },
        },
    )
    return f"/v1/retrievers/{made['retriever_id']}/execute"


def _raw(folder: Path, vectors: Floats, texts: list[str]) -> edge.EdgeShard:
    folder.mkdir(parents=True)
    shard = edge.EdgeShard.create(
        str(folder),
        edge.EdgeConfig(
            vectors={"v": edge.EdgeVectorParams(DIMENSIONS, edge.Distance.Cosine)},
            sparse_vectors={"bm25": edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
            optimizers=edge.EdgeOptimizersConfig(
                indexing_threshold=INDEXING_THRESHOLD_KB, default_segment_number=1
            ),
            max_search_threads=1,
        ),
    )
    for start in range(0, len(vectors), BATCH):
        points = []
        for number in range(start, start + BATCH):
            fields = {**payload(number), "text": texts[number]}
            words = words_of(fields, ("text",))
            assert words is not None
            named = {"v": vectors[number].tolist(), "bm25": edge.SparseVector(*words)}
            points.append(edge.Point(document_id(number), named, fields))
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    return shard


def _query(shard: edge.EdgeShard, query: Any) -> list[int]:
    found = shard.query(edge.QueryRequest(query=query, limit=TOP, with_payload=True))
    return [number_of(str(point.id)) for point in found]


def _fused(*rankings: list[int]) -> list[int]:
    """Fuse by reciprocal ranks, ties by id, as `feature_search` does by default."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0.0) + 1 / (60 + rank)
    return sorted(scores, key=lambda number: (-scores[number], document_id(number)))[:K]


def _ms(call: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
