"""Objects through a batch, as a user sends them: a bucket of texts, a collection with an extractor, one batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx

#: Objects of one call.
AT_ONCE = 100
PATIENCE_S = 600.0


class Pipeline:
    """A fresh namespace on the server of `client`, with one collection of an extractor that reads texts."""

    def __init__(self, client: httpx.Client, name: str, extractor: str) -> None:
        self._client = client
        feature_extractor = {"feature_extractor_name": extractor, "version": "v1"}
        body = {"namespace_name": name, "feature_extractors": [feature_extractor]}
        self._headers = {"X-Namespace": self._send("POST", "/v1/namespaces", body)["namespace_id"]}
        bucket = {"bucket_name": "bucket", "bucket_schema": {"properties": {"text": {"type": "text"}}}}
        self._bucket = f"/v1/buckets/{self._send('POST', '/v1/buckets', bucket)['bucket_id']}"
        collection = {
            "collection_name": "collection",
            "source": {"type": "bucket", "bucket_ids": [self._bucket.rpartition("/")[2]]},
            "feature_extractor": {**feature_extractor, "input_mappings": {"text": "text"}},
        }
        self.collection_id: str = self._send("POST", "/v1/collections", collection)["collection_id"]

    def load(self, texts: Sequence[str]) -> list[str]:
        """Create an object of each text and return their ids; nothing is extracted yet."""
        ids: list[str] = []
        for start in range(0, len(texts), AT_ONCE):
            objects = [
                {"blobs": [{"property": "text", "type": "text", "data": text}]}
                for text in texts[start : start + AT_ONCE]
            ]
            made = self._send("POST", f"{self._bucket}/objects/batch", {"objects": objects})
            ids += [item["object_id"] for item in made["succeeded"]]
        assert len(ids) == len(texts), f"{len(ids)} of {len(texts)} objects were made"
        return ids

    def run(self, object_ids: Sequence[str]) -> float:
        """Process the objects in one batch; return the seconds until all of their documents are findable."""
        batch = self._send("POST", f"{self._bucket}/batches", {"object_ids": list(object_ids)})
        began = time.perf_counter()
        task = self._send("POST", f"{self._bucket}/batches/{batch['batch_id']}/submit", {})
        while True:
            state = self._send("GET", f"/v1/tasks/{task['task_id']}")
            took = time.perf_counter() - began
            if state["status"] not in ("PENDING", "IN_PROGRESS", "PROCESSING"):
                break
            assert took < PATIENCE_S, state
            time.sleep(0.02)
        assert state["status"] == "COMPLETED", state
        return took

    def count(self) -> int:
        """Return how many documents are found in the collection."""
        listed = self._send("POST", f"/v1/collections/{self.collection_id}/documents/list", {"limit": 1})
        total: int = listed["pagination"]["total"]
        return total

    def retriever(self, name: str, parameters: dict[str, Any]) -> str:
        """Make a retriever of one feature search with an input ``q`` and return the path that executes it."""
        made = self._send(
            "POST",
            "/v1/retrievers",
            {
                "retriever_name": name,
                "collection_identifiers": [self.collection_id],
                "stages": [{"stage_id": "feature_search", "parameters": parameters}],
                "input_schema": {"q": {"type": "text", "required": True}},
            },
        )
        return f"/v1/retrievers/{made['retriever_id']}/execute"

    def first_lines(self, path: str, asked: str) -> list[str]:
        """Return the first line of each text that a retriever finds, the best first."""
        answer = self._send("POST", path, {"inputs": {"q": asked}, "limit": 100})
        return [str(document["text"]).partition("\n")[0] for document in answer["documents"]]

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        headers = getattr(self, "_headers", {})
        answer = self._client.request(method, path, json=body, headers=headers)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()
