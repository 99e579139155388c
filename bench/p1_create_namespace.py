"""P1: POST /v1/namespaces, durable, beside creating a collection on chromadb's server.

Floor: p50 at most 1.5 times chromadb's. Record: 0.8 times, and p50 at the end at most 1.2 times that at the start.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from bench.servers import chroma, tessera

ROUNDS = 10
PER_ROUND = 100

#: The request of the API page: a video extractor, a text index and a keyword index.
PAGE = {
    "description": "This namespace contains playlists from Spotify",
    "feature_extractors": [{"feature_extractor_name": "video_extractor", "version": "1.0.0"}],
    "payload_indexes": [
        {
            "field_name": "metadata.title",
            "type": "text",
            "field_schema": {
                "type": "text",
                "tokenizer": "word",
                "min_token_len": 2,
                "max_token_len": 15,
                "lowercase": True,
            },
        },
        {
            "field_name": "metadata.description",
            "type": "keyword",
            "field_schema": {"type": "keyword", "is_tenant": True},
        },
    ],
}


def main() -> None:
    """Print p50 of both in every round, the ratio, and how Tessera's p50 grows with the number of namespaces."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tessera(Path(folder) / "tessera") as ours,
        chroma(Path(folder) / "chroma") as theirs,
    ):
        ratios, all_ours = [], []
        for number in range(ROUNDS):
            mine = _times(lambda i, n=number: _namespace(ours, f"bench-{n}-{i}"))
            other = _times(lambda i, n=number: _collection(theirs, f"bench-{n}-{i}"))
            all_ours += mine
            ratios.append(statistics.median(mine) / statistics.median(other))
        early, late = statistics.median(all_ours[10:110]), statistics.median(all_ours[-100:])
        print(
            f"P1  create namespace p50 {statistics.median(all_ours) * 1e3:.2f} ms; "
            f"{statistics.median(ratios):.2f}x chromadb create_collection "
            f"(rounds {min(ratios):.2f} to {max(ratios):.2f}; floor 1.5, record 0.8)"
        )
        print(
            f"    p50 of namespaces 11-110 {early * 1e3:.2f} ms, of the last 100 of {len(all_ours)} "
            f"{late * 1e3:.2f} ms: {late / early:.2f}x (at most 1.5)"
        )


def _times(call: Callable[[int], None]) -> list[float]:
    taken = []
    for index in range(PER_ROUND):
        started = time.perf_counter()
        call(index)
        taken.append(time.perf_counter() - started)
    return taken


def _namespace(client: httpx.Client, name: str) -> None:
    client.post("/v1/namespaces", json={"namespace_name": name, **PAGE}).raise_for_status()


def _collection(client: httpx.Client, name: str) -> None:
    path = "/tenants/default_tenant/databases/default_database/collections"
    client.post(path, json={"name": name}).raise_for_status()
