"""A namespace to measure in: a text extractor's vectors, one collection, a retriever with one vector stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx

from bench.clustered import Floats, document_id, payload
from bench.wire import Wire, in_parallel

EXTRACTOR = {"feature_extractor_name": "text_extractor", "version": "v1"}
URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
VECTOR = "text_extractor_v1_embedding"
#: Documents of one upsert, on either server.
BATCH = 1000


class Place:
    """A fresh namespace on the server of `client`, with the vectors named `vector` of `extractor`, found by `uri`."""

    def __init__(
        self,
        client: httpx.Client,
        name: str,
        *,
        extractor: dict[str, str] = EXTRACTOR,
        vector: str = VECTOR,
        uri: str = URI,
        **fields: Any,
    ) -> None:
        self._client, self._vector, self._uri = client, vector, uri
        body = {"namespace_name": name, "feature_extractors": [extractor], **fields}
        self.namespace_id: str = self._post("/v1/namespaces", body)["namespace_id"]
        bucket = self._post(
            "/v1/buckets",
            {"bucket_name": "bucket", "bucket_schema": {"properties": {"note": {"type": "text"}}}},
        )
        self.collection_id: str = self._post(
            "/v1/collections",
            {
                "collection_name": "collection",
                "source": {"type": "bucket", "bucket_ids": [bucket["bucket_id"]]},
                "feature_extractor": extractor,
            },
        )["collection_id"]

    def _post(self, path: str, body: Any) -> Any:
        headers = {"X-Namespace": getattr(self, "namespace_id", "")} if path != "/v1/namespaces" else {}
        return self._client.post(path, json=body, headers=headers).raise_for_status().json()

    def wire(self) -> Wire:
        """Return a connection inside the namespace."""
        return Wire(self._client, X_Namespace=self.namespace_id)

    def retriever(self, top_k: int) -> str:
        """Make a retriever of one vector stage and return the path that executes it."""
        made = self._post(
            "/v1/retrievers",
            {
                "retriever_name": f"near-{top_k}",
                "collection_identifiers": [self.collection_id],
                "stages": [
                    {
                        "stage_id": "feature_search",
                        "parameters": {
                            "searches": [
                                {"feature_uri": self._uri, "query": {"vector": "{{INPUT.v}}"}, "top_k": top_k}
                            ],
                            "final_top_k": top_k,
                        },
                    }
                ],
                "input_schema": {"v": {"type": "array", "required": True}},
            },
        )
        return f"/v1/retrievers/{made['retriever_id']}/execute"

    def upserts(
        self, vectors: Floats, first: int = 0, fields: Callable[[int], dict[str, Any]] = payload
    ) -> Iterator[Any]:
        """Yield the bodies that put `vectors` in, as documents number `first` and following, with their `fields`."""
        for start in range(0, len(vectors), BATCH):
            yield {
                "collection_id": self.collection_id,
                "documents": [
                    {
                        "document_id": document_id(first + number),
                        "vectors": {self._vector: vectors[number]},
                        "payload": fields(first + number),
                    }
                    for number in range(start, min(start + BATCH, len(vectors)))
                ],
            }

    def fill(
        self, vectors: Floats, connections: int = 2, fields: Callable[[int], dict[str, Any]] = payload
    ) -> None:
        """Put `vectors` in over several connections; all are durable and findable afterwards."""
        path = f"/v1/namespaces/{self.namespace_id}/documents/upsert"
        in_parallel(
            connections,
            self.wire,
            (
                (lambda wire, body=body: wire.post(path, body))
                for body in self.upserts(vectors, fields=fields)
            ),
        )
