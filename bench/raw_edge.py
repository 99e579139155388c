"""Qdrant Edge itself, in this process, configured as Tessera configures it: the other side of P3, P6, P8 and P13."""

from __future__ import annotations

from pathlib import Path

import qdrant_edge as edge

from bench.clustered import DIMENSIONS, Floats, document_id, number_of, payload
from bench.place import BATCH
from tessera.adapters.qdrant.edge_host import INDEXING_THRESHOLD_KB


def create(folder: Path, dimensions: int = DIMENSIONS) -> edge.EdgeShard:
    """Make an empty shard with one vector and no payload index."""
    folder.mkdir(parents=True)
    return edge.EdgeShard.create(
        str(folder),
        edge.EdgeConfig(
            vectors={"v": edge.EdgeVectorParams(dimensions, edge.Distance.Cosine)},
            optimizers=edge.EdgeOptimizersConfig(
                indexing_threshold=INDEXING_THRESHOLD_KB, default_segment_number=1
            ),
            max_search_threads=1,
        ),
    )


def put(shard: edge.EdgeShard, vectors: Floats) -> None:
    """Upsert `vectors` with their payloads in batches, each flushed: durable as an answered upsert is."""
    for start in range(0, len(vectors), BATCH):
        points = [
            edge.Point(document_id(number), {"v": vectors[number].tolist()}, payload(number))
            for number in range(start, min(start + BATCH, len(vectors)))
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
        shard.flush()


def query(shard: edge.EdgeShard, vector: Floats, limit: int, ef: int | None = None) -> list[int]:
    """Return the numbers of the nearest, with their payloads read as an answer has them."""
    found = shard.query(
        edge.QueryRequest(
            query=edge.Query.Nearest(vector, using="v"),
            limit=limit,
            with_payload=True,
            params=edge.SearchParams(hnsw_ef=ef, exact=False),
        )
    )
    return [number_of(str(point.id)) for point in found]
